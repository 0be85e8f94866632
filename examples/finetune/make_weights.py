#!/usr/bin/env python3
"""Trains a small network to tell odd digits from even ones, and saves it for the C++ program to begin with.

Usage: make_weights.py OUT [MNIST]: writes OUT/model.safetensors.
"""
import gzip
import os
import sys

import torch
from safetensors.torch import save_model


class Net(torch.nn.Module):
    """The same as NetImpl in main.cpp: equal names are what makes the weights fit."""

    def __init__(self, classes):
        super().__init__()
        nn = torch.nn
        self.backbone = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(),
                                      nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
                                      nn.Flatten(), nn.Linear(16 * 7 * 7, 64), nn.ReLU())
        self.head = nn.Linear(64, classes)

    def forward(self, images):
        return self.head(self.backbone(images))


def mnist(directory, part):
    """Images as Tandem's MnistDataset gives them, [N, 1, 28, 28], and labels."""
    def read(name, header):
        with gzip.open(os.path.join(directory, f"{part}-{name}-ubyte.gz")) as file:
            return torch.frombuffer(bytearray(file.read()[header:]), dtype=torch.uint8)

    images = read("images-idx3", 16).view(-1, 1, 28, 28)
    return (images / 255 - 0.1307) / 0.3081, read("labels-idx1", 8).long()


def main(out, directory="data/mnist"):
    torch.manual_seed(0)
    images, labels = mnist(directory, "train")
    net = Net(classes=2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for batch in torch.randperm(len(images)).split(128):
        loss = torch.nn.functional.cross_entropy(net(images[batch]), labels[batch] % 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    os.makedirs(out, exist_ok=True)
    save_model(net, os.path.join(out, "model.safetensors"))
    print(f"trained to tell odd from even, loss {loss.item():.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
