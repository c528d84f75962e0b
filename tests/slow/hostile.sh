#!/bin/bash
# A thousand slow-loris clients and two hundred that never read, beside good ones whose latency must stay; then a
# storm of disconnects, after which nothing is left in use.
. tests/program/lib.sh
. tests/serve_lib.sh
command -v curl >/dev/null && command -v python3 >/dev/null || { ok "skipped: no curl or python3"; exit 0; }
loris=${LORIS:-1000} never=${NEVER:-200} rounds=${ROUNDS:-3}
ulimit -n 8192 2>/dev/null || { ok "skipped: no more than $(ulimit -n) open files"; exit 0; }
medium_model
serve # with the limits that are standard
load() { "$strata" bench --url "$url" --prompt-tokens 32 --max-tokens 32 --vocab 256 --ignore-eos --json "$@" >"$tmp/load" || fail "bench: $(cat "$tmp/load")"; }
number_of() { awk -v o="\"$1\":" -v k="\"$2\":" '$1 == o { in_it = 1 } in_it && $1 == k { gsub(",", "", $2); print $2; exit }' "$tmp/load"; }
load --clients 4 --requests 16 --seed 9
quiet= loud=
for round in $(seq "$rounds"); do
    load --clients 2 --requests 24 --seed "$round"
    quiet="$quiet $(number_of whole_ms p50)"
    coproc HOSTILE { exec python3 tests/slow/hostile_clients.py "${url##*:}" "$loris" "$never" medium; }
    hostile=$HOSTILE_PID
    exec {from}<&"${HOSTILE[0]}" {to}>&"${HOSTILE[1]}"
    read -r -t 120 line <&"$from" && [ "$line" = ready ] || fail "the hostile clients are not there"
    settled strata_num_requests_waiting 0 200 # what the never-readers asked for is work like any other
    settled strata_num_requests_running 0 120
    connections=$(metric strata_http_connections)
    load --clients 2 --requests 24 --seed "$round"
    loud="$loud $(number_of whole_ms p50)"
    echo done >&"$to"
    exec {to}>&-
    IFS= read -r -t 300 line <&"$from" || fail "the hostile clients do not end"
    wait "$hostile" 2>/dev/null || true
    exec {from}<&-
    echo "   round $round: $connections connections; $line"
    [ "${connections%.*}" -ge $((loris * 8 / 10)) ] || fail "only $connections connections"
done
least() { tr ' ' '\n' <<<"$1" | sed '/^$/d' | sort -n | head -n 1; } # other work of the machine only adds
a=$(least "$quiet") b=$(least "$loud")
echo "   good clients, p50 of whole answers: quiet$quiet ms, beside them$loud ms; longest call for a token $(metric strata_token_write_seconds_max) s"
awk -v a="$a" -v b="$b" 'BEGIN { exit !(b <= 1.2 * a) }' || fail "good clients wait: $a ms alone, $b ms beside hostile ones"
awk -v t="$(metric strata_token_write_seconds_max)" 'BEGIN { exit !(t < 0.5) }' || fail "a step waited for a client"
ok "hostile clients: good ones have their answers in $b ms, alone in $a"

load --clients 32 --requests 400 --cancel 0.5 --seed 5
cancelled=$(sed -n 's/.*"cancelled": *\([0-9]*\).*/\1/p' "$tmp/load")
[ "${cancelled:-0}" -gt 100 ] || fail "only ${cancelled:-none} were cancelled"
settled strata_num_requests_running 0 20
settled strata_kv_cache_usage_perc 0 20
settled strata_requests_active 0 20
serve_end
ok "a storm of $cancelled disconnects leaves nothing"
