import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from fcn_fast import BilinearGrid, nn, ops

from .support import (
    CLAMPED,
    DTYPES,
    FEW,
    HALF,
    LAYOUTS,
    SAMPLINGS,
    ZERO,
    as_pytorch,
    assert_all_near,
    exactly,
    has_layout,
    laid_out,
    randn,
    random_samplings,
    same_bits,
    with_grad,
)

pytestmark = pytest.mark.usefixtures("deterministic")
OPERATOR = torch.ops.fcn_fast.skip_fuse.default


def torch_fuse(sampling, crop):
    """Crop the skip, upsample, add: each as PyTorch does it."""
    height, width = sampling.grid.size
    return lambda coarse, skip: (
        sampling.torch(coarse) + skip[:, :, crop[0] : crop[0] + height, crop[1] : crop[1] + width]
    )


def skip_for(sampling, crop, margin=(0, 0), batch=2, channels=3, **options):
    height, width = (crop[i] + sampling.grid.size[i] + margin[i] for i in (0, 1))
    return randn(batch, channels, height, width, **options)


def compare(sampling, crop, coarse, skip, grad_output):
    def fast(coarse, skip):
        return ops.skip_fuse(coarse, skip, crop=crop, grid=sampling.grid)

    actual = with_grad(fast, [coarse, skip], grad_output)
    expected = torch_fuse(sampling, crop)
    assert_all_near(actual, *(f(expected, [coarse, skip], grad_output) for f in (exactly, as_pytorch)))
    return actual


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_values(sampling, dtype, implementation, device):
    coarse = randn(2, 3, *sampling.in_size, dtype=dtype, device=device)
    grad_output = randn(2, 3, *sampling.grid.size, dtype=dtype, device=device)
    for crop, margin in (((0, 0), (0, 0)), ((5, 2), (0, 0)), ((0, 3), (4, 1))):
        compare(sampling, crop, coarse, skip_for(sampling, crop, margin, dtype=dtype, device=device), grad_output)


@pytest.mark.isa
def test_values_on_random_grids(implementation, device, seed):
    for sampling in random_samplings(seed, 25):
        crop, margin = (torch.randint(4, (2,)).tolist() for _ in range(2))
        skip = skip_for(sampling, crop, margin, 1, 2, device=device)
        coarse = randn(1, 2, *sampling.in_size, device=device)
        compare(sampling, crop, coarse, skip, randn(1, 2, *sampling.grid.size, device=device))


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("skip_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 37])
def test_layouts(channels, layout, skip_layout, dtype, implementation, device):
    coarse = randn(2, channels, *ZERO.in_size, dtype=dtype, device=device, layout=layout)
    skip = skip_for(ZERO, (3, 1), (0, 2), 2, channels, dtype=dtype, device=device, layout=skip_layout)
    grad_output = randn(2, channels, *ZERO.grid.size, dtype=dtype, device=device, layout=skip_layout)
    output, grad_coarse, grad_skip = compare(ZERO, (3, 1), coarse, skip, grad_output)
    for result in (output, grad_coarse):
        assert has_layout(result, layout)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("crop", [0, 2, (1, 3)])
def test_without_a_grid_coarse_is_resized_to_what_is_left(crop, align_corners, implementation, device):
    top, left = crop if isinstance(crop, tuple) else (crop, crop)
    coarse, skip = randn(2, 3, 4, 5, device=device), randn(2, 3, 11, 14, device=device)
    resized = ops.bilinear_upsample(coarse, (11 - top, 14 - left), align_corners=align_corners)
    actual = ops.skip_fuse(coarse, skip, crop=crop, align_corners=align_corners)
    torch.testing.assert_close(actual, resized + skip[:, :, top:, left:], rtol=0, atol=1e-6)


def test_fcn16s_at_500(device):
    """500 px: fc gives 16, pool4 gives 44, their fusion is 34 wide."""
    score_fr, score_pool4 = randn(1, 21, 16, 16, device=device), randn(1, 21, 44, 44, device=device)
    fused = ops.skip_fuse(score_fr, score_pool4, grid=BilinearGrid.deconvolution((16, 16), 2), crop=5)
    assert fused.shape == (1, 21, 34, 34)


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_gradient_of_one_input(needed, device):
    inputs = [randn(2, 3, *ZERO.in_size, device=device), skip_for(ZERO, (1, 1), device=device)]
    both = [x.clone().requires_grad_() for x in inputs]
    one = [x.clone().requires_grad_(need) for x, need in zip(inputs, needed, strict=True)]
    for pair in (both, one):
        ops.skip_fuse(*pair, grid=ZERO.grid, crop=1).sum().backward()
    for x, y, need in zip(one, both, needed, strict=True):
        assert torch.equal(x.grad, y.grad) if need else x.grad is None


def test_the_skips_gradient_is_zero_outside_the_window(device):
    coarse = randn(1, 2, *ZERO.in_size, device=device)
    skip = skip_for(ZERO, (3, 1), (2, 4), 1, 2, device=device).requires_grad_()
    ops.skip_fuse(coarse, skip, crop=(3, 1), grid=ZERO.grid).sum().backward()
    inside = torch.zeros_like(skip)
    inside[:, :, 3 : 3 + ZERO.grid.size[0], 1 : 1 + ZERO.grid.size[1]] = 1
    assert torch.equal(skip.grad, inside)


def test_backward_twice(device):
    inputs = [randn(2, 3, *ZERO.in_size, device=device), skip_for(ZERO, (0, 0), device=device)]
    inputs = [x.requires_grad_() for x in inputs]
    output = ops.skip_fuse(*inputs, grid=ZERO.grid)
    first, second = (torch.autograd.grad(output.sum(), inputs, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("sampling", [CLAMPED, ZERO], ids=str)
def test_derivatives(sampling, implementation, device):
    options = {"dtype": torch.float64, "device": device}
    inputs = [randn(1, 2, *sampling.in_size, **options), skip_for(sampling, (2, 1), (1, 0), 1, 2, **options)]
    inputs = [x.requires_grad_() for x in inputs]
    fast = lambda coarse, skip: ops.skip_fuse(coarse, skip, crop=(2, 1), grid=sampling.grid)  # noqa: E731
    assert gradcheck(fast, inputs, fast_mode=True)
    assert gradgradcheck(fast, inputs, fast_mode=True)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(layout, requires_grad, device):
    coarse = randn(2, 3, *ZERO.in_size, device=device, layout=layout).requires_grad_(requires_grad)
    skip = laid_out(skip_for(ZERO, (2, 1), (1, 1), device=device), layout).requires_grad_(requires_grad)
    torch.library.opcheck(OPERATOR, (coarse, skip, [2, 1], ZERO.grid.numbers()))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("sampling", [None, *FEW], ids=str)
def test_compile(sampling, dynamic, compile, device):
    grid = sampling and sampling.grid
    fast = lambda coarse, skip: ops.skip_fuse(coarse, skip, crop=2, grid=grid)  # noqa: E731
    compiled = compile(fast, dynamic=dynamic, backend="aot_eager")
    for batch in (2, 3):
        coarse = randn(batch, 3, *(sampling.in_size if sampling else (5 + batch, 4)), device=device)
        skip = randn(batch, 3, 90, 80, device=device)
        grad_output = torch.randn_like(fast(coarse, skip))
        actual, expected = (with_grad(f, [coarse, skip], grad_output) for f in (compiled, fast))
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_export(device):
    inputs = randn(2, 3, 5, 7, device=device), randn(2, 3, 12, 16, device=device)
    larger = randn(4, 3, 6, 5, device=device), randn(4, 3, 20, 17, device=device)
    auto = torch.export.Dim.AUTO
    module = nn.SkipFuse(crop=1)
    program = torch.export.export(module, inputs, dynamic_shapes=({0: auto, 2: auto, 3: auto},) * 2)
    assert torch.equal(program.module()(*larger), module(*larger))


@pytest.mark.parametrize("dtype", HALF)
def test_autocast_keeps_the_dtype(dtype, device):
    coarse, skip = randn(1, 2, 3, 4, device=device), randn(1, 2, 6, 8, device=device)
    with torch.autocast(device, dtype=dtype):
        assert ops.skip_fuse(coarse, skip).dtype == torch.float32
        assert ops.skip_fuse(coarse.to(dtype), skip.to(dtype)).dtype == dtype


def test_empty_batch(implementation, device):
    coarse = randn(0, 3, *CLAMPED.in_size, device=device).requires_grad_()
    skip = skip_for(CLAMPED, (1, 1), batch=0, device=device).requires_grad_()
    output = ops.skip_fuse(coarse, skip, crop=1)
    output.sum().backward()
    assert output.shape == (0, 3, *CLAMPED.grid.size)
    assert coarse.grad.shape == coarse.shape and skip.grad.shape == skip.shape


@pytest.mark.isa
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_same_bits(layout, set_num_threads, device):
    grid = BilinearGrid.deconvolution((70, 80), 2)
    coarse = randn(2, 21, 70, 80, device=device, layout=layout)
    skip = randn(2, 21, 150, 170, device=device, layout=layout)
    grad_output = randn(2, 21, *grid.size, device=device, layout=layout)
    fast = lambda coarse, skip: ops.skip_fuse(coarse, skip, crop=5, grid=grid)  # noqa: E731
    assert same_bits(lambda: with_grad(fast, [coarse, skip], grad_output), set_num_threads)


COARSE, SKIP = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 7, 9)
GRID = BilinearGrid.interpolate((3, 4), scale_factor=2)


@pytest.mark.parametrize(
    ("coarse", "skip", "options", "error", "message"),
    [
        (None, SKIP, {}, TypeError, "coarse: expected a tensor, got NoneType"),
        (COARSE, None, {}, TypeError, "skip: expected a tensor, got NoneType"),
        (COARSE.int(), SKIP, {}, TypeError, "coarse: expected .*, got torch.int32"),
        (COARSE, SKIP.int(), {}, TypeError, "skip: expected .*, got torch.int32"),
        (COARSE, SKIP.double(), {}, TypeError, "skip: expected .*torch.float32, got torch.float64"),
        (COARSE[0], SKIP, {}, ValueError, "coarse: expected 4 dimensions"),
        (COARSE, SKIP[0], {}, ValueError, "skip: expected 4 dimensions"),
        (COARSE, SKIP.expand(2, 2, 7, 9), {}, ValueError, r"skip: expected .*\(1, 2\), got \(2, 2\)"),
        (COARSE, SKIP[:, :1], {}, ValueError, r"skip: expected .*\(1, 2\), got \(1, 1\)"),
        (COARSE, SKIP.to("meta"), {}, ValueError, "skip: expected the device of coarse, cpu, got meta"),
        (COARSE, SKIP, {"crop": -1}, ValueError, "crop: expected .*7x9, got -1,-1"),
        (COARSE, SKIP, {"crop": 7}, ValueError, "crop: expected .*7x9, got 7,7"),
        (COARSE, SKIP, {"crop": (0, 9)}, ValueError, "crop: expected .*7x9, got 0,9"),
        (COARSE, SKIP, {"crop": 1.5}, ValueError, "crop: expected an int or two ints, got 1.5"),
        (COARSE, SKIP, {"crop": (1, 2, 3)}, ValueError, "crop: expected an int or two ints"),
        (COARSE, SKIP, {"crop": 2, "grid": GRID}, ValueError, "crop, grid: expected .*7x9, got 6x8 at 2,2"),
        (COARSE, SKIP, {"grid": 2}, TypeError, "grid: expected a BilinearGrid, got int"),
        (COARSE, SKIP, {"grid": GRID, "align_corners": True}, ValueError, "grid: expected no .*align_corners"),
        (COARSE[..., 1:], SKIP, {"grid": GRID}, ValueError, "grid: expected .*3x3.*, got one for 3x4"),
    ],
)
def test_bad_input(coarse, skip, options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        ops.skip_fuse(coarse, skip, **options)
