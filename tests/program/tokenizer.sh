#!/bin/bash
# Making a tokenizer, training with it, and generating from the run without it.
. tests/program/lib.sh
small_spec "$tmp" 6
tok=$tmp/made.tiktoken
expect 0 "$strata" tokenizer train "$tmp/text.txt" -o "$tok" --vocab-size 400 --special '<|end|>'
grep -q '400 tokens' "$tmp/out" || fail "$(cat "$tmp/out")"
expect 0 "$strata" tokenize --tokenizer "$tok" --ids -o "$tmp/ids.npy" <"$tmp/text.txt"
tr ' ' '\n' <"$tmp/out" | sort -n | tail -1 >"$tmp/most"
[ "$(cat "$tmp/most")" -lt 400 ] || fail "id $(cat "$tmp/most")"
cp "$tmp/out" "$tmp/ids"
expect 0 "$strata" tokenize --tokenizer "$tok" --decode <"$tmp/ids"
cmp "$tmp/out" "$tmp/text.txt" || fail "decoding is not the text"
"$strata" tokenize --tokenizer "$tok" -o /dev/stdout <"$tmp/text.txt" | head -c "$(stat -c %s "$tmp/ids.npy")" |
    cmp - "$tmp/ids.npy" || fail "another .npy through a pipe"
printf 'a<|end|>' >"$tmp/in"
expect 0 "$strata" tokenize --tokenizer "$tok" --ids <"$tmp/in"
! grep -q 399 "$tmp/out" || fail "a special token in text is no text"
expect 0 "$strata" tokenize --tokenizer "$tok" --ids --allow-special <"$tmp/in"
grep -q ' 399$' "$tmp/out" || fail "no special token: $(cat "$tmp/out")"
ok "a tokenizer is made from a text; what it encodes decodes to the same"

expect 1 "$strata" tokenize --tokenizer "$tok" -o "$tmp/x.npy" < <(
    head -c 500000 /dev/zero | tr '\0' a
    printf 'b\377c'
)
said 'invalid UTF-8 at byte 500001'
for f in "$tmp"/x.npy*; do [ ! -e "$f" ] || fail "$f was left"; done
mv "$tok.json" "$tmp/kept"
expect 1 "$strata" tokenize --tokenizer "$tok" <"$tmp/in"
said 'it needs a pattern'
expect 0 "$strata" tokenize --tokenizer "$tok" --pattern cl100k <"$tmp/in"
expect 1 "$strata" tokenize --tokenizer "$tok" --pattern '(' <"$tmp/in"
said 'not a regular expression'
mv "$tmp/kept" "$tok.json"
ok "invalid UTF-8 is named by its byte, a rank file without pattern is refused"

sed -i 's/^tokenizer: bytes$/tokenizer: {path: made.tiktoken}/; s/vocab_size: 256/vocab_size: 400/' "$tmp/spec.yaml"
expect 1 "$strata" train "$tmp/spec.yaml" --set model.vocab_size=399
said 'has 400 ids'
expect 0 "$strata" train "$tmp/spec.yaml"
expect 0 "$strata" generate "$tmp/spec.yaml" --weights "$tmp/run" --prompt 'Permission is' --max-tokens 4
cp "$tmp/out" "$tmp/text1"
mkdir "$tmp/away"
mv "$tok" "$tok.json" "$tmp/away"
expect 0 "$strata" generate "$tmp/run/step-6/spec.yaml" --weights "$tmp/run" --prompt 'Permission is' --max-tokens 4
cmp "$tmp/out" "$tmp/text1" || fail "another text without the tokenizer's file"
grep -q '^Permission is' "$tmp/out" || fail "$(cat "$tmp/out")"
ok "a run has its tokenizer with it"

dir=${STRATA_DATA:-../shared/data}/models
if [ ! -e "$dir/tok512.bin" ]; then
    ok "skipped: no $dir/tok512.bin"
    exit 0
fi
expect 0 "$strata" generate specs/stories260k.yaml --weights "$dir/stories260K.safetensors" --prompt '' --max-tokens 255 \
    --set "tokenizer={path: $(cd "$dir" && pwd)/tok512.bin, bos: 1, eos: 2}"
head -c 400 "$dir/stories260K.greedy.txt" | cmp - <(head -c 400 "$tmp/out") || fail "another story: $(cat "$tmp/out")"
ok "the story of stories260K with its own tokenizer"
