"""The published nets (shelhamer/fcn.berkeleyvision.org): layers, geometry, heads and inputs of each, as data."""

from dataclasses import dataclass, field

from fcn_fast.grid import BilinearGrid

__all__ = ["ALEXNET", "VARIANTS", "VGG16", "Architecture", "ConvLayer", "Fusion", "Norm", "Pool", "Variant"]


@dataclass(frozen=True)
class ConvLayer:
    """A convolution with a ReLU; channels at width 1."""

    name: str
    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    groups: int = 1


@dataclass(frozen=True)
class Pool:
    """A max-pool of stride 2 that rounds its size up."""

    kernel: int = 2


@dataclass(frozen=True)
class Norm:
    """Caffe's LRN(5, 1e-4, 0.75) across channels."""


@dataclass(frozen=True)
class Fusion:
    """How scores return to full resolution.

    Args:
        names: of the deconvolutions, in order; all but the last have stride 2 and kernel 4, and fuse a skip.
        stride, kernel: of the last deconvolution.
        skip_crops: Crop offset of each fused skip, score_pool4 first.
        crop: offset of the last Crop, which cuts the scores to the image.
        border: ``"zero"``, as the published nets, or ``"clamp"``: lean padding, where the half-pixel grids of all
            maps start at the same corner (the crops are 0) and a constant score stays constant up to the border.
    """

    names: tuple[str, ...]
    stride: int
    kernel: int
    skip_crops: tuple[int, ...]
    crop: int
    border: str = "zero"

    def skip_grid(self, in_size, skip_size):
        """The grid of a fusion: twice the size of the coarse map of ``in_size``, in pixels of the cropped skip."""
        if self.border == "zero":
            return BilinearGrid.deconvolution(in_size, 2)
        return _half_pixel(in_size, skip_size, 2)

    def last_grid(self, in_size, size):
        """The grid from the fused scores of ``in_size`` to an image of ``size``."""
        if self.border == "zero":
            return BilinearGrid.deconvolution(in_size, self.stride, kernel=self.kernel, crop=self.crop, size=size)
        return _half_pixel(in_size, size, self.stride)

    def lean(self):
        """The same fusion for maps whose grids start at the image's corner."""
        return Fusion(self.names, self.stride, self.kernel, (0,) * len(self.skip_crops), 0, "clamp")


def _half_pixel(in_size, size, stride):
    """F.interpolate by a whole factor, cut at the bottom and right to ``size``."""
    return BilinearGrid(tuple(in_size), tuple(size), (2, 2), (1 - stride,) * 2, (2 * stride,) * 2, "clamp")


@dataclass(frozen=True)
class Architecture:
    """A classification net made fully convolutional.

    Args:
        stages: the layers of stages 1, 2 and 3 up to the last pool; the first two end at pool3 and pool4 of VGG-16.
        fc6: kernel of fc6.
        fusions: {stride of the finest scores: Fusion}.
        lean: whether the layers centre their outputs so that ``padding="lean"`` has a grid.
    """

    stages: tuple[tuple[ConvLayer | Pool | Norm, ...], ...]
    fc6: int
    fusions: dict[int, Fusion]
    lean: bool


def _vgg_block(number, channels, convs):
    padding = (100 if number == 1 else 1,) + (1,) * (convs - 1)
    return (*(ConvLayer(f"conv{number}_{i + 1}", channels, padding=padding[i]) for i in range(convs)), Pool())


VGG16 = Architecture(
    stages=(
        _vgg_block(1, 64, 2) + _vgg_block(2, 128, 2) + _vgg_block(3, 256, 3),
        _vgg_block(4, 512, 3),
        _vgg_block(5, 512, 3),
    ),
    fc6=7,
    fusions={
        32: Fusion(("upscore",), 32, 64, (), 19),
        16: Fusion(("upscore2", "upscore16"), 16, 32, (5,), 27),
        8: Fusion(("upscore2", "upscore_pool4", "upscore8"), 8, 16, (5, 9), 31),
    },
    lean=True,
)

ALEXNET = Architecture(
    stages=(
        (
            *(ConvLayer("conv1", 96, 11, stride=4, padding=100), Pool(3), Norm()),
            *(ConvLayer("conv2", 256, 5, padding=2, groups=2), Pool(3), Norm()),
        ),
        (ConvLayer("conv3", 384), ConvLayer("conv4", 384, groups=2)),
        (ConvLayer("conv5", 256, groups=2), Pool(3)),
    ),
    fc6=6,
    fusions={32: Fusion(("upscore",), 32, 63, (), 18)},
    lean=False,
)

_BGR = ("blue", "green", "red")
_HHA = ("horizontal disparity", "height above ground", "angle with gravity")


@dataclass(frozen=True)
class Variant:
    """What tells one published net from another.

    Args:
        name: of its folder in the published repository.
        architecture: the trunk.
        stride: of the finest scores that are fused: 32, 16 or 8.
        heads: {head: classes}; ``""`` where there is only one. A head's layers end in ``_head``.
        channels: of the input, in order.
        streams: each has a trunk of its own on its share of the channels, their scores count equally; a stream's
            layers end in its name, which is ``""`` where there is only one.
        first: name of the first layer where it is not the architecture's.
        skip_scales: what pool4's and pool3's features are multiplied by before their score layers.
        transform: name in :data:`fcn_fast.data.transforms.TRANSFORMS` of how the input is made.
    """

    name: str
    architecture: Architecture = VGG16
    stride: int = 32
    heads: dict[str, int] = field(default_factory=lambda: {"": 21})
    channels: tuple[str, ...] = _BGR
    streams: tuple[str, ...] = ("",)
    first: str | None = None
    skip_scales: tuple[float, float] = (1.0, 1.0)
    transform: str = "voc"


def _variants():
    for stride in (32, 16, 8):
        yield Variant(f"voc-fcn{stride}s", stride=stride)
        yield Variant(f"siftflow-fcn{stride}s", stride=stride, heads={"sem": 33, "geo": 3}, transform="siftflow")
        yield Variant(f"pascalcontext-fcn{stride}s", stride=stride, heads={"": 60}, transform="pascalcontext")
    yield Variant("voc-fcn8s-atonce", stride=8, skip_scales=(0.01, 0.0001))
    yield Variant("voc-fcn-alexnet", ALEXNET)
    nyud = {"heads": {"": 40}}
    yield Variant("nyud-fcn32s-color", **nyud, transform="nyud-color")
    yield Variant("nyud-fcn32s-hha", **nyud, channels=_HHA, transform="nyud-hha")
    depth = (*_BGR, "log depth")
    yield Variant("nyud-fcn32s-color-d", **nyud, channels=depth, first="conv1_1_bgrd", transform="nyud-color-d")
    both, streams = _BGR + _HHA, ("color", "hha")
    yield Variant("nyud-fcn32s-color-hha", **nyud, channels=both, streams=streams, transform="nyud-color-hha")


VARIANTS = {variant.name: variant for variant in sorted(_variants(), key=lambda variant: variant.name)}
"""The published nets by the names of their folders."""
