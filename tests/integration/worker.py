"""One rank of the distributed tests: python worker.py RANK RANKS DEVICE FOLDER.

Runs every case and saves what it got as FOLDER/RANK.pt: {case: {"loss": ..., "gradients": {parameter: ...}}}.
"""

import copy
import importlib.util
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fcn_fast

specification = importlib.util.spec_from_file_location("net", Path(__file__).with_name("net.py"))
net = importlib.util.module_from_spec(specification)
specification.loader.exec_module(net)


class WithLoss(torch.nn.Module):
    """The net's scores, and a criterion of its own: what a user's training loop wraps."""

    def __init__(self, model, criterion):
        super().__init__()
        self.model, self.criterion = model, criterion

    def forward(self, images, labels):
        return self.criterion(self.model(images), labels), None


def step(model, rank, device):
    """Two steps of accumulation; the second reduces. The ranks ignore very different shares of their pixels."""
    losses = []
    for i in range(2):
        images, labels = net.batch(seed=10 * rank + i, ignored=(0.05, 0.8)[rank % 2], device=device)
        loss = model(images, labels)[0]
        loss.backward()
        losses.append(loss.detach().cpu())
    full = {name: getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for name, p in model.named_parameters()}
    return {"loss": losses, "gradients": {name.removeprefix("module."): grad.cpu() for name, grad in full.items()}}


def cases(device, mesh):
    torch.manual_seed(0)
    model = net.Net().to(device)
    patched = copy.deepcopy(model)
    fcn_fast.patch(patched)
    # fully_shard changes the classes of what it is given.
    yield "ddp", DistributedDataParallel(copy.deepcopy(model))
    yield "ddp patched", DistributedDataParallel(copy.deepcopy(patched))
    yield "ddp patched compiled", torch.compile(DistributedDataParallel(copy.deepcopy(patched)), backend="aot_eager")
    for name, sharded in (("fsdp", copy.deepcopy(model)), ("fsdp patched", copy.deepcopy(patched))):
        fully_shard(sharded.head, mesh=mesh)
        yield name, fully_shard(sharded, mesh=mesh)
    criterion = fcn_fast.nn.CrossEntropyLoss(ignore_index=255, global_mean=True)
    yield "ddp global mean", DistributedDataParallel(WithLoss(copy.deepcopy(model), criterion))
    sharded = WithLoss(copy.deepcopy(model), criterion)
    yield "fsdp global mean", fully_shard(sharded, mesh=mesh)


def main(rank, ranks, device, folder):
    rank, ranks = int(rank), int(ranks)
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    if device == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    backend = "gloo" if device == "cpu" else "nccl"
    dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    mesh = init_device_mesh(torch.device(device).type, (ranks,))  # left to itself fully_shard takes a GPU where one is
    results = {name: step(model, rank, device) for name, model in cases(device, mesh)}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
