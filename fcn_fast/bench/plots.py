"""The plots of measurements. Each is drawn from data that a record gives, and the PNG carries their digest."""

import hashlib
import json
import math

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from fcn_fast.bench import nets, scaling, tables
from fcn_fast.bench.cases import SIZES
from fcn_fast.bench.records import baseline_of, groups_of, median

__all__ = ["PLOTS", "digest", "digest_of", "save"]

INK, PALE = "#222222", "#cccccc"
COLOURS = {
    "eager": "#b7bcc7",
    "grouped": "#b7bcc7",
    "compile": "#6d8fc7",
    "fcn_fast": "#d1495b",
    "paper": "#8f8478",
}
OPERATION_COLOURS = {
    "upsample_softmax_loss": "#d1495b",
    "softmax_loss": "#35608d",
    "bilinear_upsample": "#5aa5a0",
    "skip_fuse": "#8a6db1",
    "upsample_argmax": "#c97b3a",
    "FCN-8s": "#777777",
}
STAGE_COLOURS = ("#35608d", "#5aa5a0", "#c97b3a")
AXES = {
    "classes": "classes, of 64x64, x8",
    "factor": "factor, 21 classes to 512x512",
    "image": "side of the image, 21 classes, x8",
    "batch": "batch of 21x63x63, x8",
    "threads": "threads, Cityscapes",
}


def save(name, record, path):
    """Draw the plot of this name as PNG.

    Returns:
        path, or None where the record has nothing for it.
    """
    collect, draw = PLOTS[name]
    data = collect(record)
    if not data:
        return None
    figure = draw(data)
    figure.supxlabel(tables.machine(record), x=0.99, ha="right", size=7.5, color="#666666")
    figure.savefig(path, dpi=130, metadata={"Description": digest_of(name, record)})
    return path


def digest_of(name, record):
    """What the PNG of this name says of the data that it was drawn from."""
    data = [PLOTS[name][0](record), tables.machine(record)]
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def digest(path):
    """What a PNG says of the data that it was drawn from."""
    with Image.open(path) as image:
        return image.text.get("Description", "")


def _speed_data(record):
    """[[size, or on a GPU dtype, [[operation, {variant: times as long}], ...]], ...]"""
    panels = {}
    for variants in tables.gpu_cases(record):
        ours = variants["fcn_fast"]
        panels.setdefault(ours["dtype"], []).append(["{} {}, {}".format(*tables.title(ours)), _ratios(variants)])
    if panels:
        return [[dtype, bars] for dtype, bars in panels.items()]
    groups, panels = groups_of(record["entries"]), []
    for size in SIZES:
        bars = []
        for key, label in tables.LABELS.items():
            variants = tables.group_of(groups, key, size.name)
            if variants and "fcn_fast" in variants:
                bars.append([label, _ratios(variants)])
        if bars:
            panels.append([size.title, bars])
    return panels


def _ratios(variants):
    others = {"eager": baseline_of(variants), "compile": variants.get("compile")}
    return {name: median(entry) / median(variants["fcn_fast"]) for name, entry in others.items() if entry}


def _draw_speed(panels):
    rows = list(dict.fromkeys(label for _, bars in panels for label, _ in bars))
    shown = {name for _, bars in panels for _, ratios in bars for name in ratios}
    offsets = {"eager": -0.2, "compile": 0.2} if len(shown) > 1 else dict.fromkeys(shown, 0)
    figure = Figure(figsize=(max(3 + 2.4 * len(panels), 9), 1 + 0.5 * len(rows)), layout="constrained")
    figure.suptitle("How many times as long PyTorch takes (red: as long as fcn_fast)", x=0.01, ha="left", size=11)
    for i, (title, bars) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for label, ratios in bars:
            for variant, ratio in ratios.items():
                y = rows.index(label) + offsets[variant]
                axes.barh(y, ratio, 0.38, color=COLOURS[variant])
                axes.text(ratio * 1.08, y, f"{ratio:.{ratio < 10:d}f}x", va="center", fontsize=8.5)
        axes.axvline(1, color=COLOURS["fcn_fast"], linewidth=1.5)
        axes.set_xscale("log")
        longest = max(max(ratios.values()) for _, ratios in bars)
        axes.set_xlim(0.7, 3 * longest)
        ticks = [10**n for n in range(1 + int(math.log10(2 * longest)))]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(len(rows) - 0.5, -0.5)
        _dress(axes, title.replace(" ", "\n", 1), "")
        axes.set_yticks(range(len(rows)), rows if i == 0 else [""] * len(rows))
        axes.tick_params(axis="y", length=0)
    names = {"eager": "eager PyTorch", "compile": "torch.compile"}
    handles = [_patch(COLOURS[variant], name) for variant, name in names.items() if variant in shown]
    figure.legend(handles=handles, loc="outside upper right", fontsize=8.5, frameon=False, ncols=2)
    return figure


def _stages_data(record):
    """[[label, [ms of each stage], [floor of each stage] or None], ...], the paper's first."""
    groups = groups_of(record["entries"])
    rows = [["paper, Titan X (Maxwell)", [nets.PAPER[stage] for stage in nets.STAGES], None]]
    for dtype in ("float32", "bfloat16"):
        for padding, title in (("caffe", "published padding"), ("lean", "lean padding")):
            for variant, name in (("eager", "eager"), ("fcn_fast", "fcn_fast")):
                found = [groups.get(nets.NetCase(stage, padding, dtype=dtype).group, {}) for stage in nets.STAGES]
                if all(variant in variants for variants in found):
                    entries = [variants[variant] for variants in found]
                    label = f"{name}, {title}" + (f", {dtype}" if dtype != "float32" else "")
                    rows.append([label, [median(e) for e in entries], [e["limit"]["milliseconds"] for e in entries]])
    return rows if len(rows) > 1 else []


def _draw_stages(rows):
    figure = Figure(figsize=(11, 1.6 + 0.5 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    limit = 1.4 * max(max(sum(times), sum(floors)) for _, times, floors in rows if floors)
    for i, (_, times, floors) in enumerate(rows):
        total, start, at = sum(times), 0.0, 0.0
        for time, colour in zip(times, STAGE_COLOURS, strict=True):
            left.barh(i, time / total, left=start, color=colour, height=0.7)
            left.text(
                start + time / total / 2, i, f"{time / total:.0%}", ha="center", va="center", color="white", size=8
            )
            start += time / total
            right.barh(i, time, left=at, color=colour, height=0.7)
            at += time
        label = f"{tables.figure(total)} ms"
        if floors:
            right.plot([sum(floors)] * 2, [i - 0.4, i + 0.4], color="black", linewidth=1.6)
            label += f", floor {tables.figure(sum(floors))}"
        if total < limit:
            right.text(max(total, sum(floors or [0])), i, f"  {label}", va="center", size=8, color=INK)
        else:  # the paper's GPU was a hundred times as slow as some are
            right.text(limit, i, f"{label} \u2192  ", ha="right", va="center", size=8, color="white")
    right.set_xlim(0, limit)
    left.set_xlim(0, 1)
    left.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    _dress(left, "FCN-8s at 500x500: share of each stage", "")
    _dress(right, "milliseconds, and the floor of this machine (black)", "")
    left.set_yticks(range(len(rows)), [label for label, *_ in rows])
    left.tick_params(axis="y", length=0)
    right.tick_params(axis="y", length=0)
    left.invert_yaxis()
    handles = [
        _patch(colour, stage.replace("stage", "stage "))
        for stage, colour in zip(nets.STAGES, STAGE_COLOURS, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower left", fontsize=8, frameon=False, ncols=3)
    return figure


def _memory_data(record):
    """{sweep: [[operation, variant, [[position, MiB], ...]], ...]}"""
    curves = scaling.curves(record, _peak)
    shown = ("upsample_softmax_loss", "upsample_argmax")
    found = {
        sweep: [[*key, line] for key, line in curves.get(sweep, {}).items() if key[0] in shown]
        for sweep in ("batch", "classes")
    }
    return {sweep: lines for sweep, lines in found.items() if lines}


def _draw_memory(data):
    figure = Figure(figsize=(10, 4), layout="constrained")
    _draw_curves(figure, data, figure.subplots(1, len(data), squeeze=False).flat, "peak MiB above the inputs")
    return figure


def _scaling_data(record):
    """{sweep: [[operation, variant, [[position, ms], ...]], ...]}"""
    curves = scaling.curves(record, median)
    return {sweep: [[*key, line] for key, line in lines.items()] for sweep, lines in curves.items()}


def _draw_scaling(data):
    figure = Figure(figsize=(11, 3.4 * math.ceil(len(data) / 3)), layout="constrained")
    axes = figure.subplots(math.ceil(len(data) / 3), min(len(data), 3), squeeze=False).flat
    _draw_curves(figure, data, axes, "milliseconds")
    return figure


def _draw_curves(figure, data, panels, ylabel):
    """A panel a sweep: a line an operation, dashed for eager."""
    panels = list(panels)
    for axes, (sweep, lines) in zip(panels, data.items(), strict=False):
        for operation, variant, points in lines:
            style = "-o" if variant == "fcn_fast" else "--s"
            x, y = zip(*points, strict=True)
            axes.plot(x, y, style, color=OPERATION_COLOURS[operation], markersize=3.5, linewidth=1.4)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = []
        for x in sorted({x for _, _, points in lines for x, _ in points}):
            if not ticks or x >= 1.7 * ticks[-1]:  # those further apart than their labels are wide
                ticks.append(x)
        axes.set_xticks(ticks, map(str, ticks))
        axes.minorticks_off()
        axes.grid(axis="y", color="#eeeeee")
        _dress(axes, "", AXES[sweep])
        axes.set_ylabel(ylabel if axes.get_subplotspec().is_first_col() else "", size=8)
    for axes in panels[len(data) :]:
        axes.axis("off")
    names = list(dict.fromkeys(operation for lines in data.values() for operation, _, _ in lines))
    handles = [Line2D([], [], color=OPERATION_COLOURS[name], label=name) for name in names]
    handles += [Line2D([], [], color=INK, marker="o", markersize=3.5, label="fcn_fast")]
    handles += [Line2D([], [], color=INK, linestyle="--", marker="s", markersize=3.5, label="eager PyTorch")]
    figure.legend(handles=handles, loc="outside upper left", fontsize=8, frameon=False, ncols=len(handles))


def _roofline_data(record):
    """{"roof": operations/s, "copy": bytes/s, "points": [[operation, variant, operations a byte, operations/s], ...]}

    An operation is half a multiply-add.
    """
    rates = record["environment"]["rates"]
    points = []
    for variants in groups_of(record["entries"]).values():
        for entry in (baseline_of(variants), variants.get("fcn_fast")):
            if entry and "flop" in entry and entry["dtype"] == "float32":
                name = entry["operation"].partition(" ")[0]  # FCN-8s and its part, or an operation
                rate = entry["flop"] / (median(entry) / 1e3)
                points.append([name, entry["variant"], entry["flop"] / entry["bytes"], rate])
    return {"roof": rates["float32"], "copy": rates["copy"], "points": points} if points else {}


def _draw_roofline(data):
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.add_subplot()
    x = [intensity for _, _, intensity, _ in data["points"]]
    ends = [min(x) / 3, max(max(x), data["roof"] / data["copy"]) * 3]
    corner = data["roof"] / data["copy"]
    roof = sorted({*ends, corner})
    axes.plot(roof, [min(data["copy"] * i, data["roof"]) / 1e9 for i in roof], color=INK, linewidth=1.5)
    axes.text(ends[1], data["roof"] / 1e9 * 1.35, "multiply-adds of a convolution", ha="right", size=8, color=INK)
    axes.text(ends[0], data["copy"] * ends[0] / 1e9 * 2, "a copy", size=8, color=INK)
    for operation, variant, intensity, rate in data["points"]:
        ours = variant == "fcn_fast"
        face = OPERATION_COLOURS[operation] if ours else "none"
        axes.plot(intensity, rate / 1e9, "o" if ours else "s", color=OPERATION_COLOURS[operation], markerfacecolor=face)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(color="#eeeeee")
    _dress(axes, "Roofline: every float32 case", "operations a byte that must be moved")
    axes.set_ylabel("10^9 operations (as fcn_fast does it) a second", size=8)
    names = dict.fromkeys(operation for operation, *_ in data["points"])
    handles = [Line2D([], [], color=OPERATION_COLOURS[name], marker="o", linestyle="", label=name) for name in names]
    handles += [Line2D([], [], color=INK, marker="s", linestyle="", markerfacecolor="none", label="eager PyTorch")]
    axes.legend(handles=handles, loc="lower right", fontsize=8, frameon=False)
    return figure


PLOTS = {
    "speed": (_speed_data, _draw_speed),
    "stages": (_stages_data, _draw_stages),
    "memory": (_memory_data, _draw_memory),
    "roofline": (_roofline_data, _draw_roofline),
    "scaling": (_scaling_data, _draw_scaling),
}
"""{name of a plot: (its data from a record, the figure from its data)}."""


def _dress(axes, title, xlabel):
    axes.set_title(title, fontsize=9, loc="left", color=INK)
    axes.set_xlabel(xlabel, size=8)
    axes.tick_params(labelsize=8, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)


def _patch(colour, label):
    return Line2D([], [], color=colour, linewidth=6, label=label)


def _peak(entry):
    """MiB; what is less than can be told counts as just that."""
    peak = entry.get("peak_bytes")
    return None if peak is None else max(peak, tables.SMALL) / 2**20
