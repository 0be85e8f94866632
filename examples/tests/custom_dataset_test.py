"""custom_dataset_test.py PROGRAM: samples do not depend on ranks and workers, and augmentation on the epoch."""
import re
import subprocess
import sys

said = subprocess.run([sys.argv[1]], stdout=subprocess.PIPE, text=True, check=True).stdout
print(said)
seen = {}
for line in said.splitlines():
    name, samples, *epochs = re.fullmatch(
        r"(\w+), ranks \d, workers \d: samples (\d+), epoch 0 (-?[\d.]+), epoch 1 (-?[\d.]+)", line).groups()
    seen.setdefault(name, []).append((samples, *epochs))

recordings, readings = seen["recordings"], seen["readings"]
assert len(recordings) == len(readings) == 5
assert len(set(recordings)) == 1 and len(set(readings)) == 1, "they depend on ranks or workers"
assert recordings[0][0] == "27" and recordings[0][1] != recordings[0][2], "shuffled and augmented anew each epoch"
assert readings[0][0] == "13" and readings[0][1] == readings[0][2], "the same lines in each epoch"
