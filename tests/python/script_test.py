"""TorchScript modules that are trained by Tandem, and the lines of docs/python.md about networks.

Usage: script_test.py PROGRAM TRAIN PAGE, which are models.cpp's, train and docs/python.md.
"""

import contextlib
import os
import re
import struct
import subprocess
import sys
import tempfile
import unittest

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

STEPS, BATCH, CLASSES = 20, 8, 10


class Block(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))


class Net(torch.nn.Module):
    """With a buffer that forward assigns anew, and that what it computes needs in backward."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(1, 8, 3, stride=2)
        self.blocks = torch.nn.Sequential(Block(8), Block(8))
        self.dropout = torch.nn.Dropout(0.0)
        self.fc = torch.nn.Linear(8, CLASSES)
        self.register_buffer("scale", torch.ones(8))

    def forward(self, x):
        x = self.dropout(self.blocks(self.stem(x)).mean((2, 3)))
        if self.training:
            scaled = x * self.scale
            self.scale = 0.9 * self.scale + 0.1 * x.detach().mean(0)
            return self.fc(scaled)
        return self.fc(x * self.scale)


def make_data():
    torch.manual_seed(1)
    images = torch.randint(0, 256, (STEPS * BATCH, 1, 28, 28), dtype=torch.uint8)
    return images, torch.randint(0, CLASSES, (STEPS * BATCH,), dtype=torch.uint8)


def write_mnist(directory, images, labels):
    for split in ["train", "t10k"]:
        with open(f"{directory}/{split}-images-idx3-ubyte", "wb") as file:
            file.write(struct.pack(">4i", 0x803, len(images), 28, 28) + images.numpy().tobytes())
        with open(f"{directory}/{split}-labels-idx1-ubyte", "wb") as file:
            file.write(struct.pack(">2i", 0x801, len(labels)) + labels.numpy().tobytes())


def run(*words):
    result = subprocess.run([*map(str, words)], capture_output=True, text=True)
    if result.returncode != 0:
        raise AssertionError(f"{words} failed: {result.stderr}")
    return result.stdout


class ScriptTest(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.path = lambda name: os.path.join(self.temporary.name, name)
        self.images, self.labels = make_data()
        torch.manual_seed(2)
        self.net = Net()
        torch.jit.script(self.net).save(self.path("net.pt"))

    def tearDown(self):
        self.temporary.cleanup()

    def train_twin(self):
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9)
        for i in range(STEPS):
            batch = slice(i * BATCH, (i + 1) * BATCH)
            cross_entropy(self.net(self.images[batch].float() / 255), self.labels[batch].long()).backward()
            optimizer.step()
            optimizer.zero_grad()
        return self.net

    def check_trained(self, script, weights):
        """Both are as the twin has become."""
        theirs = self.train_twin().state_dict()
        self.assertEqual(sorted(weights), sorted(theirs))
        self.assertEqual(sorted(script.state_dict()), sorted(theirs))
        for name, tensor in theirs.items():
            for ours in (weights[name], script.state_dict()[name]):
                self.assertLessEqual((ours.float() - tensor.float()).abs().max().item(), 1e-4, name)
        self.assertFalse(torch.equal(theirs["scale"], torch.ones(8)))
        inputs = self.images[:4].float() / 255
        self.net.eval()
        self.assertLessEqual((script.eval()(inputs) - self.net(inputs)).abs().max().item(), 1e-4)
        self.assertTrue(all(parameter.requires_grad for parameter in script.parameters()))

    def test_prepare_takes_a_script(self):
        save_file({"inputs": self.images.float() / 255, "targets": self.labels.long()}, self.path("data"))
        run(PROGRAM, "script", self.path("net.pt"), self.path("data"), self.path("out.pt"), self.path("out"))
        self.check_trained(torch.jit.load(self.path("out.pt")), load_file(self.path("out/model.safetensors")))

    def test_train_takes_a_script(self):
        write_mnist(self.temporary.name, self.images, self.labels)
        flags = "--cpu 1 --normalize none --no-shuffle --epochs 1 --optimizer sgd --lr 0.05 --momentum 0.9 --batch-size 8"
        start = [TRAIN, *flags.split(), "--data-dir", self.temporary.name, "--model", self.path("net.pt")]
        run(*start, "--save-weights", self.path("out.pt"))
        run(*start, "--save-weights", self.path("out"))
        self.check_trained(torch.jit.load(self.path("out.pt")), load_file(self.path("out")))

    def test_a_script_goes_on_from_a_checkpoint(self):
        write_mnist(self.temporary.name, self.images, self.labels)
        start = [TRAIN, "--cpu", 2, "--batch-size", 8, "--epochs", 2, "--quiet", "--data-dir", self.temporary.name,
                 "--model", self.path("net.pt")]
        run(*start, "--save-weights", self.path("straight"))
        run(*start, "--max-steps", 7, "--checkpoint-dir", self.path("c"))
        run(*start, "--max-steps", 20, "--checkpoint-dir", self.path("c"), "--resume", "auto", "--save-weights",
            self.path("resumed"))
        straight, resumed = load_file(self.path("straight")), load_file(self.path("resumed"))
        for name, tensor in straight.items():
            self.assertTrue(torch.equal(tensor, resumed[name]), name)

    def test_what_is_no_script_is_one_sentence(self):
        with open(self.path("text.pt"), "w") as file:
            file.write("text")
        for name in ["text.pt", "none.pt"]:
            result = subprocess.run([TRAIN, "--cpu", "1", "--model", self.path(name)], capture_output=True, text=True)
            self.assertEqual(result.returncode, 2, name)
            self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
            self.assertIn(name, result.stderr)


    def refused(self, *flags):
        result = subprocess.run([TRAIN, "--cpu", "1", *map(str, flags)], capture_output=True, text=True)
        self.assertEqual((result.returncode, result.stdout), (2, ""), result)
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        return result.stderr

    def test_a_script_for_other_data_and_scripts_in_place_of_weights_are_refused_before_training(self):
        for name, inputs, classes in [("small.pt", 100, 10), ("three.pt", 784, 3)]:
            net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(inputs, classes))
            torch.jit.script(net).save(self.path(name))
        self.assertRegex(self.refused("--model", self.path("small.pt")), r"small.pt: does not take inputs of sizes \[1, 1, 28, 28\]")
        self.assertIn("the data has 10 classes", self.refused("--model", self.path("three.pt")))
        torch.save(net, self.path("whole.pt"))
        self.assertIn("is a TorchScript module; save its weights alone", self.refused("--init-weights", self.path("small.pt")))
        self.assertIn("of a whole module save the weights alone", self.refused("--init-weights", self.path("whole.pt")))


class PageTest(unittest.TestCase):
    def test_the_lines_of_the_page(self):
        with open(PAGE) as file:
            page = file.read()
        page = page[page.index("## A network of your own") :]
        blocks = re.findall(r"```(python|bash)\n(.*?)```", page, re.DOTALL)
        self.assertEqual([language for language, _ in blocks], ["python", "bash", "python", "python"])
        images, labels = make_data()
        variables = {}
        with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
            write_mnist(directory, images, labels)
            for language, code in blocks:
                if language == "python":
                    exec(code, variables)  # as somebody would who copies it
                else:
                    more = f"--cpu 1 --quiet --batch-size 8 --max-steps 3 --data-dir {directory}"
                    for line in code.strip().splitlines():
                        run("bash", "-c", line.replace("./train", TRAIN) + " " + more)
            self.assertTrue(os.path.exists("net.onnx"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    PROGRAM, TRAIN, PAGE = (os.path.abspath(sys.argv.pop(1)) for _ in range(3))
    unittest.main()
