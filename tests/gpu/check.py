#!/usr/bin/env python3
"""`make check-gpu`: everything that needs a GPU to be seen working, in one call on a machine that has
CUDA and Python; the programs were built before (`make gpu-bundle`, build/gpu). Prints a line a check,
writes them as JSON after every part, and fails where one of them does.

  check.py [--bin build/gpu] [--out tests/gpu-results] [--budget SECONDS] [--only WORD] [--quick]

--quick leaves out training curves and compute-sanitizer; so does a budget that is too small for them.
"""
import hashlib
import json
import os
import re
import shutil
import sys
import time

from suite import MISSED, Suite, arguments, write_json

TAIL = 4000  # characters of output that are kept of a failure
SANITIZED = ("test_cuda_depth", "test_cuda_moe", "test_cuda_rows", "test_cuda_attention", "test_cuda_kda")


class Check:
    def __init__(self, suite, only="", quick=False):
        self.s, self.only, self.quick, self.results = suite, only, quick, []
        self.doctor, self.texts = "", 0
        self.env = {"STRATA_TEST_DEVICE": "cuda", "STRATA_TEST_VERBOSE": "1"}

    def note(self, name, ok, seconds, **facts):
        with self.s.lock:
            self.results.append({"name": name, "ok": bool(ok), "seconds": round(seconds, 2), **facts})
            shown = ", ".join(f"{k} {v}" for k, v in facts.items() if k != "output")
            print(f"{'ok  ' if ok else 'FAIL'} {name} ({seconds:.1f} s){': ' + shown if shown else ''}", flush=True)
            if not ok and facts.get("output"):
                print(facts["output"], flush=True)
        self.save()

    def save(self):
        with self.s.lock:
            failed = [r["name"] for r in self.results if not r["ok"]]
            write_json(os.path.join(self.s.o.out, "check.json"), {
                "commit": self.s.commit, "doctor": self.doctor, "seconds": round(time.time() - self.s.begin, 1),
                "failed": failed, "left_out": self.s.left_out, "broken": self.s.broken,
                "texts_compiled_there": self.texts, "checks": self.results})

    def wanted(self, name):
        return not self.only or self.only in name

    def run(self, argv, limit):
        """(exit status, output): the tail of both streams."""
        r = self.s.run(argv, limit, **self.env)
        with self.s.lock:
            self.texts += r.err.count(MISSED)
        return r.rc, r.out + r.err, r.seconds

    def command(self, name, argv, limit, facts=None):
        if not self.wanted(name):
            return
        rc, out, seconds = self.run(argv, limit)
        more = facts(out) if facts and rc == 0 else {}
        if rc:
            more = {"status": rc, "output": out[-TAIL:]}
        self.note(name, rc == 0, seconds, **more)

    def train(self, name, spec, limit, *args):
        folder = os.path.join(self.s.tmp, name)
        corpus = os.path.join(self.s.bin, "corpus.txt")
        rc, out, _ = self.run([self.s.strata, "train", spec, "--device", "cuda", "--set",
                               f"train.checkpoint.dir={folder}", "--set", f"train.data.path={corpus}", *args], limit)
        return rc, out, folder


def cases(out):
    """What the tests of tests/cuda_ops.h print."""
    n = sum(int(x) for x in re.findall(r"^(\d+) cases:", out, re.M))
    worst = re.findall(r"most of a tolerance used: ([\d.]+)", out)
    bf16 = re.findall(r"errors at most ([\d.]+) times those of the oracle", out)
    return {**({"cases": n} if n else {}), **({"tolerance_used": max(map(float, worst))} if worst else {}),
            **({"bf16_error_over_oracle": float(bf16[0])} if bf16 else {})}


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


def same_bits(c, spec, precision):
    name = f"two runs and one stream, the same bits, {precision}"
    if not c.wanted(name):
        return
    begin, seen = time.time(), []
    for i, streams in enumerate(("2", "2", "1")):  # steps side by side, again, and one after the other
        rc, out, run = c.train(f"bits-{precision}-{i}", spec, 120, "--streams", streams, "--set", "train.steps=20",
                               "--set", f"train.precision={precision}")
        if rc:
            c.note(name, False, time.time() - begin, status=rc, output=out[-TAIL:])
            return
        seen.append(weights_hash(run))
    c.note(name, len(set(seen)) == 1, time.time() - begin, spec=spec)


def curves(c):
    """100 steps in bf16 stay within 1 % of float32's losses."""
    name = "bf16 follows float32"
    if not c.wanted(name) or c.quick:
        return
    begin, seen, failed = time.time(), {}, []

    def one(precision):
        rc, out, run = c.train(f"curve-{precision}", "specs/kimi-small.yaml", 240, "--set", "train.steps=100",
                               "--set", f"train.precision={precision}")
        if rc:
            failed.append(f"{precision}: {rc}\n{out[-TAIL:]}")
        else:
            seen[precision] = losses(run)
    c.s.side_by_side([lambda p=p: one(p) for p in ("fp32", "bf16")])
    if len(seen) < 2:
        c.note(name, False, time.time() - begin, output="\n".join(failed))
        return
    off = max(abs(b / a - 1) for a, b in zip(seen["fp32"], seen["bf16"]))
    c.note(name, off <= 0.01 and len(seen["fp32"]) >= 100, time.time() - begin, steps=len(seen["fp32"]),
           largest_difference=round(off, 5), last=[round(x[-1], 4) for x in seen.values()], losses=seen)


def sanitizer(c, kind, tests):
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if c.quick or not c.wanted("sanitizer"):
        return
    if not tool:
        print("skipped: no compute-sanitizer")
        return
    c.s.side_by_side([lambda t=t: c.command(f"compute-sanitizer {kind} {t}",
                                            [tool, "--tool", kind, "--error-exitcode", "9",
                                             os.path.join(c.s.bin, t)], 150) for t in tests])


def tests_of(c):
    """Slow ones first, so that none is left alone at the end."""
    first = ["test_compiled", "test_lm", "test_serving", "test_gpu", "test_cuda_gemm", "test_cuda_kda"]
    names = [t for t in os.listdir(c.s.bin) if t.startswith("test_")]
    return sorted(names, key=lambda t: (first.index(t) if t in first else len(first), t))


def kernels(c):
    """All test programs and short training runs side by side: they share the GPU, nothing is timed."""
    works = [lambda t=t: c.command(t, [os.path.join(c.s.bin, t)], 200, cases) for t in tests_of(c)]
    works += [lambda p=p: same_bits(c, "specs/kimi-tiny.yaml", p) for p in ("bf16", "fp32")]
    c.s.side_by_side(works + [lambda: curves(c)])


def doctor(c):
    r = c.s.run([c.s.strata, "doctor"], 60)
    c.doctor = r.out + r.err
    print(c.doctor, flush=True)
    smi = c.s.run(["nvidia-smi", "--query-gpu=name,driver_version,memory.used,clocks.sm,clocks.mem,power.draw,"
                   "temperature.gpu", "--format=csv,noheader"], 20)
    c.doctor += smi.out
    print(smi.out or smi.err, flush=True)


def parts(c):
    """(name, seconds that it needs at least, function), the most valuable first."""
    tests = [t for t in tests_of(c) if t in SANITIZED]
    return [("doctor", 1, lambda: doctor(c)), ("kernels", 20, lambda: kernels(c)),
            ("memcheck", 40, lambda: sanitizer(c, "memcheck", tests)),
            ("racecheck", 40, lambda: sanitizer(c, "racecheck", tests))]


def summary(c):
    failed = [r["name"] for r in c.results if not r["ok"]]
    print(f"{len(c.results) - len(failed)} passed, {len(failed)} failed"
          f"{': ' + ', '.join(failed) if failed else ''}; {c.texts} texts were not in the bundle; "
          f"{c.s.o.out}/check.json")
    return 1 if failed or c.s.broken or not c.results else 0


def main():
    p = arguments(__doc__)
    p.add_argument("--only", default="")
    p.add_argument("--quick", action="store_true")
    o = p.parse_args()
    c = Check(Suite(o), o.only, o.quick)
    c.s.parts(parts(c), c.save)
    c.s.close()
    return summary(c)


if __name__ == "__main__":
    sys.exit(main())
