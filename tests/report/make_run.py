#!/usr/bin/env python3
"""Writes a directory as a tracked run of `train` leaves it, with made-up but likely values.

make_run.py DIR [--steps N] [--lr X] [--seed S] [--ranks R] [--resumed] [--unfinished] [--no-media]
"""
import argparse
import gzip
import json
import math
import random
import struct
import zlib
from pathlib import Path

EPOCHS = 4
START = 1764150000.0
MNIST = Path(__file__).resolve().parents[2] / "data/mnist"


def write_png(path, rows):
    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    raw = b"".join(b"\0" + bytes(row) for row in rows)
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))


def digits(count):
    with gzip.open(MNIST / "t10k-images-idx3-ubyte.gz") as file:
        file.read(16)
        return [[list(file.read(28)) for _ in range(28)] for _ in range(count)]


class Run:
    def __init__(self, options):
        self.options = options
        self.random = random.Random(options.seed)
        self.directory = Path(options.directory)
        (self.directory / "images").mkdir(parents=True, exist_ok=True)
        self.file = open(self.directory / "log.jsonl", "w")
        self.time = START + 1000 * options.seed
        self.per_epoch = max(1, options.steps // EPOCHS)

    def line(self, kind, **entries):
        self.file.write(json.dumps({"type": kind, **entries}) + "\n")

    def begin(self):
        o = self.options
        config = {"model": o.model, "lr": o.lr, "batch-size": 64, "epochs": EPOCHS, "optimizer": o.optimizer, "seed": o.seed,
                  "scheduler": "cosine", "clip-grad-norm": 1.0, "hidden": [512, 512], "mixed-precision": "no", "no-shuffle": False,
                  "data-dir": "data/mnist"}
        self.line("run", name=self.directory.name, time=self.time, config=config,
                  versions={"tandem": "0.1.0", "libtorch": "2.11.0"}, ranks=o.ranks, device="cpu")

    def loss(self, step):
        at = step / self.options.steps
        slow = 1 if self.options.optimizer == "adamw" else 3
        return 0.05 + 0.25 * math.exp(-6 * at / slow) + 2 * math.exp(-step / (12 * slow * max(1, self.options.steps / 3752)))

    def accuracy(self, step):
        return 1 - 0.02 - 0.08 * self.loss(step)

    def scalars(self, step):
        r, noise = self.random, self.random.gauss
        lr = self.options.lr * 0.5 * (1 + math.cos(math.pi * step / self.options.steps))
        values = {"train/loss": self.loss(step) * math.exp(noise(0, 0.35)), "train/lr": lr,
                  "train/grad_norm": (0.6 + self.loss(step)) * math.exp(noise(0, 0.3)), "train/epoch": (step - 1) // self.per_epoch}
        longest = 0.0
        for rank in range(self.options.ranks):
            parts = {"data_wait": 0.11, "forward": 0.8, "backward": 1.08, "communication": 0.55 + 0.1 * rank,
                     "optimizer": 0.33, "other": 0.1}
            parts = {name: ms * math.exp(noise(0, 0.12)) * (8 if step == 1 else 1) for name, ms in parts.items()}
            longest = max(longest, sum(parts.values()))
            values |= {f"perf/rank{rank}/{name}_ms": round(ms, 4) for name, ms in parts.items()}
        values |= {"perf/step_ms": longest, "perf/samples_per_second": 64e3 * self.options.ranks / longest,
                   "memory/rss_mb": 118 + 40 * (1 - math.exp(-step / 50)) + r.random()}
        self.time += longest / 1000
        self.line("scalars", step=step, time=round(self.time, 3), values=values)

    def evaluate(self, step):
        self.line("scalars", step=step, time=self.time,
                  values={"eval/loss": self.loss(step) * 1.1, "eval/accuracy": self.accuracy(step)})
        for name, spread in [("weights/0", 0.04), ("gradients/0", 0.002)]:
            edges = [spread * (i - 16) / 4 for i in range(33)]
            counts = [int(40000 * math.exp(-((i - 15.5) / 4) ** 2 * (1 + step / self.options.steps))) for i in range(32)]
            self.line("histogram", step=step, time=self.time, name=name, min=edges[0], max=edges[-1], sum=0.0,
                      sum_squares=1.0, count=sum(counts), edges=edges, counts=counts)
        if self.options.media:
            self.images(step)
            self.matrix(step)

    def images(self, step):
        files, captions = [], []
        for number, digit in enumerate(digits(16)):
            files.append(f"images/eval_worst-{step:06}-{number}.png")
            write_png(self.directory / files[-1], digit)
            captions.append(f"{number % 10}, taken for {(number + 5) % 10} ({1 - number / 50:.2f})")
        self.line("images", step=step, time=self.time, name="eval/worst", files=files, captions=captions)

    def matrix(self, step):
        values = [[0] * 10 for _ in range(10)]
        for row in range(10):
            for _ in range(1000):
                right = self.random.random() < self.accuracy(step)
                values[row][row if right else (row + self.random.choice([1, 3, 5, 5, 7])) % 10] += 1
        self.line("matrix", step=step, time=self.time, name="eval/confusion", labels=[str(i) for i in range(10)], values=values)

    def train(self, first, last):
        for step in range(first, last + 1):
            self.scalars(step)
            if step % self.per_epoch == 0:
                self.evaluate(step)
                self.line("event", step=step, time=self.time, name="checkpoint",
                          detail=f"checkpoints/checkpoint_{step // self.per_epoch - 1}")

    def write(self):
        o = self.options
        self.begin()
        if o.resumed:
            self.train(1, 2 * self.per_epoch + self.per_epoch // 3)
            self.time += 3600
            self.begin()
            self.line("event", step=2 * self.per_epoch, time=self.time, name="resumed", detail="checkpoints/checkpoint_1")
            self.train(2 * self.per_epoch + 1, o.steps)
        else:
            self.train(1, o.steps)
        self.line("text", step=o.steps, time=self.time, name="sample", text="And it came to pass\nthat the network wrote this.")
        if o.unfinished:
            self.file.write('{"type":"scalars","step":')
        else:
            self.line("end", time=self.time, status="finished",
                      values={"test/accuracy": self.accuracy(o.steps), "test/loss": self.loss(o.steps) * 1.1})
        self.file.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--steps", type=int, default=3752)
    parser.add_argument("--lr", type=float, default=0.002)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--resumed", action="store_true")
    parser.add_argument("--unfinished", action="store_true")
    parser.add_argument("--no-media", dest="media", action="store_false")
    Run(parser.parse_args()).write()


if __name__ == "__main__":
    main()
