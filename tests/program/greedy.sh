#!/bin/bash
# generate against the greedy continuations of the oracle, and its limits.
. tests/program/lib.sh
ids() { # NAME: the numbers of a list of greedy.json, with commas
    sed -n "s/.*\"$1\": \[\([^]]*\)\].*/\1/p" "$dir/greedy.json" | tr -d ' '
}
for dir in tests/fixtures/*/; do
    dir=${dir%/}
    [ -e "$dir/greedy.json" ] || continue
    prompt=$(ids prompt) want=$(ids ids)
    count=$(echo "$want" | tr ',' '\n' | wc -l)
    run=("$strata" generate "$dir/spec.yaml" --weights "$dir/weights.safetensors" --print-ids
         --prompt-ids "$prompt" --max-tokens "$count")
    for threads in 1 2; do
        expect 0 "${run[@]}" --stats --threads "$threads"
        [ "$(tr ' ' ',' <"$tmp/out")" = "$want" ] || fail "$dir: $(cat "$tmp/out")"
        said "first token after"
    done
    ok "$dir: $count greedy tokens"
    length=$(($(echo "$prompt" | tr ',' '\n' | wc -l) + count))
    expect 0 "${run[@]}" --set "serve.max_context=$length"
    expect 1 "${run[@]}" --set "serve.max_context=$((length - 1))"
    said "--set serve.max_context=$length"
done
ok "a text longer than serve.max_context is refused"
