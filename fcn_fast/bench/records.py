"""Measurements as JSON: what a machine gave, with the facts of the machine."""

import datetime
import json
from pathlib import Path

from fcn_fast.bench import machine, suites
from fcn_fast.command import InputError

__all__ = ["baseline_of", "groups_of", "load", "median", "new", "noisy", "save", "times_of"]

BASELINES = ("eager", "grouped")
FEW = 10  # samples; the quartiles of less say little


def new(device, entries, notes):
    """A record of these measurements on this machine."""
    dtypes = sorted({entry["dtype"] for entry in entries})
    environment = {
        **machine.facts(device),
        "rates": {name: float(f"{rate:.4g}") for name, rate in machine.rates(device, dtypes).items()},
        "date": datetime.date.today().isoformat(),
    }
    return {"environment": environment, "notes": notes, "entries": entries}


def save(path, record):
    """Write a record, an entry a line.

    Raises:
        InputError: a file that cannot be written.
    """
    lines = ",\n".join("  " + json.dumps(entry) for entry in record["entries"])
    head = json.dumps({name: value for name, value in record.items() if name != "entries"}, indent=1)
    try:
        Path(path).write_text(f'{head[:-2]},\n "entries": [\n{lines}\n ]\n}}\n')
    except OSError as error:
        raise InputError(f"json: expected a file that can be written, got {path} ({error.strerror})") from error


def load(path):
    """The record in a file, or the parts of one in a folder.

    Of parts that were measured in sessions of their own, each with the machine's rates in it, ``"sessions"`` has
    {part: rates}; ``"rates"`` of the whole are those of the first part that has them.

    Raises:
        InputError: nothing there that can be read as one.
    """
    path = Path(path)
    if not path.is_dir():
        return _load(path)
    parts = {part: _load(file) for part in suites.PARTS if (file := path / f"{part}.json").exists()}
    if not parts:
        raise InputError(f"record: expected a folder with one of {', '.join(suites.PARTS)}.json, got {path}")
    whole = {"environment": {}, "sessions": {}, "notes": [], "entries": []}
    for part, record in parts.items():
        whole["sessions"][part] = record["environment"]["rates"]
        rates = {**record["environment"]["rates"], **whole["environment"].get("rates", {})}
        whole["environment"] = {**whole["environment"], **record["environment"], "rates": rates}
        whole["notes"] += record["notes"]
        whole["entries"] += record["entries"]
    return whole


def groups_of(entries):
    """{group: {variant: entry}} of what is no point of a sweep; of what was measured twice the slower one."""
    groups = {}
    for entry in entries:
        if "sweep" not in entry:
            variants = groups.setdefault(entry["group"], {})
            before = variants.get(entry["variant"])
            if before is None or median(before) < median(entry):
                variants[entry["variant"]] = entry
    return groups


def baseline_of(variants):
    """The entry of the baseline among {variant: entry}; None where there is none."""
    return next((variants[name] for name in BASELINES if name in variants), None)


def times_of(entry):
    """The times to go by: on a GPU its own, of a CUDA graph where a call is so short that launching it counts, else of
    events, which do not depend on how soon the CPU notices."""
    graph = entry.get("graph_milliseconds", {})
    return graph if "median" in graph else entry.get("event_milliseconds") or entry["milliseconds"]


def median(entry):
    """Milliseconds."""
    return times_of(entry)["median"]


def noisy(one, other):
    """Whether two entries' times overlap, so that what lies between them may be noise."""
    (low, high), (other_low, other_high) = _width(one), _width(other)
    return low <= other_high and other_low <= high


def _width(entry):
    """From where to where the times lie: the middle half of them, or, of a few, all."""
    times = times_of(entry)
    return (times["q1"], times["q3"]) if times["rounds"] >= FEW else (times["min"], times["max"])


def _load(path):
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not text"
        raise InputError(f"record: expected a file that can be read, got {path} ({why})") from error
    try:
        record = json.loads(text)
        for entry in record["entries"]:
            entry["group"], entry["variant"], entry["milliseconds"]["median"], entry["milliseconds"]["rounds"]
        record["environment"]["rates"], record["notes"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"record: expected what `fcn-fast bench --json` writes, got {path}") from error
    return record
