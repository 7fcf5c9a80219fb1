"""The operations in half precision and in channels_last, at one size, and a fusion as small as the FCN's own."""

import pytest
import torch

from fcn_fast import BilinearGrid

OPERATIONS = ["upsample_softmax_loss", "softmax_loss", "bilinear_upsample", "skip_fuse", "upsample_argmax"]
VARIATIONS = {
    "bfloat16": lambda x: x.bfloat16(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("variation", VARIATIONS)
def test_variation(variation, operation, cityscapes, device, measure_operation):
    size = cityscapes
    vary = VARIATIONS[variation]
    coarse, options = vary(size.smooth_scores(device)), {}
    if operation == "upsample_softmax_loss":
        inputs = [coarse, size.labels(device)]
    elif operation == "softmax_loss":
        inputs = [vary(size.scores(device, size.pixels)), size.labels(device)]
    elif operation == "skip_fuse":
        inputs = [coarse, vary(size.scores(device, size.pixels))]
    else:
        inputs, options = [coarse], {"size": size.pixels}
    backward = operation.endswith("loss")
    group = f"{size.name} {variation} {'forward_backward' if backward else 'forward'}"
    measure_operation(operation, group, inputs, backward, **options)


def test_small_skip_fuse(device, measure_operation):
    """FCN-8s's second fusion, 34x34 to 70x70, where the call costs as much as the work."""
    inputs = [torch.randn(1, 21, 34, 34, device=device), torch.randn(1, 21, 88, 88, device=device)]
    grid = BilinearGrid.deconvolution((34, 34), 2)
    measure_operation("skip_fuse", "fcn8s 34x34 to 70x70 forward", inputs, grid=grid, crop=9)
