import torch

from fcn_fast import BilinearGrid


def test_bilinear_upsample(size, direction, device, measure_operation):
    inputs = [size.scores(device)]
    backward = direction == "forward_backward"
    measure_operation("bilinear_upsample", f"{size.name} {direction}", inputs, backward, size=size.pixels)


def test_bilinear_upsample_backward(size, device, measure):
    low, numbers = (size.height, size.width), BilinearGrid.interpolate((size.height, size.width), size.pixels).numbers()
    shape = (size.batch, size.classes, *low)

    def eager(grad):
        return torch.ops.aten.upsample_bilinear2d_backward(grad, size.pixels, shape, False)

    functions = {
        "eager": eager,
        "compile": torch.compile(eager, dynamic=False),
        "fcn_fast": lambda grad: torch.ops.fcn_fast.bilinear_upsample_backward(grad, low, numbers),
    }
    measure(f"bilinear_upsample {size.name} backward", functions, [size.scores(device, size.pixels)])
