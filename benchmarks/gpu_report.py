#!/usr/bin/env python3
"""The measuring part of gpu.sh: runs build/benchmarks/gpu, train, and Accelerate beside it, writes
benchmarks/results/GPU-NAME.json and prints the table of it. gpu_report.py BUILD GPU_TESTS_EXIT_CODE DEADLINE NOW
(seconds of one clock). gpu_report.py --tests EXIT_CODE BUILD says in the file what came of the other tests."""
import glob
import importlib.util
import json
import os
import re
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
ONLY_TESTS = sys.argv[1] == "--tests"
BUILD = sys.argv[3 if ONLY_TESTS else 1]
GPU_TESTS, DEADLINE, NOW = (0, 60, 0) if ONLY_TESTS else map(int, sys.argv[2:5])
END = time.monotonic() + DEADLINE - NOW - 5
RUNNER = os.environ.get("TANDEM_GPU_RUNNER", "").split()  # before each of our programs
TEXT = os.path.join(BUILD, "text.txt")  # our own sources: a text that is everywhere
STEPS = {"mlp": 2000, "cnn": 1000, "gpt": 400}


def run(command, seconds):
    """Output of a command, or nothing where it fails or the time is over."""
    seconds = min(seconds, END - time.monotonic())
    if seconds < 5:
        return ""
    try:
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"gpu_report: {error}", file=sys.stderr)
        return ""
    if result.returncode != 0:
        print(f"gpu_report: {' '.join(command)} ended with {result.returncode}", file=sys.stderr)
        return ""
    return result.stdout


def last_json(output):
    lines = [line for line in output.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else None


def train(model, *flags):
    """Samples/s from the 21st update on, and seconds to the first."""
    data = ["--data-file", TEXT, "--sample-bytes", "0"] if model == "gpt" else ["--data-dir", "data/mnist"]
    output = run([*RUNNER, f"{BUILD}/apps/train", "--model", model, "--gpus", "1", "--batch-size", "64", "--epochs", "1000",
                  "--max-steps", str(STEPS[model] + 20), "--no-progress", *data, *flags], 60)
    rate, start = re.search(r"([\d.]+) samples/s", output), re.search(r"first step after ([\d.]+) s", output)
    return (float(rate.group(1)), float(start.group(1))) if rate and start else (None, None)


def accelerate(model, loader):
    text = ["--data-file", TEXT] if model == "gpt" else []
    peer = last_json(run([sys.executable, f"{HERE}/peers/gpu_peer.py", "--model", model, "--loader", loader, "--steps",
                          str(STEPS[model]), *text], 60))
    return peer["samples_per_s"] if peer else None


def against_accelerate():
    rows = {}
    if not importlib.util.find_spec("accelerate"):
        print("gpu_report: this python3 has no accelerate, so there is no comparison with it", file=sys.stderr)
        return rows
    for model in STEPS:
        (rate, start), (graphs, _) = train(model), train(model, "--cuda-graphs")
        peers = {loader: accelerate(model, loader) for loader in ("framework", "tensor")}
        rows[model] = {"tandem": rate, "tandem_cuda_graphs": graphs, "accelerate": peers["framework"],
                       "pytorch_data_on_gpu": peers["tensor"], "first_step_s": start}
        if rate and peers["framework"]:
            rows[model]["ratio"] = round(rate / peers["framework"], 3)
        if rate and peers["tensor"]:
            rows[model]["ratio_data_on_gpu"] = round(rate / peers["tensor"], 3)
    return rows


def sessions():
    """Milliseconds from a request to a session until it is done, by one rank and by two that share the GPU."""
    rows = {}
    for name, gpus in (("1 rank", ["0"]), ("2 ranks", ["0", "0"])):
        output = run([*RUNNER, f"{BUILD}/benchmarks/session", *gpus], 60)
        rows[name] = {what.strip(): {"ms": float(middle), "slowest_ms": float(slowest), "steps": float(steps)}
                      for what, middle, slowest, steps in
                      re.findall(r"^(.+?) +([\d.]+) ms +([\d.]+) ms +([\d.]+) steps$", output, re.M)}
    return rows


def several_gpus():
    """What `tandem test --gpus` has written, or nothing."""
    try:
        with open(f"{BUILD}/logs/gpus.json") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def gpu_names():
    output = run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"], 20)
    return [line.strip() for line in output.splitlines() if line.strip()] or ["unknown"]


def number(value, form="{:.3g}"):
    return "" if value is None else form.format(value)


def table(result):
    lines = [f"# {len(result['devices'])} x {result['devices'][0]}, {result['date']}", "",
             f"tests/gpu: {result['tests_gpu']}; other tests: {result['tests']}", ""]
    for model, row in (result.get("overhead") or {}).items():
        lines.append(f"- {model}: a step takes {number(row['ratio_same_optimizer'])} of a bare LibTorch loop's with the "
                     f"same optimizer; {number(row['tandem_ms'])} ms as Tandem does it, {number(row['bare_ms'])} bare")
    for name, row in (result.get("graphs") or {}).items():
        lines.append(f"- CUDA graphs, {name}: {number(row['speedup'])} times as fast ({number(row['called_ms'])} to "
                     f"{number(row['replayed_ms'])} ms)")
    for model, row in (result.get("against_accelerate") or {}).items():
        lines.append(f"- {model}, samples/s: Tandem {number(row['tandem'], '{:.0f}')}, with graphs "
                     f"{number(row['tandem_cuda_graphs'], '{:.0f}')}, Accelerate {number(row['accelerate'], '{:.0f}')}, "
                     f"PyTorch with the data on the GPU {number(row['pytorch_data_on_gpu'], '{:.0f}')}; first step after "
                     f"{number(row['first_step_s'])} s")
    for ranks, sizes in (result.get("all_reduce") or {}).items():
        lines += ["", f"all-reduce, {ranks}: bytes, us, us by NCCL alone"]
        lines += [f"    {size:>9}  {number(row['automatic_us']):>8}  {number(row.get('nccl_us')):>8}"
                  for size, row in sizes.items()]
    for ranks, row in (result.get("failure") or {}).items():
        lines.append(f"- {ranks}: all ended {number(row['ms'])} ms after an exception (slowest {number(row['slowest_ms'])})")
    if launches := result.get("launches"):
        lines.append(f"- 100 launches of 2 ranks in turn: {number(launches['ms_each'])} ms each, device memory grew by "
                     f"{launches['growth_bytes']} bytes")
    for ranks, rows in (result.get("sessions") or {}).items():
        lines += [f"- session, {ranks}: {what} after {number(row['ms'])} ms (slowest {number(row['slowest_ms'])}; "
                  f"{number(row['steps'])} steps)" for what, row in rows.items()]
    if several := result.get("tandem_test_gpus"):
        lines += ["", f"tandem test --gpus, {several['ranks']}: " + ("passed" if several["passed"] else "FAILED")]
        lines += [f"- {part['part']}: {'' if part['passed'] else 'FAILED: '}{part['detail']}" for part in several["parts"]]
    return "\n".join(lines)


def path_of(devices):
    name = re.sub(r"[^A-Za-z0-9]+", "-", devices[0].split(",")[0]).strip("-")
    return f"{os.environ.get('TANDEM_GPU_RESULTS', HERE + '/results')}/{name}.json"


def write(result):
    path = path_of(result["devices"])
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        json.dump(result, file, indent=1)
        file.write("\n")


def outcome(code):
    return "passed" if code == 0 else f"exit code {code}"


def main():
    with open(TEXT, "wb") as file:
        for path in sorted(glob.glob(f"{ROOT}/src/**/*.cpp", recursive=True) + glob.glob(f"{ROOT}/include/**/*.h", recursive=True)):
            file.write(open(path, "rb").read())
    result = {"devices": gpu_names(), "date": time.strftime("%Y-%m-%d"), "tests_gpu": outcome(GPU_TESTS),
              "tests": "not run", "tandem_test_gpus": several_gpus()}
    write(result)
    result["against_accelerate"] = against_accelerate()
    write(result)
    for section in ("failure", "launches", "graphs", "overhead", "all_reduce"):
        measured = last_json(run([*RUNNER, f"{BUILD}/benchmarks/gpu", section], 60))
        if measured:
            result[section] = measured[section]
            write(result)
    result["sessions"] = sessions()
    write(result)
    print(table(result))


def add_tests(code):
    path = path_of(gpu_names())
    with open(path) as file:
        result = json.load(file)
    result["tests"] = outcome(code)
    write(result)
    print(f"other tests: {result['tests']}")


if __name__ == "__main__":
    add_tests(int(sys.argv[2])) if ONLY_TESTS else main()
