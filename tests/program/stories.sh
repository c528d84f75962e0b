#!/bin/bash
# A model made by others (llama2.c's stories260K): its loss and its greedy continuation.
. tests/program/lib.sh
dir=${STRATA_DATA:-../shared/data}/models
model=$dir/stories260K.safetensors
if [ ! -e "$model" ]; then
    ok "skipped: no $model"
    exit 0
fi
expect 0 "$strata" eval specs/stories260k.yaml --weights "$model" --tokens "$dir/stories260K.eval.npy"
loss=$(sed -n 's/^loss //p' "$tmp/out")
awk -v x="$loss" 'BEGIN { exit !(x > 1.328655 && x < 1.328855) }' || fail "loss $loss, not 1.328755"
ok "loss $loss (1.328755 is llama2.c's)"
expect 0 "$strata" generate specs/stories260k.yaml --weights "$model" --prompt-ids 1 --max-tokens 255 --print-ids
tr ' ' '\n' <"$tmp/out" >"$tmp/got"
awk -F'\t' 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == "argmax") at = i; next } { print $at }' \
    "$dir/stories260K.greedy.tsv" | sed -n 1,255p >"$tmp/want"
[ "$(wc -l <"$tmp/want")" = 255 ] || fail "the reference has not 255 tokens"
cmp "$tmp/got" "$tmp/want" || fail "greedy tokens differ"
ok "255 greedy tokens are llama2.c's"
