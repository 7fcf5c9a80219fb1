def test_bilinear_upsample(size, direction, device, measure_operation):
    inputs = [size.scores(device)]
    backward = direction == "forward_backward"
    measure_operation("bilinear_upsample", f"{size.name} {direction}", inputs, backward, size=size.pixels)
