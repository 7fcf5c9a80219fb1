"""What measurements say, as tables: in a terminal and in Markdown."""

import math
import statistics
from dataclasses import dataclass

from fcn_fast.bench import nets
from fcn_fast.bench.cases import SIZES
from fcn_fast.bench.records import baseline_of, groups_of, median, noisy, times_of
from fcn_fast.bench.suites import SHOWN

__all__ = [
    "LABELS",
    "Table",
    "cases",
    "figure",
    "gpu",
    "gpu_cases",
    "group_of",
    "limits",
    "machine",
    "memory",
    "rates",
    "speed",
    "spread",
    "stages",
    "title",
    "whole",
]

WAYS = {"forward": "forward", "backward": "backward", "both": "forward + backward"}
KINDS = {
    "": "",
    "resize": "",
    "deconvolution": " (deconvolution)",
    "smooth": ", smooth scores",
    "random": ", random scores",
}
LABELS = {
    (name, kind, way): f"{name}{KINDS[kind]}" + (f", {WAYS[way]}" if name != "upsample_argmax" else "")
    for name, kind, way in SHOWN
}
"""{(operation, kind, direction): how it is called} of what is shown at every size."""
BUSY = 0.2  # of a median: the usual spread above which a machine is not quiet
VARIANTS = {"eager": "eager", "compile": "compile", "fcn_fast": "fcn_fast", "canvas": "frozen canvas"}
SMALL = 2**18  # bytes; a process's resident set is counted no finer


@dataclass(frozen=True)
class Table:
    """Rows of text under a header."""

    header: list
    rows: list

    def __bool__(self):
        return bool(self.rows)

    def markdown(self):
        """The table in Markdown."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return (
            "\n".join("| " + " | ".join(line) + " |" for line in lines)
            .replace("| ---", "|---")
            .replace("--- |", "---|")
        )

    def plain(self):
        """The table for a terminal: the first column to the left, numbers to the right."""
        rows = [[cell.replace("**", "").replace("`", "") for cell in row] for row in (self.header, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                f"{cell:<{width}}" if i == 0 else f"{cell:>{width}}"
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def figure(value):
    """A number in three figures."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value)) + 1e-9))
    return f"{value:,.{digits}f}"


def machine(record):
    """One line: what it was measured on."""
    facts = record["environment"]
    if facts["device_type"] == "cuda":
        names = ("driver", "cuda", "torch", "triton")
        convolutions = f"float32 convolutions in {facts['float32_convolutions']}"
        return ", ".join([facts["device"], *(f"{name} {facts[name]}" for name in names), convolutions])
    threads = f"{facts['threads']} thread{'s' if facts['threads'] != 1 else ''}"
    return f"{facts['device']}, {threads}, {facts['isa']}, torch {facts['torch']}"


def rates(record):
    """One line: what the machine reaches at the simplest things, in each of the sessions that the record is of."""
    work = "matrix product" if record["environment"]["device_type"] == "cuda" else "convolution"
    sessions = {}
    for part, found in record.get("sessions", {"": record["environment"]["rates"]}).items():
        parts, rates = sessions.setdefault((found["copy"], found["float32"]), ([], {}))
        parts.append(part)
        rates |= found
    lines = []
    for parts, found in sessions.values():
        words = [f"copy {figure(found['copy'] / 1e9)} GB/s"]
        for dtype in ("float32", "bfloat16", "float16"):
            if dtype in found:
                words.append(f"{work} in {dtype} {figure(found[dtype] / 1e9)} GFLOP/s")
        lines.append((f"{' and '.join(parts)}: " if len(sessions) > 1 else "") + ", ".join(words))
    return "machine: " + "; ".join(lines)


def spread(record):
    """One line: how much the times of one case vary, and whether that is too much to go by."""
    widths = [(times_of(entry)["q3"] - times_of(entry)["q1"]) / median(entry) for entry in record["entries"]]
    if not widths:
        return "nothing was measured"
    width = statistics.median(widths)
    busy = ": the machine was busy, measure again when nothing else runs" if width > BUSY else ""
    return f"spread: the middle half of a case's times is {width:.0%} of their median wide{busy}"


def speed(record):
    """Of each operation and size: the milliseconds of fcn_fast, and how many times as long the others take."""
    groups = groups_of(record["entries"])
    sizes = [size for size in SIZES if any(group_of(groups, key, size.name) for key in SHOWN)]
    rows = []
    for key, label in LABELS.items():
        found = [group_of(groups, key, size.name) for size in sizes]
        if any(found):
            rows.append([label, *(_ratios(variants) if variants else "" for variants in found)])
    return Table(["", *(size.title for size in sizes)], rows)


def gpu(record):
    """Of each case on a GPU: what it takes, how many times as long the others take, and the memory."""
    rows = []
    for variants in gpu_cases(record):
        ours, baseline = variants["fcn_fast"], baseline_of(variants)
        others = [variants.get(name) for name in ("compile", "dense")]
        ratios = [_ratio(other, ours) if other else "" for other in (baseline, *others)]
        copied = f"{ours['percent_of_copy']:.0f}%"
        peaks = [_mebibytes(baseline), _mebibytes(ours)]
        times = [figure(median(baseline)), f"**{figure(median(ours))}**"]
        case, size, which = title(ours)
        rows.append([f"`{case}` {size}, {ours['dtype']}, {which}", *times, *ratios, copied, *peaks])
    header = ["", "eager ms", "fcn_fast ms", "eager", "compile", "dense", "of a copy", "eager MiB", "fcn_fast MiB"]
    return Table(header, rows)


def gpu_cases(record):
    """{variant: entry} of each operation that was measured on a GPU, in the layout that most nets have."""
    if record["environment"]["device_type"] != "cuda":
        return
    for group, variants in groups_of(record["entries"]).items():
        ours = variants.get("fcn_fast")
        if ours and baseline_of(variants) and not group.startswith("FCN-8s ") and ours["layout"] == "contiguous":
            yield variants


def title(entry):
    """A case by the numbers that it takes: operation, size, and direction or scores."""
    n, c, height, width = entry["shape"]
    factor = entry["stride"]
    if entry["operation"] == "softmax_loss":
        size = f"{n}x{c}x{height * factor}x{width * factor}"
    else:
        size = f"{n}x{c}x{height}x{width}, x{factor}"
    scores = entry["kind"] in ("smooth", "random")
    which = f"{entry['kind']} scores" if scores else WAYS[entry["direction"]]
    return entry["operation"], size, which


def stages(record, padding="caffe", dtype="float32"):
    """FCN-8s stage by stage beside the paper's times, with the machine's floor."""
    groups = groups_of(record["entries"])
    names = {
        "stage1": "1: conv1_1 to pool3",
        "stage2": "2: conv4_1 to pool4",
        "stage3": "3: conv5_1 to scores",
        "forward": "all",
    }
    found = {part: groups.get(nets.NetCase(part, padding, dtype=dtype).group) for part in names}
    found = {part: variants for part, variants in found.items() if variants and "fcn_fast" in variants}
    if not found:
        return Table([], [])
    columns = [v for v in VARIANTS if any(v in variants for variants in found.values())]
    total = {v: sum(median(found[stage][v]) for stage in nets.STAGES if v in found.get(stage, {})) for v in columns}
    rows = []
    for part, variants in found.items():
        share = part != "forward"
        paper = f"{nets.PAPER[part]:.1f}" + (f" ({nets.PAPER[part] / nets.PAPER['forward']:.0%})" if share else "")
        cells = [_milliseconds(variants[v], total[v] if share else None) if v in variants else "" for v in columns]
        ours, floor = variants["fcn_fast"], variants["fcn_fast"]["limit"]["milliseconds"]
        near = [f"{floor / median(variants[v]):.0%}" if v in variants else "" for v in ("eager", "fcn_fast")]
        rows.append([names[part], f"{ours['flop'] / 1e9:.1f}", paper, *cells, figure(floor), *near])
    header = [f"{VARIANTS[v]} ms" for v in columns]
    return Table(
        ["stage", "GFLOP", "paper ms (Titan X)", *header, "floor ms", "eager reaches", "fcn_fast reaches"], rows
    )


def whole(record):
    """FCN-8s from image to label map."""
    titles = {"predict": "image to label map", "labels": "fusion and label map alone"}
    rows = []
    for group, variants in groups_of(record["entries"]).items():
        title = titles.get(group.split()[1]) if group.startswith("FCN-8s ") else None
        if title and "eager" in variants:
            for variant, entry in variants.items():
                ratio = _ratio(variants["eager"], entry) if variant != "eager" else ""
                cells = [_milliseconds(entry), ratio, _mebibytes(entry), f"{1 - entry['error']:.4%}"]
                rows.append([f"{entry['size']}: {title}", VARIANTS[variant], *cells])
    return Table(["FCN-8s", "", "ms", "as fast as eager", "peak MiB", "labels as eager's"], rows)


def memory(record):
    """Peak memory of the loss and of the label map, above what the inputs take."""
    groups = groups_of(record["entries"])
    shown = {"loss, forward + backward": SHOWN[0], "label map": ("upsample_argmax", "smooth", "forward")}
    sizes = [size for size in SIZES if all(group_of(groups, key, size.name) for key in shown.values())]
    rows = []
    for label, key in shown.items():
        for variant, title in (("eager", "eager PyTorch"), ("fcn_fast", f"`{key[0]}`")):
            rows.append(
                [f"{label}: {title}", *(_mebibytes(group_of(groups, key, size.name)[variant]) for size in sizes)]
            )
    return Table(["peak MiB above the inputs", *(size.title for size in sizes)], rows if sizes else [])


def limits(record):
    """Of each case what bounds it on this machine, and how near to that fcn_fast comes; on a GPU, memory alone."""
    cuda, rows = record["environment"]["device_type"] == "cuda", []
    for group, variants in groups_of(record["entries"]).items():
        ours = variants.get("fcn_fast")
        if ours and "limit" in ours and not group.startswith("FCN-8s "):
            limit = ours["limit"]
            by = [] if cuda else [limit["by"], f"{limit['percent']:.0f}%"]
            times = [figure(median(ours)), figure(limit["milliseconds"]), *by]
            rows.append(
                [group, ours["bytes_formula"], *times, figure(ours["gb_per_s"]), f"{ours['percent_of_copy']:.0f}%"]
            )
    limit = ["ms of a copy"] if cuda else ["limit ms", "by", "reached"]
    return Table(["case", "bytes moved", "ms", *limit, "GB/s", "of a copy"], rows)


def cases(record):
    """Every case and variant: times with their spread, ratio, error and memory."""
    rows = []
    for group, variants in groups_of(record["entries"]).items():
        baseline = baseline_of(variants)
        for variant, entry in variants.items():
            times = entry["milliseconds"]
            spread = f"{figure(times['q1'])} to {figure(times['q3'])}"
            ratio = "" if baseline in (None, entry) else _ratio(baseline, entry)
            error = "not a number" if entry["error"] is None else f"{entry['error']:.1e}"
            cells = [figure(times["median"]), spread, *_gpu(entry), ratio, error, _mebibytes(entry)]
            rows.append([group, variant, *cells])
    gpu = ["event ms", "graph ms"] if record["environment"]["device_type"] == "cuda" else []
    return Table(["case", "variant", "ms", "middle half", *gpu, "as fast as the first", "error", "MiB"], rows)


def _gpu(entry):
    """The medians of CUDA events and of the CUDA graph, on a GPU."""
    if "event_milliseconds" not in entry:
        return []
    graph = entry.get("graph_milliseconds", {}).get("median")
    return [figure(entry["event_milliseconds"]["median"]), figure(graph) if graph else ""]


def group_of(groups, key, size):
    """{variant: entry} of an (operation, kind, direction) at the size of this name; None where there is none."""
    name, kind, way = key
    return groups.get(" ".join([name, *([kind] if kind else []), size, way]))


def _milliseconds(entry, total=None):
    share = f" ({median(entry) / total:.0%})" if total else ""
    return f"{figure(median(entry))}{share}"


def _mebibytes(entry):
    peak = entry.get("peak_bytes")
    if peak is None:
        return ""
    return f"{peak / 2**20:,.1f}" if peak >= SMALL else "< 0.3"


def _ratios(variants):
    ours, baseline = variants["fcn_fast"], baseline_of(variants)
    others = {"eager": baseline, "compile": variants.get("compile")}
    ratios = ", ".join(f"{name} {_ratio(other, ours)}" for name, other in others.items() if other)
    return f"**{figure(median(ours))} ms** ({ratios})"


def _ratio(slow, fast):
    ratio = median(slow) / median(fast)
    digits = 2 if ratio < 2 else 1 if ratio < 100 else 0
    return f"{ratio:,.{digits}f}x" + (", inside the noise" if noisy(slow, fast) else "")
