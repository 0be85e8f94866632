"""train as one of several processes, started by hand and by torchrun, against one process with as many ranks.

Usage: nodes_test.py TRAIN MNIST [--long]"""

import contextlib
import os
import pathlib
import random
import re
import signal
import socket
import sys
import tempfile
import time
import unittest

from node_processes import Process, await_it, free_port

TRAIN, MNIST = sys.argv[1:3]
LONG = "--long" in sys.argv
TORCHRUN = str(pathlib.Path(sys.executable).parent / "torchrun")
LONGER = ["--epochs", 60, "--eval-every", 0]  # so that it can be killed several times
FLAGS = ["--data-dir", MNIST, "--limit-train-samples", "6000", "--threads-per-rank", "1", "--no-progress"]


def by_hand(nodes, *flags, own=None):
    """Starts a process for each number of ranks in `nodes`, with flags of its own if there are `own`."""
    head = f"127.0.0.1:{free_port()}"
    return [Process([TRAIN, *FLAGS, "--cpu", ranks, "--nodes", len(nodes), "--node", node, "--head", head, *flags,
                     *(own[node] if own else [])]) for node, ranks in enumerate(nodes)]


def by_torchrun(nodes, way, *flags, restarts=0):
    port = free_port()
    processes = []
    for node in range(nodes):
        rendezvous = (["--node-rank", node, "--master-addr", "127.0.0.1", "--master-port", port] if way == "static" else
                      ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test"])
        processes.append(Process([TORCHRUN, "--nnodes", nodes, "--nproc-per-node", 1, "--no-python", "--max-restarts",
                                  restarts, *rendezvous, TRAIN, *FLAGS, "--cpu", 1, *flags]))
    return processes


def kill_workers_of(agent):
    """Kills what torchrun's agent has started, and returns how many processes that were."""
    killed = 0
    for children in pathlib.Path(f"/proc/{agent}/task").glob("*/children"):
        for child in children.read_text().split():
            if TRAIN.encode() in pathlib.Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), signal.SIGKILL)
                killed += 1
    return killed


def listening_ports(process):
    """The TCP ports at which a process listens."""
    sockets = set()
    for file in pathlib.Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            sockets.add(os.readlink(file))
    ports = []
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                ports.append(int(fields[1].rsplit(":", 1)[1], 16))
    return ports


def memory_of(process):
    """What a process holds in memory, in MiB; 0 for one that has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return int(pathlib.Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096 >> 20
    return 0


def step_of(text):
    return re.search(r"interrupted after step (\d+)", text)


class Nodes(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def alone(self, ranks, *flags):
        path = self.folder / "alone.safetensors"
        one = Process([TRAIN, *FLAGS, "--cpu", ranks, "--save-weights", path, *flags])
        self.assertEqual(one.wait(), 0, one.text())
        return path.read_bytes()

    def end_well(self, processes):
        for process in processes:
            self.assertEqual(process.wait(), 0, process.text())

    def test_any_nodes_have_the_bits_of_one_process(self):
        weights = self.folder / "weights.safetensors"
        for nodes in ([1, 1], [1, 2], [1, 1, 1])[:3 if LONG else 2]:
            with self.subTest(nodes=nodes):
                alone = self.alone(sum(nodes), "--epochs", 1)
                processes = by_hand(nodes, "--epochs", 1, "--save-weights", weights)
                self.end_well(processes)
                self.assertEqual(weights.read_bytes(), alone)
                self.assertIn("test accuracy", processes[0].text())
                self.assertEqual([one.text() for one in processes[1:]], [""] * (len(nodes) - 1))

    def test_rank_0_reads_for_all_nodes(self):
        weights = self.folder / "weights.safetensors"
        flags = ["--epochs", 1, "--dispatch-batches", "--workers", 1]
        alone = self.alone(2, *flags)
        self.end_well(by_hand([1, 1], *flags, "--save-weights", weights))
        self.assertEqual(weights.read_bytes(), alone)

    def test_torchrun_starts_them(self):
        alone = self.alone(2, "--epochs", 1)
        for way in ("c10d", "static")[:2 if LONG else 1]:  # static is what is restarted below
            with self.subTest(way=way):
                weights = self.folder / f"{way}.safetensors"
                self.end_well(by_torchrun(2, way, "--epochs", 1, "--save-weights", weights))
                self.assertEqual(weights.read_bytes(), alone)

    def test_what_is_left_over_of_a_launcher_means_nothing(self):
        one = Process([TRAIN, *FLAGS, "--cpu", 1, "--epochs", 1, "--max-steps", 1], RANK="1", MASTER_ADDR="nowhere")
        self.assertEqual(one.wait(), 0, one.text())

    def test_a_killed_node_ends_the_others_which_name_it(self):
        for killed in (0, 1):
            with self.subTest(killed=killed):
                run = self.folder / f"run{killed}"
                processes = by_hand([1, 1], "--epochs", 100, "--checkpoint-dir", run, "--save-every", 10)
                self.await_checkpoint(run)
                processes[killed].process.kill()
                other = processes[1 - killed]
                self.assertEqual(other.wait(30), 1, other.text())
                self.assertIn(f"node {killed} (host ", other.text())

    def await_checkpoint(self, folder):
        await_it(lambda: list(folder.glob("checkpoint_*")))

    def test_a_signal_to_one_node_stops_all_at_one_step_and_they_go_on(self):
        for told in (1, 0)[:2 if LONG else 1]:
            with self.subTest(told=told):
                alone = self.alone(2, "--epochs", 6)
                weights, checkpoints = (self.folder / f"{name}{told}" for name in ("weights", "run"))
                flags = ["--epochs", 6, "--save-weights", weights, "--checkpoint-dir", checkpoints]
                processes = by_hand([1, 1], *flags, "--save-every", 10)
                self.await_checkpoint(checkpoints)
                processes[told].process.send_signal(signal.SIGTERM)
                self.assertEqual([one.wait(30) for one in processes], [130, 130], [one.text() for one in processes])
                self.assertTrue(step_of(processes[0].text()), processes[0].text())
                self.end_well(by_hand([1, 1], *flags, "--resume", "auto"))
                self.assertEqual(weights.read_bytes(), alone)

    def test_on_disks_of_their_own_the_first_node_has_the_checkpoint_and_its_flags(self):
        flags = ["--epochs", 2, "--hidden", 64, "--lr", 0.002]
        alone = self.alone(2, *flags)
        weights, disks = self.folder / "weights", [self.folder / name for name in "ab"]
        own = lambda *more: [["--checkpoint-dir", disk, *more] for disk in disks]
        self.end_well(by_hand([1, 1], *flags, "--max-steps", 50, own=own()))
        self.assertEqual(list(disks[1].glob("checkpoint_*")), [])
        # Neither width nor learning rate are said again.
        processes = by_hand([1, 1], "--epochs", 2, "--save-weights", weights, own=own("--resume", "auto"))
        self.end_well(processes)
        self.assertIn("goes on from step 50", processes[0].text())
        self.assertEqual(weights.read_bytes(), alone)
        for where, codes, says in (("checkpoint_0", [0, 0], "goes on from step 50"),
                                   ("none", [2, 1], f"--resume '{disks[0]}/none' is no directory")):
            with self.subTest(where=where):
                processes = by_hand([1, 1], "--epochs", 2, "--resume", disks[0] / where)
                self.assertEqual([one.wait() for one in processes], codes, [one.text() for one in processes])
                for one, code in zip(processes, codes):
                    if code or one is processes[0]:
                        self.assertIn(says, one.text())

    def test_what_is_wrong_on_one_node_ends_all_which_say_so(self):
        processes = by_hand([1, 1], "--epochs", 1, own=[[], ["--init-weights", self.folder / "none.safetensors"]])
        for process in processes:
            self.assertNotEqual(process.wait(30), 0)
            self.assertIn("none.safetensors", process.text())

    def test_torchrun_restarts_what_is_killed_again_and_again_and_the_bits_are_the_same(self):
        alone = self.alone(2, *LONGER)
        for way in ("static", "c10d") * 5 if LONG else ("static",):
            kills = 20
            while kills > 0:
                with self.subTest(way=way, kills=kills):
                    kills -= self.check_kills(way, kills, alone)

    def check_kills(self, way, most, alone):
        """Kills nodes at random until it was `most` times or the training ends; returns how often."""
        seed = random.randrange(10**6)
        chance = random.Random(seed)
        run = self.folder / f"{way}{seed}"
        weights = run / "weights.safetensors"
        run.mkdir()
        agents = by_torchrun(2, way, *LONGER, "--checkpoint-dir", run, "--save-every", 40, "--total-limit", 2,
                             "--resume", "auto", "--save-weights", weights, restarts=5 * most)
        kills = 0
        while kills < most and all(agent.process.poll() is None for agent in agents):
            time.sleep(chance.uniform(0, 1))
            kills += kill_workers_of(chance.choice(agents).process.pid)
        self.end_well(agents)
        self.assertEqual(weights.read_bytes(), alone, f"seed {seed}")
        return kills

    def test_what_other_programs_send_to_its_ports_does_no_harm(self):
        alone = self.alone(2, "--epochs", 8)
        weights = self.folder / "weights.safetensors"
        processes = by_hand([1, 1], "--epochs", 8, "--checkpoint-dir", self.folder / "run", "--save-every", 5,
                            "--save-weights", weights)
        self.await_checkpoint(self.folder / "run")
        chance = random.Random(3)
        garbage = [b"", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 64, b"\xff" * 4096, chance.randbytes(100_000)]
        before = [memory_of(one.process.pid) for one in processes]
        for port in {port for one in processes for port in listening_ports(one.process.pid)}:
            for text in garbage:
                with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)) as one:
                    one.sendall(text)
        for one, size in zip(processes, before):
            self.assertLess(memory_of(one.process.pid), size + 200, one.text())
        self.end_well(processes)
        self.assertEqual(weights.read_bytes(), alone)

    @unittest.skipUnless(LONG, "an agent takes seconds")
    def test_an_error_reaches_torchrun(self):
        processes = by_torchrun(2, "static", "--epochs", 1, "--global-batch-size", 3)
        for process in processes:
            self.assertNotEqual(process.wait(), 0)
            self.assertIn("does not divide by 2 ranks", process.text())


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
