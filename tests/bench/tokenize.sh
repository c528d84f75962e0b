#!/bin/bash
# How fast real texts become ids: 100 MB of them, in megabytes a second of CPU time, within 160 MB of
# address space. tokenize.sh [TOKENIZER...]: the rank files of the shared data by default.
set -eu
: "${BUILD:=build}"
dir=${STRATA_DATA:-../shared/data}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
for f in tinyshakespeare tinystories-train-excerpt wikitext2-valid; do
    [ -e "$dir/$f.txt" ] || { echo "skipped: no $dir/$f.txt"; exit 0; }
done
for _ in $(seq 32); do
    cat "$dir/tinyshakespeare.txt" "$dir/tinystories-train-excerpt.txt" "$dir/wikitext2-valid.txt"
done >"$tmp/text"
size=$(stat -c %s "$tmp/text")
[ $# != 0 ] || set -- "$dir"/tokenizer/{gpt2.tiktoken,cl100k_base.tiktoken,kimi.tiktoken.model}
TIMEFORMAT='%U %S'
for t in "$@"; do
    best=
    for _ in 1 2 3; do
        took=$({ time (ulimit -v 163840 && "$BUILD/strata" tokenize --tokenizer "$t" -o "$tmp/ids.npy" \
            <"$tmp/text" >"$tmp/said"); } 2>&1 | awk '{ print $1 + $2 }')
        best=$(printf '%s\n' $best "$took" | sort -g | head -1)
    done
    awk -v s="$best" -v n="$size" -v t="$(basename "$t")" -v said="$(cat "$tmp/said")" \
        'BEGIN { printf "%-24s %6.1f MB per CPU second  (%s, best of 3)\n", t, n / s / 1e6, said }'
done
