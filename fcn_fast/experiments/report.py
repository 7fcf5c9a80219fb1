"""What an experiment writes: a table as Markdown, CSV and JSON, a figure, and sample pictures."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.figure import Figure

import fcn_fast
from fcn_fast.experiments.runs import held_out, perform
from fcn_fast.pictures import _in_colours
from fcn_fast.train.pictures import plain_numbers, save_rows, smoothed, to_picture

__all__ = ["Experiment", "draw", "write"]

_MEASURES = {
    "pixel accuracy": "pixel_accuracy",
    "mean accuracy": "mean_accuracy",
    "mean IU": "mean_iu",
    "frequency-weighted IU": "frequency_weighted_iu",
}


@dataclass(frozen=True)
class Experiment:
    """An experiment that compares nets.

    Args:
        name: of the command and the folder.
        title: of the table and the figure.
        claim: what the papers say.
        runs: {label: :class:`fcn_fast.experiments.runs.Run`}.
        published: {label: mean IU} where the papers give one.
        across: what the curves are drawn over, ``"images"`` or ``"step"``.
    """

    name: str
    title: str
    claim: str
    runs: dict
    published: dict = field(default_factory=dict)
    across: str = "images"

    def run(self, folder, runs, seed=0):
        """Do the runs that are not done, and write the table, the figure and samples; returns the rows.

        Args:
            folder: of this experiment's table and figure.
            runs: folder of the runs of all experiments.
            seed: of the runs.
        """
        results = {label: perform(run.seeded(seed), runs) for label, run in self.runs.items()}
        rows = []
        for label, result in results.items():
            row = {"": label, "images": result.log[-1][1]}
            row |= {title: round(result.measures[name], 4) for title, name in _MEASURES.items()}
            rows.append(row | ({"published mean IU": self.published.get(label)} if self.published else {}))
        write(folder, self, rows, seed)
        draw(folder / "figure.png", self.title, *(self._curves(results, column) for column in (3, 2)), self.across)
        _samples(folder / "samples.png", results)
        return rows

    def _curves(self, results, column):
        across = 1 if self.across == "images" else 0
        return {
            label: [(row[across], row[column]) for row in result.log if row[column] is not None]
            for label, result in results.items()
        }


def write(folder, experiment, rows, seed=0):
    """Write rows of an experiment's table, dicts with the same keys, as table.md, table.csv and table.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    title, claim = experiment.title, experiment.claim
    command = f"fcn-fast experiment {experiment.name}" + bool(seed) * f" --seed {seed}"
    versions = {"fcn_fast": fcn_fast.__version__, "torch": torch.__version__}
    facts = {"title": title, "claim": claim, "command": command, "versions": versions, "rows": rows}
    (folder / "table.json").write_text(json.dumps(facts, indent=1) + "\n")
    with open(folder / "table.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    lines += ["| " + " | ".join(_cell(value) for value in row.values()) + " |" for row in rows]
    (folder / "table.md").write_text(
        "\n".join([f"# {title}", "", f"The papers: {claim} `{command}` made this:", "", *lines]) + "\n"
    )


def draw(path, title, mean_iu, loss, across):
    """Draw the curves {label: [(x, y)]} of the held-out mean IU and of the smoothed loss."""
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    for label, points in mean_iu.items():
        left.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label)
    for points in loss.values():
        right.plot(*zip(*smoothed(points, 60), strict=True), linewidth=1)
    for axes, name in ((left, "held-out mean IU"), (right, "training loss, smoothed")):
        axes.set_xlabel("steps" if across == "step" else "images")
        axes.set_title(name, loc="left", size=10)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylim(bottom=0)
    right.set_yscale("log")
    plain_numbers(right.yaxis)
    left.legend(frameon=False, fontsize=8)
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    figure.savefig(path)


def _samples(path, results, count=3):
    """Draw the first held-out pictures with their labels and what each net makes of them."""
    pictures = held_out()
    items = [pictures[index] for index in range(min(count, len(pictures)))]
    columns = {"picture": [to_picture(x) for x, _ in items], "truth": [_in_colours(target) for _, target in items]}
    for label, result in results.items():
        columns[label] = [_in_colours(result.model.predict(x[None])[0]) for x, _ in items]
    save_rows(path, columns, zip(*columns.values(), strict=True))


def _cell(value):
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
