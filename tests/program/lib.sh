# What the tests of the program as a whole share. They run in the repository's root with BUILD set.
set -eu
: "${BUILD:=build}"
root=$PWD
case $BUILD in /*) ;; *) BUILD=$root/$BUILD ;; esac
strata=$BUILD/strata
: "${STRATA_CACHE:=$BUILD/cache}"
export STRATA_CACHE
if [ -z "${TMPDIR:-}" ] && [ -w /dev/shm ]; then TMPDIR=/dev/shm; fi
tmp=$(mktemp -d "${TMPDIR:-/tmp}/strata-test-XXXXXX")
cleanup() { rm -rf "$tmp"; }
trap cleanup EXIT
trap 'exit 1' INT TERM

fail() {
    echo "FAILED: $*" >&2
    if [ -s "$tmp/err" ]; then sed 's/^/    /' "$tmp/err" >&2; fi
    exit 1
}
# expect STATUS COMMAND...: its exit status, with output in $tmp/out and $tmp/err.
expect() {
    local want=$1 got=0
    shift
    "$@" >"$tmp/out" 2>"$tmp/err" || got=$?
    [ "$got" = "$want" ] || fail "exit $got, not $want: $*"
}
# said TEXT: standard error of the last `expect` has it.
said() { grep -qF -- "$1" "$tmp/err" || fail "no '$1' was said"; }
ok() { echo "ok: $*"; }

# A small model that still has everything: experts, AttnRes, two micro-batches, Muon.
small_spec() { # DIR STEPS
    local i
    for i in 1 2 3 4 5 6; do cat LICENSE; done >"$1/text.txt"
    cat >"$1/spec.yaml" <<EOF
strata: 1
name: small
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
    moe: {type: moe, num_experts: 5, experts_per_token: 2, intermediate_size: 24,
          router: {balance: {type: bias, rate: 1.0e-3}}}
  layers:
    - {mixer: full, ffn: dense}
    - {mixer: full, ffn: moe}
train:
  data: {path: text.txt, val_fraction: 0.1}
  seq_len: 33
  batch_size: 4
  micro_batches: 2
  steps: $2
  optimizer: {type: muon, lr: 1.0e-2, weight_decay: 0.1}
  schedule: {type: cosine, warmup: 5, min_lr: 1.0e-3}
  grad_clip: 1.0
  eval: {every: 10, sequences: 8}
  checkpoint: {dir: $1/run, every: 3, keep: 3}
EOF
}
