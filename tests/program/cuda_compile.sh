#!/bin/bash
# `strata compile --target cuda:...`: CUDA C of every mixer needs no NVRTC; where there is one, the
# kernels of small models and of Kimi Linear compile for every architecture, and none spills.
. tests/program/lib.sh

compile() { # SPEC PROGRAM ARCH FORM OPTION...
    local spec=$1 program=$2 arch=$3 form=$4
    shift 4
    expect 0 "$strata" compile "specs/$spec.yaml" --target "cuda:$arch" --emit "$form" -o "$tmp/x" \
        --program "$program" "$@"
}
printed() { grep -q -- "$1" "$tmp/out" || fail "no '$1' in $(cat "$tmp/out")"; }

nothing=$tmp/nothing
mkdir "$nothing"
export STRATA_CUDA_PATH=$nothing
n=0
for spec in attention-small tiny-attnres kimi-tiny kimi-tiny-standard kimi-linear-48b-a3b-attnres; do
    for program in train loss forward prefill decode; do
        compile $spec $program sm_90a cuda
        grep -q "__launch_bounds__" "$tmp/x" || fail "$spec: no kernel"
        n=$((n + 1))
    done
done
for spec in attention-small kimi-tiny mini-k3; do
    for precision in fp32 bf16; do
        for program in train decode apply; do
            compile $spec $program sm_80 cuda --set train.precision=$precision
            n=$((n + 1))
        done
    done
done
printed "products of cuBLAS"
ok "$n programs as CUDA C, without NVRTC"
compile kimi-tiny decode sm_90a ir
grep -q "^; step 0 .* grid=" "$tmp/x" || fail "no launch in the plan"
expect 2 "$strata" compile specs/kimi-tiny.yaml --target cuda:hopper --emit cuda -o "$tmp/x"
said "no architecture 'hopper': those of CUDA 12 and 13 are sm_80"
expect 2 "$strata" compile specs/kimi-tiny.yaml --target cuda:sm_75 --emit cuda -o "$tmp/x"
said "kernels need sm_80 or newer"
expect 1 "$strata" compile specs/kimi-tiny.yaml --target cuda:sm_90a --emit ptx -o "$tmp/x"
said "cannot find NVRTC"
expect 2 "$strata" compile specs/kimi-tiny.yaml --target cuda:sm_90a --emit c -o "$tmp/x"
said "--emit is ir, cuda, ptx or cubin"
ok "what cannot be compiled is said"

# The fake NVRTC tells of spills where it is told to.
if [ -e "$BUILD/fakecuda/libnvrtc.so.13" ]; then
    export STRATA_CUDA_PATH=$BUILD/fakecuda
    compile tiny-attnres decode sm_90a cubin
    [ -e "$tmp/x" ] || [ -e "$tmp/x.1" ] || fail "no cubin"
    printed "^NVRTC 13.999 for sm_90a: [0-9]* unit"
    printed "^rows  *[0-9]* *32 "
    STRATA_FAKE_SPILLS=last_rows STRATA_CACHE=$tmp/cache compile tiny-attnres decode sm_90a cubin
    said "warning: kernel last_rows_"
    expect 2 "$strata" compile specs/kimi-tiny.yaml --target cuda:sm_91 --emit cuda -o "$tmp/x"
    said "does not compile for 'sm_91': it knows sm_75"
    ok "a warning of spills"
fi

unset STRATA_CUDA_PATH
expect 0 "$strata" doctor --json
if ! grep -q '"cuda_compile": true' "$tmp/out"; then
    echo "skipped: no NVRTC, so that no kernel was compiled for a GPU"
    exit 0
fi
small() { # SPEC PROGRAM ARCH OPTION...
    local spec=$1 program=$2 arch=$3
    shift 3
    compile "$spec" "$program" "$arch" cubin "$@"
    if grep -q "spills" "$tmp/err"; then fail "$spec $program $arch $*"; fi
}
small tiny-attnres decode sm_90a
n=$(ls "$tmp"/x.*[0-9] | wc -l)
cp "$tmp/x.$n" "$tmp/x.$((n + 1))" # of an earlier set
echo text >"$tmp/x.$((n + 2))"
small tiny-attnres decode sm_90a
[ ! -e "$tmp/x.$((n + 1))" ] || fail "machine code of an earlier set stayed"
[ -e "$tmp/x.$((n + 2))" ] || fail "a file that is none of ours was removed"
rm "$tmp/x.$((n + 2))"
small kimi-tiny train sm_90a --set train.precision=bf16
if [ "${STRATA_TEST_ALL:-}" ]; then # make check-slow
    small tiny-attnres train sm_90a
    small kimi-tiny train sm_90a
    small kimi-tiny decode sm_90a --set train.precision=bf16
    small kimi-tiny apply sm_90a
    for arch in sm_80 sm_100; do small kimi-tiny train $arch --set train.precision=bf16; done
    small kimi-linear-48b-a3b-attnres train sm_90a
    small kimi-linear-48b-a3b-attnres decode sm_90a --set train.precision=bf16
fi
ok "no spills in small models"
begin=$(date +%s)
small kimi-linear-48b-a3b-attnres train sm_90a --set train.precision=bf16
took=$(($(date +%s) - begin))
[ $took -lt 60 ] || echo "warning: Kimi Linear took $took s for sm_90a (60 asked of two idle cores)"
ok "Kimi Linear in $took s: $(grep '^program\|^NVRTC' "$tmp/out" | tr '\n' ' ')"
compile kimi-tiny decode sm_90a ptx
grep -q "^.target sm_90a" "$tmp/x" || fail "no PTX"
ok "PTX"
