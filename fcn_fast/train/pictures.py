"""What training shows: the curves of its log, and sample pictures with truth and prediction."""

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image, ImageDraw, ImageFont

from fcn_fast import pictures
from fcn_fast.data.voc import MEAN_BGR

__all__ = ["plain_numbers", "save_curves", "save_samples", "smoothed", "to_picture"]


def save_curves(path, rows):
    """Write the curves of a log as PNG.

    Args:
        path: of the PNG.
        rows: dicts with ``step``, ``loss`` and ``mean_iu``, which is None where it was not measured.
    """
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    losses = [(row["step"], row["loss"]) for row in rows]
    left.plot(*zip(*smoothed(losses), strict=True), color="#35608d")
    if all(loss > 0 for _, loss in losses):
        left.set_yscale("log")
        plain_numbers(left.yaxis)
    measured = [(row["step"], row["mean_iu"]) for row in rows if row["mean_iu"] is not None]
    if measured:
        right.plot(*zip(*measured, strict=True), marker="o", markersize=4, color="#d1495b")
    right.set_ylim(0, 1)
    for axes, title in ((left, "training loss, smoothed"), (right, "held-out mean IU")):
        axes.set_xlabel("steps")
        axes.set_title(title, loc="left", size=11)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    return path


def plain_numbers(axis):
    """Let the numbers of a logarithmic axis be as they are, not powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def smoothed(points, count=100):
    """The means over so many equal parts of a curve [(x, y)], each at the part's last x."""
    size = max(1, len(points) // count)
    parts = [points[start : start + size] for start in range(0, len(points) - size + 1, size)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


@torch.no_grad()
def save_samples(path, model, data, count=4):
    """Write the first pictures of a data set with their labels and what the net predicts, a row each, as PNG.

    Args:
        path: of the PNG.
        model: an FCN; of several heads the first is shown.
        data: a data set, see :mod:`fcn_fast.data`.
        count: of rows, at most.
    """
    device, training, head = next(model.parameters()).device, model.training, next(iter(model.heads))
    model.eval()
    rows = []
    for index in range(min(count, len(data))):
        x, target = data[index]
        labels = model.predict(x[None].to(device))
        labels, target = (labels[head], target[head]) if head else (labels, target)
        rows.append((to_picture(x), pictures._in_colours(target), pictures._in_colours(labels[0])))
    model.train(training)
    return save_rows(path, ("picture", "truth", "prediction"), rows)


def save_rows(path, titles, rows):
    """Write rows of PIL images, small ones enlarged by a whole factor, under a title each column, as PNG."""
    rows = [list(row) for row in rows]
    scale = max(1, 256 // max(image.height for row in rows for image in row))
    rows = [[image.resize((scale * image.width, scale * image.height), 0) for image in row] for row in rows]
    gap, line, font = 6, 24, ImageFont.load_default(15)
    width = max(image.width for row in rows for image in row)
    heights = [max(image.height for image in row) for row in rows]
    sheet = Image.new("RGB", (len(titles) * (width + gap) + gap, sum(heights) + len(rows) * gap + line), "white")
    draw, top = ImageDraw.Draw(sheet), line
    for column, title in enumerate(titles):
        draw.text((gap + column * (width + gap), 3), title, pictures.INK, font)
    for row, height in zip(rows, heights, strict=True):
        for column, image in enumerate(row):
            sheet.paste(image, (gap + column * (width + gap), top))
        top += height + gap
    sheet.save(path)
    return path


def to_picture(x):
    """The RGB picture whose first three channels are (C, H, W), blue, green and red minus VOC's mean."""
    bgr = x[:3].cpu() + torch.tensor(MEAN_BGR).view(3, 1, 1)
    return Image.fromarray(bgr.flip(0).clamp(0, 255).round().byte().permute(1, 2, 0).numpy())
