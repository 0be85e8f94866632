"""dcgan_test.py PROGRAM: a GAN trains on one rank and on several, whose weights and buffers stay alike."""
import os
import re
import subprocess
import sys

root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
for ranks in ("1", "2", "4"):
    said = subprocess.run([sys.argv[1], "60", ranks, "4000"], stdout=subprocess.PIPE, text=True, check=True,
                          cwd=root).stdout
    print(said)
    steps = re.findall(r"step (\d+), critic ([\d.e+-]+), generator ([\d.e+-]+)", said)
    assert [int(step) for step, _, _ in steps] == [20, 40, 60]
    critic = [float(loss) for _, loss, _ in steps]
    assert critic[-1] < 1.38, "the critic has learnt to tell"  # 2 ln 2 is guessing
    apart, ink = re.search(r"ranks differ by ([\d.e+-]+), ink of made images ([\d.e+-]+)", said).groups()
    assert float(apart) == 0, "weights and buffers are the same on all ranks"
    assert 0.02 < float(ink) < 0.48, "images have become dark, as digits are: 0.13; untrained ones have 0.5"
