"""What the *_vs_peers scripts share: the peers' virtual environment, and running things that print JSON lines."""
import json
import os
import statistics
import subprocess
import sys

PEERS = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(PEERS))
VENV = os.path.join(ROOT, "build", "peers")


def peers_python():
    """The interpreter of the peers' virtual environment, which is made when it is not there (5 GB, a minute)."""
    python, complete = os.path.join(VENV, "bin", "python"), os.path.join(VENV, "complete")
    requirements = os.path.join(PEERS, "requirements.txt")
    wanted = open(requirements).read()
    if not os.path.exists(complete) or open(complete).read() != wanted:
        print(f"installing the peers into {VENV}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
        with open(complete, "w") as file:
            file.write(wanted)
    return python


def json_lines(command):
    """Runs a command to its end and returns the JSON objects that it printed, one a line."""
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def run_peer(script, *arguments):
    """The JSON object that a *_peer.py prints."""
    return json_lines([peers_python(), os.path.join(PEERS, script), *map(str, arguments)])[-1]


def build(*targets):
    subprocess.run([os.path.join(ROOT, "tools", "setup.sh")], check=True)
    subprocess.run([os.path.join(ROOT, "tools", "build.sh"), "release", *targets], check=True)


def program(name):
    return os.path.join(ROOT, "build", name)


def median(values):
    return statistics.median(values)
