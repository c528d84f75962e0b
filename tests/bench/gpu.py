#!/usr/bin/env python3
"""`make bench-gpu`: how fast strata is on this GPU, beside PyTorch on the same card in the same call and
as a share of the card's measured ceilings. Programs were built before (`make gpu-bundle`). Public Triton
operators take part where their wheels can be imported (PYTHONPATH). Prints a table, writes JSON.

  gpu.py [--bin build/gpu] [--out tests/gpu-results] [--only ops|mix|steps|train] [--quick]
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
STEP = "specs/gpu-step.yaml"
PEERS = ["eager", "compile", "fla", "fla+compile", "liger"]


class Bench:
    def __init__(self, o):
        self.o, self.failed = o, []
        self.out = {"commit": o.commit, "targets": []}
        self.env = {**os.environ, "STRATA_CACHE": tempfile.mkdtemp(prefix="strata-bench-")}

    def run(self, argv, limit=300):
        """The JSON objects that a program prints, a line each; none, with its words, when it fails."""
        begin = time.time()
        try:
            p = subprocess.run(argv, cwd=ROOT, env=self.env, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, timeout=limit)
            rc, text, err = p.returncode, p.stdout.decode(), p.stderr.decode(errors="replace")
        except subprocess.TimeoutExpired:
            rc, text, err = 124, "", "ran too long"
        if rc:
            self.failed.append({"command": " ".join(argv), "status": rc, "output": err[-1500:]})
            print(f"failed ({rc}): {' '.join(argv)}\n{err[-600:]}", flush=True)
        rows = [json.loads(x) for x in text.splitlines() if x.startswith("{")]
        for r in rows:
            r["wall_s"] = round(time.time() - begin, 1)
        return rows

    def torch(self, *args, limit=300):
        r = self.run([sys.executable, os.path.join(HERE, "gpu_torch.py"), *args], limit)
        return r[0] if r else None

    def strata(self, *args, limit=300):
        r = self.run([os.path.join(self.o.bin, "strata"), *args], limit)
        return r[0] if r else None

    def target(self, what, value, want, unit, least=False):
        ok = value is not None and (value >= want if least else value <= want)
        self.out["targets"].append({"what": what, "value": value, "want": want, "unit": unit, "met": ok})
        print(f"{'met ' if ok else 'MISS'} {what}: {value if value is None else round(value, 4)} {unit} "
              f"(wanted {'at least' if least else 'at most'} {want})", flush=True)


def ceilings(b):
    c = b.torch("ceilings") or {}
    b.out["torch"] = c
    peak = {}
    if c:
        peak = {"bytes": c["copy"]["bytes"] / c["copy"]["best_ms"] * 1e3,
                "bf16": c["bf16"]["flops"] / c["bf16"]["best_ms"] * 1e3,
                "fp32": c["fp32"]["flops"] / c["fp32"]["best_ms"] * 1e3}
        print(f"{c.get('device')}: copies {peak['bytes'] / 1e12:.2f} TB/s, bf16 products "
              f"{peak['bf16'] / 1e12:.0f} TFLOP/s, float32 {peak['fp32'] / 1e12:.0f}", flush=True)
    b.out["ceilings"] = peak
    return peak


def floor_us(r, peak):
    return 1e6 * max(r["bytes"] / peak["bytes"], r["flops"] / peak["bf16"])


def ops(b, peak):
    rows = b.run([os.path.join(b.o.bin, "bench_gpu")], 400)
    for r in rows:
        if peak:
            r["floor_us"] = round(floor_us(r, peak), 2)
            r["share"] = round(r["floor_us"] / r["median_us"], 3) if r["median_us"] else None
        print(f"{r['name']:34s} {r['median_us']:10.1f} us  floor {r.get('floor_us', 0):8.1f}  "
              f"share {r.get('share') or 0:.2f}  {r['bytes'] / r['median_us'] / 1e6:6.2f} TB/s  "
              f"{r['flops'] / r['median_us'] / 1e6:7.1f} TFLOP/s", flush=True)
    b.out["ops"] = rows
    by = {r["name"]: r for r in rows}

    def us(name):
        return by[name]["median_us"] if name in by else None
    b.target("depth mix forward, 9 x 8192 x 7168 bf16", us("depth_mix 9x8192x7168"), 278, "us")
    for n in (1, 8, 64):
        b.target(f"depth mix of {n} tokens, 9 sources", us(f"depth_mix decode {n}"), 5, "us")
    g = by.get("depth_mix_grad 9x8192x7168")
    b.target("depth mix backward, share of copy bandwidth", g and g.get("share"), 0.80, "", True)


def mixes(b):
    out = []
    for args in (["--tokens", "8192"], ["--tokens", "8192", "--backward"], ["--tokens", "1"],
                 ["--tokens", "64"]):
        for impl in PEERS:
            if impl == "fla+compile":
                continue
            r = b.torch("mix", "--impl", impl, *args)
            if r:
                out.append({**r, "args": args})
                print(f"PyTorch {impl:8s} mix {' '.join(args):28s} {1e3 * r['median_ms']:10.1f} us", flush=True)
    b.out["mix_peers"] = out


def steps(b):
    """Alternating: ours, then each peer, over and over."""
    rounds = 1 if b.o.quick else 2
    twins = {"full": [STEP], "block": [STEP, "--set", "model.residual.blocks=8"],
             "standard": ["specs/gpu-step-standard.yaml"]}
    ours, theirs = {}, {}
    for _ in range(rounds):
        for kind, args in twins.items():
            r = b.strata("bench", "--json", "--device", "cuda", *args)
            if r and (kind not in ours or r["median_ms"] < ours[kind]["median_ms"]):
                ours[kind] = r
        for kind in twins:
            for impl in PEERS if kind != "standard" else ["eager", "compile"]:
                key = f"{kind} {impl}"
                if impl == "liger" and kind == "full":
                    continue  # stacks all sources at every site
                r = b.torch("step", "--impl", impl, "--residual", kind, "--repeats", "20")
                if r and (key not in theirs or r["median_ms"] < theirs[key]["median_ms"]):
                    theirs[key] = r
    for k, r in ours.items():
        print(f"strata  {k:22s} {r['median_ms']:9.3f} ms", flush=True)
    for k, r in theirs.items():
        print(f"PyTorch {k:22s} {r['median_ms']:9.3f} ms{'' if r['graph'] else ' (no graph)'}", flush=True)
    b.out["steps"] = {"strata": ours, "torch": theirs}
    full = ours.get("full", {}).get("median_ms")
    best = min((r["median_ms"] for k, r in theirs.items() if k.startswith("full")), default=None)
    if best:
        b.target("whole step, Full, over PyTorch's best", full and full / best, 1.0, "x")
    b.target("whole step, Full", full, 28.18, "ms")
    if "block" in ours and "standard" in ours:
        b.target("Block over standard residuals",
                 ours["block"]["median_ms"] / ours["standard"]["median_ms"], 1.03, "x")


def training(b):
    """mini-k3 as it trains: T 4096, a batch that fills the card."""
    r = b.strata("bench", "--json", "--device", "cuda", "specs/mini-k3.yaml", "--set", "train.seq_len=4096",
                 "--set", "train.precision=bf16", "--set", "train.batch_size=16", "--set",
                 "train.micro_batches=1", limit=500)
    b.out["mini-k3"] = r
    rate = r and 16 * 4096 * 1e3 / r["median_ms"]
    b.target("mini-k3, tokens a second", rate, 66900, "tokens/s", True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", default="build/gpu")
    p.add_argument("--out", default="tests/gpu-results")
    p.add_argument("--only", default="", choices=["", "ops", "mix", "steps", "train"])
    p.add_argument("--quick", action="store_true")
    o = p.parse_args()
    o.bin = os.path.abspath(o.bin)
    if not os.path.exists(os.path.join(o.bin, "commit")):
        sys.exit(f"{o.bin} is no bundle: 'make gpu-bundle' makes one, on a machine with the compilers")
    with open(os.path.join(o.bin, "commit")) as f:
        o.commit = f.read().strip()
    b = Bench(o)
    parts = {"ops": lambda: ops(b, peak), "steps": lambda: steps(b), "train": lambda: training(b),
             "mix": lambda: mixes(b)}
    peak = ceilings(b)
    for name, fn in parts.items():
        if o.only in ("", name):
            fn()
    b.out["failed"] = b.failed
    os.makedirs(o.out, exist_ok=True)
    with open(os.path.join(o.out, "bench.json"), "w") as f:
        json.dump(b.out, f, indent=1)
    met = sum(t["met"] for t in b.out["targets"])
    print(f"{met} of {len(b.out['targets'])} targets met, {len(b.failed)} commands failed; {o.out}/bench.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
