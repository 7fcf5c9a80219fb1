"""The solvers: the published values, and that training with them is what Caffe's SGD does."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fcn_fast import models
from fcn_fast.models import VARIANTS
from fcn_fast.train import SOLVERS, Solver, Trainer, initialise

from .support import net, pictures

# net: learning rate, momentum, iter_size, steps, what it starts from.
PUBLISHED = {
    "voc-fcn32s": (1e-10, 0.99, 1, 25 * 4000, "vgg16"),
    "voc-fcn16s": (1e-12, 0.99, 1, 25 * 4000, "voc-fcn32s"),
    "voc-fcn8s": (1e-14, 0.99, 1, 25 * 4000, "voc-fcn16s"),
    "voc-fcn8s-atonce": (1e-10, 0.99, 1, 75 * 4000, "vgg16"),
    "voc-fcn-alexnet": (1e-4, 0.9, 20, 100_000, "alexnet"),
    "nyud-fcn32s-color": (1e-10, 0.99, 1, 50 * 2000, "vgg16"),
    "nyud-fcn32s-hha": (1e-10, 0.99, 1, 50 * 2000, "vgg16"),
    "nyud-fcn32s-color-d": (1e-10, 0.99, 1, 50 * 2000, "vgg16"),
    "nyud-fcn32s-color-hha": (1e-12, 0.99, 1, 50 * 2000, "nyud-fcn32s-color+nyud-fcn32s-hha"),
    "siftflow-fcn32s": (1e-10, 0.99, 1, 50 * 2000, "vgg16"),
    "siftflow-fcn16s": (1e-12, 0.99, 1, 50 * 2000, "siftflow-fcn32s"),
    "siftflow-fcn8s": (1e-12, 0.99, 1, 50 * 2000, "siftflow-fcn16s"),
    "pascalcontext-fcn32s": (1e-10, 0.99, 1, 50 * 8000, "vgg16"),
    "pascalcontext-fcn16s": (1e-12, 0.99, 1, 50 * 8000, "pascalcontext-fcn32s"),
    "pascalcontext-fcn8s": (1e-14, 0.99, 1, 50 * 8000, "pascalcontext-fcn16s"),
}


def test_every_published_net_has_its_solver():
    assert set(PUBLISHED) == set(VARIANTS)
    for name, (lr, momentum, iter_size, steps, init) in PUBLISHED.items():
        reduction = "mean" if name == "voc-fcn-alexnet" else "sum"
        assert SOLVERS[name] == Solver(
            steps=steps, lr=lr, optimizer="sgd", momentum=momentum, weight_decay=5e-4, bias_lr=2.0,
            iter_size=iter_size, batch=1, reduction=reduction, schedule="fixed", warmup=0, precision="float32",
            dropout=0.5, init=init,
        )  # fmt: skip


def test_steps_are_those_of_caffe(seed):
    """V = momentum V + lr (gradient / iter_size + decay w), w -= V; for biases lr is twice as much and decay 0."""
    solver = Solver(steps=3, lr=1e-4, momentum=0.9, weight_decay=0.1, iter_size=2, dropout=0.0)
    data, model = pictures(5, seed), net(solver)
    twin = net(solver)
    twin.load_state_dict(model.state_dict())
    images = []
    trainer = Trainer(model, _Watched(data, images), solver, seed=seed)
    velocity = {name: torch.zeros_like(weight) for name, weight in twin.named_parameters()}
    for _ in range(3):
        images.clear()
        trainer.advance()
        twin.zero_grad()
        assert len(images) == solver.iter_size
        for index in images:
            x, target = data[index]
            scores = twin(x[None])
            F.cross_entropy(scores, target[None], ignore_index=255, reduction="sum").backward()
        with torch.no_grad():
            for name, weight in twin.named_parameters():
                bias = name.endswith("bias")
                gradient = weight.grad / 2 + (0 if bias else 0.1) * weight
                velocity[name] = 0.9 * velocity[name] + (2e-4 if bias else 1e-4) * gradient
                weight -= velocity[name]
    for (name, weight), (_, expected) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(
            weight, expected, rtol=1e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


class _Watched:
    """A data set that notes in order which items were taken."""

    def __init__(self, data, taken):
        self.data, self.taken = data, taken

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        self.taken.append(index)
        return self.data[index]


def test_learning_rates_rise_and_fall():
    solver = replace(SOLVERS["modern"], steps=100, warmup=10, lr=1.0, bias_lr=3.0)
    optimizer = solver.optimizer_of(net(solver))
    rates = [solver.set_lr(optimizer, step) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11) and max(rates) == rates[10] and rates[-1] < 1e-3
    assert rates[50] == pytest.approx(0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [rates[-1], 3 * rates[-1]]
    fixed = replace(solver, schedule="fixed")
    assert {fixed.set_lr(optimizer, step) for step in range(10, 100)} == {1.0}


def test_modern_training_learns_in_bf16(seed):
    solver = replace(SOLVERS["modern"], steps=30, warmup=0, lr=3e-3, batch=2, dropout=0.0)
    trainer = Trainer(net(solver), pictures(2, seed), solver, seed=seed)
    losses = [trainer.advance()[0] for _ in range(30)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_scores_start_at_zero(seed):
    model = net(SOLVERS["voc-fcn8s"])
    x = pictures(1, seed)[0][0][None]
    assert not model(x).any() and model.stage3.dropout.p == 0.5
    # Kaiming's deviation for 3x3x3 inputs, over that of pixels.
    first = models.build("voc-fcn32s", 21, 0.5)
    initialise(first, SOLVERS["shapes"])
    assert first.stage1.conv1_1.weight.std().item() == pytest.approx((2 / 27) ** 0.5 / 60, rel=0.2)


@pytest.mark.parametrize("values", [{"lr": -1.0}, {"momentum": 1.0}, {"steps": 0}, {"batch": 1.5}, {"iter_size": True},
                                    {"optimizer": "lbfgs"}, {"schedule": "poly"}, {"precision": "fp8"},
                                    {"reduction": "none"}, {"dropout": 1.0}, {"lr": float("nan")}])  # fmt: skip
def test_values_that_are_none(values):
    with pytest.raises(ValueError, match=f"^{next(iter(values))}: expected .*, got "):
        Solver(**{"steps": 1, "lr": 1.0} | values)
