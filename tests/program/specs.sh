#!/bin/bash
# Every spec of specs/ passes `strata check`; the large ones in little time and memory, with the
# caches that kimi-linear.md 2.11 and 3 compute; and they compile to C.
. tests/program/lib.sh

for spec in specs/*.yaml; do expect 0 "$strata" check "$spec" --json; done
ok "all specs are fine"

has() { grep -qF "\"$1\": $2" "$tmp/out" || fail "no $1 of $2: $(grep -F "\"$1\"" "$tmp/out")"; }
expect 0 "$strata" check specs/kimi-linear-48b-a3b.yaml --json --set serve.max_context=1048576
has total 49122681728
has active 3106965888
has latent $((7 * 576 * 4 * 1048576)) # 8064 bytes a token in bf16, here float32
has states $((40 << 20))
has convolutions $((20 * 3 * 12288 * 4))
expect 0 "$strata" check specs/kimi-linear-48b-a3b-attnres.yaml --json
has depth 253440
has total $((49122681728 + 253440))
ok "counts and caches of Kimi Linear"

# Time of the processor, so that a busy machine matters less; the limit has room for sanitizers.
TIMEFORMAT='%U %S'
used() { echo $(($(tr ' ' '\n' <"$tmp/time" | sed 's/\.//; s/^0*//; s/^$/0/' | paste -sd+))); }
{ time "$strata" check specs/kimi-k3.yaml >"$tmp/out" 2>"$tmp/err"; } 2>"$tmp/time" || fail "check"
has_text() { grep -qF "$1" "$tmp/out" || fail "no '$1'"; }
has_text "2,779,484,476,000"
has_text "104,189,530,208"
[ "$(used)" -lt 10000 ] || fail "check took $(used) ms"
ok "check of Kimi K3 in $(used) ms of processor time"

for spec in kimi-linear-48b-a3b kimi-k3; do
    for program in train forward apply; do
        expect 0 "$strata" compile specs/$spec.yaml --emit c -o "$tmp/c" --program $program
        ok "$spec: $(cat "$tmp/out")"
    done
done
