"""Weights from files of torch.save: ports of the nets and VGG-16, and files that are neither."""

import os
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fcn_fast import models
from fcn_fast.data import voc

from . import caffe_nets
from .support import build, image, published, refused


def dense_bilinear(classes, kernel):
    line = 1 - abs(np.arange(kernel) - (kernel / 2 - 0.5)) / ((kernel + 1) // 2)
    return torch.from_numpy(np.einsum("ab,k,l->abkl", np.eye(classes), line, line)).float()


@pytest.fixture
def saved(tmp_path):
    """Saves anything by torch.save; the path."""

    def write(value, **options):
        torch.save(value, tmp_path / "net.pth", **options)
        return tmp_path / "net.pth"

    return write


@pytest.mark.parametrize(
    "load", [models.load_caffemodel, models.load_torchfcn, models.load_vgg16, models.load_safetensors]
)
def test_a_missing_file_is_an_os_error(load, tmp_path):
    with pytest.raises(FileNotFoundError):
        load(build("voc-fcn32s"), tmp_path / "none")


TORCHFCN = {
    "voc-fcn32s": {"upscore": (64, 32)},
    "voc-fcn16s": {"upscore2": (4, 2), "upscore16": (32, 16)},
    "voc-fcn8s": {"upscore2": (4, 2), "upscore_pool4": (4, 2), "upscore8": (16, 8)},
}


def torchfcn_state(name, seed=1):
    """A state dict with wkentaro's keys: published layer names, dense deconvolutions."""
    torch.manual_seed(seed)
    state = {key: torch.randn_like(tensor) for key, tensor in published(build(name)).items()}
    return state | {f"{up}.weight": dense_bilinear(21, kernel) for up, (kernel, _) in TORCHFCN[name].items()}


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("name", TORCHFCN)
def test_torchfcn(name, checkpoint, saved):
    state = torchfcn_state(name)
    model = build(name)
    path = saved({"epoch": 3, "arch": "FCN", "model_state_dict": state} if checkpoint else state)
    models.load_torchfcn(model, path)
    for key, tensor in published(model).items():
        assert torch.equal(tensor, state[key])

    learned = build(name, learned_upsampling=True)
    models.load_torchfcn(learned, path)
    assert set(published(learned)) == set(state)
    x = image(model)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(learned(x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize(
    "name, options",
    [("voc-fcn8s", {"num_classes": 3}), ("siftflow-fcn16s", {"learned_upsampling": True}), ("voc-fcn-alexnet", {})],
)
def test_a_models_own_state_dict(name, options, saved):
    model, twin = (build(name, **options) for _ in range(2))
    state = model.state_dict()
    models.load_torchfcn(twin, saved(state))
    assert all(torch.equal(twin.state_dict()[key], tensor) for key, tensor in state.items())
    *rest, last = state
    message = refused(models.load_torchfcn, build(name, **options), saved({key: state[key] for key in rest}))
    assert f"missing: {last.partition('.')[2]}: expected " in message
    refused(
        models.load_torchfcn, build(name, **options), saved(state | {"stage4.bias": state[last]}), "extra: stage4.bias"
    )


@pytest.mark.parametrize("name", TORCHFCN)
def test_torchfcn_filters_that_are_not_bilinear(name, saved):
    for up in TORCHFCN[name]:
        for change in (
            lambda w: w[3, 3, 1, 2].add_(0.01),
            lambda w: w[3, 4, 1, 2].add_(0.01),
            lambda w: w.fill_(np.nan),
        ):
            state = torchfcn_state(name)
            change(state[f"{up}.weight"])
            lines = (f"not bilinear: {up}.weight", "learned_upsampling=True loads it")
            refused(models.load_torchfcn, build(name), saved(state), *lines)
    learned = build(name, learned_upsampling=True)
    models.load_torchfcn(learned, saved(state))
    grouped = build(name, learned_upsampling="grouped")
    models.load_torchfcn(grouped, saved(torchfcn_state(name)))
    state = torchfcn_state(name)
    state[f"{up}.weight"][3, 4, 1, 2] = 0.01  # two classes mix: no grouped filter does that
    refused(models.load_torchfcn, grouped, saved(state), f"shape: {up}.weight: expected (21, 1,")


def test_torchfcn_of_another_net(saved):
    message = refused(models.load_torchfcn, build("voc-fcn8s"), saved(torchfcn_state("voc-fcn16s")))
    assert "missing: score_pool3.weight: expected (21, 4, 1, 1), got none" in message
    assert "extra: upscore16.weight: expected none, got (21, 21, 32, 32)" in message


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["FCN_FAST_TEST_EVIL"],)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.setenv("FCN_FAST_TEST_EVIL", str(tmp_path / "evil"))
    for load in (models.load_torchfcn, models.load_vgg16):
        torch.save({"conv1_1.weight": Evil()}, tmp_path / "zip.pth")
        (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil(), 2))
        for path in ("zip.pth", "plain.pth"):
            refused(load, build("voc-fcn32s"), tmp_path / path, "expected a state dict that torch.save wrote")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("value", [[1, 2], torch.zeros(3), {3: torch.zeros(3)}])
def test_files_that_are_no_state_dict(value, saved):
    refused(models.load_torchfcn, build("voc-fcn32s"), saved(value), "expected a state dict that torch.save wrote, got")


def test_what_is_no_tensor_is_named(saved):
    state = torchfcn_state("voc-fcn32s")
    state |= {"fc7.bias": 3, "conv1_1.bias": torch.zeros(1, dtype=torch.int64)}
    refused(
        models.load_torchfcn,
        build("voc-fcn32s"),
        saved(state),
        "no tensor: fc7.bias: expected a dense floating-point tensor, got int",
        "no tensor: conv1_1.bias: expected a dense floating-point tensor, got (1,)",
    )


VGG16_NUMBERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def vgg16_state(model):
    """A state dict of torchvision's keys for the layers of this FCN."""
    torch.manual_seed(2)
    convs = [f"conv{block}_{i + 1}" for block, _, n in caffe_nets.VGG for i in range(n)]
    keys = dict(zip(convs, (f"features.{i}" for i in VGG16_NUMBERS), strict=True))
    keys |= {"fc6": "classifier.0", "fc7": "classifier.3"}
    state, shapes = {}, published(model)
    for name, key in keys.items():
        weight = torch.randn_like(shapes[f"{name}.weight"])
        state[f"{key}.weight"] = weight.flatten(1) if name.startswith("fc") else weight
        state[f"{key}.bias"] = torch.randn_like(shapes[f"{name}.bias"])
    return state | {"classifier.6.weight": torch.randn(1000, 64), "classifier.6.bias": torch.randn(1000)}, keys


@pytest.mark.parametrize("name", ["voc-fcn32s", "voc-fcn8s", "siftflow-fcn16s"])
def test_vgg16(name, saved):
    model = build(name)
    before = published(model)
    state, keys = vgg16_state(model)
    models.load_vgg16(model, saved(state))
    after = published(model)
    for layer, key in keys.items():
        assert torch.equal(after[f"{layer}.weight"].flatten(), state[f"{key}.weight"].flatten())
        assert torch.equal(after[f"{layer}.bias"], state[f"{key}.bias"])
    new = [key for key in after if "score" in key]
    assert new and all(torch.equal(after[key], before[key]) for key in new)


def test_vgg16_trained_on_rgb_sees_the_same(saved):
    model = build("voc-fcn32s")
    state, _ = vgg16_state(model)
    models.load_vgg16(model, saved(state), pixels="rgb")
    rgb = torch.randint(0, 256, (1, 3, 9, 8)).float()
    normalised = (rgb / 255 - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(1, 3, 1, 1)
    expected = F.conv2d(normalised, state["features.0.weight"], state["features.0.bias"])
    conv = model.stage1.conv1_1
    actual = F.conv2d(rgb.flip(1) - torch.tensor(voc.MEAN_BGR).view(1, 3, 1, 1), conv.weight, conv.bias)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="pixels: expected 'bgr' or 'rgb', got 'hsv'"):
        models.load_vgg16(model, saved(state), pixels="hsv")


def test_vgg16_problems_are_listed(saved):
    model = build("voc-fcn32s")
    state, _ = vgg16_state(model)
    del state["features.12.bias"], state["classifier.0.weight"]
    state |= {"features.1.running_mean": torch.zeros(64), "classifier.3.weight": torch.zeros(64, 65)}
    refused(
        models.load_vgg16,
        model,
        saved(state),
        "missing: conv3_2.bias: expected (4,), got none",
        "missing: fc6.weight: expected (64, 8, 7, 7), got none",
        "extra: features.1.running_mean: expected none, got (64,)",
        "shape: fc7.weight: expected (64, 64, 1, 1), got (64, 65)",
    )


def test_vgg16_starts_a_net_with_depth(saved):
    model = build("nyud-fcn32s-color-d")
    state, _ = vgg16_state(build("voc-fcn32s"))
    models.load_vgg16(model, saved(state))
    weight = model.stage1.conv1_1_bgrd.weight.detach()
    assert torch.equal(weight[:, :3], state["features.0.weight"])
    torch.testing.assert_close(weight[:, 3], state["features.0.weight"].mean(1))
