"""Ways of training: precisions, checkpointing, accumulation, determinism, memory formats, CUDA graphs."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fcn_fast

from ..patch.families import batch as images_and_labels
from ..patch.families import beit, build, segformer
from ..patch.support import assert_gradients_agree, copies, gradients, step
from .net import Net, batch


@pytest.fixture
def nets(device):
    """A net and its patched copy."""
    model, patched = copies(Net().to(device))
    fcn_fast.patch(patched)
    return model, patched


def backward(model, inputs, scale=lambda loss: loss):
    loss, scores = model(*inputs)
    scale(loss).backward()
    return loss.detach(), scores.detach(), gradients(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_with_a_loss_scaler(nets, device, dtype):
    inputs = batch(device=device)
    results = []
    for model in nets:
        scaler = torch.amp.GradScaler(device, init_scale=2.0**10, enabled=dtype is torch.float16)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with torch.autocast(device, dtype):
            loss, scores = model(*inputs)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        results.append((loss.detach(), scores.detach(), gradients(model)))
        scaler.step(optimizer)
        scaler.update()
    (expected, expected_scores, grads), (loss, scores, patched_grads) = results
    assert (loss.dtype, scores.dtype) == (expected.dtype, expected_scores.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(loss, expected, rtol=2e-3, atol=0)  # PyTorch rounds the upsampled scores
    assert_gradients_agree(patched_grads, grads, relative=3e-2)
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(nets, device, reentrant):
    _, patched = nets
    images, labels = batch(device=device)
    expected, _, grads = backward(patched, (images, labels))
    patched.zero_grad()
    loss, _ = checkpoint(patched, images.requires_grad_(), labels, use_reentrant=reentrant)
    loss.backward()
    torch.testing.assert_close(loss, expected)  # on a GPU other kernels make it where there is no gradient
    assert_gradients_agree(gradients(patched), grads, 1e-5)


@pytest.mark.parametrize("family", [segformer, beit])
def test_checkpointing_of_transformers(family, device):
    model = build(family).to(device).train()
    fcn_fast.patch(model)
    images, labels = images_and_labels(device=device)
    plain, checkpointed = copies(model)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    expected, expected_gradients = step(plain, images, labels)
    actual, actual_gradients = step(checkpointed, images, labels)
    torch.testing.assert_close(actual.loss, expected.loss)
    assert_gradients_agree(actual_gradients, expected_gradients)


def test_accumulation(nets, device):
    for model in nets:
        for seed in range(3):
            (model(*batch(seed, device=device))[0] / 3).backward()
    assert_gradients_agree(gradients(nets[1]), gradients(nets[0]))
    for one, other in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
        assert one.grad.shape == other.grad.shape


def test_the_same_bits_every_time_in_deterministic_mode(nets, device, deterministic):
    inputs = batch(size=64, device=device)
    results = []
    for _ in range(3):
        patched = copy.deepcopy(nets[1])
        loss, scores, grads = backward(patched, inputs)
        results.append({"loss": loss, "scores": scores, **grads})
    for other in results[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in results[0].items())


def test_channels_last(nets, device):
    images, labels = batch(device=device)
    expected, expected_scores, grads = backward(nets[0], (images, labels))
    patched = nets[1].to(memory_format=torch.channels_last)
    loss, scores, patched_grads = backward(patched, (images.contiguous(memory_format=torch.channels_last), labels))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert scores.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(scores, expected_scores)
    assert_gradients_agree(patched_grads, grads)


@pytest.mark.cuda
def test_cuda_graphs():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    model = Net().cuda()
    fcn_fast.patch(model)
    static = [tensor.clone() for tensor in batch(device="cuda")]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model.zero_grad(set_to_none=True)
            model(*static)[0].backward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    model.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        loss = model(*static)[0]
        loss.backward()
    for seed in (1, 2):
        for tensor, fresh in zip(static, batch(seed, device="cuda"), strict=True):
            tensor.copy_(fresh)
        graph.replay()
        replayed, grads = loss.clone(), gradients(model)
        eager = copy.deepcopy(model)
        eager.zero_grad(set_to_none=True)
        expected = eager(*static)[0]
        expected.backward()
        torch.testing.assert_close(replayed, expected.detach())
        assert_gradients_agree(grads, gradients(eager))
