#!/usr/bin/env python3
"""judging_test.py TRAIN: what `train` does with how good the network is while it trains: --eval-every, --save-best,
--early-stop, --ema. Looking changes no weights; the best are those of the step that is said; a training that is killed
and goes on finds the same."""
import pathlib
import random
import subprocess
import sys
import tempfile

from killed import log_of, train_killed

TRAIN = sys.argv[1]
SMALL = ["--hidden", "32", "--limit-train-samples", "640"]


def command(place, flags, ranks=2, batch=16):
    return [TRAIN, "--quiet", "--cpu", str(ranks), *SMALL, "--batch-size", str(batch), "--save-weights", place / "w.safetensors", "--log-json",
            place / "log.jsonl", *flags]


def train(place, *flags, **sizes):
    place.mkdir(exist_ok=True)
    subprocess.run(command(place, flags, **sizes), check=True)
    return (place / "w.safetensors").read_bytes()


def lines(place):
    return [line.get("final", line) for line in log_of(place / "log.jsonl")]


def evals(place):
    return [line["eval"] for line in lines(place) if "eval" in line]


def refused(*flags):
    run = subprocess.run([TRAIN, "--quiet", "--cpu", "1", *SMALL, *flags], capture_output=True, text=True)
    assert run.returncode == 2, (flags, run)
    return run.stderr


with tempfile.TemporaryDirectory() as directory:
    root = pathlib.Path(directory)

    at_end = train(root / "end", "--epochs", "3", "--eval-every", "0")
    assert evals(root / "end") == []
    averaged = train(root / "more", "--epochs", "3", "--eval-every", "7", "--ema", "0.9", "--save-best", "ema_accuracy")
    assert at_end == averaged, "judging changes the weights"
    assert [e["step"] for e in evals(root / "more")] == [7, 14, 21, 28, 35, 42, 49, 56]
    train(root / "epochs", "--epochs", "3")
    assert [(e["step"], e["epoch"]) for e in evals(root / "epochs")] == [(20, 0), (40, 1)]
    assert lines(root / "epochs")[-1]["accuracy"] == lines(root / "more")[-1]["accuracy"]

    # The best are those of the step at which they were judged best.
    judged = evals(root / "more") + [lines(root / "more")[-1] | {"step": 60}]
    best = max(judged, key=lambda e: (e["ema_accuracy"], -e["step"]))["step"]
    train(root / "best", "--epochs", "3", "--max-steps", str(best), "--ema", "0.9", "--eval-every", "0")
    assert (root / "best/w.ema.safetensors").read_bytes() == (root / "more/best.safetensors").read_bytes(), best

    # On any number of ranks, in exact mode.
    exact = ["--exact", "--epochs", "2", "--ema", "0.9", "--save-best", "accuracy", "--label-smoothing", "0.1"]
    assert train(root / "one", *exact, ranks=1, batch=4) == train(root / "four", *exact, ranks=4, batch=4)
    assert lines(root / "one") == lines(root / "four") and evals(root / "one")
    for name in ("best.safetensors", "w.ema.safetensors"):
        assert (root / "one" / name).read_bytes() == (root / "four" / name).read_bytes(), name

    # Weights that stay as they are get no better: the first judgement is the best, and three more end it.
    train(root / "early", "--lr", "0", "--epochs", "50", "--eval-every", "5", "--early-stop", "accuracy:3")
    assert [line["step"] for line in lines(root / "early") if "step" in line][-1] == 20

    straight = ["--epochs", "6", "--eval-every", "9", "--ema", "0.9", "--save-best", "accuracy", "--early-stop",
                "accuracy:9", "--label-smoothing", "0.1", "--lr", "0.01"]
    train(root / "straight", *straight, "--checkpoint-dir", root / "straight/checkpoints")
    chance = random.Random(3)
    place = root / "killed"
    place.mkdir()
    kills = train_killed(lambda: command(place, [*straight, "--save-every", "4"]), place / "checkpoints", chance, 4,
                         (0.4, 1.2))
    assert kills > 0, "it was never killed"
    ours, theirs = lines(place), lines(root / "straight")
    assert ours == theirs, (kills, len(ours), len(theirs), [pair for pair in zip(ours, theirs) if pair[0] != pair[1]][:1])
    for name in ("w.safetensors", "w.ema.safetensors", "best.safetensors", "checkpoints/best/model.safetensors"):
        assert (place / name).read_bytes() == (root / "straight" / name).read_bytes(), (name, kills)

    assert "no figure 'acuracy' of this training; use one of accuracy" in refused("--early-stop", "acuracy:1")
    assert "use METRIC:PATIENCE" in refused("--early-stop", "accuracy:0")
    assert "use METRIC:PATIENCE" in refused("--early-stop", "accuracy")
    assert "ema_accuracy" not in refused("--save-best", "nothing", "--save-weights", root / "w.safetensors")
    assert "needs --save-weights or --checkpoint-dir" in refused("--save-best", "accuracy")
    for flags in (["--ema", "nan"], ["--ema", "1.5"], ["--label-smoothing", "1"], ["--eval-every", "-1"]):
        assert flags[0] in refused(*flags), flags
