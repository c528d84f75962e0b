#!/usr/bin/env python3
"""What kernels are made of: the machine code of cubins, by pipe of a Hopper SM, for each kernel and each
loop. Needs no GPU; needs nvdisasm (CUDA's, or `pip install nvidia-cuda-nvdisasm`).

  strata compile SPEC --target cuda:sm_90a --emit cubin -o DIR/k
  sass.py [--kernel WORD] [--loops] [--text] [--nvdisasm PATH] DIR/k.*

A column is the cycles for which one of an SM's four schedulers keeps a pipe busy when a warp runs the code
once, every instruction once: issue (one a cycle), fma (float32: 32 lanes a cycle), alu (integers, compares,
packed conversions, products of integers: 16), xu (reciprocals, exponentials, plain conversions: 4), fp64,
lsu (loads, stores, shuffles; shared by four: 128 bytes a cycle an SM), mma (tensor cores). The largest is
what bounds a loop whose data is there. It is a count, not a measurement: no latency, no bank conflict, no
share of a branch that is rarely taken. Then what should catch the eye: local memory, calls (divisions),
narrow global accesses.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys

PIPES = ["issue", "fma", "alu", "xu", "fp64", "lsu", "mma"]
FMA = {"FFMA", "FADD", "FMUL", "FFMA32I", "FADD32I", "FMUL32I", "HFMA2", "HADD2", "HMUL2", "FSEL", "FSWZADD"}
XU = {"MUFU", "F2F", "F2I", "I2F", "FRND", "POPC", "FLO", "BREV"}
FP64 = {"DADD", "DFMA", "DMUL", "DSETP", "DMMA"}
MEMORY = {"LDG", "STG", "LDS", "STS", "LD", "ST", "LDL", "STL", "LDGSTS", "RED", "ATOM", "ATOMS", "ATOMG"}
FREE = {"NOP", "BRA", "EXIT", "BSSY", "BSYNC", "BAR", "WARPSYNC", "DEPBAR", "LDGDEPBAR", "CALL", "RET", "BREAK",
        "ERRBAR", "MEMBAR", "CCTL", "LDC", "ULDC", "S2R", "S2UR", "CS2R", "YIELD", "KILL", "BRX", "R2UR"}


def width(mods):
    """Bytes a lane moves."""
    for m in mods:
        if m in ("128", "64"):
            return int(m) // 8
    return 2 if "U16" in mods or "S16" in mods else 1 if "U8" in mods or "S8" in mods else 4


def cost(op):
    """Cycles of each pipe; the rates are NVIDIA's for compute capability 9.0, and bf16 products m16n8k16."""
    name, *mods = op.split(".")
    c = {"issue": 1}
    if name == "HMMA":
        c["mma"] = 4 if "16816" in mods else 2 if "BF16" in mods or "F16" in mods else 4
    elif name in ("HGMMA", "QGMMA", "IGMMA"):
        shape = re.search(r"(\d+)x(\d+)x(\d+)", op)
        c["mma"] = int(shape[2]) / 2 if shape else 0
    elif name in FP64:
        c["fp64"] = 2
    elif name in XU:
        c["xu"] = 8
    elif name == "SHFL" or name == "LDSM" or name == "MOVM":
        c["lsu"] = 4 * (int(mods[-1]) if name == "LDSM" and mods[-1].isdigit() else 1)
    elif name in MEMORY:
        c["lsu"] = 4 * max(1, width(mods) // 4)
    elif name in FMA:
        c["fma"] = 1
    elif name not in FREE and not name.startswith("U"):
        c["alu"] = 2
    return c


class Kernel:
    def __init__(self, name):
        self.name, self.ops, self.labels = name, [], {}

    def loops(self):
        """(first, last, how many loops it lies in) of each loop: a jump back to another instruction."""
        last = {}
        for i, (op, text) in enumerate(self.ops):
            m = re.search(r"BRA.*`\((\S+)\)", text)
            to = self.labels.get(m[1], len(self.ops)) if m else len(self.ops)
            if to < i:
                last[to] = i
        spans = sorted(last.items(), key=lambda a: (a[0], -a[1]))
        return [(a, b, sum(c < a and b <= d for c, d in spans)) for a, b in spans]


def disassemble(tool, path):
    text = subprocess.run([tool, "-c", path], stdout=subprocess.PIPE, check=True).stdout.decode()
    kernels = []
    for line in text.splitlines():
        m = re.match(r"\.text\.(\S+):$", line)
        if m:
            kernels.append(Kernel(m[1]))
        elif kernels and re.match(r"\.L\S+:$", line):
            kernels[-1].labels[line[:-1]] = len(kernels[-1].ops)
        elif kernels:
            m = re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)", line)
            if m:
                kernels[-1].ops.append((m[1], line.strip()))
    return kernels


def row(label, ops):
    total = dict.fromkeys(PIPES, 0)
    for op, _ in ops:
        for k, v in cost(op).items():
            total[k] += v
    bound = max(PIPES, key=lambda p: total[p])
    return f"{label:42s} " + " ".join(f"{total[p]:7.0f}" for p in PIPES) + f"  {bound}"


def remarks(ops):
    n = {}
    for op, _ in ops:
        name, *mods = op.split(".")
        if name in ("LDL", "STL"):
            key = "local memory"
        elif name == "CALL":
            key = "calls"
        elif name in ("LDG", "STG") and width(mods) < 16:
            key = f"{name} of {width(mods)} bytes"
        elif name in ("BAR", "MUFU"):
            key = name
        elif name == "F2F":
            key = "slow conversions"
        else:
            continue
        n[key] = n.get(key, 0) + 1
    return ", ".join(f"{v} {k}" for k, v in sorted(n.items()))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("cubin", nargs="+")
    p.add_argument("--kernel", default="", help="only kernels with this in their name")
    p.add_argument("--loops", action="store_true", help="each loop too, by position, what is within counted once")
    p.add_argument("--text", action="store_true", help="and their instructions")
    p.add_argument("--nvdisasm", default=shutil.which("nvdisasm") or "/usr/local/cuda/bin/nvdisasm")
    o = p.parse_args()
    if not os.path.exists(o.nvdisasm):
        sys.exit("no nvdisasm: 'pip install --target DIR nvidia-cuda-nvdisasm' brings one; name it with --nvdisasm")
    print(f"{'kernel':42s} " + " ".join(f"{x:>7s}" for x in PIPES) + "  bound")
    for path in o.cubin:
        for k in disassemble(o.nvdisasm, path):
            if o.kernel not in k.name:
                continue
            print(row(k.name[:42], k.ops))
            note = remarks(k.ops)
            if note:
                print(f"    {note}")
            for a, b, deep in k.loops() if o.loops or o.text else []:
                body = k.ops[a:b + 1]
                print(row(f"{'  ' * (deep + 2)}loop {a}..{b}", body), remarks(body), sep="  ")
                for _, text in body if o.text else []:
                    print(f"        {text}")


if __name__ == "__main__":
    main()
