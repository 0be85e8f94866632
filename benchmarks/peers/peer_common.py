"""Plumbing shared by every *_peer.py. Standard library only at import time, so that importing it adds
(almost) nothing to the start-up times being measured.

Parent side: run_measured() starts a command, times it on CLOCK_MONOTONIC from just before fork/exec (T0),
waits until every rank has posted a report and is parked, reads the memory of every process in the tree,
releases the ranks, waits for the exit, and measures how busy the machine was with OTHER people's work.
Rank side: post_and_park() writes the rank's report and sleeps until the parent releases it.
Protocol (env): PEER_T0 = T0 in seconds (CLOCK_MONOTONIC), PEER_DIR = a fresh directory; a rank writes
$PEER_DIR/rank<R>.json (atomically, by rename) and polls for $PEER_DIR/release every 5 ms.
"""
import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
MNIST = os.path.join(HERE, "..", "..", "data", "mnist")
HZ = os.sysconf("SC_CLK_TCK")


def decay_groups(model):
    """The parameters for an optimizer that decays weights as Tandem's train does: no biases, and nothing of norms."""
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[parameter.dim() >= 2 and not name.endswith("bias")].append(parameter)
    return [{"params": groups[True]}, {"params": groups[False], "weight_decay": 0.0}]


def now():
    return time.clock_gettime(time.CLOCK_MONOTONIC)


# ---------------------------------------------------------------- machine noise
def _cpu_busy():
    """(busy, steal) seconds since boot, all cores. Busy = all but idle and iowait."""
    f = [int(v) for v in open("/proc/stat").readline().split()[1:]]
    return (sum(f[:8]) - f[3] - f[4]) / HZ, f[7] / HZ


def loadavg():
    return float(open("/proc/loadavg").read().split()[0])


def wait_quiet(max_wait=240.0, load=1.0, log=sys.stderr):
    """Wait until the 1-minute load is <= `load`, or the cores were < 5 % busy for 4 s running
    (our own previous run keeps the load average up for a minute), or max_wait is over."""
    t0, calm = now(), 0
    while now() - t0 < max_wait:
        b0, _ = _cpu_busy()
        time.sleep(1.0)
        b1, _ = _cpu_busy()
        calm = calm + 1 if (b1 - b0) < 0.10 else 0
        if calm >= 4 or (calm >= 2 and loadavg() <= load):
            break
    return {"waited_s": round(now() - t0, 1), "load1": loadavg(), "quiet": calm >= 2}


# ---------------------------------------------------------------- process tree memory
def _children_of(root):
    kids = {}
    for d in os.listdir("/proc"):
        if d.isdigit():
            try:
                s = open(f"/proc/{d}/stat").read()
            except OSError:
                continue
            ppid = int(s[s.rindex(")") + 2:].split()[1])
            kids.setdefault(ppid, []).append(int(d))
    out, todo = [], list(kids.get(root, []))
    while todo:
        p = todo.pop()
        out.append(p)
        todo += kids.get(p, [])
    return out


def _mem(pid):
    r = {}
    try:
        for line in open(f"/proc/{pid}/smaps_rollup"):
            f = line.split()
            if len(f) == 3 and f[2] == "kB":
                r[f[0].rstrip(":")] = int(f[1]) / 1024
        for line in open(f"/proc/{pid}/status"):
            if line.startswith(("VmHWM", "Threads")):
                r[line.split(":")[0]] = int(line.split()[1]) / (1024 if "HWM" in line else 1)
        r["cmd"] = open(f"/proc/{pid}/cmdline").read().replace("\0", " ")[:90]
    except OSError:
        return None
    return r if "Rss" in r else None


def tree_memory():
    """Memory (MiB) of every descendant of this process, summed; ours excluded."""
    procs = {p: m for p in _children_of(os.getpid()) if (m := _mem(p))}
    s = lambda k: round(sum(m.get(k, 0) for m in procs.values()), 1)
    return {
        "procs": len(procs), "threads": int(s("Threads")),
        "rss_hwm_sum_mib": s("VmHWM"), "rss_sum_mib": s("Rss"), "pss_sum_mib": s("Pss"),
        "pss_anon_sum_mib": s("Pss_Anon"), "pss_file_sum_mib": s("Pss_File"), "pss_shmem_sum_mib": s("Pss_Shmem"),
        "uss_sum_mib": round(s("Private_Clean") + s("Private_Dirty"), 1),
        "each": [[m["cmd"], round(m["VmHWM"], 1), round(m["Pss"], 1)] for m in procs.values()],
    }


def foreign_torch_procs():
    """How many processes outside our tree have libtorch_cpu mapped (they make our PSS/USS look smaller)."""
    mine, n = set(_children_of(os.getpid())) | {os.getpid()}, 0
    for d in os.listdir("/proc"):
        if d.isdigit() and int(d) not in mine:
            try:
                n += "libtorch_cpu" in open(f"/proc/{d}/maps").read()
            except OSError:
                pass
    return n


# ---------------------------------------------------------------- parent side
def run_measured(cmd, n_ranks, env=None, timeout=900, mem_hz=0.0, logfile=None):
    """Run `cmd`; return {"ranks": [...], "wall_s", "mem": {...}, "noise": {...}}.
    mem_hz > 0 also samples the tree's PSS that often for pss_peak (disturbs timings: use apart)."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: adopt orphans, so that their CPU time is ours
    d = tempfile.mkdtemp(prefix="peer_")
    e = dict(os.environ)
    e.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", TOKENIZERS_PARALLELISM="false",
             CUDA_VISIBLE_DEVICES="", PYTHONWARNINGS="ignore")
    e.update(env or {})
    e["PEER_DIR"] = d
    log = open(logfile or os.path.join(d, "log"), "w+")
    u0, c0 = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    b0, st0 = _cpu_busy()
    load0 = loadavg()
    t0 = now()
    e["PEER_T0"] = repr(t0)
    p = subprocess.Popen(cmd, env=e, stdout=log, stderr=log, start_new_session=True)
    stop, peak = threading.Event(), [0.0, 0.0]

    def sampler():
        while not stop.wait(1.0 / mem_hz):
            m = tree_memory()
            peak[0], peak[1] = max(peak[0], m["pss_sum_mib"]), max(peak[1], m["rss_sum_mib"])

    th = threading.Thread(target=sampler, daemon=True)
    if mem_hz:
        th.start()
    mem, ok = None, True
    while p.poll() is None:
        if n_ranks and mem is None and sum(os.path.exists(f"{d}/rank{r}.json") for r in range(n_ranks)) == n_ranks:
            stop.set()
            mem = tree_memory()
            mem["foreign_torch_procs"] = foreign_torch_procs()
            open(f"{d}/release", "w").close()
        if now() - t0 > timeout:
            os.killpg(p.pid, signal.SIGKILL)
            ok = False
        time.sleep(0.01 if mem is None else 0.002)
    wall = now() - t0
    stop.set()
    while True:  # adopted orphans
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    b1, st1 = _cpu_busy()
    u1, c1 = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    span = now() - t0
    own = sum(getattr(y, k) - getattr(x, k) for x, y in ((u0, u1), (c0, c1)) for k in ("ru_utime", "ru_stime"))
    ranks = []
    for r in range(n_ranks):
        try:
            ranks.append(json.load(open(f"{d}/rank{r}.json")))
        except OSError:
            ok = False
    if not ok or p.returncode:
        log.seek(0)
        sys.stderr.write(f"FAILED rc={p.returncode} cmd={' '.join(cmd)}\n" + log.read()[-4000:])
        raise SystemExit(1)
    log.close()
    shutil.rmtree(d, ignore_errors=True)
    if mem and mem_hz:
        mem["pss_peak_mib"], mem["rss_peak_simul_mib"] = max(peak[0], mem["pss_sum_mib"]), max(peak[1], mem["rss_sum_mib"])
    return {"ranks": ranks, "t0": t0, "wall_s": round(wall, 3), "cpu_s": round(own, 2), "mem": mem,
            "noise": {"load1_before": load0, "foreign_cores": round(max(0.0, b1 - b0 - own) / span, 3),
                      "steal_s": round(st1 - st0, 2)}}


# ---------------------------------------------------------------- rank side
def t0():
    return float(os.environ["PEER_T0"])


def post_and_park(rank, report):
    d = os.environ["PEER_DIR"]
    with open(f"{d}/.rank{rank}", "w") as f:
        json.dump(report, f)
    os.rename(f"{d}/.rank{rank}", f"{d}/rank{rank}.json")
    while not os.path.exists(f"{d}/release"):
        time.sleep(0.005)


# ---------------------------------------------------------------- data (imports torch, rank side only)
def load_mnist(split="train"):
    """-> (x float32 [n,1,28,28] = (byte/255-0.1307)/0.3081, y int64 [n]) from the IDX .gz files."""
    import gzip

    import numpy as np
    import torch

    p = "train" if split == "train" else "t10k"
    with gzip.open(f"{MNIST}/{p}-images-idx3-ubyte.gz") as f:
        x = np.frombuffer(f.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(f"{MNIST}/{p}-labels-idx1-ubyte.gz") as f:
        y = np.frombuffer(f.read(), np.uint8, offset=8)
    x = torch.from_numpy(x.astype(np.float32)).div_(255).sub_(0.1307).div_(0.3081)
    return x, torch.from_numpy(y.astype(np.int64))


def default_text():
    """/usr/share/common-licenses/*, regular files only, sorted by name, concatenated."""
    d = "/usr/share/common-licenses"
    out = os.path.join(HERE, "text.txt")
    if not os.path.exists(out):
        with open(out + ".tmp", "wb") as f:
            for n in sorted(os.listdir(d)):
                if not os.path.islink(f"{d}/{n}"):
                    f.write(open(f"{d}/{n}", "rb").read())
        os.rename(out + ".tmp", out)
    return out


def stats(v):
    import statistics

    return [round(statistics.median(v), 6), round(min(v), 6), round(max(v), 6)]
