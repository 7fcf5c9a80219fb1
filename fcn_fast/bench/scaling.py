"""How cost and memory grow with the work, as laws fitted to the points of the sweeps."""

import itertools
import math

import numpy as np

from fcn_fast.bench.records import median
from fcn_fast.bench.tables import SMALL, Table, figure

__all__ = ["POSITIONS", "cost", "curves", "fit", "memory"]

# What an entry's place on the axis of its sweep is.
POSITIONS = {
    "classes": lambda entry: entry["shape"][1],
    "factor": lambda entry: entry["stride"],
    "image": lambda entry: entry["shape"][2] * entry["stride"],
    "batch": lambda entry: entry["shape"][0],
    "threads": lambda entry: entry["threads"],
}
DEVIATIONS = ("median deviation", "largest")
LAW = ("us a call", "ns a pixel", "ns a logit", "+ past the cache", "ns a low-resolution logit")


def curves(record, value):
    """{sweep: {(operation, variant): [(position, value), ...]}} of the points of a record, as far as they have one."""
    found = {sweep: {} for sweep in POSITIONS}
    for entry in record["entries"]:
        if "sweep" in entry and value(entry) is not None:
            line = found[entry["sweep"]].setdefault((entry["operation"], entry["variant"]), [])
            line.append((POSITIONS[entry["sweep"]](entry), value(entry)))
    return {sweep: lines for sweep, lines in found.items() if lines}


def cost(record, most=math.inf):
    """Time of each operation and variant as a sum: so much a call, a pixel, a full-resolution logit, more of it where
    all of these are larger than the last cache, and so much a low-resolution score.

    Args:
        record: of a machine.
        most: the median deviation above which a law is not shown.
    """
    cache, rows = record["environment"]["last_level_cache"], []
    for (operation, variant), entries in _points(record).items():
        seconds, terms = [median(entry) / 1e3 for entry in entries], []
        for entry in entries:
            logits = _pixels(entry) * entry["shape"][1]
            terms.append(
                (
                    1e-6,
                    *(1e-9 * n for n in (_pixels(entry), logits, logits * (4 * logits > cache))),
                    1e-9 * math.prod(entry["shape"]),
                )
            )
        coefficients, off = fit(terms, seconds)
        cells = list(map(figure, coefficients))
        if _median(off) > most:
            cells = ["too noisy to fit", *[""] * (len(LAW) - 1)]
        rows.append([operation, variant, *cells, *_deviations(off), str(len(entries))])
    return Table(["operation", "variant", *LAW, *DEVIATIONS, "points"], rows)


def memory(record):
    """Peak memory as so many times the full-resolution logits, the low-resolution ones and the pixels."""
    rows = []
    for (operation, variant), entries in _points(record).items():
        entries = [entry for entry in entries if (entry.get("peak_bytes") or 0) >= 4 * SMALL]
        if len(entries) < 3:
            continue
        terms = []
        for entry in entries:
            low = 4 * math.prod(entry["shape"])
            terms.append((1, low, low * entry["stride"] ** 2, _pixels(entry)))
        (constant, low, high, pixel), off = fit(terms, [entry["peak_bytes"] for entry in entries])
        cells = [figure(high), figure(low), figure(pixel), figure(constant / 2**20), *_deviations(off)]
        rows.append([operation, variant, *cells])
    header = ["operation", "variant", "x full-resolution logits", "x low-resolution logits", "bytes a pixel", "+ MiB"]
    return Table([*header, *DEVIATIONS], rows)


def fit(terms, values):
    """The law ``value = sum of coefficient * term`` that is nearest in proportion.

    Args:
        terms: rows of numbers, one for each coefficient.
        values: positive numbers.

    Returns:
        (coefficients, none of them negative; the deviations of the values, relative to them, sorted). Of laws that are
        equally near the one with fewer terms, and earlier ones: not what this machine's rounding prefers.
    """
    terms, values = np.asarray(terms, dtype=float), np.asarray(values, dtype=float)
    relative = terms / values[:, None]
    best = None
    # Of the few terms every subset is tried: the best one without a negative coefficient is the constrained optimum.
    for count in range(1, terms.shape[1] + 1):
        for chosen in itertools.combinations(range(terms.shape[1]), count):
            found, _, rank, _ = np.linalg.lstsq(relative[:, chosen], np.ones(len(values)), rcond=None)
            if rank == count and (found >= 0).all():
                coefficients = np.zeros(terms.shape[1])
                coefficients[list(chosen)] = found
                off = np.abs(relative @ coefficients - 1)
                if best is None or (off**2).sum() < best[0] * (1 - 1e-9) - 1e-18:
                    best = ((off**2).sum(), coefficients, off)
    return best[1].tolist(), sorted(best[2].tolist())


def _deviations(off):
    return [f"{_median(off):.0%}", f"{off[-1]:.0%}"]


def _median(off):
    return off[len(off) // 2]


def _points(record):
    """{(operation, variant): entries} of the sweeps, without those of threads."""
    points = {}
    for entry in record["entries"]:
        if entry.get("sweep") not in (None, "threads"):
            points.setdefault((entry["operation"], entry["variant"]), []).append(entry)
    return points


def _pixels(entry):
    batch, _, height, width = entry["shape"]
    return batch * height * width * entry["stride"] ** 2
