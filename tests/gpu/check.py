#!/usr/bin/env python3
"""`make check-gpu`: everything that needs a GPU to be seen working, in one call on a machine that has a
C compiler, CUDA and Python; the programs were built before (`make gpu-bundle`, build/gpu). Prints a line a
check, writes them as JSON, and fails where one of them does.

  check.py [--bin build/gpu] [--out FOLDER] [--only WORD] [--quick]

--quick leaves out training curves and compute-sanitizer. Without --out the results go to
tests/gpu-results.
"""
import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TAIL = 4000  # characters of output that are kept of a failure


class Suite:
    def __init__(self, o):
        self.o, self.results, self.tmp = o, [], tempfile.mkdtemp(prefix="strata-gpu-")
        self.strata = os.path.join(o.bin, "strata")
        self.env = {**os.environ, "STRATA_TEST_DEVICE": "cuda", "STRATA_TEST_VERBOSE": "1",
                    "STRATA_CACHE": os.path.join(self.tmp, "cache")}

    def run(self, argv, limit=300):
        """(exit status, output); 124 for one that ran too long."""
        try:
            p = subprocess.run(argv, cwd=ROOT, env=self.env, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, timeout=limit)
            return p.returncode, p.stdout.decode(errors="replace")
        except subprocess.TimeoutExpired as e:
            return 124, (e.stdout or b"").decode(errors="replace")

    def note(self, name, ok, seconds, **facts):
        self.results.append({"name": name, "ok": bool(ok), "seconds": round(seconds, 2), **facts})
        shown = ", ".join(f"{k} {v}" for k, v in facts.items() if k != "output")
        print(f"{'ok  ' if ok else 'FAIL'} {name} ({seconds:.1f} s){': ' + shown if shown else ''}", flush=True)
        if not ok and facts.get("output"):
            print(facts["output"], flush=True)

    def wanted(self, name):
        return not self.o.only or self.o.only in name

    def command(self, name, argv, limit=300, facts=None):
        if not self.wanted(name):
            return
        begin = time.time()
        rc, out = self.run(argv, limit)
        more = facts(out) if facts and rc == 0 else {}
        if rc:
            more = {"status": rc, "output": out[-TAIL:]}
        self.note(name, rc == 0, time.time() - begin, **more)


def cases(out):
    """What the tests of tests/cuda_ops.h print."""
    n = sum(int(x) for x in re.findall(r"^(\d+) cases:", out, re.M))
    worst = re.findall(r"most of a tolerance used: ([\d.]+)", out)
    return {**({"cases": n} if n else {}), **({"tolerance_used": max(map(float, worst))} if worst else {})}


def train(s, name, spec, *args):
    run = os.path.join(s.tmp, name)
    corpus = os.path.join(s.o.bin, "corpus.txt")
    argv = [s.strata, "train", spec, "--device", "cuda", "--set", f"train.checkpoint.dir={run}", "--set",
            f"train.data.path={corpus}", *args]
    return (*s.run(argv, 600), run)


def weights_hash(run):
    steps = sorted(d for d in os.listdir(run) if d.startswith("step"))
    h = hashlib.sha256()
    for root, _, files in sorted(os.walk(os.path.join(run, steps[-1]))):
        for f in sorted(files):
            if f.endswith(".safetensors"):
                with open(os.path.join(root, f), "rb") as x:
                    h.update(x.read())
    return h.hexdigest()


def losses(run):
    with open(os.path.join(run, "metrics.jsonl")) as f:
        return [m["loss"] for m in map(json.loads, f) if "loss" in m]


def same_bits(s):
    name = "two runs, the same bits"
    if not s.wanted(name):
        return
    for spec, precision in (("specs/kimi-tiny.yaml", "bf16"), ("specs/kimi-tiny.yaml", "fp32")):
        begin, seen = time.time(), []
        for i in range(2):
            rc, out, run = train(s, f"bits-{precision}-{i}", spec, "--set", "train.steps=20", "--set",
                                 f"train.precision={precision}")
            if rc:
                s.note(f"{name}, {precision}", False, time.time() - begin, output=out[-TAIL:])
                return
            seen.append(weights_hash(run))
        s.note(f"{name}, {precision}", seen[0] == seen[1], time.time() - begin, spec=spec)


def curves(s):
    """100 steps in bf16 stay within 1 % of float32's losses."""
    name = "bf16 follows float32"
    if not s.wanted(name) or s.o.quick:
        return
    begin, seen = time.time(), []
    for precision in ("fp32", "bf16"):
        rc, out, run = train(s, f"curve-{precision}", "specs/kimi-small.yaml", "--set", "train.steps=100",
                             "--set", f"train.precision={precision}")
        if rc:
            s.note(name, False, time.time() - begin, output=out[-TAIL:])
            return
        seen.append(losses(run))
    off = max(abs(b / a - 1) for a, b in zip(*seen))
    s.note(name, off <= 0.01 and len(seen[0]) >= 100, time.time() - begin, steps=len(seen[0]),
           largest_difference=round(off, 5), last=[round(x[-1], 4) for x in seen])


def sanitizer(s, tests):
    tool = shutil.which("compute-sanitizer")
    if s.o.quick or not s.wanted("sanitizer"):
        return
    if not tool:
        print("skipped: no compute-sanitizer")
        return
    for t in tests:
        for kind in ("memcheck", "racecheck"):
            s.command(f"compute-sanitizer {kind} {t}",
                      [tool, "--tool", kind, "--error-exitcode", "9", os.path.join(s.o.bin, t)], 300)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", default="build/gpu")
    p.add_argument("--out", default="tests/gpu-results")
    p.add_argument("--only", default="")
    p.add_argument("--quick", action="store_true")
    o = p.parse_args()
    o.bin = os.path.abspath(o.bin)
    if not os.path.exists(os.path.join(o.bin, "commit")):
        sys.exit(f"{o.bin} is no bundle: 'make gpu-bundle' makes one, on a machine with the compilers")
    with open(os.path.join(o.bin, "commit")) as f:
        o.commit = f.read().strip()
    s = Suite(o)
    begin = time.time()
    rc, doctor = s.run([s.strata, "doctor"])
    print(doctor)
    tests = sorted(t for t in os.listdir(o.bin) if t.startswith("test_"))
    for t in tests:
        s.command(t, [os.path.join(o.bin, t)], 300, cases)
    same_bits(s)
    curves(s)
    sanitizer(s, [t for t in tests if t in ("test_cuda_depth", "test_cuda_moe", "test_cuda_rows")])
    failed = [r["name"] for r in s.results if not r["ok"]]
    result = {"commit": o.commit, "doctor": doctor, "seconds": round(time.time() - begin, 1),
              "failed": failed, "checks": s.results}
    os.makedirs(o.out, exist_ok=True)
    with open(os.path.join(o.out, "check.json"), "w") as f:
        json.dump(result, f, indent=1)
    shutil.rmtree(s.tmp, ignore_errors=True)
    print(f"{len(s.results) - len(failed)} passed, {len(failed)} failed; {o.out}/check.json")
    return 1 if failed or not s.results else 0


if __name__ == "__main__":
    sys.exit(main())
