"""Eager PyTorch with Accelerate on one GPU: the workloads of train_peer.py. Prints one JSON line.

--loader framework: torch DataLoader(TensorDataset, batch_size, shuffle), pinned, as Accelerate prepares it.
--loader tensor: the whole training set on the GPU, batches by index_select: nothing but computing.
"""
import argparse
import json
import time

import peer_common
import train_peer


def parse():
    a = argparse.ArgumentParser()
    a.add_argument("--model", choices=["mlp", "cnn", "gpt"], required=True)
    a.add_argument("--batch", type=int, default=64)
    a.add_argument("--steps", type=int, default=300)
    a.add_argument("--warmup", type=int, default=20)
    a.add_argument("--loader", choices=["framework", "tensor"], default="framework")
    a.add_argument("--data-file", default=None)
    return a.parse_args()


def batches_on_gpu(x, y, batch):
    import torch

    while True:
        order = torch.randperm(len(x), device=x.device)
        for i in range(0, len(x) - batch + 1, batch):
            yield x.index_select(0, order[i:i + batch]), y.index_select(0, order[i:i + batch])


def main():
    a = parse()
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, TensorDataset

    accelerator = Accelerator()
    x, y = train_peer.load_data(a)
    model = train_peer.build_model(a.model)
    optimizer = torch.optim.AdamW(peer_common.decay_groups(model), lr=1e-3, weight_decay=0.01)
    model, optimizer = accelerator.prepare(model, optimizer)
    if a.loader == "framework":
        loader = DataLoader(TensorDataset(x, y), batch_size=a.batch, shuffle=True, drop_last=True, pin_memory=True)
        batches = train_peer.endless(accelerator.prepare(loader))
    else:
        batches = batches_on_gpu(x.to(accelerator.device), y.to(accelerator.device), a.batch)
    for step in range(a.warmup + a.steps):
        if step == a.warmup:
            torch.cuda.synchronize()
            start = time.perf_counter()
        inputs, targets = next(batches)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        accelerator.backward(loss)
        optimizer.step()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    print(json.dumps({"samples_per_s": round(a.batch * a.steps / seconds, 1), "step_ms": round(1e3 * seconds / a.steps, 4),
                      "torch": torch.__version__}))


if __name__ == "__main__":
    main()
