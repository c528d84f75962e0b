#!/bin/bash
# Ten times the load that a server can take, for DURATION (20) seconds, ROUNDS (1) times: it neither dies nor
# grows, what does not fit is refused at once with 503 and Retry-After, before its text is tokenised, and
# what was taken is answered in the time that the queue promises. RUN and CLIENT go before the server and the load
# (RUN="chrt -f 10" CLIENT="chrt -f 20" where other work would disturb), SERVE_ARGS behind those of the server.
. tests/program/lib.sh
. tests/serve_lib.sh
command -v curl >/dev/null || { ok "skipped: no curl"; exit 0; }
seconds=${DURATION:-20} rounds=${ROUNDS:-1} queue=16
medium_model
serve --max-waiting $queue --no-prefix-cache ${SERVE_ARGS:-}
load() { ${CLIENT:-} "$strata" bench --url "$url" --prompt-tokens 64 --max-tokens 32 --vocab 256 --ignore-eos --json "$@" >"$tmp/load" || fail "bench: $(cat "$tmp/load")"; }
number() { sed -n "s/.*\"$1\": *\([0-9.e+-]*\).*/\1/p" "$tmp/load" | head -n 1; }
# of an object of times: number_of refused_ms p99
number_of() { awk -v o="\"$1\":" -v k="\"$2\":" '$1 == o { in_it = 1 } in_it && $1 == k { gsub(",", "", $2); print $2; exit }' "$tmp/load"; }
load --clients 16 --requests 32 --seed 9 # compiled, warm
load --clients 16 --seconds 5 --seed 1
capacity=$(number requests_per_second)
echo "   capacity $capacity requests/s"
rate=$(awk -v c="$capacity" 'BEGIN { print 10 * c }')
resident() { awk '/VmRSS/ { print $2 }' "/proc/$server/status"; }
for round in $(seq "$rounds"); do
    load --rate "$rate" --seconds 3 --seed $((100 + round)) # what the load itself needs is there
    before=$(resident)
    taken=$(metric strata_tokenized_requests_total)
    load --rate "$rate" --seconds "$seconds" --seed $((10 + round))
    kill -0 "$server" || fail "the server is gone"
    good=$(number_of requests '"ok"' || true)
    good=$(sed -n 's/.*"ok": *\([0-9]*\).*/\1/p' "$tmp/load") refused=$(sed -n 's/.*"refused": *\([0-9]*\).*/\1/p' "$tmp/load")
    others=$(sed -n '/"requests": {/,/}/p' "$tmp/load" | grep -cE '"(no connection|timeout|cut|malformed|error)"' || true)
    p99=$(number_of first_token_ms p99) bar=$(awk -v c="$capacity" -v q=$queue 'BEGIN { printf "%.0f", 2e3 * q / c }')
    echo "   round $round: $good ok, $refused refused in $(number_of refused_ms p50) ms p50, $(number_of refused_ms p99) p99, $(number_of refused_ms max) max;" \
        "first token $(number_of first_token_ms p50) ms p50, $p99 p99 (bar $bar); resident $before to $(resident) kB"
    [ "$others" = 0 ] || fail "other failures: $(sed -n '/"requests": {/,/}/p' "$tmp/load")"
    [ "${refused:-0}" -gt "$good" ] || fail "that was no overload"
    [ "$(sed -n '/"status": {/,/}/p' "$tmp/load" | grep -c '"')" = 3 ] || fail "statuses: $(sed -n '/"status": {/,/}/p' "$tmp/load")"
    [ "$(number without_retry_after)" = 0 ] || fail "refusals without Retry-After"
    awk -v t="$(number_of refused_ms p99)" 'BEGIN { exit !(t < 50) }' || fail "refusals take $(number_of refused_ms p99) ms"
    awk -v t="$p99" -v b="$bar" 'BEGIN { exit !(t <= b) }' || fail "first tokens take $p99 ms, the bar is $bar"
    tokenised=$(($(metric strata_tokenized_requests_total) - taken))
    [ "$tokenised" = "$good" ] || fail "$tokenised requests were tokenised, $good answered"
    awk -v a="$before" -v b="$(resident)" 'BEGIN { exit !(b <= 1.05 * a + 2000) }' || fail "memory grows from $before to $(resident) kB"
done
settled strata_num_requests_running 0 10
settled strata_kv_cache_usage_perc 0 10
serve_end
ok "overload: refused at once, admitted in time, memory flat"
