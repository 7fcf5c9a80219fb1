"""FCN-8s from an image to its label map, at two sizes, with eager PyTorch's operations and with fcn_fast's.

``predict`` is the whole net, nearly all of it convolutions that both sides share; ``labels`` is what is left without
them: the fusion of the scores and the label map. Peak memory is what a call holds at most beyond what was held before
it: that of the process on a CPU (Linux only, as pages), that of the allocator on a GPU.
"""

from pathlib import Path

import pytest
import torch

from fcn_fast import eager, models, ops

SIDES = {"eager": eager, "fcn_fast": ops}
SIZES = {"500x500": (500, 500), "2048x1024": (1024, 2048)}


@pytest.fixture(scope="module")
def net(device):
    torch.manual_seed(0)
    net = models.fcn8s().eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    return net


@pytest.fixture(scope="module", params=SIZES)
def given(request, net, device):
    """The size's name, an image, and the scores that the net's fusion and last upsampling start from."""
    image = 50 * torch.randn(1, 3, *SIZES[request.param], device=device)
    image = image.contiguous(memory_format=torch.channels_last)
    net.ops = eager
    pool3, score_pool3 = net.stage1(image)
    pool4, score_pool4 = net.stage2(pool3)
    return request.param, image, net.stage3.deepest(pool4), [score_pool4, score_pool3]


@pytest.mark.parametrize("what", ["predict", "labels"])
@pytest.mark.parametrize("side", SIDES)
def test_predict(what, side, given, net, device, benchmark):
    size, image, score_fr, skips = given

    def labels():
        scores = net.stage3.fused(score_fr, skips)
        return net.ops.upsample_argmax(scores, grid=net.stage3.last_grid(scores, image.shape[-2:]))

    def call():
        result = net.predict(image) if what == "predict" else labels()
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    results, peaks = {}, {}
    for net.ops in SIDES.values():
        call()  # what a first call allocates for good is no part of the peak
        results[net.ops], peaks[net.ops] = peak_memory(call, device)
    equal = (results[eager] == results[ops]).double().mean().item()
    assert equal > 0.999  # all but where two scores are equal up to rounding

    net.ops = SIDES[side]
    benchmark.group = f"FCN-8s {what} {size}"
    benchmark.extra_info.update(
        variant=side,
        device=device,
        operation=what,
        inputs=[list(image.shape)],
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        peak_bytes=peaks[net.ops],
        equal_labels=equal,
    )
    benchmark.pedantic(call, rounds=3 if what == "predict" else 20)


def peak_memory(call, device):
    """What call returns, and the bytes that it held at most beyond those before it; None where nothing says so."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return call(), torch.cuda.max_memory_allocated() - before
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        return call(), _status("VmHWM") - before
    except OSError:
        return call(), None


def _status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))
