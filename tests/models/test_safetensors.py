"""Weights saved and loaded again, and handed from net to net."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from fcn_fast import models

from .support import build, image, published, refused, snapshot


@pytest.mark.parametrize(
    "name, options",
    [
        ("voc-fcn8s-atonce", {"num_classes": 5}),
        ("voc-fcn-alexnet", {}),
        ("voc-fcn16s", {"padding": "lean", "learned_upsampling": "grouped"}),
        ("siftflow-fcn8s", {"num_classes": {"sem": 4, "geo": 2}}),
        ("nyud-fcn32s-color-hha", {}),
    ],
)
def test_safetensors(name, options, tmp_path):
    model = build(name, **options)
    models.save_safetensors(model, tmp_path / "net.safetensors")
    assert os.listdir(tmp_path) == ["net.safetensors"]
    (tmp_path / "other").touch()
    assert (tmp_path / "net.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
    twin = models.from_safetensors(tmp_path / "net.safetensors")
    assert twin.variant is model.variant and twin.padding == model.padding and not twin.training
    x = image(model)
    with torch.no_grad():
        expected, actual = model(x), twin(x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    third = build(name, **options)
    models.load_safetensors(third, tmp_path / "net.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(third.parameters(), model.parameters(), strict=True))


def test_safetensors_of_another_net(tmp_path):
    path = tmp_path / "net.safetensors"
    models.save_safetensors(build("voc-fcn8s-atonce"), path)
    assert "got those of voc-fcn8s-atonce" in refused(models.load_safetensors, build("voc-fcn8s"), path)
    models.save_safetensors(build("voc-fcn16s"), path)
    refused(models.load_safetensors, build("voc-fcn8s"), path, "missing: score_pool3.weight: expected (21, 4, 1, 1)")
    state = load_file(path)
    state["stage3.more.weight"] = torch.zeros(2)
    save_file(state, path)
    refused(models.load_safetensors, build("voc-fcn16s"), path, "extra: stage3.more.weight: expected none, got (2,)")
    with pytest.raises(
        models.WeightsError, match=r"that fcn_fast.models.save_safetensors\(model, path\) wrote, got one"
    ):
        models.from_safetensors(path)
    path.write_bytes(b"nothing of the kind")
    refused(models.load_safetensors, build("voc-fcn8s"), path, "expected a safetensors file, got something else")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    models.save_safetensors(build("voc-fcn32s"), path)
    before = path.read_bytes()

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        models.save_safetensors(build("voc-fcn32s"), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["net.safetensors"]


def test_transplants_as_in_published_training():
    nets = [build(f"voc-fcn{stride}s", zero_scores=True) for stride in (32, 16, 8)]
    torch.nn.init.normal_(nets[0].stage3.score_fr.weight)
    x = image(nets[0], 40, 33)
    with torch.no_grad():
        for source, model in zip(nets, nets[1:], strict=False):
            result = models.transplant(model, source)
            assert result.extra == [] and {name.split(".")[0] for name in result.missing} <= {
                "score_pool4",
                "score_pool3",
            }
            for name, tensor in published(source).items():
                assert torch.equal(published(model)[name], tensor)
            assert model.stage3.score_fr.weight.std() > 0.5
            # New skips are zero: the finer net starts at the coarser one's scores, but for the finer interpolation.
            score = source.stage3.deepest(source.stage2(source.stage1(x)[0])[0])
            assert torch.equal(model.stage3.deepest(model.stage2(model.stage1(x)[0])[0]), score)
    assert nets[2].stage1.score_pool3.weight.abs().max() == nets[2].stage1.score_pool3.bias.abs().max() == 0


def test_late_fusion_starts_from_two_nets():
    color, hha, both = (build(f"nyud-fcn32s-{name}") for name in ("color", "hha", "color-hha"))
    models.transplant(both, color, stream="color")
    models.transplant(both, hha, stream="hha")
    x = image(both)
    with torch.no_grad():
        torch.testing.assert_close(both(x), (color(x[:, :3]) + hha(x[:, 3:])) / 2, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match=r"stream: expected one of \['color', 'hha'\], got 'depth'"):
        models.transplant(both, color, stream="depth")


def test_transplants_between_data_sets_name_what_does_not_fit():
    source, model = build("voc-fcn32s"), build("pascalcontext-fcn32s")
    before = snapshot(model)
    with pytest.raises(
        models.WeightsError, match=r"shape: score_fr.weight: expected \(60, 64, 1, 1\), got \(21, 64, 1, 1\)"
    ):
        models.transplant(model, source)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    with pytest.raises(models.WeightsError, match="got none of them"):
        models.transplant(build("voc-fcn-alexnet"), _without_common_names())


def _without_common_names():
    model = build("voc-fcn32s")
    del model.stage3.fc6, model.stage3.fc7, model.stage3.score_fr
    return model
