#!/usr/bin/env python3
"""What the programs do with signals, standard streams, pipes and the umask: edges_test.py TRAIN TANDEM [--all].
Without --all a few members of each kind."""
import itertools
import json
import os
import pathlib
import pty
import random
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time

TRAIN, TANDEM = map(os.path.abspath, sys.argv[1:3])
ALL = "--all" in sys.argv
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU]
SMALL = "--cpu 1 --threads-per-rank 1 --hidden 8"
SHORT = SMALL + " --limit-train-samples 400 --batch-size 40 --epochs 1"
PATIENCE = 60  # seconds, for a busy machine; nothing should take so long


def require(holds, *what):
    if not holds:
        raise AssertionError(" | ".join(str(part) for part in what))


def wait_until(condition, process=None):
    end = time.monotonic() + PATIENCE
    while not condition():
        require(time.monotonic() < end, "waited in vain")
        require(process is None or process.poll() is None, "the program has ended early")
        time.sleep(0.01)


def lines_in(path):
    return path.read_text().splitlines() if path.exists() else []


def checkpoints_in(folder):
    return list(folder.glob("checkpoint_*/manifest.json")) if folder.exists() else []


class Training:
    """A training in a folder, in its own process group."""

    def __init__(self, folder, *flags, ignored=None, command=(TRAIN,)):
        self.folder = folder
        self.output = folder / "out"

        def prepare():
            if ignored:
                signal.signal(ignored, signal.SIG_IGN)

        with open(self.output, "w") as out:
            self.process = subprocess.Popen([*command, *map(str, flags)], stdin=subprocess.DEVNULL, stdout=out,
                                            stderr=out, preexec_fn=prepare, start_new_session=True, cwd=folder)

    def end(self):
        try:
            return self.process.wait(PATIENCE), self.output.read_text()
        finally:
            self.process.kill()
            self.process.wait()


# ---- signals

FILES = ["--checkpoint-dir", "c", "--save-weights", "w", "--log-json", "log"]
ENDLESS = ["--cpu", "2", "--threads-per-rank", "1", "--hidden", "8", "--epochs", "100000", "--no-progress"]


def in_training(folder):
    training = Training(folder, *ENDLESS, *FILES)
    wait_until(lambda: len(lines_in(folder / "log")) >= 3, training.process)
    return training


def in_saving(folder):
    training = Training(folder, *ENDLESS, *FILES, "--save-every", 1, "--total-limit", 2)
    wait_until(lambda: checkpoints_in(folder / "c"), training.process)
    return training


def in_evaluating(folder):
    (folder / "text").write_bytes(b"Pigs may fly, if they have wings.\n" * 60_000)
    training = Training(folder, "--cpu", 2, "--model", "gpt", "--data-file", "text", "--layers", 2, "--width", 64,
                        "--max-steps", 2, "--no-progress", *FILES)
    wait_until(lambda: (folder / "w").exists() and checkpoints_in(folder / "c"), training.process)
    return training


def in_start(folder):
    os.mkfifo(folder / "pipe")  # that nobody reads
    training = Training(folder, *ENDLESS, "--log-json", "pipe", "--save-weights", "w")
    status = pathlib.Path(f"/proc/{training.process.pid}/status")
    wait_until(lambda: "SigBlk:\t0000000000000000" not in status.read_text(), training.process)
    time.sleep(0.3)
    return training


PHASES = {"start": in_start, "training": in_training, "saving": in_saving, "evaluating": in_evaluating}


def is_saved(folder, output):
    require(checkpoints_in(folder / "c"), output)
    require((folder / "w").stat().st_size > 1000, output)
    require("final" in json.loads(lines_in(folder / "log")[-1]), output)
    require(not list((folder / "c").glob(".*")), os.listdir(folder / "c"))


def test_stop(folder, phase, number, times):
    training = PHASES[phase](folder)
    for _ in range(times):
        training.process.send_signal(number)
    code, output = training.end()
    require(code == 130, code, output)
    if phase == "start":
        require(output == f"train: interrupted by {signal.Signals(number).name}\n", output)
        require(not (folder / "w").exists())
        return
    is_saved(folder, output)
    require("interrupted after step" in output and "saved to c/checkpoint_" in output, output)
    require("again" not in output, output)


def test_later_signals(folder, first, second, ends):
    """In an update that takes long."""
    training = Training(folder, "--cpu", 1, "--threads-per-rank", 1, "--hidden", "512,512", "--epochs", 1,
                        "--batch-size", 1, "--no-progress", "--gradient-accumulation-steps", 1000000, *FILES)
    wait_until(lambda: "training mlp" in training.output.read_text(), training.process)
    time.sleep(0.5)
    training.process.send_signal(first)
    time.sleep(1.3)
    training.process.send_signal(second)
    if not ends:
        time.sleep(0.5)
        require(training.process.poll() is None, training.output.read_text())
        training.process.kill()
        training.process.wait()
        return
    code, output = training.end()
    require(code == 130, code, output)
    require(f"{signal.Signals(second).name} again: ends at once; lost: 0 updates, all that were made: there is no "
            "checkpoint; the weights are not in w\n" in output, output)


def test_ignored(folder, number):
    training = Training(folder, *SMALL.split(), "--max-steps", 400, "--no-progress", *FILES,
                        ignored=number)
    wait_until(lambda: len(lines_in(folder / "log")) >= 3, training.process)
    for _ in range(2):
        training.process.send_signal(number)
    code, output = training.end()
    require(code == 0 and "test accuracy" in output, code, output)
    require(len(lines_in(folder / "log")) == 401)


def test_timeout(folder, name):
    command = ("timeout", "-s", name, "3", TRAIN)
    code, output = Training(folder, *ENDLESS, *FILES, command=command).end()
    require(code == 124, code, output)
    is_saved(folder, output)


def test_any_moment(folder, seed):
    """Also between the phases: all is saved, or nothing is there."""
    training = Training(folder, *ENDLESS, *FILES)
    time.sleep(random.Random(seed).uniform(0, 0.6))
    training.process.send_signal(signal.SIGTERM)
    training.process.send_signal(signal.SIGINT)
    code, output = training.end()
    if (folder / "w").exists():
        require(code == 130, code, output)
        is_saved(folder, output)
    else:
        # Before the program's main it is the kernel that ends it.
        require(code == 130 and "interrupted" in output or code == -signal.SIGTERM and not output, code, output)
        require(not checkpoints_in(folder / "c"), output)


class Terminal:
    """A training in the foreground of a terminal of its own."""

    def __init__(self, folder):
        self.shown, self.code = b"", None
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execv(TRAIN, ["train", *(flag for flag in ENDLESS if flag != "--no-progress"), *FILES])

    def close(self):
        os.close(self.fd)
        self.fd = -1

    def read(self):
        while self.fd >= 0 and select.select([self.fd], [], [], 0)[0]:
            try:
                self.shown += os.read(self.fd, 65536)
            except OSError:  # it has ended
                return

    def has_ended(self):
        self.read()
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.code = os.waitstatus_to_exitcode(status)
        return pid != 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        if self.fd >= 0:
            self.close()


def test_terminal(folder, what):
    with Terminal(folder) as terminal:
        log = folder / "log"
        wait_until(lambda: len(lines_in(log)) >= 3)
        if what == "closes":
            terminal.close()
        elif what == "Ctrl-C":
            os.write(terminal.fd, b"\x03\x03")
        else:  # Ctrl-S: training goes on, though what it shows does not
            os.write(terminal.fd, b"\x13")
            time.sleep(0.5)
            seen = len(lines_in(log))
            wait_until(lambda: len(lines_in(log)) > seen + 200)
            os.kill(terminal.pid, signal.SIGTERM)
            wait_until(lambda: "final" in lines_in(log)[-1])
            os.write(terminal.fd, b"\x11")
        wait_until(terminal.has_ended)
        require(terminal.code == 130, terminal.code, terminal.shown[-500:])
        is_saved(folder, terminal.shown[-500:])


def test_tool_signal(folder, number, times):
    tool = Training(folder, "bench", "allreduce", "--ranks", "2", "--sizes", ",".join(["64M"] * 200),
                    command=(TANDEM,))
    wait_until(lambda: "67108864" in tool.output.read_text(), tool.process)
    for _ in range(times):
        tool.process.send_signal(number)
    code, output = tool.end()
    require(code == 130 and output.endswith("tandem: interrupted\n"), code, output)


# ---- standard streams

def shell(folder, command, **more):
    with open(folder / "stdout", "w+") as out, open(folder / "stderr", "w+") as err:
        process = subprocess.Popen(["bash", "-c", command], cwd=folder, stdin=subprocess.DEVNULL, stdout=out,
                                   stderr=err, start_new_session=True, **more)
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            code = "it hangs"
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        err.seek(0)
        return code, out.read(), err.read()


def test_closed_streams(folder, closed):
    code, out, err = shell(folder, f"{TRAIN} {SHORT} --log-with jsonl,csv,tensorboard --log-every 1 --log-json log "
                                   f"--save-weights w --checkpoint-dir c --report --project-dir run {closed}")
    require(code == 0, code, out, err)
    for name in ["log", "run/log.jsonl"]:
        for line in lines_in(folder / name):
            json.loads(line)
    require(all(line.count(",") == 3 for line in lines_in(folder / "run/scalars.csv")))
    for tool in [["env"], ["checkpoint", "verify", "c/checkpoint_0"], ["report", "run"], ["--help"], ["man"],
                 ["checkpoint", "convert", "w", "d.safetensors"], ["config", "new.json"]]:
        code, out, err = shell(folder, f"{TANDEM} {' '.join(tool)} {closed}")
        require(code == 0 or tool[0] == "config", tool, code, out, err)
    code, out, err = shell(folder, f"{TANDEM} checkpoint verify d.safetensors {closed}")
    require(code == 0, code, out, err)


OUTPUTS = {TANDEM: ["--help", "env", "env --json", "plan --help", "completion bash", "completion zsh",
                    "completion fish", "man", "man train", "bench --help", "estimate --model mlp",
                    "plan --memory 1GB --json", "checkpoint show c/checkpoint_0", "checkpoint verify c/checkpoint_0",
                    "checkpoint show c/checkpoint_0 --json", "checkpoint diff c/checkpoint_0 c/checkpoint_0",
                    "diff c c", "diff c/checkpoint_0 c --json",
                    "report run", "test --ranks 1", "bench allreduce --sizes 1K", "nonsense --json"],
           TRAIN: ["--help", SHORT]}


def test_full_output(folder):
    shell(folder, f"{TRAIN} {SHORT} --checkpoint-dir c --log-with jsonl --project-dir run --quiet")
    for program, commands in OUTPUTS.items():
        for command in commands if ALL else commands[:3]:
            good, out, err = shell(folder, f"{program} {command}")
            require(out or good == 0, program, command, err)
            code, _, err = shell(folder, f"{program} {command} >/dev/full")
            failed = 2 if command.startswith("diff") else 1  # whose 1 says that two differ
            require(code == max(good, failed), program, command, code, err)
            require("standard output cannot be written" in err, program, command, err)


def test_broken_pipes(folder):
    """A training goes on without those who read what it says."""
    code, out, err = shell(folder, f"({TRAIN} {SHORT} --save-weights w 2>err; echo $? >code) | sleep 0")
    require((folder / "w").exists() and lines_in(folder / "code") == ["1"], err)
    require("standard output cannot be written: Broken pipe" in (folder / "err").read_text())
    code, out, err = shell(folder, f"({TRAIN} {SHORT} --report --log-with jsonl --project-dir run 2>&1) | head -1")
    require((folder / "run/report.html").exists(), err)


# ---- where --log-json goes

def is_whole(lines, updates=10):
    records = [json.loads(line) for line in lines]
    require([r.get("step") for r in records[:-1]] == list(range(1, updates + 1)) and "final" in records[-1], lines)


def other_user():
    """Root may open anything, so targets are tried as another user, if that one gets at the program."""
    user = dict(user=65534, group=65534, extra_groups=[]) if os.getuid() == 0 else {}
    try:
        subprocess.run([TRAIN, "--version"], check=True, capture_output=True, **user)
    except (PermissionError, subprocess.CalledProcessError):
        return {}
    return user


def test_log_targets(folder):
    user = other_user()
    for name, command in {"link": "ln -s real link; {} link; cp real got",
                          "dangling": "ln -s new here; {} here; cp new got",
                          "fifo": "mkfifo f; cat f >got & {} f; wait", "device": "{} /dev/null && touch got",
                          "substitution": "{} >(cat >got); wait $!; sleep 0.2", "stdout": "{} /dev/stdout --quiet >got",
                          "piped": "{} /dev/stdout --quiet | cat >got", "fd": "{} /dev/fd/5 5>got",
                          "linked stdout": "ln -s /dev/stdout s; {} s --quiet | cat >got",
                          "same file": "{} got --quiet >got",
                          "appended": "echo '{{}}' >got; {} /dev/stdout --quiet >>got; sed -i 1d got",
                          "stderr": "{} /dev/stderr --quiet 2>got"}.items():
        here = folder / name.replace(" ", "-")
        here.mkdir()
        here.chmod(0o777)
        code, out, err = shell(here, command.format(f"{TRAIN} {SHORT} --no-progress --log-json") + "; exit $?", **user)
        require(code == 0, name, code, out, err)
        if name != "device":
            is_whole(lines_in(here / "got"))
    require((folder / "link/link").is_symlink() and (folder / "dangling/here").is_symlink())
    require(stat.S_ISCHR(os.stat("/dev/null").st_mode))


def test_log_mixed_with_output(folder):
    code, out, err = shell(folder, f"{TRAIN} {SHORT} --no-progress --log-json /dev/stdout >got")
    lines = lines_in(folder / "got")
    require(code == 0 and lines[0].startswith("training mlp") or lines[-1].startswith("test accuracy"), lines)
    is_whole([line for line in lines if line.startswith("{")])
    require(len(lines) == 13, lines)


def test_log_reader_goes(folder):
    code, out, err = shell(folder, f"mkfifo f; head -1 f >got & {TRAIN} {SMALL} --max-steps 400 --no-progress "
                                   " --log-json f --save-weights w")
    require(code == 1 and "Broken pipe; training goes on" in err and "test accuracy" in out, code, out, err)
    require((folder / "w").exists() and lines_in(folder / "got"), err)


def test_log_reader_takes_nothing(folder):
    """It stops at a signal all the same, and until then waits for nobody."""
    os.mkfifo(folder / "pipe")
    reader = None
    training = Training(folder, *ENDLESS, "--log-json", "pipe", "--save-weights", "w", "--checkpoint-dir", "c",
                        "--save-every", 2000)
    try:
        reader = os.open(folder / "pipe", os.O_RDONLY)  # returns when it is opened
        wait_until(lambda: checkpoints_in(folder / "c"), training.process)
        training.process.send_signal(signal.SIGTERM)
        code, output = training.end()
    finally:
        os.close(reader)
    require(code == 130 and "its reader has not taken all" in output, code, output)
    require("interrupted after step" in output and (folder / "w").exists(), output)


def test_log_disk_fills(folder):
    disk = folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True).returncode != 0:
        print("a small disk cannot be mounted here: not tested")
        return
    try:
        (disk / "ballast").write_bytes(b"x" * 56_000)
        training = Training(folder, *SMALL.split(), "--epochs", 100000, "--no-progress", "--log-json",
                            "disk/log")
        wait_until(lambda: "No space left on device; training goes on" in training.output.read_text(),
                   training.process)
        (disk / "ballast").unlink()
        size = (disk / "log").stat().st_size
        wait_until(lambda: (disk / "log").stat().st_size > size, training.process)
        training.process.send_signal(signal.SIGINT)
        code, output = training.end()
        lines = [json.loads(line) for line in lines_in(disk / "log")]
        require([line["step"] for line in lines[:-1]] == list(range(1, len(lines))) or code == 1, code, output)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_log_is_continued(folder):
    flags = [*SHORT.split(), "--no-progress", "--checkpoint-dir", "c", "--save-every", "2"]
    (folder / "there").mkdir()
    os.symlink("there/log", folder / "log")
    require(Training(folder, *flags, "--max-steps", 6, "--log-json", "log").end()[0] == 0)
    with open(folder / "there/log", "a") as log:
        log.write('{"step": 7, "lo')
    code, output = Training(folder, *flags, "--log-json", "log", "--resume", "c/checkpoint_1").end()
    require(code == 0 and (folder / "log").is_symlink(), output)
    is_whole(lines_in(folder / "log"))


# ---- outputs that fail

ALL_FILES = {"weights": ["--save-weights", "@/w"], "checkpoints": ["--checkpoint-dir", "@/c"], "log": ["--log-json", "@/log"],
             "run": ["--log-with", "jsonl", "--log-every", 1, "--project-dir", "@/run", "--report"],
             "profile": ["--profile", "@/p", "--profile-steps", "2:3"]}


def is_there(folder, output):
    if output == "weights":
        return (folder / "w").exists()
    if output == "checkpoints":
        return bool(checkpoints_in(folder / "c"))
    if output == "log":
        return "final" in (lines_in(folder / "log") or [""])[-1]
    if output == "run":
        end = json.loads((lines_in(folder / "run/log.jsonl") or ["{}"])[-1])
        return end.get("status") == "interrupted" and (folder / "run/report.html").exists()
    return (folder / "p/trace.json").exists()


def test_one_output_fails(folder, failing):
    """Its place goes while training goes on: all the others are written, and it is told."""
    (folder / "gone").mkdir()
    flags = [str(flag).replace("@", "gone" if output == failing else ".")
             for output, its in ALL_FILES.items() for flag in its]
    training = Training(folder, *ENDLESS, *flags)
    log = folder / ("gone/log" if failing == "log" else "log")
    wait_until(lambda: len(lines_in(log)) > 5, training.process)
    shutil.rmtree(folder / "gone")
    training.process.send_signal(signal.SIGTERM)
    code, output = training.end()
    if failing == "checkpoints":  # whose folder is made again
        require(checkpoints_in(folder / "gone/c") and code == 130, code, output)
    else:
        # Whoever ends a training ends the log's reader too.
        require(code == (130 if failing == "log" else 1), code, output)
        names = {"weights": "--save-weights", "log": "--log-json", "run": "--report", "profile": "--profile"}
        require(f"{names[failing]} " in output and "gone/" in output, output)
    for other in ALL_FILES:
        require(other == failing or is_there(folder, other), other, output)


def test_limited_files(folder):
    """A process may have a limit of the size of its files: no signal ends it."""
    code, out, err = shell(folder, f"ulimit -f 8; {TRAIN} {SHORT} --no-progress --log-json log --save-weights w "
                                   "--checkpoint-dir c --log-with jsonl --project-dir run")
    require(code == 1 and "w: cannot be written: File too large" in err and "test accuracy" in out, code, out, err)
    require("final" in lines_in(folder / "log")[-1] and not (folder / "w").exists())
    require(not list(folder.glob("*w*-*")) and not list(folder.glob(".*w*")), os.listdir(folder))
    shell(folder, f"{TRAIN} {SHORT} --save-weights w --quiet")
    for to in ["new.safetensors", "new"]:
        code, out, err = shell(folder, f"ulimit -f 8; {TANDEM} checkpoint convert w {to}")
        require(code == 1 and "File too large" in err, code, out, err)
        require(not [name for name in os.listdir(folder) if "new" in name], os.listdir(folder))


def test_empty_values(folder):
    """As of a shell's variable that is not set."""
    for flag in ["save-weights", "log-json", "checkpoint-dir", "resume", "init-weights", "project-dir", "profile",
                 "data-dir", "data-file", "val-file", "config"]:
        code, out, err = shell(folder, f"{TRAIN} {SHORT} --{flag} ''")
        require(code == 2 and f"--{flag}: " in err and not out, flag, code, out, err)
    for command in ["report run -o ''", "checkpoint convert w ''", "checkpoint show ''", "config ''"]:
        code, out, err = shell(folder, f"{TANDEM} {command}")
        require(code == 2 and "is empty" in err, command, code, out, err)
    require(sorted(os.listdir(folder)) == ["stderr", "stdout"], os.listdir(folder))


def large_weights(path, tensors=64, megabytes=16):
    size = megabytes << 20
    header = json.dumps({f"t{i}": {"dtype": "F32", "shape": [size // 4], "data_offsets": [i * size, (i + 1) * size]}
                         for i in range(tensors)}).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + tensors * size)


def test_tool_ended_while_it_writes(folder, to, number):
    """Nothing stays of what was not finished; of a killed one until somebody writes there again."""
    large_weights(folder / "large.safetensors")
    flags = ["checkpoint", "convert", "large.safetensors", to, "--max-shard-size", "100MB"]
    tool = Training(folder, *flags, command=(TANDEM,))
    wait_until(lambda: list(folder.glob(".tandem-*")), tool.process)
    tool.process.send_signal(number)
    code, output = tool.end()
    there = ["large.safetensors", "out"]
    if number == signal.SIGKILL:
        require(len(os.listdir(folder)) == 3, os.listdir(folder))
        large_weights(folder / "large.safetensors", 1, 1)
        code, output = Training(folder, *flags, command=(TANDEM,)).end()
        require(code == 0, code, output)
        there.append(to)
    else:
        require(code == 130, code, output)
    require(sorted(os.listdir(folder)) == sorted(there), os.listdir(folder))


def test_tool_leaves_no_folder(folder, command, number, again):
    """Of those that write where the user, or TMPDIR, says; also when a second signal ends it at once."""
    (folder / "here").mkdir()
    tool = Training(folder, *command.split(), command=("env", f"TMPDIR={folder}/here", TANDEM))
    wait_until(lambda: os.listdir(folder / "here"), tool.process)
    tool.process.send_signal(number)
    if again:
        time.sleep(1.1)
        tool.process.send_signal(number)
    code, output = tool.end()
    require(code in [130, 0] and not os.listdir(folder / "here"), code, output, os.listdir(folder / "here"))
    require(code == 130 or "test" in command, code, output)


def test_append_only(folder):
    """As records are kept: what only appends may, and the rest is refused before any work."""
    for name in ["log", "w", "full"]:
        (folder / name).write_text("" if name == "log" else "old")
    (folder / "c").mkdir()
    (folder / "run").mkdir()
    (folder / "run/log.jsonl").touch()
    if subprocess.run(["chattr", "+a", "log", "w", "full", "c", "run/log.jsonl"], cwd=folder,
                      capture_output=True).returncode != 0:
        print("nothing can be made append-only here: not tested")
        return
    try:
        code, out, err = shell(folder, f"{TRAIN} {SHORT} --log-json log --log-with jsonl --project-dir run --quiet")
        require(code == 0 and "final" in lines_in(folder / "log")[-1] and lines_in(folder / "run/log.jsonl"), out, err)
        for flags in ["--save-weights w", "--log-json full", "--checkpoint-dir c"]:
            code, out, err = shell(folder, f"{TRAIN} {SHORT} {flags}")
            require(code == 2 and flags.split()[0] in err and "append-only (chattr +a)" in err, code, err)
            require("accuracy" not in out, out)
    finally:
        subprocess.run(["chattr", "-a", "log", "w", "full", "c", "run/log.jsonl"], cwd=folder, check=True)
    require((folder / "w").read_text() == (folder / "full").read_text() == "old" and not os.listdir(folder / "c"))


def test_no_random_device(folder):
    """LibTorch needs /dev/urandom: who draws from it is told, and what does not goes on."""
    hidden = "mount -t tmpfs none /dev && exec"
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/dev"], capture_output=True).returncode:
        print("nothing can be mounted here: not tested")
        return
    code, out, err = shell(folder, f"unshare -m bash -c '{hidden} {TRAIN} {SHORT}'")
    require(code == 1 and err.endswith("Unable to open /dev/urandom\n"), code, out, err)
    code, out, err = shell(folder, f"unshare -m bash -c '{hidden} {TANDEM} env'")
    require(code == 0 and "ranks" in out and not err, code, out, err)


def test_odd_paths(folder, name):
    flags = [str(flag).replace("@", "./" + name) for its in ALL_FILES.values() for flag in its]
    (folder / name).mkdir()
    for epochs in [1, 2]:
        code, output = Training(folder, *SHORT.split()[:-1], epochs, "--quiet", *flags, "--resume", "auto").end()
        require(code == 0 and not output, code, output)
    for path in [*(folder / name).glob("*/*.json*"), *(folder / name).glob("c/*/*.json")]:
        for line in lines_in(path) if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(line)
    require(json.loads((folder / name / "p/trace.json").read_text())["traceEvents"])
    require([path.name for path in (folder / name / "p").iterdir()] == ["trace.json"])


def test_no_proc(folder):
    """As in some sandboxes."""
    hidden = f"mount -t tmpfs none /proc && {TRAIN} {SHORT[:-1]}"
    files = "--quiet --checkpoint-dir c --save-weights w --resume auto"
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/proc"], capture_output=True).returncode:
        print("nothing can be mounted here: not tested")
        return
    for epochs in [1, 2]:
        code, out, err = shell(folder, f"unshare -m bash -c '{hidden}{epochs} {files}'")
        require(code == 0, code, out, err)
    code, out, err = shell(folder, f"unshare -m bash -c 'mount -t tmpfs none /proc && {TANDEM} checkpoint verify c/checkpoint_1'")
    require(code == 0, code, out, err)
    require(len(checkpoints_in(folder / "c")) == 2 and (folder / "w").exists())


# ---- umask

def test_umask(folder, mask):
    code, out, err = shell(folder, f"""umask {mask:03o}
{TRAIN} {SHORT} --no-progress --log-json log --save-weights w --checkpoint-dir a/c --save-every 4 --total-limit 2 \
  --log-with jsonl,csv,tensorboard --log-every 1 --report --project-dir b/run --profile p --profile-steps 2:3 &&
{TANDEM} checkpoint convert w w.safetensors && {TANDEM} checkpoint convert w split --max-shard-size 20KB &&
{TANDEM} report b/run -o report.html && (yes "" | head -40 | {TANDEM} config t.json || [ -e t.json ])""")
    require(code == 0, code, out, err)
    seen = 0
    for path in folder.rglob("*"):
        if path.is_symlink() or path.name in ["stdout", "stderr"]:  # the latter are this test's
            continue
        wanted = (0o777 if path.is_dir() else 0o666) & ~mask
        require(stat.S_IMODE(path.stat().st_mode) == wanted, path, oct(path.stat().st_mode), oct(wanted))
        seen += 1
    require(seen > 25, seen)


def cases():
    for phase, number, times in itertools.product(PHASES, SIGNALS, [1, 2]):
        few = number == signal.SIGTERM and (times == 2 or phase == "start")
        yield few or (phase, number, times) == ("training", signal.SIGUSR1, 1), test_stop, (phase, number, times)
    for first, second in itertools.product(SIGNALS, SIGNALS):
        people = {signal.SIGINT, signal.SIGTERM}
        ends = second != signal.SIGXCPU and (first == second or {first, second} == people)
        few = (first, second) in [(signal.SIGTERM, signal.SIGTERM), (signal.SIGUSR1, signal.SIGTERM)]
        yield few, test_later_signals, (first, second, ends)
    for number in SIGNALS:
        yield number == signal.SIGINT, test_ignored, (number,)
        yield number == signal.SIGTERM, test_tool_signal, (number, 2)
    for seed in range(40):
        yield seed == 0, test_any_moment, (seed,)
    for what in ["closes", "Ctrl-C", "is stopped"]:
        yield True, test_terminal, (what,)
    for name in ["TERM", "INT", "HUP", "USR1"]:
        yield name == "TERM", test_timeout, (name,)
    for count in [1, 2, 3]:
        for closed in itertools.combinations(["<&-", ">&-", "2>&-"], count):
            yield count == 3, test_closed_streams, (" ".join(closed),)
    for mask in [0o077, 0o027, 0o002, 0o022]:
        yield mask == 0o077, test_umask, (mask,)
    for failing in ALL_FILES:
        yield failing in ["weights", "profile", "log"], test_one_output_fails, (failing,)
    for to, number in itertools.product(["to.safetensors", "to"], [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]):
        yield (to, number) in [("to.safetensors", signal.SIGTERM), ("to.safetensors", signal.SIGKILL)], \
            test_tool_ended_while_it_writes, (to, number)
    for command, again in itertools.product(["test --ranks 2", "bench checkpoint here --millions 60"], [False, True]):
        for number in [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]:
            yield (command[0], again, number) == ("t", False, signal.SIGTERM), test_tool_leaves_no_folder, \
                (command, number, again)
    for name in ['a"b\\c\n\td', "\x1b[31m", "b" * 255, "\udcff\udcfe", "<script>", "ü", "-dash", "$(touch x)"]:
        yield name.startswith("a"), test_odd_paths, (name,)
    for test in [test_limited_files, test_append_only, test_no_random_device, test_no_proc, test_empty_values, test_full_output, test_log_targets, test_log_mixed_with_output, test_log_reader_goes,
                 test_log_reader_takes_nothing, test_log_is_continued, test_log_disk_fills, test_broken_pipes]:
        yield True, test, ()


def main():
    only = [argument for argument in sys.argv[3:] if argument != "--all"]
    failed = ran = 0
    for few, test, arguments in cases():
        if not (few or ALL) or (only and test.__name__ not in only):
            continue
        shown = f"{test.__name__}{arguments}"
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="tandem-edges-") as folder:
            os.chmod(folder, 0o755)
            ran += 1
            try:
                test(pathlib.Path(folder), *arguments)
                print(f"{shown}: passed in {time.monotonic() - began:.1f} s", flush=True)
            except Exception as error:  # the others are of interest too
                failed += 1
                print(f"{shown}: FAILED: {type(error).__name__}: {error}", flush=True)
    print(f"{ran - failed} of {ran} passed")
    return 1 if failed or not ran else 0


if __name__ == "__main__":
    sys.exit(main())
