"""What the tests of the operations share: grids, layouts, PyTorch's own answers, and how near to them to come."""

import random
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from fcn_fast import BilinearGrid, reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALF = (torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced")
REDUCTIONS = ("none", "mean", "sum", "full", "batch")


@dataclass(frozen=True)
class Sampling:
    """A grid, and how PyTorch samples it: F.interpolate's arguments, or those of BilinearGrid.deconvolution.

    PyTorch has nothing in place of a rule of its own kind; there the reference stands in.
    """

    in_size: tuple
    interpolate: dict = field(default_factory=dict)
    deconvolution: dict = field(default_factory=dict)
    rule: BilinearGrid | None = None

    @property
    def grid(self):
        if self.rule:
            return self.rule
        if self.deconvolution:
            return BilinearGrid.deconvolution(self.in_size, **self.deconvolution)
        return BilinearGrid.interpolate(self.in_size, **self.interpolate)

    @property
    def options(self):
        """The keyword arguments that say this to an operation."""
        return self.interpolate or {"grid": self.grid}

    def torch(self, x):
        if self.interpolate:
            return F.interpolate(x, mode="bilinear", **self.interpolate)
        if self.rule:
            return reference.bilinear_upsample(x, self.rule.numbers())
        stride, crop = self.deconvolution["stride"], self.deconvolution.get("crop", 0)
        kernel = self.deconvolution.get("kernel", 2 * stride - stride % 2)
        top, left = crop if isinstance(crop, tuple) else (crop, crop)
        weight = bilinear_filler(kernel).to(x).view(1, 1, kernel, kernel)
        # Every map by itself: as groups of one convolution this is slow.
        full = F.conv_transpose2d(x.flatten(0, 1).unsqueeze(1), weight, stride=stride)
        full = full.view(*x.shape[:2], *full.shape[2:])
        height, width = self.deconvolution.get("size", (full.shape[2] - top, full.shape[3] - left))
        return full[:, :, top : top + height, left : left + width]

    def __str__(self):
        arguments = (self.interpolate or self.deconvolution or vars(self.rule)).items()
        return "x".join(map(str, self.in_size)) + "-" + ",".join(f"{k}={v}" for k, v in arguments).replace(" ", "")


def bilinear_filler(kernel):
    """Caffe's: w(x) = 1 - |x / f - c| with f = ceil(k / 2), c = (k - 1) / (2 f), along both axes."""
    f = (kernel + 1) // 2
    w = 1 - (torch.arange(kernel, dtype=torch.float64) / f - (kernel - 1) / (2 * f)).abs()
    return w[:, None] * w


def interpolation(in_size, **options):
    return Sampling(in_size, interpolate=options)


def deconvolution(in_size, stride, **options):
    return Sampling(in_size, deconvolution={"stride": stride, **options})


SAMPLINGS = (
    interpolation((4, 5), size=(32, 40)),
    interpolation((7, 9), size=(20, 31)),
    interpolation((16, 17), size=(5, 6)),
    interpolation((6, 8), size=(6, 8)),
    interpolation((5, 1), size=(3, 8)),
    interpolation((1, 1), size=(7, 5)),
    interpolation((1, 1), size=(1, 1)),
    interpolation((5, 7), size=(17, 9), align_corners=True),
    interpolation((17, 9), size=(5, 7), align_corners=True),
    interpolation((4, 4), size=(1, 6), align_corners=True),
    interpolation((1, 1), size=(4, 3), align_corners=True),
    interpolation((3, 70), scale_factor=2),
    interpolation((9, 8), scale_factor=2.5),
    interpolation((7, 11), scale_factor=(1.3, 3.7)),
    interpolation((13, 12), scale_factor=0.6),
    interpolation((4, 12), scale_factor=(1.2, 1.9)),
    interpolation((5, 6), scale_factor=3, align_corners=True),
    deconvolution((5, 7), 2, kernel=4),
    deconvolution((16, 16), 2, kernel=4, crop=5, size=(25, 24)),
    deconvolution((7, 6), 8, kernel=16, crop=(31, 13), size=(33, 40)),
    deconvolution((4, 5), 16, kernel=32, crop=27, size=(50, 43)),
    deconvolution((2, 2), 32, kernel=64, crop=19, size=(70, 64)),
    deconvolution((3, 2), 16, kernel=31, crop=9),
    deconvolution((6, 5), 3, kernel=5, crop=(1, 2)),
    deconvolution((1, 1), 4),
    deconvolution((4, 3), 1),
)
# Where the grid is not the point: one of each kind, with edges on every side.
CLAMPED = SAMPLINGS[1]
ZERO = SAMPLINGS[23]
FEW = (SAMPLINGS[0], CLAMPED, SAMPLINGS[7], SAMPLINGS[19], ZERO)


def random_samplings(seed, count):
    pick = random.Random(seed)
    for _ in range(count):
        yield random_sampling(pick, ("size", "scale_factor", "deconvolution"))


def random_sampling(pick, kinds):
    """A grid of one of these kinds, drawn by a random.Random."""
    in_size = pick.randint(1, 12), pick.randint(1, 40)
    kind = pick.choice(kinds)
    if kind == "size":
        size = pick.randint(1, 40), pick.randint(1, 80)
        return interpolation(in_size, size=size, align_corners=pick.random() < 0.4)
    if kind == "scale_factor":
        factor = tuple(pick.uniform(1 / n, 5) for n in in_size)
        return interpolation(in_size, scale_factor=factor)
    if kind == "deconvolution":
        stride = pick.randint(1, 9)
        kernel = 2 * stride - pick.randint(0, 1)
        full = [stride * (n - 1) + kernel for n in in_size]
        crop = tuple(pick.randint(0, n - 1) for n in full)
        size = tuple(pick.randint(1, n - c) for n, c in zip(full, crop, strict=True))
        return deconvolution(in_size, stride, kernel=kernel, crop=crop, size=size)
    size, step, unit = ([pick.randint(low, high) for _ in in_size] for low, high in ((1, 50), (0, 9), (1, 12)))
    origin = [pick.randint(-6 * u - s * n // 2, u * i) for s, n, u, i in zip(step, size, unit, in_size, strict=True)]
    rule = (tuple(numbers) for numbers in (size, step, origin, unit))
    return Sampling(in_size, rule=BilinearGrid(in_size, *rule, pick.choice(("clamp", "zero"))))


def randn(*shape, dtype=torch.float32, device="cpu", layout="contiguous", scale=1):
    return laid_out((scale * torch.randn(shape, dtype=torch.float64)).to(device, dtype), layout)


def laid_out(x, layout):
    """The same values under other strides; expanded, those of the first image for all of the batch."""
    if layout == "contiguous":
        return x.contiguous()
    if layout == "expanded":
        return x[:1].contiguous().expand_as(x)
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.mT.contiguous().mT
    wide = x.new_full((*x.shape[:-2], x.shape[-2] + 3, 2 * x.shape[-1] + 1), float("nan"))
    wide[..., 1:-2, 1::2] = x
    return wide[..., 1:-2, 1::2]


def has_layout(result, layout):
    """Whether result has the memory format that an input of this layout asks for: channels_last, or else contiguous."""
    expected = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return result.is_contiguous(memory_format=expected)


def with_grad(function, inputs, grad_output):
    """function(*inputs), and the gradient of each input, in the strides that backward gives it."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    output = function(*inputs)
    return output.detach(), *torch.autograd.grad(output, inputs, grad_output)


def exactly(function, inputs, grad_output):
    """with_grad in float64 on the CPU."""
    return with_grad(function, [x.double().cpu() for x in inputs], grad_output.double().cpu())


def as_pytorch(function, inputs, grad_output):
    """with_grad at the inputs' own dtype on the CPU: how near PyTorch comes."""
    dtype = inputs[0].dtype
    return with_grad(function, [x.cpu() for x in inputs], grad_output.cpu().to(dtype))


def assert_near(actual, exact, plain=None, size=None, roundings=1):
    """actual is within 1e-6 of exact, relative to the largest (float64: 1e-12; half precision: half a last place).

    Where PyTorch's own answer at this dtype, plain, is further off than that, actual may be twice as far as it; and off
    by eight roundings of what it is a sum of, size. Half precision may be rounded more than once.
    """
    assert actual.shape == exact.shape
    if not exact.numel():
        return
    half_a_place = roundings * torch.finfo(actual.dtype).eps / 2
    relative = {torch.float32: 1e-6, torch.float64: 1e-12}.get(actual.dtype, half_a_place)
    allowed = relative * exact.abs().max().item()
    if plain is not None:
        allowed = max(allowed, 2 * (plain.double() - exact).abs().max().item())
    if size is not None:
        eps = torch.finfo(torch.promote_types(actual.dtype, torch.float32)).eps
        allowed = max(allowed, 8 * eps * size.max().item())
    error = (actual.double().cpu() - exact).abs().max().item()
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"


def assert_same(actual, expected):
    """The same bits; on a GPU, where another kernel or another compilation made them, to a few roundings."""
    rounding = 8 * torch.finfo(actual.dtype).eps if actual.is_cuda and actual.is_floating_point() else 0
    largest = expected.nan_to_num(0, 0, 0).abs().max().item() if rounding and expected.numel() else 0
    torch.testing.assert_close(actual, expected, rtol=rounding, atol=rounding * largest, equal_nan=True)


def assert_all_near(actual, exact, plain, sizes):
    for each in zip(actual, exact, plain, sizes, strict=True):
        assert_near(*each)


def assert_loss_near(actual, function, logits, grad_output, size=None, at_once=False):
    """A loss and its gradient against function in float64; the loss is float32 at least, whatever the logits are.

    at_once: whether a GPU makes the gradient with a reduced loss, and scales it when that is differentiated, so that it
    is rounded twice in bfloat16.
    """
    (loss, grad), dtype = actual, torch.promote_types(logits.dtype, torch.float32)
    assert loss.dtype == dtype and grad.dtype == logits.dtype
    exact = exactly(function, [logits], grad_output)
    assert_near(loss, exact[0], as_pytorch(function, [logits.to(dtype)], grad_output)[0])
    twice = at_once and grad.is_cuda and grad.dtype == torch.bfloat16 and not grad_output.dim()
    assert_near(grad, exact[1], as_pytorch(function, [logits], grad_output)[1], size, 2 if twice else 1)


def labels(*shape, classes, dtype=torch.int64, ignore_index=255, device="cpu"):
    """Random labels, a fifth of them ignored."""
    target = torch.randint(classes, shape).to(dtype)
    return torch.where(torch.rand(shape) < 0.2, ignore_index, target).to(device, dtype)


def torch_loss(logits, target, weight=None, ignore_index=255, reduction="mean", label_smoothing=0.0, pixel_weight=None):
    """F.cross_entropy, with the reductions and the pixel weights that it lacks."""
    target = target.to(logits.device).long()
    weight = None if weight is None else weight.to(logits)
    options = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
    if reduction == "mean" and pixel_weight is None:
        return F.cross_entropy(logits, target, **options)
    loss = F.cross_entropy(logits, target, reduction="none", **options)
    if pixel_weight is not None:
        loss = loss * pixel_weight.to(loss)
    if reduction == "none":
        return loss
    if reduction == "mean":
        valid = target != ignore_index
        total = torch.ones(logits.shape[1]).to(logits) if weight is None else weight
        return loss.sum() / (total[target[valid]] * pixel_weight.to(loss)[valid]).sum()
    return loss.sum() / {"sum": 1, "full": target.numel(), "batch": target.shape[0]}[reduction]


def loss_options(name, target, classes):
    """The options of both losses that are worth a test, by name."""
    weight = torch.rand(classes, dtype=torch.float64, device=target.device) + 0.1
    pixel_weight = torch.rand(target.shape, dtype=torch.float64, device=target.device)
    given = {
        "plain": {},
        "weight": {"weight": weight},
        "pixel_weight": {"pixel_weight": pixel_weight},
        "label_smoothing": {"label_smoothing": 0.1},
        "all": {"weight": weight, "pixel_weight": pixel_weight, "label_smoothing": 0.3},
        "ignore_index=-100": {"ignore_index": -100},
        "ignore_index=0": {"ignore_index": 0},
    }[name]
    return {"ignore_index": 255, **given} if classes > 255 else given  # which is then a class, and has to be asked for


LOSS_OPTIONS = ("plain", "weight", "pixel_weight", "label_smoothing", "all", "ignore_index=-100", "ignore_index=0")


def loss_grad_output(target, reduction):
    shape = target.shape if reduction == "none" else ()
    return torch.randn(shape, dtype=torch.float64).to(target.device)


def same_bits(function, set_num_threads):
    """Whether function() gives the same tensors three times over, and on one thread as on two."""
    set_num_threads(2)
    first = function()
    for threads in (2, 2, 1):
        set_num_threads(threads)
        for a, b in zip(first, function(), strict=True):
            if not torch.equal(a, b):
                return False
    return True
