"""A training step with fcn_fast against the same step with PyTorch's own operations: time, peak memory and losses.

    python -P benchmarks/train_step.py RESULT.json

Both sides train the same net from the same weights on the same pictures, a step each in turn, and take turns in going
first. Peak memory is that of one step above what training holds between steps, on the CPU the growth of the resident
set in a process of its own (Linux). Losses are compared step by step: "difference" is the largest relative one.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

import fcn_fast
from fcn_fast import eager, models, ops
from fcn_fast.data.shapes import CLASSES, Shapes
from fcn_fast.env import cpu_name
from fcn_fast.train import SOLVERS, Trainer, initialise

SIDES = {"eager": eager, "fcn_fast": ops}
HEAVY = replace(SOLVERS["voc-fcn8s-atonce"], lr=1e-9)
CASES = {
    "voc-fcn8s, 1x3x500x500": {"width": 1.0, "padding": "caffe", "size": 500, "solver": HEAVY, "steps": 6},
    "voc-fcn8s / 16, 8x3x128x128": {
        "width": 1 / 16,
        "padding": "lean",
        "size": 128,
        "solver": replace(SOLVERS["shapes"], precision="float32"),
        "steps": 40,
    },
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def trainer(case, side):
    """A trainer of a case, always from the same weights."""
    torch.manual_seed(0)
    model = models.build("voc-fcn8s", len(CLASSES), case["width"], padding=case["padding"], ops=SIDES[side])
    initialise(model, case["solver"])
    model = model.to(DEVICE, memory_format=torch.channels_last)
    return Trainer(model, Shapes(case["size"], "train", length=100), case["solver"])


def measure(case):
    """Times in ms and losses of both sides; the first two steps warm up."""
    trainers = {side: trainer(case, side) for side in SIDES}
    times, losses = {side: [] for side in SIDES}, {side: [] for side in SIDES}
    for step in tqdm(range(case["steps"]), disable=None, leave=False):
        for side in sorted(SIDES, reverse=step % 2 == 1):
            start = time.perf_counter()
            losses[side].append(trainers[side].advance()[0])  # reads the loss, which waits for the device
            times[side].append(1e3 * (time.perf_counter() - start))
    difference = max(abs(a - b) / abs(a) for a, b in zip(*losses.values(), strict=True))
    medians = {side: statistics.median(values[2:]) for side, values in times.items()}
    return {"step_ms": medians, "difference": difference, "losses": losses}


def peak(case, side):
    """MiB that a step takes beyond what is held before it."""
    trains = trainer(case, side)
    for _ in range(2):
        trains.advance()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        trains.advance()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    trains.advance()
    return status("VmHWM") - before


def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024


def main(path):
    results = {}
    for name, case in CASES.items():
        results[name] = measure(case)
        # Large blocks get pages of their own, so that a peak is not hidden by memory that an earlier step left behind.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
        results[name]["peak_mib"] = {
            side: float(
                subprocess.check_output([sys.executable, "-P", __file__, name, side], env=environment, text=True)
            )
            for side in SIDES
        }
        summary = {key: value for key, value in results[name].items() if key != "losses"}
        print(f"{name}: {json.dumps(summary)}", flush=True)
    facts = {
        "command": "python -P benchmarks/train_step.py RESULT.json",
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "versions": {"fcn_fast": fcn_fast.__version__, "torch": torch.__version__},
    }
    Path(path).write_text(json.dumps(facts | {"cases": results}, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(peak(CASES[sys.argv[1]], sys.argv[2]))
    else:
        main(sys.argv[1])
