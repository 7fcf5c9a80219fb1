"""Every published net against plain PyTorch: scores, losses, gradients, sizes, names."""

import pytest
import torch
import torch.nn.functional as F

from fcn_fast import models

from . import caffe_nets
from .support import NARROW, build, by_head, image, labels, parameters

CORE = ("voc-fcn32s", "voc-fcn16s", "voc-fcn8s", "voc-fcn8s-atonce", "voc-fcn-alexnet")


def plain_scores(model, x):
    """{head: scores} of the published net with the model's weights, in plain PyTorch."""
    net = caffe_nets.build(model.variant.name, *x.shape[-2:], model.width, seed=None)
    tops = caffe_nets.run(net, parameters(model), x)
    return {head: tops["score" + (f"_{head}" if head else "")] for head in model.heads}


@pytest.mark.parametrize("name", models.VARIANTS)
def test_scores_losses_and_gradients(name):
    model = build(name, torch.float64)
    for skip in ("score_pool3", "score_pool4"):
        for key, parameter in model.named_parameters():
            if f"{skip}." in key and "atonce" in name:
                parameter.data *= 1000  # or the scaled skips would be too small to see
    x = image(model, 41, 30, batch=2)
    expected = plain_scores(model, x)
    scores = by_head(model(x))
    assert scores.keys() == expected.keys() == model.heads.keys()
    for head, part in scores.items():
        wanted = expected[head]
        assert part.shape == (2, model.heads[head], 41, 30)
        torch.testing.assert_close(part, wanted, rtol=0, atol=1e-10 * wanted.abs().max().item())
    predicted = by_head(model.predict(x))
    assert all(torch.equal(predicted[head], part.argmax(1).to(torch.uint8)) for head, part in scores.items())

    target = {head: labels(41, 30, classes, 2) for head, classes in model.heads.items()}
    loss = sum(F.cross_entropy(expected[head], target[head], ignore_index=255) for head in target)
    actual = model.loss(x, target if len(target) > 1 else target[""])
    torch.testing.assert_close(actual, loss, rtol=1e-9, atol=0)
    leaves = list(model.parameters())
    wanted = torch.autograd.grad(loss, leaves)
    for grad, want in zip(torch.autograd.grad(actual, leaves), wanted, strict=True):
        torch.testing.assert_close(grad, want, rtol=1e-6, atol=1e-8 * want.abs().max().item())


@pytest.fixture(scope="module")
def full_width_tensors():
    """Makes a state dict of random tensors for a net at full width; nets share them, as they take a second to make."""
    pool = {}

    def make(model):
        state = model.state_dict()
        for key, tensor in state.items():
            if (key, tensor.shape) not in pool:
                fan_in = tensor[0].numel() if tensor.dim() > 1 else 100
                pool[key, tensor.shape] = torch.empty(tensor.shape).normal_(0, (2 / fan_in) ** 0.5)
        return {key: pool[key, tensor.shape] for key, tensor in state.items()}

    return make


@pytest.mark.parametrize("name", CORE)
def test_full_width(name, full_width_tensors):
    with torch.device("meta"):
        model = models.build(name).eval()
    model.load_state_dict(full_width_tensors(model), assign=True)
    x = image(model, 33, 40)
    with torch.no_grad():
        scores, expected = model(x), plain_scores(model, x)[""]
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_alexnet_sizes_at_500():
    model = build("voc-fcn-alexnet")
    net = caffe_nets.build("voc-fcn-alexnet", 500, 500, NARROW, seed=None)
    with torch.no_grad():
        tops = caffe_nets.run(net, parameters(model), image(model, 500, 500))
    sizes = {name: tops[name].shape[-1] for name in ("conv1", "pool1", "pool2", "pool5", "fc6", "upscore", "score")}
    assert sizes == {"conv1": 173, "pool1": 86, "pool2": 43, "pool5": 21, "fc6": 16, "upscore": 543, "score": 500}


@pytest.mark.parametrize("name, options", [*((name, {}) for name in CORE), ("voc-fcn8s", {"padding": "lean"})])
def test_sides_from_1_to_200(name, options, set_num_threads):
    set_num_threads(1)  # the work of a layer is less than handing it out
    model = build(name, width=0.001, num_classes=2, **options)
    with torch.no_grad():
        for side in range(1, 201):
            height, width = (side, 1 + side % 9) if side % 2 else (1 + side % 7, side)
            scores = model(image(model, height, width))
            assert scores.shape == (1, 2, height, width) and scores.isfinite().all()


@pytest.mark.parametrize(
    "name, padding", [(name, "caffe") for name in CORE] + [(f"voc-fcn{stride}s", "lean") for stride in (32, 16, 8)]
)
def test_grids_fit_at_every_side(name, padding):
    """The sizes alone, by the shapes of every layer on the meta device: sides that meet every remainder."""
    model = models.build(name, 2, 0.001, padding=padding).to("meta")
    for side in [*range(201, 300), 499, 500, 511, 512, 513, 1023, 1024, 2048]:
        assert model(torch.empty(1, 3, side, side, device="meta")).shape == (1, 2, side, side)


def test_score_layers_start_at_zero_where_asked():
    for name in ("siftflow-fcn8s", "nyud-fcn32s-color-hha"):
        for zero in (False, True):
            params = parameters(build(name, torch.float64, zero_scores=zero))
            scores = [value for key, value in params.items() if key.startswith("score") and key.endswith(".weight")]
            assert scores and all((value == 0).all().item() == zero for value in scores)
            assert all((value != 0).any() for key, value in params.items() if "conv5_1" in key and "weight" in key)


def test_two_heads_share_the_trunk_and_add_their_losses():
    model = build("siftflow-fcn8s", torch.float64)
    x = image(model, 20, 24)
    target = {"sem": labels(20, 24, 33), "geo": labels(20, 24, 3)}
    scores = model(x)
    weight = {"sem": torch.rand(33, dtype=torch.float64), "geo": None}
    expected = F.cross_entropy(scores["sem"], target["sem"], weight["sem"], ignore_index=255, reduction="sum")
    expected = expected + F.cross_entropy(scores["geo"], target["geo"], ignore_index=255, reduction="sum")
    torch.testing.assert_close(model.loss(x, target, weight=weight, reduction="sum"), expected)
    for wrong in (target["sem"], {"sem": target["sem"]}, {**target, "more": 1}):
        with pytest.raises(ValueError, match=r"target: expected a dict with the labels of \['sem', 'geo'\], got "):
            model.loss(x, wrong)


def test_a_net_with_one_head_takes_no_dict():
    model = build("voc-fcn32s", torch.float64)
    with pytest.raises(TypeError, match="target: expected a tensor, got dict"):
        model.loss(image(model, 8, 8), {"sem": labels(8, 8, 21)})


@pytest.mark.parametrize("name", models.VARIANTS)
def test_published_parameters(name):
    """The names and shapes at full width are those that the published net.py make."""
    with torch.device("meta"):
        model = models.build(name)
    net = caffe_nets.build(name, 1, 1, 1 / 64, seed=0)
    narrow = models.build(name, width=1 / 64)
    expected = {}
    for layer, blobs in net.blobs.items():
        if not layer.startswith(("upscore", "scale")):
            expected |= {f"{layer}.weight": blobs[0].shape, f"{layer}.bias": blobs[1].shape}
    assert {key: tuple(value.shape) for key, value in parameters(narrow).items()} == expected
    assert set(parameters(model)) == set(expected)
    fc6 = next(value for key, value in parameters(model).items() if key.startswith("fc6"))
    assert fc6.shape == ((4096, 256, 6, 6) if "alexnet" in name else (4096, 512, 7, 7))


@pytest.mark.parametrize("name", ["nyud-fcn32s-color-d", "nyud-fcn32s-color-hha", "nyud-fcn32s-hha"])
def test_channels_are_named(name):
    model = build(name, torch.float64)
    count = len(model.variant.channels)
    with pytest.raises(ValueError, match=rf"x: expected {count} channels \({model.variant.channels[0]}, .*got shape"):
        model(torch.zeros(1, 5, 8, 8, dtype=torch.float64))


@pytest.mark.parametrize("options", [{"padding": "lean"}, {"learned_upsampling": "grouped"}])
@pytest.mark.parametrize("name", ["siftflow-fcn8s", "nyud-fcn32s-color-hha"])
def test_compiles_whole(name, options):
    model = build(name, torch.float64, **options)
    x = image(model, 20, 24)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


@pytest.mark.parametrize(
    "name, options, error, message",
    [
        ("voc-fcn4s", {}, ValueError, "name: expected one of nyud-fcn32s-color, .*, got 'voc-fcn4s'"),
        ("voc-fcn8s", {"padding": "same"}, ValueError, "padding: expected 'caffe' or 'lean', got 'same'"),
        ("voc-fcn-alexnet", {"padding": "lean"}, ValueError, "padding: expected 'caffe' for voc-fcn-alexnet"),
        ("voc-fcn8s", {"learned_upsampling": "yes"}, ValueError, "learned_upsampling: expected a bool.*got 'yes'"),
        (
            "siftflow-fcn8s",
            {"num_classes": 3},
            ValueError,
            r"num_classes: expected a dict with .*\['sem', 'geo'\], got 3",
        ),
        (
            "siftflow-fcn8s",
            {"num_classes": {"sem": 0, "geo": 3}},
            ValueError,
            "num_classes: expected at least 1, got 0",
        ),
    ],
)
def test_wrong_options_are_named(name, options, error, message):
    with pytest.raises(error, match=message):
        models.build(name, **options)
