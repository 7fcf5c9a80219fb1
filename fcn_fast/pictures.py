"""The pictures that the commands write."""

import torch
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from fcn_fast.data.voc import CLASSES, palette

__all__ = ["save_confusion", "save_label_map", "save_labels", "save_overlay", "save_stages"]

INK = "#222222"
STAGE_COLOURS = ("#35608d", "#5aa5a0", "#c97b3a")
SIDE_COLOURS = {"reference": "#b8bcc2", "fcn_fast": "#d1495b"}


def save_label_map(path, labels):
    """Write (H, W) labels from 0 to 255 as a PNG of these numbers that shows VOC's colours."""
    _in_colours(labels).save(path)


def save_overlay(path, photo, labels):
    """Write a photo with (H, W) labels blended over it in VOC's colours as PNG."""
    _blend(photo, labels).save(path)


def save_labels(path, photo, labels, note="untrained weights: the labels mean nothing"):
    """Write the photo beside itself with the labels blended over it, VOC's colours, and a legend below.

    Args:
        path: of the PNG.
        photo: RGB image, W x H.
        labels: (H, W) integer labels.
        note: stands at the right of the legend.

    Returns:
        path.
    """
    colours = palette()
    blended = _blend(photo, labels)
    gap, font = 8, ImageFont.load_default(15)
    line = 26
    counts = torch.bincount(labels.flatten().cpu().long(), minlength=len(CLASSES))
    largest = [label for label in counts.argsort(descending=True).tolist() if counts[label] >= labels.numel() / 200][:7]
    width = max(2 * photo.width + gap, 320)
    sheet = Image.new("RGB", (width, photo.height + 2 * line + gap), "white")
    sheet.paste(photo, (0, 0))
    sheet.paste(blended, (photo.width + gap, 0))
    draw = ImageDraw.Draw(sheet)
    left, top = gap, photo.height + gap
    for label in largest:
        name = f"{CLASSES[label]} {counts[label].item() / labels.numel():.0%}"
        if left + 21 + draw.textlength(name, font) > width:
            break
        draw.rectangle((left, top + 2, left + 14, top + 16), fill=colours[label], outline=INK)
        draw.text((left + 21, top), name, INK, font)
        left += 21 + draw.textlength(name, font) + 22
    draw.text((gap, top + line), note, INK, font)
    sheet.save(path)
    return path


def save_stages(path, paper, times, steps, device):
    """Write the plot of the stages: where the time goes above, what the operations around the convolutions take below.

    Args:
        path: of the PNG.
        paper: {stage: ms}.
        times: {"reference" or "fcn_fast": {stage or step: ms}}.
        steps: {step: its label}.
        device: what it was measured on.

    Returns:
        path.
    """
    figure = Figure(figsize=(10, 6), dpi=150, layout="constrained")
    above, below = figure.subplots(2, height_ratios=(4, 5))
    rows = {
        "paper (Titan X)": paper,
        "reference (eager PyTorch)": times["reference"],
        "fcn_fast": times["fcn_fast"],
    }
    _shares(above, rows, list(paper))
    _steps(below, times, steps)
    figure.suptitle("FCN-8s: where the time goes", x=0.01, ha="left", weight="bold", color=INK)
    figure.supxlabel(device, x=0.99, ha="right", size=9, color="#666666")
    figure.savefig(path)
    return path


def save_confusion(path, matrix, names, title):
    """Write a confusion matrix, as shares of each true class, beside the IU of each class, as PNG.

    Args:
        path: of the PNG.
        matrix: a :class:`fcn_fast.metrics.ConfusionMatrix`.
        names: of the classes.
        title: stands above.

    Returns:
        path.
    """
    count = len(names)
    side = max(0.27 * count, 2)
    figure = Figure(figsize=(side + 4.6, side + 3.2), dpi=110, layout="constrained")
    shares, bars = figure.subplots(1, 2, sharey=True, width_ratios=(side + 0.6, 2))
    values = matrix.matrix.double() / matrix.matrix.sum(1, keepdim=True)
    image = shares.imshow(values.numpy(), _confusion_colours(), PowerNorm(0.5, 0, 1), aspect="auto")
    shares.set_xticks(range(count), names, rotation=90)
    shares.set_yticks(range(count), names)
    shares.set_xlabel("predicted", size=9, color=INK)
    shares.set_ylabel("true", size=9, color=INK)
    shares.set_xticks([i - 0.5 for i in range(count + 1)], minor=True)
    shares.set_yticks([i - 0.5 for i in range(count + 1)], minor=True)
    shares.grid(which="minor", color="#eeeeee", linewidth=0.5)
    drawn = bars.barh(range(count), matrix.iu.nan_to_num().numpy(), color=STAGE_COLOURS[1], height=0.75)
    labels = ["does not occur" if iu.isnan() else f"{iu:.1%}" for iu in matrix.iu]
    bars.bar_label(drawn, labels, padding=3, size=8, color=INK)
    bars.set_xlim(0, 1.45)
    bars.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    shares.set_title("What each class is predicted as", loc="left", size=10, color=INK)
    bars.set_title(f"IU, mean {matrix.mean_iu:.1%}" if matrix.matrix.any() else "IU", loc="left", size=10, color=INK)
    for axes in (shares, bars):
        axes.tick_params(which="both", length=0, labelsize=8, colors=INK)
        axes.spines[:].set_visible(False)
    ticks = [0, 0.1, 0.3, 0.6, 1]
    bar = figure.colorbar(
        image, ax=shares, location="bottom", shrink=0.7, aspect=40, pad=0.02, ticks=ticks, format="{x:.0%}"
    )
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", weight="bold", color=INK)
    figure.savefig(path, bbox_inches="tight", pad_inches=0.15)
    return path


def _in_colours(labels):
    image = Image.fromarray(labels.to("cpu", torch.uint8).numpy()).convert("P")
    image.putpalette([value for colour in palette() for value in colour])
    return image


def _blend(photo, labels):
    return Image.blend(photo, _in_colours(labels).convert("RGB"), 0.6)


def _confusion_colours():
    """From white to blue; grey where there is no pixel of a class."""
    colours = LinearSegmentedColormap.from_list("confusion", ["#ffffff", "#9db9d6", STAGE_COLOURS[0]])
    return colours.with_extremes(bad="#f2f2f2")


def _shares(axes, rows, stages):
    """One bar a row, as long as the whole, in a segment a stage."""
    totals = [sum(row[stage] for stage in stages) for row in rows.values()]
    left = [0.0] * len(rows)
    for number, (stage, colour) in enumerate(zip(stages, STAGE_COLOURS, strict=True), 1):
        shares = [row[stage] / total for row, total in zip(rows.values(), totals, strict=True)]
        bars = axes.barh(range(len(rows)), shares, left=left, color=colour, height=0.7, label=f"stage {number}")
        labels = [f"{row[stage]:,.1f} ms" for row in rows.values()]
        axes.bar_label(bars, labels, label_type="center", color="white", size=10, weight="bold")
        left = [a + b for a, b in zip(left, shares, strict=True)]
    for position, total in enumerate(totals):
        axes.text(1.01, position, f"{total:,.1f} ms", va="center", size=10, color=INK)
    axes.set_xlim(0, 1.14)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    _dress(axes, list(rows))
    axes.spines["bottom"].set_visible(False)
    axes.set_title("Share of each stage", loc="left", size=11, color=INK)
    axes.legend(ncols=3, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)


def _steps(axes, times, steps):
    """Two bars a step: the reference and fcn_fast, with the ratio of the two."""
    longest = max(times[side][step] for side in SIDE_COLOURS for step in steps)
    for offset, (side, colour) in zip((-0.19, 0.19), SIDE_COLOURS.items(), strict=True):
        values = [times[side][step] for step in steps]
        bars = axes.barh([i + offset for i in range(len(steps))], values, color=colour, height=0.36, label=side)
        labels = [f"{value:,.2f} ms" for value in values]
        if side == "fcn_fast":
            ratios = [times["reference"][step] / times[side][step] for step in steps]
            labels = [
                f"{label}   ({ratio:.{1 if ratio >= 1 else 2}f}x as fast)"
                for label, ratio in zip(labels, ratios, strict=True)
            ]
        axes.bar_label(bars, labels, padding=4, size=10, color=INK)
    axes.set_xlim(0, 1.35 * longest)
    axes.set_xlabel("milliseconds", size=9)
    _dress(axes, list(steps.values()))
    axes.set_title("The operations around the convolutions", loc="left", size=11, color=INK)
    axes.legend(ncols=2, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)


def _dress(axes, labels):
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.tick_params(length=0, labelsize=10, colors=INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#cccccc")
