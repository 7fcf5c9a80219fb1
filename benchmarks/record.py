"""Run the benchmarks, keep the result, and render the README's table and plot from it.

    python -P benchmarks/record.py NAME    run, render, and write {default,memory,one_thread,predict}.json under
                                           benchmarks/results/NAME
    python -P benchmarks/record.py NAME --render-only

NAME says what was measured, such as epyc-zen5-2-threads. Nothing else should be running.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
SIZES = {"voc": "VOC 1x21x63x63, x8", "cityscapes": "Cityscapes 1x19x128x256, x8", "ade20k": "ADE20K 2x150x128x128, x4"}
# Of each row of the README: what it says, and the group of the benchmark but for the size.
ROWS = {
    "upsample_softmax_loss, forward + backward": "upsample_softmax_loss {} forward_backward",
    "softmax_loss, forward + backward": "softmax_loss {} forward_backward",
    "bilinear_upsample, forward": "bilinear_upsample {} forward",
    "bilinear_upsample, backward": "bilinear_upsample {} backward",
    "skip_fuse (deconvolution), forward": "skip_fuse deconvolution {} forward",
    "upsample_argmax, smooth scores": "upsample_argmax smooth {} forward",
    "upsample_argmax, random scores": "upsample_argmax random {} forward",
}


def run(name, file, *select, threads=None):
    """One run of the benchmarks; of its rounds only the statistics are kept."""
    # Not the source tree, which has no compiled module of its own: what is installed is measured.
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        str(HERE),
        "--benchmark-only",
        "-q",
        "-p",
        "no:cacheprovider",
        *select,
    ]
    environment = dict(os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {}))
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.json"
        subprocess.run([*command, f"--benchmark-json={raw}"], check=True, env=environment)
        record = json.loads(raw.read_text())
    keep = ("min", "median", "max", "iqr", "rounds")
    record["benchmarks"] = [
        {
            "group": benchmark["group"],
            "variant": benchmark["extra_info"].pop("variant"),
            "milliseconds": {k: benchmark["stats"][k] * (1 if k == "rounds" else 1e3) for k in keep},
            "extra_info": benchmark["extra_info"],
        }
        for benchmark in record["benchmarks"]
    ]
    target = HERE / "results" / name / file
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=1) + "\n")


def medians(name, file):
    """{group: {variant: median in milliseconds}} of a recorded run, and the facts of the machine."""
    record = json.loads((HERE / "results" / name / file).read_text())
    groups = {}
    for benchmark in record["benchmarks"]:
        groups.setdefault(benchmark["group"], {})[benchmark["variant"]] = benchmark["milliseconds"]["median"]
    facts = record["benchmarks"][0]["extra_info"]
    return groups, {"cpu": record["machine_info"]["cpu"]["brand_raw"], **facts}


def memory_table(name):
    record = json.loads((HERE / "results" / name / "memory.json").read_text())
    lines = ["| peak MiB above the inputs | " + " | ".join(SIZES.values()) + " |", "|---|" + "---|" * len(SIZES)]
    for operation, rows in record.items():
        label = {"upsample_softmax_loss": "loss, forward + backward", "upsample_argmax": "label map"}[operation]
        for variant, title in (("eager", "eager PyTorch"), ("fcn_fast", f"`{operation}`")):
            cells = [f"{rows[size][variant]:.1f}" for size in SIZES]
            lines.append(f"| {label}: {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table(name):
    groups, facts = medians(name, "default.json")
    lines = [
        f"{facts['cpu']}, {facts['threads']} threads, {facts['isa']}, torch {facts['torch']}, float32. "
        "Milliseconds, and how many times as long eager PyTorch and torch.compile take:",
        "",
        "| | " + " | ".join(SIZES.values()) + " |",
        "|---|" + "---|" * len(SIZES),
    ]
    for label, pattern in ROWS.items():
        cells = []
        for size in SIZES:
            times = groups[pattern.format(size)]
            ours = times["fcn_fast"]
            ratios = ", ".join(
                f"{title} {times[variant] / ours:.1f}x"
                for title, variant in (("eager", "eager"), ("compile", "compile"))
            )
            cells.append(f"**{ours:.3g} ms** ({ratios})")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", f"Reproduce with `python -P benchmarks/record.py NAME`; recorded in `benchmarks/results/{name}/`."]
    return "\n".join(lines)


def plot(name, path):
    groups, facts = medians(name, "default.json")
    figure, axes = plt.subplots(1, len(SIZES), figsize=(12, 3.6), sharey=True)
    for axis, (size, title) in zip(axes, SIZES.items(), strict=True):
        for i, pattern in enumerate(ROWS.values()):
            times = groups[pattern.format(size)]
            for variant, offset, colour in (("eager", -0.2, "#b7bcc7"), ("compile", 0.2, "#6d8fc7")):
                ratio = times[variant] / times["fcn_fast"]
                axis.barh(i + offset, ratio, 0.38, color=colour, label=variant if i == 0 else None)
                axis.text(ratio * 1.06, i + offset, f"{ratio:.1f}x", va="center", fontsize=7.5)
        axis.axvline(1, color="#d1495b", linewidth=1.5)
        axis.set_xscale("log")
        axis.set_xlim(0.7, axis.get_xlim()[1] * 2.2)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("times as long as fcn_fast", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(ROWS)), ROWS)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower left", fontsize=8, frameon=False, ncols=2)
    figure.text(
        0.995, 0.01, f"{facts['cpu']}, {facts['threads']} threads, float32", ha="right", fontsize=7, color="#666666"
    )
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=130)


def render(name):
    plot(name, HERE / "results" / name / "speed.png")
    text = README.read_text()
    picture = f"![times as long as fcn_fast](benchmarks/results/{name}/speed.png)"
    section = f"<!-- speed:begin -->\n{picture}\n\n{table(name)}\n\n{memory_table(name)}\n<!-- speed:end -->"
    README.write_text(re.sub(r"<!-- speed:begin -->.*<!-- speed:end -->", lambda _: section, text, flags=re.DOTALL))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--render-only", action="store_true")
    arguments = parser.parse_args()
    if not arguments.render_only:
        run(arguments.name, "default.json", "-k", "not predict")
        memory = HERE / "results" / arguments.name / "memory.json"
        memory.write_text(
            subprocess.run(
                [sys.executable, "-P", HERE / "memory.py"], check=True, capture_output=True, text=True
            ).stdout
        )
        run(arguments.name, "one_thread.json", "-k", "not stages and not predict and not compile", threads=1)
    render(arguments.name)
    if not arguments.render_only:
        run(arguments.name, "predict.json", "-k", "predict")  # whole nets at two sizes: minutes


if __name__ == "__main__":
    main()
