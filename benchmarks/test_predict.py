"""FCN-8s from an image to its label map, at two sizes, with eager PyTorch's operations and with fcn_fast's.

``predict`` is the whole net, nearly all of it convolutions that both sides share; ``labels`` is what is left without
them: the fusion of the scores and the label map. Peak memory is what a call holds at most beyond what was held before
it. On a CPU that is the memory of a process of its own (Linux only), in which freed memory goes back at once; on a
GPU the allocator counts it.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fcn_fast import eager, models, ops

SIDES = {"eager": eager, "fcn_fast": ops}
SIZES = {"500x500": (500, 500), "2048x1024": (1024, 2048)}


class Case:
    """FCN-8s and an image of one size.

    Attributes:
        calls: {"predict" or "labels": the function that is measured, with ``net.ops``}.
    """

    def __init__(self, net, size, device):
        self.net, self.device = net, device
        image = 50 * torch.randn(1, 3, *SIZES[size], device=device)
        self.image = image.contiguous(memory_format=torch.channels_last)
        pool3, score_pool3 = net.stage1(self.image)
        pool4, score_pool4 = net.stage2(pool3)
        self.score_fr, self.skips = net.stage3.deepest(pool4), [score_pool4, score_pool3]
        self.calls = {"predict": self.predict, "labels": self.labels}
        self.equal = functools.cache(self.equal)

    def equal(self, what):
        """The share of pixels that get the same label on both sides."""
        results = []
        for self.net.ops in SIDES.values():
            results.append(self.calls[what]())
        return (results[0] == results[1]).double().mean().item()

    def predict(self):
        return self._synchronised(self.net.predict(self.image))

    def labels(self):
        scores = self.net.stage3.fused(self.score_fr, self.skips)
        grid = self.net.stage3.last_grid(scores, self.image.shape[-2:])
        return self._synchronised(self.net.ops.upsample_argmax(scores, grid=grid))

    def _synchronised(self, labels):
        if self.device == "cuda":
            torch.cuda.synchronize()
        return labels


def make_net(device):
    torch.manual_seed(0)
    return models.fcn8s().eval().requires_grad_(False).to(device, memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def net(device):
    return make_net(device)


@pytest.fixture(scope="module", params=SIZES)
def size(request):
    return request.param


@pytest.fixture(scope="module")
def case(net, size, device):
    return Case(net, size, device)


@pytest.mark.parametrize("what", ["predict", "labels"])
@pytest.mark.parametrize("side", SIDES)
def test_predict(what, side, case, size, device, benchmark):
    equal = case.equal(what)
    assert equal > 0.999  # all but where two scores are equal up to rounding

    case.net.ops = SIDES[side]
    benchmark.group = f"FCN-8s {what} {size}"
    benchmark.extra_info.update(
        variant=side,
        device=device,
        operation=what,
        inputs=[list(case.image.shape)],
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        peak_bytes=cuda_peaks(case)[what] if device == "cuda" else process_peaks(size, side)[what],
        equal_labels=equal,
    )
    benchmark.pedantic(case.calls[what], rounds=3 if what == "predict" else 20)


def cuda_peaks(case):
    """{what: peak bytes} on this process's GPU."""
    peaks = {}
    for what, call in case.calls.items():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        peaks[what] = torch.cuda.max_memory_allocated() - before
    return peaks


@functools.cache
def process_peaks(size, side):
    """{what: peak bytes} of a process that runs this file; None where nothing says so."""
    if not Path("/proc/self/clear_refs").exists():
        return {"predict": None, "labels": None}
    # Every tensor in pages of its own: a peak is not hidden by memory that an earlier call left behind.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, __file__, size, side], env=environment, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def main(size, side):
    """Print what :func:`process_peaks` reads."""
    case = Case(make_net("cpu"), size, "cpu")
    case.net.ops = SIDES[side]
    peaks = {}
    case.labels()  # what a first call allocates for good is no part of the peak; the convolutions had theirs
    for what, call in case.calls.items():
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        call()
        peaks[what] = _status("VmHWM") - before
    print(json.dumps(peaks))


def _status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


if __name__ == "__main__":
    main(*sys.argv[1:])
