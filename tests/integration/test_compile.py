"""torch.compile and torch.export of patched models and of the criteria, as one graph."""

import copy

import pytest
import torch

import fcn_fast
from fcn_fast import nn

from ..patch.families import batch as images_and_labels
from ..patch.families import beit, build, segformer, upernet
from ..patch.support import assert_gradients_agree, gradients
from .net import CLASSES, Net, batch


def patched(model):
    fcn_fast.patch(model)
    return model


@pytest.fixture
def net(device):
    return patched(Net().to(device))


@pytest.mark.parametrize(("dynamic", "backend"), [(False, "inductor"), (True, "aot_eager")])
def test_compiled_net(net, device, compile, dynamic, backend):
    compiled = compile(copy.deepcopy(net), dynamic=dynamic, backend=backend)
    for seed, size in enumerate((32, 48) if dynamic else (32,)):
        inputs = batch(seed=seed, size=size, count=2 + seed, device=device)
        (loss, scores), (expected_loss, expected_scores) = compiled(*inputs), net(*inputs)
        torch.testing.assert_close((loss, scores), (expected_loss, expected_scores))
        loss.backward()
        expected_loss.backward()
    assert_gradients_agree(gradients(compiled._orig_mod), gradients(net))


@pytest.mark.parametrize("family", [segformer, beit, upernet])
def test_compiled_transformers(family, device, compile):
    model = patched(build(family, num_labels=CLASSES).to(device).eval())
    images, labels = images_and_labels(device=device)
    twin = copy.deepcopy(model)
    twin(images)  # installs the hooks of transformers, which torch.compile cannot
    compiled = compile(twin, backend="aot_eager")
    actual, expected = compiled(images, labels=labels), model(images, labels=labels)
    torch.testing.assert_close(actual.loss, expected.loss)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-4, atol=1e-4)
    actual.loss.backward()
    expected.loss.backward()
    assert_gradients_agree(gradients(compiled._orig_mod), gradients(model))


def test_patched_after_it_was_compiled(device, compile):
    model = Net().to(device)
    inputs = batch(device=device)
    compiled = compile(model, backend="aot_eager")
    expected = compiled(*inputs)[0]
    fcn_fast.patch(compiled)
    torch.testing.assert_close(compiled(*inputs)[0], expected)
    all_ignored = torch.full_like(inputs[1], 255)
    assert compiled(inputs[0], all_ignored)[0] == 0  # and not NaN: the patched code runs
    fcn_fast.unpatch(compiled)
    assert compiled(inputs[0], all_ignored)[0].isnan()
    torch.testing.assert_close(compiled(*inputs)[0], expected)


@pytest.mark.filterwarnings("ignore")
def test_traced_nets_run_the_models_own_code(net, device):
    images, labels = batch(device=device)
    traced = torch.jit.trace(net, (images, labels))
    assert "fcn_fast::" not in str(traced.inlined_graph) and "upsample_bilinear2d" in str(traced.inlined_graph)
    inputs = batch(seed=1, device=device)
    torch.testing.assert_close(traced(*inputs), net(*inputs))


CRITERIA = [
    nn.CrossEntropyLoss(ignore_index=255, label_smoothing=0.1),
    nn.CrossEntropyLoss(torch.linspace(0.1, 1, CLASSES), ignore_index=255, global_mean=True),
    nn.MMSegCrossEntropyLoss(class_weight=[1.0] * CLASSES, avg_non_ignore=True),
    nn.SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=255),
    nn.OHEMLoss(min_kept=50),
]


@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda criterion: type(criterion).__name__)
def test_compiled_criteria(criterion, device, compile):
    criterion = copy.deepcopy(criterion).to(device)
    options = {"ignore_index": 255} if isinstance(criterion, nn.MMSegCrossEntropyLoss) else {}
    scores, target = torch.randn(2, CLASSES, 8, 8, device=device), batch(device=device)[1]
    compiled = compile(criterion, backend="aot_eager")
    inputs = [scores.clone().requires_grad_() for _ in range(2)]
    actual, expected = compiled(inputs[0], target, **options), criterion(inputs[1], target, **options)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, inputs[0]), torch.autograd.grad(expected, inputs[1]))


@pytest.mark.parametrize("strict", [False, True])
def test_exported_net(net, device, strict):
    images, labels = batch(device=device)
    count = torch.export.Dim("count", min=2, max=16)
    dynamic = ({0: count}, {0: count})
    exported = torch.export.export(net, (images, labels), dynamic_shapes=dynamic, strict=strict)
    names = {str(node.target) for node in exported.graph.nodes}
    assert "fcn_fast.upsample_softmax_loss.default" in names and "fcn_fast.skip_fuse.default" in names
    assert not any("upsample_bilinear2d" in name for name in names)
    inputs = batch(seed=1, count=3, device=device)
    torch.testing.assert_close(exported.module()(*inputs), net(*inputs))


@pytest.mark.parametrize("family", [segformer, beit])
def test_exported_transformers(family, device):
    model = patched(build(family, num_labels=CLASSES).to(device).eval())
    images, labels = images_and_labels(device=device)
    exported = torch.export.export(model, (), {"pixel_values": images, "labels": labels})
    assert any("upsample_softmax_loss" in str(node.target) for node in exported.graph.nodes)
    images, labels = images_and_labels(device=device)
    actual, expected = exported.module()(pixel_values=images, labels=labels), model(images, labels=labels)
    torch.testing.assert_close(actual.loss, expected.loss)
