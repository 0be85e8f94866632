#!/usr/bin/env python3
"""folders_test.py TRAIN [--all]: `train` on folders of pictures, with augmentation, MixUp and CutMix, a weighted
sampler and --save-best. A run that is killed and goes on writes the same weights and log; 1, 2 and 4 ranks judge the
same weights alike to the last digit, and augment alike. --all: many kills."""
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import zlib

from killed import log_of, train_killed

TRAIN = sys.argv[1]
ALL = "--all" in sys.argv
SIZE = 24


def png(rows):
    """A PNG of rows of grey bytes."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 0, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def write_stripes(folder):
    """Stripes that lie, stand and lean, of which there are unequally many."""
    chance = random.Random(1)
    for name, count, slope in (("lying", 40, (0, 1)), ("standing", 25, (1, 0)), ("leaning", 15, (1, 1))):
        place = folder / name
        place.mkdir(parents=True)
        for i in range(count):
            shift, width = chance.randrange(8), chance.choice([3, 4])
            rows = [[200 * ((slope[0] * x + slope[1] * y + shift) // width % 2) + chance.randrange(50)
                     for x in range(SIZE)] for y in range(SIZE)]
            (place / f"{i}.png").write_bytes(png(rows))


def command(place, flags, ranks=2):
    return [TRAIN, "--quiet", "--cpu", str(ranks), "--threads-per-rank", "1", "--data-dir", root / "stripes", "--image-size",
            str(SIZE), "--save-weights", place / "w.safetensors", "--log-json", place / "log.jsonl", *flags]


def train(place, flags, ranks=2):
    place.mkdir(exist_ok=True)
    subprocess.run(command(place, flags, ranks), check=True)
    return (place / "w.safetensors").read_bytes()


def check_kills(number, kills):
    chance = random.Random(number)
    flags = ["--hidden", "32", "--augment", "strong", "--balance-classes", "--save-best", "accuracy", "--ema", "0.9",
             "--epochs", "30", "--batch-size", "4", "--workers", "2", "--warmup-epochs", "1", "--scheduler", "cosine"]
    straight, place = root / f"straight{number}", root / f"killed{number}"
    place.mkdir()
    train(straight, [*flags, "--checkpoint-dir", straight / "checkpoints"])
    ended = train_killed(lambda: command(place, [*flags, "--save-every", "3"]), place / "checkpoints", chance, kills,
                         (0.5, 1.0))
    assert ended > 0, "it was never killed"
    assert log_of(place / "log.jsonl") == log_of(straight / "log.jsonl"), f"the log differs after {ended} kills"
    for name in ("w.safetensors", "w.ema.safetensors", "best.safetensors", "checkpoints/best/model.safetensors"):
        assert (place / name).read_bytes() == (straight / name).read_bytes(), (name, ended)


with tempfile.TemporaryDirectory() as directory:
    root = pathlib.Path(directory)
    write_stripes(root / "stripes")
    for number in range(20 if ALL else 1):
        check_kills(number, 6 if ALL else 3)

    # As many samples an update on any number of ranks: the first loss is that of the same pictures, augmented alike.
    first = {}
    for ranks in (1, 2, 4):
        place = root / f"{ranks}"
        train(place, ["--hidden", "32", "--init-weights", root / "straight0/w.safetensors", "--lr", "0", "--max-steps", "1",
                      "--global-batch-size", "16", "--augment", "standard"], ranks)
        first[ranks] = log_of(place / "log.jsonl")
    for ranks in (2, 4):
        assert first[ranks][-1] == first[1][-1], f"{ranks} ranks judge otherwise: {first[ranks][-1]}, {first[1][-1]}"
        assert abs(first[ranks][0]["loss"] - first[1][0]["loss"]) < 1e-5, f"{ranks} ranks augment otherwise"

    # To the bit, and through batch norm too.
    exact = ["--model", "resnet18", "--exact", "--logical-ranks", "4", "--batch-size", "2", "--max-steps", "3", "--augment",
             "strong", "--balance-classes", "--eval-every", "2"]
    one = train(root / "exact1", exact, 1)
    for ranks in (2, 4):
        assert train(root / f"exact{ranks}", exact, ranks) == one, f"{ranks} ranks train otherwise"
        assert log_of(root / f"exact{ranks}/log.jsonl") == log_of(root / "exact1/log.jsonl"), ranks
