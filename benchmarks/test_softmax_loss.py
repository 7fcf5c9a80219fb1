def test_softmax_loss(size, direction, device, measure_operation):
    inputs = [size.scores(device, size.pixels), size.labels(device)]
    measure_operation("softmax_loss", f"{size.name} {direction}", inputs, direction == "forward_backward")
