#!/usr/bin/python3
"""The training step of a standard-residual spec in PyTorch, for comparing speed.

Arithmetic as in the specs: RMSNorm, rotate-half rope, causal attention, SwiGLU, untied head, mean
cross-entropy, clipping at 1, AdamW; float32; random tokens. Prints one JSON object.
"""
import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F


def norm(x, gain):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * gain


class Layer(torch.nn.Module):
    def __init__(self, o):
        super().__init__()
        self.heads = o.heads
        self.ffn = o.ffn
        d = o.hidden
        self.qkv = torch.nn.Linear(d, 3 * d, bias=False)
        self.out = torch.nn.Linear(d, d, bias=False)
        self.up = torch.nn.Linear(d, 2 * o.ffn, bias=False)
        self.down = torch.nn.Linear(o.ffn, d, bias=False)
        self.norm1 = torch.nn.Parameter(torch.ones(d))
        self.norm2 = torch.nn.Parameter(torch.ones(d))

    def forward(self, x, cos, sin, mask):
        B, T, d = x.shape
        h = d // self.heads
        qkv = self.qkv(norm(x, self.norm1)).view(B, T, 3, self.heads, h).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        q, k = rope(q, cos, sin), rope(k, cos, sin)
        p = torch.softmax((q * h**-0.5) @ k.transpose(-1, -2) + mask, -1)
        x = x + self.out((p @ v).transpose(1, 2).reshape(B, T, d))
        a, b = self.up(norm(x, self.norm2)).split(self.ffn, -1)
        return x + self.down(F.silu(a) * b)


def rope(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Model(torch.nn.Module):
    def __init__(self, o):
        super().__init__()
        self.embed = torch.nn.Embedding(o.vocab, o.hidden)
        self.layers = torch.nn.ModuleList(Layer(o) for _ in range(o.layers))
        self.norm = torch.nn.Parameter(torch.ones(o.hidden))
        self.head = torch.nn.Linear(o.hidden, o.vocab, bias=False)
        h = o.hidden // o.heads
        angle = torch.arange(o.seq)[:, None] * 10000.0 ** (-torch.arange(0, h, 2) / h)
        self.cos, self.sin = angle.cos(), angle.sin()
        self.mask = torch.full((o.seq, o.seq), float("-inf")).triu(1)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin, self.mask)
        return self.head(norm(x, self.norm))


def main():
    p = argparse.ArgumentParser()
    for name in "layers hidden heads ffn vocab batch seq threads steps".split():
        p.add_argument("--" + name, type=int, required=True)
    o = p.parse_args()
    torch.set_num_threads(o.threads)
    torch.manual_seed(1)
    model = Model(o)
    decayed = [w for w in model.parameters() if w.dim() == 2]
    rest = [w for w in model.parameters() if w.dim() != 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, foreach=True)
    ids = torch.randint(o.vocab, (o.batch, o.seq + 1))
    times = []
    for _ in range(o.steps + 2):
        begin = time.perf_counter()
        logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.reshape(-1, o.vocab), ids[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        times.append(1e3 * (time.perf_counter() - begin))
    times = times[2:]
    print(json.dumps({"version": torch.__version__, "median_ms": statistics.median(times),
                      "best_ms": min(times)}))


main()
