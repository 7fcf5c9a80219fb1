"""``fcn-fast bench``: measure this machine, and show what it gives."""

import math
from pathlib import Path

from fcn_fast.bench import plots, records, scaling, suites, tables
from fcn_fast.command import InputError, pick_device, writable_folder

__all__ = ["report", "run", "sections"]

PADDINGS = {"caffe": "published padding", "lean": "lean padding"}
NOISY = 0.15  # median deviation of a machine that may be busy; a record shows every law, with its deviations


def run(quick=False, device=None, json=None, out=None):
    """Measure, print the tables, and write the record and the plots where they are wanted.

    Args:
        quick: a minute's worth, without torch.compile.
        device: ``"cpu"`` or ``"cuda"``; cuda where there is a GPU unless given.
        json: path of the record to write.
        out: folder of the plots to write.

    Returns:
        0, or 1 where fcn_fast does not agree with PyTorch, or the user stopped it.

    Raises:
        InputError: no GPU, or a file or folder that cannot be written.
    """
    device = pick_device(device)
    if json is not None:
        _check_file(Path(json))
    if out is not None:
        out = writable_folder(out)
    entries, notes = suites.measure((suites.quick if quick else suites.default)(device), device)
    record = records.new(device, entries, notes)
    if json is not None:
        records.save(json, record)
    print(report(record))
    if out is not None:
        for name in plots.PLOTS:
            path = plots.save(name, record, out / f"{name}.png")
            print(f"{name + ':':<10}{path or 'nothing to draw'}")
    return 1 if any(note.startswith(("WRONG", suites.INTERRUPTED)) for note in notes) else 0


def report(record):
    """The tables of a record, for a terminal."""
    summary = {
        "fcn_fast, and how many times as long the others take": tables.speed(record),
        "Peak memory": tables.memory(record),
    }
    lines = [tables.machine(record), tables.rates(record), tables.spread(record), ""]
    for title, table in {**summary, **sections(record, NOISY)}.items():
        if table:
            lines += [title, "", table.plain(), ""]
    return "\n".join([*lines, *record["notes"]])


def sections(record, most=math.inf):
    """{title: table} of all that a record says in detail; a table of nothing is False. ``most`` as in scaling.cost."""
    return {
        **{
            f"FCN-8s at 500x500, {title}, {dtype}": tables.stages(record, padding, dtype)
            for dtype in ("float32", "bfloat16")
            for padding, title in PADDINGS.items()
        },
        "What bounds each case": tables.limits(record),
        "FCN-8s from image to label map": tables.whole(record),
        "Cost as work grows": scaling.cost(record, most),
        "Memory as work grows": scaling.memory(record),
        "Every case": tables.cases(record),
    }


def _check_file(path):
    """Complain of a file that cannot be written before minutes go into what it is to hold."""
    try:
        with open(path, "a"):
            pass
    except OSError as error:
        raise InputError(f"json: expected a file that can be written, got {path} ({error.strerror})") from error
