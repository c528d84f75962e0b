#!/bin/bash
# A server of 124M parameters in bf16 (SPEC, DTYPE) under load: closed loop of 1, 4, 16 and 64 clients, then requests at random times
# at 70 % of what 64 clients got; prompts of 128 tokens, answers of 64 to 128. With PEER=.../llama-server and
# PEER_MODEL=m.gguf (tests/bench/peer_gguf.py) each is measured on both, in turns. RUN and CLIENT are put before
# servers and load (LOADS="1 16" ROUNDS=3 measures less, more often; RUN='chrt -f 10' CLIENT='chrt -f 20' on a machine with other work). All numbers go to
# $BUILD/bench-serve/*.json.
. tests/program/lib.sh
. tests/serve_lib.sh
out=$BUILD/bench-serve spec=${SPEC:-specs/serve-125m.yaml} peer=
mkdir -p "$out"
rm -f "$out"/*.json
[ -e "$out/weights.safetensors" ] || expect 0 "$strata" init "$spec" -o "$out/weights.safetensors" --seed 1
model=("$spec" --weights "$out/weights.safetensors" --set tokenizer=bytes --set serve.max_sequences=64 --set serve.max_context=512 ${DTYPE:---dtype bf16})
serve --max-waiting 256
ours=$url
if [ -n "${PEER:-}" ]; then
    port=$((20000 + RANDOM % 20000))
    ${RUN:-} "$PEER" -m "$PEER_MODEL" --host 127.0.0.1 --port $port -c $((64 * 512)) -np 64 -t "$(nproc)" --no-webui >"$tmp/peer.log" 2>&1 &
    peer=$!
    trap 'kill -9 $peer 2>/dev/null; serve_cleanup' EXIT
    theirs=http://127.0.0.1:$port
    for i in $(seq 300); do [ "$(curl -s -o /dev/null -w '%{http_code}' "$theirs/health")" != 200 ] || break; sleep 0.1; done
fi
value() { sed -n "s/.*\"$2\": *\([0-9.e+-]*\).*/\1/p" "$out/$1.json" | head -n 1; }
of() { awk -v o="\"$2\":" -v k="\"$3\":" '$1 == o { i = 1 } i && $1 == k { gsub(",", "", $2); print $2; exit }' "$out/$1.json"; }
# measure NAME URL OPTIONS...
measure() {
    local name=$1 at=$2
    shift 2
    ${CLIENT:-} "$strata" bench --url "$at" --prompt-tokens 128 --max-tokens 64:128 --vocab 50304 --ignore-eos --timeout 600 --json "$@" >"$out/$name.json"
    printf '%-22s %5s ok %8.2f req/s %9.1f tok/s   first token %8.1f p50 %8.1f p99   per token %7.2f mean %7.2f p50 %7.2f p99 ms\n' "$name" \
        "$(sed -n 's/.*"ok": *\([0-9]*\).*/\1/p' "$out/$name.json")" "$(value "$name" requests_per_second)" "$(value "$name" output_tokens_per_second)" \
        "$(of "$name" first_token_ms p50)" "$(of "$name" first_token_ms p99)" "$(of "$name" per_token_ms mean)" "$(of "$name" per_token_ms p50)" "$(of "$name" per_token_ms p99)"
}
both() {
    local name=$1
    shift
    measure "strata-$name" "$ours" "$@"
    [ -z "$peer" ] || measure "peer-$name" "$theirs" "$@"
}
both warm --clients 16 --requests 16 --seed 99 >/dev/null
for n in ${LOADS:-1 4 16 64}; do
    for round in $(seq "${ROUNDS:-1}"); do both "$n" --clients "$n" --requests $((n < 3 ? 6 : n < 32 ? 4 * n : 2 * n)) --seed $((n + round)); done
done
for who in strata ${peer:+peer}; do
    [ -e "$out/$who-64.json" ] || continue
    rate=$(awk -v c="$(value $who-64 requests_per_second)" 'BEGIN { printf "%.3f", 0.7 * c }')
    at=$ours
    [ $who = strata ] || at=$theirs
    measure $who-open "$at" --rate "$rate" --seconds 20 --seed 5
done
[ -z "$peer" ] || for n in ${LOADS:-1 4 16 64}; do
    awk -v n=$n -v a="$(value strata-$n output_tokens_per_second)" -v b="$(value peer-$n output_tokens_per_second)" \
        'BEGIN { printf "%d clients: %.2f times the peer'\''s tokens per second\n", n, a / b }'
done
serve_end
