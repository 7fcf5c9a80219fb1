"""The sampling rule that every operation shares."""

import math
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real

import torch

__all__ = ["BilinearGrid"]

# Scale factors arrive as floats. The nearest fraction with a denominator up to this is the simple one that was meant
# (0.7 is 7/10), never further off than 1e-9, and keeps step * dst + origin far inside 64 bits.
_MAX_DENOMINATOR = 1 << 30
# The kernels keep tables of an axis's pixels in 32 bits; how many pixels there are in all has no limit of its own.
_MAX_SIZE = (1 << 31) - 2


@dataclass(frozen=True)
class BilinearGrid:
    """Where the pixels of an output lie in a coarse map, one affine rule per axis, in whole numbers.

    Output pixel ``dst`` samples the coarse map at ``src = (step * dst + origin) / unit``: ``index = floor(src)`` and
    ``weight = remainder / unit`` are exact at every size. The two taps are ``index`` (weight ``1 - weight``) and
    ``index + 1`` (weight ``weight``); outside the map a tap reads the nearest edge pixel (``border="clamp"``, as
    ``torch.nn.functional.interpolate``) or zero (``border="zero"``, as Caffe's Deconvolution). Every tuple is
    (vertical, horizontal), in pixels.

    Build one with :meth:`interpolate` or :meth:`deconvolution`; two grids are equal when their numbers are.

    Args:
        in_size: height and width of the coarse map.
        size: height and width of the output.
        step, origin, unit: the rule's whole numbers; ``step >= 0``, ``unit > 0``.
        border: ``"clamp"`` or ``"zero"``.

    Raises:
        ValueError: a size below 1 or beyond 31 bits, a negative step, a unit below 1, numbers too large for 64 bits,
            another border.
    """

    in_size: tuple[int, int]
    size: tuple[int, int]
    step: tuple[int, int]
    origin: tuple[int, int]
    unit: tuple[int, int]
    border: str

    def __post_init__(self):
        if self.border not in ("clamp", "zero"):
            raise ValueError(f"border: expected 'clamp' or 'zero', got {self.border!r}")
        for axis in (0, 1):
            for name, size in (("in_size", self.in_size), ("size", self.size)):
                if size[axis] < 1:
                    raise ValueError(f"{name}: expected at least 1x1, got {_by(size)}")
                if size[axis] > _MAX_SIZE:
                    raise ValueError(f"{name}: expected at most {_MAX_SIZE} pixels along an axis, got {_by(size)}")
            if self.step[axis] < 0:
                raise ValueError(f"step: expected numbers >= 0, got {self.step}")
            if self.unit[axis] < 1:
                raise ValueError(f"unit: expected numbers >= 1, got {self.unit}")
            if self.step[axis] * self.size[axis] + abs(self.origin[axis]) + self.unit[axis] >= 1 << 62:
                raise ValueError(
                    "step, origin, unit: expected step * size + |origin| + unit below 2**62, "
                    f"got {self.step}, {self.origin}, {self.unit} for size {_by(self.size)}"
                )

    @classmethod
    def interpolate(cls, in_size, size=None, scale_factor=None, align_corners=False):
        """The grid of ``torch.nn.functional.interpolate(mode="bilinear")``.

        Args:
            in_size: (height, width) of the coarse map.
            size: output size, an int or (height, width).
            scale_factor: multiplier, a number or (vertical, horizontal). Coordinates follow the factor itself, not the
                ratio of the sizes, and the size is rounded down, as F.interpolate does with
                ``recompute_scale_factor=None``. With ``align_corners=True`` it only determines the size.
            align_corners: align the centres of the corner pixels instead of their outer edges.

        Raises:
            ValueError: both or neither of size and scale_factor, or a value of them that is not positive.
        """
        in_size = _pair("in_size", in_size)
        if (size is None) == (scale_factor is None):
            raise ValueError(
                f"size, scale_factor: expected exactly one of them, got size={size}, scale_factor={scale_factor}"
            )
        if size is not None:
            size = _pair("size", size)
            # src = (dst + 1/2) * in / out - 1/2
            step = (2 * in_size[0], 2 * in_size[1])
            origin = (in_size[0] - size[0], in_size[1] - size[1])
            unit = (2 * size[0], 2 * size[1])
        else:
            factors = scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor, scale_factor)
            if len(factors) != 2 or not all(_is_real(f) and 0 < f < float("inf") for f in factors):
                raise ValueError(f"scale_factor: expected a positive number or two, got {scale_factor}")
            # Not int(), which would fix a symbolic size for good, nor floor(), which an exported program cannot save.
            size = (math.trunc(in_size[0] * float(factors[0])), math.trunc(in_size[1] * float(factors[1])))
            # src = (dst + 1/2) / factor - 1/2, the factor being p / q; F.interpolate copies along an axis that keeps
            # its size, whatever the factor.
            p, q = zip(*((1, 1) if size[i] == in_size[i] else _as_ratio(factors[i]) for i in (0, 1)), strict=True)
            step = (2 * q[0], 2 * q[1])
            origin = (q[0] - p[0], q[1] - p[1])
            unit = (2 * p[0], 2 * p[1])
        if align_corners:
            step = tuple(0 if size[i] == 1 else in_size[i] - 1 for i in (0, 1))
            origin = (0, 0)
            unit = tuple(1 if size[i] == 1 else size[i] - 1 for i in (0, 1))
        return cls(in_size, size, step, origin, unit, "clamp")

    @classmethod
    def deconvolution(cls, in_size, stride, *, kernel=None, crop=0, size=None):
        """The grid of ``conv_transpose2d`` with Caffe's bilinear filler, padding 0, cropped.

        Args:
            in_size: (height, width) of the coarse map.
            stride: upsampling factor, an int.
            kernel: filter size; ``2 * stride - stride % 2`` unless given. ``ceil(kernel / 2)`` must be the stride.
            crop: output pixels cut off at the top and left, an int or (top, left): Caffe's Crop offset.
            size: output size, an int or (height, width); all that is left after the crop unless given.

        Raises:
            ValueError: a kernel that is not a bilinear filter of this stride, a negative crop, or a crop and size that
                do not fit in the deconvolution's output ``stride * (in_size - 1) + kernel``.
        """
        in_size = _pair("in_size", in_size)
        if not isinstance(stride, int) or stride < 1:
            raise ValueError(f"stride: expected an int >= 1, got {stride!r}")
        if kernel is None:
            kernel = 2 * stride - stride % 2
        if not isinstance(kernel, int) or (kernel + 1) // 2 != stride:
            raise ValueError(
                f"kernel: expected {2 * stride - 1} or {2 * stride} (ceil(kernel / 2) == stride) for stride {stride}, "
                f"got {kernel!r}"
            )
        crop = _pair("crop", crop)
        full = (stride * (in_size[0] - 1) + kernel, stride * (in_size[1] - 1) + kernel)
        size = (full[0] - crop[0], full[1] - crop[1]) if size is None else _pair("size", size)
        if min(crop) < 0 or any(crop[i] + size[i] > full[i] for i in (0, 1)):
            raise ValueError(
                f"crop, size: expected a window inside the deconvolution's {_by(full)} output, "
                f"got {_by(size)} at {crop[0]},{crop[1]}"
            )
        origin = (2 * crop[0] + 1 - kernel, 2 * crop[1] + 1 - kernel)
        return cls(in_size, size, (2, 2), origin, (2 * stride, 2 * stride), "zero")

    def numbers(self):
        """The rule as the operators take it: size, step, origin and unit, each twice, and border (1 for zero)."""
        return [*self.size, *self.step, *self.origin, *self.unit, int(self.border == "zero")]

    @classmethod
    def from_numbers(cls, in_size, numbers):
        """The grid whose :meth:`numbers` these are, over a coarse map of ``in_size``."""
        height, width, *rule, border = numbers
        return cls(
            tuple(in_size),
            (height, width),
            tuple(rule[0:2]),
            tuple(rule[2:4]),
            tuple(rule[4:6]),
            ("clamp", "zero")[border],
        )


def _pair(name, value):
    """``value`` as (vertical, horizontal); ints stand for both."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if torch.jit.is_tracing():  # torch.jit.trace gives sizes as tensors, and keeps what it makes of them
        pair = tuple(int(n) if isinstance(n, torch.Tensor) else n for n in pair)
    if len(pair) != 2 or not (_is_whole(pair[0]) and _is_whole(pair[1])):
        raise ValueError(f"{name}: expected an int or two ints, got {value!r}")
    return pair


# Symbolic sizes of torch.compile are no Integral. What is usual stands first: the abstract ones take ten times as long.
def _is_whole(value):
    return isinstance(value, (int, Integral, torch.SymInt)) and not isinstance(value, bool)


def _is_real(value):
    return isinstance(value, (float, int, Real, torch.SymInt, torch.SymFloat)) and not isinstance(value, bool)


def _as_ratio(factor):
    exact = factor if isinstance(factor, (int, Fraction)) else float(factor)
    if exact == int(exact):
        return int(exact), 1  # as below, in a tenth of the time
    ratio = Fraction(exact).limit_denominator(_MAX_DENOMINATOR)
    return (ratio.numerator or 1), ratio.denominator


def _by(size):
    return f"{size[0]}x{size[1]}"
