"""Compares transforms with torchvision's v2, for the same seeds. Usage: transforms_test.py PROGRAM (apply_transforms.cpp,
which has the same cases)."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torchvision.transforms import InterpolationMode, v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BILINEAR = InterpolationMode.BILINEAR
NORMALIZE = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
# Where that goes with all kinds of pictures.
CASES = {
    "RandomResizedCrop": v2.RandomResizedCrop((24, 20)),
    "RandomResizedCrop larger": v2.RandomResizedCrop((90, 70), (0.5, 1), (0.5, 2)),
    "RandomResizedCrop never fits": v2.RandomResizedCrop(20, (1, 1), (4, 5)),
    "RandomResizedCrop never fits upright": v2.RandomResizedCrop(20, (1, 1), (0.1, 0.2)),
    "RandomCrop": v2.RandomCrop((20, 17)),
    "RandomCrop if needed": v2.RandomCrop((60, 70), [3, 1], pad_if_needed=True),
    "RandomCrop edge": v2.RandomCrop(32, 50, padding_mode="edge"),
    "RandomCrop reflect": v2.RandomCrop((40, 32), [1, 2, 3, 9], padding_mode="reflect"),
    "RandomCrop symmetric": v2.RandomCrop((40, 32), [9, 2, 3, 9], padding_mode="symmetric"),
    "RandomHorizontalFlip": v2.RandomHorizontalFlip(),
    "RandomHorizontalFlip 0.9": v2.RandomHorizontalFlip(0.9),
    "ColorJitter": v2.ColorJitter(0.4, 0.4, 0.4, 0.2),
    "ColorJitter ranges": v2.ColorJitter(brightness=(0, 0.5), contrast=3, hue=(-0.5, 0.5)),
    "ColorJitter hue": v2.ColorJitter(hue=0.5),
    "RandomErasing": v2.RandomErasing(),
    "TrivialAugmentWide": v2.TrivialAugmentWide(),
    "TrivialAugmentWide 7": v2.TrivialAugmentWide(7, fill=0.75),
}
# Where that has a number a channel.
COLORED = {
    "RandomCrop padded": v2.RandomCrop(32, 4, fill=[0.25, 0.5, 3]),
    "RandomErasing colors": v2.RandomErasing(1, ratio=(1, 1), value=(0.5, 7, 1)),
    "Normalize": NORMALIZE,
    "TrivialAugmentWide bilinear": v2.TrivialAugmentWide(interpolation=BILINEAR, fill=[0.5, 9, 0.25]),
    "all": v2.Compose([v2.RandomResizedCrop(24), v2.RandomHorizontalFlip(), v2.TrivialAugmentWide(), NORMALIZE,
                       v2.RandomErasing(0.5)]),
}
FLOATS = {"RandomErasing random": v2.RandomErasing(0.8, (0.3, 0.9), value="random")}
MIXES = {
    "MixUp": v2.MixUp(num_classes=5),
    "MixUp 0.2": v2.MixUp(alpha=0.2, num_classes=5),
    "CutMix": v2.CutMix(alpha=0.7, num_classes=5),
}


def make_images():
    torch.set_num_threads(1)
    torch.manual_seed(1)
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 7), (45, 63), mode="bicubic").clamp(0, 1)[0]
    floats = {"colored floats": smooth, "noise": torch.rand(3, 41, 30), "grey floats": torch.rand(1, 45, 63)}
    images = {name.replace("floats", "bytes"): (image * 255).to(torch.uint8) for name, image in floats.items()}
    images["noise bytes"] = images.pop("noise")
    images |= floats
    images["stack"] = torch.rand(2, 3, 41, 43)
    images["even bytes"] = torch.full((3, 40, 40), 77, dtype=torch.uint8)
    images["two values"] = (torch.rand(3, 40, 40) > 0.5).to(torch.uint8) * 255
    images["three rows"] = torch.rand(3, 39, 150)
    return images


def make_batches():
    torch.manual_seed(2)
    return {"batch": (torch.rand(6, 3, 20, 30), torch.tensor([0, 4, 2, 2, 1, 3])),
            "byte batch": (torch.randint(256, (4, 3, 17, 9), dtype=torch.uint8), torch.tensor([0, 1, 0, 4])),
            "soft batch": (torch.rand(4, 1, 8, 8), torch.softmax(torch.rand(4, 5), 1))}


class TransformsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        images, batches = make_images(), make_batches()
        cls.theirs = {}

        def run(name, image, seed, function, *arguments):
            torch.manual_seed(seed)
            given = [argument.clone() for argument in arguments]
            cls.theirs[name, image, str(seed)] = function(*given)

        for image, pixels in images.items():
            cases = dict(CASES) if pixels.shape[-3] == 1 else CASES | COLORED
            if pixels.is_floating_point():
                cases |= FLOATS
            for name, transform in cases.items():
                for seed in range(30 if "Trivial" in name else 6):
                    if name == "all" and not pixels.dtype == torch.uint8:
                        continue
                    run(name, image, seed, transform, pixels)
        for batch, (pixels, labels) in batches.items():
            for name, mix in MIXES.items():
                for seed in range(6):
                    if pixels.is_floating_point() or name == "CutMix":
                        run(name, batch, seed, mix, pixels, labels)
        everything = images | {name: pixels for name, (pixels, _) in batches.items()}
        everything |= {f"{name}.labels": labels for name, (_, labels) in batches.items()}
        with tempfile.TemporaryDirectory() as directory:
            source, result = Path(directory, "images"), Path(directory, "results")
            save_file({name: tensor.contiguous() for name, tensor in everything.items()}, source)
            lines = "".join("\t".join(key) + "\n" for key in cls.theirs)
            subprocess.run([PROGRAM, source, result], check=True, input=lines, text=True)
            cls.ours = load_file(result)

    def compare(self, ours, theirs):
        self.assertEqual(ours.dtype, theirs.dtype)
        self.assertEqual(ours.shape, theirs.shape)
        difference = (ours.double() - theirs.double()).abs().max().item()
        self.assertLessEqual(difference, 1 if ours.dtype == torch.uint8 else 1e-5)

    def test_results_are_those_of_torchvision(self):
        for key, theirs in self.theirs.items():
            with self.subTest(" ".join(key)):
                ours = self.ours[" ".join(key)]
                if isinstance(theirs, tuple):
                    self.compare(self.ours[" ".join(key) + " targets"], theirs[1])
                    theirs = theirs[0]
                self.compare(ours, theirs)

    def test_most_bytes_are_equal(self):
        for image in ("colored bytes", "grey bytes"):
            for name in CASES:
                pairs = [(self.ours[" ".join(key)], theirs) for key, theirs in self.theirs.items()
                         if key[0] == name and key[1] == image]
                equal = sum((a == b).sum().item() for a, b in pairs) / sum(a.numel() for a, _ in pairs)
                self.assertGreater(equal, 0.99, f"{name} {image}")

    def test_each_transform_does_something(self):
        images = make_images()
        for name in CASES:
            same = [key for key, theirs in self.theirs.items() if key[0] == name and key[1] == "colored bytes"
                    and theirs.shape == images[key[1]].shape and torch.equal(theirs, images[key[1]])]
            self.assertLess(len(same), 12 if "Trivial" in name else 6, name)


if __name__ == "__main__":
    PROGRAM = sys.argv.pop(1)
    unittest.main()
