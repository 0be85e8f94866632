"""train as two processes that Open MPI and Slurm start, and on hosts with addresses of their own, against one process
with as many ranks.

Usage: launchers_test.py TRAIN MNIST [--long]. It needs root, network namespaces, and what it starts; where something
is missing, tests are skipped."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

import node_processes
from node_processes import Hosts, Process, await_it

TRAIN, MNIST = sys.argv[1:3]
LONG = "--long" in sys.argv
CANNOT = node_processes.as_own_machine()
FLAGS = ["--data-dir", MNIST, "--limit-train-samples", "6000", "--threads-per-rank", "1", "--no-progress"]
ONE = [*FLAGS, "--cpu", "1", "--epochs", "1"]


def needs(*programs):
    missing = [program for program in programs if not shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin")]
    return unittest.skipIf(missing, f"{', '.join(missing)} is not here")


class Test(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.weights = self.folder / "weights.safetensors"

    def check_weights(self, ranks=2):
        """That they are those of one process with as many ranks."""
        path = self.folder / "alone.safetensors"
        one = Process([TRAIN, *FLAGS, "--cpu", ranks, "--epochs", 1, "--save-weights", path])
        self.assertEqual(one.wait(), 0, one.text())
        self.assertEqual(self.weights.read_bytes(), path.read_bytes())


@needs("mpirun")
class OpenMpi(Test):
    def test_it_starts_two(self):
        for more in ([], ["-x", "MASTER_ADDR=127.0.0.1", "-x", f"MASTER_PORT={node_processes.free_port()}"]):
            with self.subTest(more=more):
                mpirun = Process(["mpirun", "--oversubscribe", "--allow-run-as-root", "-np", 2, *more, TRAIN, *ONE,
                                  "--save-weights", self.weights])
                self.assertEqual(mpirun.wait(60), 0, mpirun.text())
                self.check_weights()


class Slurm:
    """A cluster of the hosts n1 and n2, which are this one: with the folder's own key, sockets and records."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        (folder / "hosts").write_text("127.0.0.1 localhost n1\n127.0.0.2 n2\n")
        (folder / "slurm.conf").write_text(f"""
ClusterName=test
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=26818 CPUs=2
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=26819 CPUs=2
PartitionName=all Nodes=n1,n2 Default=YES
""")
        os.environ["SLURM_CONF"] = f"{folder}/slurm.conf"
        self.munged = Process(["/usr/sbin/munged", "--foreground", "--force", f"--key-file={folder}/munge.key",
                               f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid",
                               f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"])
        await_it((folder / "munge.socket").exists, 30, self.munged.text)
        with_hosts = ["unshare", "--mount", "sh", "-c", f'mount --bind {folder}/hosts /etc/hosts && exec "$@"', "sh"]
        self.daemons = [Process(["/usr/sbin/slurmctld", "-D"]),
                        *(Process([*with_hosts, "/usr/sbin/slurmd", "-D", "-N", name]) for name in ("n1", "n2"))]
        await_it(lambda: self.states() == {"idle"}, 30, self.logs)

    def states(self):
        answer = subprocess.run(["sinfo", "--noheader", "--format", "%t"], capture_output=True, text=True)
        return set(answer.stdout.split())

    def logs(self):
        return "\n".join(path.read_text() for path in self.folder.glob("*.log"))

    def end(self):
        for daemon in reversed(self.daemons):
            daemon.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)


@unittest.skipIf(CANNOT, CANNOT)
@needs("srun", "slurmctld", "slurmd", "munged")
class Srun(Test):
    def test_it_starts_two(self):
        cluster = Slurm(self.folder)
        self.addCleanup(cluster.end)
        srun = Process(["srun", "-N", 2, "--ntasks-per-node", 1, TRAIN, *ONE, "--save-weights", self.weights])
        self.assertEqual(srun.wait(60), 0, srun.text() + cluster.logs())
        self.check_weights()


@unittest.skipIf(CANNOT, CANNOT)
class Addresses(Test):
    def start(self, hosts, head, *flags, epochs=1):
        nodes = [*FLAGS, "--cpu", 1, "--epochs", epochs, "--nodes", len(hosts.names), "--head", head]
        return [Process(hosts.command(name, [TRAIN, *nodes, "--node", node, *flags]))
                for node, name in enumerate(hosts.names)]

    def test_hosts_reach_each_other_by_name_and_by_address(self):
        with Hosts("ab") as hosts:
            # As Debian has it, a host's own name leads to loopback.
            hosts.says_hosts("a", "127.0.1.1 a")
            for head in ("a:29500", "10.77.0.1:29501"):
                with self.subTest(head=head):
                    processes = self.start(hosts, head, "--save-weights", self.weights)
                    for process in processes:
                        self.assertEqual(process.wait(60), 0, process.text())
                    self.check_weights()

    def test_what_is_wrong_with_the_head_is_said(self):
        with Hosts("ab") as hosts:
            hosts.says_hosts("b", "127.0.0.1 head")
            other = Process(hosts.command("a", [sys.executable, "-c", "import socket, time; one = socket.socket(); "
                                                "one.bind(('', 29500)); one.listen(); print('listens', flush=True); "
                                                "time.sleep(60)"]))
            other.await_text("listens")
            for head, code, says in (("nowhere:29500", 2, "the host name 'nowhere' has no address here"),
                                     ("a:29500", 2, "port 29500 of this host cannot be listened at: .*by process [0-9]+")):
                one = Process(hosts.command("a", [TRAIN, *ONE, "--nodes", 2, "--node", 0, "--head", head]))
                self.assertEqual(one.wait(30), code, one.text())
                self.assertRegex(one.text(), says)
            one = Process(hosts.command("b", [TRAIN, *ONE, "--nodes", 2, "--node", 1, "--head", "head:29500"]))
            one.await_text(r"waiting for the store of node 0 at port 29500 of head \(127.0.0.1, which is this host itself")

    def test_a_wrong_route_is_said(self):
        """From b to the head, where b waits; and from a to the address of b's that is not the one towards the head."""
        with Hosts("ab") as hosts:
            node_processes.ip(f"-n b route add unreachable {hosts.address('a')}/32")
            self.start(hosts, "a:29500")[1].await_text(
                r"waiting for the store of node 0 at port 29500 of a \(10.77.0.1; No route to host\)")
        for way, problem in ((None, "Network is unreachable"), ("unreachable", "No route to host"), ("via", "no answer")):
            with self.subTest(problem=problem), Hosts("abc") as hosts:
                node_processes.ip("-n b link add other type veth peer name nowhere")
                node_processes.ip("-n b link set nowhere up")
                node_processes.ip("-n b addr add 10.55.0.2/24 dev other")
                node_processes.ip("-n b link set other up")
                if way:  # host c gets it, and lets it fall
                    node_processes.ip("-n a route add " + (f"{way} 10.55.0.0/24" if way != "via" else
                                                           f"10.55.0.0/24 via {hosts.address('c')}"))
                nodes = [Process(hosts.command(name, [TRAIN, *ONE]), RANK=str(node), WORLD_SIZE="2", LOCAL_RANK="0",
                                 LOCAL_WORLD_SIZE="1", GROUP_RANK=str(node), MASTER_ADDR="a", MASTER_PORT="29500",
                                 **({"GLOO_SOCKET_IFNAME": "other"} if name == "b" else {}))
                         for node, name in enumerate("ab")]
                for node in nodes:
                    self.assertEqual(node.wait(30), 1, node.text())
                    self.assertIn("node 0 (host a) cannot reach node 1 (host b) at its address 10.55.0.2: " + problem,
                                  node.text())

    @unittest.skipUnless(LONG, "it waits for 15 s")
    def test_a_cable_that_is_pulled_ends_all(self):
        for pulled in "ab":
            with self.subTest(pulled=pulled), Hosts("ab") as hosts:
                run = self.folder / pulled
                processes = self.start(hosts, "a:29500", "--checkpoint-dir", run, "--save-every", 10, epochs=1000)
                await_it(lambda: list(run.glob("checkpoint_*")))
                hosts.cut(pulled)
                for process in processes:
                    self.assertEqual(process.wait(60), 1, process.text())
                other = "ba"["ab".index(pulled)]
                self.assertIn(f"node {'ab'.index(pulled)} (host {pulled})", processes["ab".index(other)].text())


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
