"""Weights from Caffe's files: what lands where, and that nothing does where anything is wrong."""

import numpy as np
import pytest
import torch

from fcn_fast import models
from fcn_fast.models import caffemodel as reader

from . import caffe_nets
from .support import NARROW, build, published, refused


@pytest.fixture
def caffemodel(tmp_path):
    """Writes blobs as a caffemodel; the path."""

    def write(blobs, **options):
        (tmp_path / "net.caffemodel").write_bytes(caffe_nets.caffemodel(blobs, **options))
        return tmp_path / "net.caffemodel"

    return write


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
@pytest.mark.parametrize("form", ["layer", "layers"])
@pytest.mark.parametrize("shapes", ["new", "old"])
@pytest.mark.parametrize("name", ["voc-fcn8s", "voc-fcn8s-atonce", "voc-fcn-alexnet", "siftflow-fcn16s"])
def test_caffemodel(name, form, shapes, dtype, caffemodel):
    net = caffe_nets.build(name, 1, 1, NARROW)
    model = build(name)
    result = models.load_caffemodel(model, caffemodel(net.blobs, form=form, shapes=shapes, dtype=dtype))
    assert result.missing == result.extra == []
    for key, tensor in published(model).items():
        layer, kind = key.rsplit(".", 1)
        np.testing.assert_array_equal(tensor, net.blobs[layer][kind == "bias"].astype(np.float32))


def test_caffemodel_in_packed_parts(tmp_path):
    """Protocol buffers may split packed numbers into several parts, and other fields are none of ours."""
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    parts = caffe_nets._bytes(5, values[:1].tobytes()) + caffe_nets._bytes(5, values[1:].tobytes())
    blob = parts + caffe_nets._bytes(6, values.tobytes()) + caffe_nets._bytes(7, caffe_nets._bytes(1, bytes([2, 3])))
    layer = caffe_nets._bytes(1, b"fc") + caffe_nets._bytes(7, blob) + caffe_nets._number(10, 1)
    (tmp_path / "net").write_bytes(caffe_nets._bytes(100, layer))
    np.testing.assert_array_equal(reader.read(tmp_path / "net")["fc"][0], values)


def test_caffemodel_of_a_classification_net_starts_training(caffemodel):
    net = caffe_nets.build("voc-fcn32s", 1, 1, NARROW)
    blobs = {name: arrays for name, arrays in net.blobs.items() if not name.startswith(("score", "upscore"))}
    for name in ("fc6", "fc7"):
        weight, bias = blobs[name]
        blobs[name] = [weight.reshape(len(weight), -1), bias]  # an InnerProduct
    blobs["fc8"] = [np.ones((1000, 64)), np.ones(1000)]
    model = build("voc-fcn8s")
    before = published(model)
    path = caffemodel(blobs, form="layers", shapes="old")
    result = models.load_caffemodel(model, path, strict=False)
    assert result.extra == ["fc8.bias", "fc8.weight"]
    assert result.missing == sorted(f"score_{n}.{k}" for n in ("fr", "pool3", "pool4") for k in ("weight", "bias"))
    after = published(model)
    np.testing.assert_array_equal(after["fc6.weight"], net.blobs["fc6"][0].astype(np.float32))
    np.testing.assert_array_equal(after["conv4_2.bias"], net.blobs["conv4_2"][1].astype(np.float32))
    for name in result.missing:
        assert torch.equal(after[name], before[name])

    depth = build("nyud-fcn32s-color-d")
    models.load_caffemodel(depth, path, strict=False)
    weight = net.blobs["conv1_1"][0].astype(np.float32)
    np.testing.assert_array_equal(depth.stage1.conv1_1_bgrd.weight.detach()[:, :3], weight)
    np.testing.assert_allclose(depth.stage1.conv1_1_bgrd.weight.detach()[:, 3], weight.mean(1), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(depth.stage1.conv1_1_bgrd.bias.detach(), net.blobs["conv1_1"][1].astype(np.float32))


def test_every_problem_is_listed_and_nothing_is_loaded(caffemodel):
    net = caffe_nets.build("voc-fcn8s", 1, 1, NARROW)
    del net.blobs["score_pool3"], net.blobs["conv2_2"][1]
    net.blobs["score59"] = [np.zeros((59, 4))]
    net.blobs["conv3_1"].append(np.zeros(3))
    net.blobs["score_fr"] = [np.zeros((60, 64, 1, 1)), np.zeros(60)]
    net.blobs["upscore8"][0][0, 1, 3, 3] = 0.25
    net.blobs["upscore2"] = [np.zeros((21, 21, 3, 3))]
    message = refused(
        models.load_caffemodel,
        build("voc-fcn8s"),
        caffemodel(net.blobs),
        "voc-fcn8s, got others; none were loaded",
        "missing: score_pool3.weight: expected (21, 4, 1, 1), got none",
        "missing: score_pool3.bias: expected (21,), got none",
        "missing: conv2_2.bias: expected (2,), got none",
        "extra: score59.weight: expected none, got (59, 4)",
        "extra: conv3_1.blobs[2]: expected none, got (3,)",
        "shape: score_fr.weight: expected (21, 64, 1, 1), got (60, 64, 1, 1)",
        "shape: score_fr.bias: expected (21,), got (60,)",
        "shape: upscore2.weight: expected (21, 21, 4, 4) or (21, 1, 4, 4), got (21, 21, 3, 3)",
        "not bilinear: upscore8.weight: expected a bilinear filter, got one that differs by 0.25",
    )
    assert message.count("\n") == 9


def test_an_error_in_one_line():
    error = models.WeightsError("summary\n  a\n  b\n  c\n  d\n  e")
    assert error.in_one_line() == "summary; a; b; c; and 2 more"
    assert models.WeightsError("summary").in_one_line() == "summary"


def test_at_once_weights_and_others_do_not_pass_for_each_other(caffemodel):
    at_once = caffe_nets.build("voc-fcn8s-atonce", 1, 1, NARROW)
    path = caffemodel(at_once.blobs)
    refused(models.load_caffemodel, build("voc-fcn8s"), path, "extra: scale_pool3.weight", "extra: scale_pool4.weight")
    at_once.blobs["scale_pool4"][0][5] = 0.011
    refused(
        models.load_caffemodel,
        build("voc-fcn8s-atonce"),
        caffemodel(at_once.blobs),
        "other value: scale_pool4.weight: expected 0.01 everywhere, got 0.01 to 0.011",
    )
    plain = caffe_nets.build("voc-fcn8s", 1, 1, NARROW)
    path = caffemodel(plain.blobs)
    refused(
        models.load_caffemodel, build("voc-fcn8s-atonce"), path, "missing: scale_pool3.weight: expected one a channel"
    )


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "expected a Caffe model with parameters, got no layer that has any"),
        (b"not a net", "expected a binary NetParameter of Caffe, got something else"),
        (caffe_nets.caffemodel({"a": [np.zeros((2, 3))]})[:-20], "expected a binary NetParameter"),
        (caffe_nets.caffemodel({"a": [np.zeros(2)]}) * 2, "expected layers with different names, got two called 'a'"),
        (
            caffe_nets._bytes(
                100, caffe_nets._bytes(1, b"a") + caffe_nets._bytes(7, caffe_nets._bytes(5, b"12345678"))
            ),
            "a: expected (0, 0, 0, 0) values, got 2",
        ),
    ],
    ids=["empty", "text", "cut", "twice", "no shape"],
)
def test_files_that_are_no_caffemodel(data, message, tmp_path):
    (tmp_path / "net.caffemodel").write_bytes(data)
    refused(models.load_caffemodel, build("voc-fcn32s"), tmp_path / "net.caffemodel", message)


def test_weights_take_the_models_dtype(caffemodel):
    net = caffe_nets.build("voc-fcn32s", 1, 1, NARROW)
    model = build("voc-fcn32s").bfloat16()
    models.load_caffemodel(model, caffemodel(net.blobs))
    assert model.stage3.fc7.weight.dtype == torch.bfloat16
    expected = torch.from_numpy(net.blobs["fc7"][0]).float().bfloat16()
    assert torch.equal(model.stage3.fc7.weight.detach(), expected)
