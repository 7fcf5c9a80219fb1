"""DistributedDataParallel and FSDP2 on two ranks: patched nets, and the mean over the pixels of all ranks.

On a machine with a single GPU, nccl has one rank.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from .net import Net, batch


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def results(request, tmp_path_factory):
    """What each rank got in each case."""
    count = 2 if request.param == "cpu" else min(2, torch.cuda.device_count())
    if count == 0:
        pytest.skip("no GPU")
    if not torch.distributed.is_available():
        pytest.skip("torch without torch.distributed")
    folder = tmp_path_factory.mktemp("ranks")
    worker = Path(__file__).with_name("worker.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "localhost", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-P", worker, str(rank), str(count), request.param, folder],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        outputs = [rank.communicate(timeout=240)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(outputs)
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


@pytest.mark.parametrize(
    ("patched", "plain"), [("ddp patched", "ddp"), ("ddp patched compiled", "ddp"), ("fsdp patched", "fsdp")]
)
def test_patched_agrees(results, patched, plain):
    for rank in results:
        torch.testing.assert_close(rank[patched]["loss"], rank[plain]["loss"], rtol=1e-5, atol=0)
        names = [name.removeprefix("_orig_mod.module.") for name in rank[patched]["gradients"]]
        gradients = dict(zip(names, rank[patched]["gradients"].values(), strict=True))
        torch.testing.assert_close(gradients, rank[plain]["gradients"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_global_mean_is_that_of_one_process_with_the_whole_batch(results, kind):
    torch.manual_seed(0)
    model = Net()
    expected = []
    for i in range(2):
        parts = [batch(seed=10 * rank + i, ignored=(0.05, 0.8)[rank]) for rank in range(len(results))]
        images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        upsampled = F.interpolate(model(images), size=labels.shape[-2:], mode="bilinear")
        loss = F.cross_entropy(upsampled, labels, ignore_index=255)
        loss.backward()
        expected.append(loss.detach())
    case = f"{kind} global mean"
    for i in range(2):
        mean = sum(rank[case]["loss"][i] for rank in results) / len(results)
        torch.testing.assert_close(mean, expected[i], rtol=1e-5, atol=0)
    gradients = {f"model.{name}": parameter.grad for name, parameter in model.named_parameters()}
    for rank in results:
        torch.testing.assert_close(rank[case]["gradients"], gradients, rtol=1e-4, atol=1e-7)
        # which the mean of the ranks' means is not, with so many pixels ignored on one of them
        plain = {f"model.{name}": gradient for name, gradient in rank[kind]["gradients"].items()}
        same = all(torch.allclose(plain[name], gradients[name], rtol=1e-2) for name in gradients)
        assert same == (len(results) == 1)
