"""The whole CUDA softmax loss, from launch to sum, on the CPU: its source compiled against an emulator of a GPU.

The emulated GPU has two multiprocessors to fill, so that small maps are shared out in every way that large ones are.

What emulator.h has no hardware for, and so nothing here tests, is speed, what nvcc makes of the source, and the
registration with PyTorch.
"""

import contextlib
import ctypes
import re
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
FLOATS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
LABELS = {torch.uint8: 4, torch.int16: 5, torch.int32: 6, torch.int64: 7}
PLANES, ROWS, LANES = range(3)
# (N, C, H, W) and whether it is channels_last: what csrc/cuda/softmax_loss_plan.h shares out in each of its ways, into
# blocks of which the last ones are not full.
SHAPES = {
    "packs": ((2, 3, 40, 60), False),
    "pixels": ((2, 5, 31, 33), False),
    "few pixels": ((1, 5, 3, 5), False),
    "rows": ((2, 5, 31, 33), True),
    "rows in groups": ((2, 12, 7, 9), True),
    "lanes": ((2, 300, 5, 7), True),
    "tiles": ((6, 2, 30, 66), False),
    "tiles of rows": ((1, 2, 97, 101), True),
}
SHARED = pytest.mark.parametrize("share", SHAPES)
# Small ones of each, with any number of classes.
SMALL = {
    "packs": lambda classes: ((4, classes, 2, 4), False),
    "pixels": lambda classes: ((3, classes, 5, 7), False),
    "rows": lambda classes: ((2, classes, 5, 7), True),
}
EACH = pytest.mark.parametrize("share", SMALL)
MARGIN = 64  # elements
MULTIPROCESSORS = 2  # of the emulated GPU
ASCENDING, DESCENDING = 0, 1


def build(folder, source, flags=("-O1",)):
    """A library of the emulated kernels, from what is in softmax_loss.cu."""
    source = re.sub(r"#include <cuda_\w+\.h>\n", "", source)
    source = re.sub(r"extern __shared__ uint4 (\w+)\[\];", r"uint4* const \1 = emulator::shared.data();", source)
    launch = r"(\w+(?:<[\w, ]+>)?)<<<([^>]+)>>>\((.*?)\);"
    source, count = re.subn(launch, r"emulator::launch(\2, [&] { \1(\3); });", source, flags=re.DOTALL)
    assert count == 13 and "<<<" not in source
    (folder / "softmax_loss.cpp").write_text(f'#include "emulator.h"\n{source}')
    # A GPU takes nothing that is not aligned, where a CPU does; a distribution's hardened longjmp knows no coroutines.
    checks = ("-fsanitize=alignment", "-fsanitize-undefined-trap-on-error", "-U_FORTIFY_SOURCE")
    files = (folder / "softmax_loss.cpp", HERE / "calls.cpp", HERE / "plans.cpp")
    library = compiled(folder, files, MULTIPROCESSORS, *flags, *checks)
    for function in (library.forward, library.backward, library.loss_and_gradient, library.scale):
        function.restype = ctypes.c_char_p
    return library


def compiled(folder, files, multiprocessors, *flags):
    """A library that shares out pixels for so many multiprocessors."""
    plan = (CSRC / "cuda" / "softmax_loss_plan.h").read_text()
    plan, count = re.subn(r"kMultiprocessors = \d+;", f"kMultiprocessors = {multiprocessors};", plan)
    assert count == 1
    (folder / "cuda").mkdir()
    (folder / "cuda" / "softmax_loss_plan.h").write_text(plan)
    path = folder / "emulated.so"
    warnings = ("-Wall", "-Werror", "-Wno-unknown-pragmas")
    options = ("-std=c++20", "-shared", "-fPIC", *flags, *warnings, f"-I{folder}", f"-I{CSRC}", f"-I{HERE}")
    done = subprocess.run(["g++", *options, *files, "-o", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(path))


@pytest.fixture(scope="session")
def compiler():
    if not shutil.which("g++"):
        pytest.skip("no g++")
    version = subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True).stdout
    if int(version.partition(".")[0]) < 12:
        pytest.skip(f"g++ {version.strip()} has no _Float16")


@pytest.fixture(scope="session")
def gpu(compiler, tmp_path_factory):
    return build(tmp_path_factory.mktemp("cuda"), (CSRC / "cuda" / "softmax_loss.cu").read_text())


@pytest.fixture(scope="session")
def plans(compiler, tmp_path_factory):
    """Of an H100."""
    return compiled(tmp_path_factory.mktemp("cuda"), [HERE / "plans.cpp"], 132)


class Memory:
    """Copies of tensors, and outputs, each between margins: what is read there is NaN, what is written is seen."""

    def __init__(self):
        self.blocks = []

    def empty(self, shape, dtype, channels_last=False, shift=0):
        shape = torch.Size(shape)
        block = torch.full(((shape.numel() + 2 * MARGIN) * dtype.itemsize,), 0xFF, dtype=torch.uint8)
        begin, end = (MARGIN + shift) * dtype.itemsize, (MARGIN - shift) * dtype.itemsize
        self.blocks.append((block, begin, end))
        inner = block[begin:-end].view(dtype)
        if channels_last:
            n, c, h, w = shape
            return inner.view(n, h, w, c).permute(0, 3, 1, 2)
        return inner.view(shape)

    def copy(self, tensor, *where):
        if tensor is None:
            return None
        return self.empty(tensor.shape, tensor.dtype, *where).copy_(tensor)

    def check(self):
        for block, begin, end in self.blocks:
            assert (block[:begin] == 0xFF).all() and (block[-end:] == 0xFF).all(), "written past the end"


def numbers_of(x, channels_last, label=torch.int64, ignore_index=255, reduction=MEAN):
    values = [FLOATS[x.dtype], *x.shape, channels_last, LABELS[label], ignore_index, reduction]
    return (ctypes.c_int64 * 9)(*map(int, values))


def call(function, pointers, numbers, smoothing, order):
    error = function(
        (ctypes.c_void_p * 8)(*(None if p is None else p.data_ptr() for p in pointers)),
        numbers,
        ctypes.c_double(smoothing),
        order,
    )
    assert error is None, error.decode()


def run(
    gpu, x, channels_last, target, options=(None, None, 0.0), reduction=MEAN, ignore_index=255, order=ASCENDING, shift=0
):
    """loss, saved, total weight, first bad label and gradient, with the gradient that the loss was given.

    The logits begin ``shift`` elements after a multiple of 16 bytes.
    """
    dtype = accumulate_dtype(x.dtype)
    grad_output = torch.randn(target.shape if reduction == NONE else (), dtype=dtype)
    memory = Memory()
    given = [memory.copy(x, channels_last, shift), *map(memory.copy, (target, *options[:2]))]
    loss = memory.empty(grad_output.shape, dtype)
    saved = memory.empty((2, *target.shape), dtype)
    total, first_bad = memory.empty((), dtype), memory.empty((), torch.int64)
    numbers = numbers_of(x, channels_last, target.dtype, ignore_index, reduction)
    call(gpu.forward, [*given, loss, saved, total, first_bad], numbers, options[2], order)
    grad = memory.empty(x.shape, x.dtype, channels_last)
    call(gpu.backward, [*given, memory.copy(grad_output), saved, total, grad], numbers, options[2], order)
    together = []
    if reduction != NONE:
        bad = memory.empty((), torch.int64)
        together = [memory.empty((), dtype), memory.empty(x.shape, x.dtype, channels_last)]
        pointers = [*given, together[0], memory.empty((), dtype), bad, together[1]]
        call(gpu.loss_and_gradient, pointers, numbers, options[2], order)
        assert bad == first_bad
    memory.check()
    return (loss, saved, total, first_bad, grad, *together), grad_output


def compare(gpu, x, channels_last, target, options=(None, None, 0.0), reduction=MEAN, ignore_index=255, **rest):
    """All results against the reference in float64."""
    found, grad_output = run(gpu, x, channels_last, target, options, reduction, ignore_index, **rest)
    loss, saved, total, first_bad, grad, *together = found
    dtype = accumulate_dtype(x.dtype)
    tolerance = {"rtol": 1e-5, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    weights, smoothing = [None if t is None else t.double() for t in options[:2]], options[2]

    flat = target.flatten(1)
    exact = (x.double().flatten(2), flat, weights[0], None if weights[1] is None else weights[1].flatten(1))
    expected = reference.softmax_loss(*exact, ignore_index, reduction, smoothing, False, True)
    torch.testing.assert_close(loss.double().flatten(), expected[0].flatten(), equal_nan=True, **tolerance)
    finite = expected[1].isfinite().all(0)
    torch.testing.assert_close(saved.double().flatten(2)[:, finite], expected[1][:, finite], **tolerance)
    bad = (flat.long() != ignore_index) & ((flat.long() < 0) | (flat.long() >= x.shape[1]))
    assert first_bad == (bad.flatten().int().argmax() if bad.any() else torch.iinfo(torch.int64).max)
    if not bad.any():
        torch.testing.assert_close(total.double(), expected[2].double(), **tolerance)

    rest = (ignore_index, reduction, smoothing)
    upstream = grad_output.double().flatten(1) if reduction == NONE else grad_output.double()
    if together:
        torch.testing.assert_close(together[0].double(), expected[0], equal_nan=True, **tolerance)
    if x.dtype.itemsize == 2:
        tolerance = {"rtol": torch.finfo(x.dtype).eps, "atol": 1e-6}
    for gradient, factor in zip((grad, *together[1:]), (upstream, torch.ones((), dtype=torch.float64)), strict=False):
        wanted = reference.softmax_loss_backward(factor, *exact, *expected[1:3], *rest)
        torch.testing.assert_close(gradient.double().flatten(2), wanted, equal_nan=True, **tolerance)


def random(shape, dtype=torch.float32, label=torch.uint8):
    size = (shape[0], *shape[2:])
    target = torch.where(torch.rand(size) < 0.2, 255, torch.randint(min(shape[1], 255), size))
    return (3 * torch.randn(shape, dtype=torch.float64)).to(dtype), target.to(label)


def options_of(name, x):
    dtype = accumulate_dtype(x.dtype)
    weight, pixel_weight = torch.rand(x.shape[1], dtype=dtype), torch.rand(x.shape[0], *x.shape[2:], dtype=dtype)
    choices = {"plain": (None, None, 0.0), "weights": (weight, pixel_weight, 0.0), "smoothing": (None, None, 0.1)}
    return {**choices, "all": (weight, pixel_weight, 0.3)}[name]


@SHARED
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("options", ["plain", "all"])
def test_values(options, dtype, share, gpu):
    shape, channels_last = SHAPES[share]
    x, target = random(shape, dtype, torch.int16)
    for reduction in (NONE, MEAN):
        compare(gpu, x, channels_last, target, options_of(options, x), reduction)


@pytest.mark.parametrize("share", ["packs", "rows", "tiles", "tiles of rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_that_begin_between_16_bytes(dtype, share, gpu):
    shape, channels_last = SHAPES[share]
    x, target = random(shape, dtype)
    compare(gpu, x, channels_last, target, shift=1)


@EACH
@pytest.mark.parametrize("options", ["weights", "smoothing"])
@pytest.mark.parametrize("reduction", range(len(REDUCTIONS)))
def test_reductions(reduction, options, share, gpu):
    shape, channels_last = SMALL[share](5)
    x, target = random(shape)
    compare(gpu, x, channels_last, target, options_of(options, x), reduction)


@SHARED
def test_same_bits_in_every_order(share, gpu):
    """In which order threads and blocks run is the GPU's to choose."""
    shape, channels_last = SHAPES[share]
    x, target = random(shape, label=torch.int32)
    target[-1, -1, -1] = -1
    for reduction in (NONE, MEAN):
        results = []
        for order in (ASCENDING, DESCENDING, 2, 3):
            torch.manual_seed(0)
            results.append(run(gpu, x, channels_last, target, options_of("all", x), reduction, order=order)[0])
        for found in results[1:]:
            assert all(
                torch.equal(a.view(torch.uint8), b.view(torch.uint8))
                for a, b in zip(map(flat, found), map(flat, results[0]), strict=True)
            )


def flat(x):
    return x.flatten().contiguous()


@EACH
@pytest.mark.parametrize("classes", [1, 2, 3, 4, 7, 8, 9, 21, 64, 150, 1000])
def test_class_counts(classes, share, gpu):
    shape, channels_last = SMALL[share](classes)
    x, target = random(shape, label=torch.int64)
    compare(gpu, x, channels_last, target, options_of("all", x))


@EACH
@pytest.mark.parametrize("label", LABELS)
def test_bad_labels(label, share, gpu):
    shape, channels_last = SMALL[share](5)
    x, target = random(shape, label=label)
    target[1, 1, 1], target[-1, 0, 3] = x.shape[1], 9
    for reduction in (NONE, SUM):
        compare(gpu, x, channels_last, target, (None, None, 0.1), reduction)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, 256 + 3, 1 << 40])
def test_labels_are_compared_as_int64(ignore_index, channels_last, gpu):
    x = torch.randn(1, 200, 1, 4)
    compare(gpu, x, channels_last, torch.tensor([[[156, 3, 0, 199]]], dtype=torch.uint8), ignore_index=ignore_index)
    # The last two are bad, and would be classes in 32 bits or less.
    wrapped = torch.tensor([[[156, 3, (1 << 32) + 5, -1]]])
    compare(gpu, x, channels_last, wrapped, ignore_index=ignore_index, reduction=NONE)


@EACH
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_not_finite(value, share, gpu):
    shape, channels_last = SMALL[share](6)
    x, target = random(shape)
    target[target >= 4] = 255
    x[:, 4:] = value
    x[0, :, 0, :2] = value
    compare(gpu, x, channels_last, target, reduction=NONE)


@EACH
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_class_weights_that_are_not_finite(value, share, gpu):
    """Whatever the pixels that count have of them, those that are ignored have no gradient."""
    shape, channels_last = SMALL[share](5)
    x, target = random(shape)
    weight = torch.ones(5)
    weight[0] = value
    found, _ = run(gpu, x, channels_last, target, (weight, None, 0.1))
    for gradient in (found[4], found[6]):
        assert (gradient.movedim(1, -1)[target == 255] == 0).all()


@EACH
def test_large_logits_and_nothing_that_counts(share, gpu):
    shape, channels_last = SMALL[share](5)
    x, target = random(shape)
    compare(gpu, x.sign() * 1e4 + x, channels_last, target, (None, None, 0.1), SUM)
    compare(gpu, x, channels_last, torch.full_like(target, 255))
    compare(gpu, x, channels_last, target, (torch.zeros(5), None, 0.0))


@pytest.mark.parametrize("shape", [(0, 5, 3, 4), (2, 5, 0, 4)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_no_pixels(channels_last, shape, gpu):
    x, target = random(shape)
    (loss, _, total, _, _, together, _), _ = run(gpu, x, channels_last, target)
    assert loss == 0 and total == 0 and together == 0


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("classes", [20, 21])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_same_bits_in_every_batch(smoothing, classes, channels_last, gpu):
    """Which of the ways to share out pixels is taken depends on their number."""
    x, target = random((6, classes, 4, 6))
    results = []
    for images in (slice(0, 6), slice(5, 6)):
        found, _ = run(gpu, x[images], channels_last, target[images], (None, None, smoothing), NONE)
        results.append(torch.cat((found[0][-1:], found[1][:, -1])))
    assert plan(gpu, (6, classes, 4, 6))[1] != plan(gpu, (1, classes, 4, 6))[1]
    assert torch.equal(*results)


# What a GPU may do and a kernel must not count on: {what is right: (the same with a bug where BUG is true, the shares
# that show it)}.
BUGS = {
    "__syncthreads();\n  if (threadIdx.x >= kWarp)": (
        "if (!BUG) __syncthreads();\n  if (threadIdx.x >= kWarp)",
        ["pixels"],
    ),
    "__pipeline_wait_prior(0);\n  __syncthreads();": (
        "__pipeline_wait_prior(0);\n  if (!BUG) __syncthreads();",
        ["rows"],
    ),
    "__pipeline_commit();\n  __pipeline_wait_prior(0);": (
        "__pipeline_commit();\n  if (!BUG) __pipeline_wait_prior(0);",
        ["rows"],
    ),
    "class_sum(w));\n  __syncthreads();": ("class_sum(w));\n  if (!BUG) __syncthreads();", ["rows"]),
    "__pipeline_wait_prior(0);\n    __syncthreads();": (
        "__pipeline_wait_prior(0);\n    if (!BUG) __syncthreads();",
        ["packs", "tiles"],
    ),
    "own_pixels, common));\n    __syncthreads();": (
        "own_pixels, common));\n    if (!BUG) __syncthreads();",
        ["packs", "tiles"],
    ),
    "    part.fill(own);\n": ("    if (!BUG) part.fill(own);\n", ["packs", "tiles"]),
    "    }\n    __syncthreads();\n    put(": ("    }\n    if (!BUG) __syncthreads();\n    put(", ["rows"]),
    "rows);\n    __syncthreads();\n  }": ("rows);\n    if (!BUG) __syncthreads();\n  }", ["tiles of rows"]),
    "__shfl_xor_sync(~0u, sums.weight, distance)": (
        "__shfl_xor_sync(BUG ? 1u : ~0u, sums.weight, distance)",
        ["pixels"],
    ),
    "const int lane = threadIdx.x % kWarp;": (
        "const int lane = threadIdx.x % kWarp; if (BUG && lane) return;",
        ["lanes"],
    ),
}


@pytest.fixture(scope="session")
def broken(compiler, tmp_path_factory):
    """With all of these bugs, of which ``bug`` is the number of the one that is there."""
    source = (CSRC / "cuda" / "softmax_loss.cu").read_text()
    for number, (right, (wrong, _)) in enumerate(BUGS.items()):
        assert source.count(right) == 1
        source = source.replace(right, wrong.replace("BUG", f"(bug == {number})"))
    source = f'extern "C" int bug;\nint bug = -1;\n{source}'
    return build(tmp_path_factory.mktemp("cuda"), source, ("-O0",))


@pytest.mark.parametrize("right", [None, *BUGS])
def test_what_the_emulator_is_for(right, broken):
    bug = ctypes.c_int.in_dll(broken, "bug")
    bug.value = -1 if right is None else list(BUGS).index(right)
    for share in SHAPES if right is None else BUGS[right][1]:
        with contextlib.nullcontext() if right is None else pytest.raises(AssertionError):
            test_same_bits_in_every_order(share, broken)
            test_values("all", torch.float32, share, broken)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("count", [0, 1, 7, 64, 20_003])
def test_scale_gradient(count, dtype, gpu):
    x, factor = torch.randn(count).to(dtype), torch.randn((), dtype=accumulate_dtype(dtype))
    for by in (factor, torch.ones_like(factor)):
        memory = Memory()
        gradient, given = memory.copy(x), memory.copy(by)
        error = gpu.scale(
            *map(ctypes.c_void_p, (gradient.data_ptr(), count)), FLOATS[dtype], ctypes.c_void_p(given.data_ptr())
        )
        assert error is None
        memory.check()
        assert torch.equal(gradient, (x * by).to(dtype))


def plan(gpu, shape, dtype=torch.float32, channels_last=False, address=0):
    """share, pixels a thread, threads a block, shared memory, images, pixels, tiles, blocks"""
    out = (ctypes.c_int64 * 8)()
    gpu.plan(numbers_of(torch.empty(shape, dtype=dtype, device="meta"), channels_last), ctypes.c_int64(address), out)
    return list(out)


def test_every_share_is_tested(gpu):
    found = [plan(gpu, shape, channels_last=channels_last) for shape, channels_last in SHAPES.values()]
    assert [(share, pack, threads) for share, pack, threads, *_ in found] == [
        (PLANES, 4, 128),
        (PLANES, 1, 128),
        (PLANES, 1, 32),
        (ROWS, 1, 128),
        (ROWS, 1, 32),
        (LANES, 1, 128),
        (PLANES, 4, 128),
        (ROWS, 1, 128),
    ]
    for classes in (1, 5, 1000):
        found = [plan(gpu, shape, channels_last=last)[:2] for shape, last in (make(classes) for make in SMALL.values())]
        assert found == [[PLANES, 4], [PLANES, 1], [LANES if classes == 1000 else ROWS, 1]]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(1, 21, 500, 500), (1, 150, 128, 128), (1, 19, 1024, 2048), (16, 150, 512, 512)])
def test_plans_fill_a_gpu_of_132_multiprocessors(shape, channels_last, dtype, plans):
    share, pack, threads, shared, images, pixels, tiles, blocks = plan(plans, shape, dtype, channels_last)
    assert images * pixels == shape[0] * shape[2] * shape[3] and blocks == images * tiles
    a_thread = 1 / 32 if share == LANES else pack
    assert (tiles - 1) * threads * a_thread < pixels <= tiles * threads * a_thread
    assert blocks >= 2 * 132 and threads % 32 == 0
    assert shared <= 32 << 10
    if not channels_last and shape[3] > 500:
        assert pack == 16 // dtype.itemsize


@pytest.mark.parametrize("size", [2, 4, 8])
def test_rows_are_read_from_all_banks(size, plans):
    """Without conflicts; but for odd numbers of classes in half precision, which two pixels may have in a bank.

    Wherever in an image of any size a warp begins, as long as it does not reach into the next one.
    """
    for classes in range(1, 257):
        bound = 2 if size == 2 and classes % 2 else 1
        for image_pixels, first in ((1 << 20, 0), (1 << 20, 3 << 20), (1000, 1000 * 7), (1000, 1024)):
            found = plans.conflicts(size, classes, ctypes.c_int64(image_pixels), ctypes.c_int64(first))
            assert 1 <= found <= bound, f"{classes} classes: {found} words of a bank"


def test_plans(plans):
    large = (16, 19, 512, 512)
    assert plan(plans, large)[:3] == [PLANES, 4, 128]
    assert plan(plans, large, address=8)[1] == 1  # not aligned
    assert plan(plans, (16, 19, 513, 513))[1] == 1
    assert plan(plans, large, torch.bfloat16, channels_last=True)[:4] == [ROWS, 1, 128, 128 * 19 * 2]
    assert plan(plans, (16, 150, 512, 512), channels_last=True)[:4] == [ROWS, 1, 32, 32 * 150 * 4]
    assert plan(plans, (16, 1000, 64, 64), channels_last=True)[0] == LANES
    assert plan(plans, (4096, 21, 1, 1))[0] == ROWS  # one pixel an image
    for shape, channels_last in (((0, 21, 8, 8), False), ((2, 21, 0, 8), False), ((0, 21, 8, 8), True)):
        assert plan(plans, shape, channels_last=channels_last)[-1] == 0
    assert plan(plans, (4, 3, 1 << 17, 1 << 17))[-1] == (1 << 36) // 512  # 2^36 pixels


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("classes", "dtype", "pack", "threads"),
    [
        (19, torch.float32, 1, 128),
        (19, torch.bfloat16, 2, 128),
        (150, torch.float32, 1, 64),
        (150, torch.bfloat16, 2, 64),
        (500, torch.bfloat16, 2, 32),
    ],
)
def test_plans_of_both_in_one(classes, dtype, pack, threads, channels_last, plans):
    """In an H100's 227 KiB of shared memory five blocks wait or compute."""
    out = (ctypes.c_int64 * 7)()
    numbers = numbers_of(torch.empty((16, classes, 512, 512), dtype=dtype, device="meta"), channels_last)
    plans.tiles(numbers, ctypes.c_int64(0), ctypes.c_int64(227 << 10), out)
    share, fit, found, of_block, shared, tiles, blocks = out
    assert (share, fit) == (ROWS if channels_last else PLANES, 1) and blocks == 24 * 132
    if channels_last:
        assert found == 1 and of_block >= threads
    else:
        assert (found, of_block) == (pack, threads)
        classes = (classes + 3) // 4 * 4
    assert shared == classes * dtype.itemsize * found * of_block and (of_block == 32 or 5 * shared <= 227 << 10)
    pixels = (16 if channels_last else 1) * 512 * 512
    assert (tiles - 1) * of_block * found < pixels <= tiles * of_block * found
