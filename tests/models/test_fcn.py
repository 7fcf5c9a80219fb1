"""The FCN family against nets written here in plain PyTorch: dense bilinear filters, slices for crops."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from fcn_fast import eager, ops
from fcn_fast.models import fcn8s, fcn16s, fcn32s

NETS = {"fcn32s": fcn32s, "fcn16s": fcn16s, "fcn8s": fcn8s}
NARROW = 1 / 32  # trunk channels 2, 4, 8, 16, 16; fc 128
TRUNK = {"stage1": (2, 2, 3), "stage2": (3,), "stage3": (3,)}


def build(net, num_classes=5, width=NARROW, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return NETS[net](num_classes, width, **options).to(dtype).eval()


def image(height, width, batch=1, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 70 * torch.randn(batch, 3, height, width, dtype=dtype, generator=generator)


def labels(height, width, batch=1, classes=5):
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, classes, (batch, height, width), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.1] = 255
    return target


def caffe_deconvolution(x, kernel, stride):
    """Deconvolution with the bilinear filler: a dense (C, C, k, k) filter, only its diagonal non-zero."""
    factor = (kernel + 1) // 2
    centre = factor - 1 if kernel % 2 else factor - 0.5
    line = torch.tensor([1 - abs(i - centre) / factor for i in range(kernel)], dtype=x.dtype)
    weight = x.new_zeros(x.shape[1], x.shape[1], kernel, kernel)
    for channel in range(x.shape[1]):
        weight[channel, channel] = torch.outer(line, line)
    return F.conv_transpose2d(x, weight, stride=stride)


def crop_like(x, offset, like):
    return x[:, :, offset : offset + like.shape[2], offset : offset + like.shape[3]]


def published(net, params, x):
    """The scores of the published net, with every intermediate map."""

    def conv(x, stage, name, padding=0):
        return F.conv2d(x, params[f"{stage}.{name}.weight"], params[f"{stage}.{name}.bias"], padding=padding)

    maps, h, block = {}, x, 0
    for stage, blocks in TRUNK.items():
        for convs in blocks:
            block += 1
            for i in range(1, convs + 1):
                h = conv(h, stage, f"conv{block}_{i}", 100 if block == i == 1 else 1).relu()
            maps[f"pool{block}"] = h = F.max_pool2d(h, 2, 2, ceil_mode=True)
    maps["fc6"] = h = conv(h, "stage3", "fc6").relu()
    h = conv(h, "stage3", "fc7").relu()
    score = conv(h, "stage3", "score_fr")
    if net == "fcn32s":
        maps["upscore"] = up = caffe_deconvolution(score, 64, 32)
        return crop_like(up, 19, x), maps
    maps["upscore2"] = up = caffe_deconvolution(score, 4, 2)
    score = up + crop_like(conv(maps["pool4"], "stage2", "score_pool4"), 5, up)
    if net == "fcn16s":
        maps["upscore16"] = up = caffe_deconvolution(score, 32, 16)
        return crop_like(up, 27, x), maps
    maps["upscore_pool4"] = up = caffe_deconvolution(score, 4, 2)
    score = up + crop_like(conv(maps["pool3"], "stage1", "score_pool3"), 9, up)
    maps["upscore8"] = up = caffe_deconvolution(score, 16, 8)
    return crop_like(up, 31, x), maps


def test_published_sizes_at_500():
    model = build("fcn8s", width=1 / 64, dtype=torch.float32)
    x = image(500, 500, dtype=torch.float32)
    with torch.no_grad():
        _, maps = published("fcn8s", model.state_dict(), x)
        sizes = {name: features.shape[-1] for name, features in maps.items()}
        pool3, score_pool3 = model.stage1(x)
        pool4, score_pool4 = model.stage2(pool3)
        score_fr = model.stage3.deepest(pool4)
        scores = model.stage3.fused(score_fr, [score_pool4, score_pool3])
        full = model.stage3(pool4, [score_pool4, score_pool3], (500, 500))
    assert sizes == {
        "pool1": 349, "pool2": 175, "pool3": 88, "pool4": 44, "pool5": 22, "fc6": 16,
        "upscore2": 34, "upscore_pool4": 70, "upscore8": 568,
    }  # fmt: skip
    assert [t.shape[-1] for t in (pool3, score_pool3, pool4, score_pool4, score_fr, scores)] == [88, 88, 44, 44, 16, 70]
    assert full.shape == (1, 5, 500, 500)


@pytest.mark.parametrize(
    "batch, height, width, operations",
    [(1, 33, 47, ops), (1, 64, 51, ops), (2, 41, 5, ops), (1, 33, 47, eager)],
    ids=["33x47", "64x51", "2 of 41x5", "33x47-eager"],
)
@pytest.mark.parametrize("net", NETS)
def test_scores_and_gradients_are_those_of_the_published_net(net, batch, height, width, operations):
    model = build(net, ops=operations)
    x, target = image(height, width, batch), labels(height, width, batch)
    expected, _ = published(net, dict(model.named_parameters()), x)
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())

    loss = F.cross_entropy(expected, target, ignore_index=255)
    expected_grads = torch.autograd.grad(loss, list(model.parameters()))
    actual = model.loss(x, target)
    torch.testing.assert_close(actual, loss, rtol=1e-9, atol=0)
    for grad, wanted in zip(torch.autograd.grad(actual, list(model.parameters())), expected_grads, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-7, atol=1e-9 * wanted.abs().max().item())


@pytest.mark.parametrize("net", NETS)
def test_every_side_has_scores_of_its_size(net):
    model = build(net, width=0.01, dtype=torch.float32)
    sides = [1, 2, 3, 31, 32, 33, 97]
    with torch.no_grad():
        for height, width in [*zip(sides, sides[::-1], strict=True), (1, 1), (97, 97)]:
            x = image(height, width, dtype=torch.float32)
            scores = model(x)
            assert scores.shape == (1, 5, height, width)
            assert scores.isfinite().all()
            assert model.predict(x).shape == (1, height, width)


@pytest.mark.parametrize("net", NETS)
def test_crops_fit_at_every_side(net):
    """The sizes alone, without the arithmetic: every side from 1 to 600."""
    model = build(net, dtype=torch.float32)
    deconvolved = {"fcn32s": 64, "fcn16s": 32, "fcn8s": 16}[net]
    for side in range(1, 601):
        pools = [side + 198]
        for _ in range(5):
            pools.append((pools[-1] + 1) // 2)
        shapes = [torch.empty(1, 5, pools[i], pools[i], device="meta") for i in (4, 3)]
        skips = shapes[: len(model.stage3.fusion.skip_crops)]
        scores = torch.empty(1, 5, pools[5] - 6, pools[5] - 6, device="meta")
        grid = model.stage3.last_grid(model.stage3.fused(scores, skips), (side, side))
        assert grid.size == (side, side) and grid.unit == (deconvolved, deconvolved)


@pytest.mark.parametrize("net", NETS)
def test_loss_and_labels_are_those_of_the_scores(net):
    model = build(net)
    x, target = image(37, 30, batch=2), labels(37, 30, batch=2)
    scores = model(x)
    for reduction in ("mean", "sum", "none"):
        expected = F.cross_entropy(scores, target, ignore_index=255, reduction=reduction)
        torch.testing.assert_close(model.loss(x, target, reduction=reduction), expected)
    assert torch.equal(model.predict(x), scores.argmax(1).to(torch.uint8))
    assert torch.equal(model.predict(x, dtype=torch.int64), scores.argmax(1))


def test_the_parts_compose_to_the_model():
    model = build("fcn8s")
    x = image(40, 56)
    pool3, score_pool3 = model.stage1(x)
    pool4, score_pool4 = model.stage2(pool3)
    assert torch.equal(model.stage3(pool4, [score_pool4, score_pool3], (40, 56)), model(x))


@pytest.mark.parametrize(
    "net, skips", [("fcn32s", []), ("fcn16s", ["score_pool4"]), ("fcn8s", ["score_pool3", "score_pool4"])]
)
def test_parameters_are_called_as_in_the_published_nets(net, skips):
    model = NETS[net](num_classes=7, width=NARROW)
    layers = [f"conv{block}_{i}" for block, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]
    expected = {f"{name}.{kind}" for name in [*layers, "fc6", "fc7", "score_fr", *skips] for kind in ("weight", "bias")}
    state = {name.split(".", 1)[1]: value.shape for name, value in model.state_dict().items()}
    assert set(state) == expected and len(state) == len(model.state_dict())
    assert state["fc6.weight"] == (128, 16, 7, 7) and state["score_fr.weight"] == (7, 128, 1, 1)
    assert "stage1.conv3_3.weight" in model.state_dict()


def test_full_width_is_vgg16():
    with torch.device("meta"):
        model = fcn8s()
    shapes = {name.split(".", 1)[1]: tuple(value.shape) for name, value in model.named_parameters()}
    assert shapes["conv1_1.weight"] == (64, 3, 3, 3) and shapes["conv5_3.weight"] == (512, 512, 3, 3)
    assert shapes["fc6.weight"] == (4096, 512, 7, 7) and shapes["fc7.weight"] == (4096, 4096, 1, 1)
    assert shapes["score_pool3.weight"] == (21, 256, 1, 1) and shapes["score_pool4.weight"] == (21, 512, 1, 1)
    assert sum(p.numel() for p in model.parameters()) == 134_362_751


def test_activations_stay_in_range():
    model = build("fcn32s", width=0.25, dtype=torch.float32)
    with torch.no_grad():
        x = image(64, 64, dtype=torch.float32)
        pool4, _ = model.stage2(model.stage1(x)[0])
        assert 1 < pool4.std() < 1000 and 1 < model(x).std() < 1000


def test_dropout_is_on_in_training_only():
    model = build("fcn32s")
    x = image(20, 20)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_models_are_copied_and_pickled_with_their_operations():
    model, x = build("fcn8s"), image(20, 20)
    for operations in (ops, eager):
        model.ops = operations
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert twin.ops is operations and torch.equal(twin(x), model(x))


def test_compiles_whole():
    model, x = build("fcn8s"), image(20, 24)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


def test_autocast_takes_float32_images():
    model = build("fcn8s", dtype=torch.float32)
    x, target = image(20, 20, dtype=torch.float32), labels(20, 20)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
        assert model.loss(x, target).dtype == torch.float32


@pytest.mark.parametrize(
    "x, error, message",
    [
        (torch.zeros(3, 8, 8), ValueError, r"x: expected 4 dimensions \(N, C, H, W\), got shape \(3, 8, 8\)"),
        (torch.zeros(1, 4, 8, 8), ValueError, r"x: expected 3 channels .*got shape \(1, 4, 8, 8\)"),
        (torch.zeros(1, 3, 0, 8), ValueError, r"x: expected at least one channel and one pixel"),
        (torch.zeros(1, 3, 8, 8, device="meta"), ValueError, "x: expected the device of the model, cpu, got meta"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, "x: expected torch.float32.*got torch.uint8"),
        (torch.zeros(1, 3, 8, 8).double(), TypeError, "x: expected the dtype of the model.*got torch.float64"),
        ([[0.0]], TypeError, "x: expected a tensor, got list"),
    ],
)
def test_wrong_images_are_named(x, error, message):
    model = fcn32s(2, 0.01).eval()
    for call in (model, model.predict, lambda x: model.loss(x, labels(8, 8))):
        with pytest.raises(error, match=message):
            call(x)


def test_a_target_of_another_size_is_named():
    with pytest.raises(ValueError, match="target: expected 8x8, .*, got 9x8"):
        fcn32s(5, 0.01).loss(torch.zeros(1, 3, 8, 8), labels(9, 8))


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"num_classes": 0}, ValueError, "num_classes: expected at least 1, got 0"),
        ({"num_classes": 2.0}, TypeError, "num_classes: expected an int, got 2.0"),
        ({"width": 0}, ValueError, "width: expected a positive number, got 0"),
        ({"width": -1.0}, ValueError, "width: expected a positive number, got -1.0"),
        ({"width": float("nan")}, ValueError, "width: expected a positive number, got nan"),
        ({"width": "1"}, TypeError, "width: expected a number, got '1'"),
    ],
)
def test_wrong_sizes_are_named(net, arguments, error, message):
    with pytest.raises(error, match=message):
        net(**arguments)
