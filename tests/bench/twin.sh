#!/bin/bash
# Trains a spec and its twin from the same seeds on the same data order, and prints the validation
# losses side by side: does the difference between the two specs pay?
#   tests/bench/twin.sh A.yaml B.yaml STEPS "SEEDS" [--set KEY=VALUE ...]
# Runs stay in $BUILD/twin and are resumed when the script is run again.
set -eu
a=$1 b=$2 steps=$3 seeds=$4
shift 4
build=${BUILD:-build}
mkdir -p "$build/twin"
name() { basename "$1" .yaml; }
last() { sed -n 's/.*"val_loss": \([0-9.]*\).*/\1/p' "$1/metrics.jsonl" | tail -n 1; }
printf '%-8s %-28s %-28s %s\n' seed "$(name "$a")" "$(name "$b")" difference
for seed in $seeds; do
    for spec in "$a" "$b"; do
        run=$build/twin/$(name "$spec")-$seed
        mkdir -p "$run"
        "$build/strata" train "$spec" --resume --set train.seed="$seed" --set train.steps="$steps" \
            --set train.checkpoint.dir="$run" "$@" 2>"$run/log" || { cat "$run/log" >&2; exit 1; }
    done
    x=$(last "$build/twin/$(name "$a")-$seed") y=$(last "$build/twin/$(name "$b")-$seed")
    printf '%-8s %-28s %-28s ' "$seed" "$x" "$y"
    awk "BEGIN { printf \"%+.4f\\n\", $x - $y }"
done | tee "$build/twin.txt"
awk '{ x += $2; y += $3; n++ }
     END { printf "%-8s %-28.4f %-28.4f %+.4f\n", "mean", x / n, y / n, (x - y) / n }' "$build/twin.txt"
