"""The softmax loss on a GPU in every way that it shares out pixels, which small maps do not reach, and past 2^31."""

import pytest
import torch

from fcn_fast import ops

from ..ops.support import (
    DTYPES,
    assert_loss_near,
    labels,
    laid_out,
    loss_grad_output,
    loss_options,
    torch_loss,
    with_grad,
)

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
DEVICE = "cuda"
# What csrc/cuda/softmax_loss_plan.h makes of each, with blocks that are not full.
SHAPES = {
    "packs": ((8, 5, 161, 208), "contiguous"),
    "pixels": ((2, 5, 61, 67), "contiguous"),
    "rows": ((8, 7, 161, 207), "channels_last"),
    "rows in groups": ((2, 64, 61, 67), "channels_last"),
    "lanes": ((2, 300, 31, 29), "channels_last"),
}


def random(shape, layout, dtype):
    logits = torch.randn(shape, device=DEVICE).to(dtype).mul_(3)
    return laid_out(logits, layout), labels(shape[0], *shape[2:], classes=shape[1], dtype=torch.int16, device=DEVICE)


def check(logits, target, **options):
    grad_output = loss_grad_output(target, options["reduction"])
    fast = lambda x: ops.softmax_loss(x, target, **options)  # noqa: E731
    actual = with_grad(fast, [logits], grad_output.to(torch.promote_types(logits.dtype, torch.float32)))
    on_cpu = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    assert_loss_near(actual, lambda x: torch_loss(x, target.cpu(), **on_cpu), logits, grad_output, at_once=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", ["plain", "all"])
@pytest.mark.parametrize("share", SHAPES)
def test_values(share, given, dtype):
    logits, target = random(*SHAPES[share], dtype)
    for reduction in ("mean", "none"):
        check(logits, target, reduction=reduction, **loss_options(given, target, logits.shape[1]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", ["packs", "rows"])
def test_logits_that_begin_between_16_bytes(share, dtype):
    shape, layout = SHAPES[share]
    logits, target = random(shape, layout, dtype)
    memory = torch.empty(logits.numel() + 1, device=DEVICE, dtype=dtype)
    shifted = memory[1:].as_strided(shape, logits.stride()).copy_(logits)
    assert shifted.data_ptr() % 16
    check(shifted, target, reduction="mean")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(1, 21, 10240, 10240), (1, 2050, 1024, 1030)])
def test_past_31_bits(shape, layout):
    """The last rows of pixels against themselves alone."""
    if torch.cuda.mem_get_info()[0] < 20 << 30:
        pytest.skip("less than 20 GiB of memory")
    format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    logits = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE, memory_format=format).normal_()
    assert logits.numel() > 1 << 31
    target = torch.randint(shape[1], (1, *shape[2:]), dtype=torch.int16, device=DEVICE)
    grad_output = torch.randn(target.shape, device=DEVICE)
    rows = slice(-3, None)
    results = []
    for x, t, g in (
        (logits, target, grad_output),
        (logits[:, :, rows].contiguous(memory_format=format), target[:, rows], grad_output[:, rows]),
    ):
        loss, grad = with_grad(lambda x: ops.softmax_loss(x, t, ignore_index=-100, reduction="none"), [x], g)  # noqa: B023
        results.append((loss[:, rows], grad[:, :, rows]))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)
