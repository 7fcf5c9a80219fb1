"""How scores come back to the image: the published border, lean padding and learned upsampling."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from fcn_fast import eager, models, ops

from . import caffe_nets
from .support import build, by_head, image, labels, parameters

STRIDES = {"voc-fcn32s": 32, "voc-fcn16s": 16, "voc-fcn8s": 8}


@pytest.mark.parametrize("name, pixels", [("voc-fcn32s", 13), ("voc-fcn16s", 21), ("voc-fcn8s", 25)])
def test_the_published_border_is_dark(name, pixels):
    model = build(name, torch.float64, num_classes=1)
    ones = torch.ones(1, 1, 16, 16, dtype=torch.float64)
    nothing = [torch.zeros(1, 1, size, size, dtype=torch.float64) for size in (44, 88)]
    scores = model.stage3.fused(ones, nothing[: len(model.stage3.fusion.skip_crops)])
    line = model.stage3.upsampled(scores, (500, 500))[0, 0, 250]
    assert line[0].item() == pytest.approx(0.609, abs=0.001)
    full = (line - 1).abs() < 1e-12
    assert not full[:pixels].any() and full[pixels:250].all()
    assert (line[:pixels].diff() > 0).all()
    corner = model.stage3.upsampled(scores, (500, 500))[0, 0, 0, 0].item()
    assert corner == pytest.approx(line[0].item() ** 2)


@pytest.mark.parametrize("learned_upsampling", [False, "dense", "grouped"])
@pytest.mark.parametrize("name", STRIDES)
@pytest.mark.parametrize("size", [(500, 500), (33, 97), (1, 64)])
def test_lean_constants_stay_constant(name, size, learned_upsampling):
    model = build(name, torch.float64, num_classes=1, padding="lean", learned_upsampling=learned_upsampling)
    deep, pool4, pool3 = (torch.zeros(1, 1, *(-(-n // stride) for n in size)).double() for stride in (32, 16, 8))
    with torch.no_grad():
        scores = model.stage3.fused(deep + 1, [pool4, pool3][: len(model.stage3.fusion.skip_crops)])
        full = model.stage3.upsampled(scores, size)
    assert full.shape == (1, 1, *size)
    torch.testing.assert_close(full, torch.ones_like(full))


@pytest.mark.parametrize("operations", [ops, eager], ids=["ops", "eager"])
@pytest.mark.parametrize("name", STRIDES)
@pytest.mark.parametrize("height, width", [(64, 96), (50, 37), (1, 1)])
def test_lean_is_interpolation_of_maps_that_cover_the_image(name, height, width, operations):
    model = build(name, torch.float64, padding="lean", ops=operations)
    x, params = image(model, height, width), parameters(model)
    h, pools = x, {}
    for block, _, convs in caffe_nets.VGG:
        for i in range(1, convs + 1):
            key = f"conv{block}_{i}"
            h = F.conv2d(h, params[f"{key}.weight"], params[f"{key}.bias"], padding=1).relu()
        pools[block] = h = F.max_pool2d(h, 2, 2, ceil_mode=True)
    h = F.conv2d(h, params["fc6.weight"], params["fc6.bias"], padding=3).relu()
    h = F.conv2d(h, params["fc7.weight"], params["fc7.bias"]).relu()
    score = F.conv2d(h, params["score_fr.weight"], params["score_fr.bias"])
    for block, stride in ((4, 16), (3, 8)):
        if STRIDES[name] <= stride:
            skip = F.conv2d(pools[block], params[f"score_pool{block}.weight"], params[f"score_pool{block}.bias"])
            up = F.interpolate(score, scale_factor=2.0, mode="bilinear")
            score = skip + up[:, :, : skip.shape[2], : skip.shape[3]]
    full = F.interpolate(score, scale_factor=float(STRIDES[name]), mode="bilinear")
    torch.testing.assert_close(model(x), full[:, :, :height, :width], rtol=1e-9, atol=1e-9)


def test_lean_and_caffe_agree_where_no_border_is_seen():
    """Deep scores lie 3 px apart: shifted by as much, those whose receptive field is in the image are the same."""
    caffe, lean = build("voc-fcn32s", torch.float64), build("voc-fcn32s", torch.float64, padding="lean")
    lean.load_state_dict(caffe.state_dict())
    x = image(caffe, 544, 544)
    shift = 29  # lean centres at 32 m + 15.5 of the shifted image, caffe at 32 n + 12.5 of the whole: n = m + 1
    with torch.no_grad():
        deep = {}
        for padding, model, part in (("caffe", caffe, x), ("lean", lean, x[:, :, shift:, shift:])):
            deep[padding] = model.stage3.deepest(model.stage2(model.stage1(part)[0])[0])
        # The receptive field is 404 px: 202 on each side of n = 7, 8, 9.
        middle = deep["caffe"][:, :, 7:10, 7:10]
        torch.testing.assert_close(deep["lean"][:, :, 6:9, 6:9], middle, rtol=1e-9, atol=1e-9)
        difference = (deep["lean"][:, :, :3, :3] - deep["caffe"][:, :, 1:4, 1:4]).abs()
        assert (difference > 1e-6).all()


def test_lean_saves_flops():
    counts = {}
    for padding in ("caffe", "lean"):
        with torch.device("meta"):
            model = models.fcn8s(padding=padding).eval()
            with FlopCounterMode(display=False) as counter:
                model(torch.empty(1, 3, 500, 500))
        counts[padding] = counter.get_total_flops() / 1e9
    assert counts["caffe"] == pytest.approx(362, abs=1) and counts["lean"] == pytest.approx(216, abs=1)


@pytest.mark.parametrize("kind, shape", [(True, "dense"), ("dense", "dense"), ("grouped", "grouped")])
@pytest.mark.parametrize(
    "name, padding",
    [(name, padding) for name in (*STRIDES, "siftflow-fcn8s") for padding in ("caffe", "lean")]
    + [("voc-fcn-alexnet", "caffe"), ("nyud-fcn32s-color-hha", "caffe")],
)
def test_learned_upsampling_starts_bilinear(name, padding, kind, shape):
    classes = {"num_classes": {"sem": 4, "geo": 2} if "siftflow" in name else 3}
    fixed = build(name, torch.float64, padding=padding, **classes)
    learned = build(name, torch.float64, padding=padding, learned_upsampling=kind, **classes)
    assert learned.load_state_dict(fixed.state_dict(), strict=False).unexpected_keys == []
    x = image(fixed, 50, 37, batch=2)
    expected, actual = by_head(fixed(x)), by_head(learned(x))
    for head, part in actual.items():
        torch.testing.assert_close(part, expected[head], rtol=0, atol=1e-6 * expected[head].abs().max().item())
    target = {head: labels(50, 37, classes, 2) for head, classes in fixed.heads.items()}
    target = target if len(target) > 1 else target[""]
    loss = learned.loss(x, target)
    torch.testing.assert_close(loss, fixed.loss(x, target), rtol=1e-5, atol=1e-6)
    predicted = by_head(learned.predict(x))
    assert all(torch.equal(predicted[head], part.argmax(1).to(torch.uint8)) for head, part in actual.items())

    loss.backward()
    filters = {key: value for key, value in learned.named_parameters() if "upscore" in key}
    assert len(filters) == len(fixed.stage3.fusion.names) * len(fixed.heads)
    for key, weight in filters.items():
        classes = weight.shape[0]
        assert weight.shape[1] == (classes if shape == "dense" else 1)
        assert weight.grad.abs().max() > 0, key


def test_learned_filters_are_used():
    model = build("voc-fcn8s", torch.float64, learned_upsampling=True, num_classes=3)
    x = image(model, 20, 20)
    before = model(x)
    for name in ("upscore2", "upscore_pool4", "upscore8"):
        changed = copy.deepcopy(model)
        with torch.no_grad():
            getattr(changed.stage3, name).weight[0, 1] += 0.1  # class 0 reaches into class 1
        after = changed(x)
        assert torch.equal(after[:, [0, 2]], before[:, [0, 2]]) and not torch.equal(after[:, 1], before[:, 1])
