"""``fcn-fast bench compare``: what moved between two records."""

from fcn_fast.bench import records
from fcn_fast.bench.tables import Table, figure

__all__ = ["run"]

SMALLEST = 0.03  # of a change that is worth a line, however small the spread


def run(before, after):
    """Print what moved beyond noise from one record to another.

    A time has moved where the middle halves of its samples do not overlap and the medians differ by 3 % or more. The
    baseline of its group ran in the same two sessions: what moved by as much as that, the machine moved.

    Args:
        before, after: files of ``fcn-fast bench --json``, or folders of them.

    Returns:
        0, or 1 where fcn_fast has become slower by more than its baseline.

    Raises:
        InputError: no records, or none of the same cases.
    """
    before, after = records.load(before), records.load(after)
    pairs = _pairs(before["entries"], after["entries"])
    if not pairs:
        raise records.InputError("record: expected two records of some of the same cases, got none in common")
    print("\n".join(_environments(before["environment"], after["environment"])))
    moved = [(key, *pair) for key, pair in pairs.items() if _moved(*pair)]
    rows, slower = [], 0
    for key, one, other in sorted(moved, key=lambda item: _change(*item[1:])):
        baseline = _baseline(key, pairs)
        rows.append(
            [key[0], key[1], _time(one), _time(other), _percent(one, other), _percent(*baseline) if baseline else ""]
        )
        slower += key[1] == "fcn_fast" and _change(one, other) > max(_change(*baseline) if baseline else 1, 1) * (
            1 + SMALLEST
        )
    if rows:
        print(Table(["case", "variant", "before ms", "after ms", "change", "its baseline"], rows).plain())
    only = len(before["entries"]) + len(after["entries"]) - 2 * len(pairs)
    print(
        f"{len(moved)} of {len(pairs)} times moved beyond the noise"
        + (f"; {only} are in one record only" if only else "")
    )
    return 1 if slower else 0


def _pairs(before, after):
    """{key: (entry before, entry after)} of what both have."""
    before, after = ({_key(entry): entry for entry in entries} for entries in (before, after))
    return {key: (entry, after[key]) for key, entry in before.items() if key in after}


def _key(entry):
    if "sweep" not in entry:
        return entry["group"], entry["variant"]
    shape = "x".join(map(str, entry["shape"]))
    point = f"{entry['operation']}, {entry['sweep']}: {shape} x{entry['stride']}, {entry['threads']} threads"
    return point, entry["variant"]


def _baseline(key, pairs):
    if key[1] in records.BASELINES:
        return None
    return next((pairs[key[0], name] for name in records.BASELINES if (key[0], name) in pairs), None)


def _moved(one, other):
    return not records.noisy(one, other) and abs(_change(one, other) - 1) >= SMALLEST


def _change(one, other):
    return records.median(other) / records.median(one)


def _percent(one, other):
    return f"{_change(one, other) - 1:+.0%}"


def _time(entry):
    return figure(records.median(entry))


def _environments(before, after):
    names = [
        name for name in {**before, **after} if name not in ("rates", "date") and before.get(name) != after.get(name)
    ]
    lines = [f"{name}: {before.get(name, 'unknown')} before, {after.get(name, 'unknown')} after" for name in names]
    for name in before["rates"].keys() & after["rates"].keys():
        change = after["rates"][name] / before["rates"][name] - 1
        if abs(change) >= SMALLEST:
            lines.append(f"rate of {'a copy' if name == 'copy' else name}: {change:+.0%}")
    return lines
