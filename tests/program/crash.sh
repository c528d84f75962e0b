#!/bin/bash
# Runs that are killed, damaged, stopped, in each other's way or out of room (crash.sh KILLS).
mkdir -p "${BUILD:=build}"
TMPDIR=$PWD/$BUILD # a disk, where saving takes its time
case $BUILD in /*) TMPDIR=$BUILD ;; esac
. tests/program/lib.sh
kills=${1:-20} steps=60
RANDOM=${SEED:-$$}
small_spec "$tmp" $steps
train() { "$strata" train "$tmp/spec.yaml" --set "train.checkpoint.dir=$tmp/$1" "${@:2}"; }

start() { exec "$strata" train "$tmp/spec.yaml" --set "train.checkpoint.dir=$tmp/$1" "${@:2}"; } # with &

# ---- killed at any moment, the same bits ----
expect 0 train warm # compiles
now() { date +%s%N; }
begin=$(now)
expect 0 train whole
length=$((($(now) - begin) / 1000)) # us
lines() { sed 's/"tokens_per_second": *[^,}]*,*//' "$tmp/$1/metrics.jsonl"; }
same() { # RUN: ends as `whole` did
    local f
    for f in model.safetensors optimizer.safetensors state.json spec.yaml; do
        # The spec says where it is saved, and nothing else may differ.
        [ "$f" = spec.yaml ] || cmp -s "$tmp/whole/step-$steps/$f" "$tmp/$1/step-$steps/$f" ||
            fail "$1: $f differs from that of the run that was not killed"
    done
    [ "$(lines "$1")" = "$(lines whole)" ] || fail "$1: metrics.jsonl differs"
}
lines whole | grep -q '"val_loss"' || fail "no evaluation in metrics.jsonl"
[ "$(lines whole | grep -c '"grad_norm"')" = $steps ] || fail "not $steps steps in metrics.jsonl"
killed=0 saving=0 i=0
while [ $killed -lt "$kills" ]; do
    i=$((i + 1))
    [ $i -le $((kills * 20 + 20)) ] || fail "only $killed of $i runs could be killed"
    start killed --resume >"$tmp/out" 2>"$tmp/err" &
    pid=$!
    sleep "$(printf '0.%06d' $((RANDOM * 32768 % 1000003 * length / 1000003 % 1000000)))"
    kill -KILL $pid 2>/dev/null || true
    status=0
    { wait $pid; } 2>/dev/null || status=$?
    [ $status = 137 ] || [ $status = 0 ] || fail "a resumed run ended with $status"
    [ $status = 0 ] || killed=$((killed + 1))
    set -- "$tmp"/killed/.saving-*
    [ ! -e "$1" ] || saving=$((saving + 1))
    if [ $status = 0 ]; then
        same killed
        rm -rf "$tmp/killed"
    fi
done
expect 0 train killed --resume
same killed
ok "$killed kills ($saving inside a save): the same bits as a run that was not killed"

# ---- damage ----
gen() { "$strata" generate "$tmp/spec.yaml" --weights "$1" --prompt a --max-tokens 2; }
expect 0 gen "$tmp/whole"
damaged() { # FILE: what is told of it
    expect 1 gen "$tmp/whole/step-$steps"
    said "$(basename "$1")"
    expect 0 gen "$tmp/whole"
    said "step-$steps is not used"
}
count=0
flip() { # FILE OFFSET
    local byte
    byte=$(od -An -tu1 -j"$2" -N1 "$1")
    # shellcheck disable=SC2059
    printf "\\x$(printf %x $((byte ^ (1 << RANDOM % 8))))" | dd of="$1" bs=1 seek="$2" conv=notrunc 2>/dev/null
}
for f in "$tmp/whole/step-$steps"/*; do
    size=$(stat -c %s "$f")
    cp "$f" "$tmp/kept"
    for at in 0 $((size - 1)) $((RANDOM * 32768 % size)); do
        flip "$f" "$at"
        damaged "$f"
        cp "$tmp/kept" "$f"
    done
    truncate -s $((size - 1)) "$f"
    damaged "$f"
    rm "$f"
    damaged "$f"
    cp "$tmp/kept" "$f"
    count=$((count + 5))
done
flip "$tmp/whole/step-$steps/optimizer.safetensors" 1000
expect 0 train whole --resume --steps $steps
said "step-$steps is not used"
said "optimizer.safetensors"
said "resuming $tmp/whole at step 57"
expect 0 gen "$tmp/whole/step-$steps"
ok "$count single damages are refused by name and the older checkpoint is used"

# ---- mistakes ----
expect 1 train whole
said "holds checkpoints already"
expect 1 train whole --resume --set train.optimizer.lr=0.02
said "lr"
expect 1 train whole --resume --set model.residual.blocks=1
said "blocks"
start busy --set train.steps=100000 >/dev/null 2>"$tmp/busy.err" &
pid=$!
for i in $(seq 200); do
    set -- "$tmp"/busy/step-*
    [ -e "$1" ] && break
    sleep 0.02
done
expect 1 train busy --resume --set train.steps=100000
said "$pid"
kill -TERM $pid
status=0
wait $pid || status=$?
[ $status = 0 ] || fail "exit $status after SIGTERM: $(cat "$tmp/busy.err")"
last=$(lines busy | tail -1 | sed 's/.*"step": *\([0-9]*\).*/\1/')
[ -d "$tmp/busy/step-$((last + 1))" ] || fail "nothing saved at step $((last + 1)) after SIGTERM"
ok "a changed spec, a folder in use and a folder with checkpoints are refused; SIGTERM saves"

# ---- not finite ----
expect 3 train bad --set train.optimizer.lr=1000000 --set train.schedule='{type: constant}' --set train.grad_clip=null
said "10 steps in a row"
grep -q '"skipped": *"[a-z]' "$tmp/bad/metrics.jsonl" || fail "no tensor is named in metrics.jsonl"
cp "$tmp/whole/step-$steps/model.safetensors" "$tmp/nan.safetensors"
printf '\377\377\377\377' | dd of="$tmp/nan.safetensors" bs=1 conv=notrunc status=none \
    seek=$(($(wc -c <"$tmp/nan.safetensors") - 4))
expect 3 train bad2 --weights "$tmp/nan.safetensors" --steps 2
said "step 0: alarm: "
said "none of 2 steps was finite"
ok "steps that are not finite end a run with 3, tensors named"

# ---- no room ----
mkdir "$tmp/disk"
if [ "$(id -u)" = 0 ] && mount -t tmpfs -o size=1500k none "$tmp/disk" 2>/dev/null; then
    cleanup() { umount "$tmp/disk" 2>/dev/null; rm -rf "$tmp"; }
    expect 3 train disk/run --set train.checkpoint.keep=1000
    said "No space left"
    expect 0 gen "$tmp/disk/run"
    ok "a full disk ends a run with 3 and leaves its last checkpoint whole"
else
    ok "skipped: a full disk needs root and tmpfs"
fi
