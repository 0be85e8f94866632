"""Records the scales and weights of PyTorch's GradScaler, which tests/optim/grad_scaler_test.cpp compares.

    python tests/optim/data/record_grad_scaler.py

writes grad_scaler.json beside this file, with any Python that has torch 2.11.0. An iteration has each optimizer's
gradient (unscaled; null stands for an infinity, "nan" for NaN) and, after update(), the scale, the growth tracker, the
weights, and whether each step was skipped. In a case with "clip", the gradients are unscaled and clipped before the step.
"""

import json
import math
import pathlib

import torch

CASES = [
    {"options": {}, "gradients": [[[0.5]], [[None]], [["nan"]], [[-2.0]]]},
    {
        "options": {"init_scale": 8.0, "growth_factor": 3.0, "backoff_factor": 0.25, "growth_interval": 3},
        "gradients": [[[g]] for g in [0.1, 0.2, 0.3, 0.4, None, 0.5, 0.6, None, None, 0.7, 0.8, 0.9, 1.0, "nan", 0.3]],
    },
    {  # two optimizers that share a scaler: either skips alone, and the scale changes once
        "options": {"init_scale": 1024.0, "growth_interval": 2},
        "gradients": [
            [[0.1, 3.0], [0.2]],
            [[0.3, -1.0], [0.4]],
            [[None, 1.0], [0.1]],
            [[0.7, 1.0], ["nan"]],
            [[None, None], [None]],
            [[0.1, 0.2], [0.3]],
            [[0.1, 0.2], [0.3]],
        ],
    },
    {"options": {"growth_interval": 1}, "clip": 0.75, "gradients": [[[3.0, 4.0]], [[0.1, None]], [[0.3, 0.4]]]},
    {"options": {"init_scale": 2.0**127, "growth_interval": 1}, "gradients": [[[2.0**-20]]] * 2},  # cannot grow on
]


def number(value):
    return math.inf if value is None else float(value)


def weights_of(optimizer):
    return [p.item() for group in optimizer.param_groups for p in group["params"]]


def record(case):
    scaler = torch.amp.GradScaler("cpu", **case["options"])
    optimizers = [
        torch.optim.SGD([torch.ones((), requires_grad=True) for _ in gradients], lr=0.1)
        for gradients in case["gradients"][0]
    ]
    iterations = []
    for gradients in case["gradients"]:
        before = [weights_of(optimizer) for optimizer in optimizers]
        # The loss whose gradients these are. scale() is called once for all, as PyTorch makes its tensor on the first.
        loss = sum(
            p * torch.tensor(number(g))
            for optimizer, row in zip(optimizers, gradients, strict=True)
            for p, g in zip(optimizer.param_groups[0]["params"], row, strict=True)
        )
        scaler.scale(loss).backward()
        norms = []
        for optimizer in optimizers:
            if "clip" in case:
                scaler.unscale_(optimizer)
                norm = torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], case["clip"], foreach=True)
                norms.append(norm.item() if math.isfinite(norm.item()) else None)
            scaler.step(optimizer)
        scaler.update()
        for optimizer in optimizers:
            optimizer.zero_grad()
        state = scaler.state_dict()
        after = [weights_of(optimizer) for optimizer in optimizers]
        iterations.append(
            {
                "gradients": gradients,
                "scale": state["scale"],
                "growth_tracker": state["_growth_tracker"],
                "weights": after,
                "skipped": [a == b for a, b in zip(after, before, strict=True)],
                "norms": norms,
            }
        )
    clip = {"clip": case["clip"]} if "clip" in case else {}
    return {"options": case["options"], **clip, "iterations": iterations}


def main():
    defaults = torch.amp.GradScaler("cpu").state_dict()
    recording = {"torch": torch.__version__.split("+")[0], "defaults": defaults}
    # One iteration a line, so that a change of one shows as such.
    cases = []
    for case in map(record, CASES):
        lines = [json.dumps(iteration, allow_nan=False) for iteration in case.pop("iterations")]
        cases.append(json.dumps(case)[:-1] + ', "iterations": [\n' + ",\n".join(lines) + "\n]}")
    text = json.dumps(recording)[:-1] + ', "cases": [\n' + ",\n".join(cases) + "\n]}\n"
    pathlib.Path(__file__).with_name("grad_scaler.json").write_text(text)


if __name__ == "__main__":
    main()
