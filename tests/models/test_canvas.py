"""Models with a frozen canvas give what the whole computation gives, and notice when the canvas would be another."""

import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fcn_fast import models

from . import support
from .support import by_head, image

NAMES = ["voc-fcn8s", "voc-fcn8s-atonce", "voc-fcn32s", "voc-fcn-alexnet", "siftflow-fcn16s", "nyud-fcn32s-color-hha"]


def build(name="voc-fcn8s", **options):
    """A net in float64 whose biases are no zeros, so that its canvas is none either."""
    model = support.build(name, torch.float64, **options).requires_grad_(False)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return model


def assert_same(found, expected, tolerance=1e-11):
    found, expected = by_head(found), by_head(expected)
    for head, scores in expected.items():
        assert (found[head] - scores).abs().max() <= tolerance * scores.abs().max()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_scores_are_those_of_the_whole_computation(name, layout):
    model = build(name).to(memory_format=layout)
    size = random.randint(1, 90), random.randint(1, 200)
    frozen = models.freeze_canvas(model, size)
    for batch in (1, 2, 1):
        x = image(model, *size, batch).contiguous(memory_format=layout)
        assert_same(frozen(x), model(x))
        labels, expected = by_head(frozen.predict(x)), by_head(model.predict(x))
        assert all((labels[head] == expected[head]).double().mean() > 0.99 for head in expected)


@pytest.mark.parametrize("options", [{"padding": "lean"}, {"learned_upsampling": "grouped"}])
def test_other_options(options):
    model = build(**options)
    x = image(model, 70, 45)
    assert_same(models.freeze_canvas(model, (70, 45))(x), model(x))


def test_windows_are_what_an_image_reaches():
    """As the maps show where they differ between images."""
    model = build(width=1 / 8)
    size = random.randint(20, 100), random.randint(20, 100)
    blocks = models.freeze_canvas(model, size)._low_resolution.blocks
    pool3, _ = model.stage1(image(model, *size, batch=4))
    for block, maps in zip(blocks[2:4], (pool3, model.stage2(pool3)[0]), strict=True):
        differs = (maps != maps[:1]).any(0).any(0)
        for other_axis, along in ((1, block[-1].rows), (0, block[-1].columns)):
            reached = differs.any(other_axis).nonzero().flatten()
            assert (reached[0].item(), reached[-1].item() + 1) == along.gives


def test_it_computes_less():
    with torch.device("meta"):
        model, x = models.fcn8s().eval(), torch.empty(1, 3, 500, 500)
    frozen = models.freeze_canvas(model, 500)
    frozen(x)
    counts = []
    for net in (model, frozen):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(x)
        counts.append(counter.get_total_flops() / 1e9)
    assert counts == pytest.approx([362, 265], abs=0.5)


def test_changed_weights_change_the_canvas():
    model, other = build(), build()
    frozen, x = models.freeze_canvas(model, (40, 60)), image(model, 40, 60)
    before = frozen(x)
    model.stage1.conv1_1.bias += 1
    assert_same(frozen(x), model(x))
    model.load_state_dict(other.state_dict())
    assert_same(frozen(x), other(x))
    assert (frozen(x) - before).abs().max() > 1e-3 * before.abs().max()
    model.float()
    assert_same(frozen(x.float()), model(x.float()), 1e-5)


def test_only_what_it_is_for():
    model = build()
    frozen = models.freeze_canvas(model, 40)
    with pytest.raises(ValueError, match=r"x: expected images of 40x40, got shape \(1, 3, 40, 41\)"):
        frozen(image(model, 40, 41))
    with pytest.raises(ValueError, match="x: expected 3 channels"):
        frozen(image(model, 40, 40)[:, :2])
    model.requires_grad_(True)
    assert not frozen(image(model, 40, 40)).requires_grad
    for either in (model, frozen):
        either.train()
        with pytest.raises(ValueError, match="model: expected one in eval mode"):
            frozen(image(model, 40, 40))
        either.eval()
    for size in (0, (3, -1)):
        with pytest.raises(ValueError, match="size: expected at least 1x1"):
            models.freeze_canvas(model, size)
