"""train as one of several processes, started by hand and by torchrun, against one process with as many ranks.

Usage: nodes_test.py TRAIN MNIST [--long]"""

import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

TRAIN, MNIST = sys.argv[1:3]
LONG = "--long" in sys.argv
TORCHRUN = str(pathlib.Path(sys.executable).parent / "torchrun")
FLAGS = ["--data-dir", MNIST, "--limit-train-samples", "6000", "--threads-per-rank", "1", "--no-progress"]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Process:
    """A program whose output is kept, with signals as a terminal's."""

    def __init__(self, command, **environment):
        self.output = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [str(word) for word in command], stdout=self.output, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", **environment})

    def __del__(self):
        self.process.kill()
        self.process.wait()
        self.output.close()

    def wait(self, seconds=300):
        return self.process.wait(seconds)

    def text(self):
        self.output.seek(0)
        return self.output.read()


def by_hand(nodes, *flags):
    """Starts a process for each number of ranks in `nodes`."""
    head = f"127.0.0.1:{free_port()}"
    return [Process([TRAIN, *FLAGS, "--cpu", ranks, "--nodes", len(nodes), "--node", node, "--head", head, *flags])
            for node, ranks in enumerate(nodes)]


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
        deadline = time.monotonic() + 60
        while not list(folder.glob("checkpoint_*")):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)

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

    def test_torchrun_restarts_what_was_killed_and_the_bits_are_the_same(self):
        alone = self.alone(2, "--epochs", 8)
        chance = random.Random(7)
        for way in ("static", "c10d") * 10 if LONG else ("static",):
            with self.subTest(way=way):
                run = self.folder / f"{way}{chance.random()}"
                weights = run / "weights.safetensors"
                run.mkdir()
                flags = ["--epochs", 8, "--checkpoint-dir", run, "--save-every", 20, "--total-limit", 2, "--resume",
                         "auto", "--save-weights", weights]
                agents = by_torchrun(2, way, *flags, restarts=3)
                self.await_checkpoint(run)
                time.sleep(chance.random())
                self.assertTrue(kill_workers_of(chance.choice(agents).process.pid))
                self.end_well(agents)
                self.assertEqual(weights.read_bytes(), alone)

    @unittest.skipUnless(LONG, "an agent takes seconds")
    def test_an_error_reaches_torchrun(self):
        processes = by_torchrun(2, "static", "--epochs", 1, "--global-batch-size", 3)
        for process in processes:
            self.assertNotEqual(process.wait(), 0)
            self.assertIn("does not divide by 2 ranks", process.text())


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
