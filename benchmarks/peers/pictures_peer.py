"""A training's pictures through torchvision and PyTorch's DataLoader: decode, RandomResizedCrop to 224, flip, normalise.
Prints a JSON line: pictures/s over the epochs after the first, and the largest PSS of all processes in MB."""
import argparse
import glob
import json
import os
import time

import torch
from torchvision import io
from torchvision.transforms import v2

from peer_common import _mem, tree_memory


def memory_mb():
    """PSS of this process and its workers."""
    return (tree_memory()["pss_sum_mib"] + _mem(os.getpid())["Pss"]) * 2**20 / 1e6


class Folder(torch.utils.data.Dataset):
    def __init__(self, folder, decoder):
        self.paths = sorted(glob.glob(f"{folder}/*/*.jpg"))
        self.decoder = decoder
        to_tensor = [v2.PILToTensor()] if decoder == "pillow" else []
        self.transform = v2.Compose([
            *to_tensor, v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        path = self.paths[index]
        if self.decoder == "pillow":
            from PIL import Image
            with Image.open(path) as image:
                return self.transform(image.convert("RGB")), 0
        return self.transform(io.decode_jpeg(io.read_file(path), mode=io.ImageReadMode.RGB)), 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--decoder", choices=("pillow", "torchvision"), default="torchvision")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(Folder(options.folder, options.decoder), 64, shuffle=True,
                                         num_workers=options.workers, persistent_workers=True)
    memory, seconds, pictures = 0.0, 0.0, 0
    for epoch in range(options.epochs):
        begin = time.perf_counter()
        for step, (images, _) in enumerate(loader):
            if epoch > 0:
                pictures += len(images)
            elif step % 8 == 7:
                memory = max(memory, memory_mb())
        if epoch > 0:
            seconds += time.perf_counter() - begin
    print(json.dumps({"pictures_per_s": pictures / seconds, "memory_mb": memory}))


if __name__ == "__main__":
    main()
