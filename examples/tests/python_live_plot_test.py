"""python_live_plot_test.py LIBRARY: the last picture is saved. 77 without matplotlib."""
import os
import re
import subprocess
import sys
import tempfile

try:
    from matplotlib import image
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

script = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "python_live_plot/live_plot.py")


def run(*arguments):
    return subprocess.run([sys.executable, script, sys.argv[1], *arguments], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, env={**os.environ, "MPLBACKEND": "Agg"})


with tempfile.TemporaryDirectory() as work:
    path = os.path.join(work, "plot.png")
    done = run("--steps", "3000", "--save", path)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    loss = float(re.fullmatch(r"step 3000: loss ([\d.]+)\n", done.stdout).group(1))
    assert loss < 0.05, "it has not learned"
    picture = image.imread(path)
    assert picture.shape == (400, 1000, 4), picture.shape
    blue = (abs(picture[..., :3] - (0x1f / 255, 0x77 / 255, 0xb4 / 255)) < 0.02).all(-1)  # matplotlib's first colour
    for half, what in ((blue[:, :500], "loss"), (blue[:, 500:], "network")):
        assert half.any(0).sum() > 150, f"there is no curve of the {what}"

    failed = run("--ranks", "0", "--save", path)
    assert failed.returncode != 0 and "cpu 0 is out of range" in failed.stderr, failed.stderr
