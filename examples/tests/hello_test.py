"""hello_test.py PROGRAM: it trains, and is the program that the README shows."""
import os
import re
import subprocess
import sys

root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

with open(os.path.join(root, "README.md")) as readme, open(os.path.join(root, "examples/hello/main.cpp")) as program:
    shown = re.search(r"```cpp\n(.*?)```", readme.read(), re.DOTALL).group(1)
    assert shown == program.read(), "README.md shows another program than examples/hello/main.cpp"

said = subprocess.run([sys.argv[1]], cwd=root, stdout=subprocess.PIPE, text=True, check=True).stdout
accuracy = float(re.fullmatch(r"test accuracy ([\d.]+) %\n", said).group(1))
assert accuracy > 93, said
