"""torchvision, segmentation_models_pytorch and mmsegmentation, by doubles of their models."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fcn_fast
from fcn_fast import ops

from . import doubles
from .support import assert_gradients_agree, copies, gradients

CLASSES = 6


def batch(device="cpu", dtype=torch.float32):
    images = torch.randn(2, 3, 48, 64, device=device, dtype=dtype)
    target = torch.randint(0, CLASSES, (2, 48, 64), device=device)
    target[torch.rand(target.shape, device=device) < 0.2] = 255
    return images, target


def backward(model, loss):
    model.zero_grad()
    loss.backward()
    return loss.detach(), gradients(model)


@pytest.fixture
def no_full_scores(monkeypatch):
    """Fails where scores of all classes are upsampled to the images' size."""
    upsample = ops.bilinear_upsample

    def checked(*args, **kwargs):
        out = upsample(*args, **kwargs)
        assert out.shape[1] != CLASSES or out.shape[-2:] != (48, 64)
        return out

    monkeypatch.setattr(ops, "bilinear_upsample", checked)


TORCHVISION = [
    lambda: doubles.FCN(CLASSES),
    lambda: doubles.FCN(CLASSES, aux=False),
    lambda: doubles.DeepLabV3(CLASSES),
    lambda: doubles.LRASPP(CLASSES),
]


@pytest.mark.parametrize("make", TORCHVISION)
def test_torchvision_outputs_are_what_they_were(make, device):
    model, patched = copies(make().to(device))
    report = fcn_fast.patch(patched)
    assert "model.loss(images, target)" in str(report) and not report.left
    images, target = batch(device)
    expected, actual = model(images), patched(images)
    assert type(actual) is type(expected) and list(actual) == list(expected)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name])
    loss = [F.cross_entropy(x["out"], target, ignore_index=255) for x in (expected, actual)]
    (_, expected_gradients), (_, actual_gradients) = backward(model, loss[0]), backward(patched, loss[1])
    assert_gradients_agree(actual_gradients, expected_gradients)


@pytest.mark.parametrize("make", TORCHVISION)
def test_torchvision_loss_and_labels(make, device, no_full_scores):
    model, patched = copies(make().to(device).double())
    fcn_fast.patch(patched)
    images, target = batch(device, torch.float64)
    outputs = model(images)
    weight = torch.rand(CLASSES, device=device, dtype=torch.float64)
    options = {"weight": weight, "label_smoothing": 0.1}
    losses = {name: F.cross_entropy(x, target, ignore_index=255, **options) for name, x in outputs.items()}
    expected, expected_gradients = backward(model, losses["out"] + 0.3 * losses.get("aux", 0))
    actual, actual_gradients = backward(patched, patched.loss(images, target, aux_weight=0.3, **options))
    torch.testing.assert_close(actual, expected)
    assert_gradients_agree(actual_gradients, expected_gradients, 1e-9)
    labels = copy.deepcopy(patched).predict_labels(images)
    assert labels.dtype == torch.uint8 and torch.equal(labels.long(), outputs["out"].argmax(1))
    assert patched.predict_labels(images, dtype=torch.int64).dtype == torch.int64


def test_torchvision_of_another_version_has_no_helpers():
    class Newer(doubles.FCN):
        def forward(self, x):
            return super().forward(self.normalize(x))

        def normalize(self, x):
            return x / 2

    model = Newer(CLASSES)
    report = fcn_fast.patch(model)
    assert "it is not the one that is known of torchvision's _SimpleSegmentationModel" in str(report)
    assert not hasattr(model, "loss") and not hasattr(model, "predict_labels")


class WithCriterion(doubles.FCN):
    def __init__(self, classes):
        super().__init__(classes)
        self.loss = nn.CrossEntropyLoss(ignore_index=255)


class WithMethod(doubles.FCN):
    def loss(self, scores, target):
        return F.cross_entropy(scores, target, ignore_index=255)


@pytest.mark.parametrize("kind", [WithCriterion, WithMethod])
def test_a_loss_of_the_models_own_is_kept(kind):
    model, patched = copies(kind(CLASSES))
    report = fcn_fast.patch(patched)
    assert report.left and "loss" in str(report)
    images, target = batch()
    torch.testing.assert_close(patched.loss(patched(images)["out"], target), model.loss(model(images)["out"], target))
    assert not hasattr(patched, "predict_labels")


SMP = [
    lambda: doubles.SegmentationModel(CLASSES),
    lambda: doubles.SegmentationModel(CLASSES, upsampling=1),
    lambda: doubles.OldSegmentationModel(CLASSES, decoder=doubles.OldDecoder()),
]


@pytest.mark.parametrize("make", SMP)
def test_smp_loss_and_labels(make, device):
    model, patched = copies(make().to(device).double())
    report = fcn_fast.patch(patched)
    assert not report.left
    images, target = batch(device, torch.float64)
    masks = model(images)
    torch.testing.assert_close(patched(images), masks)
    torch.testing.assert_close(patched.predict(images), masks)  # its own
    target = target if masks.shape[-2:] == (48, 64) else target[:, :: 48 // masks.shape[-2], :: 48 // masks.shape[-2]]
    expected, expected_gradients = backward(model, F.cross_entropy(masks, target, ignore_index=255))
    actual, actual_gradients = backward(patched, patched.loss(images, target))
    torch.testing.assert_close(actual, expected)
    assert_gradients_agree(actual_gradients, expected_gradients, 1e-9)
    assert torch.equal(patched.predict_labels(images).long(), masks.argmax(1))


def test_smp_loss_never_has_full_scores(no_full_scores):
    model = doubles.SegmentationModel(CLASSES)
    fcn_fast.patch(model)
    images, target = batch()
    model.loss(images, target).backward()
    model.predict_labels(images)
    with pytest.raises(RuntimeError, match="Wrong input shape"):
        model.loss(images[..., :-1], target[..., :-1])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"activation": nn.Sigmoid()}, "its segmentation head has an activation"),
        ({"classification_head": nn.Linear(3, 3)}, "it has a classification head"),
    ],
)
def test_smp_models_without_known_scores(options, why):
    model = doubles.SegmentationModel(CLASSES, **options)
    assert why in str(fcn_fast.patch(model))
    assert not hasattr(model, "loss") and not hasattr(model, "predict_labels")


@pytest.mark.parametrize("head", [nn.Conv2d(8, CLASSES, 1), nn.Sequential(nn.Conv2d(8, CLASSES, 1), nn.Sigmoid())])
def test_smp_heads_of_another_kind(head):
    model = doubles.SegmentationModel(CLASSES)
    model.segmentation_head = head
    assert "its segmentation head is not a convolution, an upsampling" in str(fcn_fast.patch(model))
    assert not hasattr(model, "loss") and not hasattr(model, "predict_labels")


def mmseg_inputs(device):
    features = {
        "fine": torch.randn(2, 8, 12, 16, device=device, dtype=torch.float64),
        "coarse": torch.randn(2, 12, 6, 8, device=device, dtype=torch.float64),
    }
    _, target = batch(device)
    return features, target.unsqueeze(1)


MMSEG = [
    {"losses": [doubles.CrossEntropyLoss()]},
    {"losses": [doubles.CrossEntropyLoss(avg_non_ignore=True, loss_weight=0.4)], "align_corners": True},
    {"losses": [doubles.CrossEntropyLoss([0.5, 1, 2, 1, 1, 0], avg_non_ignore=True, reduction="sum")]},
    {"losses": [doubles.CrossEntropyLoss([0.5, 1, 2, 1, 1, 0], avg_non_ignore=True), doubles.CrossEntropyLoss()]},
    {"losses": [doubles.CrossEntropyLoss()], "sampler": doubles.Sampler()},
    {"losses": [doubles.CrossEntropyLoss(sigmoid=True)]},
]


@pytest.mark.parametrize("options", MMSEG)
def test_mmseg_heads(options, device):
    model, patched = copies(doubles.DecodeHead(CLASSES, **copy.deepcopy(options)).to(device).double())
    report = fcn_fast.patch(patched)
    operations = {row.note.partition(",")[0] for row in report.replaced}
    assert operations == {"skip_fuse", "bilinear_upsample", "upsample_softmax_loss", "upsample_argmax"}
    features, target = mmseg_inputs(device)
    expected = model.loss_by_feat(model(features), target)
    actual = patched.loss_by_feat(patched(features), target)
    assert list(actual) == list(expected)
    torch.testing.assert_close(actual["acc_seg"], expected["acc_seg"], rtol=1e-5, atol=0)
    (one, one_gradients), (other, other_gradients) = (
        backward(model, expected["loss_ce"]),
        backward(patched, actual["loss_ce"]),
    )
    torch.testing.assert_close(other, one, rtol=1e-6, atol=0)  # its 1e-7 beside the count is float32's
    assert_gradients_agree(other_gradients, one_gradients, 1e-6)


def test_mmseg_loss_never_has_full_scores(no_full_scores):
    model = doubles.DecodeHead(CLASSES, MMSEG[0]["losses"]).double()
    fcn_fast.patch(model)
    features, target = mmseg_inputs("cpu")
    losses = model.loss_by_feat(model(features), target)
    losses["loss_ce"].backward()
    assert losses["acc_seg"].shape == (1,)
