#!/bin/bash
# The whole program, kernels included, under valgrind, which knows no AVX-512.
. tests/program/lib.sh
if ! command -v valgrind >/dev/null; then
    ok "skipped: no valgrind"
    exit 0
fi
small_spec "$tmp" 2
check() { valgrind -q --error-exitcode=99 --trace-children=no "$strata" "$@" --cpu x86-64-v3 --threads 2; }
expect 0 check train "$tmp/spec.yaml" --set train.seq_len=17 --set train.eval.every=2
grep -v '^ *step\|validation loss' "$tmp/err" | grep '==' && fail "valgrind has something to say"
expect 0 check generate "$tmp/spec.yaml" --weights "$tmp/run" --prompt 'The ' --max-tokens 3
grep '==' "$tmp/err" && fail "valgrind has something to say"
ok "training and generating under valgrind"
