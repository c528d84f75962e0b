#!/usr/bin/env python3
"""Writes a GGUF of the shape of specs/nanogpt-124m.yaml (RMSNorm for its LayerNorm), random weights in bf16, for the
peer of tests/bench/serve.sh, llama-server. Needs numpy and gguf from PyPI: peer_gguf.py OUT.gguf"""
import sys
import numpy as np
import gguf

V, D, L, H, F, CONTEXT = 50304, 768, 12, 12, 2048, 2048
rng = np.random.default_rng(1)


def bf16(*shape, std=0.02):
    x = rng.standard_normal(shape, dtype=np.float32) * np.float32(std)
    return (x.view(np.uint32) >> 16).astype(np.uint16)


w = gguf.GGUFWriter(sys.argv[1], "llama")
w.add_context_length(CONTEXT)
w.add_embedding_length(D)
w.add_block_count(L)
w.add_feed_forward_length(F)
w.add_head_count(H)
w.add_head_count_kv(H)
w.add_layer_norm_rms_eps(1e-5)
w.add_rope_dimension_count(D // H)
w.add_rope_freq_base(10000.0)
w.add_vocab_size(V)
w.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
tokens = [b"<unk>", b"<s>", b"</s>"] + [b"<0x%02X>" % b for b in range(256)]
kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL] + [gguf.TokenType.BYTE] * 256
tokens += ["▁w{}".format(i).encode() for i in range(V - len(tokens))]
kinds += [gguf.TokenType.NORMAL] * (V - len(kinds))
w.add_tokenizer_model("llama")
w.add_token_list(tokens)
w.add_token_scores([0.0] * V)
w.add_token_types(kinds)
w.add_bos_token_id(1)
w.add_eos_token_id(2)
w.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")


def put(name, *shape):
    w.add_tensor(name, bf16(*shape), raw_dtype=gguf.GGMLQuantizationType.BF16)


put("token_embd.weight", V, D)
w.add_tensor("output_norm.weight", np.ones(D, np.float32))
for i in range(L):
    p = f"blk.{i}."
    for name in ("attn_norm", "ffn_norm"):
        w.add_tensor(p + name + ".weight", np.ones(D, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        put(p + name + ".weight", D, D)
    put(p + "ffn_gate.weight", F, D)
    put(p + "ffn_up.weight", F, D)
    put(p + "ffn_down.weight", D, F)
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()
