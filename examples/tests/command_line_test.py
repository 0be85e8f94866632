"""command_line_test.py PROGRAM: the flags of a launch do what they say, beside those of the program."""
import re
import subprocess
import sys


def run(*flags, code=0):
    done = subprocess.run([sys.argv[1], *flags], capture_output=True, text=True)
    assert done.returncode == code, (flags, done)
    return done.stdout if code == 0 else done.stderr


usage = run("--help")
for flag in ("--gpus", "--devices", "--cpu", "--threads-per-rank", "--seed", "--mixed-precision", "--epochs", "--lr"):
    assert re.search(rf"{flag}\b", usage), usage

said = run()
ranks, accuracy = re.fullmatch(r"(\d+) ranks, loss [\d.]+, accuracy ([\d.]+)\n", said).groups()
assert ranks == "2" and float(accuracy) > 0.95, said
assert run("--seed", "42") == said, "42 is the default"
other = {flags: run(*flags.split()) for flags in ("--seed 7", "--mixed-precision bf16", "--cpu 3", "--epochs 1",
                                                  "--gradient-accumulation-steps 4")}
assert said not in other.values() and len(set(other.values())) == len(other), other
assert other["--cpu 3"].startswith("3 ranks")

assert "--seed" in run("--seed", "-1", code=105)  # CLI11's code for a value that is refused
assert "--mixed-precision" in run("--mixed-precision", "fp8", code=105)
assert "GPU" in run("--gpus", "1024", code=2)
