#!/bin/bash
# `make demo`: a real text, two minutes of training, and what the model writes. Everything it makes
# is in build/demo.
set -eu
export LC_ALL=C
cd "$(dirname "$0")/../.."
build=${BUILD:-build} spec=examples/tiny-moe/spec.yaml
demo=$build/demo
text=$demo/kjv.txt
case $text in /*) path=$text ;; *) path=$PWD/$text ;; esac
mkdir -p "$demo"
n=1
while [ -e "$demo/run-$n" ]; do n=$((n + 1)); done
run=$demo/run-$n

echo "== The model: a Mixture of Experts with Block Attention Residuals"
"$build/strata" check $spec --set "train.data.path=$path" | sed "/^FLOPs/,\$d"
echo
echo "== Training on the King James Bible ($(wc -c <"$text") bytes), into $run"
"$build/strata" train $spec --set "train.data.path=$path" --set "train.checkpoint.dir=$run"
echo
echo "== Validation loss in nats a byte (counting n-grams of bytes reaches 1.318)"
sed -n 's/.*"step": *\([0-9]*\).*"val_loss": *\([0-9.]*\).*/\1 \2/p' "$run/metrics.jsonl" |
    while read -r step loss; do printf '  step %-6d %.4f\n' $((step + 1)) "$loss"; done
# Up to the length that it was trained on.
for prompt in 'And God said' 'In the beginning' 'Blessed are' 'Jesus'; do
    echo
    echo "== '$prompt'"
    "$build/strata" generate $spec --weights "$run" --prompt "$prompt" --max-tokens 110 \
        --temperature 0.7 --top-p 0.95 --seed 1
done
cat <<EOF

== Now change something and run again. Every spec is compiled anew in a second or two:
  $build/strata train $spec --set model.residual.blocks=1 --set train.checkpoint.dir=$demo/one-block
  $build/strata train $spec --set model.residual=standard --set train.checkpoint.dir=$demo/standard
or edit 'blocks: 4' in $spec and call 'make demo' again.
EOF
