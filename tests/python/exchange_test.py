"""Trainings that go from Accelerate to Tandem and back. Usage: exchange_test.py PROGRAM, which is exchange.cpp's."""

import os
import subprocess
import sys
import tempfile
import unittest

import torch
from accelerate import Accelerator, load_checkpoint_in_model
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file, save_file
from torch.optim import lr_scheduler as lr

FIRST, MORE = 5, 10  # steps before and after the exchange


def make_net():
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.cos(torch.arange(p.numel(), dtype=torch.float64)).mul(0.3).view(p.shape))
    return net


def batch(number):
    return torch.sin(torch.arange(24, dtype=torch.float64) * (0.1 * (number + 1))).view(4, 6).float()


def groups(net, first, second):
    return [{"params": net[0].parameters(), **first}, {"params": net[2].parameters(), **second}]


def sgd(net):
    return torch.optim.SGD(groups(net, {"lr": 0.05}, {"lr": 0.02, "weight_decay": 0.1}), momentum=0.9, nesterov=True)


def adamw(net):
    first, second = {"lr": 0.01, "betas": (0.8, 0.99)}, {"lr": 0.02, "weight_decay": 0.1}
    return torch.optim.AdamW(groups(net, first, second))


CASES = {
    "sgd": (sgd, lambda o: lr.StepLR(o, 3)),
    "adam": (lambda n: torch.optim.Adam(n.parameters(), 0.01, amsgrad=True), lambda o: lr.CosineAnnealingLR(o, 20)),
    "adamw": (adamw, lambda o: lr.OneCycleLR(o, 0.02, 20)),
    "adamw-warmup": (
        lambda n: torch.optim.AdamW(n.parameters(), 0.01),
        lambda o: lr.SequentialLR(o, [lr.LinearLR(o, 0.25, total_iters=7), lr.ExponentialLR(o, 0.9)], [7]),
    ),
    "rmsprop": (
        lambda n: torch.optim.RMSprop(n.parameters(), 0.005, momentum=0.5, centered=True),
        lambda o: lr.MultiStepLR(o, [2, 8, 8], 0.5),
    ),
    "adagrad": (
        lambda n: torch.optim.Adagrad(n.parameters(), 0.05, lr_decay=0.01),
        lambda o: lr.ReduceLROnPlateau(o, factor=0.5, patience=0, threshold=0.2),
    ),
}


class Training:
    """One of the cases, by Accelerate."""

    def __init__(self, name, load=None):
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        self.accelerator = Accelerator(cpu=True)
        make_optimizer, make_scheduler = CASES[name]
        net = make_net()
        optimizer = make_optimizer(net)
        self.net, self.optimizer, self.scheduler = self.accelerator.prepare(net, optimizer, make_scheduler(optimizer))
        self.by_loss = name == "adagrad"
        if load:
            self.accelerator.load_state(load)

    def train(self, first, steps):
        classes = torch.arange(4) % 3
        for i in range(first, first + steps):
            loss = torch.nn.functional.cross_entropy(self.net(batch(i)), classes)
            self.accelerator.backward(loss)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.scheduler.step(*([loss.item()] if self.by_loss else []))
        return self

    def save(self, directory, **options):
        self.accelerator.save_state(directory, **options)
        return directory

    def weights(self):
        return {name: tensor.detach().clone() for name, tensor in self.net.state_dict().items()}

    def rates(self):
        return [group["lr"] for group in self.optimizer.param_groups]


def tandem(*words):
    result = subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True)
    if result.returncode != 0:
        raise AssertionError(f"exchange {words} failed: {result.stderr}")


class ExchangeTest(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.path = lambda name: os.path.join(self.temporary.name, name)

    def tearDown(self):
        self.temporary.cleanup()

    def check_equal(self, ours, theirs, tolerance=1e-6):
        self.assertEqual(sorted(ours), sorted(theirs))
        for name in ours:
            difference = (ours[name].float() - theirs[name].float()).abs().max().item()
            self.assertLessEqual(difference, tolerance, name)

    def check_rates(self, directory, training):
        saved = torch.load(os.path.join(directory, "optimizer.bin"), weights_only=True)
        for group, rate in zip(saved["param_groups"], training.rates(), strict=True):
            self.assertAlmostEqual(group["lr"], rate, places=12)

    def test_from_accelerate(self):
        for name in CASES:
            with self.subTest(name):
                training = Training(name).train(0, FIRST)
                start = training.save(self.path(name))
                training.train(FIRST, MORE)
                tandem("train", name, start, FIRST, MORE, self.path(name + "-end"))
                self.check_equal(load_file(self.path(name + "-end/model.safetensors")), training.weights())
                self.check_rates(self.path(name + "-end"), training)

    def test_from_pickled_weights(self):
        training = Training("adam").train(0, FIRST)
        start = training.save(self.path("start"), safe_serialization=False)
        self.assertTrue(os.path.exists(os.path.join(start, "pytorch_model.bin")))
        tandem("train", "adam", start, FIRST, MORE, self.path("end"))
        self.check_equal(load_file(self.path("end/model.safetensors")), training.train(FIRST, MORE).weights())

    def test_to_accelerate(self):
        for name in CASES:
            with self.subTest(name):
                start, end = self.path(name), self.path(name + "-end")
                tandem("train", name, "-", 0, FIRST, start)
                tandem("train", name, start, FIRST, MORE, end)
                training = Training(name, load=start).train(FIRST, MORE)
                self.check_equal(load_file(end + "/model.safetensors"), training.weights())
                self.check_rates(end, training)

    def test_there_and_back(self):
        first = Training("adamw").train(0, FIRST).save(self.path("first"))
        tandem("train", "adamw", first, FIRST, FIRST, self.path("second"))
        third = Training("adamw", load=self.path("second")).train(2 * FIRST, FIRST)
        self.check_equal(third.weights(), Training("adamw").train(0, 3 * FIRST).weights())

    def test_everything_opens_with_weights_only(self):
        tandem("train", "fp16", "-", 0, FIRST, self.path("state"))
        opened = []
        for name in os.listdir(self.path("state")):
            if name.endswith((".bin", ".pt", ".pkl")):
                self.assertIsInstance(torch.load(self.path("state/" + name), weights_only=True), dict)
                opened.append(name)
        self.assertEqual(sorted(opened), ["optimizer.bin", "scaler.pt", "scheduler.bin"])

    def test_scaler(self):
        start = Training("adam").train(0, FIRST).save(self.path("start"))
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=MORE)
        scaler.scale(torch.zeros(1))  # makes its tensors
        torch.save(scaler.state_dict(), os.path.join(start, "scaler.pt"))
        tandem("train", "fp16", start, FIRST, MORE + 1, self.path("end"))
        state = torch.load(self.path("end/scaler.pt"), weights_only=True)
        scaler.load_state_dict(state)
        self.assertEqual((state["scale"], state["_growth_tracker"], state["growth_interval"]), (2048.0, 1, MORE))

    def test_shards_and_types(self):
        net = make_net()
        AcceleratorState._reset_state(True)
        Accelerator(cpu=True).save_model(net, self.path("from-python"), max_shard_size=200)
        self.assertTrue(os.path.exists(self.path("from-python/model.safetensors.index.json")))
        tandem("weights", self.path("from-python"), self.path("sharded"), "fp32", 200)
        self.assertTrue(os.path.exists(self.path("sharded/model.safetensors.index.json")))
        loaded = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        load_checkpoint_in_model(loaded, self.path("sharded"))
        self.check_equal(loaded.state_dict(), net.state_dict(), 0)

        half = {name: tensor.bfloat16() for name, tensor in net.state_dict().items()}
        os.mkdir(self.path("half"))
        save_file(half, self.path("half/model.safetensors"), {"format": "pt"})
        tandem("weights", self.path("half"), self.path("again-half"), "bf16", 10**9)
        again = load_file(self.path("again-half/model.safetensors"))
        self.assertEqual({tensor.dtype for tensor in again.values()}, {torch.bfloat16})
        self.check_equal(again, half, 0)
        tandem("weights", self.path("half"), self.path("full"), "fp32", 10**9)
        self.check_equal(load_file(self.path("full/model.safetensors")), half, 0)


if __name__ == "__main__":
    PROGRAM = sys.argv.pop(1)
    unittest.main()
