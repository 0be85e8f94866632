"""Trainings that are killed again and again, for the tests that compare them with one that is not."""
import json
import signal
import subprocess

RATES = {"samples_per_second", "train_seconds", "startup_seconds", "peak_rss_mb"}


def train_killed(command, checkpoints, chance, kills, seconds):
    """Runs the list of words that `command()` gives until it ends by itself, each time from the newest checkpoint. The
    first `kills` runs are ended after a time within `seconds`, unless they are done before. Returns how many were."""
    ended = 0
    while True:
        go_on = ["--resume", "auto"] if list(checkpoints.glob("checkpoint_*")) else []
        run = subprocess.Popen([*command(), "--checkpoint-dir", checkpoints, *go_on])
        try:
            assert run.wait(chance.uniform(*seconds) if ended < kills else None) == 0
            return ended
        except subprocess.TimeoutExpired:
            run.send_signal(chance.choice([signal.SIGKILL, signal.SIGINT, signal.SIGTERM]))
            run.wait()
            ended += 1


def without_rates(line):
    """A line of --log-json as values that do not depend on how fast a machine is."""
    values = json.loads(line)
    if "final" in values:
        values["final"] = {k: v for k, v in values["final"].items() if k not in RATES}
    return {k: v for k, v in values.items() if k not in RATES}


def log_of(path):
    return [without_rates(line) for line in path.read_text().splitlines()]
