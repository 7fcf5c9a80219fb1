import pytest

from fcn_fast import BilinearGrid


@pytest.mark.parametrize("kind", ["resize", "deconvolution"])
def test_skip_fuse(kind, size, direction, device, measure_operation):
    """Twice as large: as feature pyramids do it, and as FCNs do with their deconvolution and crop."""
    low = (size.height, size.width)
    if kind == "resize":
        options = {}
        skip = [2 * n for n in low]
    else:
        options = {"grid": BilinearGrid.deconvolution(low, 2), "crop": 5}
        skip = [2 * n + 2 + 2 * 5 for n in low]
    inputs = [size.scores(device), size.scores(device, skip)]
    measure_operation(
        "skip_fuse", f"{kind} {size.name} {direction}", inputs, direction == "forward_backward", **options
    )
