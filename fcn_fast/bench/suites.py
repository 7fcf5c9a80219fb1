"""What is measured together: lists of jobs, and how a list is worked through."""

import math
import sys
from dataclasses import dataclass

import torch
from tqdm import tqdm

from fcn_fast.bench import nets, run
from fcn_fast.bench.cases import CITYSCAPES, SIZES, VOC, Case, Size, operation_cases

__all__ = ["INTERRUPTED", "PARTS", "Job", "default", "measure", "operations", "predict", "quick", "scaling", "stages"]

SIDES = ("eager", "fcn_fast")
# What is shown of the larger sizes, with everything at VOC's.
SHOWN = (
    ("upsample_softmax_loss", "", "both"),
    ("softmax_loss", "", "both"),
    ("bilinear_upsample", "resize", "forward"),
    ("bilinear_upsample", "resize", "backward"),
    ("skip_fuse", "deconvolution", "forward"),
    ("upsample_argmax", "smooth", "forward"),
    ("upsample_argmax", "random", "forward"),
)
SCALED = (
    ("upsample_softmax_loss", "", "both"),
    ("softmax_loss", "", "both"),
    ("bilinear_upsample", "resize", "forward"),
    ("upsample_argmax", "smooth", "forward"),
)
SWEEPS = {
    "classes": [Size(f"{n} classes", 1, n, 64, 64, 8) for n in (2, 5, 10, 21, 50, 100, 150, 300, 1000)],
    "factor": [Size(f"factor {n}", 1, 21, 512 // n, 512 // n, n) for n in (2, 4, 8, 16, 32)],
    "image": [Size(f"image of {n}x{n}", 1, 21, n // 8, n // 8, 8) for n in (256, 512, 1024, 2048, 4096)],
    "batch": [Size(f"batch of {n}", n, 21, 63, 63, 8) for n in (1, 2, 4, 8, 16)],
}
INTERRUPTED = "interrupted"
LONGEST = 4.0  # seconds of a call in a sweep


@dataclass(frozen=True)
class Job:
    """A case, which of its variants, and how thoroughly it is measured.

    Args:
        case: what to measure.
        variants: of the case; all unless given.
        seconds: of rounds of the slowest variant.
        sweep: of which the job is a point, so that errors are not measured and variants that would take too long are
            left out.
        threads: to compute with; as many as PyTorch has unless given.
    """

    case: Case | nets.NetCase
    variants: tuple | None = None
    seconds: float = 0.5
    sweep: str = ""
    threads: int | None = None


def operations(device):
    """Every case at VOC's size, what the documentation shows of the larger ones, and half precision."""
    cases = operation_cases(sizes=(VOC,), dtypes=("float32",), layouts=("contiguous",))
    cases += [Case(name, size, way, kind) for size in SIZES[1:] for name, kind, way in SHOWN]
    varied = operation_cases(sizes=(CITYSCAPES,), full=(CITYSCAPES,), dtypes=("float32", "bfloat16"))
    cases += [case for case in varied if (case.dtype, case.layout) != ("float32", "contiguous")]
    return [Job(case) for case in sorted(cases, key=lambda case: case.operation)]


def stages(device):
    """FCN-8s stage by stage."""
    return [Job(case, seconds=12) for case in nets.stage_cases(device)]


def predict(device):
    """FCN-8s from image to label map."""
    large = [Job(case, SIDES) for case in nets.predict_cases([(1024, 2048)])]
    return [Job(case, seconds=12) for case in nets.predict_cases([(500, 500)])] + large


def scaling(device):
    """Cost and memory as the work grows, one thing at a time; threads only on a CPU."""
    jobs = [
        Job(Case(name, size, way, kind), SIDES, 0.2, sweep)
        for name, kind, way in SCALED
        for sweep, sizes in SWEEPS.items()
        for size in sizes
    ]
    if device.type == "cpu":
        counts = sorted({*(2**i for i in range(10) if 2**i < torch.get_num_threads()), torch.get_num_threads()})
        cases = [Case(name, CITYSCAPES, way, kind) for name, kind, way in SCALED]
        jobs += [Job(case, SIDES, 0.2, "threads", count) for case in cases for count in counts]
    return jobs


def default(device):
    """VOC's size in full, the fused loss at the larger ones, the stages, and a few points of each sweep."""
    cases = operation_cases(dtypes=("float32", "bfloat16"))
    sweeps = [job for job in scaling(device) if job.sweep in ("classes", "batch") and math.prod(job.case.high) < 1e8]
    return [Job(case) for case in cases] + [Job(job.case, job.variants) for job in stages(device)] + sweeps


def quick(device):
    """A minute of it, without torch.compile; on a GPU with the whole of FCN-8s too."""
    kept = ("eager", "grouped", "fcn_fast", "canvas")
    jobs = [Job(Case(name, VOC, way, kind), kept, 0.2) for name, kind, way in SHOWN]
    parts = [job.case for job in stages(device) if device.type == "cuda" or job.case in map(nets.NetCase, nets.STAGES)]
    small = [job for job in scaling(device) if job.sweep in ("classes", "batch") and math.prod(job.case.high) < 3e7]
    sweeps = [job for job in small if job.case.operation == "upsample_softmax_loss"]
    return jobs + [Job(case, kept, 0.2) for case in parts] + sweeps


PARTS = {"operations": operations, "stages": stages, "predict": predict, "scaling": scaling}
"""{part of a recorded run: its jobs on a device}."""


def measure(jobs, device):
    """Work through jobs, with a bar of the progress where there is a terminal.

    Returns:
        (entries, notes): as :func:`fcn_fast.bench.run.measure` gives them, and a line for whatever was left out. It
        starts with ``WRONG`` where fcn_fast fails or computes something else, with :data:`INTERRUPTED` where the user
        stopped; the other cases are measured all the same.
    """
    entries, notes, before = [], [], {}
    threads = torch.get_num_threads()
    with tqdm(jobs, disable=None, leave=False, unit="case", file=sys.stderr) as progress:
        for i, job in enumerate(progress):
            progress.set_postfix_str(job.case.group)
            try:
                torch.set_num_threads(job.threads or threads)
                entries += _measure(job, device, before, notes)
            except run.Skipped as reason:
                notes.append(f"skipped: {reason}")
            except KeyboardInterrupt:
                notes.append(f"{INTERRUPTED} after {i} of {len(jobs)} cases")
                break
            except Exception as error:
                notes.append(f"WRONG: {job.case.group}: {run.first_line(error)}")
            finally:
                torch.set_num_threads(threads)
    return entries, notes


def _measure(job, device, before, notes):
    variants = [v for v in job.case.variants if job.variants is None or v in job.variants]
    if job.sweep:
        variants = _affordable(job, device, variants, before, notes)
    if not variants:
        return []
    entries, failed = run.measure(job.case, device, job.seconds, variants, check=not job.sweep)
    notes += [f"left out: {line}" for line in failed]
    if job.sweep:
        for entry in entries:
            entry["sweep"] = job.sweep
            seconds = entry["milliseconds"]["median"] / 1e3
            before[job.case.operation, entry["variant"]] = (math.prod(job.case.high), seconds)
    return entries


def _affordable(job, device, variants, before, notes):
    """The variants that fit, whose call takes no longer than :data:`LONGEST`, going by what it took before."""
    kept = []
    for variant in variants:
        work, seconds = before.get((job.case.operation, variant), (1, 0.0))
        expected = seconds * math.prod(job.case.high) / work
        if expected > LONGEST:
            notes.append(f"skipped: {variant} {job.case.group}: a call takes about {expected:.1f} s")
            continue
        try:
            run.check_memory(job.case, device, [variant], check=False)
            kept.append(variant)
        except run.Skipped as reason:
            notes.append(f"skipped: {variant} {reason}")
    return kept
