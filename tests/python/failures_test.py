"""Ways to fail x places of a training x the first or the last of three nodes: who is told what, and how soon.

Usage: failures_test.py FAILING_NODE [--long | CELL...], with a cell such as kill-save-0. Nodes whose cable is cut are
on hosts of their own, which needs root and network namespaces; without, those cells are skipped."""

import os
import pathlib
import re
import signal
import socket
import sys
import tempfile
import time
import unittest

import node_processes
from node_processes import Hosts, Process, await_it, free_port

FAILING_NODE = sys.argv[1]
CANNOT = node_processes.as_own_machine()
NODES = 3
FAULTS = ["throw", "call", "return", "hang", "kill", "freeze", "cut"]
PLACES = ["joining", "loading", "forward", "backward", "reduce", "save", "evaluate"]
SILENCE = 4  # s that a node may be silent
TIME_LIMIT = 1.5  # s that a rank waits for one that hangs
# s from what happens to the end of all other nodes.
BOUNDS = {"throw": 1, "call": 1, "return": 1, "hang": TIME_LIMIT + 1, "kill": 2, "freeze": SILENCE, "cut": SILENCE}
# Nobody meets anybody yet: whoever is no more is missed when all others have come.
BOUNDS_OF_JOINING = {**BOUNDS, "kill": SILENCE, "return": SILENCE, "hang": SILENCE, "freeze": 2 * SILENCE,
                     "cut": 2 * SILENCE}
# More than that on a machine whose cores have other work; what is slower waits for something that it should not.
PATIENCE = 3
SHORT = ["throw-save-2", "throw-joining-0", "kill-joining-2", "kill-reduce-0", "call-evaluate-2", "return-forward-0",
         "hang-loading-2", "cut-backward-0"]


def cells():
    if "--long" not in sys.argv:
        return [cell.split("-") for cell in sys.argv[2:] or SHORT]
    return [(fault, place, node) for fault in FAULTS for place in PLACES for node in (0, NODES - 1)
            if (fault, place) != ("return", "backward")]  # no hook returns from the training


class Cell:
    """A training of three nodes, of which one fails."""

    def __init__(self, fault, place, node, folder, hosts=None):
        self.fault, self.place, self.node, self.folder, self.hosts = fault, place, int(node), folder, hosts
        self.port = free_port()
        self.nodes = {}

    def start(self, node):
        command = [FAILING_NODE, self.fault, self.place, self.node, self.folder, SILENCE * 1000]
        environment = {"RANK": str(node), "WORLD_SIZE": str(NODES), "MASTER_PORT": str(self.port),
                       "MASTER_ADDR": "127.0.0.1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        if self.hosts:
            name = self.hosts.names[node]
            command = self.hosts.command(name, command)
            environment["MASTER_ADDR"] = self.hosts.address(self.hosts.names[0])
            environment["TANDEM_TEST_CUTS"] = "ip " + self.hosts.cut_command(self.hosts.names[self.node])
        self.nodes[node] = Process(command, **environment)

    def run(self):
        """Returns when it happened, in s."""
        for node in range(NODES):
            if self.place != "joining" or node != 1:  # there it happens while the others wait for one
                self.start(node)
        happened = self.happened()
        if self.place == "joining" and not (self.node == 0 and self.fault in ("throw", "kill", "return")):
            self.start(1)
            if self.fault != "throw":
                happened = time.time()
        return happened

    def happened(self):
        if self.place == "joining" and self.fault == "call":  # it has another configuration all along
            self.nodes[self.node].await_text("waits at")
            return time.time()
        return int(self.nodes[self.node].await_text(r"acts at (\d+)").group(1)) / 1000

    def others(self):
        return [node for node in self.nodes if node != self.node]

    def all_text(self):
        return "".join(f"\nnode {node}:\n{process.text()}" for node, process in sorted(self.nodes.items()))

    def ended(self, node):
        """When it ended, and what it said."""
        found = re.search(r"^ended at (\d+): (.*)", self.nodes[node].text(), re.MULTILINE | re.DOTALL)
        assert found, self.all_text()
        return int(found.group(1)) / 1000, found.group(2)


class Failures(unittest.TestCase):
    def test_all_are_told_in_time(self):
        for fault, place, node in cells():
            with self.subTest(fault=fault, place=place, node=node), tempfile.TemporaryDirectory() as folder:
                if fault == "cut":
                    if CANNOT:
                        self.skipTest(CANNOT)
                    with Hosts("abc") as hosts:
                        self.check(Cell(fault, place, node, folder, hosts))
                else:
                    self.check(Cell(fault, place, node, folder))

    def check(self, cell):
        happened = cell.run()
        limit = (BOUNDS_OF_JOINING if cell.place == "joining" else BOUNDS)[cell.fault] + PATIENCE
        for node in cell.others():
            self.assertEqual(cell.nodes[node].wait(limit + 60), 1, cell.all_text())
        ends = [cell.ended(node) for node in cell.others()]
        took = [when - happened for when, text in ends]
        print(f"{cell.fault} in {cell.place} of node {cell.node}: " + ", ".join(f"{time:.2f} s" for time in took) +
              f": {ends[0][1].strip()[:300]}", flush=True)
        for node, (when, text) in zip(cell.others(), ends):
            self.assertRegex(text, self.says(cell), cell.all_text())
            self.assertLess(when - happened, limit, cell.all_text())
        self.check_acting(cell, limit)
        if not cell.hosts:
            self.check_is_free(cell.port)

    def says(self, cell):
        """What the others say."""
        name = f"node {cell.node} \\(host [^)]+\\)"
        if cell.place == "joining" and cell.node == 0 and cell.fault in ("kill", "return", "freeze", "cut", "hang"):
            return f"node 0 .*(gone or is frozen|not been heard of)|port {cell.port}.*no answer"
        if cell.fault == "throw" and cell.place == "save":  # which fails alike on all ranks
            return "disk on fire"
        if cell.fault == "throw":
            return f"{name}: .*disk on fire"
        if cell.fault == "call":
            return "not alike: seed is" if cell.place == "joining" else "broadcast_object"
        if cell.fault == "hang" and cell.place != "joining":
            return f"^rank {cell.node}(: |, {name}: ).*time limit of {TIME_LIMIT} s(.|\\n)*rank {cell.node}: running"
        if cell.fault == "return" and cell.place != "joining":
            return f"rank {cell.node} returned"
        return name

    def check_acting(self, cell, limit):
        process, expected = cell.nodes[cell.node], 1
        if cell.fault == "freeze":
            process.process.send_signal(signal.SIGCONT)
        if cell.place == "joining" and cell.fault == "hang":  # in what the program itself does
            process.process.kill()
        if cell.fault == "kill" or (cell.fault, cell.place) == ("hang", "joining"):
            expected = -signal.SIGKILL
        if (cell.fault, cell.place) == ("return", "joining"):
            expected = 0
        self.assertEqual(process.wait(limit + 60), expected, cell.all_text())

    def check_is_free(self, port):
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("", port))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
