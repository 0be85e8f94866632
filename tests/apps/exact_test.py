#!/usr/bin/env python3
"""exact_test.py TRAIN [--all]: `train --exact` on 1, 2, 4 and 8 ranks writes the same weights and the same log but
for rates, also when it is killed and goes on with another number of ranks. --all: every setup, and many kills."""
import pathlib
import random
import subprocess
import sys
import tempfile

from killed import log_of, train_killed

TRAIN = sys.argv[1]
ALL = "--all" in sys.argv

MLP = ["--limit-train-samples", "601", "--epochs", "2"]
CNN = ["--model", "cnn", "--batch-size", "4", "--limit-train-samples", "101", "--epochs", "1"]
GPT = ["--model", "gpt", "--layers", "2", "--width", "64", "--block-size", "32", "--dropout", "0.1", "--batch-size", "2",
       "--max-steps", "6", "--data-file", __file__, "--sample-bytes", "20"]
SETUPS = {
    "uneven batches, fp16, windows of two": MLP + ["--batch-size", "7", "--no-even-batches", "--mixed-precision", "fp16",
                                                  "--gradient-accumulation-steps", "2", "--clip-grad-norm", "1"],
    "a gpt with dropout": GPT,
}
MORE = {
    "adamw": MLP + ["--batch-size", "16", "--clip-grad-norm", "0.5"],
    "sgd, windows of three": MLP + ["--batch-size", "8", "--optimizer", "sgd", "--momentum", "0.9",
                                    "--gradient-accumulation-steps", "3"],
    "dispatch": MLP + ["--batch-size", "8", "--dispatch-batches"],
    "split": MLP + ["--batch-size", "64", "--split-batches"],
    "uneven": MLP + ["--batch-size", "16", "--no-even-batches"],
    "in order, without the rest": MLP + ["--batch-size", "16", "--drop-last", "--no-shuffle"],
    "bf16": MLP + ["--batch-size", "16", "--mixed-precision", "bf16"],
    "plateau": MLP + ["--batch-size", "8", "--scheduler", "plateau"],
    "four logical ranks": MLP + ["--batch-size", "8", "--logical-ranks", "4"],
    "cnn": CNN,
    "cnn in bf16": CNN + ["--mixed-precision", "bf16"],
}


def train(folder, flags, name):
    weights, log = folder / f"{name}.safetensors", folder / f"{name}.jsonl"
    subprocess.run([TRAIN, "--exact", "--quiet", "--save-weights", weights, "--log-json", log, *flags], check=True)
    return weights.read_bytes(), log_of(log)


def check_setup(folder, name, flags):
    logical = 4 if "--logical-ranks" in flags else 8
    first = train(folder, ["--cpu", "1", *flags], "one")
    assert len(first[1]) > 3, name
    for ranks in (2, 4, 8):
        if ranks <= logical:
            assert train(folder, ["--cpu", str(ranks), *flags], "more") == first, f"{name}: {ranks} ranks differ from one"


def check_itself(name, flags):
    """--check-exact finds nothing."""
    for ranks in (1, 2) if ALL else (2,):
        told = subprocess.run([TRAIN, "--check-exact", "2", "--cpu", str(ranks), *flags], check=True, text=True,
                              stdout=subprocess.PIPE).stdout
        assert told.endswith("have made the same weights, buffers and generators in 2 windows, to the bit\n"), (name, told)


def check_kills(folder, chance, most_kills):
    """A run that is killed again and again, each time with another number of ranks, ends like one that is not."""
    flags = ["--batch-size", "8", "--epochs", "2", "--limit-train-samples", "2000", "--clip-grad-norm", "1",
             "--scheduler", "cosine", "--seed", str(chance.randrange(1000))]
    straight = train(folder, ["--cpu", "2", *flags], "straight")
    place = pathlib.Path(tempfile.mkdtemp(dir=folder))
    weights, log, checkpoints = place / "w.safetensors", place / "log.jsonl", place / "checkpoints"
    kills = train_killed(
        lambda: [TRAIN, "--exact", "--quiet", "--cpu", str(chance.choice([1, 2, 4, 8])), "--save-weights", weights,
                 "--log-json", log, "--save-every", "5", *flags], checkpoints, chance, most_kills, (0.5, 2.5))
    assert weights.read_bytes() == straight[0], f"weights differ after {kills} kills"
    updates = {line["step"]: line for line in log_of(log) if "step" in line}
    assert list(updates.values()) == [line for line in straight[1] if "step" in line], f"the log differs after {kills} kills"


with tempfile.TemporaryDirectory() as directory:
    folder = pathlib.Path(directory)
    for its_name, its_flags in (SETUPS | MORE if ALL else SETUPS).items():
        check_setup(folder, its_name, its_flags)
        check_itself(its_name, its_flags)
    for number in range(20 if ALL else 1):
        check_kills(folder, random.Random(number), 6 if ALL else 2)
