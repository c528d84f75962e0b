# For tests that need a server: after tests/program/lib.sh. A model, `serve` with options of `strata
# serve`, and what its metrics say. The server ends with the test.
server=
serve_cleanup() {
    [ -z "$server" ] || kill -9 "$server" 2>/dev/null || true
    rm -rf "$tmp"
}
trap serve_cleanup EXIT

# A model whose answers tests choose by logit_bias: freshly initialised, bytes as tokens, AttnRes. Its
# context is long enough for answers of a second or two.
tiny_model() {
    cat >"$tmp/tiny.yaml" <<'YAML'
strata: 1
name: tiny
tokenizer: bytes
model:
  vocab_size: 256
  hidden_size: 48
  tie_embeddings: true
  residual: {type: attnres, blocks: 2}
  mixers:
    full: {type: attention, num_heads: 3, rope: {theta: 10000}}
  ffns:
    dense: {type: mlp, intermediate_size: 80}
    moe: {type: moe, num_experts: 5, experts_per_token: 2, intermediate_size: 24}
  layers:
    - {mixer: full, ffn: dense}
    - {mixer: full, ffn: moe}
serve: {max_sequences: 16, max_context: 2048}
YAML
    expect 0 "$strata" init "$tmp/tiny.yaml" -o "$tmp/tiny.safetensors" --seed 5
    model=("$tmp/tiny.yaml" --weights "$tmp/tiny.safetensors" --chat-template plain)
}

# serve ARGS...: starts `strata serve` with the array `model`, or the built program `app`, on a free port and sets
# `url` and `server`. RUN goes before it.
app=
serve() {
    if [ -n "$app" ]; then set -- "$app" serve "$@"; else set -- "$strata" serve "${model[@]}" "$@"; fi
    : >"$tmp/serve.out" >"$tmp/serve.log"
    ${RUN:-} "$@" --port 0 >"$tmp/serve.out" 2>"$tmp/serve.log" &
    server=$!
    local i
    for i in $(seq 600); do
        url=$(sed -n 's!.*\(http://127\.0\.0\.1:[0-9]*\).*!\1!p' "$tmp/serve.log" "$tmp/serve.out" | head -n 1)
        [ -z "$url" ] || break
        kill -0 "$server" 2>/dev/null || { cat "$tmp/serve.log" >&2; fail "the server did not start"; }
        sleep 0.1
    done
    [ -n "$url" ] || fail "the server does not say where it listens"
}

# Ends it as a supervisor would; it must leave with status 0.
serve_end() {
    local status=0
    kill -TERM "$server"
    wait "$server" || status=$?
    server=
    [ "$status" = 0 ] || { cat "$tmp/serve.log" >&2; fail "the server ended with status $status"; }
}

# metric NAME: its value, labels as they stand there.
metric() { curl -s "$url/metrics" | awk -v name="$1" '$1 == name { print $2; found = 1 } END { if (!found) print "absent" }'; }
# settled NAME VALUE SECONDS: waits until the metric has it.
settled() {
    local i
    for i in $(seq $(($3 * 10))); do
        [ "$(metric "$1")" != "$2" ] || return 0
        sleep 0.1
    done
    fail "$1 is $(metric "$1"), not $2"
}

# A model that takes milliseconds a token, so that load is a matter of the model and not of its clients.
medium_model() {
    cat >"$tmp/medium.yaml" <<'YAML'
strata: 1
name: medium
tokenizer: bytes
model:
  vocab_size: 256
  hidden_size: 256
  residual: {type: attnres, blocks: 4}
  mixers:
    full: {type: attention, num_heads: 4, rope: {theta: 10000}}
  ffns:
    dense: {type: mlp, intermediate_size: 704}
  layers:
    - repeat: 8
      layers: [{mixer: full, ffn: dense}]
serve: {max_sequences: 16, max_context: 1024}
YAML
    expect 0 "$strata" init "$tmp/medium.yaml" -o "$tmp/medium.safetensors" --seed 5
    model=("$tmp/medium.yaml" --weights "$tmp/medium.safetensors")
}
