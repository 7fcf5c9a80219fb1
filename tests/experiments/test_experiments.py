"""The experiments: that each runs, on a net and a number of steps that are tiny, and what they do to the pictures."""

import csv
import functools
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fcn_fast import cli, experiments
from fcn_fast.data.shapes import Shapes
from fcn_fast.data.transforms import VOID
from fcn_fast.experiments import masking, report, runs
from fcn_fast.experiments.pixels import RULES
from fcn_fast.experiments.upper_bounds import coarsened
from fcn_fast.models import from_safetensors


def tiny(run):
    if run is None:
        return None
    solver = replace(run.solver, steps=2, batch=1, iter_size=min(run.solver.iter_size, 2))
    return replace(run, solver=solver, start=tiny(run.start), trunk=tiny(run.trunk), evaluations=1)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(runs, "WIDTH", 0.02)
    monkeypatch.setattr(runs, "HELD_OUT", 2)
    monkeypatch.setattr(runs, "Shapes", functools.partial(Shapes, 32))
    monkeypatch.setattr(runs.Pictures, "_made", {})
    monkeypatch.setattr("fcn_fast.experiments.upper_bounds._PICTURES", 1)
    perform = runs.perform
    for module in (report, masking):
        monkeypatch.setattr(module, "perform", lambda run, folder: perform(tiny(run), folder))


def test_every_experiment_writes_a_table_and_a_figure(small, tmp_path, capsys):
    trained = set()
    for name in experiments.NAMES:
        assert cli.main(["experiment", name, "--out", str(tmp_path)]) == 0
        folder = tmp_path / name
        assert capsys.readouterr().out == (folder / "table.md").read_text()
        rows = json.loads((folder / "table.json").read_text())["rows"]
        with open(folder / "table.csv", newline="") as file:
            assert [list(row) for row in csv.DictReader(file)] == [list(row) for row in rows]
        table = (folder / "table.md").read_text().splitlines()
        assert len([line for line in table if line.startswith("|")]) == len(rows) + 2 and len(rows) >= 3
        assert (folder / "samples.png").exists() == (name not in ("masking", "upper-bounds"))
        with Image.open(folder / "figure.png") as figure:
            assert figure.width >= 600 and len(figure.convert("RGB").getcolors(1 << 20)) > 50
        trained |= {path.name for path in (tmp_path / "runs").iterdir()} if name != "upper-bounds" else set()
    assert {"fcn32s", "fcn8s", "pretrained", "points-1", "momentum-0.99-of-1"} <= trained


def test_another_seed_is_another_run(small, tmp_path, capsys):
    assert cli.main(["experiment", "upsampling", "--out", str(tmp_path), "--seed", "3"]) == 0
    assert "`fcn-fast experiment upsampling --seed 3` made this" in capsys.readouterr().out
    assert (tmp_path / "upsampling-seed-3" / "figure.png").exists() and not (tmp_path / "upsampling").exists()
    run = runs.tuned("some")
    other = run.seeded(3)
    # No picture that another seed trains on, and none of those that its trunk was trained on.
    sets = [(each.trunk.pictures, each.pictures) for each in (run, run.seeded(1), run.seeded(2), other)]
    assert len({number for pair in sets for number in pair}) == 8
    assert (other.name, other.seed, other.trunk.seed) == ("some-seed-3", 3, 3) and run.seeded(0) is run
    first, second = (runs.perform(tiny(each), tmp_path / "runs").model.state_dict() for each in (run, other))
    assert any((first[name] != second[name]).any() for name in first)


def test_a_run_is_done_once(small, tmp_path, monkeypatch, capsys):
    run = tiny(runs.tuned("some", pixels="uniform 1/100"))
    first = runs.perform(run, tmp_path)
    *_, last = capsys.readouterr().err.splitlines()  # where there is no terminal
    assert last == f"some: step 2 of 2, loss {first.log[-1][2]:.4g}, mean IU {first.log[-1][3]:.3f}"
    assert [row[0] for row in first.log] == [1, 2] and first.log[-1][3] == pytest.approx(first.measures["mean_iu"])
    train = runs._train
    monkeypatch.setattr(runs, "_train", None)
    assert runs.perform(run, tmp_path) == first
    first.weights.unlink()  # as in a record without its weights
    monkeypatch.setattr(runs, "_train", train)
    assert runs.perform(run, tmp_path).measures == pytest.approx(first.measures) and first.weights.exists()
    monkeypatch.setattr(runs, "_train", None)
    with pytest.raises(TypeError):
        runs.perform(replace(run, points=3), tmp_path)


def test_runs_start_from_a_trunk_or_from_all_weights(small, tmp_path):
    still = replace(runs.SOLVER, steps=1, lr=0.0, weight_decay=0.0, batch=1)
    first = runs.perform(tiny(runs.Run("first", "voc-fcn16s")), tmp_path)
    given = first.model.state_dict()
    for name in ("trunk", "start"):
        run = runs.Run(name, "voc-fcn8s", still, **{name: tiny(runs.Run("first", "voc-fcn16s"))})
        weights = from_safetensors(runs.perform(run, tmp_path).weights).state_dict()
        for key, value in given.items():
            kept = name == "start" or "score" not in key
            assert torch.equal(weights[key], value if kept else torch.zeros_like(value))


def test_masks_hide_what_they_say(seed):
    x, target = torch.randn(3, 8, 8), torch.randint(0, 3, (8, 8))
    target[0, 0], target[0, 1] = 0, 1
    background = target == 0
    assert (runs.masked(x, target, ()) == x).all()
    foreground = runs.masked(x, target, ("background",))
    assert not foreground[:, background].any() and (foreground[:, ~background] == x[:, ~background]).all()
    behind = runs.masked(x, target, ("foreground",))
    assert not behind[:, ~background].any() and (behind[:, background] == x[:, background]).all()
    shape = runs.masked(x, target, ("foreground", "background"))
    assert not shape[:, background].any() and (shape[:, ~background] == 128).all()


def test_points_are_so_many_of_each_class(seed):
    target = torch.randint(0, 4, (20, 20))
    target[:5] = VOID
    target[10, 10:12] = 7
    sparse = runs.pointed(target, 3, torch.Generator().manual_seed(seed))
    kept = sparse != VOID
    assert (sparse[kept] == target[kept]).all()
    assert torch.bincount(sparse[kept]).tolist() == [3, 3, 3, 3, 0, 0, 0, 2]
    assert (runs.pointed(target, 3, torch.Generator().manual_seed(seed + 1)) != sparse).any()


@pytest.fixture
def target():
    target = torch.randint(0, 3, (2, 70, 100)) ** 2 % 3  # 0, 1 and 1: twice as many of one class
    target[:, 60:] = 5
    target[:, :4] = VOID
    return target


def test_uniform_sampling_keeps_a_share(target):
    weights = RULES["uniform 1/100"](target.repeat(20, 1, 1))
    assert set(weights.unique().tolist()) == {0.0, 1.0}
    assert weights.mean().item() == pytest.approx(0.01, rel=0.2)


def test_cells_are_kept_whole(target):
    for name, share in (("cells 1/2", 0.5), ("cells 1/4", 0.25)):
        weights = RULES[name](target.repeat(200, 1, 1))
        for rows in (slice(0, 32), slice(32, 64), slice(64, 70)):
            for columns in (slice(0, 32), slice(96, 100)):
                cell = weights[:, rows, columns]
                assert (cell == cell[:, :1, :1]).all()
                assert cell[:, 0, 0].mean().item() == pytest.approx(share, abs=0.15)


def test_poisson_sampling_is_the_loss_on_average(target):
    many = target.repeat(100, 1, 1)
    weights = RULES["poisson 1/100"](many)
    kept = weights > 0
    counts = [int((kept & (many == label)).sum()) for label in (0, 1, 5)]
    valid = (many != VOID).sum().item()
    assert counts == pytest.approx([valid / 300] * 3, rel=0.2) and not weights[many == VOID].any()
    for label in (0, 1, 5):
        assert weights[many == label].mean().item() == pytest.approx(1, rel=0.25)


def test_balanced_classes_weigh_the_same(target):
    weights = RULES["balanced"](target)
    sums = [weights[target == label].sum().item() for label in (0, 1, 5)]
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-4)


@pytest.mark.parametrize("factor", [1, 4, 7, 32])
def test_coarsened_labels_are_the_largest_shares(factor):
    labels = torch.randint(0, 3, (2, 4, 5)).repeat_interleave(9, 1).repeat_interleave(8, 2)
    labels[:, 3] = VOID
    shares = torch.stack([labels == label for label in range(3)], 1).float()
    height, width = labels.shape[1:]
    shares = F.pad(shares, (0, -width % factor, 0, -height % factor))
    cells = shares.unfold(2, factor, factor).unfold(3, factor, factor).mean((-1, -2))
    fine = F.interpolate(cells, scale_factor=factor, mode="bilinear")[:, :, :height, :width]
    found = coarsened(labels, factor, 3).long()
    # Where two shares are equal to rounding, either class is right.
    assert (fine.gather(1, found[:, None]) >= fine.amax(1, keepdim=True) - 1e-5).all()
    if factor == 1:
        assert (found == labels)[labels != VOID].all()
