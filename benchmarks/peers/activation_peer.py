"""The gpt of Tandem's train in PyTorch, with or without torch.utils.checkpoint for each of its layers, on the CPU with
one thread: float32, AdamW. Prints one JSON line: the median seconds of an update and the process's peak in MB."""
import argparse
import json
import resource
import statistics
import time

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from peer_common import decay_groups


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln1, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ln2, self.fc, self.out = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.ln1(x)).chunk(3, 2))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return x + self.out(nn.functional.gelu(self.fc(self.ln2(x))))


class Gpt(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.again = options.checkpoint
        self.wte, self.wpe = nn.Embedding(256, options.width), nn.Embedding(options.block_size, options.width)
        self.blocks = nn.ModuleList(Block(options.width, options.heads) for _ in range(options.layers))
        self.lnf, self.head = nn.LayerNorm(options.width), nn.Linear(options.width, 256, bias=False)

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe.weight[: tokens.size(1)]
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.again else block(x)
        return self.head(self.lnf(x)).flatten(0, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("layers", "width", "heads", "block-size", "batch-size", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--data-file", required=True)
    parser.add_argument("--checkpoint", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    text = torch.frombuffer(bytearray(open(options.data_file, "rb").read()), dtype=torch.uint8).long()
    net = Gpt(options)
    optimizer = torch.optim.AdamW(decay_groups(net), lr=1e-3, weight_decay=0.01, fused=True)
    seconds = []
    for _ in range(options.steps):
        places = torch.randint(0, text.numel() - options.block_size - 1, (options.batch_size,))
        tokens = torch.stack([text[place: place + options.block_size + 1] for place in places])
        begin = time.monotonic()
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(tokens[:, :-1]), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        seconds.append(time.monotonic() - begin)
    print(json.dumps({"step_s": statistics.median(seconds[2:]),
                      "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6}))


if __name__ == "__main__":
    main()
