"""Tandem's networks, and how weights get into them, beside torchvision's and transformers'.

Usage: models_test.py PROGRAM TRAIN, which are models.cpp's and train.
"""

import copy
import os
import struct
import subprocess
import sys
import tempfile
import unittest

import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

VISION = ["resnet18", "resnet50", "vit"]  # a ResNet-34 is an 18 of more blocks
TIED = "lm_head.weight"  # which Hugging Face's files have as transformer.wte.weight only


def vit(**sizes):
    return torchvision.models.VisionTransformer(**sizes)


def gpt2(dropout=0.0, **sizes):
    return GPT2LMHeadModel(GPT2Config(embd_pdrop=dropout, attn_pdrop=dropout, resid_pdrop=dropout, **sizes))


def make_small(name):
    """As models.cpp's."""
    if name == "vit":
        return vit(image_size=48, patch_size=16, num_layers=3, num_heads=5, hidden_dim=40, mlp_dim=72, num_classes=7)
    if name == "gpt2":
        return gpt2(vocab_size=101, n_positions=24, n_embd=40, n_layer=3, n_head=5)
    return getattr(torchvision.models, name)(num_classes=7)


def make_whole(name):
    with torch.device("meta"):
        if name == "gpt2":
            return gpt2()
        return getattr(torchvision.models, {"vit": "vit_b_16"}.get(name, name))()


def weights_of(net):
    return {name: tensor.detach().contiguous() for name, tensor in net.state_dict().items() if name != TIED}


def make_random(net):
    """Weights of which each matters, and running statistics that are none of a new network."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point() and tensor.dim() < 2:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
            elif tensor.is_floating_point() and name.startswith(("heads", "class_token")):
                tensor.normal_(0, 0.1, generator=generator)
    return net


def make_batch(name):
    torch.manual_seed(6)
    if name == "gpt2":
        return {"inputs": torch.randint(0, 101, (3, 20)), "targets": torch.randint(0, 101, (3, 20))}
    size = 48 if name == "vit" else 64
    return {"inputs": torch.randn(4, 3, size, size), "targets": torch.randint(0, 7, (4,))}


def scores_of(net, inputs):
    out = net(inputs)
    return out if isinstance(out, torch.Tensor) else out.logits.flatten(0, 1)


def tandem(*words):
    result = subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True)
    if result.returncode != 0:
        raise AssertionError(f"models {words} failed: {result.stderr}")
    return result.stdout


def train(*words):
    result = subprocess.run([TRAIN, "--cpu", "1", *map(str, words)], capture_output=True, text=True)
    if result.returncode != 0:
        raise AssertionError(f"train {words} failed: {result.stderr}")
    return result.stdout


class TemporaryTest(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.path = lambda name: os.path.join(self.temporary.name, name)

    def tearDown(self):
        self.temporary.cleanup()

    def check_close(self, name, ours, theirs, tolerance=1e-4):
        """To `tolerance` of the largest number, or of 1 where that is less."""
        self.assertEqual(ours.shape, theirs.shape, name)
        scale = max(1.0, theirs.abs().max().item())
        self.assertLessEqual((ours - theirs).abs().max().item(), tolerance * scale, name)


class ModelsTest(TemporaryTest):
    def test_names_and_sizes(self):
        for name in [*VISION, "resnet34", "gpt2"]:
            with self.subTest(name):
                ours = dict(line.split(" ", 1) for line in tandem("describe", name).splitlines())
                theirs = {key: str(list(value.shape)) for key, value in make_whole(name).state_dict().items()}
                theirs.pop(TIED, None)
                self.assertEqual(ours, theirs)

    def test_scores_gradients_and_statistics(self):
        for name in [*VISION, "gpt2"]:
            with self.subTest(name):
                torch.manual_seed(3)
                net = make_random(make_small(name))
                os.mkdir(self.path(name))
                save_file(weights_of(net), self.path(f"{name}/model.safetensors"))
                batch = make_batch(name)
                save_file(batch, self.path("batch"))
                tandem("run", name, self.path(name), self.path("batch"), self.path("results"))
                ours = load_file(self.path("results"))
                exact = copy.deepcopy(net).double().train()
                net.eval()
                self.check_close("eval", ours["eval"], scores_of(net, batch["inputs"]))
                net.train()
                self.check_close("train", ours["train"], scores_of(net, batch["inputs"]))
                inputs = batch["inputs"].double() if batch["inputs"].is_floating_point() else batch["inputs"]
                cross_entropy(scores_of(exact, inputs), batch["targets"].view(-1)).backward()
                for key, parameter in exact.named_parameters():
                    self.check_close(key, ours.pop("grad." + key), parameter.grad, 1e-8)
                for key, buffer in net.named_buffers():
                    self.check_close(key, ours.pop("buffer." + key).float(), buffer.float())
                self.assertEqual(sorted(ours), ["eval", "train"])

    def test_vision_networks_begin_with_torchvisions_numbers(self):
        for name in VISION:
            with self.subTest(name):
                tandem("initialise", name, 11, self.path(name))
                torch.manual_seed(11)
                theirs = dict(make_small(name).named_parameters())
                ours = load_file(self.path(name))
                self.assertEqual(sorted(ours), sorted(theirs))
                for key, tensor in theirs.items():
                    self.assertTrue(torch.equal(ours[key], tensor), key)

    def test_gpt2_begins_with_transformers_distributions(self):
        tandem("initialise", "gpt2", 11, self.path("gpt2"))
        torch.manual_seed(12)
        theirs = weights_of(make_small("gpt2"))
        for key, tensor in load_file(self.path("gpt2")).items():
            other = theirs.pop(key)
            if tensor.std() == 0:
                self.assertTrue(torch.equal(tensor, other), key)
                continue
            self.assertAlmostEqual((tensor.std() / other.std()).item(), 1.0, delta=0.15, msg=key)
            self.assertLess(tensor.mean().abs(), 0.1 * tensor.std(), key)
        self.assertEqual(theirs, {})


CLASSES, BATCH = 10, 8


def gray_resnet18(classes):
    """For MNIST's pictures."""
    net = torchvision.models.resnet18(num_classes=classes)
    net.conv1 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    return net


class TransferTest(TemporaryTest):
    """A ResNet-18 that was trained on 1000 classes goes on with the ten of MNIST."""

    def setUp(self):
        super().setUp()
        torch.manual_seed(8)
        self.images = torch.randint(0, 256, (160, 1, 28, 28), dtype=torch.uint8)
        self.labels = torch.randint(0, CLASSES, (160,), dtype=torch.uint8)
        for split in ["train", "t10k"]:
            with open(self.path(f"{split}-images-idx3-ubyte"), "wb") as file:
                file.write(struct.pack(">4i", 0x803, 160, 28, 28) + self.images.numpy().tobytes())
            with open(self.path(f"{split}-labels-idx1-ubyte"), "wb") as file:
                file.write(struct.pack(">2i", 0x801, 160) + self.labels.numpy().tobytes())
        self.pretrained = make_random(gray_resnet18(1000))

    def train(self, *words):
        """What train saves."""
        flags = "--model resnet18 --normalize none --no-shuffle --batch-size 8 --epochs 1 --seed 4 --save-weights"
        self.output = train(*flags.split(), self.path("out"), "--data-dir", self.path(""), *words)
        return load_file(self.path("out"))

    def twin(self, *words):
        """Torchvision's, with the head that train begins with."""
        begun = self.train(*words, "--optimizer", "sgd", "--lr", 0, "--max-steps", 1)
        net = gray_resnet18(CLASSES)
        weights = {name: tensor for name, tensor in self.pretrained.state_dict().items() if not name.startswith("fc.")}
        net.load_state_dict({**weights, "fc.weight": begun["fc.weight"], "fc.bias": begun["fc.bias"]})
        return net

    def steps(self, net, optimizer, count):
        net.train()
        for step in range(count):
            batch = slice(step * BATCH, (step + 1) * BATCH)
            loss = cross_entropy(net(self.images[batch].float() / 255), self.labels[batch].long())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def check_weights(self, ours, net):
        theirs = net.state_dict()
        self.assertEqual(sorted(ours), sorted(theirs))
        for name, tensor in theirs.items():
            self.check_close(name, ours[name].float(), tensor.float())

    def test_a_frozen_backbone(self):
        """Torchvision's own loop of transfer learning: statistics of the norms go on, the weights do not."""
        save_file(weights_of(self.pretrained), self.path("resnet18.safetensors"))
        start = ["--init-weights", self.path("resnet18.safetensors"), "--freeze", "backbone"]
        net = self.twin(*start)
        for parameter in net.parameters():
            parameter.requires_grad = False
        net.fc.requires_grad_(True)
        self.steps(net, torch.optim.SGD(net.fc.parameters(), lr=0.05, momentum=0.9), 20)
        ours = self.train(*start, "--optimizer", "sgd", "--lr", 0.05, "--momentum", 0.9, "--max-steps", 20)
        self.check_weights(ours, net)
        for name, parameter in self.pretrained.named_parameters():
            if not name.startswith("fc."):
                self.assertTrue(torch.equal(ours[name], parameter), name)
        for line in ["taken         120 ", "left            2  fc.weight [1000, 512]", "made anew       2  fc.weight [10, 512]"]:
            self.assertIn(line, self.output)

    def test_a_slower_backbone_and_no_decay_of_norms(self):
        torch.save({"model": {"module." + k: v for k, v in self.pretrained.state_dict().items()}, "epoch": 3},
                   self.path("resnet18.pth"))
        start = ["--init-weights", self.path("resnet18.pth"), "--weights-prefix", "model.module"]
        net = self.twin(*start)  # for one step: rounding grows quickly in such a network
        groups = {}
        for name, parameter in net.named_parameters():
            kind = (1.0 if name.startswith("fc.") else 0.1, 5.0 if parameter.dim() > 1 else 0.0)
            groups.setdefault(kind, []).append(parameter)
        groups = [{"params": its, "lr": 0.01 * lr, "weight_decay": decay} for (lr, decay), its in groups.items()]
        self.steps(net, torch.optim.SGD(groups, lr=0.01), 1)
        self.check_weights(self.train(*start, "--lr-scale", "backbone=0.1", "--weight-decay", 5, "--optimizer", "sgd",
                                      "--lr", 0.01, "--max-steps", 1), net)

    def test_gpt2_from_hugging_faces_directories(self):
        text = self.path("text")
        with open(text, "w") as file:
            file.write("the quick brown fox jumps over the lazy dog. " * 20)
        sizes = "--model gpt2 --block-size 16 --layers 2 --width 40 --heads 5 --sample-bytes 0 --batch-size 2 --lr 0"
        whole = make_random(gpt2(vocab_size=256, n_embd=40, n_layer=2, n_head=5))
        whole.save_pretrained(self.path("whole"), max_shard_size="100KB")
        self.assertTrue(os.path.exists(self.path("whole/model.safetensors.index.json")))
        bare = {name: tensor.contiguous() for name, tensor in whole.transformer.state_dict().items()}
        masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 1024, 1024) for i in range(2)}
        os.mkdir(self.path("bare"))
        save_file({**bare, **masks}, self.path("bare/model.safetensors"))
        for start, left in [("whole", 0), ("bare", 2)]:
            with self.subTest(start):
                output = train(*sizes.split(), "--max-steps", 1, "--data-file", text, "--save-weights", self.path("out"),
                               "--init-weights", self.path(start))
                ours, theirs = load_file(self.path("out")), weights_of(whole)
                self.assertEqual(sorted(ours), sorted(theirs))
                for name, tensor in theirs.items():
                    self.assertTrue(torch.equal(ours[name], tensor), name)
                self.assertIn(f"left       {left:6}", output)


if __name__ == "__main__":
    torch.set_num_threads(1)
    PROGRAM, TRAIN = sys.argv.pop(1), sys.argv.pop(1)
    unittest.main()
