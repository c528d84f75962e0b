#!/usr/bin/env python3
"""What `make bench-gpu` measures beside strata: the same work in PyTorch on the same card. Prints one
JSON object.

  gpu_torch.py ceilings                          copy bandwidth, bf16 and float32 products
  gpu_torch.py mix  --impl I [--backward]        one depth mix: --sources --tokens --width
  gpu_torch.py step --impl I [--residual R]      a whole training step: --layers --width --heads
                                                 --ffn --vocab --batch --seq --blocks
--gate FILE: writes FILE.ready after warming up and measures when FILE is there, so that the slow way
to a compiled step does not disturb other measurements.
I: eager, compile (torch.compile), fla, liger (public Triton operators, where they can be imported),
fla+compile. R: full, block, standard. Sizes default to those of the issue's anchors; --device cpu
with small sizes shows that the arithmetic is right.
"""
import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F

EPS = 1e-6


def rms_norm(x, gain):
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + EPS) * gain.float()).to(x.dtype)


def mix_eager(sources, query, gain):
    """Attention residuals (attnres-paper.md 1): statistics, logits and the sum in float32."""
    v = torch.stack([s.float() for s in sources])
    r = torch.rsqrt(v.square().mean(-1) + EPS)
    p = torch.softmax((v @ (gain.float() * query.float())) * r, 0)
    return (p.unsqueeze(-1) * v).sum(0).to(sources[0].dtype)


def mix_fla(sources, query, gain):
    from fla.ops.attnres import fused_attnres
    return fused_attnres(query, sources, gain, rms_eps=EPS)


def mix_liger(sources, query, gain):
    from liger_kernel.transformers.functional import liger_attn_res
    v = torch.stack(sources)
    return liger_attn_res(v.unsqueeze(1), query, gain, EPS).squeeze(0)


def mix_of(impl):
    if impl.startswith("fla"):
        return mix_fla
    if impl == "liger":
        return mix_liger
    return torch.compile(mix_eager, dynamic=False) if impl == "compile" else mix_eager


class Attention(torch.nn.Module):
    def __init__(self, d, heads, seq):
        super().__init__()
        self.heads = heads
        self.qkv = torch.nn.Linear(d, 3 * d, bias=False)
        self.o = torch.nn.Linear(d, d, bias=False)
        half = d // heads // 2
        angle = torch.arange(seq)[:, None] * 10000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def rope(self, x):
        a, b = x.float().chunk(2, -1)
        return torch.cat([a * self.cos - b * self.sin, b * self.cos + a * self.sin], -1).to(x.dtype)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(self.rope(q), self.rope(k), v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(b, t, d))


class Mlp(torch.nn.Module):
    def __init__(self, d, ffn):
        super().__init__()
        self.up = torch.nn.Linear(d, 2 * ffn, bias=False)
        self.down = torch.nn.Linear(ffn, d, bias=False)

    def forward(self, x):
        gate, up = self.up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Model(torch.nn.Module):
    """Sources are the embedding and the finished blocks; a sublayer reads them and the running sum."""

    def __init__(self, o, mix):
        super().__init__()
        self.kind, self.mix = o.residual, mix
        subs = 2 * o.layers
        self.block = 1 if o.residual == "full" else -(-subs // o.blocks)
        self.embed = torch.nn.Embedding(o.vocab, o.width)
        self.sub = torch.nn.ModuleList(
            Attention(o.width, o.heads, o.seq) if i % 2 == 0 else Mlp(o.width, o.ffn) for i in range(subs))
        self.norm = torch.nn.ParameterList(torch.nn.Parameter(torch.ones(o.width)) for _ in range(subs + 1))
        n = subs + 1 if o.residual != "standard" else 0
        self.query = torch.nn.ParameterList(torch.nn.Parameter(torch.zeros(o.width)) for _ in range(n))
        self.gain = torch.nn.ParameterList(torch.nn.Parameter(torch.ones(o.width)) for _ in range(n))
        self.head = torch.nn.Linear(o.width, o.vocab, bias=False)

    def forward(self, tokens, targets):
        x = self.embed(tokens).to(torch.bfloat16)
        done, part = [x], None
        for i, f in enumerate(self.sub):
            if self.kind == "standard":
                x = x + f(rms_norm(x, self.norm[i]))
                continue
            h = self.mix(done + ([part] if part is not None else []), self.query[i], self.gain[i])
            y = f(rms_norm(h, self.norm[i]))
            part = y if part is None else part + y
            if (i + 1) % self.block == 0:
                done, part = done + [part], None
        if self.kind != "standard":
            x = self.mix(done + ([part] if part is not None else []), self.query[-1], self.gain[-1])
        logits = self.head(rms_norm(x, self.norm[-1]))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]).float(), targets.view(-1))


def wait_for_turn(o):
    if not o.gate:
        return
    if o.device != "cpu":
        torch.cuda.synchronize()
    with open(o.gate + ".ready", "w"):
        pass
    while not os.path.exists(o.gate):
        time.sleep(0.05)


def times(f, o):
    """Milliseconds of each of o.repeats runs after warming up: CUDA events, wall clock on a CPU."""
    out = []
    f()
    wait_for_turn(o)
    for i in range(o.warmup + o.repeats):
        if o.device == "cpu":
            t = time.perf_counter()
            f()
            ms = 1e3 * (time.perf_counter() - t)
        else:
            a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            a.record()
            f()
            b.record()
            b.synchronize()
            ms = a.elapsed_time(b)
        if i >= o.warmup:
            out.append(ms)
    return {"best_ms": min(out), "median_ms": statistics.median(out), "runs": len(out)}


def replayed(f, o):
    """f captured in a CUDA graph, where that works."""
    if o.device == "cpu" or o.no_graph:
        return f, False
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                f()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            f()
        return graph.replay, True
    except RuntimeError as e:
        print(f"no graph: {e}", file=sys.stderr)
        torch.cuda.synchronize()
        return f, False


def run_mix(o):
    torch.manual_seed(1)
    grad = o.backward
    v = [torch.randn(o.tokens, o.width, device=o.device, dtype=torch.bfloat16, requires_grad=grad)
         for _ in range(o.sources)]
    query = torch.randn(o.width, device=o.device) / o.width ** 0.5
    gain = torch.rand(o.width, device=o.device) + 0.5
    query.requires_grad_(grad)
    gain.requires_grad_(grad)
    mix = mix_of(o.impl)
    if not grad:
        with torch.no_grad():
            f, graph = replayed(lambda: mix(v, query, gain), o)
            r = times(f, o)
        r["bytes"] = (o.sources + 1) * o.tokens * o.width * 2
        return {**r, "graph": graph}
    do = torch.randn(o.tokens, o.width, device=o.device, dtype=torch.bfloat16)
    y = mix(v, query, gain)

    def backward():
        torch.autograd.grad(y, [*v, query, gain], do, retain_graph=True)
    r = times(backward, o)
    r["bytes"] = (2 * o.sources + 2) * o.tokens * o.width * 2
    return {**r, "graph": False}


def run_step(o):
    torch.manual_seed(1)
    cuda = o.device != "cpu"
    with torch.device(o.device) if cuda else contextlib.nullcontext():
        model = Model(o, mix_of("eager" if o.impl == "compile" else o.impl))
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1,
                            **({"fused": True, "capturable": True} if cuda else {}))
    tokens = torch.randint(o.vocab, (o.batch, o.seq), device=o.device)
    targets = torch.randint(o.vocab, (o.batch, o.seq), device=o.device)
    forward = torch.compile(model) if "compile" in o.impl else model
    losses = []

    def step():
        with torch.autocast(o.device.split(":")[0], dtype=torch.bfloat16):
            loss = forward(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, **({"foreach": True} if cuda else {}))
        opt.step()
        opt.zero_grad(set_to_none=not cuda)
        losses.append(loss.detach())
    f, graph = replayed(step, o)
    r = times(f, o)
    r["tokens_per_s"] = 1e3 * o.batch * o.seq / r["median_ms"]
    r["parameters"] = sum(p.numel() for p in model.parameters())
    r["first_loss"] = float(losses[0])
    if cuda:
        r["peak_bytes"] = torch.cuda.max_memory_allocated()
    return {**r, "graph": graph}


def run_ceilings(o):
    n = 1 << 32 if o.device != "cpu" else 1 << 24
    a = torch.empty(n // 2, dtype=torch.bfloat16, device=o.device).normal_()
    b = torch.empty_like(a)
    out = {"copy": {**times(lambda: b.copy_(a), o), "bytes": 2 * n}}
    del a, b
    k = 8192 if o.device != "cpu" else 256
    torch.backends.cuda.matmul.allow_tf32 = False
    for name, t in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        x, y = (torch.randn(k, k, device=o.device).to(t) for _ in range(2))
        out[name] = {**times(lambda: x @ y, o), "flops": 2 * k ** 3}
    out["operators"] = [n for n, module in (("fla", "fla"), ("liger", "liger_kernel"))
                        if importlib.util.find_spec(module)]
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["ceilings", "mix", "step"])
    p.add_argument("--impl", default="eager",
                   choices=["eager", "compile", "fla", "liger", "fla+compile"])
    p.add_argument("--residual", default="full", choices=["full", "block", "standard"])
    p.add_argument("--device", default="cuda")
    p.add_argument("--backward", action="store_true")
    p.add_argument("--no-graph", action="store_true")
    p.add_argument("--gate")
    for name, default in dict(sources=9, tokens=8192, width=0, layers=24, heads=16, ffn=2816,
                              vocab=32768, batch=2, seq=1024, blocks=8, warmup=5, repeats=30).items():
        p.add_argument("--" + name, type=int, default=default)
    o = p.parse_args()
    o.width = o.width or (7168 if o.what == "mix" else 1024)
    fn = {"mix": run_mix, "step": run_step, "ceilings": run_ceilings}[o.what]
    with contextlib.redirect_stdout(sys.stderr):
        r = fn(o)
    versions = {"torch": torch.__version__}
    if o.device != "cpu":
        versions["device"] = torch.cuda.get_device_name()
    print(json.dumps({**versions, "what": o.what, "impl": o.impl, **r}))


if __name__ == "__main__":
    main()
