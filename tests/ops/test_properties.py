"""Laws that the operations keep whatever the input, searched for exceptions by Hypothesis."""

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcn_fast import BilinearGrid, ops

from .support import LOSS_OPTIONS, REDUCTIONS, Sampling, deconvolution, interpolation, loss_options, randn
from .table import LINEAR, LOSSES

search = settings(
    max_examples=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],  # each example sets its own seed
)
UPSAMPLE = LINEAR[0]
OF_LINEAR = pytest.mark.parametrize("op", LINEAR, ids=str)
OF_LOSSES = pytest.mark.parametrize("op", LOSSES, ids=str)


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def deconvolutions(draw):
    in_size, stride = draw(pairs(1, 7)), draw(st.integers(1, 6))
    kernel = 2 * stride - draw(st.integers(0, 1))
    full = [stride * (n - 1) + kernel for n in in_size]
    crop = tuple(draw(st.integers(0, n - 1)) for n in full)
    size = tuple(draw(st.integers(1, n - c)) for n, c in zip(full, crop, strict=True))
    return deconvolution(in_size, stride, kernel=kernel, crop=crop, size=size)


@st.composite
def rules(draw, border):
    """Grids that no constructor makes: any step, far outside as well."""
    in_size = draw(pairs(1, 7))
    rule = BilinearGrid(
        in_size, draw(pairs(1, 20)), draw(pairs(0, 9)), draw(pairs(-90, 60)), draw(pairs(1, 12)), draw(border)
    )
    return Sampling(in_size, rule=rule)


clamped = st.one_of(
    st.builds(
        lambda in_size, size, align: interpolation(in_size, size=size, align_corners=align),
        pairs(1, 9),
        pairs(1, 24),
        st.booleans(),
    ),
    st.builds(
        lambda in_size, p, q: interpolation(in_size, scale_factor=p / q),
        pairs(4, 9),
        st.integers(2, 9),
        st.integers(1, 5),
    ),
    rules(st.just("clamp")),
)
samplings = st.one_of(clamped, deconvolutions(), rules(st.just("zero")))
seeds = st.integers(0, 2**31).map(torch.manual_seed)
layouts = st.sampled_from(["contiguous", "channels_last", "sliced", "transposed"])
classes = st.sampled_from([1, 2, 3, 5, 8, 17, 33])
EXACT = {"dtype": torch.float64}


def inside(grid):
    """Which outputs read nothing but the map."""
    axes = []
    for axis in (0, 1):
        cells = [divmod(grid.step[axis] * i + grid.origin[axis], grid.unit[axis]) for i in range(grid.size[axis])]
        axes.append(torch.tensor([0 <= i and i + (part > 0) < grid.in_size[axis] for i, part in cells]))
    return axes[0][:, None] & axes[1]


def close(actual, expected, size=1.0):
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12 * size)


@search
@given(seeds, samplings, layouts, classes, st.floats(-1e6, 1e6))
def test_partition_of_unity(_seed, sampling, layout, channels, value):
    case = UPSAMPLE(sampling, channels=channels, layout=layout, **EXACT)
    constant = torch.full_like(case.inputs[0], value)
    share = ops.bilinear_upsample(constant, grid=sampling.grid) / (value or 1)
    whole = (
        inside(sampling.grid) if sampling.grid.border == "zero" else torch.ones(sampling.grid.size, dtype=torch.bool)
    )
    close(share[..., whole], torch.full_like(share[..., whole], bool(value)))
    assert share.min() >= 0 and share.max() <= 1 + 1e-12


@search
@given(seeds, samplings, layouts, classes)
def test_the_backward_is_the_adjoint(_seed, sampling, layout, channels):
    """<A x, y> = <x, A* y>, both as operators."""
    x = randn(2, channels, *sampling.in_size, layout=layout, **EXACT)
    y = randn(2, channels, *sampling.grid.size, layout=layout, **EXACT)
    numbers = sampling.grid.numbers()
    forward = (torch.ops.fcn_fast.bilinear_upsample(x, numbers) * y).sum()
    backward = (x * torch.ops.fcn_fast.bilinear_upsample_backward(y, sampling.in_size, numbers)).sum()
    close(forward, backward, size=y.numel())


@search
@given(seeds, samplings, layouts, classes, st.floats(-3, 3), st.floats(-3, 3))
@OF_LINEAR
def test_linearity(op, _seed, sampling, layout, channels, a, b):
    one, other = (op(sampling, channels=channels, layout=layout, **EXACT) for _ in range(2))
    both = [a * x + b * y for x, y in zip(one.inputs, other.inputs, strict=True)]
    close(one.fast(*both), a * one.run() + b * other.run(), size=10)


@search
@given(seeds, samplings, layouts, classes)
@OF_LINEAR
def test_gradients_are_adjoint(op, _seed, sampling, layout, channels):
    """Of a linear operation: <A x, y> is the sum of <x_i, gradient_i>."""
    case = op(sampling, channels=channels, layout=layout, **EXACT)
    y = case.grad_output(layout)
    output, *grads = case.with_grad(y)
    close((output * y).sum(), sum((x * g).sum() for x, g in zip(case.inputs, grads, strict=True)), size=y.numel())


@search
@given(seeds, deconvolutions(), layouts, classes)
def test_a_crop_is_a_slice(_seed, sampling, layout, channels):
    """To the bit: nothing else is computed, or computed otherwise."""
    grid, options = sampling.grid, sampling.deconvolution
    (top, left), (height, width) = options["crop"], grid.size
    whole = BilinearGrid.deconvolution(sampling.in_size, options["stride"], kernel=options["kernel"])
    x = randn(2, channels, *sampling.in_size, layout=layout)
    expected = ops.bilinear_upsample(x, grid=whole)[:, :, top : top + height, left : left + width]
    assert torch.equal(ops.bilinear_upsample(x, grid=grid), expected)
    skip = randn(2, channels, *whole.size, layout=layout)
    window = skip[:, :, top : top + height, left : left + width]
    cropped = ops.skip_fuse(x, skip, crop=(top, left), grid=grid)
    assert torch.equal(cropped, ops.skip_fuse(x, window, grid=grid))


@search
@given(seeds, samplings, classes, st.sampled_from(["ties", "random", "nan", "inf", "-inf", "both", "zero"]), layouts)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_argmax_is_that_of_our_own_upsampling(dtype, _seed, sampling, channels, special, layout):
    x = randn(2, channels, *sampling.in_size, dtype=dtype, layout=layout)
    mask = torch.rand(x.shape) < 0.15
    x = {
        "ties": lambda: x.sign(),
        "random": lambda: x,
        "nan": lambda: x.masked_fill(mask, float("nan")),
        "inf": lambda: x.masked_fill(mask, float("inf")),
        "-inf": lambda: x.masked_fill(mask, -float("inf")),
        "both": lambda: torch.where(mask, float("inf") * x.sign(), x),
        "zero": lambda: x * 0,
    }[special]()
    scores = ops.bilinear_upsample(x.to(torch.promote_types(dtype, torch.float32)), grid=sampling.grid)
    assert torch.equal(ops.upsample_argmax(x, grid=sampling.grid, dtype=torch.int64), scores.argmax(1))


@search
@given(seeds, samplings, classes, st.sampled_from(LOSS_OPTIONS), st.sampled_from(REDUCTIONS), layouts)
def test_the_fused_loss_is_the_composition(_seed, sampling, channels, options, reduction, layout):
    if options == "ignore_index=0" and channels == 1:
        channels = 2
    case = LOSSES[1](sampling, channels=channels, layout=layout, given=options, reduction=reduction, scale=3, **EXACT)
    target, weight, pixel_weight = case.others
    settings = {"ignore_index": case.rest[-5], "reduction": reduction, "label_smoothing": case.rest[-3]}

    def composition(x, *_):
        upsampled = ops.bilinear_upsample(x, grid=sampling.grid)
        return ops.softmax_loss(upsampled, target, weight, pixel_weight=pixel_weight, **settings)

    grad_output = case.grad_output()
    expected = dataclasses.replace(case, fast=composition).with_grad(grad_output)
    for a, b in zip(case.with_grad(grad_output), expected, strict=True):
        close(a, b, size=10 * target.numel())


@search
@given(seeds, clamped, classes, st.sampled_from(LOSS_OPTIONS[:5]), st.sampled_from(REDUCTIONS), st.floats(-100, 100))
@OF_LOSSES
def test_losses_do_not_see_a_shift_of_all_logits(op, _seed, sampling, channels, options, reduction, shift):
    case = op(sampling, channels=channels, given=options, reduction=reduction, **EXACT)
    target = case.others[0]
    grad_output = case.grad_output()
    expected = case.with_grad(grad_output)
    case.inputs[0] = case.inputs[0] + shift
    for a, b in zip(case.with_grad(grad_output), expected, strict=True):
        close(a, b, size=1e3 * target.numel())


@search
@given(seeds, samplings, classes, st.sampled_from(LOSS_OPTIONS[:5]), st.sampled_from(REDUCTIONS))
@OF_LOSSES
def test_gradients_of_losses_add_up_to_nothing(op, _seed, sampling, channels, options, reduction):
    """Over the classes: what is gained by one is lost by the others."""
    case = op(sampling, channels=channels, given=options, reduction=reduction, scale=4, **EXACT)
    grad = case.with_grad(case.grad_output())[1]
    close(grad.sum(1), torch.zeros_like(grad[:, 0]), size=20 * case.others[0].numel())


@search
@given(seeds, samplings, st.sampled_from([2, 5, 8, 17]), st.sampled_from(LOSS_OPTIONS[:5]), st.sampled_from(REDUCTIONS))
@OF_LOSSES
def test_permutations_of_classes_and_batch(op, _seed, sampling, channels, options, reduction):
    case = op(sampling, batch=3, channels=channels, given=options, reduction=reduction, **EXACT)
    (logits,), (target, weight, pixel_weight) = case.inputs, case.others
    by_class, by_image = torch.randperm(channels), torch.randperm(3)
    renamed = torch.full((256,), 255)
    renamed[by_class] = torch.arange(channels)
    grad_output = case.grad_output()
    loss, grad = case.with_grad(grad_output)
    permuted = dataclasses.replace(
        case,
        inputs=[logits[by_image][:, by_class]],
        others=[
            renamed[target][by_image],
            None if weight is None else weight[by_class],
            None if pixel_weight is None else pixel_weight[by_image],
        ],
    )
    actual = permuted.with_grad(grad_output[by_image] if reduction == "none" else grad_output)
    close(actual[0], loss[by_image] if reduction == "none" else loss, size=10 * target.numel())
    close(actual[1], grad[by_image][:, by_class], size=10 * target.numel())


@search
@given(seeds, samplings, layouts, st.integers(2, 20))
def test_maps_of_a_batch_have_nothing_to_do_with_each_other(_seed, sampling, layout, channels):
    x = randn(3, channels, *sampling.in_size, layout=layout)
    order, images = torch.randperm(channels), torch.randperm(3)
    whole = ops.bilinear_upsample(x, grid=sampling.grid)
    assert torch.equal(ops.bilinear_upsample(x[images][:, order], grid=sampling.grid), whole[images][:, order])


@search
@given(seeds, samplings, classes, st.sampled_from(REDUCTIONS), st.floats(0.1, 10))
@OF_LOSSES
def test_weights_scale_the_loss(op, _seed, sampling, channels, reduction, factor):
    """Of classes and of pixels alike; a mean is over the weights, so it stays."""
    case = op(sampling, channels=channels, given="all", reduction=reduction, **EXACT)
    loss, size = case.run(), 10 * factor * case.others[0].numel()
    for i in (1, 2):
        others = list(case.others)
        others[i] = others[i] * factor
        scaled = dataclasses.replace(case, others=others).run()
        close(scaled, loss if reduction == "mean" else factor * loss, size=size)


@search
@given(seeds, samplings, classes, st.sampled_from(REDUCTIONS[:3]))
@OF_LOSSES
def test_a_pixel_of_no_weight_is_as_if_ignored(op, _seed, sampling, channels, reduction):
    case = op(sampling, channels=channels, reduction=reduction, scale=3, **EXACT)
    ignored = torch.rand(case.others[0].shape) < 0.3
    grad_output = case.grad_output()
    target, weight = case.others[0], torch.ones(ignored.shape).masked_fill(ignored, 0)
    one = dataclasses.replace(case, others=[target.masked_fill(ignored, 255), None, None]).with_grad(grad_output)
    other = dataclasses.replace(case, others=[target, None, weight]).with_grad(grad_output)
    for a, b in zip(one, other, strict=True):
        close(a, b, size=10 * target.numel())


@search
@given(seeds, pairs(1, 9), layouts, classes)
@OF_LINEAR
def test_a_map_of_the_size_of_the_output_is_copied(op, _seed, size, layout, channels):
    for sampling in (interpolation(size, size=size), interpolation(size, size=size, align_corners=True)):
        case = op(sampling, channels=channels, layout=layout)
        assert torch.equal(case.run(), sum(case.inputs[1:], case.inputs[0]))


@search
@given(seeds, samplings, classes)
def test_rows_and_columns_are_alike(_seed, sampling, channels):
    grid = sampling.grid
    turned = BilinearGrid(
        *(getattr(grid, name)[::-1] for name in ("in_size", "size", "step", "origin", "unit")), grid.border
    )
    x = randn(2, channels, *sampling.in_size, **EXACT)
    close(ops.bilinear_upsample(x.mT.contiguous(), grid=turned).mT, ops.bilinear_upsample(x, grid=grid))
    weights = loss_options("all", torch.empty(2, *grid.size), channels)["pixel_weight"]
    target = torch.randint(channels, (2, *grid.size))
    losses = [
        ops.upsample_softmax_loss(x, target, grid=grid, pixel_weight=weights, reduction="none", label_smoothing=0.1),
        ops.upsample_softmax_loss(
            x.mT.contiguous(),
            target.mT.contiguous(),
            grid=turned,
            pixel_weight=weights.mT.contiguous(),
            reduction="none",
            label_smoothing=0.1,
        ).mT,
    ]
    close(*losses, size=10)
