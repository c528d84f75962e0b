#!/usr/bin/env python3
"""Everything at once on a machine that is lent for minutes (`make gpu-session`): check.py and
../bench/gpu.py within one budget, the most valuable first, whatever breaks on the way. Leaves four
files in --out: check.json, bench.json, session.log and, where there is ncu, ncu.csv.

  session.py [--bin build/gpu] [--out tests/gpu-results] [--budget SECONDS]

--bin may be a folder that has only bundle.tar.xz. Nothing else is needed than Python 3 and CUDA's
libraries; PyTorch for the peers. A second call goes on where there is time: --only NAME,NAME."""
import os
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "bench"))
import check  # noqa: E402
import gpu  # noqa: E402
from suite import Suite, arguments  # noqa: E402


class Tee:
    """Standard output that is also a file."""

    def __init__(self, path):
        self.out, self.log = sys.stdout, open(path, "a", buffering=1)

    def write(self, s):
        self.out.write(s)
        self.log.write(s)

    def flush(self):
        self.out.flush()
        self.log.flush()


def order(c, b):
    """Correctness, then targets, then what helps to get further."""
    mine = {f"check {n}": (least, fn, c) for n, least, fn in check.parts(c)}
    mine.update({n: (least, fn, b) for n, least, fn in gpu.parts(b)})
    mine["start peers"] = (60, lambda: gpu.start_peers(b), b)
    first = ["check doctor", "start peers", "check kernels", "ceilings", "depth", "steps", "mini-k3",
             "compiled peers", "ops", "serving", "ncu", "check memcheck", "peers", "check racecheck", "mix peers"]
    return [(n, *mine[n][:2]) for n in first]


def main():
    p = arguments(__doc__)
    p.add_argument("--only", default="", help="parts, with commas between them")
    o = p.parse_args()
    os.makedirs(o.out, exist_ok=True)
    sys.stdout = Tee(os.path.join(o.out, "session.log"))
    begin = time.time()
    s = Suite(o)
    c, b = check.Check(s), gpu.Bench(s)
    print(f"bundle of {s.commit}, {len(os.listdir(s.env.get('STRATA_CUBINS', s.bin)))} files of machine code; "
          f"libraries in {s.env.get('STRATA_CUDA_PATH', 'the usual places')}; {time.time() - begin:.1f} s", flush=True)
    only = o.only.split(",") if o.only else None

    def save():
        c.save()
        b.save()
    s.parts([x for x in order(c, b) if not only or x[0] in only], save)
    gpu.close(b)
    save()
    status = check.summary(c)
    gpu.summary(b)
    print(f"left out: {', '.join(s.left_out) or 'nothing'}; {time.time() - s.begin:.0f} s of {o.budget:.0f}", flush=True)
    s.close()
    return status


if __name__ == "__main__":
    sys.exit(main())
