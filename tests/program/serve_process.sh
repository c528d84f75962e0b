#!/bin/bash
# strata serve as a process: ready line, the text of generate, signals, mistakes.
. tests/program/lib.sh
small_spec "$tmp" 1
expect 0 "$strata" init "$tmp/spec.yaml" -o "$tmp/w.safetensors"
spec=("$tmp/spec.yaml" --weights "$tmp/w.safetensors" --set serve.max_sequences=2 --set serve.max_context=256)

expect 2 "$strata" serve "$tmp/spec.yaml"
said "serve needs --weights"
expect 2 "$strata" serve "${spec[@]}" --chat-template nonsense
said "kimi, llama, chatml or plain"
: >"$tmp/empty"
expect 1 "$strata" serve "${spec[@]}" --api-key-file "$tmp/empty"
said "first line is empty"
expect 2 "$strata" serve "${spec[@]}" --header-seconds 0
said "--header-seconds must be from"

server=
trap 'kill -9 $server 2>/dev/null || true; cleanup' EXIT
# serve OPTION...: starts one and waits until it listens; sets server and port.
serve() {
    "$strata" serve "${spec[@]}" --port 0 "$@" 2>"$tmp/log" &
    server=$!
    for _ in $(seq 600); do
        port=$(sed -n 's|^listening on http://127.0.0.1:\([0-9]*\), .*|\1|p' "$tmp/log")
        [ -z "$port" ] || return 0
        kill -0 $server 2>/dev/null || break
        sleep 0.05
    done
    sed 's/^/    /' "$tmp/log" >&2
    fail "no server"
}
# ask PATH [BODY]: the whole answer on standard output.
ask() {
    exec 3<>"/dev/tcp/127.0.0.1/$port"
    if [ $# = 1 ]; then
        printf 'GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n' "$1" >&3
    else
        printf 'POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s' \
            "$1" ${#2} "$2" >&3
    fi
    cat <&3
    exec 3>&-
}

serve --chat-template plain
grep -q "model small, context 256 tokens, chat template plain" "$tmp/log" || fail "$(cat "$tmp/log")"
expect 0 "$strata" generate "$tmp/spec.yaml" --weights "$tmp/w.safetensors" --max-tokens 40 --print-ids \
    --prompt $'User: Permission\n\nAssistant:'
ask /v1/chat/completions '{"model":"small","messages":[{"role":"user","content":"Permission"}],"max_tokens":40,"temperature":0,"logprobs":true}' >"$tmp/got"
got=$(grep -o '"bytes":\[[0-9]*\]' "$tmp/got" | tr -dc '0-9\n' | paste -sd' ')
[ "$got" = "$(cat "$tmp/out")" ] || fail "served: $got, generated: $(cat "$tmp/out")"
ok "a served text is the generated one"

expect 1 "$strata" serve "${spec[@]}" --port "$port"
said "port $port of 127.0.0.1 is in use"
said "--port"
ok "a port in use"

long='{"model":"small","prompt":"a","max_tokens":250,"temperature":0,"stream":true}'
ask /v1/completions "$long" >"$tmp/stream" &
asked=$!
for _ in $(seq 100); do
    if [ -s "$tmp/stream" ]; then break; fi
    sleep 0.01
done
kill -TERM $server
wait $server || fail "status $? after SIGTERM"
wait $asked
grep -q '\[DONE\]' "$tmp/stream" || grep -q draining "$tmp/stream" || fail "$(tail -c 500 "$tmp/stream")"
grep -q '^draining' "$tmp/log" || fail "no word of draining"
ok "SIGTERM: drained, status 0"

serve --drain-seconds 60
exec 4<>"/dev/tcp/127.0.0.1/$port"
printf 'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{' >&4
for _ in $(seq 100); do
    ask /metrics >"$tmp/m"
    if grep -q '^strata_requests_active 1' "$tmp/m"; then break; fi
done
kill -INT $server
for _ in $(seq 100); do
    ask /health >"$tmp/got"
    if grep -q '503' "$tmp/got"; then break; fi
done
grep -q '"draining"' "$tmp/got" || fail "$(cat "$tmp/got")"
kill -INT $server
status=0
wait $server || status=$?
[ $status = 1 ] || fail "status $status after the second signal"
exec 4>&-
ok "a second signal ends it at once, status 1"
