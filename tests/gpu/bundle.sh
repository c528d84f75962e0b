#!/bin/bash
# The machine code of a GPU bundle (make gpu-bundle): collects every text that the programs of $BUILD/gpu give to
# NVRTC for sm_90a, without a GPU, and compiles them with the NVRTC of this machine, where it has one. Programs
# run on the fake CUDA installation: most of them with a device that does nothing, for none of their texts depends on
# results; those of whole models on one that computes, as they stop at the first wrong number. What was collected for the same
# program before is not collected again. Then packs the folder, all in one file of a few megabytes.
set -e -o pipefail
cd "$(dirname "$0")/../.."
BUILD=$(realpath "${BUILD:-build}")
export BUILD
mkdir -p "$BUILD/texts"

# collect NAME PROGRAM ARGUMENTS...: into a folder of this name, program, and specification
collect() {
    local name=$1 of dir
    shift
    of=$({ sha256sum "$1"; echo "$@"; cat specs/*.yaml; } | sha256sum | cut -c1-16)
    dir=$BUILD/texts/$name-$of
    [ -e "$dir/done" ] && return
    rm -rf "$BUILD/texts/$name-"???????????????? && mkdir -p "$dir/tmp"
    case $name in test_compiled | test_gpu | test_lm) null=0 ;; *) null=1 ;; esac
    STRATA_CUDA_PATH=$BUILD/fakecuda STRATA_FAKE_NULL=$null STRATA_FAKE_TEXTS=$dir STRATA_FAKE_BYTES=150000000000 \
        STRATA_TEST_DEVICE=cuda STRATA_CACHE=$dir/tmp "$@" >"$dir/log" 2>&1 || status=$?
    rm -rf "$dir/tmp"
    if ! ls "$dir"/*.cu >/dev/null 2>&1; then # one that found nothing to compile failed before
        echo "bundle: $name gave no text:" && tail -3 "$dir/log" && return 1
    fi
    touch "$dir/done"
}
export -f collect

k3="specs/mini-k3.yaml --set train.seq_len=4096 --set train.precision=bf16 --set train.batch_size=16 --set train.micro_batches=1"
{
    for t in "$BUILD"/gpu/test_*; do echo "$(basename "$t") $t"; done
    echo "bench_gpu $BUILD/gpu/bench_gpu"
    for s in gpu-step gpu-step-block gpu-step-standard; do
        echo "$s $BUILD/gpu/strata bench --device cuda --steps 1 specs/$s.yaml"
    done
    echo "mini-k3 $BUILD/gpu/strata bench --device cuda --steps 1 $k3"
    for n in 1 16; do
        echo "decode-serve-125m-$n $BUILD/gpu/strata bench --device cuda --steps 1 --program decode --context 4096" \
            "--batch $n specs/serve-125m.yaml"
        echo "decode-mini-k3-$n $BUILD/gpu/strata bench --device cuda --steps 1 --program decode --context 4096" \
            "--batch $n specs/mini-k3.yaml --dtype bf16"
    done
    echo "prefill-serve-125m $BUILD/gpu/strata bench --device cuda --steps 1 --program prefill --context 4096" \
        "specs/serve-125m.yaml"
    for s in kimi-tiny kimi-small; do
        for p in fp32 bf16; do
            echo "$s-$p $BUILD/gpu/strata train specs/$s.yaml --device cuda --set train.steps=1 --set train.precision=$p" \
                "--set train.data.path=$BUILD/gpu/corpus.txt --set train.checkpoint.dir=$BUILD/texts/run-$s-$p"
        done
    done
} | xargs -P "$(nproc)" -I{} bash -c 'collect {}'
rm -rf "$BUILD"/texts/run-* "$BUILD/gpu/cubins" "$BUILD/gpu-texts"

mkdir -p "$BUILD/gpu-texts"
find "$BUILD/texts" -name 'sm_*.cu' -exec cp {} "$BUILD/gpu-texts" \; # one at a time: programs share texts
if ! "$BUILD/cubins" "$BUILD/gpu/cubins" "$BUILD"/gpu-texts/*.cu; then
    echo "bundle: no machine code, it will be compiled there"
    rm -rf "$BUILD/gpu/cubins"
fi
rm -rf "$BUILD/gpu-texts" "$BUILD/gpu-carry"
mkdir "$BUILD/gpu-carry"
tar -C "$BUILD/gpu" -c . | xz -T0 -3 >"$BUILD/gpu-carry/bundle.tar.xz"
du -sh "$BUILD/gpu" "$BUILD/gpu-carry"
