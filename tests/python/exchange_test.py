"""Trainings that go from Accelerate to Tandem and back. Usage: exchange_test.py PROGRAM, which is exchange.cpp's."""

import collections
import os
import subprocess
import sys
import tempfile
import unittest

import numpy as np
import torch
from accelerate import Accelerator, load_checkpoint_in_model
from accelerate.state import AcceleratorState, GradientState
from safetensors import SafetensorError
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
    "adafactor": (
        lambda n: torch.optim.Adafactor(n.parameters(), 0.05, eps=(1e-4, 1e-3), weight_decay=0.1),
        lambda o: lr.StepLR(o, 3),
    ),
    "muon": (
        lambda n: torch.optim.Muon([n[0].weight, n[2].weight], 0.02, adjust_lr_fn="match_rms_adamw"),
        lambda o: lr.StepLR(o, 3),
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


def raw(tensor):
    """The elements' bytes, in their order. Of no type that is quantized."""
    plain = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}[tensor.itemsize]
    tensor = tensor.detach().resolve_conj().resolve_neg()
    storage, place = tensor.untyped_storage(), (tensor.storage_offset(), tensor.shape, tensor.stride())
    return torch.empty(0, dtype=plain).set_(storage, *place).contiguous().view(-1).view(torch.uint8)


def some_bytes(dtype):
    """As exchange.cpp's."""
    size = torch.empty(0, dtype=dtype).itemsize
    storage = torch.arange(1, 12 * size + 1, dtype=torch.uint8).untyped_storage()
    return torch.empty(0, dtype=dtype).set_(storage, 0, (2, 3), (6, 2))


QUANTIZED = {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4}
DTYPES = {value for value in vars(torch).values() if isinstance(value, torch.dtype)} - QUANTIZED
NARROW = {getattr(torch, f"{kind}{bits}") for kind in ("int", "uint") for bits in range(1, 8)}


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

    def check_same(self, ours, theirs, where="value"):
        """Nested values, tensors by type, shape and bytes."""
        if isinstance(theirs, torch.Tensor):
            self.assertEqual((ours.dtype, ours.shape), (theirs.dtype, theirs.shape), where)
            self.assertTrue(torch.equal(raw(ours), raw(theirs)), where)
        elif isinstance(theirs, dict):
            self.assertEqual(list(ours), list(theirs), where)
            for key in theirs:
                self.check_same(ours[key], theirs[key], f"{where}[{key!r}]")
        elif isinstance(theirs, (list, tuple)):
            self.assertEqual((type(ours), len(ours)), (tuple if isinstance(theirs, tuple) else list, len(theirs)), where)
            for i, item in enumerate(theirs):
                self.check_same(ours[i], item, f"{where}[{i}]")
        else:
            self.assertEqual((type(ours), ours), (type(theirs), theirs), where)

    def check_goes_through(self, value, expected=None, **options):
        """What Python writes, Tandem reads and writes, Python reads."""
        torch.save(value, self.path("from"), **options)
        tandem("pickle", self.path("from"), self.path("to"))
        self.check_same(torch.load(self.path("to"), weights_only=True), value if expected is None else expected)

    def test_all_types_to_python(self):
        tandem("types", self.path("types"))
        loaded = torch.load(self.path("types"), weights_only=True)
        self.assertEqual(loaded.pop("bytes"), b"no \xff text")
        self.assertEqual(loaded.pop("device"), torch.device("cuda:1"))
        self.assertEqual(loaded.pop("complex"), 1 - 2j)
        self.assertTrue(torch.equal(loaded.pop("conjugate"), torch.full((2,), 1 - 1j)))
        self.assertEqual({tensor.dtype for tensor in loaded.values()}, DTYPES)
        for name, tensor in loaded.items():
            self.check_same(tensor, some_bytes(tensor.dtype), name)

    def test_all_types_from_python(self):
        for new_format in True, False:
            for dtype in DTYPES - NARROW:  # which Python does not save
                with self.subTest(f"{dtype} {new_format}"):
                    value = {"x": some_bytes(dtype), "again": some_bytes(dtype)}
                    self.check_goes_through(value, _use_new_zipfile_serialization=new_format)

    def test_all_kinds_of_tensors_from_python(self):
        whole = torch.arange(24.0).view(2, 3, 4)
        shared = torch.arange(6.0)
        attributes = torch.ones(3)
        attributes.note = "of a tensor"
        parameter = torch.nn.Parameter(torch.ones(2))
        with_state = torch.nn.Parameter(torch.ones(2))
        with_state.note = "of a parameter"
        conjugate = torch.complex(torch.arange(3.0), torch.ones(3)).conj()
        value = {
            "transposed": whole.transpose(0, 2), "part": whole[1, :, 1:3], "strided": whole[..., ::2],
            "expanded": torch.ones(3, 1).expand(3, 1000), "number": torch.tensor(1.5).expand(4, 5),
            "windows": shared.unfold(0, 3, 1), "empty": torch.empty(0, 3), "scalar": torch.tensor(7),
            "one": shared, "other": shared[2:], "attributes": attributes, "parameter": parameter,
            "with state": with_state, "buffer": torch.nn.Buffer(torch.ones(2)), "conjugate": conjugate,
            "imaginary": torch.complex(torch.ones(3), torch.ones(3)).conj().imag, "requires_grad": torch.ones(2, requires_grad=True),
            "channels": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        }  # fmt: skip
        for new_format in True, False:
            self.check_goes_through(value, _use_new_zipfile_serialization=new_format)
            self.check_goes_through(torch.nn.BatchNorm2d(3).state_dict(), _use_new_zipfile_serialization=new_format)

    def test_plain_values_from_python(self):
        value = {
            "numbers": [0, -1, 255, 65536, -(2**31), 2**40, -(2**63), 1.5, float("inf"), True, None, 1 + 2j],
            "texts": ["", "müsli", "a" * 300], 3: "key", 2.5: "key", "size": torch.Size([1, 2]),
            "device": torch.device("cuda", 1), "bytes": b"\xff\x00\x80a", "array": bytearray(b"abc"),
            "counter": collections.Counter([3, 3]), "ordered": collections.OrderedDict(b=1, a=2), "pair": (0.9, (1,)),
        }  # fmt: skip
        # C++ has no bytes: what is UTF-8 comes back as text.
        expected = value | {"size": (1, 2), "array": "abc", "counter": {3: 2}, "ordered": {"b": 1, "a": 2}}
        for protocol in 2, 3, 4, 5:
            for new_format in True, False:
                options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": new_format}
                self.check_goes_through(value, expected, **options)

    def test_numpy_from_python(self):
        arrays = [np.array([[1, 0], [3, 2]]).astype(kind) for kind in "?bhilBHILefdFD"]
        value = {
            "scalars": [array[1, 0] for array in arrays], "arrays": arrays, "zero": np.array(7.5),
            "fortran": [np.asfortranarray(array) for array in arrays], "parts": [array[:, 1] for array in arrays],
            "empty": np.zeros((0, 3)), "lr": np.float64(0.1),
        }  # fmt: skip
        as_tensors = {
            key: [torch.tensor(item) for item in items]
            for key, items in value.items()
            if key in ("arrays", "fortran", "parts")
        }
        expected = value | as_tensors | {
            "scalars": [item.item() for item in value["scalars"]], "zero": torch.tensor(7.5, dtype=torch.float64),
            "empty": torch.zeros(0, 3, dtype=torch.float64), "lr": 0.1,
        }  # fmt: skip
        for protocol in 2, 3, 4, 5:
            self.check_goes_through(value, expected, pickle_protocol=protocol)

    def test_what_is_not_read_is_named(self):
        named = {
            "quantized tensor": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
            "sparse tensor": torch.eye(3).to_sparse(),
            "'U3'": np.str_("abc"), "'f16'": np.longdouble(1), "more than 64 bits": 2**64, "'O8'": np.array([{}]),
            "another order of bytes": np.ones(2, dtype=">f4"), "'torch.float32'": torch.float32,
            "torch.nn.modules.linear.Linear": torch.nn.Linear(2, 2), "builtins.set": {1, 2},
        }  # fmt: skip
        for new_format in True, False:
            for words, value in named.items():
                with self.subTest(words):
                    torch.save({"x": value}, self.path("from"), _use_new_zipfile_serialization=new_format)
                    with self.assertRaisesRegex(AssertionError, words):
                        tandem("pickle", self.path("from"), self.path("to"))

    def test_numpy_numbers_in_a_scheduler(self):
        name = "sgd"
        start = Training(name).train(0, FIRST).save(self.path("start"))
        state = torch.load(self.path("start/scheduler.bin"), weights_only=True)
        state["_last_lr"] = [np.float64(rate) for rate in state["_last_lr"]]
        state["base_lrs"] = [np.float64(rate) for rate in state["base_lrs"]]
        state["last_epoch"] = np.int64(state["last_epoch"])
        torch.save(state, self.path("start/scheduler.bin"))
        tandem("train", name, start, FIRST, MORE, self.path("end"))
        training = Training(name).train(0, FIRST + MORE)
        self.check_equal(load_file(self.path("end/model.safetensors")), training.weights())
        self.check_rates(self.path("end"), training)

    def test_weights_of_the_old_format(self):
        training = Training("adam").train(0, FIRST)
        start = training.save(self.path("start"), safe_serialization=False)
        for name in "pytorch_model.bin", "optimizer.bin", "scheduler.bin":
            value = torch.load(os.path.join(start, name), weights_only=True)
            torch.save(value, os.path.join(start, name), _use_new_zipfile_serialization=False)
        tandem("train", "adam", start, FIRST, MORE, self.path("end"))
        self.check_equal(load_file(self.path("end/model.safetensors")), training.train(FIRST, MORE).weights())

    def test_all_types_of_safetensors(self):
        tensors = {}
        for dtype in DTYPES - NARROW:
            try:
                save_file({"x": some_bytes(dtype).contiguous()}, self.path("one"))
                tensors[str(dtype)] = some_bytes(dtype).contiguous()
            except (KeyError, ValueError, RuntimeError, SafetensorError):  # a type that safetensors does not have
                pass
        self.assertEqual(len(tensors), 20)
        save_file(tensors, self.path("from"))
        tandem("safetensors", self.path("from"), self.path("to"))
        self.check_same(dict(sorted(load_file(self.path("to")).items())), dict(sorted(tensors.items())))


if __name__ == "__main__":
    PROGRAM = sys.argv.pop(1)
    unittest.main()
