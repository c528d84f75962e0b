#!/usr/bin/python3
"""`make bench`: speed of whole training steps beside the machine's peak, the price of attention
residuals, PyTorch where it is installed, and the time from an edit to the first step.

Everything takes turns and is repeated, so that a busy machine disturbs all alike. For people to read:
it fails on errors only. Numbers go to BUILD/bench.json as well.

  bench.py [--build build] [--quick] [all | steps | tax | edit]
"""
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SYSTEM_PYTHON = "/usr/bin/python3"  # Debian's torch belongs to it
TORCH = {
    "bench-c": "--layers 6 --hidden 384 --heads 6 --ffn 1152 --vocab 256 --batch 8 --seq 256",
    "bench-a-standard": "--layers 16 --hidden 256 --heads 8 --ffn 768 --vocab 256 --batch 8 --seq 128",
}
TARGET = {"bench-c": 0.65, "bench-a-standard": 0.60, "bench-a": 0.60}


def run(argv, **env):
    """The JSON object that a program prints."""
    e = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    e.update(env)
    p = subprocess.run(argv, cwd=ROOT, env=e, stdout=subprocess.PIPE, check=True)
    return json.loads(p.stdout)


def strata(build, *args, **env):
    return run([os.path.join(build, "strata"), "bench", "--json", *args], **env)


def torch_installed():
    code = "import torch"
    return subprocess.run([SYSTEM_PYTHON, "-c", code], stderr=subprocess.DEVNULL).returncode == 0


class Runs:
    """Several runs of one thing: best time, and the median of their medians."""

    def __init__(self):
        self.best, self.medians, self.flops = float("inf"), [], 0

    def add(self, r):
        self.best = min(self.best, r["best_ms"])
        self.medians.append(r["median_ms"])
        self.flops = r.get("flops", 0)

    def numbers(self, flops, peak):
        median = statistics.median(self.medians)
        share = [1e3 * flops / t / peak for t in (median, self.best)]
        return {"median_ms": median, "best_ms": self.best, "share": share[0], "best_share": share[1]}


def line(name, threads, x, target=None):
    text = "%-28s %d  %9.2f %9.2f  %6.1f %% %6.1f %%" % (
        name, threads, x["median_ms"], x["best_ms"], 100 * x["share"], 100 * x["best_share"])
    if target:
        met = "met" if x["share"] >= target else "met by the best" if x["best_share"] >= target else "missed"
        text += "  at least %.0f %%: %s" % (100 * target, met)
    print(text, flush=True)


def steps(build, quick, out):
    """Specs on all threads and on one, and PyTorch in turns with them."""
    rounds, n = (1, 5) if quick else (3, 15)
    with_torch = torch_installed()
    if not with_torch:
        print("PyTorch is not installed (python3-torch): nothing to compare with")
    out["steps"] = []
    for threads in (2, 1):
        runs, peak, memory = {}, 0, 0
        for _ in range(rounds):
            for name in TARGET:
                r = strata(build, "specs/%s.yaml" % name, "--steps", str(n), "--threads", str(threads))
                peak = max(peak, r["machine"]["flops_per_second"])
                memory = max(memory, r["machine"]["bytes_per_second"])
                runs.setdefault(name, Runs()).add(r["subjects"][0])
                if with_torch and name in TORCH:
                    argv = [SYSTEM_PYTHON, "tests/bench/bench_torch.py", "--threads", str(threads),
                            "--steps", str(max(4, n // 2)), *TORCH[name].split()]
                    runs.setdefault("torch " + name, Runs()).add(run(argv, OMP_WAIT_POLICY="passive"))
        print("\nmachine, %d thread%s: %.1f GFLOP/s float32, %.1f GB/s read" % (
            threads, "s"[threads == 1:], peak * 1e-9, memory * 1e-9))
        print("%-28s %s  %9s %9s  %8s %8s" % ("training step", "n", "median ms", "best ms", "of peak", "at best"))
        for name, r in runs.items():
            x = r.numbers(runs[name.replace("torch ", "")].flops, peak)
            line(name, threads, x, TARGET.get(name) if threads == 2 else None)
            out["steps"].append({"name": name, "threads": threads, "peak": peak, "memory": memory, **x})


def tax(build, quick, out):
    pairs = "20" if quick else "100"
    r = strata(build, "--pair", "specs/bench-a.yaml", "specs/bench-a-standard.yaml", "--pairs", pairs)
    out["attnres_tax"] = r
    low, mid, high = r["ratio"]
    print("\nprice of attention residuals: ratio %.4f (quartiles %.4f %.4f), best times %.4f; at most 1.05: %s" % (
        mid, low, high, r["subjects"][0]["best_ms"] / r["subjects"][1]["best_ms"],
        "met" if mid <= 1.05 else "missed"), flush=True)


def edit(build, quick, out):
    """From a changed `blocks:` to the first step done; every step is a process of its own."""
    parts = ("front_end", "passes", "text", "compiler", "start", "weights", "step", "total")
    out["edit"] = []
    print("\nfrom an edit of blocks: in examples/tiny-moe/spec.yaml to the first training step done, ms")
    print("%-12s" % "blocks" + "".join(" %9s" % p for p in parts) + "  kernels compiled, cached")
    with open(os.path.join(ROOT, "examples/tiny-moe/spec.yaml")) as f:
        text = f.read()
    for _ in range(1 if quick else 3):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "spec.yaml")
            for blocks, cache in ((4, "cold"), (1, "warm"), (3, "warm"), (3, "same")):
                with open(path, "w") as f:
                    f.write(re.sub(r"blocks: \d+\}", "blocks: %d}" % blocks, text))
                r = strata(build, "--first", path, STRATA_CACHE=os.path.join(folder, "cache"))
                out["edit"].append({"blocks": blocks, "cache": cache, **r})
                print("%d, %-9s" % (blocks, cache) + "".join(" %9.1f" % (1e3 * r[p]) for p in parts)
                      + "  %d, %d" % (r["kernels_compiled"], r["kernels_cached"]), flush=True)
    for cache in ("cold", "warm"):
        worst = max(x["total"] for x in out["edit"] if x["cache"] == cache)
        print("%s cache: %.2f s at worst; under 3 s: %s" % (cache, worst, "met" if worst < 3 else "missed"))


def main():
    args = sys.argv[1:]
    quick = "--quick" in args
    build = args[args.index("--build") + 1] if "--build" in args else "build"
    build = os.path.join(ROOT, build)
    what = next((a for a in args if a in ("steps", "tax", "edit")), "all")
    out = {}
    for name, f in (("steps", steps), ("tax", tax), ("edit", edit)):
        if what in (name, "all"):
            f(build, quick, out)
    with open(os.path.join(build, "bench.json"), "w") as f:
        json.dump(out, f, indent=2)


main()
