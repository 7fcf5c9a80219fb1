import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from fcn_fast import nn, ops

from .support import (
    DTYPES,
    HALF,
    LAYOUTS,
    LOSS_OPTIONS,
    REDUCTIONS,
    assert_loss_near,
    assert_near,
    exactly,
    has_layout,
    labels,
    loss_grad_output,
    loss_options,
    randn,
    same_bits,
    torch_loss,
    with_grad,
)

pytestmark = pytest.mark.usefixtures("deterministic")
OPERATOR = torch.ops.fcn_fast.softmax_loss.default
BACKWARD = torch.ops.fcn_fast.softmax_loss_backward.default
NAN = float("nan")


def compare(logits, target, **options):
    """Against F.cross_entropy in float64, the loss to float32 whatever the dtype."""
    grad_output = loss_grad_output(target, options.get("reduction", "mean"))
    fast = lambda x: ops.softmax_loss(x, target, **options)  # noqa: E731
    loss, grad = with_grad(fast, [logits], grad_output.to(torch.promote_types(logits.dtype, torch.float32)))
    on_cpu = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    plain = lambda x: torch_loss(x, target.cpu(), **on_cpu)  # noqa: E731
    assert_loss_near((loss, grad), plain, logits, grad_output)
    return loss, grad


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", LOSS_OPTIONS)
def test_values(options, reduction, dtype, implementation, device):
    options = loss_options(options, torch.empty(2, 9, 13, device=device), 5)
    ignored = {k: v for k, v in options.items() if k == "ignore_index"}
    logits = 3 * randn(2, 5, 9, 13, dtype=dtype, device=device)
    target = labels(2, 9, 13, classes=5, device=device, **ignored)
    compare(logits, target, reduction=reduction, **options)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("classes", [2, 3, 21, 150, 300])
def test_values_by_class_count(classes, layout, dtype, implementation, device):
    target = labels(2, 7, 19, classes=classes, ignore_index=-1, device=device)
    for scale in (1, 10):
        logits = scale * randn(2, classes, 7, 19, dtype=dtype, device=device, layout=layout)
        compare(logits, target, ignore_index=-1)
        compare(logits, target, ignore_index=-1, **loss_options("all", target, classes))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_class_leaves_nothing_to_learn(reduction, dtype, implementation, device):
    logits, target = 9 * randn(2, 1, 7, 9, dtype=dtype, device=device), labels(2, 7, 9, classes=1, device=device)
    fast = lambda x: ops.softmax_loss(x, target, reduction=reduction)  # noqa: E731
    for result in with_grad(fast, [logits], torch.ones_like(fast(logits))):
        assert result.abs().max() < 1e-6 * target.numel()


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (33, 1), (17, 31)])
def test_layouts(size, layout, dtype, implementation, device):
    logits = randn(3, 6, *size, dtype=dtype, device=device, layout=layout)
    wide = labels(3, size[1], size[0], classes=6, device=device)
    for target in (wide.mT.contiguous(), wide.mT):
        for reduction in ("mean", "none"):
            assert has_layout(compare(logits, target, reduction=reduction)[1], layout)


@pytest.mark.parametrize("shape", [(7, 4), (7, 4, 30), (2, 4, 3, 5, 6)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_other_dimensions(shape, reduction, implementation, device):
    logits = randn(*shape, device=device)
    compare(logits, labels(shape[0], *shape[2:], classes=shape[1], device=device), reduction=reduction)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_target_dtypes(dtype, implementation, device):
    logits = randn(2, 21, 9, 13, device=device)
    target = labels(2, 9, 13, classes=21, dtype=dtype, device=device)
    loss = compare(logits, target)[0]
    assert torch.equal(loss, ops.softmax_loss(logits, target.long()))


@pytest.mark.parametrize("ignore_index", [-100, 256 + 3])
def test_targets_are_compared_as_int64(ignore_index, implementation, device):
    """-100 is 156 and 259 is 3 in uint8, but neither ignores those labels."""
    logits = randn(2, 200, 4, 6, device=device)
    target = torch.tensor([156, 3, 0, 199], dtype=torch.uint8, device=device).repeat(2, 2, 3)[:, :, :6].repeat(1, 2, 1)
    loss = ops.softmax_loss(logits, target, ignore_index=ignore_index, reduction="none")
    assert_near(loss, F.cross_entropy(logits.double(), target.long(), reduction="none").cpu())


@pytest.mark.isa
def test_large_logits(implementation, device):
    logits = randn(2, 21, 9, 13, device=device).sign() * 1e4 + randn(2, 21, 9, 13, device=device)
    compare(logits, labels(2, 9, 13, classes=21, device=device))


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_classes_masked_with_minus_infinity_are_as_if_absent(dtype, implementation, device):
    logits = randn(2, 6, 9, 13, dtype=dtype, device=device)
    target = labels(2, 9, 13, classes=4, device=device)
    expected = with_grad(lambda x: ops.softmax_loss(x, target), [logits[:, :4]], None)
    masked = logits.clone()
    masked[:, 4:] = -float("inf")
    loss, grad = with_grad(lambda x: ops.softmax_loss(x, target), [masked], None)
    torch.testing.assert_close(loss, expected[0])
    torch.testing.assert_close(grad[:, :4], expected[1])
    assert not grad[:, 4:].any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_ignored(dtype, reduction, implementation, device):
    logits = randn(2, 3, 4, 5, dtype=dtype, device=device).requires_grad_()
    loss = ops.softmax_loss(logits, torch.full((2, 4, 5), 255, device=device), reduction=reduction)
    loss.sum().backward()
    assert not loss.any() and not logits.grad.any()


@pytest.mark.parametrize("option", ["weight", "pixel_weight"])
def test_a_mean_over_no_weight_is_zero(option, implementation, device):
    logits = randn(2, 3, 4, 5, device=device).requires_grad_()
    target = labels(2, 4, 5, classes=3, device=device)
    zeros = torch.zeros(3 if option == "weight" else target.shape, device=device)
    loss = ops.softmax_loss(logits, target, **{option: zeros})
    loss.backward()
    assert not loss.any() and not logits.grad.any()


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_an_ignored_pixel_does_not_count_whatever_it_holds(value, implementation, device):
    logits = randn(2, 3, 4, 5, device=device)
    target = labels(2, 4, 5, classes=3, device=device)
    target[0, 1, 2] = 255
    expected = with_grad(lambda x: ops.softmax_loss(x, target), [logits], None)
    logits[0, :, 1, 2] = value
    actual = with_grad(lambda x: ops.softmax_loss(x, target), [logits], None)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty_batch(reduction, implementation, device):
    logits = randn(0, 3, 4, 5, device=device).requires_grad_()
    loss = ops.softmax_loss(logits, torch.zeros(0, 4, 5, dtype=torch.uint8, device=device), reduction=reduction)
    loss.sum().backward()
    assert loss.shape == ((0, 4, 5) if reduction == "none" else ()) and not loss.any()
    assert logits.grad.shape == logits.shape


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("label", [21, 254, -1, -100, 1 << 40])
def test_bad_labels_raise(label, reduction, implementation, device):
    dtype = torch.uint8 if 0 <= label < 256 else torch.int64
    target = labels(2, 30, 40, classes=21, dtype=dtype, device=device)
    target[1, 17, 5] = target[1, 17, 30] = label
    logits = randn(2, 21, 30, 40, device=device)
    message = rf"^target: expected labels from 0 to 20 or ignore_index, got {label} at \[1, 17, 5\]"
    with pytest.raises(ValueError, match=message):
        ops.softmax_loss(logits, target, reduction=reduction, check_labels=True)
    if device == "cpu":
        with pytest.raises(ValueError, match=message):
            ops.softmax_loss(logits.requires_grad_(), target, reduction=reduction)


@pytest.mark.isa
@pytest.mark.parametrize("label", [5, -1, 1 << 40])
def test_bad_labels_unchecked_are_nan(label, implementation, device):
    logits = randn(2, 5, 4, 6, device=device)
    target = labels(2, 4, 6, classes=5, device=device)
    target[1, 2, 3] = label
    bad = target == label
    for reduction in REDUCTIONS:
        fast = lambda x: ops.softmax_loss(x, target, reduction=reduction, check_labels=False)  # noqa: B023, E731
        loss, grad = with_grad(fast, [logits], torch.ones_like(fast(logits)))
        assert torch.equal(loss.isnan(), bad if reduction == "none" else torch.tensor(True, device=device))
        assert torch.equal(grad.isnan(), bad.unsqueeze(1).expand_as(grad))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", LOSS_OPTIONS)
def test_derivative(options, reduction, implementation, device):
    options = loss_options(options, torch.empty(2, 3, 4, device=device), 5)
    target = labels(2, 3, 4, classes=5, ignore_index=options.get("ignore_index", 255), device=device)
    logits = randn(2, 5, 3, 4, dtype=torch.float64, device=device).requires_grad_()
    assert gradcheck(lambda x: ops.softmax_loss(x, target, reduction=reduction, **options), [logits], fast_mode=True)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_backward_again(reduction, device):
    logits = randn(2, 5, 9, 13, device=device).requires_grad_()
    target = labels(2, 9, 13, classes=5, device=device)
    loss = ops.softmax_loss(logits, target, reduction=reduction)
    one = torch.ones_like(loss)
    once, twice = (torch.autograd.grad(loss, logits, scale * one, retain_graph=True)[0] for scale in (1, 2))
    torch.testing.assert_close(twice, 2 * once)
    expanded = torch.autograd.grad(ops.softmax_loss(logits, target, reduction=reduction).sum(), logits)
    assert torch.equal(expanded[0], once)


def test_half_gradients_survive_a_loss_scaler(device):
    """Their pixels are smaller than float16 holds until the scale is applied."""
    logits = randn(1, 4, 300, 400, dtype=torch.float16, device=device)
    target = labels(1, 300, 400, classes=4, device=device)
    exact = exactly(lambda x: torch_loss(x, target.cpu()) * 2**16, [logits], torch.ones(()))[1]
    grad = with_grad(lambda x: ops.softmax_loss(x, target) * 2**16, [logits], None)[1]
    assert_near(grad, exact)


def test_second_derivative_is_refused(device):
    logits = randn(1, 3, 4, 5, device=device).requires_grad_()
    loss = ops.softmax_loss(logits, labels(1, 4, 5, classes=3, device=device))
    (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="twice|second"):
        (loss + grad.square().sum()).backward()  # a gradient penalty, which must not quietly count for nothing


@pytest.mark.parametrize("options", ["plain", "all"])
@pytest.mark.parametrize("reduction", range(len(REDUCTIONS)))
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(layout, reduction, options, device):
    target = labels(2, 3, 4, classes=5, dtype=torch.uint8, device=device)
    options = loss_options(options, target, 5)
    weights = [w if w is None else w.float() for w in (options.get("weight"), options.get("pixel_weight"))]
    for grad in (False, True):
        logits = randn(2, 5, 3, 4, device=device, layout=layout).requires_grad_(grad)
        args = (logits, target, *weights, 255, reduction, options.get("label_smoothing", 0.0), True, grad)
        torch.library.opcheck(OPERATOR, args)
    loss, saved, total_weight = (x.detach() for x in OPERATOR(*args))
    args = (torch.ones_like(loss), logits.detach(), target, *weights, saved, total_weight, 255, reduction, 0.0)
    torch.library.opcheck(BACKWARD, args)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compile(reduction, dynamic, compile, device):
    weight = torch.rand(5, device=device)
    fast = lambda x, t, p: ops.softmax_loss(x, t, weight, reduction=reduction, pixel_weight=p, label_smoothing=0.1)  # noqa: E731
    compiled = compile(fast, dynamic=dynamic, backend="aot_eager")
    for n in (2, 3):
        logits = randn(n, 5, 3 + n, 7, device=device)
        target = labels(n, 3 + n, 7, classes=5, device=device)
        pixel_weight = torch.rand(target.shape, device=device)
        grad_output = loss_grad_output(target, reduction).float()
        actual, expected = (
            with_grad(lambda x: f(x, target, pixel_weight), [logits], grad_output)  # noqa: B023
            for f in (compiled, fast)
        )
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_export(device):
    module = nn.SoftmaxLoss(torch.rand(5, device=device))
    examples = [(randn(n, 5, 3 + n, 7, device=device), labels(n, 3 + n, 7, classes=5, device=device)) for n in (2, 4)]
    auto = torch.export.Dim.AUTO
    shapes = ({0: auto, 2: auto, 3: auto}, {0: auto, 1: auto, 2: auto})
    program = torch.export.export(module, examples[0], dynamic_shapes=shapes)
    assert torch.equal(program.module()(*examples[1]), module(*examples[1]))


@pytest.mark.parametrize("dtype", HALF)
def test_autocast_leaves_the_loss_in_float32(dtype, device):
    logits = randn(1, 3, 4, 5, device=device)
    target = labels(1, 4, 5, classes=3, device=device)
    with torch.autocast(device, dtype=dtype):
        assert torch.equal(ops.softmax_loss(logits, target), ops.softmax_loss(logits, target))
        assert ops.softmax_loss(logits, target).dtype == torch.float32
        assert ops.softmax_loss(logits.to(dtype), target).dtype == torch.float32
        assert ops.softmax_loss(logits.double(), target).dtype == torch.float64


@pytest.mark.isa
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_same_bits(layout, reduction, set_num_threads, device):
    logits = randn(2, 21, 250, 300, device=device, layout=layout)
    target = labels(2, 250, 300, classes=21, device=device)
    weight = torch.rand(21, device=device)
    grad_output = loss_grad_output(target, reduction).float()
    fast = lambda x: ops.softmax_loss(x, target, weight, reduction=reduction)  # noqa: E731
    assert same_bits(lambda: with_grad(fast, [logits], grad_output), set_num_threads)


X = torch.zeros(2, 3, 4, 5)
T = torch.zeros(2, 4, 5, dtype=torch.int64)
BAD_OPTIONS = [
    ({"weight": [1.0, 1.0, 1.0]}, TypeError, "weight: expected a tensor, got list"),
    ({"weight": torch.ones(3, dtype=torch.int64)}, TypeError, "weight: expected .*, got torch.int64"),
    ({"weight": torch.ones(4)}, ValueError, r"weight: expected shape \(3,\), got \(4,\)"),
    ({"weight": torch.ones(3, requires_grad=True)}, ValueError, "weight: expected .* not require grad"),
    ({"weight": torch.ones(3, device="meta")}, ValueError, "weight: expected the device of logits, cpu, got meta"),
    ({"pixel_weight": torch.ones(2, 4)}, ValueError, r"pixel_weight: expected shape \(2, 4, 5\), got \(2, 4\)"),
    ({"pixel_weight": T}, TypeError, "pixel_weight: expected .*, got torch.int64"),
    ({"pixel_weight": torch.ones(2, 4, 5).requires_grad_()}, ValueError, "pixel_weight: expected .* not require grad"),
    ({"ignore_index": None}, TypeError, "ignore_index: expected an int, got None"),
    ({"ignore_index": 2.0}, TypeError, "ignore_index: expected an int, got 2.0"),
    ({"reduction": "average"}, ValueError, "reduction: expected one of none, mean, sum, full, batch, got 'average'"),
    ({"reduction": None}, ValueError, "reduction: expected one of .*, got None"),
    ({"label_smoothing": 1.5}, ValueError, "label_smoothing: expected a number from 0 to 1, got 1.5"),
    ({"label_smoothing": -0.1}, ValueError, "label_smoothing: expected a number from 0 to 1, got -0.1"),
    ({"label_smoothing": NAN}, ValueError, "label_smoothing: expected a number from 0 to 1, got nan"),
    ({"label_smoothing": "0.1"}, TypeError, "label_smoothing: expected a number"),
]


@pytest.mark.parametrize(
    ("logits", "target", "error", "message"),
    [
        (None, T, TypeError, "logits: expected a tensor, got NoneType"),
        (X.int(), T, TypeError, "logits: expected .*, got torch.int32"),
        (X[0, 0, 0], T, ValueError, r"logits: expected shape \(N, C, ...\).*, got \(5,\)"),
        (X[:, :0], T, ValueError, r"logits: expected shape .*, got \(2, 0, 4, 5\)"),
        (X, None, TypeError, "target: expected a tensor, got NoneType"),
        (X, T.float(), TypeError, "target: expected .*, got torch.float32"),
        (X, X, TypeError, "target: expected .*, got torch.float32"),
        (X, T.bool(), TypeError, "target: expected .*, got torch.bool"),
        (X, T[0], ValueError, r"target: expected shape \(2, 4, 5\), got \(4, 5\)"),
        (X, T[:, 1:], ValueError, r"target: expected shape \(2, 4, 5\), got \(2, 3, 5\)"),
        (X, T.unsqueeze(1), ValueError, r"target: expected shape \(2, 4, 5\), got \(2, 1, 4, 5\)"),
        (X, T.to("meta"), ValueError, "target: expected the device of logits, cpu, got meta"),
    ],
)
def test_bad_input(logits, target, error, message):
    with pytest.raises(error, match=f"^{message}"):
        ops.softmax_loss(logits, target)


@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS)
def test_bad_options(options, error, message):
    for loss in (ops.softmax_loss, ops.upsample_softmax_loss):
        with pytest.raises(error, match=f"^{message}"):
            loss(X, T, **options)
