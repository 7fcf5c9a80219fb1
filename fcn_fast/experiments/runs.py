"""One runner for all experiments: trains each net that they ask for once, and measures it on held-out Shapes."""

import csv
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from fcn_fast import models
from fcn_fast.data.shapes import CLASSES, Shapes
from fcn_fast.data.transforms import VOID
from fcn_fast.experiments.pixels import RULES
from fcn_fast.train import SOLVERS, Solver, Trainer, evaluate, initialise, zero_scores

__all__ = ["PRETRAINED", "SCRATCH", "SOLVER", "Result", "Run", "held_out", "perform", "tuned"]

SCRATCH = replace(SOLVERS["shapes"], steps=1500)
SOLVER = replace(SCRATCH, steps=1000, lr=2e-3)
WIDTH = 1 / 16
HELD_OUT = 200


@dataclass(frozen=True)
class Run:
    """A net to train, from scratch or from another run's.

    Args:
        name: of its folder.
        model: name of the net, on VGG-16, padded lean, 1/16 as wide as published.
        solver: how it is trained.
        start: the run whose weights it starts from, as 16s from 32s.
        trunk: the run whose trunk alone it starts from, as the published nets from VGG-16.
        learned_upsampling: as in :class:`fcn_fast.models.FCN`.
        pixels: how pixels are sampled, one of :data:`fcn_fast.experiments.pixels.RULES`.
        mask: what training hides, ``"foreground"``, ``"background"`` or both, as :func:`masked` takes it.
        points: labelled pixels of each class in a picture, at random places; None for all.
        pictures: the set of pictures to train on.
        seed: of the first weights and the order of the pictures.
        evaluations: how often the held-out pictures are measured on the way, at the end too.
    """

    name: str
    model: str = "voc-fcn32s"
    solver: Solver = SOLVER
    start: "Run | None" = None
    trunk: "Run | None" = None
    learned_upsampling: bool | str = False
    pixels: str | None = None
    mask: tuple[str, ...] = ()
    points: int | None = None
    pictures: int = 0
    seed: int = 0
    evaluations: int = 6

    def seeded(self, seed):
        """This run and those that it starts from with another seed, on other pictures."""
        if not seed:
            return self
        given = {name: other.seeded(seed) for name in ("start", "trunk") if (other := getattr(self, name))}
        return replace(self, name=f"{self.name}-seed-{seed}", pictures=self.pictures + 2 * seed, seed=seed, **given)


PRETRAINED = Run("pretrained", "voc-fcn8s", SCRATCH, pictures=1)
"""What stands for VGG-16 trained on ImageNet: a trunk trained on other pictures."""


def tuned(name, model="voc-fcn8s", **options):
    """A run that starts from the trunk of :data:`PRETRAINED`."""
    return Run(name, model, trunk=PRETRAINED, **options)


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        measures: {measure: value} on the held-out pictures.
        log: (step, images, loss of the step, mean IU or None) of every step.
        weights: path of the trained net.
    """

    measures: dict
    log: list
    weights: Path

    @property
    def model(self):
        return models.from_safetensors(self.weights)


class Pictures(Dataset):
    """Shapes, each made once and kept; with hidden pixels or labels."""

    ignore_index, classes = VOID, CLASSES
    _made = {}

    def __init__(self, split, length, mask=(), points=None, seed=0):
        self.shapes, self.mask, self.points = Shapes(split=split, length=length, seed=seed), mask, points
        self.kept = self._made.setdefault((split, seed), {})

    def __len__(self):
        return len(self.shapes)

    def __getitem__(self, index):
        if index not in self.kept:
            self.kept[index] = self.shapes.picture(index)
        picture, labels = self.kept[index]
        x, target = self.shapes.transform(picture)[0], torch.from_numpy(labels).long()
        generator = torch.Generator().manual_seed(index)
        return masked(x, target, self.mask), target if self.points is None else pointed(target, self.points, generator)


def masked(x, target, hidden):
    """The image with the mean in place of its ``"foreground"`` or ``"background"``.

    Where both are hidden only the shape is left: the foreground is as bright as can be, the background the mean.
    """
    background = target == 0
    if "background" in hidden:
        x = x.masked_fill(background, 0)
    if "foreground" in hidden:
        x = x.masked_fill(~background, 128 if "background" in hidden else 0)
    return x


def pointed(target, points, generator):
    """The target with only so many random pixels of each of its classes left, the others void."""
    sparse = torch.full_like(target, VOID)
    for label in target.unique().tolist():
        places = (target == label).flatten().nonzero()[:, 0]
        chosen = places[torch.randperm(len(places), generator=generator)[:points]]
        sparse.view(-1)[chosen] = label
    return sparse


def held_out(hidden=()):
    return Pictures("val", HELD_OUT, hidden)


def perform(run, folder):
    """Train a run, unless its folder holds it already.

    Args:
        run: a :class:`Run`.
        folder: of all runs.

    Returns:
        A :class:`Result`.
    """
    path = Path(folder) / run.name
    record, weights = path / "result.json", path / "weights.safetensors"
    spec = json.loads(json.dumps(asdict(run)))
    if record.exists() and weights.exists() and (path / "log.csv").exists():
        recorded = json.loads(record.read_text())
        if recorded["run"] == spec:
            return Result(recorded["measures"], _read_log(path / "log.csv"), weights)
    given = {name: perform(other, folder) for name in ("start", "trunk") if (other := getattr(run, name))}
    path.mkdir(parents=True, exist_ok=True)
    model, log, matrix = _train(run, **given)
    models.save_safetensors(model, weights)
    with open(path / "log.csv", "w", newline="") as file:
        csv.writer(file).writerows([("step", "images", "loss", "mean_iu"), *log])
    measures = {
        name: getattr(matrix, name) for name in ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu")
    }
    record.write_text(json.dumps({"run": spec, "measures": measures, "iu": matrix.iu.tolist()}, indent=1) + "\n")
    return Result(measures, _read_log(path / "log.csv"), weights)


def _train(run, start=None, trunk=None):
    solver = run.solver
    torch.manual_seed(run.seed)
    model = models.build(run.model, len(CLASSES), WIDTH, padding="lean", learned_upsampling=run.learned_upsampling).to(
        memory_format=torch.channels_last
    )
    model.class_names = {"": CLASSES}
    initialise(model, solver)
    if trunk:
        models.transplant(model, trunk.model)
        zero_scores(model)
    if start:
        models.transplant(model, start.model)
    rule = RULES[run.pixels] if run.pixels else None
    data = Pictures("train", 8000, run.mask, run.points, run.pictures)
    trainer = Trainer(model, data, solver, seed=run.seed, pixel_weight=rule)
    shown = held_out(run.mask)
    marks = {round(solver.steps * (i + 1) / run.evaluations) for i in range(run.evaluations)}
    log = []
    with tqdm(range(1, solver.steps + 1), desc=run.name, disable=None, leave=False) as progress:
        for step in progress:
            loss, _ = trainer.advance()
            matrix = evaluate(model, shown, batch=8) if step in marks else None
            mean_iu = matrix and matrix.mean_iu
            log.append((step, step * solver.batch * solver.iter_size, loss, "" if mean_iu is None else mean_iu))
            if mean_iu is not None:
                progress.set_postfix(loss=f"{loss:.3g}", mean_iu=f"{mean_iu:.3f}")
                if progress.disable:  # no terminal: a log shows how far it is
                    so_far = f"step {step:,} of {solver.steps:,}, loss {loss:.4g}, mean IU {mean_iu:.3f}"
                    print(f"{run.name}: {so_far}", file=sys.stderr)
    return model.eval(), log, matrix


def _read_log(path):
    with open(path, newline="") as file:
        rows = list(csv.reader(file))[1:]
    return [(int(a), int(b), float(c), float(d) if d else None) for a, b, c, d in rows]
