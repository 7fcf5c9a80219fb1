"""torchvision, segmentation_models_pytorch and mmsegmentation themselves, where they can be imported."""

import importlib

import pytest
import torch
import torch.nn.functional as F

import fcn_fast

from .support import assert_gradients_agree, copies, gradients

CLASSES = 5
SIZE = 128, 160


def library(name):
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # the second of torchvision beside another build of torch
        pytest.skip(f"no {name}: {error}")


def batch():
    target = torch.randint(0, CLASSES, (2, *SIZE))
    target[torch.rand(target.shape) < 0.2] = 255
    return torch.randn(2, 3, *SIZE, dtype=torch.float64), target


def trained(model, loss):
    """The loss of a step, its gradient and what the step leaves in the model's buffers."""
    torch.manual_seed(0)  # of dropout
    value = loss(model)
    value.backward()
    return value.detach(), gradients(model), dict(model.named_buffers())


def assert_steps_agree(actual, expected, relative=1e-7):
    torch.testing.assert_close(actual[0], expected[0], rtol=relative, atol=0)
    assert_gradients_agree(actual[1], expected[1], relative)
    torch.testing.assert_close(actual[2], expected[2])


def assert_same_labels(model, patched, images, scores):
    """Of their outputs, and of predict_labels."""
    with torch.no_grad():
        expected, actual = scores(model.eval()(images)), scores(patched.eval()(images))
        torch.testing.assert_close(actual, expected)
        assert torch.equal(patched.predict_labels(images).long(), expected.argmax(1))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fcn_resnet50", {"aux_loss": True}),
        ("fcn_resnet50", {}),
        ("deeplabv3_resnet50", {"aux_loss": True}),
        ("deeplabv3_mobilenet_v3_large", {"aux_loss": True}),
        ("lraspp_mobilenet_v3_large", {}),
    ],
)
def test_torchvision(name, options):
    build = getattr(library("torchvision.models.segmentation"), name)
    model, patched = copies(build(weights=None, weights_backbone=None, num_classes=CLASSES, **options).double())
    report = fcn_fast.patch(patched)
    assert len(report.replaced) >= 3 and not report.left
    images, target = batch()

    def loss(model):
        losses = {name: F.cross_entropy(x, target, ignore_index=255) for name, x in model(images).items()}
        return losses["out"] + 0.5 * losses.get("aux", 0)

    assert_steps_agree(trained(patched, lambda m: m.loss(images, target)), trained(model, loss))
    assert_same_labels(model, patched, images, lambda outputs: outputs["out"])


SMP = "Unet UnetPlusPlus MAnet Linknet FPN PSPNet DeepLabV3 DeepLabV3Plus PAN UPerNet Segformer"


@pytest.mark.parametrize("name", SMP.split())
def test_smp(name):
    build = getattr(library("segmentation_models_pytorch"), name)
    model, patched = copies(build("resnet18", encoder_weights=None, classes=CLASSES).double())
    report = fcn_fast.patch(patched)
    assert len(report.replaced) >= 2 and not report.left
    images, target = batch()
    expected = trained(model, lambda m: F.cross_entropy(m(images), target, ignore_index=255))
    assert_steps_agree(trained(patched, lambda m: m.loss(images, target)), expected)
    assert_same_labels(model, patched, images, lambda masks: masks)


def test_smp_dpt():
    build = library("segmentation_models_pytorch").DPT
    options = {"encoder_weights": None, "classes": CLASSES, "dynamic_img_size": True}
    model, patched = copies(build("tu-vit_tiny_patch16_224", **options).double())
    report = fcn_fast.patch(patched)
    assert report.replaced and "its segmentation head is not a convolution" in str(report)
    images, _ = batch()
    torch.testing.assert_close(patched.eval()(images), model.eval()(images))


CHANNELS = 16, 24, 32, 48
LAST = {"in_channels": 48, "in_index": 3}
ALL = {"in_channels": CHANNELS, "in_index": (0, 1, 2, 3)}
MMSEG = [
    ("FCNHead", LAST | {"num_convs": 1}),
    ("PSPHead", LAST | {"pool_scales": (1, 2)}),
    ("ASPPHead", LAST | {"dilations": (1, 2)}),
    ("DepthwiseSeparableASPPHead", LAST | {"dilations": (1, 2), "c1_in_channels": 16, "c1_channels": 8}),
    ("DAHead", LAST | {"pam_channels": 8}),
    ("UPerHead", ALL | {"pool_scales": (1, 2)}),
    ("FPNHead", ALL | {"feature_strides": (4, 8, 16, 32)}),
    ("SegformerHead", ALL),
]
LOSSES = [
    {"type": "CrossEntropyLoss"},
    {"type": "CrossEntropyLoss", "avg_non_ignore": True, "loss_weight": 0.4, "loss_name": "loss_other"},
    {"type": "DiceLoss", "loss_name": "loss_dice"},
]


@pytest.mark.parametrize("losses", [LOSSES[:1], LOSSES], ids=["softmax", "others_too"])
@pytest.mark.parametrize(("name", "options"), MMSEG, ids=[name for name, _ in MMSEG])
def test_mmseg(name, options, losses):
    build = getattr(library("mmseg.models.decode_heads"), name)
    config, structures = library("mmengine.config"), library("mmseg.structures")
    options = {"channels": 8, "num_classes": CLASSES, "align_corners": False, "norm_cfg": {"type": "BN"}} | options
    model, patched = copies(build(**options, loss_decode=losses).double())
    report = fcn_fast.patch(patched)
    assert not report.left
    assert {"upsample_softmax_loss", "upsample_argmax"} <= {row.note.partition(",")[0] for row in report.replaced}
    maps = [torch.randn(2, c, 64 >> i, 80 >> i, dtype=torch.float64) for i, c in enumerate(CHANNELS)]
    samples = []
    for labels in batch()[1]:
        samples.append(structures.SegDataSample(metainfo={"img_shape": SIZE}))
        samples[-1].gt_sem_seg = library("mmengine.structures").PixelData(data=labels[None])
    found = []

    def loss(model):
        found.append(model.loss(maps, samples, config.ConfigDict()))
        return sum(value for name, value in found[-1].items() if "loss" in name)

    # Beside a mean's count mmsegmentation adds 1e-7 in float32's way.
    assert_steps_agree(trained(patched, loss), trained(model, loss), 1e-6)
    assert list(found[0]) == list(found[1])
    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-5, atol=0)
    metas = [sample.metainfo for sample in samples]
    with torch.no_grad():
        actual, expected = (m.eval().predict(maps, metas, config.ConfigDict()) for m in (patched, model))
    torch.testing.assert_close(actual, expected)
