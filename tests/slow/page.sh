#!/bin/bash
# The server's page in headless Chromium: beside a server with known and hostile answers, then beside a real one with
# a small model that was just trained. Screenshots go to $BUILD/page.
. tests/program/lib.sh
. tests/serve_lib.sh
chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome) ||
    { ok "skipped: no chromium (apt-get install chromium)"; exit 0; }
command -v python3 >/dev/null || { ok "skipped: no python3"; exit 0; }
policy="default-src 'none'; connect-src 'self'; img-src data:; $(tr -d '"\n' <"$BUILD/gen/runtime/page_policy.inc")"
small_spec "$tmp" 100
expect 0 "$strata" train "$tmp/spec.yaml" --set model.hidden_size=96 --set model.residual.blocks=4 --set train.batch_size=8 --set train.seq_len=128 --set train.checkpoint.every=100 \
    --set "model.layers=[{mixer: full, ffn: dense}, {repeat: 5, layers: [{mixer: full, ffn: moe}]}]"
model=("$tmp/run/step-"*100/spec.yaml --weights "$tmp/run" --chat-template plain --depth)
serve --set serve.max_context=1024
python3 tests/slow/page.py --chromium "$chromium" --page runtime/page.html --policy "$policy" --shots "$BUILD/page" --url "$url" \
    --prompt 'Permission is hereby granted'
serve_end
