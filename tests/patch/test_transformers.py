"""Patched transformers models agree with their originals, in every output and every gradient."""

import copy
import io
import pickle
from types import SimpleNamespace

import pytest
import torch

import fcn_fast
from fcn_fast import ops
from fcn_fast.patch.twin import original

from .families import CLASSES, FAMILIES, batch, beit, build, dpt, segformer, upernet
from .support import assert_gradients_agree, assert_same_fields, copies, step

transformers = pytest.importorskip("transformers")
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)


@pytest.fixture
def full_logits(monkeypatch):
    """The shapes of the maps that were upsampled."""
    shapes = []
    upsample = ops.bilinear_upsample
    monkeypatch.setattr(ops, "bilinear_upsample", lambda *a, **k: shapes.append(out := upsample(*a, **k)) or out)
    return shapes


@every_family
@pytest.mark.parametrize(
    ("dtype", "loss", "gradient"),
    [(torch.float32, 1e-5, 1e-4), (torch.float64, 1e-11, 1e-9)],
    ids=["float32", "float64"],
)
def test_step_agrees(family, dtype, loss, gradient, device):
    model, patched = copies(build(family).to(device, dtype).train())
    assert fcn_fast.patch(patched)
    images, labels = batch(dtype=dtype, device=device)
    expected, expected_gradients = step(model, images, labels, output_hidden_states=True)
    actual, actual_gradients = step(patched, images, labels, output_hidden_states=True)
    assert_same_fields(actual, expected, rtol=loss, atol=10 * loss)
    torch.testing.assert_close(actual.loss, expected.loss, rtol=loss, atol=0)
    assert_gradients_agree(actual_gradients, expected_gradients, gradient)


@every_family
def test_outputs_agree_however_they_are_asked_for(family):
    model, patched = copies(build(family).eval())
    fcn_fast.patch(patched)
    images, labels = batch(size=(60, 72) if family is not upernet else (64, 64))
    for options in ({}, {"labels": labels}):
        for more in ({}, {"return_dict": False}, {"output_hidden_states": True}):
            with torch.no_grad():
                assert_same_fields(patched(images, **options, **more), model(images, **options, **more), 1e-4, 1e-5)


@every_family
def test_labels_by_position(family):
    model, patched = copies(build(family).eval())
    fcn_fast.patch(patched)
    images, labels = batch()
    position = (images, labels) if family is not upernet else (images, None, None, labels)
    torch.testing.assert_close(patched(*position).loss, model(*position).loss, rtol=1e-5, atol=0)


@every_family
def test_no_full_resolution_logits_in_the_loss(family, full_logits):
    patched = build(family).train()
    fcn_fast.patch(patched)
    images, labels = batch()
    patched(images, labels=labels).loss.backward()
    full = [x for x in full_logits if x.shape[1] == CLASSES and x.shape[-2:] == labels.shape[-2:]]
    # UperNet and DPT return their logits in full; those of their auxiliary heads are never made.
    assert len(full) == (family in (upernet, dpt))


@every_family
def test_report_names_the_loss(family):
    report = fcn_fast.patch(build(family))
    heads = 2 if family in (upernet, beit, dpt) or family.__name__ == "data2vec" else 1
    losses = [row for row in report.replaced if row.note == "upsample_softmax_loss"]
    assert len(losses) == heads and not report.left
    assert all(row.module == "model" for row in losses)
    for row in report.replaced:
        assert row.code and row.place.partition(".")[0] in str(report)
    assert any(row.note == "skip_fuse" for row in report.replaced) == (
        family.__name__ in ("upernet", "beit", "data2vec")
    )


@every_family
def test_class_state_copies_and_files_are_the_models_own(family, tmp_path):
    model = build(family).eval()
    kind, keys = type(model), list(model.state_dict())
    patched = copy.deepcopy(model)
    fcn_fast.patch(patched)
    assert isinstance(patched, kind) and type(patched).__name__ == kind.__name__ and type(model) is kind
    assert list(patched.state_dict()) == keys and repr(patched) == repr(model)
    twins = [copy.deepcopy(patched)]
    if family is not upernet:  # whose backbone has hooks that cannot be pickled, patched or not
        twins += [pickle.loads(pickle.dumps(patched)), _saved_and_loaded(patched)]
    images, labels = batch()
    expected = patched(images, labels=labels).loss
    for twin in twins:
        assert type(twin) is type(patched)
        assert torch.equal(twin(images, labels=labels).loss, expected)
        with torch.no_grad():
            for parameter in twin.parameters():  # its own, not those of the one it was copied from
                parameter.mul_(1.1)
        assert not torch.equal(twin(images, labels=labels).loss, expected)
        fcn_fast.unpatch(twin)
        assert type(twin) is kind
    patched.save_pretrained(tmp_path)
    assert type(kind.from_pretrained(tmp_path)) is kind and patched.config.architectures == [kind.__name__]


def _saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@every_family
def test_unpatch_gives_everything_back(family):
    model = build(family).eval()
    before = {name: type(module) for name, module in model.named_modules()}
    images, labels = batch()
    expected = model(images, labels=labels)
    fcn_fast.patch(model)
    fcn_fast.unpatch(model)
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert_same_fields(model(images, labels=labels), expected, 0, 0)
    fcn_fast.patch(model)  # and again


def test_other_instances_stay_as_they_are():
    model, other = copies(build(segformer))
    fcn_fast.patch(model)
    assert not any(original(module) for module in other.modules())
    assert torch.nn.functional.interpolate.__module__ == "torch.nn.functional"


@pytest.mark.parametrize("family", [segformer, upernet])
def test_nothing_but_ignored_pixels_is_zero(family):
    model = build(family).train()
    fcn_fast.patch(model)
    images, labels = batch()
    outputs, grads = step(model, images, torch.full_like(labels, 255))
    assert outputs.loss == 0 and all((grad == 0).all() for grad in grads.values())


def test_labels_out_of_range_are_named():
    model = build(segformer)
    fcn_fast.patch(model)
    images, labels = batch()
    labels[1, 2, 3] = CLASSES + 2
    with pytest.raises(ValueError, match=rf"got {CLASSES + 2} at \[1, 2, 3\]"):
        model(images, labels=labels)


def test_one_label_keeps_its_binary_loss():
    model, patched = copies(build(segformer, num_labels=1).train())
    report = fcn_fast.patch(patched)
    assert [row.note for row in report.left] == ["with one label it is no softmax cross entropy"]
    images, labels = batch(classes=2)
    expected, expected_gradients = step(model, images, labels.float())
    actual, actual_gradients = step(patched, images, labels.float())
    torch.testing.assert_close(actual.loss, expected.loss)
    assert_gradients_agree(actual_gradients, expected_gradients)


@pytest.mark.parametrize("family", [beit, upernet, dpt])
def test_without_an_auxiliary_head(family):
    model, patched = copies(build(family, use_auxiliary_head=False).eval())
    fcn_fast.patch(patched)
    images, labels = batch()
    if family is dpt:  # whose own loss needs that head
        with pytest.raises(UnboundLocalError):
            model(images, labels=labels)
        with pytest.raises(UnboundLocalError):
            patched(images, labels=labels)
    else:
        torch.testing.assert_close(patched(images, labels=labels).loss, model(images, labels=labels).loss)


def test_a_loss_function_of_the_users_own_is_kept():
    model = build(beit)
    fcn_fast.patch(model)
    model.loss_function = lambda logits, labels, **_: logits.sum() * 0 + 7
    images, labels = batch()
    assert model(images, labels=labels).loss == 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_dtype_of_the_loss(dtype, device):
    model, patched = copies(build(segformer).to(device, dtype).train())
    fcn_fast.patch(patched)
    images, labels = batch(dtype=dtype, device=device)
    expected, _ = step(model, images, labels)
    actual, _ = step(patched, images, labels)
    assert actual.loss.dtype == expected.loss.dtype == dtype
    torch.testing.assert_close(actual.loss, expected.loss, rtol=2e-2, atol=0)


_Known = transformers.SegformerForSemanticSegmentation


class _Changed(_Known):
    """As a later version may be: its loss is of another kind."""

    def forward(self, pixel_values, labels=None, **kwargs):
        outputs = _Known.forward(self, pixel_values, **kwargs)
        if labels is not None:
            logits = torch.nn.functional.interpolate(outputs.logits, size=labels.shape[-2:], mode="bilinear")
            outputs["loss"] = logits.float().pow(2).mean()
        return outputs


_Changed.__module__ = "transformers.models.segformer.modeling_segformer"
_Changed.__name__ = "SegformerForSemanticSegmentation"


def test_a_version_without_the_known_loss_is_told_and_right():
    model = build(segformer)
    model.__class__ = _Changed
    model, patched = model, build(segformer)
    patched.load_state_dict(model.state_dict())
    patched.__class__ = _Changed
    report = fcn_fast.patch(patched)
    assert "no upsampling into a cross entropy is found in its code" in str(report)
    images, labels = batch()
    torch.testing.assert_close(patched.eval()(images, labels=labels).loss, model.eval()(images, labels=labels).loss)


PROCESSORS = ["Segformer", "Beit", "DPT", "MobileViT", "MobileNetV2"]


@pytest.mark.parametrize("name", PROCESSORS)
def test_label_maps_of_processors(name, device):
    kind = getattr(transformers, f"{name}ImageProcessorPil", None) or getattr(transformers, f"{name}ImageProcessor")
    processor, patched = kind(), kind()
    report = fcn_fast.patch(patched)
    assert "upsample_argmax" in str(report)
    outputs = SimpleNamespace(logits=torch.randn(2, 7, 9, 11, dtype=torch.float64, device=device))  # no near ties
    for sizes in (None, [(30, 40), (17, 55)], [torch.Size((3, 4)), (9, 11)]):
        expected = processor.post_process_semantic_segmentation(outputs, sizes)
        for twin in (patched, copy.deepcopy(patched), pickle.loads(pickle.dumps(patched))):
            actual = twin.post_process_semantic_segmentation(outputs, target_sizes=sizes)
            assert_same_fields(actual, expected, 0, 0)
    with pytest.raises(ValueError, match="target sizes"):
        patched.post_process_semantic_segmentation(outputs, [(3, 4)])
    with pytest.raises(ValueError, match="not patched"):
        fcn_fast.patch(patched)
    fcn_fast.unpatch(patched)
    assert type(patched) is kind


class _FromTheSecondClass(transformers.SegformerImageProcessorPil):
    def post_process_semantic_segmentation(self, outputs, target_sizes=None):
        logits = outputs.logits[:, 1:]
        return torch.nn.functional.interpolate(logits, target_sizes[0], mode="bilinear").argmax(dim=1)


@pytest.mark.parametrize("kind", ["Tipsv2DptImageProcessor", "MaskFormerImageProcessorPil", _FromTheSecondClass])
def test_processors_that_do_otherwise_are_refused(kind):
    kind = getattr(transformers, kind, None) if isinstance(kind, str) else kind
    if kind is None:
        pytest.skip("not in this version of transformers, or not without torchvision")
    try:
        processor = kind()
    except ImportError as error:
        pytest.skip(str(error))
    with pytest.raises(TypeError, match="an image processor that makes label maps"):
        fcn_fast.patch(processor)


def test_processors_give_scores_where_they_are_asked_for():
    kind = transformers.SegformerImageProcessorPil
    processor, patched = kind(), kind()
    fcn_fast.patch(patched)
    outputs = SimpleNamespace(logits=torch.randn(2, 7, 9, 11))
    options = {"target_sizes": [(20, 20), (30, 30)], "return_segmentation_scores": True}
    for actual, expected in zip(
        patched.post_process_semantic_segmentation(outputs, **options),
        processor.post_process_semantic_segmentation(outputs, **options),
        strict=True,
    ):
        assert torch.equal(actual.segmentation, expected.segmentation)
        assert torch.equal(actual.segmentation_scores, expected.segmentation_scores)
