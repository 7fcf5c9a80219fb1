"""``fcn-fast eval``: the measures of a net's label maps on a data set."""

import json
import math
import time

import torch

import fcn_fast
from fcn_fast import pictures, train
from fcn_fast.command import InputError, pick_device, writable_folder
from fcn_fast.data import open_data
from fcn_fast.data.transforms import TRANSFORMS
from fcn_fast.predict import load_model

__all__ = ["run"]

MEASURES = {
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "mean_iu": "mean IU",
    "frequency_weighted_iu": "frequency-weighted IU",
}


def run(data, weights, model=None, split=None, out=".", device=None, skip_broken=False):
    """Evaluate a net: print its measures, write them as JSON, and each head's confusion matrix as PNG.

    One image at a time, at its native size, and without its logits: memory is that of the largest image.

    Args:
        data: ``KIND:PATH``, as :func:`fcn_fast.data.open_data` takes.
        weights: path of weights, as ``fcn-fast predict`` takes.
        model: name of the published net; what the weights say, or voc-fcn8s, unless given.
        split: of the data set; the one it is evaluated on unless given.
        out: folder of ``evaluation.json`` and ``confusion.png``, or ``confusion_HEAD.png`` of each of several heads.
        device: ``"cpu"`` or ``"cuda"``; cuda where there is a GPU unless given.
        skip_broken: whether to leave out images whose files are missing or no good.

    Returns:
        0.

    Raises:
        InputError: no data, weights, folder or device that can be used, or a file of the data set that is no good.
    """
    device = pick_device(device)
    out = writable_folder(out)
    net = load_model(weights, model)
    dataset = open_data(data, split, TRANSFORMS[net.variant.transform], "skip" if skip_broken else "error")
    names = dataset.classes if isinstance(dataset.classes, dict) else {"": dataset.classes}
    _check_classes(net, names)
    net = net.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    start = time.perf_counter()
    matrices = train.evaluate(net, dataset, progress=True)
    seconds = time.perf_counter() - start
    matrices = matrices if isinstance(matrices, dict) else {"": matrices}

    report = {
        "model": net.variant.name,
        "weights": str(weights),
        "data": str(data),
        "split": dataset.split,
        "images": len(dataset),
        "skipped": getattr(dataset, "skipped", {}),
        "seconds": seconds,
        "device": device.type,
        "versions": {"fcn_fast": fcn_fast.__version__, "torch": torch.__version__},
        "heads": {head or "labels": _numbers(matrix, names[head]) for head, matrix in matrices.items()},
    }
    written = [_write_report(out / "evaluation.json", report)]
    for head, matrix in matrices.items():
        path = out / f"confusion{'_' * bool(head)}{head}.png"
        title = f"{net.variant.name} on {str(data).partition(':')[0]}{': ' * bool(head)}{head}"
        written.append(pictures.save_confusion(path, matrix, names[head], title))
    print("\n".join(_header(report)))
    for head, matrix in matrices.items():
        print("\n".join(_table(head, matrix, names[head])))
    print(*written, sep="  ")
    return 0


def _check_classes(net, names):
    takes, has = net.heads, {head: len(of_head) for head, of_head in names.items()}
    if takes != has:
        takes, has = (" and ".join(f"{n} {head}".strip() for head, n in each.items()) for each in (takes, has))
        raise InputError(f"data: expected labels of {takes} classes, as {net.variant.name} gives, got {has}")
    for head, known in net.class_names.items():
        other = next((pair for pair in zip(known, names[head], strict=True) if pair[0] != pair[1]), None)
        if other:
            raise InputError(f"data: expected the classes of the weights, such as {other[0]}, got {other[1]} there")


def _write_report(path, report):
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def _header(report):
    what = f"{report['model']} on {report['data']}, {report['split']}"
    yield f"{what}: {report['images']:,} images in {report['seconds']:,.1f} s"
    if report["skipped"]:
        yield f"skipped {len(report['skipped']):,} images, the first: {next(iter(report['skipped'].values()))}"


def _table(head, matrix, names):
    """Lines: the measures in per cent, then each class."""
    width = max(map(len, (*names, *MEASURES.values())))
    yield ""
    yield from [f"{head}:"] * bool(head)
    for measure, label in MEASURES.items():
        yield f"{label:<{width}}  {_percent(getattr(matrix, measure))}"
    pixels = matrix.matrix.sum(1)
    if (matrix.matrix.sum(0)[pixels == 0] > 0).any():
        only = _percent(_mean_iu_of_true(matrix)).strip()
        yield f"{'':<{width}}  (mean IU {only} of the {(pixels > 0).sum()} classes that occur; others were predicted)"
    yield ""
    yield f"{'class':<{width}}  {'pixels':>7}  {'accuracy':>8}  {'IU':>7}"
    for name, count, accuracy, iu in zip(names, pixels.tolist(), matrix.accuracy, matrix.iu, strict=True):
        share = count / pixels.sum().item() if count else 0.0
        yield f"{name:<{width}}  {_percent(share)}  {_percent(accuracy.item()):>8}  {_percent(iu.item())}"


def _numbers(matrix, names):
    """The measures and the matrix as JSON has them: null for what is not a number."""
    pixels = matrix.matrix.sum(1).tolist()
    rows = zip(names, pixels, matrix.accuracy.tolist(), matrix.iu.tolist(), strict=True)
    return {
        **{measure: _or_none(getattr(matrix, measure)) for measure in MEASURES},
        "mean_iu_of_true_classes": _or_none(_mean_iu_of_true(matrix)),
        "classes": [
            {"name": name, "pixels": count, "accuracy": _or_none(accuracy), "iu": _or_none(iu)}
            for name, count, accuracy, iu in rows
        ],
        "matrix": matrix.matrix.tolist(),
    }


def _mean_iu_of_true(matrix):
    """The mean IU without classes that are predicted but never true."""
    return matrix.iu[matrix.matrix.sum(1) > 0].mean().item()


def _percent(value):
    return "      -" if math.isnan(value) else f"{value:7.2%}"


def _or_none(value):
    return None if math.isnan(value) else value
