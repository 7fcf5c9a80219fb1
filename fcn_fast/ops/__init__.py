"""The five operations.

``bilinear_upsample`` and ``skip_fuse`` replace F.interpolate, bilinear conv_transpose2d, crop and add; ``softmax_loss``
replaces F.cross_entropy; ``upsample_softmax_loss`` and ``upsample_argmax`` do the work of an upsampling and a loss or
an argmax without the full-resolution logits in between.
"""

from fcn_fast.grid import BilinearGrid
from fcn_fast.ops.bilinear_upsample import bilinear_upsample
from fcn_fast.ops.skip_fuse import skip_fuse
from fcn_fast.ops.softmax_loss import softmax_loss
from fcn_fast.ops.upsample_argmax import upsample_argmax
from fcn_fast.ops.upsample_softmax_loss import upsample_softmax_loss

__all__ = ["BilinearGrid", "bilinear_upsample", "skip_fuse", "softmax_loss", "upsample_argmax", "upsample_softmax_loss"]
