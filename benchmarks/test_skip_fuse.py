import pytest

from fcn_fast import BilinearGrid


@pytest.mark.parametrize("kind", ["resize", "deconvolution"])
def test_skip_fuse(kind, size, direction, device, measure_operation):
    """To full resolution: as feature pyramids do it, and as FCNs do with their deconvolution and crop."""
    coarse, skip, options = size.scores(device), size.scores(device, size.pixels), {}
    if kind == "deconvolution":
        low, crop = (size.height, size.width), size.stride // 2
        grid = BilinearGrid.deconvolution(low, size.stride, crop=crop, size=[n - 10 for n in size.pixels])
        options = {"grid": grid, "crop": 5}
    backward = direction == "forward_backward"
    measure_operation("skip_fuse", f"{kind} {size.name} {direction}", [coarse, skip], backward, **options)
