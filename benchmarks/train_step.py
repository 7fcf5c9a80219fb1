"""A training step with fcn_fast against the same step with PyTorch's own operations: time, peak memory and losses.

    python -P benchmarks/train_step.py NAME            measure, write benchmarks/results/NAME/train_step.json, render
    python -P benchmarks/train_step.py --render-only   render docs/experiments.md from what is recorded

NAME says what is measured, such as h100 or epyc-zen5-2-threads. Nothing else should be running; it takes some minutes.
Both sides train the same net from the same random weights on the same generated pictures, a step each in turn, and take
turns in going first; the first two rounds warm up. Peak memory is that of one step beyond what is held before it: by a
GPU's allocator, on the CPU the growth of the resident set of a process of its own (Linux). As a measure of how rounding
grows from step to step, PyTorch's side trains again from weights that differ in their last bit.
"""

import json
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from fcn_fast import eager, models, ops
from fcn_fast.bench import scripts
from fcn_fast.data.shapes import Shapes
from fcn_fast.pictures import SIDE_COLOURS
from fcn_fast.train import SOLVERS, Trainer, initialise

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "experiments.md"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIDES = {"eager": eager, "fcn_fast": ops}
CONTROL = "eager, another last bit"
WARM = 2  # steps that are not timed
PICTURES = 16
CASES = {
    "voc-fcn8s-atonce as published, 1x3x500x500, 21 classes": {
        "net": {"name": "voc-fcn8s-atonce", "num_classes": 21, "width": 1.0, "padding": "caffe"},
        "size": 500,
        "solver": SOLVERS["voc-fcn8s-atonce"],
        "steps": 12,
    },
    "voc-fcn8s, 1/16 as wide, lean, 8x3x128x128, 21 classes": {
        "net": {"name": "voc-fcn8s", "num_classes": 21, "width": 1 / 16, "padding": "lean"},
        "size": 128,
        "solver": SOLVERS["shapes"],
        "steps": 60,
    },
    "voc-fcn8s, 1/16 as wide, lean, 4x3x512x512, 150 classes": {
        "net": {"name": "voc-fcn8s", "num_classes": 150, "width": 1 / 16, "padding": "lean"},
        "size": 512,
        "solver": replace(SOLVERS["shapes"], batch=4),
        "steps": 30,
    },
}


def case_of(name, quick):
    case = CASES[name]
    return {**case, "net": case["net"] | {"width": 1 / 32}, "size": 64, "steps": 5} if quick else case


def trainer(case, side):
    """A trainer of a case, always from the same weights."""
    torch.manual_seed(0)
    model = models.build(**case["net"], ops=SIDES[side])
    initialise(model, case["solver"])
    model = model.to(DEVICE, memory_format=torch.channels_last)
    # Objects as large as in 128x128, or a few of them would be all of a picture, and each picture of other classes.
    pictures = Shapes(case["size"], "train", length=PICTURES, largest=min(1, 51 / case["size"]))
    return Trainer(model, [pictures[index] for index in range(PICTURES)], case["solver"])


def measure_case(case):
    """The milliseconds and the loss of every step of both sides."""
    trainers = {side: trainer(case, side) for side in SIDES}
    times, losses = ({side: [] for side in SIDES} for _ in range(2))
    for step in tqdm(range(case["steps"]), disable=None, leave=False):
        for side in sorted(SIDES, reverse=step % 2 == 1):
            start = time.perf_counter()
            losses[side].append(trainers[side].advance()[0])  # reads the loss, which waits for the device
            times[side].append(float(f"{1e3 * (time.perf_counter() - start):.5g}"))
    control = trainer(case, "eager")
    with torch.no_grad():
        for weight in control.model.parameters():
            weight.mul_(1 + torch.finfo(weight.dtype).eps)
    losses[CONTROL] = [control.advance()[0] for _ in range(case["steps"])]
    milliseconds = {side: each[WARM:] for side, each in times.items()}
    return {"solver": asdict(case["solver"]), "milliseconds": milliseconds, "losses": losses}


def warm_call(name, side, quick):
    """What the memory of a side is measured of: a step beyond the first two."""
    trains = trainer(case_of(name, quick), side)
    for _ in range(WARM):
        trains.advance()
    return trains.advance


def measure(quick):
    found = {}
    for name in CASES:
        found[name] = measure_case(case_of(name, quick))
        found[name]["peak_mib"] = scripts.peaks(__file__, name, SIDES, quick, call=warm_call, device=DEVICE)
        print("  ".join(row(name, found[name])), flush=True)
    return {"environment": scripts.environment(DEVICE, ROOT), "cases": found}


def section(name, record):
    """What the page shows of a machine."""
    facts = record["environment"]
    control = all(CONTROL in found["losses"] for found in record["cases"].values())
    lines = [
        f"### {name}",
        "",
        f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}, float32; {facts['date']}.",
        "",
        "| | step, eager | fcn_fast | | peak MiB, eager | fcn_fast | loss, first to last | losses differ by at most |"
        + f" {CONTROL} |" * control,
        "|---|---|---|---|---|---|---|---|" + "---|" * control,
        *(f"| {' | '.join(row(case, found))} |" for case, found in record["cases"].items()),
        "",
        *["Last column: how far eager's own losses come apart where every weight starts one bit away.", ""] * control,
        f"![Losses of both sides](../benchmarks/results/{name}/train_step.png)",
    ]
    return "\n".join(lines)


def row(case, found):
    """The cells of a case."""
    times = [sorted(found["milliseconds"][side]) for side in SIDES]
    eager_ms, fast_ms = map(statistics.median, times)
    losses = found["losses"]
    spread = [f"{_time(statistics.median(each))} ({_time(each[0])} to {_time(each[-1])})" for each in times]
    peaks = [f"{found['peak_mib'][side]:,.0f}" for side in SIDES]
    loss = f"{losses['fcn_fast'][0]:.4g} to {losses['fcn_fast'][-1]:.4g}"
    apart = [f"{max(differences(losses, side)):.0e}" for side in ("fcn_fast", CONTROL) if side in losses]
    return [case, *spread, f"{eager_ms / fast_ms:.2f}x", *peaks, loss, *apart]


def differences(losses, side):
    """The relative difference of a side's losses from eager's at each step."""
    return [abs(one - other) / abs(one) for one, other in zip(losses["eager"], losses[side], strict=True)]


def _time(milliseconds):
    return f"{milliseconds / 1e3:.2f} s" if milliseconds >= 1e3 else f"{milliseconds:.3g} ms"


def plot(path, record):
    """Draw the losses of each case above, and how much they differ below."""
    cases = record["cases"]
    figure = Figure(figsize=(4 * len(cases), 5), dpi=120, layout="constrained")
    panels = figure.subplots(2, len(cases), squeeze=False, sharex="col", height_ratios=(2, 1))
    for (above, below), (name, found) in zip(panels.T, cases.items(), strict=True):
        steps = range(1, len(found["losses"]["eager"]) + 1)
        above.plot(steps, found["losses"]["eager"], color=SIDE_COLOURS["reference"], linewidth=5, label="eager")
        above.plot(steps, found["losses"]["fcn_fast"], color=SIDE_COLOURS["fcn_fast"], linewidth=1.5, label="fcn_fast")
        for side, colour in {CONTROL: SIDE_COLOURS["reference"], "fcn_fast": SIDE_COLOURS["fcn_fast"]}.items():
            if side in found["losses"]:
                apart = [max(each, 1e-9) for each in differences(found["losses"], side)]
                below.plot(steps, apart, ".", color=colour, label=side)
        net, shape, classes = name.rsplit(", ", 2)
        above.set_title(f"{net}\n{shape}, {classes}", loc="left", size=10)
        above.set_ylim(0, 1.1 * max(found["losses"]["eager"]))
        below.set_yscale("log")
        below.set_ylim(1e-9, 1)
        below.set_xlabel("steps")
        for axes in (above, below):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[:, 0]:
        axes.legend(frameon=False)
    panels[0][0].set_ylabel("loss")
    panels[1][0].set_ylabel("difference of\nthe losses, relative")
    figure.savefig(path)


def render(results, page):
    """Write what is recorded between the marks of the page, and each machine's figure."""
    scripts.render("train_step", section, results, page)
    for path in results.glob("*/train_step.json"):
        plot(path.with_suffix(".png"), json.loads(path.read_text()))


if __name__ == "__main__":
    scripts.main(__file__, __doc__, PAGE, measure=measure, call=warm_call, device=DEVICE, show=render)
