"""What the tests of patch and of what it must work with share."""

import torch


def copies(model):
    """Two models with the same parameters: one to patch."""
    import copy

    return model, copy.deepcopy(model)


def step(model, images, labels, **options):
    """The outputs of a training step and the gradient of every parameter, by name."""
    model.zero_grad()
    torch.manual_seed(0)  # of dropout
    outputs = model(images, labels=labels, **options)
    loss = outputs[0] if isinstance(outputs, tuple) else outputs.loss
    loss.backward()
    return outputs, gradients(model)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_gradients_agree(actual, expected, relative=1e-4):
    """Each parameter's gradient to ``relative`` of its largest; below that, rounding of the network's largest."""
    assert actual.keys() == expected.keys() and expected
    largest = max(grad.abs().max() for grad in expected.values())
    assert largest > 0
    for name, grad in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (grad.dtype, grad.shape), name
        bound = relative * grad.abs().max() + 1e-2 * relative * largest
        error = (actual[name] - grad).abs().max()
        assert error <= bound, f"{name}: {error} of {grad.abs().max()}"


def assert_same_fields(actual, expected, rtol, atol):
    """Outputs of one structure, with tensors of the same types and near values."""
    assert type(actual) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert (actual.dtype, actual.requires_grad) == (expected.dtype, expected.requires_grad)
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)
    elif isinstance(expected, dict):
        assert list(actual) == list(expected)
        for name in expected:
            assert_same_fields(actual[name], expected[name], rtol, atol)
    elif isinstance(expected, (tuple, list)):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same_fields(one, other, rtol, atol)
    else:
        assert actual == expected
