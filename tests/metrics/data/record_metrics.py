#!/usr/bin/env python3
"""Writes metrics.json: what scikit-learn (and math.fsum) says of cases that tests/metrics/metrics_test.cpp judges.

    build/tests/python-venv/bin/python tests/metrics/data/record_metrics.py > tests/metrics/data/metrics.json
"""
import json
import math
import random
import sys
import warnings

import numpy as np
import sklearn
from sklearn import metrics

warnings.simplefilter("ignore")


def number(value):
    """NaN is no JSON."""
    value = float(value)
    return None if math.isnan(value) else value


def class_case(name, scores, targets):
    scores, targets = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    classes = scores.shape[1]
    labels = range(classes)
    predicted = scores.argmax(axis=1)
    expected = {
        "confusion": metrics.confusion_matrix(targets, predicted, labels=labels).tolist(),
        "top": [number(metrics.top_k_accuracy_score(targets, scores, k=k, labels=labels))
                for k in range(1, classes)] if classes > 2 else [],
    }
    for zero in (0.0, 1.0, math.nan):
        for key, score in (("precision", metrics.precision_score), ("recall", metrics.recall_score),
                           ("f1", metrics.f1_score)):
            of = lambda average, **more: score(targets, predicted, average=average, zero_division=zero, **more)
            expected[f"{key} {zero}"] = {
                "macro": number(of("macro")), "micro": number(of("micro", labels=labels)),
                "per_class": [number(one) for one in of(None, labels=labels)]}
    one_hot = np.eye(classes, dtype=int)[targets]
    expected["auroc"] = [number(metrics.roc_auc_score(one_hot[:, c], scores[:, c])) for c in labels]
    expected["average_precision"] = [number(metrics.average_precision_score(one_hot[:, c], scores[:, c]))
                                     for c in labels]
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    losses = [-math.log(share[target]) for share, target in zip(shares, targets)]
    expected["perplexity"] = math.exp(math.fsum(losses) / len(losses))
    expected["bits_per_byte"] = math.fsum(losses) / math.log(2) / sum(int(t) + 1 for t in targets)
    return {"name": name, "scores": scores.tolist(), "targets": targets.tolist(), "expected": expected}


def binary_case(name, scores, targets):
    return {"name": name, "scores": list(scores), "targets": list(targets),
            "expected": {"auroc": number(metrics.roc_auc_score(targets, scores)),
                         "average_precision": number(metrics.average_precision_score(targets, scores))}}


def regression_case(name, outputs, targets):
    outputs, targets = np.asarray(outputs, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    return {"name": name, "outputs": outputs.tolist(), "targets": targets.tolist(),
            "expected": {"mse": metrics.mean_squared_error(targets, outputs),
                         "mae": metrics.mean_absolute_error(targets, outputs),
                         "r2": number(metrics.r2_score(targets, outputs))}}


def main():
    draw = np.random.default_rng(23)
    coarse = lambda *shape: np.round(draw.normal(size=shape) * 2) / 2  # many ties
    classes = [
        class_case("five classes", draw.normal(size=(61, 5)), draw.integers(0, 5, 61)),
        class_case("ties", coarse(47, 4), draw.integers(0, 4, 47)),
        class_case("all scores alike", np.zeros((9, 3)), draw.integers(0, 3, 9)),
        class_case("a class that is never a target", draw.normal(size=(30, 4)), draw.integers(0, 3, 30)),
        class_case("a class that is never predicted", draw.normal(size=(30, 4)) - [0, 0, 9, 0],
                   draw.integers(0, 4, 30)),
        class_case("a class that does not occur at all", draw.normal(size=(30, 5)) - [0, 0, 0, 9, 0],
                   draw.choice([0, 1, 2, 4], 30)),
        class_case("one class only", draw.normal(size=(12, 3)), np.ones(12, dtype=int)),
        class_case("one class, always right", [[0.0, 9.0, 1.0]] * 4, np.ones(4, dtype=int)),
        class_case("two classes", coarse(40, 2), draw.integers(0, 2, 40)),
        class_case("one sample", [[0.5, 0.25, 1.0]], [2]),
    ]
    binary = [
        binary_case("scores of [N]", draw.normal(size=70), draw.integers(0, 2, 70)),
        binary_case("ties", coarse(70), draw.integers(0, 2, 70)),
        binary_case("all alike", np.full(12, 0.5), draw.integers(0, 2, 12)),
        binary_case("only 1", draw.normal(size=7), np.ones(7, dtype=int)),
        binary_case("only 0", draw.normal(size=7), np.zeros(7, dtype=int)),
        binary_case("perfect", np.arange(10) / 10, np.arange(10) >= 6),
        binary_case("reversed", -np.arange(10) / 10, np.arange(10) >= 6),
    ]
    regression = [
        regression_case("numbers", draw.normal(size=83), draw.normal(size=83)),
        regression_case("two columns", draw.normal(size=(31, 2)), draw.normal(size=(31, 2)) * [1, 100]),
        regression_case("targets far from 0", 1e9 + draw.normal(size=50), 1e9 + draw.normal(size=50)),
        regression_case("alike and right", [2.5] * 5, [2.5] * 5),
        regression_case("alike and wrong", [2.5, 3, 2.5], [2.5] * 3),
        regression_case("one sample", [2.5], [3.0]),
        regression_case("of very different sizes", draw.normal(size=60) * 10.0 ** draw.integers(-12, 12, 60),
                        draw.normal(size=60) * 10.0 ** draw.integers(-12, 12, 60)),
    ]
    random.seed(7)
    sums = []
    for spread in (0, 30, 300, 320):
        values = [random.uniform(-1, 1) * 10.0 ** random.randint(-spread, min(spread, 290)) for _ in range(200)]
        sums.append({"values": values, "sum": math.fsum(values)})
    sums.append({"values": [1e16, 1.0, -1e16, 5e-324, 1e-300], "sum": math.fsum([1e16, 1.0, -1e16, 5e-324, 1e-300])})
    sums.append({"values": [1.0, 2.0 ** -53], "sum": math.fsum([1.0, 2.0 ** -53])})
    sums.append({"values": [1.0, 2.0 ** -53, 2.0 ** -106], "sum": math.fsum([1.0, 2.0 ** -53, 2.0 ** -106])})
    sums.append({"values": [-1.0 - 2.0 ** -52, -2.0 ** -53], "sum": math.fsum([-1.0 - 2.0 ** -52, -2.0 ** -53])})
    sums.append({"values": [1.7e308, 1.7e308, -1.7e308], "sum": 1.7e308})

    def plain(value):
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(type(value))

    json.dump({"scikit-learn": sklearn.__version__, "classes": classes, "binary": binary, "regression": regression,
               "sums": sums}, sys.stdout, default=plain, separators=(",", ":"))
    print()


if __name__ == "__main__":
    main()
