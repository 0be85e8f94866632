"""finetune_test.py PROGRAM: Python makes the weights and reads the results. 77 without torch or safetensors."""
import os
import re
import subprocess
import sys
import tempfile

try:
    import torch
    from safetensors.torch import load_file
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.dont_write_bytecode = True  # beside the script
sys.path.insert(0, os.path.join(root, "examples/finetune"))
import make_weights  # noqa: E402

data = os.path.join(root, "data/mnist")
torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as work:
    before, after = os.path.join(work, "before"), os.path.join(work, "after")
    make_weights.main(before, data)
    said = subprocess.run([sys.argv[1], before, after, data], stdout=subprocess.PIPE, text=True, check=True).stdout
    print(said)
    old, new = load_file(f"{before}/model.safetensors"), load_file(f"{after}/model.safetensors")
    damaged = subprocess.run([sys.argv[1], work, after, data], stderr=subprocess.PIPE, text=True)
    assert damaged.returncode == 1 and work in damaged.stderr, damaged.stderr

frozen = [name for name in old if name.startswith("backbone.")]
assert len(frozen) == 6 and old.keys() == new.keys()
for name in frozen:
    assert torch.equal(old[name], new[name]), f"{name} has changed"
assert old["head.weight"].shape == (2, 64) and new["head.weight"].shape == (10, 64)

# The network in Python says what the program says.
net = make_weights.Net(classes=10)
net.load_state_dict(new)
images, labels = make_weights.mnist(data, "t10k")
with torch.no_grad():
    accuracy = 100 * (net(images).argmax(1) == labels).double().mean().item()
first, last = map(float, re.fullmatch(r"test accuracy ([\d.]+) % before, ([\d.]+) % after\n", said).groups())
assert abs(accuracy - last) < 0.05, accuracy  # but for rounding in close calls
assert first < 40 and last > 80 and last > first + 40
