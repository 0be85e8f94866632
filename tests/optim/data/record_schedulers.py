"""Records the learning rates (and momenta) of PyTorch's schedulers, which tests/optim/schedulers_test.cpp compares.

    python tests/optim/data/record_schedulers.py

writes schedulers.json beside this file, with any Python that has torch 2.11.0. Each case holds what the test needs to
build the same scheduler; row i of "lrs" (and "momenta") has the parameter groups' values after i calls of step(), and
"state" is the numbers of state_dict() after 30.
"""

import json
import math
import pathlib
import warnings

import torch
from torch.optim import lr_scheduler

STEPS = 60
STATE_STEP = 30
LRS = [0.1, 0.003]
LAMBDAS = {"power": lambda epoch: 0.95**epoch, "inverse": lambda epoch: 1 / (1 + epoch)}
# Falls, stalls, falls again, and has the NaN of a loss that overflows.
METRICS = [round(1 / (1 + i), 3) for i in range(15)] + [0.06 + 0.001 * (i % 4) for i in range(30)]
METRICS += [0.05 - 0.0005 * i for i in range(8)] + [float("nan")] + [0.045] * (STEPS - 54)

warmup = {"scheduler": "LinearLR", "options": {"start_factor": 0.1, "total_iters": 9}}
CASES = [
    {"scheduler": "ConstantLR", "options": {}},
    {"scheduler": "ConstantLR", "options": {"factor": 0.7, "total_iters": 13}},
    {"scheduler": "StepLR", "options": {"step_size": 7}},
    {"scheduler": "StepLR", "options": {"step_size": 1, "gamma": 0.93}},
    {"scheduler": "MultiStepLR", "options": {"milestones": [10, 11, 40]}},
    {"scheduler": "MultiStepLR", "options": {"milestones": [30, 0, 20, 30], "gamma": 0.7}},
    {"scheduler": "ExponentialLR", "options": {"gamma": 0.9}},
    {"scheduler": "ExponentialLR", "options": {"gamma": 1.01}},
    {"scheduler": "LinearLR", "options": {}},
    {"scheduler": "LinearLR", "options": {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 50}},
    {"scheduler": "PolynomialLR", "options": {}},
    {"scheduler": "PolynomialLR", "options": {"total_iters": 47, "power": 2.5}},
    {"scheduler": "CosineAnnealingLR", "options": {"T_max": 60, "eta_min": 0.001}},
    {"scheduler": "CosineAnnealingLR", "options": {"T_max": 13}},
    {"scheduler": "CosineAnnealingLR", "options": {"T_max": 1, "eta_min": 0.002}},
    {"scheduler": "CosineAnnealingWarmRestarts", "options": {"T_0": 9}},
    {"scheduler": "CosineAnnealingWarmRestarts", "options": {"T_0": 4, "T_mult": 2, "eta_min": 0.0005}},
    {"scheduler": "LambdaLR", "options": {"lr_lambda": ["power"]}},
    {"scheduler": "LambdaLR", "options": {"lr_lambda": ["power", "inverse"]}},
    {"scheduler": "OneCycleLR", "options": {"max_lr": [0.5], "total_steps": 60}},
    {
        "scheduler": "OneCycleLR",
        "optimizer": "AdamW",
        "options": {
            "max_lr": [0.5, 0.02],
            "total_steps": 61,
            "pct_start": 0.21,
            "anneal_strategy": "linear",
            "base_momentum": [0.8, 0.7],
            "max_momentum": [0.9],
            "div_factor": 10.0,
            "final_div_factor": 100.0,
            "three_phase": True,
        },
    },
    {
        "scheduler": "OneCycleLR",
        "options": {"max_lr": [0.5], "total_steps": 70, "pct_start": 0.0, "cycle_momentum": False},
    },
    {
        "scheduler": "SequentialLR",
        "options": {
            "schedulers": [warmup, {"scheduler": "CosineAnnealingLR", "options": {"T_max": 50}}],
            "milestones": [10],
        },
    },
    {
        "scheduler": "SequentialLR",
        "options": {
            "schedulers": [warmup, {"scheduler": "OneCycleLR", "options": {"max_lr": [0.5], "total_steps": 50}}],
            "milestones": [10],
        },
    },
    {
        "scheduler": "SequentialLR",
        "options": {
            "schedulers": [
                {"scheduler": "ConstantLR", "options": {"factor": 0.5, "total_iters": 3}},
                {"scheduler": "CosineAnnealingWarmRestarts", "options": {"T_0": 5}},
                {"scheduler": "PolynomialLR", "options": {"total_iters": 11, "power": 2.0}},
                {"scheduler": "ExponentialLR", "options": {"gamma": 0.8}},
                {"scheduler": "MultiStepLR", "options": {"milestones": [2, 5]}},
            ],
            "milestones": [5, 17, 29, 41],
        },
    },
    {"scheduler": "ReduceLROnPlateau", "options": {"patience": 2}},
    {
        "scheduler": "ReduceLROnPlateau",
        "options": {"factor": 0.5, "patience": 0, "threshold": 0.002, "threshold_mode": "abs", "cooldown": 3},
    },
    {
        "scheduler": "ReduceLROnPlateau",
        "options": {"mode": "max", "patience": 4, "threshold": 0.1, "min_lr": [0.01, 0.0001]},
    },
    {
        "scheduler": "ReduceLROnPlateau",
        "options": {"mode": "max", "factor": 0.3, "patience": 1, "threshold_mode": "abs", "eps": 1e-5, "cooldown": 1},
    },
]


def make_optimizer(kind):
    groups = [{"params": [torch.zeros(1)], "lr": lr} for lr in LRS]
    return torch.optim.AdamW(groups) if kind == "AdamW" else torch.optim.SGD(groups, momentum=0.9)


def make_scheduler(case, optimizer):
    options = dict(case["options"])
    if "schedulers" in options:
        options["schedulers"] = [make_scheduler(child, optimizer) for child in options["schedulers"]]
    if "lr_lambda" in options:
        lambdas = [LAMBDAS[name] for name in options["lr_lambda"]]
        options["lr_lambda"] = lambdas if len(lambdas) > 1 else lambdas[0]
    for key in ("max_lr", "base_momentum", "max_momentum"):
        if len(options.get(key, [])) == 1:
            options[key] = options[key][0]
    return getattr(lr_scheduler, case["scheduler"])(optimizer, **options)


def momentum_of(group):
    return group["betas"][0] if "betas" in group else group["momentum"]


def cycles_momentum(case):
    children = case["options"].get("schedulers", [])
    return case["scheduler"] == "OneCycleLR" or any(cycles_momentum(child) for child in children)


def numbers_of(state):
    def is_number(value):
        return type(value) in (int, float) and math.isfinite(value)  # JSON has no infinity

    kept = {
        key: value
        for key, value in state.items()
        if is_number(value) or (isinstance(value, list) and all(map(is_number, value)))
    }
    if "_schedulers" in state:
        kept["_schedulers"] = [numbers_of(child) for child in state["_schedulers"]]
    return kept


def record(case):
    optimizer = make_optimizer(case.get("optimizer", "SGD"))
    scheduler = make_scheduler(case, optimizer)
    plateau = case["scheduler"] == "ReduceLROnPlateau"
    lrs, momenta = [], []
    for step in range(STEPS + 1):
        lrs.append([group["lr"] for group in optimizer.param_groups])
        momenta.append([momentum_of(group) for group in optimizer.param_groups])
        if step == STATE_STEP:
            state = numbers_of(scheduler.state_dict())
        if step < STEPS:
            scheduler.step(*([METRICS[step]] if plateau else []))
    return case | {"lrs": lrs, "state": state} | ({"momenta": momenta} if cycles_momentum(case) else {})


def main():
    warnings.simplefilter("ignore")  # the order of optimizer.step() and scheduler.step()
    recording = {
        "torch": torch.__version__.split("+")[0],
        "base_lrs": LRS,
        # JSON has no NaN.
        "metrics": [None if metric != metric else metric for metric in METRICS],
        "cases": [record(case) for case in CASES],
    }
    # One case a line, so that a change of one shows as such.
    cases = ",\n".join(json.dumps(case, allow_nan=False, separators=(",", ":")) for case in recording.pop("cases"))
    text = json.dumps(recording)[:-1] + ', "cases": [\n' + cases + "\n]}\n"
    pathlib.Path(__file__).with_name("schedulers.json").write_text(text)


if __name__ == "__main__":
    main()
