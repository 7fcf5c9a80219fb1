"""What the tests of the nets share: narrow nets, images for them, and loads that must fail."""

import pytest
import torch

from fcn_fast import models

NARROW = 1 / 64


def build(name, dtype=torch.float32, **options):
    """The net of this name, narrow, in evaluation mode."""
    return models.build(name, **{"width": NARROW, **options}).to(dtype).eval()


def image(model, height=20, width=24, batch=1):
    """Random input of the model, in its dtype."""
    x = torch.randn(batch, len(model.variant.channels), height, width, dtype=next(model.parameters()).dtype)
    return 70 * x


def labels(height, width, classes, batch=1):
    """Random labels, one pixel in ten void."""
    target = torch.randint(0, classes, (batch, height, width))
    return target.masked_fill(torch.rand(target.shape) < 0.1, 255)


def by_head(result):
    """{head: result}, of a net of one head too."""
    return result if isinstance(result, dict) else {"": result}


def parameters(model):
    """{published name: parameter}, such as conv1_1.weight."""
    return {key.split(".", 1)[1]: parameter for key, parameter in model.named_parameters()}


def snapshot(model):
    """A copy of the state dict."""
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def published(model):
    """{published name: copy of the tensor}."""
    return {key.split(".", 1)[1]: tensor for key, tensor in snapshot(model).items()}


def refused(load, model, path, *lines, **options):
    """A load that must raise an error with these lines and leave the model as it was; the message."""
    before = snapshot(model)
    with pytest.raises(models.WeightsError) as caught:
        load(model, path, **options)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    message = str(caught.value)
    assert str(path) in message
    for line in lines:
        assert line in message
    return message
