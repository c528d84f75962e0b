#!/bin/bash
# Runs test commands, one an argument, as many at a time as JOBS says; prints a line for each (time that
# passed, and of processors), the output of those that fail, and the sum. What each printed stays in LOGS.
: "${LOGS:?}" "${JOBS:=1}"
mkdir -p "$LOGS"
rm -f "$LOGS"/*.log "$LOGS"/*.status

one() {
    local command=$1 name status=0 TIMEFORMAT='%2R %2U %2S'
    name=$(basename "${command%% *}")
    { time bash -c "exec $command" >"$LOGS/$name.log" 2>&1 || status=$?; } 2>"$LOGS/$name.time"
    echo $status >"$LOGS/$name.status"
    if [ $status = 0 ]; then
        awk -v n="$name" '{ printf "ok      %-28s %8.2f s %8.2f CPU\n", n, $1, $2 + $3 }' "$LOGS/$name.time"
    else
        printf 'FAILED  %-28s exit %d\n%s\n' "$name" $status "$(sed 's/^/    /' "$LOGS/$name.log")"
    fi
}
export -f one
export LOGS
printf '%s\0' "$@" | xargs -0 -P "$JOBS" -I{} bash -c 'one "$1"' run {}

count() { cat "$LOGS"/*.log | grep -cE "$1"; }
failed=$(cat "$LOGS"/*.status | grep -cv '^0$')
# cmocka names a skipped test twice.
scripts=$(count '^ok: skipped')
skipped=$(($(count '^\[  SKIPPED \] [a-z_0-9]+$') / 2 + scripts))
passed=$(($(count '^(\[       OK \] |ok: |[0-9]+ inputs replayed)') - scripts))
grep -hE '^(ok: )?skipped: ' "$LOGS"/*.log | sort | uniq -c
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
