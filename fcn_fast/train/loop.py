"""The training loop, in which everything random is a function of the seed and the number of the micro-batch.

So a run that was stopped goes on bit for bit from its weights, its optimiser and the number of its step, and several
processes that share the micro-batches of a step compute what one computes that takes them in turn.
"""

import contextlib

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from fcn_fast.command import InputError
from fcn_fast.data.transforms import VOID
from fcn_fast.metrics import ConfusionMatrix

__all__ = ["Trainer", "evaluate", "pad_batch"]


class Trainer:
    """Trains a net on a data set, step by step.

    In a process group (torchrun) each process takes its share of every step's micro-batches, and gradients are averaged
    by DistributedDataParallel.

    Args:
        model: an FCN, on its device, with the weights to start from.
        data: a data set, see :mod:`fcn_fast.data`.
        solver: a :class:`fcn_fast.train.solvers.Solver`.
        seed: of the order of the images, of dropout and of pixel_weight.
        pixel_weight: function of targets (N, H, W) to the weight of each pixel in the loss, float (N, H, W); it may
            draw from torch's global generator.
        workers: processes that load images.

    Attributes:
        step: steps done; set it, with the model and the optimiser, before the first :meth:`advance` to go on.

    Raises:
        ValueError: an empty data set, or an iter_size that the processes cannot share.
    """

    def __init__(self, model, data, solver, *, seed=0, pixel_weight=None, workers=0):
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if solver.iter_size % self.world:
            raise ValueError(f"iter_size: expected a multiple of the {self.world} processes, got {solver.iter_size}")
        if not len(data):
            raise ValueError("data: expected at least one image, got none")
        self.model, self.data, self.solver = model, data, solver
        self.seed, self.pixel_weight, self.workers = seed, pixel_weight, workers
        self.device = next(model.parameters()).device
        self.optimizer = solver.optimizer_of(model)
        self.step = 0
        loss = _Loss(model, reduction=solver.reduction, ignore_index=getattr(data, "ignore_index", None))
        self.loss = nn.parallel.DistributedDataParallel(loss) if self.world > 1 else loss
        self._batches = None

    def advance(self):
        """Do one step; returns its loss, the mean over the micro-batches of all processes, and the learning rate.

        Raises:
            InputError: an image that cannot be read; the weights and the optimiser are as before the step.
        """
        if self._batches is None:
            order = _Order(
                len(self.data), self.solver.batch, self.seed, self.step * self.solver.iter_size, self.rank, self.world
            )
            self._batches = iter(
                DataLoader(_Items(self.data), batch_sampler=order, collate_fn=_collate, num_workers=self.workers)
            )
        lr = self.solver.set_lr(self.optimizer, self.step)
        own = self.solver.iter_size // self.world
        self.model.train()
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        for turn in range(own):
            micro = self.step * self.solver.iter_size + turn * self.world + self.rank
            last = turn == own - 1
            with contextlib.nullcontext() if last or self.world == 1 else self.loss.no_sync():
                total += self._backward(micro, own)
        self.optimizer.step()
        self.step += 1
        if self.world > 1:
            dist.all_reduce(total)
        return total.item() / self.world, lr

    def _backward(self, micro, own):
        """One micro-batch's share of the gradient; returns that of the loss."""
        batch = next(self._batches)
        if isinstance(batch, InputError):
            raise batch
        x, target = batch
        x = x.to(self.device, memory_format=torch.channels_last)
        target = (
            {head: part.to(self.device) for head, part in target.items()}
            if isinstance(target, dict)
            else target.to(self.device)
        )
        torch.manual_seed(_seed(self.seed, 1, micro))
        weights = {} if self.pixel_weight is None else {"pixel_weight": self.pixel_weight(target)}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.solver.precision == "bf16"):
            loss = self.loss(x, target, **weights) / own
        loss.backward()
        return loss.detach()


class _Loss(nn.Module):
    """The loss as a forward, which is what DistributedDataParallel wraps."""

    def __init__(self, model, **options):
        super().__init__()
        self.model, self.options = model, options

    def forward(self, x, target, **weights):
        return self.model.loss(x, target, **self.options, **weights)


class _Items:
    """A data set that gives the error in place of an item: raised in a worker it would arrive as a traceback."""

    def __init__(self, data):
        self.data = data

    def __getitem__(self, index):
        try:
            return self.data[index]
        except InputError as error:
            return error


def _collate(items):
    return next((item for item in items if isinstance(item, InputError)), None) or pad_batch(items)


class _Order(torch.utils.data.Sampler):
    """The images of each micro-batch of one process: every epoch is all images in an order of its own."""

    def __init__(self, length, batch, seed, start, rank, world):
        self.length, self.batch, self.seed, self.start, self.rank, self.world = length, batch, seed, start, rank, world

    def __iter__(self):
        epoch = order = None
        micro = self.start + self.rank
        while True:
            indices = []
            for place in range(micro * self.batch, (micro + 1) * self.batch):
                if place // self.length != epoch:
                    epoch = place // self.length
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
                indices.append(int(order[place % self.length]))
            yield indices
            micro += self.world


def _seed(*key):
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def pad_batch(items):
    """Items of a data set as one batch: images padded with 0, the mean, at the bottom and right, targets with 255.

    Args:
        items: of (C, H, W) images and (H, W) targets, or {head: target}, of any sizes.

    Returns:
        (N, C, H, W) and (N, H, W), or {head: (N, H, W)}, of the largest height and width.
    """
    images, targets = zip(*items, strict=True)
    size = tuple(max(image.shape[axis] for image in images) for axis in (1, 2))
    if isinstance(targets[0], dict):
        labels = {head: _stack([target[head] for target in targets], size, VOID) for head in targets[0]}
    else:
        labels = _stack(targets, size, VOID)
    return _stack(images, size, 0), labels


def _stack(maps, size, value):
    return torch.stack(
        [nn.functional.pad(m, (0, size[1] - m.shape[-1], 0, size[0] - m.shape[-2]), value=value) for m in maps]
    )


@torch.no_grad()
def evaluate(model, data, count=None, batch=1, progress=False):
    """The :class:`ConfusionMatrix` of a net on a data set, {head: matrix} for several heads.

    Several processes share the work. The net is left in the mode it was in.

    Args:
        model: an FCN.
        data: a data set, see :mod:`fcn_fast.data`.
        count: only the first images; all unless given.
        batch: images at a time. Of different sizes they are padded, and a net sees the padding: one by one they count
            at their native size.
        progress: whether to show it, on a terminal.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device, training = next(model.parameters()).device, model.training
    matrices = {head: ConfusionMatrix(classes, data.ignore_index) for head, classes in model.heads.items()}
    indices = range(len(data))[:count]
    order = [indices[start : start + batch] for start in range(rank * batch, len(indices), batch * world)]
    model.eval()
    batches = DataLoader(data, batch_sampler=order, collate_fn=pad_batch)
    with tqdm(batches, disable=None if progress else True, leave=False, unit="image") as shown:
        for x, target in shown:
            labels = model.predict(x.to(device, memory_format=torch.channels_last))
            for head, matrix in matrices.items():
                part, truth = (labels[head], target[head]) if head else (labels, target)
                matrix.update(part, truth.to(device))
            if progress:
                shown.set_postfix_str(", ".join(f"mean IU {matrix.mean_iu:.3f}" for matrix in matrices.values()))
    model.train(training)
    if world > 1:
        for matrix in matrices.values():
            dist.all_reduce(matrix.matrix)
    return matrices if isinstance(model.num_classes, dict) else matrices[""]
