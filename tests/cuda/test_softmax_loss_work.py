"""What a thread of the CUDA softmax loss does, compiled for the CPU, against the reference."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fcn_fast import reference
from fcn_fast.reference import MEAN, NONE, REDUCTIONS, SUM, accumulate_dtype

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"
# As csrc/cpu/kernels.h numbers them.
FLOATS = {torch.float32: 0, torch.float64: 1, torch.float16: 3}
LABELS = {torch.uint8: 4, torch.int16: 5, torch.int32: 6, torch.int64: 7}
PLANES, ROWS, LANES = range(3)
# (share, several pixels a thread, threads a block): few threads, so that there are several blocks, and threads without
# work; five rows do not begin at multiples of 16 bytes.
SHARES = {
    "packs": (PLANES, True, 2),
    "pixels": (PLANES, False, 5),
    "rows": (ROWS, False, 8),
    "odd rows": (ROWS, False, 5),
    "lanes": (LANES, False, 128),
}
SHARED = pytest.mark.parametrize("share", SHARES)
OPTIONS = ("plain", "weights", "smoothing", "all")


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    if not shutil.which("g++"):
        pytest.skip("no g++")
    path = tmp_path_factory.mktemp("work") / "work.so"
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-Wall", "-Wno-unknown-pragmas", f"-I{CSRC}"]
    # A GPU takes nothing that is not aligned, where a CPU does.
    flags += ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]
    done = subprocess.run(["g++", *flags, HERE / "work.cpp", "-o", path], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return ctypes.CDLL(str(path))


def run(work, share, x, target, weight, pixel_weight, ignore_index, reduction, smoothing, **rest):
    """forward, or backward where rest has a grad; x is (N, C, P), in memory (N, P, C) but for planes."""
    kind, packs, threads = SHARES[share]
    images, classes, pixels = x.shape
    if kind != PLANES:
        images, pixels = 1, images * pixels
    pack = 16 // x.element_size() if packs else 1
    names = ("loss", "saved", "grad", "grad_output", "total")
    pointers = [x, target, weight, pixel_weight, *(rest.get(name) for name in names)]
    sizes = [images, classes, pixels, x.shape[2]]
    numbers = [*sizes, LABELS[target.dtype], ignore_index, reduction, kind, pack, threads, "grad" in rest]
    divisor = {"full": target.numel(), "batch": target.shape[0]}.get(REDUCTIONS[reduction], 1)
    sums = (ctypes.c_double * 3)()
    getattr(work, f"run_{str(x.dtype).removeprefix('torch.')}")(
        (ctypes.c_void_p * 9)(*(None if p is None else p.data_ptr() for p in pointers)),
        (ctypes.c_int64 * 11)(*map(int, numbers)),
        ctypes.c_double(smoothing),
        ctypes.c_double(1 / divisor),
        sums,
    )
    return list(sums), divisor


def compare(work, share, x, target, options=(None, None, 0.0), reduction=MEAN, ignore_index=255):
    """Loss, saved, total weight, first bad label and gradient against the reference in float64, outputs poisoned."""
    weight, pixel_weight, smoothing = options
    dtype = accumulate_dtype(x.dtype)
    tolerance = {"rtol": 1e-5, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    laid_out = x if SHARES[share][0] == PLANES else x.mT.contiguous().mT
    saved = torch.full((2, *target.shape), float("nan"), dtype=dtype)
    loss = torch.full(target.shape, float("nan"), dtype=dtype) if reduction == NONE else None
    arguments = (target, weight, pixel_weight, ignore_index, reduction, smoothing)
    sums, divisor = run(work, share, laid_out, *arguments, loss=loss, saved=saved)

    exact = [None if t is None else t.double() for t in (weight, pixel_weight)]
    expected = reference.softmax_loss(x.double(), target, *exact, *arguments[3:], False, True)
    if reduction == NONE:
        actual = loss.double()
    elif reduction == MEAN:
        actual = torch.tensor(sums[0] / sums[1] if sums[1] else 0.0, dtype=torch.float64)
    else:
        actual = torch.tensor(sums[0] / divisor, dtype=torch.float64)
    torch.testing.assert_close(actual, expected[0], equal_nan=True, **tolerance)
    finite = expected[1].isfinite().all(0)
    torch.testing.assert_close(saved.double()[:, finite], expected[1][:, finite], **tolerance)
    bad = (target.long() != ignore_index) & ((target.long() < 0) | (target.long() >= x.shape[1]))
    assert sums[2] == (bad.flatten().int().argmax() if bad.any() else -1)
    if not bad.any():
        torch.testing.assert_close(sums[1], expected[2].item(), **tolerance)

    grad = torch.full_like(laid_out, float("nan"))
    total = torch.tensor(sums[1], dtype=dtype)
    grad_output = torch.randn(target.shape if reduction == NONE else (), dtype=dtype)
    run(work, share, laid_out, *arguments, saved=saved, grad=grad, grad_output=grad_output, total=total)
    arguments = (x.double(), target, *exact, expected[1], expected[2], *arguments[3:])
    expected = reference.softmax_loss_backward(grad_output.double(), *arguments)
    if x.dtype == torch.float16:
        tolerance = {"rtol": torch.finfo(x.dtype).eps, "atol": 1e-6}
    torch.testing.assert_close(grad.double(), expected, equal_nan=True, **tolerance)


def random(shape=(2, 5, 24), dtype=torch.float32, label=torch.uint8):
    target = torch.randint(shape[1], (shape[0], shape[2]))
    x = (3 * torch.randn(shape, dtype=torch.float64)).to(dtype)
    return x, torch.where(torch.rand(target.shape) < 0.2, 255, target).to(label)


def options_of(name, x):
    dtype = accumulate_dtype(x.dtype)
    weight, pixel_weight = torch.rand(x.shape[1], dtype=dtype), torch.rand(x.shape[0], x.shape[2], dtype=dtype)
    choices = {"plain": (None, None, 0.0), "weights": (weight, pixel_weight, 0.0), "smoothing": (None, None, 0.1)}
    return {**choices, "all": (weight, pixel_weight, 0.3)}[name]


@SHARED
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("options", OPTIONS)
def test_values(options, dtype, share, work):
    x, target = random(dtype=dtype)
    for reduction in range(5):
        compare(work, share, x, target, options_of(options, x), reduction)


@SHARED
@pytest.mark.parametrize("classes", [1, 2, 3, 4, 7, 8, 9, 21, 64, 150, 1000])
def test_class_counts(classes, share, work):
    x, target = random((3, classes, 8), label=torch.int64)
    compare(work, share, x, target, options_of("all", x))


@SHARED
@pytest.mark.parametrize("label", LABELS)
def test_bad_labels(label, share, work):
    x, target = random(label=label)
    target[1, 3], target[1, 7] = x.shape[1], 9
    for reduction in (NONE, SUM):
        compare(work, share, x, target, (None, None, 0.1), reduction)


@SHARED
@pytest.mark.parametrize("ignore_index", [-100, 256 + 3, 1 << 40])
def test_labels_are_compared_as_int64(ignore_index, share, work):
    x = torch.randn(1, 200, 4)
    compare(work, share, x, torch.tensor([[156, 3, 0, 199]], dtype=torch.uint8), ignore_index=ignore_index)
    wrapped = torch.tensor(
        [[156, 3, (1 << 32) + 5, -1]]
    )  # the last two are bad, and would be classes in 32 bits or less
    compare(work, share, x, wrapped, ignore_index=ignore_index, reduction=NONE)


@SHARED
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_not_finite(value, share, work):
    x, target = random((2, 6, 12))
    target[target >= 4] = 255
    x[:, 4:] = value
    x[0, :, :2] = value
    compare(work, share, x, target, reduction=NONE)


@SHARED
def test_large_logits_and_nothing_that_counts(share, work):
    x, target = random()
    compare(work, share, x.sign() * 1e4 + x, target, (None, None, 0.1), SUM)
    compare(work, share, x, torch.full_like(target, 255))
    compare(work, share, x, target, (torch.zeros(5), None, 0.0))


@pytest.mark.parametrize("classes", [20, 21])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_same_bits_in_every_batch(smoothing, classes, work):
    """Which of the ways to share out pixels is taken depends on their number."""
    x, target = random((3, classes, 24))
    for shares in (("packs", "pixels"), ("rows", "odd rows"), ("lanes",)):
        results = []
        for share in shares:
            for images in (slice(0, 3), slice(2, 3)):
                part = x[images] if SHARES[share][0] == PLANES else x[images].mT.contiguous().mT
                loss, saved = torch.empty(target[images].shape), torch.empty(2, *target[images].shape)
                run(work, share, part, target[images], None, None, 255, NONE, smoothing, loss=loss, saved=saved)
                results.append(torch.stack((loss, *saved))[:, -1])
        assert all(torch.equal(result, results[0]) for result in results)


def plan(work, shape, dtype="float32", channels_last=False, address=0):
    """share, pixels a thread, threads a block, shared memory, images, pixels, tiles, blocks"""
    out = (ctypes.c_int64 * 8)()
    types = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}
    work.plan(types[dtype], (ctypes.c_int64 * 4)(*shape), int(channels_last), ctypes.c_int64(address), out)
    return list(out)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(1, 21, 500, 500), (1, 150, 128, 128), (1, 19, 1024, 2048), (16, 150, 512, 512)])
def test_plans_fill_a_gpu_of_132_multiprocessors(shape, channels_last, dtype, work):
    share, pack, threads, shared, images, pixels, tiles, blocks = plan(work, shape, dtype, channels_last)
    assert images * pixels == shape[0] * shape[2] * shape[3] and blocks == images * tiles
    a_thread = 1 / 32 if share == LANES else pack
    assert (tiles - 1) * threads * a_thread < pixels <= tiles * threads * a_thread
    assert blocks >= 2 * 132 and threads % 32 == 0
    assert shared <= 32 << 10
    if not channels_last and shape[3] > 500:
        assert pack == {"float32": 4, "float64": 2}.get(dtype, 8)


def test_plans(work):
    large = (16, 19, 512, 512)
    assert plan(work, large)[:3] == [PLANES, 4, 128]
    assert plan(work, large, address=8)[1] == 1  # not aligned
    assert plan(work, (16, 19, 513, 513))[1] == 1
    assert plan(work, large, "bfloat16", channels_last=True)[:4] == [ROWS, 1, 128, 128 * 19 * 2]
    assert plan(work, (16, 150, 512, 512), channels_last=True)[:4] == [ROWS, 1, 32, 32 * 150 * 4]
    assert plan(work, (16, 1000, 64, 64), channels_last=True)[0] == LANES
    assert plan(work, (4096, 21, 1, 1))[0] == ROWS  # one pixel an image
    assert (
        plan(work, (0, 21, 8, 8))[-1]
        == plan(work, (2, 21, 0, 8))[-1]
        == plan(work, (0, 21, 8, 8), "float32", True)[-1]
        == 0
    )
    assert plan(work, (4, 3, 1 << 17, 1 << 17))[-1] == (1 << 36) // 512  # 2^36 pixels
