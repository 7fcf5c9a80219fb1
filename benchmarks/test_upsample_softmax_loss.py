def test_upsample_softmax_loss(size, direction, device, measure_operation):
    inputs = [size.scores(device), size.labels(device)]
    measure_operation("upsample_softmax_loss", f"{size.name} {direction}", inputs, direction == "forward_backward")
