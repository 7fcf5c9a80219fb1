"""The loop: batches, the order of the images, accumulation, sampled losses, evaluation."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fcn_fast import eager, models, ops
from fcn_fast.metrics import ConfusionMatrix
from fcn_fast.train import SOLVERS, Trainer, evaluate, pad_batch

from .support import net, pictures

SOLVER = replace(SOLVERS["shapes"], steps=4, warmup=0, batch=1, iter_size=4, dropout=0.5)


def test_batches_are_padded_with_the_mean_and_void(seed):
    sizes = [(5, 9), (7, 4), (6, 6)]
    items = [(torch.randn(3, h, w), torch.randint(0, 21, (h, w))) for h, w in sizes]
    x, target = pad_batch(items)
    assert x.shape == (3, 3, 7, 9) and target.shape == (3, 7, 9)
    for i, ((h, w), (image, labels)) in enumerate(zip(sizes, items, strict=True)):
        assert (x[i, :, :h, :w] == image).all() and (target[i, :h, :w] == labels).all()
        assert not x[i, :, h:].any() and not x[i, :, :, w:].any()
        assert (target[i, h:] == 255).all() and (target[i, :, w:] == 255).all()
    heads = pad_batch([(image, {"sem": labels, "geo": labels % 3}) for image, labels in items])[1]
    assert (heads["sem"] == target).all() and (heads["geo"] == torch.where(target == 255, 255, target % 3)).all()


def test_every_epoch_is_all_images_in_another_order(seed):
    taken = []

    class Watched(type(pictures(1, 0))):
        def __getitem__(self, index):
            taken.append(index)
            return super().__getitem__(index)

    solver = replace(SOLVER, batch=3, iter_size=1, steps=10)
    trainer = Trainer(net(solver), Watched(32, "train", length=10), solver, seed=seed)
    for _ in range(10):
        trainer.advance()
    epochs = [taken[start : start + 10] for start in (0, 10, 20)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert epochs[0] != epochs[1] != epochs[2]


def test_accumulated_gradients_are_those_of_a_batch(seed):
    """A loss summed over pixels: four images in turn have the mean of their gradients, a quarter of the batch's."""
    solver = replace(SOLVER, optimizer="sgd", reduction="sum", lr=1e-6, momentum=0.0, weight_decay=0.0, dropout=0.0)
    models_of = [net(solver, "voc-fcn32s") for _ in range(2)]
    models_of[1].load_state_dict(models_of[0].state_dict())
    start = [weight.clone() for weight in models_of[0].parameters()]
    data = pictures(8, seed)
    loss, _ = Trainer(models_of[0], data, solver, seed=seed).advance()
    whole = replace(solver, batch=4, iter_size=1, lr=solver.lr / 4)
    batch_loss, _ = Trainer(models_of[1], data, whole, seed=seed).advance()
    assert loss == pytest.approx(batch_loss / 4, rel=1e-4)
    for before, one, other in zip(start, *(model.parameters() for model in models_of), strict=True):
        torch.testing.assert_close(one - before, other - before, rtol=2e-2, atol=1e-6)
    assert any((one != before).any() for before, one in zip(start, models_of[0].parameters(), strict=True))


def test_pixels_count_as_they_are_weighed(seed):
    solver = replace(SOLVER, iter_size=1, batch=2, dropout=0.0)
    data, model = pictures(2, seed), net(solver)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn_like(weight)
    given = []

    def weigh(target):
        given.append((target, torch.rand(target.shape)))
        return given[-1][1]

    trainer = Trainer(model, data, solver, seed=seed, pixel_weight=weigh)
    x, target = pad_batch([data[0], data[1]])
    scores = model(x)
    loss, _ = trainer.advance()
    order = [next(i for i in range(2) if (data[i][1] == row).all()) for row in given[0][0]]
    terms = F.cross_entropy(scores[order], target[order], ignore_index=255, reduction="none")
    weights = given[0][1] * (target[order] != 255)
    assert loss == pytest.approx(((terms * weights).sum() / weights.sum()).item(), rel=1e-4)


def test_evaluation_counts_every_pixel_once(seed):
    model, data = net(), pictures(5, seed)
    with torch.no_grad():
        model.stage3.score_fr.weight.normal_()
    model.train()
    matrix = evaluate(model, data, batch=2)
    assert model.training
    expected = torch.zeros(21, 21, dtype=torch.int64)
    model.eval()
    for x, target in data:
        valid = target != 255
        labels = model(x[None]).argmax(1)[0]
        expected.index_put_((target[valid], labels[valid]), torch.ones(int(valid.sum()), dtype=torch.int64), True)
    assert (matrix.matrix == expected).sum() >= 441 - 4 and matrix.matrix.sum() == expected.sum()
    assert evaluate(model, data, count=2).matrix.sum() == sum((data[i][1] != 255).sum() for i in range(2))


def test_evaluation_is_at_native_size(seed):
    """Padded to the size of others an image's labels would be others."""
    model, data = net(), pictures(3, seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1 if "score" in name else 0)
    items = [(x[:, :height, :width], target[:height, :width])
             for (x, target), (height, width) in zip(data, ((32, 9), (20, 32), (7, 30)), strict=True)]  # fmt: skip
    expected = ConfusionMatrix(21)
    for x, target in items:
        expected.update(model.eval().predict(x[None])[0], target)
    assert (evaluate(model, _Items(items)).matrix == expected.matrix).all()


class _Items(list):
    ignore_index = 255


def test_losses_are_those_of_pytorch(seed):
    """Three steps at a time, as rounding grows from step to step in any training."""
    solver = replace(SOLVER, iter_size=1, batch=4, steps=24, lr=2e-3)
    theirs, ours = (Trainer(net(solver, ops=side), pictures(8, seed), solver, seed=seed) for side in (eager, ops))
    losses, differences = [], []
    for step in range(solver.steps):
        if step % 3 == 0:
            ours.model.load_state_dict(theirs.model.state_dict())
            ours.optimizer.load_state_dict(copy.deepcopy(theirs.optimizer.state_dict()))
        loss, other = theirs.advance()[0], ours.advance()[0]
        losses.append(loss)
        differences.append(abs(other - loss) / loss)
    assert min(losses) < 0.98 * losses[0]  # the weights move
    # A unit or a pooling window at a tie goes one way or the other, so not each of them.
    assert sorted(differences)[len(differences) * 3 // 4] < 3e-6


def test_two_heads_are_trained_and_measured(seed):
    class Twofold(type(pictures(1, 0))):
        def __getitem__(self, index):
            x, target = super().__getitem__(index)
            return x, {"sem": target, "geo": torch.where(target == 255, 255, target % 3)}

    model = models.build("siftflow-fcn16s", {"sem": 21, "geo": 3}, 0.02, padding="lean")
    data = Twofold(32, "train", length=3, seed=seed)
    loss, _ = Trainer(model, data, SOLVER, seed=seed).advance()
    matrices = evaluate(model, data)
    assert loss > 0 and matrices["sem"].num_classes == 21 and matrices["geo"].num_classes == 3


def test_an_iter_size_that_processes_cannot_share(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="iter_size: expected a multiple of the 3 processes, got 4"):
        Trainer(net(), pictures(1, 0), SOLVER)
