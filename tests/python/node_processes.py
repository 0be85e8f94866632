"""Processes that are the nodes of a training, for the tests beside: started by hand, and on a machine of their own."""

import contextlib
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Process:
    """A program whose output is kept."""

    def __init__(self, command, **environment):
        self.output = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=self.output, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", **environment})

    def __del__(self):
        self.process.kill()
        self.process.wait()
        self.output.close()

    def wait(self, seconds=300):
        return self.process.wait(seconds)

    def text(self):
        size = os.fstat(self.output.fileno()).st_size  # the place to write at is the program's too
        return os.pread(self.output.fileno(), size, 0).decode(errors="replace")

    def await_text(self, pattern, seconds=60):
        """Waits until it has said what `pattern` finds, which is returned."""
        return await_it(lambda: re.search(pattern, self.text()), seconds, self.text)


def await_it(look, seconds=60, explain=lambda: ""):
    """Calls `look` until that gives something, which is returned."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited for {seconds} s in vain: {explain()}")
        time.sleep(0.02)
    return found


def as_own_machine(inside="TANDEM_TEST_INSIDE"):
    """Runs this script anew where it is alone: with processes, a network and mounts of its own, which the kernel ends
    with it whatever happens. Returns why that cannot be; nothing, inside."""
    if os.environ.get(inside):
        pathlib.Path("/run/netns").mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "names", "/run/netns"], check=True)
        ip("link set lo up")
        # Programs that resolve names as for other hosts' find none where there is loopback alone.
        ip("link add outside type veth peer name nowhere")
        for link in ("outside", "nowhere"):
            ip(f"link set {link} up")
        ip("addr add 10.78.0.1/24 dev outside")
        return ""
    if os.geteuid() != 0:
        return "namespaces need root"
    alone = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    try:
        script = "ip link add one type veth peer name other && ip link add switch type bridge"
        tried = subprocess.run([*alone, "sh", "-c", script], capture_output=True, text=True)
    except FileNotFoundError as error:
        return str(error)
    if tried.returncode != 0:
        return f"this machine has no namespaces: {tried.stderr.strip()}"
    os.environ[inside] = "1"
    os.execvp(alone[0], [*alone, sys.executable, *sys.argv])


def ip(arguments):
    subprocess.run(["ip", *arguments.split()], check=True)


class Hosts(contextlib.AbstractContextManager):
    """Hosts a, b, ... with a network interface each, at 10.77.0.1, 10.77.0.2, ..., that hang on one bridge. They know
    each other's names."""

    def __init__(self, names):
        self.folder = tempfile.TemporaryDirectory()
        self.names = names
        ip("netns add switch")
        ip("-n switch link add bridge type bridge")
        ip("-n switch link set bridge up")
        for name in names:
            ip(f"netns add {name}")
            ip(f"-n switch link add to-{name} type veth peer name eth0 netns {name}")
            ip(f"-n switch link set to-{name} master bridge up")
            ip(f"-n {name} addr add {self.address(name)}/24 dev eth0")
            ip(f"-n {name} link set lo up")
            ip(f"-n {name} link set eth0 up")
            self.says_hosts(name, "")

    def address(self, name):
        return f"10.77.0.{1 + self.names.index(name)}"

    def says_hosts(self, name, more):
        """What /etc/hosts of a host says: `more`, then where all are."""
        lines = [more, "127.0.0.1 localhost", *(f"{self.address(other)} {other}" for other in self.names)]
        (pathlib.Path(self.folder.name) / name).write_text("\n".join(lines) + "\n")

    def command(self, name, words):
        """`words` as a command of that host."""
        hosts = pathlib.Path(self.folder.name) / name
        script = f'mount --bind {hosts} /etc/hosts && hostname {name} && exec "$@"'
        return ["ip", "netns", "exec", name, "unshare", "--uts", "--mount", "sh", "-c", script, "sh",
                *(str(word) for word in words)]

    def cut(self, name):
        """Pulls the host's cable, at the other end."""
        ip(self.cut_command(name))

    def cut_command(self, name):
        return f"-n switch link set to-{name} down"

    def __exit__(self, *_):
        for name in [*self.names, "switch"]:
            ip(f"netns del {name}")
        self.folder.cleanup()
