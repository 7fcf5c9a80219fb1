"""Profilers see every call by its operator's name; PyTorch's emit_nvtx makes ranges of the same events for CUDA's."""

import pytest
import torch

from fcn_fast import env

from ..ops.support import interpolation
from ..ops.table import OPS


@pytest.mark.parametrize("op", OPS, ids=str)
def test_calls_are_named(op, device):
    case = op(interpolation((4, 5), size=(8, 10)), device=device)
    grad_output = case.grad_output()
    with torch.profiler.profile() as profile:
        case.with_grad(grad_output)
    names = {event.key for event in profile.key_averages()}
    expected = {"bilinear_upsample": ("bilinear_upsample", "bilinear_upsample_backward")}
    expected["softmax_loss"] = ("softmax_loss", "softmax_loss_backward")
    if device == "cuda" and env.kernel_of("softmax_loss", "cuda") == "CUDA C++":
        expected["softmax_loss"] = ("softmax_loss_and_gradient",)
    assert {f"fcn_fast::{name}" for name in expected.get(op.name, (op.name,))} <= names


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_ranges():
    for op in OPS:
        case = op(interpolation((4, 5), size=(8, 10)), device="cuda")
        with torch.autograd.profiler.emit_nvtx():
            case.with_grad(case.grad_output())
