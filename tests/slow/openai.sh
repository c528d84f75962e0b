#!/bin/bash
# The official openai Python client beside a small real model, served by the compiler and by a program that it built.
# The client is installed from PyPI into the build folder.
. tests/program/lib.sh
. tests/serve_lib.sh
dir=${STRATA_DATA:-../shared/data}/models
[ -e "$dir/stories260K.safetensors" ] || { ok "skipped: no $dir/stories260K.safetensors"; exit 0; }
venv=$BUILD/openai
if ! "$venv/bin/python" -c 'import openai' 2>/dev/null; then
    python3 -m venv "$venv" >/dev/null 2>&1 && "$venv/bin/pip" install -q openai >/dev/null 2>&1 ||
        { ok "skipped: no openai from PyPI"; exit 0; }
fi
dir=$(cd "$dir" && pwd)
model=(specs/stories260k.yaml --weights "$dir/stories260K.safetensors" --set "tokenizer={path: $dir/tok512.bin, chat_template: plain, bos: 1}"
    --set serve.max_context=512)
serve --api-key sk-test --max-waiting 32
"$venv/bin/python" tests/slow/openai_client.py "$url" sk-test stories260k
serve_end
expect 0 "$strata" build "${model[@]}" -o "$tmp/stories"
app=$tmp/stories
serve --api-key sk-test --max-waiting 32
"$venv/bin/python" tests/slow/openai_client.py "$url" sk-test stories260k
serve_end
