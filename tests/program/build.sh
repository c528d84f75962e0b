#!/bin/bash
# Programs that strata build makes: alone in an empty root, the same bytes again, what they say of
# damage, every dtype, weights beside them, and the C library.
. tests/program/lib.sh
data=${STRATA_DATA:-../shared/data}/models
one="--target cpu:x86-64-v3" # one kind of processor compiles in half the time
milliseconds() { date +%s%3N; }

# A model of every kind of layer: the tokens and the loss of strata itself.
f=tests/fixtures/kimi-mini
expect 0 "$strata" build $f/spec.yaml --weights $f/weights.safetensors -o "$tmp/kimi" $one
expect 0 "$strata" generate $f/spec.yaml --weights $f/weights.safetensors --prompt-ids 5,3,1,7,9,2,4,6,8,1,2,3,4,5,6,7,8,9,1,2 --max-tokens 40 --print-ids
cp "$tmp/out" "$tmp/want"
expect 0 "$tmp/kimi" generate --prompt-ids 5,3,1,7,9,2,4,6,8,1,2,3,4,5,6,7,8,9,1,2 --max-tokens 40 --print-ids
cmp "$tmp/out" "$tmp/want" || fail "kimi-mini: other tokens than strata generate"
expect 0 "$strata" eval $f/spec.yaml --weights $f/weights.safetensors --tokens $f/tokens.npy
want=$(sed -n 's/^loss //p' "$tmp/out")
expect 0 "$tmp/kimi" eval $f/tokens.npy
got=$(sed -n 's/^loss //p' "$tmp/out")
awk -v a="$got" -v b="$want" 'BEGIN { d = a - b; exit !(d < 1e-5 && d > -1e-5) }' || fail "loss $got, not $want"
expect 0 "$tmp/kimi" info --json --verify
if [ -e "$BUILD/fakecuda/libcuda.so.1" ]; then # for a GPU: the fake one (tests/fakecuda/fake.h)
    export STRATA_CUDA_PATH=$BUILD/fakecuda
    expect 0 "$strata" build $f/spec.yaml --weights $f/weights.safetensors -o "$tmp/gpu" --target cuda:sm_90a \
        --set serve.max_sequences=2
    expect 0 "$tmp/gpu" generate --prompt-ids 5,3,1,7,9,2,4,6,8,1,2,3,4,5,6,7,8,9,1,2 --max-tokens 40 --print-ids
    cmp "$tmp/out" "$tmp/want" || fail "kimi-mini: other tokens by the program for a GPU"
    expect 1 env STRATA_CUDA_PATH="$tmp" "$tmp/gpu" generate --prompt-ids 1
    said "cannot find the CUDA driver"
    unset STRATA_CUDA_PATH
    ok "kimi-mini: 40 greedy tokens by a program for a GPU"
fi
expect 1 "$tmp/kimi" chat
said "names no tokenizer"
ok "kimi-mini: 40 greedy tokens and the loss of strata"

# The same inputs in another folder, on one core, without what was compiled before.
f=tests/fixtures/attention-single
mkdir "$tmp/a" "$tmp/b"
for d in a b; do
    cp $f/spec.yaml $f/weights.safetensors "$tmp/$d"
    (cd "$tmp/$d" && STRATA_CACHE=$tmp/cache-$d taskset -c 0 "$strata" build spec.yaml --weights weights.safetensors -o app $one >/dev/null) ||
        fail "build in $d"
done
cmp "$tmp/a/app" "$tmp/b/app" || fail "two builds differ"
ok "two builds in two folders are the same bytes"

# Damage.
size=$(stat -c %s "$tmp/a/app")
damaged() { # WHAT MESSAGE
    chmod +x "$tmp/bad"
    expect 1 "$tmp/bad" info --verify
    said "$2"
    ok "$1: $(sed 's/.*bad. //' "$tmp/err")"
}
head -c $((size - 100)) "$tmp/a/app" >"$tmp/bad"
damaged cut "carries no model"
{ head -c $((size - 64)) "$tmp/a/app"; head -c 5000 /dev/zero; tail -c 64 "$tmp/a/app"; } >"$tmp/bad"
damaged "something put in" "is damaged"
sed 's/"vocab"/"vokab"/' "$tmp/a/app" >"$tmp/bad"
damaged "meta changed" "section meta was changed"
if command -v strip >/dev/null; then
    strip -o "$tmp/bad" "$tmp/a/app"
    damaged stripped "cut or stripped"
fi
expect 2 "$tmp/a/app" genrate
expect 2 "$strata" build $f/spec.yaml --weights $f/weights.safetensors -o "$tmp/x" --target cuda
said "needs an architecture"
expect 2 "$strata" build $f/spec.yaml --weights $f/weights.safetensors -o "$tmp/x" --target cpu:z80
expect 2 "$strata" build $f/spec.yaml --weights $f/weights.safetensors -o "$tmp/x" --dtype fp64

# Weights beside it.
expect 0 "$strata" build $f/spec.yaml --weights $f/weights.safetensors -o "$tmp/beside" --beside $one
expect 0 "$tmp/a/app" generate --prompt-ids 1,2,3 --max-tokens 20 --print-ids
cp "$tmp/out" "$tmp/want"
expect 0 "$tmp/beside" generate --prompt-ids 1,2,3 --max-tokens 20 --print-ids
cmp "$tmp/out" "$tmp/want" || fail "other tokens with weights beside the program"
mv "$tmp/beside.weights" "$tmp/away"
expect 1 "$tmp/beside" info
said "beside.weights"
cp "$tmp/a/app" "$tmp/beside.weights" # a whole bundle with the same weights in it
expect 0 "$tmp/beside" info
cp "$tmp/kimi" "$tmp/beside.weights"
expect 1 "$tmp/beside" info
said "has not the weights"
ok "weights beside the program"

if [ ! -e "$data/stories260K.safetensors" ]; then
    ok "skipped: no $data/stories260K.safetensors"
    exit 0
fi
stories="specs/stories260k.yaml --weights $data/stories260K.safetensors --set tokenizer.path=$PWD/$data/tok512.bin --set tokenizer.bos=1"
expect 0 "$strata" build $stories -o "$tmp/stories"
ok "$(cat "$tmp/out")"
expect 0 "$tmp/stories" info --json
weights=$(sed -n 's/.*"weights": \([0-9]*\),/\1/p' "$tmp/out")
size=$(($(stat -c %s "$tmp/stories") - weights))
[ "$size" -lt 4000000 ] || fail "the program without weights has $size bytes, more than 4 MB"
ok "$size bytes without weights"
awk -F'\t' 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == "argmax") at = i; next } { print $at }' \
    "$data/stories260K.greedy.tsv" | sed -n 1,255p >"$tmp/want"
greedy() { # WHAT COMMAND...
    local what=$1
    shift
    expect 0 "$@" generate --prompt-ids 1 --max-tokens 255 --print-ids
    tr ' ' '\n' <"$tmp/out" >"$tmp/got"
    cmp "$tmp/got" "$tmp/want" || fail "$what: greedy tokens differ"
    ok "$what: 255 greedy tokens are llama2.c's"
}
greedy "best kernels" "$tmp/stories"
expect 0 "$tmp/stories" generate --prompt-ids 1 --max-tokens 40 --print-ids --cpu x86-64-v3
[ "$(cat "$tmp/out")" = "$(sed -n 1,40p "$tmp/want" | paste -sd' ')" ] || fail "other tokens by x86-64-v3"
expect 0 "$tmp/stories" generate --prompt 'Once upon a time' --max-tokens 20
cp "$tmp/out" "$tmp/text"
mkdir "$tmp/root"
cp "$tmp/stories" "$tmp/root/app"
if [ "$(id -u)" = 0 ] && chroot "$tmp/root" /app --help >/dev/null 2>&1; then
    begin=$(milliseconds)
    expect 0 chroot "$tmp/root" /app generate --prompt 'Once upon a time' --max-tokens 1
    time=$(($(milliseconds) - begin))
    [ "$time" -lt 2000 ] || fail "start to first token took $time ms"
    greedy "in an empty root, $time ms to the first token" chroot "$tmp/root" /app
else
    ok "skipped: this user may not chroot"
fi
for d in bf16 int8; do
    expect 0 "$strata" build $stories -o "$tmp/$d" --dtype $d $one
    cp "$data/stories260K.eval.npy" "$tmp/tokens.npy"
    expect 0 "$tmp/$d" eval "$tmp/tokens.npy"
    loss=$(sed -n 's/^loss //p' "$tmp/out")
    awk -v x="$loss" 'BEGIN { exit !(x > 1.3257 && x < 1.3317) }' || fail "$d: loss $loss, not about 1.328755"
    ok "$d: loss $loss (fp32: 1.328755)"
done
expect 0 "$strata" build $stories -o "$tmp/lib" --lib
expect 0 cc -Wall -Wextra -Werror -DHEADER='"stories260k.h"' -I"$tmp/lib" examples/library/main.c \
    "$tmp/lib/libstories260k.a" -lm -lpthread -o "$tmp/continue"
expect 0 "$tmp/continue" "$tmp/lib/stories260k.model" 'Once upon a time' 20
cmp "$tmp/out" "$tmp/text" || fail "the library's text differs"
expect 1 "$tmp/continue" "$tmp/lib/libstories260k.a" x 1
ok "the library gives the program's text"
"$tmp/stories" serve --port 0 2>"$tmp/served" &
server=$!
for i in $(seq 100); do
    port=$(sed -n 's/^listening on http:.*:\([0-9]*\),.*/\1/p' "$tmp/served")
    [ -n "$port" ] && break
    sleep 0.05
done
exec 3<>"/dev/tcp/127.0.0.1/$port"
printf 'GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n' >&3
cat <&3 >"$tmp/out"
exec 3>&-
kill $server
wait $server || fail "serve ended with $?"
grep -q '"stories260k"' "$tmp/out" || fail "no model is served: $(cat "$tmp/out" "$tmp/served")"
ok "serve: its model is listed"
printf 'Hi\n' >"$tmp/in"
expect 0 "$strata" build $stories -o "$tmp/chat" --set tokenizer.chat_template=plain
expect 0 bash -c "'$tmp/chat' chat --max-tokens 20 <'$tmp/in'"
[ -s "$tmp/out" ] || fail "no answer"
ok "chat: $(head -c 60 "$tmp/out" | tr '\n' ' ')"
