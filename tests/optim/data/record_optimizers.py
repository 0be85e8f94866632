"""Records the weights and states of PyTorch's Muon, AdamW and Adafactor, and of Lion by its paper's formula, after 1 and
after 50 updates, which tests/optim/more_optimizers_test.cpp compares.

    build/tests/python-venv/bin/python tests/optim/data/record_optimizers.py

writes optimizers.json beside this file, with any Python that has torch 2.11.0. Parameters begin as, and gradients are,
what `numbers` gives, which the test has as well.
"""

import json
import pathlib

import torch

SHAPES = [[6, 4], [3, 7], [5], [2, 3, 4], [1, 8]]
STEPS = 50


def numbers(shape, seed):
    """Numbers from -1 to 1 that need no generator."""
    count = 1
    for size in shape:
        count *= size
    x = torch.arange(count, dtype=torch.float64)
    return torch.sin(x * x * 0.37 + x * 1.3 + seed * 0.7).reshape(shape)


class Lion:
    """Algorithm 2 of arXiv:2302.06675."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        self.params, self.lr, self.betas, self.weight_decay = params, lr, betas, weight_decay
        self.state = {p: {"exp_avg": torch.zeros_like(p)} for p in params}

    @torch.no_grad()
    def step(self):
        for p in self.params:
            m, (beta1, beta2) = self.state[p]["exp_avg"], self.betas
            c = beta1 * m + (1 - beta1) * p.grad
            p -= self.lr * (torch.sign(c) + self.weight_decay * p)
            m.copy_(beta2 * m + (1 - beta2) * p.grad)


def run(make, shapes, dtype):
    params = [numbers(shape, 50 + i).to(dtype).requires_grad_() for i, shape in enumerate(shapes)]
    optimizer = make(params)
    record = {}
    for step in range(STEPS):
        for i, p in enumerate(params):
            p.grad = (numbers(p.shape, 3 * step + i) * (1 + i)).to(dtype)
        optimizer.step()
        if step in (0, STEPS - 1):
            record[str(step + 1)] = [{
                "weights": p.detach().flatten().tolist(),
                "state": {name: torch.as_tensor(value).flatten().tolist()
                          for name, value in optimizer.state[p].items() if name != "step"}} for p in params]
    return {"shapes": shapes, "double": dtype == torch.float64, "after": record}


def main():
    matrices = [shape for shape in SHAPES if len(shape) == 2]
    others = [shape for shape in SHAPES if len(shape) != 2]
    cases = {}
    for dtype, name in ((torch.float32, "float"), (torch.float64, "double")):
        cases[f"lion {name}"] = run(lambda p: Lion(p, lr=0.01), SHAPES, dtype)
        cases[f"lion decay {name}"] = run(lambda p: Lion(p, lr=0.003, betas=(0.8, 0.95), weight_decay=0.3), SHAPES, dtype)
        cases[f"muon {name}"] = run(lambda p: torch.optim.Muon(p, lr=0.02), matrices, dtype)
        cases[f"muon rms {name}"] = run(
            lambda p: torch.optim.Muon(p, lr=0.01, weight_decay=0.2, momentum=0.9, nesterov=False,
                                       adjust_lr_fn="match_rms_adamw"), matrices, dtype)
        cases[f"muon others {name}"] = run(
            lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1, betas=(0.8, 0.99), eps=1e-6), others, dtype)
        cases[f"adafactor {name}"] = run(lambda p: torch.optim.Adafactor(p), SHAPES, dtype)
        cases[f"adafactor all {name}"] = run(
            lambda p: torch.optim.Adafactor(p, lr=0.05, beta2_decay=-0.7, eps=(1e-4, 1e-2), d=1.5, weight_decay=0.1),
            SHAPES, dtype)
    path = pathlib.Path(__file__).with_name("optimizers.json")
    path.write_text(json.dumps({"torch": torch.__version__, "cases": cases}, separators=(",", ":")) + "\n")


main()
