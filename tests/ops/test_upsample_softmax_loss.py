import math

import pytest
import torch
from torch.autograd import gradcheck

from fcn_fast import BilinearGrid, nn, ops

from .support import (
    CLAMPED,
    DTYPES,
    FEW,
    HALF,
    LAYOUTS,
    LOSS_OPTIONS,
    REDUCTIONS,
    SAMPLINGS,
    ZERO,
    assert_loss_near,
    assert_near,
    exactly,
    has_layout,
    interpolation,
    labels,
    loss_grad_output,
    loss_options,
    randn,
    random_samplings,
    same_bits,
    torch_loss,
    with_grad,
)

pytestmark = pytest.mark.usefixtures("deterministic")
OPERATOR = torch.ops.fcn_fast.upsample_softmax_loss.default
MASKED = interpolation((5, 7), size=(20, 28))


def targets(sampling, classes, batch=2, **options):
    return labels(batch, *sampling.grid.size, classes=classes, **options)


def compare(sampling, logits, target, **options):
    """Against upsampling and F.cross_entropy in float64; nothing is rounded to half precision on the way."""
    grad_output = loss_grad_output(target, options.get("reduction", "mean"))
    fast = lambda x: ops.upsample_softmax_loss(x, target, grid=sampling.grid, **options)  # noqa: E731
    loss, grad = with_grad(fast, [logits], grad_output.to(torch.promote_types(logits.dtype, torch.float32)))
    on_cpu = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    plain = lambda x: torch_loss(sampling.torch(x), target.cpu(), **on_cpu)  # noqa: E731
    assert_loss_near((loss, grad), plain, logits, grad_output)
    return loss, grad


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_values(sampling, dtype, implementation, device):
    logits = randn(2, 4, *sampling.in_size, dtype=dtype, device=device)
    for reduction in ("mean", "none"):
        compare(sampling, logits, targets(sampling, 4, device=device), reduction=reduction)


@pytest.mark.isa
def test_values_on_random_grids(implementation, device, seed):
    for sampling in random_samplings(seed, 25):
        if math.prod(sampling.grid.size) < 64:
            continue  # the loss of a few pixels can be next to nothing, and an error relative to that anything
        logits = 3 * randn(1, 3, *sampling.in_size, device=device)
        target = targets(sampling, 3, 1, device=device)
        target.flatten()[0] = 2  # a mean over nothing is another test
        compare(sampling, logits, target)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", LOSS_OPTIONS)
@pytest.mark.parametrize("sampling", [CLAMPED, ZERO], ids=str)
def test_options(sampling, options, reduction, dtype, implementation, device):
    options = loss_options(options, torch.empty(2, *sampling.grid.size, device=device), 5)
    ignored = {k: v for k, v in options.items() if k == "ignore_index"}
    logits = 3 * randn(2, 5, *sampling.in_size, dtype=dtype, device=device)
    compare(sampling, logits, targets(sampling, 5, device=device, **ignored), reduction=reduction, **options)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("classes", [2, 3, 21, 150, 300])
def test_class_counts(classes, layout, dtype, implementation, device):
    for scale, sampling in ((1, SAMPLINGS[0]), (20, CLAMPED), (5, ZERO)):
        target = targets(sampling, classes, ignore_index=-1, device=device)
        logits = scale * randn(2, classes, *sampling.in_size, dtype=dtype, device=device, layout=layout)
        compare(sampling, logits, target, ignore_index=-1)
        compare(sampling, logits, target, ignore_index=-1, **loss_options("all", target, classes))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_class_leaves_nothing_to_learn(reduction, dtype, implementation, device):
    logits, target = 9 * randn(2, 1, *CLAMPED.in_size, dtype=dtype, device=device), targets(CLAMPED, 1, device=device)
    fast = lambda x: ops.upsample_softmax_loss(x, target, reduction=reduction)  # noqa: E731
    for result in with_grad(fast, [logits], torch.ones_like(fast(logits))):
        assert result.abs().max() < 1e-6 * target.numel()


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("sampling", [CLAMPED, ZERO], ids=str)
def test_layouts(sampling, reduction, layout, dtype, implementation, device):
    logits = randn(2, 6, *sampling.in_size, dtype=dtype, device=device, layout=layout)
    target = targets(sampling, 6, device=device)
    for strided in (target, target.mT.contiguous().mT):
        assert has_layout(compare(sampling, logits, strided, reduction=reduction)[1], layout)


@pytest.mark.parametrize("align_corners", [False, True])
def test_without_a_grid_targets_size_is_the_size(align_corners, implementation, device):
    logits = randn(2, 5, 6, 7, device=device)
    sampling = interpolation((6, 7), size=(19, 30), align_corners=align_corners)
    target = targets(sampling, 5, device=device)
    loss = compare(sampling, logits, target)[0]
    assert torch.equal(loss, ops.upsample_softmax_loss(logits, target, align_corners=align_corners))


def test_is_the_loss_of_the_upsampled_logits(device):
    logits = randn(2, 21, 9, 11, device=device)
    target = labels(2, 72, 88, classes=21, device=device)
    whole = ops.softmax_loss(ops.bilinear_upsample(logits, (72, 88)), target)
    torch.testing.assert_close(ops.upsample_softmax_loss(logits, target), whole, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_target_dtypes(dtype, implementation, device):
    logits = randn(2, 21, *ZERO.in_size, device=device)
    target = targets(ZERO, 21, dtype=dtype, device=device)
    loss = compare(ZERO, logits, target)[0]
    assert torch.equal(loss, ops.upsample_softmax_loss(logits, target.long(), grid=ZERO.grid))


def test_minus_100_ignores_no_uint8(implementation, device):
    logits = randn(1, 200, *CLAMPED.in_size, device=device)
    target = torch.full((1, *CLAMPED.grid.size), 156, dtype=torch.uint8, device=device)
    compare(CLAMPED, logits, target, ignore_index=-100)


@pytest.mark.isa
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_large_logits(reduction, implementation, device):
    """PyTorch's upsampled logits are off by 1e-3 here, in float32, and ours may be by twice that."""
    noise = randn(2, 21, *CLAMPED.in_size, device=device)
    compare(CLAMPED, 1e4 * noise.sign() + noise, targets(CLAMPED, 21, device=device), reduction=reduction)


@pytest.mark.isa
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_logits_masked_with_minus_infinity(dtype, reduction, implementation, device):
    """A masked class is as if absent wherever a masked tap has weight, and only there."""
    logits = randn(2, 6, *MASKED.in_size, dtype=dtype, device=device)
    mask = torch.zeros_like(logits, dtype=torch.bool)
    mask[:, 3] = torch.rand_like(logits[:, 3].float()) < 0.3
    mask[:, 4] = True
    target = targets(MASKED, 3, device=device)

    def plain(x):
        reached = MASKED.torch(mask.cpu().double()) > 0
        scores = MASKED.torch(torch.where(mask.cpu(), 0, x)).masked_fill(reached, -float("inf"))
        return torch_loss(scores, target.cpu(), reduction=reduction)

    fast = lambda x: ops.upsample_softmax_loss(x, target, reduction=reduction)  # noqa: E731
    masked = logits.masked_fill(mask, -float("inf"))
    grad_output = loss_grad_output(target, reduction)
    loss, grad = with_grad(fast, [masked], grad_output.to(torch.promote_types(dtype, torch.float32)))
    assert_loss_near((loss, grad), plain, logits, grad_output)
    assert not grad[mask].any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_ignored(dtype, reduction, implementation, device):
    logits = randn(2, 3, *ZERO.in_size, dtype=dtype, device=device).requires_grad_()
    target = torch.full((2, *ZERO.grid.size), 255, device=device)
    loss = ops.upsample_softmax_loss(logits, target, grid=ZERO.grid, reduction=reduction)
    loss.sum().backward()
    assert not loss.any() and not logits.grad.any()


@pytest.mark.parametrize("option", ["weight", "pixel_weight"])
def test_a_mean_over_no_weight_is_zero(option, implementation, device):
    logits = randn(2, 3, *CLAMPED.in_size, device=device).requires_grad_()
    target = targets(CLAMPED, 3, device=device)
    zeros = torch.zeros(3 if option == "weight" else target.shape, device=device)
    loss = ops.upsample_softmax_loss(logits, target, **{option: zeros})
    loss.backward()
    assert not loss.any() and not logits.grad.any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty_batch(reduction, implementation, device):
    logits = randn(0, 3, 4, 5, device=device).requires_grad_()
    target = torch.zeros(0, 9, 11, dtype=torch.uint8, device=device)
    loss = ops.upsample_softmax_loss(logits, target, reduction=reduction)
    loss.sum().backward()
    assert loss.shape == ((0, 9, 11) if reduction == "none" else ()) and not loss.any()
    assert logits.grad.shape == logits.shape


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("label", [21, 254, -1, -100, 1 << 40])
def test_bad_labels_raise(label, reduction, implementation, device):
    dtype = torch.uint8 if 0 <= label < 256 else torch.int64
    target = labels(2, 56, 72, classes=21, dtype=dtype, device=device)
    target[1, 17, 5] = target[1, 17, 30] = label
    logits = randn(2, 21, 7, 9, device=device)
    message = rf"^target: expected labels from 0 to 20 or ignore_index, got {label} at \[1, 17, 5\]"
    with pytest.raises(ValueError, match=message):
        ops.upsample_softmax_loss(logits, target, reduction=reduction, check_labels=True)
    if device == "cpu":
        with pytest.raises(ValueError, match=message):
            ops.upsample_softmax_loss(logits.requires_grad_(), target, reduction=reduction)


@pytest.mark.isa
@pytest.mark.parametrize("label", [5, -1, 1 << 40])
def test_bad_labels_unchecked_are_nan(label, implementation, device):
    sampling = interpolation((6, 7), size=(48, 56))
    logits = randn(2, 5, 6, 7, device=device)
    target = targets(sampling, 5, device=device)
    target[1, 26, 30] = label
    bad = target == label
    reached = exactly(lambda x: sampling.torch(x), [logits], bad.unsqueeze(1).expand(2, 5, 48, 56))[1] > 0
    for reduction in REDUCTIONS:
        fast = lambda x: ops.upsample_softmax_loss(x, target, reduction=reduction, check_labels=False)  # noqa: B023, E731
        loss, grad = with_grad(fast, [logits], torch.ones_like(fast(logits)))
        assert torch.equal(loss.isnan(), bad if reduction == "none" else torch.tensor(True, device=device))
        assert torch.equal(grad.isnan().cpu(), reached)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", LOSS_OPTIONS)
@pytest.mark.parametrize("sampling", [interpolation((3, 4), size=(8, 6)), FEW[2], ZERO], ids=str)
def test_derivative(sampling, options, reduction, implementation, device):
    options = loss_options(options, torch.empty(1, *sampling.grid.size, device=device), 4)
    target = targets(sampling, 4, 1, ignore_index=options.get("ignore_index", 255), device=device)
    logits = randn(1, 4, *sampling.in_size, dtype=torch.float64, device=device).requires_grad_()
    fast = lambda x: ops.upsample_softmax_loss(x, target, grid=sampling.grid, reduction=reduction, **options)  # noqa: E731
    assert gradcheck(fast, [logits], fast_mode=True)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_backward_again(reduction, device):
    logits = randn(2, 5, *ZERO.in_size, device=device).requires_grad_()
    target = targets(ZERO, 5, device=device)
    loss = ops.upsample_softmax_loss(logits, target, grid=ZERO.grid, reduction=reduction)
    one = torch.ones_like(loss)
    once, twice = (torch.autograd.grad(loss, logits, scale * one, retain_graph=True)[0] for scale in (1, 2))
    torch.testing.assert_close(twice, 2 * once)
    again = ops.upsample_softmax_loss(logits, target, grid=ZERO.grid, reduction=reduction)
    assert torch.equal(torch.autograd.grad(again.sum(), logits)[0], once)


def test_no_graph_where_none_is_needed(device):
    target = targets(CLAMPED, 3, device=device)
    logits = randn(2, 3, *CLAMPED.in_size, device=device)
    assert not ops.upsample_softmax_loss(logits, target).requires_grad
    with torch.no_grad():
        assert not ops.upsample_softmax_loss(logits.requires_grad_(), target).requires_grad
    assert ops.upsample_softmax_loss(logits, target).requires_grad


def test_half_gradients_survive_a_loss_scaler(device):
    sampling = interpolation((40, 50), size=(320, 400))
    logits = randn(1, 4, 40, 50, dtype=torch.float16, device=device)
    target = targets(sampling, 4, 1, device=device)
    exact = exactly(lambda x: torch_loss(sampling.torch(x), target.cpu()) * 2**12, [logits], torch.ones(()))[1]
    grad = with_grad(lambda x: ops.upsample_softmax_loss(x, target) * 2**12, [logits], None)[1]
    assert_near(grad, exact)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_second_derivative_is_refused(reduction, device):
    logits = randn(2, 3, *CLAMPED.in_size, device=device).requires_grad_()
    loss = ops.upsample_softmax_loss(logits, targets(CLAMPED, 3, device=device), reduction=reduction).sum()
    (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="twice|second"):
        (loss + grad.square().sum()).backward()  # a gradient penalty, which must not quietly count for nothing


@pytest.mark.parametrize("options", ["plain", "all"])
@pytest.mark.parametrize("reduction", range(len(REDUCTIONS)))
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(layout, reduction, options, device):
    target = targets(ZERO, 5, dtype=torch.uint8, device=device)
    options = loss_options(options, target, 5)
    weights = [w if w is None else w.float() for w in (options.get("weight"), options.get("pixel_weight"))]
    numbers, smoothing = ZERO.grid.numbers(), options.get("label_smoothing", 0.0)
    for grad in (False, True):
        logits = randn(2, 5, *ZERO.in_size, device=device, layout=layout).requires_grad_(grad)
        args = (logits, target, *weights, numbers, 255, reduction, smoothing, True, grad)
        torch.library.opcheck(OPERATOR, args)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("sampling", [None, *FEW], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compile(reduction, sampling, dynamic, compile, device):
    weight = torch.rand(5, device=device)
    grid = sampling and sampling.grid
    fast = lambda x, t: ops.upsample_softmax_loss(x, t, weight, grid=grid, reduction=reduction)  # noqa: E731
    compiled = compile(fast, dynamic=dynamic, backend="aot_eager")
    for n in (2, 3):
        logits = randn(n, 5, *(sampling.in_size if sampling else (3 + n, 7)), device=device)
        target = labels(n, *(grid.size if grid else (20, 20 + n)), classes=5, device=device)
        grad_output = loss_grad_output(target, reduction).float()
        actual, expected = (with_grad(lambda x: f(x, target), [logits], grad_output) for f in (compiled, fast))  # noqa: B023
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_export(device):
    module = nn.UpsampleSoftmaxLoss(torch.rand(5, device=device))
    examples = [(randn(n, 5, 3 + n, 7, device=device), labels(n, 20 + n, 30, classes=5, device=device)) for n in (2, 4)]
    auto = torch.export.Dim.AUTO
    shapes = ({0: auto, 2: auto, 3: auto}, {0: auto, 1: auto, 2: auto})
    program = torch.export.export(module, examples[0], dynamic_shapes=shapes)
    assert torch.equal(program.module()(*examples[1]), module(*examples[1]))


@pytest.mark.parametrize("dtype", HALF)
def test_autocast_leaves_the_loss_in_float32(dtype, device):
    logits = randn(2, 3, *CLAMPED.in_size, device=device)
    target = targets(CLAMPED, 3, device=device)
    with torch.autocast(device, dtype=dtype):
        assert ops.upsample_softmax_loss(logits, target).dtype == torch.float32
        assert ops.upsample_softmax_loss(logits.to(dtype), target).dtype == torch.float32
        assert ops.upsample_softmax_loss(logits.double(), target).dtype == torch.float64
    with torch.autocast(device, dtype=dtype):
        inside = ops.upsample_softmax_loss(logits, target)
    assert torch.equal(inside, ops.upsample_softmax_loss(logits, target))


@pytest.mark.isa
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_same_bits(layout, reduction, set_num_threads, device):
    logits = randn(2, 21, 40, 50, device=device, layout=layout)
    target = labels(2, 200, 250, classes=21, device=device)
    weight = torch.rand(21, device=device)
    grad_output = loss_grad_output(target, reduction).float()
    fast = lambda x: ops.upsample_softmax_loss(x, target, weight, reduction=reduction)  # noqa: E731
    assert same_bits(lambda: with_grad(fast, [logits], grad_output), set_num_threads)


X = torch.zeros(2, 3, 4, 5)
T = torch.zeros(2, 8, 10, dtype=torch.int64)
GRID = BilinearGrid.interpolate((4, 5), scale_factor=2)


@pytest.mark.parametrize(
    ("logits", "target", "options", "error", "message"),
    [
        (None, T, {}, TypeError, "logits: expected a tensor, got NoneType"),
        (X.int(), T, {}, TypeError, "logits: expected .*, got torch.int32"),
        (X[0], T, {}, ValueError, r"logits: expected 4 dimensions .*, got shape \(3, 4, 5\)"),
        (X[:, :0], T, {}, ValueError, "logits: expected at least one channel"),
        (X, None, {}, TypeError, "target: expected a tensor, got NoneType"),
        (X, T.float(), {}, TypeError, "target: expected .*, got torch.float32"),
        (X, T[0], {}, ValueError, r"target: expected shape \(2, H, W\), got \(8, 10\)"),
        (X, T[:1], {}, ValueError, r"target: expected shape \(2, H, W\), got \(1, 8, 10\)"),
        (X, T[:, :0], {}, ValueError, "(target|size): expected .*0x10"),
        (X, T.to("meta"), {}, ValueError, "target: expected the device of logits, cpu, got meta"),
        (X, T, {"grid": 2}, TypeError, "grid: expected a BilinearGrid, got int"),
        (X, T, {"grid": GRID, "align_corners": True}, ValueError, "grid: expected no .*align_corners"),
        (X[..., 1:], T, {"grid": GRID}, ValueError, "grid: expected one for .*4x4.*, got one for 4x5"),
        (X, T[:, 1:], {"grid": GRID}, ValueError, "grid: expected one to target's 7x10, got one to 8x10"),
    ],
)
def test_bad_input(logits, target, options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        ops.upsample_softmax_loss(logits, target, **options)
