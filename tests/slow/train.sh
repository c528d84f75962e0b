#!/bin/bash
# A short training run, an evaluation and a sample, by AdamW and by Muon, with two threads: for
# sanitized builds.
. tests/program/lib.sh
small_spec "$tmp" 12
run=$tmp/run
for optimizer in muon adamw; do
    for residual in '{type: attnres, blocks: 2}' standard; do
        rm -rf "$run"
        expect 0 "$strata" train "$tmp/spec.yaml" --threads 2 --set "model.residual=$residual" \
            --set train.optimizer.type=$optimizer
        ok "training, $optimizer, $residual"
    done
done
expect 0 "$strata" train "$tmp/spec.yaml" --set model.residual=standard --set train.optimizer.type=adamw --resume
expect 0 "$strata" generate "$tmp/spec.yaml" --set model.residual=standard --weights "$run" --prompt 'The ' \
    --temperature 0.8 --top-p 0.9 --max-tokens 40
ok "resuming and generating"
