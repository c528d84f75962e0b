"""What check.py, ../bench/gpu.py and session.py share: a bundle (`make gpu-bundle`), a budget of seconds,
programs that are killed with everything they started when they run too long, and results that are on
the disk after every part, whatever happens later."""
import argparse
import concurrent.futures
import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MISSED = "STRATA_CUBINS ("  # how the program says that the bundle has no code of a text


def write_json(path, value):
    """Whole or as it was before."""
    with open(path + ".part", "w") as f:
        json.dump(value, f, indent=1)
        f.flush()
        os.fsync(f.fileno())
    os.replace(path + ".part", path)


def library_folders():
    """Where NVIDIA's libraries may be besides the loader's path: the toolkit, wheels of this Python."""
    found = ["/usr/local/cuda/lib64", "/usr/local/cuda/targets/x86_64-linux/lib"]
    for p in sys.path:
        found += sorted(glob.glob(os.path.join(p, "nvidia", "cu1[0-9]", "lib")))
        found += sorted(glob.glob(os.path.join(p, "nvidia", "*", "lib")))
    found += ["/usr/local/nvidia/lib64", "/usr/local/nvidia/lib"]
    names = ("libcublas.so.1*", "libcublasLt.so.1*", "libnvrtc.so.1*", "libcuda.so.1")
    return [d for d in dict.fromkeys(found) if any(glob.glob(os.path.join(d, n)) for n in names)]


class Result:
    def __init__(self, rc, out, err, seconds):
        self.rc, self.out, self.err, self.seconds = rc, out, err, seconds


class Job:
    """A running program in a process group of its own; its words go to files."""

    def __init__(self, argv, env, tmp):
        self.argv, self.begin = argv, time.time()
        self.files = [tempfile.TemporaryFile(dir=tmp) for _ in range(2)]
        self.p = subprocess.Popen(argv, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=self.files[0],
                                  stderr=self.files[1], start_new_session=True)

    def kill(self):
        for _ in range(2):
            try:
                os.killpg(self.p.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            try:  # one whose kernel hangs may not go; the others go on without it
                self.p.wait(10)
                return
            except subprocess.TimeoutExpired:
                continue

    def result(self, limit):
        """Waits so many seconds at most; 124 where that was not enough."""
        try:
            rc = self.p.wait(max(limit, 0.1))
        except subprocess.TimeoutExpired:
            self.kill()
            rc = 124
        text = []
        for f in self.files:
            f.seek(0)
            text.append(f.read().decode(errors="replace"))
        return Result(rc, *text, time.time() - self.begin)


class Suite:
    """o: bin, out, budget."""

    def __init__(self, o):
        self.o, self.begin = o, time.time()
        self.deadline = self.begin + o.budget
        self.tmp = tempfile.mkdtemp(prefix="strata-gpu-")
        self.bin = self.unpack(os.path.abspath(o.bin))
        self.strata = os.path.join(self.bin, "strata")
        self.left_out, self.broken, self.lock = [], [], threading.RLock()
        with open(os.path.join(self.bin, "commit")) as f:
            self.commit = f.read().strip()
        folders = library_folders()
        self.env = {**os.environ, "STRATA_CACHE": os.path.join(self.tmp, "cache")}
        if os.path.isdir(os.path.join(self.bin, "cubins")):
            self.env["STRATA_CUBINS"] = os.path.join(self.bin, "cubins")
        if folders and not self.env.get("STRATA_CUDA_PATH"):
            self.env["STRATA_CUDA_PATH"] = ":".join([""] + folders)
            old = self.env.get("LD_LIBRARY_PATH")
            self.env["LD_LIBRARY_PATH"] = ":".join(([old] if old else []) + folders)
        os.makedirs(o.out, exist_ok=True)

    def unpack(self, path):
        """The bundle's folder: `path`, or where bundle.tar.xz of it was unpacked."""
        pack = os.path.join(path, "bundle.tar.xz")
        if os.path.exists(os.path.join(path, "commit")):
            return path
        if not os.path.exists(pack):
            sys.exit(f"{path} is no bundle: 'make gpu-bundle' makes one, on a machine with the compilers")
        to = os.path.join(self.tmp, "bundle")
        with tarfile.open(pack) as t:
            t.extractall(to)
        return to

    def close(self):
        shutil.rmtree(self.tmp, ignore_errors=True)

    def left(self):
        return self.deadline - time.time()

    def start(self, argv, **env):
        return Job(argv, {**self.env, **env}, self.tmp)

    def run(self, argv, limit, **env):
        """At most `limit` seconds, and what is left of the budget."""
        try:
            job = self.start(argv, **env)
        except OSError as e:
            return Result(127, "", f"{argv[0]}: {e}", 0.0)
        return job.result(min(limit, self.left()))

    def side_by_side(self, works):
        """Runs functions at once, as many as there are processors; each keeps its own results."""
        n = min(len(works), os.cpu_count() or 1) or 1
        with concurrent.futures.ThreadPoolExecutor(n) as pool:
            for f in concurrent.futures.as_completed([pool.submit(self.guarded, w) for w in works]):
                f.result()

    def guarded(self, fn):
        try:
            return fn()
        except Exception:  # a mistake in one part must not take the results of the others
            with self.lock:
                self.broken.append(traceback.format_exc())
            print(traceback.format_exc(), flush=True)
            return None

    def parts(self, parts, save):
        """Runs (name, least, fn) in this order: those for which `least` seconds are left."""
        for name, least, fn in parts:
            if self.left() < least:
                self.left_out.append(name)
                print(f"left out for want of time: {name} ({self.left():.0f} s left, wants {least})", flush=True)
                continue
            begin = time.time()
            print(f"== {name}, {self.left():.0f} s left", flush=True)
            self.guarded(fn)
            print(f"-- {name}: {time.time() - begin:.1f} s", flush=True)
            save()


def arguments(doc):
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", default="build/gpu", help="the bundle, or a folder with bundle.tar.xz")
    p.add_argument("--out", default="tests/gpu-results")
    p.add_argument("--budget", type=float, default=3600, metavar="SECONDS")
    return p
