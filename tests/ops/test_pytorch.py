"""What PyTorch does with operators besides calling them: opcheck, compile, export, autocast, vmap, subclasses."""

import dataclasses
import io

import pytest
import torch

from .support import CLAMPED, FEW, HALF, REDUCTIONS, ZERO, Sampling, assert_same, interpolation
from .table import DIFFERENTIABLE, LOSSES, OPS

pytestmark = pytest.mark.usefixtures("deterministic")
# Of each kind of option one: all that graphs differ in.
COMPILED = (
    CLAMPED,
    FEW[2],
    ZERO,
    interpolation((5, 7), scale_factor=2),
    interpolation((5, 7), scale_factor=(1.3, 3.7)),
)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("op", OPS, ids=str)
def test_opcheck(op, layout, requires_grad, device):
    variants = op.variants
    if op in LOSSES:
        variants = ({"reduction": "mean"}, *({"reduction": reduction, "given": "all"} for reduction in REDUCTIONS))
    for options in variants:
        case = op(ZERO, layout=layout, device=device, **options)
        inputs = [x.requires_grad_(requires_grad) for x in case.inputs]
        rest = (*case.rest[:-1], requires_grad) if op in LOSSES else case.rest
        torch.library.opcheck(op.operator, (*inputs, *rest))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("op", "sampling"), [(op, s) for op in OPS for s in (COMPILED if op.upsamples else COMPILED[:2])], ids=str
)
def test_compile(op, sampling, dynamic, compile, device):
    """The second call has another batch and, where the options allow it, another size."""
    free = op.name in ("bilinear_upsample", "upsample_argmax") and sampling.interpolate
    other = Sampling((6, 4), interpolate=sampling.interpolate) if free else sampling
    options = op.variants[COMPILED.index(sampling) % len(op.variants)] | ({"given": "all"} if op in LOSSES else {})
    first = op(sampling, batch=2, device=device, **options)
    second = op(other, batch=3, device=device, **options)
    compiled = compile(first.fast, dynamic=dynamic, backend="aot_eager")
    for case in (first, second):
        grad_output = case.grad_output()
        actual, expected = (c.with_grad(grad_output) for c in (dataclasses.replace(case, fast=compiled), case))
        for a, b in zip(actual, expected, strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("op", OPS, ids=str)
def test_export(op, device):
    module = op.module().to(device)
    sizes = (interpolation((5, 7), size=(13, 17)), interpolation((6, 9), size=(21, 16)))
    small, large = (op(s, batch=n, device=device) for s, n in zip(sizes, (2, 4), strict=True))
    arguments = [(*case.inputs, *case.others[:1]) for case in (small, large)]
    auto = torch.export.Dim.AUTO
    shapes = tuple({i: auto for i in range(x.dim()) if x.dim() < 4 or i != 1} for x in arguments[0])
    program = torch.export.export(module, arguments[0], dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    for exported in (program, torch.export.load(file)):
        assert torch.equal(exported.module()(*arguments[1]), module(*arguments[1]))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("op", OPS, ids=str)
def test_autocast_changes_nothing(op, dtype, device):
    for inputs_dtype in (torch.float32, torch.float64, dtype):
        for options in op.variants:
            case = op(CLAMPED, dtype=inputs_dtype, device=device, **options)
            grad_output = case.grad_output()
            with torch.autocast(device, dtype=dtype):
                inside = case.with_grad(grad_output)
            outside = case.with_grad(grad_output)
            for a, b in zip(inside, outside, strict=True):
                assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("op", OPS, ids=str)
def test_vmap_is_the_calls_one_by_one(op, device):
    cases = [op(CLAMPED, device=device) for _ in range(3)]
    inputs = [torch.stack(tensors) for tensors in zip(*(case.inputs for case in cases), strict=True)]
    others = [torch.stack([case.others[0] for case in cases])] if cases[0].others else []
    actual = torch.vmap(cases[0].fast)(*inputs, *others)
    for i, case in enumerate(cases):
        assert torch.equal(actual[i], case.run())


@pytest.mark.filterwarnings("ignore")  # what tracing makes constants of, and that it is deprecated
@pytest.mark.parametrize("op", OPS, ids=str)
def test_trace(op, device):
    case, other = op(CLAMPED, device=device), op(CLAMPED, device=device)
    given, others = ([*each.inputs, *(x for x in each.others if x is not None)] for each in (case, other))
    traced = torch.jit.trace(case.fast, given)
    assert f"fcn_fast::{op.name}" in str(traced.graph)
    assert_same(traced(*others), other.run())


@pytest.mark.parametrize("op", OPS, ids=str)
def test_lazily_negated_and_conjugated_inputs(op, device):
    case = op(CLAMPED, device=device)
    expected = case.run()
    case.inputs[:] = [torch._neg_view(-x) for x in case.inputs]
    assert all(x.is_neg() for x in case.inputs) and torch.equal(case.run(), expected)


@pytest.mark.parametrize("op", OPS, ids=str)
def test_subclasses_and_parameters(op, device):
    class Named(torch.Tensor):
        pass

    case = op(CLAMPED, device=device)
    expected = case.run()
    for kind in (lambda x: x.as_subclass(Named), torch.nn.Parameter):
        assert_same(case.of_inputs(case.fast)(*map(kind, case.inputs)).detach(), expected)


@pytest.mark.parametrize("op", DIFFERENTIABLE, ids=str)
def test_subclasses_see_the_operator(op, device):
    """One that hands it another tensor loses no gradient."""
    case = op(CLAMPED, device=device)
    inputs = [x.requires_grad_() for x in case.inputs]

    class Around(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function is op.operator:
                return function(*inputs, *args[len(inputs) :])
            return super().__torch_function__(function, types, args, kwargs or {})

    assert case.of_inputs(case.fast)(*(x.detach().as_subclass(Around) for x in inputs)).requires_grad


@pytest.mark.parametrize("op", OPS, ids=str)
def test_meta_tensors(op):
    for layout in ("contiguous", "channels_last"):
        for options in op.variants:
            case = op(CLAMPED, layout=layout, **options)
            expected, inputs = case.run(), [x.to("meta") for x in case.inputs]
            actual = case.of_inputs(case.fast)(*inputs)
            assert (actual.shape, actual.dtype, actual.stride()) == (expected.shape, expected.dtype, expected.stride())
