#!/bin/bash
# Hugging Face folders: import, export, and every way for one not to fit.
. tests/program/lib.sh

# ---- a model made by others ----
dir=${STRATA_DATA:-../shared/data}/models
if [ -e "$dir/stories260K.safetensors" ]; then
    mkdir "$tmp/stories260K"
    cp "$dir/stories260K.config.json" "$tmp/stories260K/config.json"
    ln -s "$(realpath "$dir/stories260K.safetensors")" "$tmp/stories260K/model.safetensors"
    expect 0 "$strata" import "$tmp/stories260K" -o "$tmp/stories.yaml"
    said "47 tensors accounted for, 260,032 parameters"
    expect 0 "$strata" generate "$tmp/stories.yaml" --weights "$tmp/stories260K" --prompt-ids 1 \
        --max-tokens 255 --print-ids
    tr ' ' '\n' <"$tmp/out" >"$tmp/got"
    awk -F'\t' 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == "argmax") at = i; next } { print $at }' \
        "$dir/stories260K.greedy.tsv" | sed -n 1,255p >"$tmp/want"
    cmp "$tmp/got" "$tmp/want" || fail "greedy tokens differ"
    ok "an imported folder continues as llama2.c does"
    ln -s "$(realpath "$dir/tok512.bin")" "$tmp/stories260K/tokenizer.bin"
    expect 0 "$strata" import "$tmp/stories260K" -o "$tmp/stories.yaml"
    expect 0 "$strata" generate "$tmp/stories.yaml" --weights "$tmp/stories260K" --prompt '' --max-tokens 256
    cmp "$tmp/out" "$dir/stories260K.greedy.txt" || fail "greedy text differs"
    ok "its greedy text is llama2.c's"
else
    ok "skipped: no $dir/stories260K.safetensors"
fi

# ---- there and back ----
llama_spec() {
    cat <<'EOF'
strata: 1
name: small
model:
  vocab_size: 40
  hidden_size: 24
  norm: {type: rmsnorm, eps: 1.0e-5}
  mixers:
    full: {type: attention, num_heads: 4, num_kv_heads: 2, rope: {theta: 10000}}
  ffns:
    dense: {type: mlp, intermediate_size: 36}
  layers: [{repeat: 2, layers: [{mixer: full, ffn: dense}]}]
EOF
}
llama_spec >"$tmp/llama.yaml"
sed 's/num_kv_heads: 2/&, qk_norm: true, head_dim: 8, window: 3/' "$tmp/llama.yaml" >"$tmp/qwen3.yaml"
cat >"$tmp/kimi.yaml" <<'EOF'
strata: 1
name: small
model:
  vocab_size: 40
  hidden_size: 24
  norm: {type: rmsnorm, eps: 1.0e-5}
  residual: {type: attnres, block_size: 4, eps: 1.0e-5}
  mixers:
    kda: {type: kda, num_heads: 3, head_dim: 4, gate: bounded, output_gate: full}
    mla: {type: mla, num_heads: 2, q_lora_rank: 7, kv_lora_rank: 8, qk_nope_head_dim: 6, qk_rope_head_dim: 2,
          v_head_dim: 5, output_gate: true}
  ffns:
    dense: {type: mlp, intermediate_size: 36, activation: situ}
    moe: {type: moe, num_experts: 4, experts_per_token: 2, num_shared_experts: 2, intermediate_size: 8,
          latent_size: 12, activation: situ, router: {balance: bias, scale: 2.446}}
  layers: [{mixer: kda, ffn: dense}, {mixer: mla, ffn: moe}, {mixer: kda, ffn: moe}]
EOF
sed -e '/residual/d' -e 's/gate: bounded, output_gate: full/conv_size: 3/' -e 's/q_lora_rank: 7, //' \
    -e '/output_gate: true/s/, output_gate: true//' -e 's/activation: situ/activation: swiglu/' \
    -e 's/latent_size: 12, //' "$tmp/kimi.yaml" >"$tmp/linear.yaml"
printf '\223NUMPY\1\0v\0%-117s\n' "{'descr': '<i4', 'fortran_order': False, 'shape': (2, 7), }" >"$tmp/tok.npy"
for i in 3 1 4 1 5 9 2 6 5 3 5 8 9 7; do printf "\\x0$i\0\0\0"; done >>"$tmp/tok.npy"

loss() { # SPEC WEIGHTS LOGITS
    expect 0 "$strata" eval "$1" --weights "$2" --tokens "$tmp/tok.npy" --logits "$3"
    cat "$tmp/out"
}
for f in ${FAMILIES:-llama qwen3 linear kimi}; do
    w=$tmp/$f.safetensors out=$tmp/$f
    expect 0 "$strata" init "$tmp/$f.yaml" -o "$w" --seed 5
    want=$(loss "$tmp/$f.yaml" "$w" "$tmp/want.npy")
    mkdir "$out"
    expect 0 "$strata" export "$tmp/$f.yaml" --weights "$w" -o "$out/small"
    expect 0 "$strata" import "$out/small" -o "$out/again.yaml"
    expect 0 "$strata" export "$out/again.yaml" --weights "$out/small" -o "$out/again"
    diff -r "$out/small" "$out/again" || fail "$f: another folder after import"
    got=$(loss "$out/again.yaml" "$out/small" "$tmp/got.npy")
    [ "$got" = "$want" ] || fail "$f: $got, not $want"
    cmp "$tmp/got.npy" "$tmp/want.npy" || fail "$f: logits differ"
    expect 0 "$strata" export "$tmp/$f.yaml" --weights "$out/small" -o "$out/shards" --shard-bytes 5000
    set -- "$out"/shards/model-*-of-*.safetensors
    [ $# -gt 3 ] || fail "$f: $# shards"
    expect 0 "$strata" import "$out/shards" -o "$out/shards.yaml"
    [ "$(loss "$out/shards.yaml" "$out/shards" "$tmp/got.npy")" = "$want" ] || fail "$f: shards"
    expect 0 "$strata" export "$tmp/$f.yaml" --weights "$out/shards" -o "$out/bf16" --dtype bf16
    grep -q '"torch_dtype": "bfloat16"' "$out/bf16/config.json" || fail "$f: dtype"
    expect 0 "$strata" export "$tmp/$f.yaml" --weights "$out/bf16" -o "$out/bf16-again" --dtype bf16
    diff -r "$out/bf16" "$out/bf16-again" || fail "$f: bf16 is not its own"
    ok "$f: export, import, export: the same files, loss and logits; shards; bf16"
done

grep -aq '"model.layers.0.self_attn.A_log":{"dtype":"F32","shape":\[1,1,3,1\]' \
    "$tmp/linear/bf16/model.safetensors" || fail "A_log is not as the releases have it"

# ---- tokenizers ----
sed -i.bak 's/vocab_size: 40/vocab_size: 300/' "$tmp/llama.yaml"
expect 0 "$strata" init "$tmp/llama.yaml" -o "$tmp/300.safetensors"
expect 0 "$strata" export "$tmp/llama.yaml" --weights "$tmp/300.safetensors" -o "$tmp/tok"
mv "$tmp/llama.yaml.bak" "$tmp/llama.yaml"
cp tests/hf/tokenizer/tokenizer.json "$tmp/tok"
sed -i 's/"use_cache": true/&, "bos_token_id": 258, "eos_token_id": 259/' "$tmp/tok/config.json"
expect 0 "$strata" import "$tmp/tok" -o "$tmp/tok.yaml"
named() { grep -qxF "tokenizer: {path: \"$1" "$2" || fail "$(cat "$2")"; }
named 'tok/tokenizer.json", bos: 258, eos: 259}' "$tmp/tok.yaml"
expect 0 "$strata" generate "$tmp/tok.yaml" --weights "$tmp/tok" --prompt 'the cat' --max-tokens 0
grep -q 'the cat' "$tmp/out" || fail "the prompt is not shown"
echo '{"eos_token_id": [7, 2, 9]}' >"$tmp/tok/generation_config.json"
echo '{"add_bos_token": false, "eos_token": "</s>", "model_max_length": 1000000000000000019884624838656}' >"$tmp/tok/tokenizer_config.json"
expect 0 "$strata" import "$tmp/tok" -o "$tmp/tok.yaml"
named 'tok/tokenizer.json", eos: 7, stop: [2, 9]}' "$tmp/tok.yaml"
expect 0 "$strata" export "$tmp/tok.yaml" --weights "$tmp/tok" -o "$tmp/again"
cmp "$tmp/tok/tokenizer.json" "$tmp/again/tokenizer.json" || fail "tokenizer.json differs"
grep -q '"eos_token": "</s>"' "$tmp/again/tokenizer_config.json" || fail "tokenizer_config.json is not kept"
expect 0 "$strata" import "$tmp/again" -o "$tmp/again.yaml" --name tok
sed 's/again/tok/' "$tmp/again.yaml" | grep -v '^# It was' >"$tmp/got"
grep -v '^# It was' "$tmp/tok.yaml" | cmp - "$tmp/got" || fail "another spec"
for i in $(seq 0 255); do # a rank file of bytes
    # shellcheck disable=SC2059
    printf "%s $i\n" "$(printf "\\x$(printf %x "$i")" | base64)"
done >"$tmp/bytes.tiktoken"
echo '{"pattern": "gpt2"}' >"$tmp/bytes.tiktoken.json"
sed 's#^tokenizer.*#tokenizer: {path: bytes.tiktoken, eos: 7}#' "$tmp/tok.yaml" >"$tmp/rank.yaml"
expect 0 "$strata" export "$tmp/rank.yaml" --weights "$tmp/tok" -o "$tmp/rank"
expect 0 "$strata" import "$tmp/rank" -o "$tmp/rank-again.yaml"
named 'rank/tiktoken.model", eos: 7}' "$tmp/rank-again.yaml"
expect 0 "$strata" generate "$tmp/rank-again.yaml" --weights "$tmp/rank" --prompt 'the cat' --max-tokens 3
mv "$tmp/out" "$tmp/want"
expect 0 "$strata" generate "$tmp/rank.yaml" --weights "$tmp/tok" --prompt 'the cat' --max-tokens 3
cmp "$tmp/out" "$tmp/want" || fail "other text"
echo '{}' >"$tmp/again/tokenizer.json"
expect 0 "$strata" import "$tmp/again"
said "the tokenizer is named, but cannot be used"
echo '{"eos_token_id": 300}' >"$tmp/tok/generation_config.json"
expect 1 "$strata" import "$tmp/tok"
said "not in the vocabulary of 300"
echo '{"add_bos_token": 1' >"$tmp/tok/tokenizer_config.json"
expect 1 "$strata" import "$tmp/tok"
said "tokenizer_config.json:"
ok "tokenizer files, their ids, and ids that are none"

# ---- a run that was trained ----
cp LICENSE "$tmp/text.txt"
cat "$tmp/llama.yaml" - >"$tmp/train.yaml" <<EOF
tokenizer: bytes
train:
  data: {path: text.txt}
  seq_len: 16
  batch_size: 2
  steps: 3
  optimizer: {type: adamw, lr: 1.0e-3}
  checkpoint: {dir: $tmp/run}
EOF
sed -i 's/vocab_size: 40/vocab_size: 256/' "$tmp/train.yaml"
expect 0 "$strata" train "$tmp/train.yaml"
expect 0 "$strata" export "$tmp/train.yaml" --weights "$tmp/run" -o "$tmp/trained"
said "config.json has no place for train"
expect 0 "$strata" import "$tmp/trained" -o "$tmp/trained.yaml"
expect 0 "$strata" generate "$tmp/train.yaml" --weights "$tmp/run" --prompt-ids 65,66 --max-tokens 9 --print-ids
mv "$tmp/out" "$tmp/want"
expect 0 "$strata" generate "$tmp/trained.yaml" --weights "$tmp/trained" --prompt-ids 65,66 --max-tokens 9 --print-ids
cmp "$tmp/out" "$tmp/want" || fail "other tokens"
ok "a trained run is exported, and continues alike"

# ---- folders that do not fit ----
folder() { # a fresh folder $tmp/x that fits
    rm -rf "$tmp/x"
    cp -r "$tmp/llama/small" "$tmp/x"
}
refused() { # TEXT: what import says, and generate too where it is of the weights
    expect 1 "$strata" import "$tmp/x" -o "$tmp/x.yaml"
    said "$1"
    [ ! -e "$tmp/x.yaml" ] || fail "a spec was written"
}
weights_refused() {
    refused "$1"
    expect 1 "$strata" generate "$tmp/llama.yaml" --weights "$tmp/x" --prompt-ids 1 --print-ids
    said "$1"
}
other() { # KEY=VALUE: weights of a changed spec
    folder
    expect 0 "$strata" init "$tmp/llama.yaml" --set "$1" -o "$tmp/x/model.safetensors"
}
one='{mixer: full, ffn: dense}'
other "model.layers=[$one]"
weights_refused "tensor 'model.layers.1.input_layernorm.weight' is missing"
said "tensor 'model.layers.1.mlp.down_proj.weight' is missing"
other "model.layers=[$one, $one, $one]"
weights_refused "tensor 'model.layers.2.self_attn.o_proj.weight' is not one of the model's"
other model.ffns.dense.intermediate_size=37
weights_refused "tensor 'model.layers.0.mlp.gate_proj.weight' has shape [37, 24], the model needs [36, 24]"
other model.tie_embeddings=true
weights_refused "tensor 'lm_head.weight' is missing"
folder
rm "$tmp/x/model.safetensors"
weights_refused "model.safetensors"
folder
truncate -s -1 "$tmp/x/model.safetensors"
weights_refused "model.safetensors' is not a valid safetensors file"
index() { # TEXT of model.safetensors.index.json
    folder
    printf '%s' "$1" >"$tmp/x/model.safetensors.index.json"
}
index '{"weight_map": {"model.norm.weight": "../llama/small/model.safetensors"}}'
weights_refused "names no plain file"
index '{"weight_map": {"model.norm.weight": "/etc/passwd"}}'
weights_refused "names no plain file"
index '{"weight_map": {"model.norm.weight": "model.safetensors.index.json"}}'
weights_refused "is not a valid safetensors file"
index '{"weight_map": {"model.norm.weight": "absent.safetensors"}}'
weights_refused "absent.safetensors"
index '{"weight_map": {"model.norm.weight": "model.safetensors"}}'
weights_refused "does not list tensor"
index '{"weight_map": {"model.norm.weight": 12345678901234567890}}'
weights_refused "is not valid JSON"
index '{"weight_map": {"a": "model.safetensors", "a": "model.safetensors"}}'
weights_refused "is not valid JSON"
index '{"weight_map": ['
weights_refused "is not valid JSON"
index '[]'
weights_refused "has no weight_map"
config() { # TEXT of config.json
    folder
    rm "$tmp/x/config.json"
    printf '%s' "$1" >"$tmp/x/config.json"
}
config '{"model_type": "llama"'
refused "not JSON"
config '{"model_type": "gpt_bigcode"}'
refused '"gpt_bigcode" cannot be imported'
config "$(sed 's/"silu"/"relu"/' "$tmp/llama/small/config.json")"
refused 'hidden_act is "relu"'
config "$(sed 's/"rms_norm_eps": [^,]*/"rms_norm_eps": -1/' "$tmp/llama/small/config.json")"
refused "eps"
folder
rm "$tmp/x/config.json"
refused "config.json"
ln -s config.json "$tmp/x/config.json"
refused "config.json"
ok "$(grep -c '^\(weights_\)\?refused ' "$0") folders that do not fit are refused by name"

# ---- export leaves a whole folder or none ----
cp "$tmp/llama.safetensors" "$tmp/w.safetensors"
expect 1 "$strata" export "$tmp/llama.yaml" --weights "$tmp/w.safetensors" -o "$tmp/llama/small"
said "holds files"
expect 1 "$strata" export "$tmp/llama.yaml" --weights "$tmp/w.safetensors" -o "$tmp/w.safetensors"
expect 1 "$strata" export "$tmp/llama.yaml" --weights "$tmp/qwen3.safetensors" -o "$tmp/new"
said "is not one of the model's"
expect 1 "$strata" export "$tmp/llama.yaml" --weights "$tmp/w.safetensors" -o "$tmp/new" --set model.norm.type=layernorm
said "model.norm.type is layernorm"
expect 2 "$strata" export "$tmp/llama.yaml" --weights "$tmp/w.safetensors"
expect 2 "$strata" export "$tmp/llama.yaml" --weights "$tmp/w.safetensors" -o "$tmp/new" --dtype f8
expect 2 "$strata" export "$tmp/llama.yaml" --weights "$tmp/w.safetensors" -o "$tmp/new" --shard-bytes 0
[ ! -e "$tmp/new" ] || fail "a folder is left"
set -- "$tmp"/*.export-*
[ ! -e "$1" ] || fail "$1 is left"
mkdir "$tmp/empty"
expect 0 "$strata" export "$tmp/llama.yaml" --weights "$tmp/w.safetensors" -o "$tmp/empty/"
rm "$tmp/empty/model.safetensors"
expect 1 "$strata" import "$tmp/empty"
said "hint: --config-only"
expect 0 "$strata" import --config-only "$tmp/empty" --name other
grep -q '^name: other' "$tmp/out" || fail "no name"
ok "export leaves a whole folder or none"
