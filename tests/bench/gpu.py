#!/usr/bin/env python3
"""`make bench-gpu`: how fast strata is on this GPU, beside PyTorch on the same card in the same call and
as a share of the card's measured ceilings. Programs were built before (`make gpu-bundle`). Public Triton
operators take part where their wheels can be imported (PYTHONPATH). Prints a table, writes JSON after
every part.

  gpu.py [--bin build/gpu] [--out tests/gpu-results] [--budget SECONDS] [--only PART]
"""
import csv
import json
import os
import shutil
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "gpu"))
from suite import MISSED, Suite, arguments, write_json  # noqa: E402

STEP = {k: f"specs/gpu-step{s}.yaml" for k, s in (("full", ""), ("block", "-block"), ("standard", "-standard"))}
K3 = ["specs/mini-k3.yaml", *(x for s in ("seq_len=4096", "precision=bf16", "batch_size=16", "micro_batches=1")
                              for x in ("--set", f"train.{s}"))]
ROUNDS = 2  # of peers' steps
NEAR = {"bytes": 4.3e12, "bf16": 790e12, "fp32": 50e12}  # ceilings where none were measured


class Bench:
    def __init__(self, suite):
        self.s, self.failed, self.peers = suite, [], {}
        self.out = {"commit": suite.commit, "targets": [], "ops": [], "steps": {"strata": {}, "torch": {}}}
        self.peak, self.texts = NEAR, 0

    def save(self):
        write_json(os.path.join(self.s.o.out, "bench.json"), {
            **self.out, "failed": self.failed, "left_out": self.s.left_out, "broken": self.s.broken,
            "texts_compiled_there": self.texts})

    def finish(self, argv, r):
        """The JSON that a program printed: one object, or one a line. Its words, when it failed."""
        self.texts += r.err.count(MISSED)
        if r.rc:
            self.failed.append({"command": " ".join(argv), "status": r.rc, "output": r.err[-1500:]})
            print(f"failed ({r.rc}): {' '.join(argv)}\n{r.err[-600:]}", flush=True)
        try:
            return [json.loads(r.out)]
        except ValueError:
            rows = []
            for line in r.out.splitlines():
                if line.startswith("{") and line.endswith("}"):
                    rows.append(json.loads(line))
            return rows

    def run(self, argv, limit):
        r = self.s.run(argv, limit)
        rows = self.finish(argv, r)
        for x in rows:
            x["wall_s"] = round(r.seconds, 1)
        return rows

    def torch_argv(self, *args):
        return [sys.executable, os.path.join(HERE, "gpu_torch.py"), *args]

    def torch(self, *args, limit=90):
        r = self.run(self.torch_argv(*args), limit)
        return r[0] if r else None

    def strata(self, *args, limit=120):
        r = self.run([self.s.strata, "bench", "--json", "--profile", "--device", "cuda", *args], limit)
        return r[0] if r else None

    def target(self, what, value, want, unit, least=False):
        ok = value is not None and (value >= want if least else value <= want)
        self.out["targets"] = [t for t in self.out["targets"] if t["what"] != what]
        self.out["targets"].append({"what": what, "value": value, "want": want, "unit": unit, "met": ok})
        print(f"{'met ' if ok else 'MISS'} {what}: {value if value is None else round(value, 4)} {unit} "
              f"(wanted {'at least' if least else 'at most'} {want})", flush=True)


def ceilings(b):
    c = b.torch("ceilings") or {}
    b.out["torch"] = c
    if c:
        b.peak = {"bytes": c["copy"]["bytes"] / c["copy"]["best_ms"] * 1e3,
                  "bf16": c["bf16"]["flops"] / c["bf16"]["best_ms"] * 1e3,
                  "fp32": c["fp32"]["flops"] / c["fp32"]["best_ms"] * 1e3}
        print(f"{c.get('device')}: copies {b.peak['bytes'] / 1e12:.2f} TB/s, bf16 products "
              f"{b.peak['bf16'] / 1e12:.0f} TFLOP/s, float32 {b.peak['fp32'] / 1e12:.0f}", flush=True)
    b.out["ceilings"] = {**b.peak, "measured": bool(c)}


# ---- single operations ----


def show_op(b, r):
    floor = 1e6 * max(r["bytes"] / b.peak["bytes"], r["flops"] / b.peak["bf16"])
    r["floor_us"] = round(floor, 2)
    r["share"] = round(floor / r["median_us"], 3) if r["median_us"] else None
    # what is faster than the card did not do its work; what fits its caches may be
    r["believed"] = bool(r["median_us"]) and (r["share"] <= 1.2 or r["bytes"] < 60e6)
    if not r["believed"]:
        b.failed.append({"command": f"bench_gpu ={r['name']}", "status": 0, "output": "faster than the card"})
    us = r["median_us"] or float("nan")
    print(f"{r['name']:34s} {us:10.1f} us  floor {floor:8.1f}  share {r['share'] or 0:.2f}  "
          f"{r['bytes'] / us / 1e6:6.2f} TB/s  {r['flops'] / us / 1e6:7.1f} TFLOP/s", flush=True)
    b.out["ops"].append(r)


def ops(b, words, limit):
    """Cases whose name has one of the words. What a case breaks, the others do without."""
    exe = os.path.join(b.s.bin, "bench_gpu")
    names = b.s.run([exe, "--list"], 10).out.splitlines()
    done = {r["name"] for r in b.out["ops"]}
    names = [n for n in names if n not in done and any(w in n for w in words)]
    end = time.time() + limit
    while names and time.time() < end:
        argv = [exe, *("=" + n for n in names)]
        r = b.s.run(argv, end - time.time())
        rows = b.finish(argv[:2], r)
        for x in rows:
            show_op(b, x)
        names = names[len(rows):]
        if names:
            print(f"{names[0]}: no result", flush=True)
            names = names[1:]
        b.save()


def depth_targets(b):
    ops(b, ["depth_mix"], 60)
    by = {r["name"]: r for r in b.out["ops"]}

    def us(name):
        return by[name]["median_us"] if name in by and by[name]["believed"] else None
    b.target("depth mix forward, 9 x 8192 x 7168 bf16", us("depth_mix 9x8192x7168"), 278, "us")
    for n in (1, 8, 64):
        b.target(f"depth mix of {n} tokens, 9 sources", us(f"depth_mix decode {n}"), 5, "us")
    g = by.get("depth_mix_grad 9x8192x7168")
    b.target("depth mix backward, share of copy bandwidth", g["share"] if g and g["believed"] else None, 0.80, "",
             True)


# ---- whole steps ----


def subjects(r):
    return r["subjects"] if r else []


def show_kinds(name, x):
    """The slowest kinds of a profile beside their floors."""
    p = x.get("profile")
    if not p:
        return
    print(f"{name}: {p['measured_ms']:.3f} ms in kernels one after the other, floor {p['floor_ms']:.3f} ms")
    for k in p["kinds"][:14]:
        print(f"  {k['ms']:9.3f} ms {100 * k['ms'] / p['measured_ms']:5.1f} %  floor {k['floor_ms']:8.3f}  "
              f"{k['launches']:5d} launches  {k['name']}", flush=True)


def steps(b):
    ours = b.out["steps"]["strata"]
    for kind, argv in (("full", [STEP["full"]]),
                       ("block standard", ["--pair", STEP["block"], STEP["standard"], "--pairs", "40"])):
        r = b.strata(*argv)
        for name, x in zip(kind.split(), subjects(r)):
            ours[name] = x
            print(f"strata  {name:22s} {x['median_ms']:9.3f} ms", flush=True)
            show_kinds(name, x)
        if r and "ratio" in r:
            ours["block over standard"] = r["ratio"]
            b.target("Block over standard residuals", r["ratio"][1], 1.03, "x")
        b.save()
    b.target("whole step, Full", ours["full"]["median_ms"] if "full" in ours else None, 28.18, "ms")


def training(b):
    """mini-k3 as it trains: T 4096, a batch that fills the card."""
    x = next(iter(subjects(b.strata(*K3, "--steps", "10", limit=200))), None)
    b.out["mini-k3"] = x
    if x:
        show_kinds("mini-k3", x)
    b.target("mini-k3, tokens a second", x and x["tokens_per_second"], 66900, "tokens/s", True)


SERVED = {"serve-125m decode 1": ["decode", "1", "specs/serve-125m.yaml"],
          "serve-125m decode 16": ["decode", "16", "specs/serve-125m.yaml"],
          "serve-125m prefill": ["prefill", "1", "specs/serve-125m.yaml"],
          "mini-k3 decode 1": ["decode", "1", "specs/mini-k3.yaml", "--dtype", "bf16"],
          "mini-k3 decode 16": ["decode", "16", "specs/mini-k3.yaml", "--dtype", "bf16"]}


def serving(b):
    """One more token for sequences of 4096, and a prompt of that many."""
    ours = b.out["serving"] = {}
    for name, (program, batch, *argv) in SERVED.items():
        r = b.strata("--program", program, "--batch", batch, "--context", "4096", "--steps", "50", *argv)
        for x in subjects(r):
            ours[name] = x
            print(f"strata  {name:22s} {x['median_ms']:9.3f} ms, {x['tokens_per_second']:9.0f} tokens/s, "
                  f"{x['bytes'] / x['median_ms'] / 1e6:6.0f} GB/s of what it must read", flush=True)
            show_kinds(name, x)
        b.save()


# ---- PyTorch ----


def start_peers(b):
    """torch.compile takes minutes of the CPU, so it goes on beside what is not timed; peers then wait for
    their turn (--gate)."""
    for kind in STEP:
        gate = os.path.join(b.s.tmp, f"gate-{kind}")
        argv = b.torch_argv("step", "--impl", "compile", "--residual", kind, "--gate", gate)
        b.peers[f"{kind} compile"] = (argv, gate, b.s.start(argv))


def peer(b, key, r):
    if not r:
        return
    theirs = b.out["steps"]["torch"]
    if key not in theirs or r["median_ms"] < theirs[key]["median_ms"]:
        theirs[key] = r
    print(f"PyTorch {key:22s} {r['median_ms']:9.3f} ms{'' if r['graph'] else ' (no graph)'}", flush=True)


def release(b, key, limit):
    """Lets a waiting peer measure; one that is not ready in time is given up."""
    argv, gate, job = b.peers.pop(key)
    end = time.time() + limit
    while job.p.poll() is None and not os.path.exists(gate + ".ready") and time.time() < min(end, b.s.deadline):
        time.sleep(0.1)
    with open(gate, "w"):
        pass
    r = job.result(min(30, b.s.left()) if os.path.exists(gate + ".ready") else 0)
    rows = b.finish(argv, r)
    peer(b, key, rows[0] if rows else None)
    b.save()


def compiled_peers(b):
    early = bool(b.peers)
    if not early:
        start_peers(b)
    for key in list(b.peers):
        release(b, key, 60 if early else 300)
    verdict(b)


def other_peers(b):
    b.torch("step", "--impl", "eager", "--layers", "1", "--width", "128", "--repeats", "2")  # reads PyTorch
    for kind in STEP:
        peer(b, f"{kind} eager", b.torch("step", "--impl", "eager", "--residual", kind))
    for impl in ("fla", "fla+compile", "liger"):
        if impl.split("+")[0] not in b.out.get("torch", {}).get("operators", []):
            continue
        for kind in ("full", "block"):
            if impl != "liger" or kind == "block":  # it stacks all sources at every site
                peer(b, f"{kind} {impl}", b.torch("step", "--impl", impl, "--residual", kind, limit=150))
    verdict(b)


def verdict(b):
    full = b.out["steps"]["strata"].get("full", {}).get("median_ms")
    best = min((r["median_ms"] for k, r in b.out["steps"]["torch"].items() if k.startswith("full")), default=None)
    if best:
        b.target("whole step, Full, over PyTorch's best", full and full / best, 1.0, "x")


def mixes(b):
    out = b.out.setdefault("mix_peers", [])
    for args in (["--tokens", "8192"], ["--tokens", "8192", "--backward"], ["--tokens", "1"], ["--tokens", "64"]):
        for impl in ("eager", "compile", *b.out.get("torch", {}).get("operators", [])):
            r = b.torch("mix", "--impl", impl, *args)
            if r:
                out.append({**r, "args": args})
                print(f"PyTorch {impl:8s} mix {' '.join(args):28s} {1e3 * r['median_ms']:10.1f} us", flush=True)
            b.save()


# ---- hardware counters ----

# What a kernel is asked for; sections first, as names of single metrics differ between chips.
ASKED = [[x for s in ("SpeedOfLight", "LaunchStats", "Occupancy", "WarpStateStats", "MemoryWorkloadAnalysis",
                      "ComputeWorkloadAnalysis", "InstructionStats") for x in ("--section", s)],
         ["--set", "basic"],
         ["--metrics", "gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,"
          "sm__throughput.avg.pct_of_peak_sustained_elapsed,sm__warps_active.avg.pct_of_peak_sustained_active,"
          "launch__registers_per_thread"]]


def counted(b, tool, name, asked):
    """The table of one operation, header and units first; None where ncu fails."""
    q = b.s.run([tool, "--clock-control", "none", "--csv", "--page", "raw", "--launch-count", "16", *asked,
                 os.path.join(b.s.bin, "bench_gpu"), "--once", "=" + name], 45)
    table = list(csv.reader(x for x in q.out.splitlines() if x.startswith('"')))
    if q.rc == 0 and len(table) > 2:
        return table
    b.failed.append({"command": f"ncu {' '.join(asked)} {name}", "status": q.rc, "output": (q.out + q.err)[-800:]})
    print(f"ncu {name}: {q.rc} {(q.out + q.err)[-300:]}", flush=True)
    return None


def counters(b):
    """One run of every operation under ncu, furthest from its floor first, into ncu.csv."""
    tool = shutil.which("ncu") or shutil.which("/usr/local/cuda/bin/ncu")
    if not tool:
        print("skipped: no ncu")
        return
    asked, seen = list(ASKED), 0
    for r in sorted(b.out["ops"], key=lambda r: r["median_us"] - r["floor_us"], reverse=True):
        if b.s.left() < 25:
            b.s.left_out.append(f"ncu of {r['name']}")
            continue
        table = counted(b, tool, r["name"], asked[0])
        while not table and not seen and len(asked) > 1:
            asked.pop(0)
            table = counted(b, tool, r["name"], asked[0])
        if not table and not seen:  # it does not work here
            return
        seen += 1
        with open(os.path.join(b.s.o.out, "ncu.csv"), "a", newline="") as f:
            csv.writer(f).writerows([r["name"], *row] for row in table or [])
    print(f"ncu: {seen} operations", flush=True)


def parts(b):
    """(name, seconds that it needs at least, function), the most valuable first."""
    return [("ceilings", 15, lambda: ceilings(b)),
            ("depth", 15, lambda: depth_targets(b)),
            ("steps", 30, lambda: steps(b)),
            ("mini-k3", 40, lambda: training(b)),
            ("compiled peers", 15, lambda: compiled_peers(b)),
            ("ops", 20, lambda: ops(b, [""], 120)),
            ("serving", 25, lambda: serving(b)),
            ("ncu", 40, lambda: counters(b)),
            ("peers", 30, lambda: other_peers(b)),
            ("mix peers", 30, lambda: mixes(b))]


def close(b):
    for _, _, job in b.peers.values():
        job.kill()


def summary(b):
    t = b.out["targets"]
    print(f"{sum(x['met'] for x in t)} of {len(t)} targets met, {len(b.failed)} commands failed, "
          f"{b.texts} texts were not in the bundle; {b.s.o.out}/bench.json")


def main():
    p = arguments(__doc__)
    p.add_argument("--only", default="", help="of: " + ", ".join(n for n, _, _ in parts(None)))
    o = p.parse_args()
    b = Bench(Suite(o))
    b.s.parts([x for x in parts(b) if o.only in ("", x[0])], b.save)
    close(b)
    b.s.close()
    summary(b)
    return 0


if __name__ == "__main__":
    sys.exit(main())
