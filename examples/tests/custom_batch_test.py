"""custom_batch_test.py PROGRAM: a user's struct comes whole through all modes, each scene once."""
import re
import subprocess
import sys

said = subprocess.run([sys.argv[1]], stdout=subprocess.PIPE, text=True, check=True).stdout
print(said)
modes, scenes, boxes, errors, worst = zip(*re.findall(
    r"(\w+): (\d+) scenes \(scene 400 to scene 452\) with (\d+) boxes, "
    r"mean error ([\d.]+), worst at scene (\d+)\n", said))
assert modes == ("shard", "dispatch", "split")
assert set(scenes) == {"53"}

# As the program makes them: box `quarter` of a scene has a size of 3 to 7, or is not there.
expected = sum((number * 7 + quarter * 5) % 8 >= 3 for number in range(400, 453) for quarter in range(4))
assert set(boxes) == {str(expected)}, f"not {expected} boxes"
assert len(set(worst)) == 1
assert all(float(error) < 0.05 for error in errors), "it has not learned"
assert max(map(float, errors)) - min(map(float, errors)) < 1e-4, "the modes' samples or their order differ"
