"""Images with their label maps: the data sets of the published nets, and one that is generated.

A data set is a map-style :class:`torch.utils.data.Dataset`. Its item is ``(image, target)``:

- image: float32 (C, H, W), made by ``transform``, one of :data:`fcn_fast.data.transforms.TRANSFORMS`, at native size;
- target: int64 (H, W), 255 where a pixel is void; where a net has several heads, {head: target}.

Its attributes ``classes`` (names by label, a tuple; {head: names} where there are several) and ``ignore_index`` (255)
say what the labels mean. ``KINDS[kind](path, split, transform)`` opens one; None for split or transform means the data
set's own.
"""

__all__ = ["KINDS"]

KINDS = {}
"""{kind of data set: its class}."""
