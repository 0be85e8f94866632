"""language_model_test.py PROGRAM: it learns, and the same on any number of ranks."""
import os
import re
import subprocess
import sys

text = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "docs", "internals.md")
losses = {}
for ranks in (1, 2, 4):
    said = subprocess.run([sys.argv[1], text, "2", str(ranks)], stdout=subprocess.PIPE, text=True, check=True).stdout
    print(said)
    losses[ranks] = [float(loss) for loss in re.findall(r"loss a character ([\d.]+)", said)]
    assert len(losses[ranks]) == 2
    assert losses[ranks][1] < losses[ranks][0] < 5.0, "it has learnt; guessing costs 5.5"
for ranks in (2, 4):
    for one, other in zip(losses[1], losses[ranks]):
        assert abs(one - other) < 2e-3, "other ranks, the same training up to rounding"
