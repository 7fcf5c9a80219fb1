"""transformers' models that patch was not written for: depth, masks by queries, segmentation of later families."""

import copy

import pytest
import torch

import fcn_fast

from .families import CLASSES, batch
from .support import assert_gradients_agree, assert_same_fields, gradients

t = pytest.importorskip("transformers")
_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
    "out_indices": [1, 2, 3, 4],
    "reshape_hidden_states": False,
}
_NECK = {"neck_hidden_sizes": [8, 8, 12, 16], "fusion_hidden_size": 16}


def glpn():
    sizes = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2]}
    return t.GLPNForDepthEstimation(t.GLPNConfig(**sizes, decoder_hidden_size=8))


def depth_anything():
    sizes = {"patch_size": 16, "reassemble_hidden_size": 16, "head_hidden_size": 8}
    backbone = t.Dinov2Config(**_VIT, apply_layernorm=True)
    return t.DepthAnythingForDepthEstimation(t.DepthAnythingConfig(backbone_config=backbone, **sizes, **_NECK))


def zoedepth():
    bins = [{"n_bins": 8, "min_depth": 0.01, "max_depth": 10.0, "name": "nyu"}]
    sizes = {"bottleneck_features": 16, "num_relative_features": 8, "bin_embedding_dim": 8, "bin_configurations": bins}
    backbone = t.BeitConfig(**_VIT, intermediate_size=24)
    return t.ZoeDepthForDepthEstimation(t.ZoeDepthConfig(backbone_config=backbone, **sizes, **_NECK))


def mask2former():
    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2, "image_size": 64}
    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_attention_heads": 2, "num_queries": 5}
    layers = {"encoder_feedforward_dim": 16, "dim_feedforward": 16, "encoder_layers": 2, "decoder_layers": 2}
    backbone = t.SwinConfig(**swin, out_features=stages)
    return t.Mask2FormerForUniversalSegmentation(t.Mask2FormerConfig(backbone_config=backbone, **sizes, **layers))


def tipsv2_dpt():
    backbone = t.AutoConfig.for_model("tipsv2_vision_model", **_VIT, apply_layernorm=True)
    return t.Tipsv2DptForSemanticSegmentation(
        t.Tipsv2DptConfig(backbone_config=backbone, num_labels=CLASSES, semantic_loss_ignore_index=255, **_NECK)
    )


def sapiens2():
    sizes = {"num_hidden_layers": 2, "num_key_value_heads": 2, "intermediate_size": 24}
    options = {name: value for name, value in _VIT.items() if name not in (*sizes, "out_indices")}
    head = {"upsample_out_channels": [8, 8], "conv_out_channels": [8]}
    return t.Sapiens2ForSemanticSegmentation(t.Sapiens2Config(**options, **sizes, head_config=head, num_labels=CLASSES))


@pytest.mark.parametrize("make", [glpn, depth_anything, zoedepth, mask2former, tipsv2_dpt, sapiens2])
@pytest.mark.parametrize("train", [False, True])
def test_step_agrees(make, train, device):
    try:
        model = make().to(device, torch.float64).train(train)
    except (AttributeError, ValueError) as error:
        pytest.skip(f"not in transformers {t.__version__}: {error}")
    patched = copy.deepcopy(model)
    report = fcn_fast.patch(patched)
    assert report.replaced and not report.left
    images, labels = batch(dtype=torch.float64, device=device)
    semantic = type(model).__name__.endswith("ForSemanticSegmentation")
    assert any(row.note == "upsample_softmax_loss" for row in report.replaced) == semantic
    outputs = []
    for one in (model, patched):
        torch.manual_seed(0)  # of dropout
        output = one(images, **({"labels": labels} if semantic else {}))
        outputs.append(output)
        first = next(value for value in output.values() if isinstance(value, torch.Tensor))
        first.pow(2).mean().backward()
    expected, actual = outputs
    assert_same_fields(actual, expected, rtol=1e-9, atol=1e-9)
    assert_gradients_agree(gradients(patched), gradients(model), 1e-7)
