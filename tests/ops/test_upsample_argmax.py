import pytest
import torch
import torch.nn.functional as F

from fcn_fast import BilinearGrid, nn, ops

from .support import DTYPES, FEW, LAYOUTS, SAMPLINGS, ZERO, interpolation, laid_out, randn, random_samplings, same_bits

pytestmark = pytest.mark.usefixtures("deterministic")
OPERATOR = torch.ops.fcn_fast.upsample_argmax.default
INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


def smooth(*shape, **options):
    """Scores whose classes form regions, as a network's do."""
    coarse = torch.randn(*shape[:2], *(max(n // 16, 1) for n in shape[2:]))
    scores = F.interpolate(coarse, shape[2:], mode="bilinear") * 8 + 0.5 * torch.randn(shape)
    return laid_out(scores.to(options.get("device", "cpu"), options.get("dtype")), options.get("layout", "contiguous"))


def compare(sampling, logits, **options):
    """Each label's float64 score is the largest, to a few units in the last place of a float32 (float64) score."""
    actual = ops.upsample_argmax(logits, **sampling.options, **options)
    scores = sampling.torch(logits.double().cpu())
    chosen = scores.gather(1, actual.cpu().long().unsqueeze(1)).squeeze(1)
    short = scores.amax(1) - chosen
    eps = torch.finfo(torch.promote_types(logits.dtype, torch.float32)).eps
    assert short.max().item() <= 8 * eps * logits.abs().max().item()
    assert (actual.cpu() == scores.argmax(1)).double().mean() > 0.9  # so ties are not what passes here
    return actual


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [randn, smooth])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_values(sampling, make, dtype, implementation, device):
    compare(sampling, make(2, 5, *sampling.in_size, dtype=dtype, device=device))


@pytest.mark.isa
@pytest.mark.parametrize("make", [randn, smooth])
def test_values_on_random_grids(make, implementation, device, seed):
    for sampling in random_samplings(seed, 25):
        compare(sampling, make(1, 4, *sampling.in_size, device=device))


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", [1, 2, 21, 150])
@pytest.mark.parametrize("sampling", [interpolation((20, 33), size=(160, 264)), ZERO], ids=str)
def test_layouts(sampling, classes, layout, dtype, implementation, device):
    for make in (randn, smooth):
        labels = compare(sampling, make(1, classes, *sampling.in_size, dtype=dtype, device=device, layout=layout))
        assert labels.dtype == torch.uint8 and labels.is_contiguous()


@pytest.mark.isa
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("sampling", [interpolation((9, 13), scale_factor=4), SAMPLINGS[17], SAMPLINGS[18]], ids=str)
@pytest.mark.parametrize("values", [1, 2, 4])
def test_ties_go_to_the_lowest_class(values, sampling, layout, implementation, device):
    """Small whole numbers on these grids are exact in float32 too, so every tie is one."""
    logits = torch.randint(-values, values + 1, (2, 7, *sampling.in_size)).float()
    actual = ops.upsample_argmax(laid_out(logits.to(device), layout), **sampling.options)
    assert torch.equal(actual.cpu().long(), sampling.torch(logits.double()).argmax(1))


@pytest.mark.isa
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("make", [randn, smooth])
@pytest.mark.parametrize("sampling", [interpolation((9, 13), scale_factor=4), SAMPLINGS[18]], ids=str)
def test_not_finite(sampling, make, value, implementation, device):
    logits = make(1, 5, *sampling.in_size, dtype=torch.float64)
    for share in (0.02, 0.3):
        mask = torch.rand(logits.shape) < share
        scores = sampling.torch(logits.masked_fill(mask, 0)).masked_fill(sampling.torch(mask.double()) > 0, value)
        actual = ops.upsample_argmax(logits.masked_fill(mask, value).float().to(device), **sampling.options)
        assert (actual.cpu().long() == scores.argmax(1)).double().mean() > 0.999


def test_nan_wins_over_infinity(implementation, device):
    logits = torch.tensor([1.0, float("inf"), float("nan"), float("nan")], device=device).view(1, 4, 1, 1)
    assert torch.equal(ops.upsample_argmax(logits, 3), torch.full((1, 3, 3), 2, dtype=torch.uint8, device=device))


def test_infinities_that_meet_are_nan(implementation, device):
    logits = torch.tensor([[9.0, 9.0], [float("inf"), -float("inf")]], device=device).view(1, 2, 1, 2)
    assert ops.upsample_argmax(logits, (1, 4)).tolist() == [[[1, 1, 1, 0]]]


def test_outside_a_zero_border_class_0_wins(implementation, device):
    """Every score is 0 there, negative ones inside notwithstanding."""
    grid = BilinearGrid((2, 2), (6, 6), (1, 1), (-4, -4), (2, 2), "zero")
    labels = ops.upsample_argmax(
        torch.tensor([-2.0, -1.0], device=device).view(1, 2, 1, 1).expand(1, 2, 2, 2), grid=grid
    )
    assert not labels[:, :3].any() and not labels[:, :, :3].any() and labels[0, 4, 4] == 1


@pytest.mark.isa
@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("classes", [21, 128, 256, 257, 300])
def test_result_dtypes(classes, dtype, implementation, device):
    logits = randn(1, classes, 4, 5, device=device)
    if classes > 256 and dtype == torch.uint8:
        with pytest.raises(ValueError, match=rf"^dtype: expected one that holds {classes} classes, got torch.uint8"):
            ops.upsample_argmax(logits, scale_factor=2, dtype=dtype)
        return
    logits[:, -1, 0, 0] = 100
    labels = compare(interpolation((4, 5), scale_factor=2), logits, dtype=dtype)
    assert labels.dtype == dtype and labels[0, 0, 0] == classes - 1


def test_more_classes_than_int16_holds(device):
    logits = torch.zeros(1, 1, 1, 1, device=device).expand(1, (1 << 15) + 1, 1, 1)
    with pytest.raises(ValueError, match="^dtype: expected one that holds 32769 classes, got torch.int16"):
        ops.upsample_argmax(logits, 1, dtype=torch.int16)


def test_is_not_differentiable(device):
    assert not ops.upsample_argmax(randn(1, 3, 4, 5, device=device).requires_grad_(), 8).requires_grad


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_opcheck(dtype, layout, device):
    torch.library.opcheck(
        OPERATOR, (randn(2, 3, *ZERO.in_size, device=device, layout=layout), ZERO.grid.numbers(), dtype)
    )


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("sampling", [*FEW, interpolation((5, 7), scale_factor=2)], ids=str)
def test_compile(sampling, dynamic, compile, device):
    options = sampling.options
    fast = lambda x: ops.upsample_argmax(x, **options)  # noqa: E731
    compiled = compile(fast, dynamic=dynamic, backend="aot_eager")
    for batch, size in zip(
        (2, 3), [sampling.in_size] * 2 if "grid" in options else [sampling.in_size, (6, 4)], strict=True
    ):
        logits = randn(batch, 3, *size, device=device)
        assert torch.equal(compiled(logits), fast(logits))


def test_export(device):
    logits, larger = randn(2, 3, 5, 7, device=device), randn(4, 3, 6, 9, device=device)
    auto = torch.export.Dim.AUTO
    module = nn.UpsampleArgmax(scale_factor=2)
    program = torch.export.export(module, (logits,), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    assert torch.equal(program.module()(larger), module(larger))


def test_empty_batch(implementation, device):
    labels = ops.upsample_argmax(randn(0, 3, 4, 5, device=device), scale_factor=2)
    assert labels.shape == (0, 8, 10) and labels.dtype == torch.uint8


@pytest.mark.isa
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("make", [randn, smooth])
def test_same_bits(make, layout, set_num_threads, device):
    logits = make(2, 21, 40, 50, device=device, layout=layout)
    assert same_bits(lambda: [ops.upsample_argmax(logits, scale_factor=8)], set_num_threads)


X = torch.zeros(1, 2, 3, 4)
GRID = BilinearGrid.interpolate((3, 4), scale_factor=2)


@pytest.mark.parametrize(
    ("logits", "options", "error", "message"),
    [
        (None, {"size": 5}, TypeError, "logits: expected a tensor, got NoneType"),
        (X.int(), {"size": 5}, TypeError, "logits: expected .*, got torch.int32"),
        (X[0], {"size": 5}, ValueError, "logits: expected 4 dimensions"),
        (X[:, :0], {"size": 5}, ValueError, "logits: expected at least one channel"),
        (X, {}, ValueError, "size, scale_factor: expected exactly one"),
        (X, {"size": 5, "scale_factor": 2}, ValueError, "size, scale_factor: expected exactly one"),
        (X, {"grid": GRID, "size": 5}, ValueError, "grid: expected no size"),
        (X, {"grid": "2"}, TypeError, "grid: expected a BilinearGrid, got str"),
        (X[..., 1:], {"grid": GRID}, ValueError, "grid: expected one for .*3x3"),
        (X, {"size": 5, "dtype": torch.float32}, TypeError, "dtype: expected .*torch.int64, got torch.float32"),
        (X, {"size": 5, "dtype": torch.int8}, TypeError, "dtype: expected .*torch.int64, got torch.int8"),
        (X, {"size": 5, "dtype": None}, TypeError, "dtype: expected .*torch.int64, got None"),
    ],
)
def test_bad_input(logits, options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        ops.upsample_argmax(logits, **options)
