"""``fcn-fast eval`` on narrow nets and small trees: its numbers against numpy's, its files, and what it refuses."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from fcn_fast import cli, data, evaluate, models
from fcn_fast.data import shapes
from fcn_fast.data.transforms import TRANSFORMS

from .data import trees

NARROW = 1 / 64


@pytest.fixture
def generator(seed):
    return np.random.default_rng(seed)


@pytest.fixture
def weights(tmp_path):
    """Saves the weights of a random net; the path."""

    def save(name, **options):
        path = tmp_path / f"{name}.safetensors"
        models.save_safetensors(models.build(name, width=NARROW, **options), path)
        return path

    return save


def run(*arguments):
    return cli.main(["eval", *(str(argument) for argument in arguments)])


def refused(capsys, *arguments):
    """The one line of a command that must end with code 2."""
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("fcn-fast: ") and err.count("\n") == 1
    return err


def counted(path, dataset):
    """{head: numpy (C, C)} by way of full-resolution scores."""
    net = models.from_safetensors(path).eval()
    counts = {head: np.zeros((classes, classes), int) for head, classes in net.heads.items()}
    for image, target in dataset:
        with torch.no_grad():
            scores = net(image[None])
        scores, target = (part if isinstance(part, dict) else {"": part} for part in (scores, target))
        for head, matrix in counts.items():
            truth, labels = target[head].numpy(), scores[head][0].argmax(0).numpy()
            np.add.at(matrix, (truth[truth != 255], labels[truth != 255]), 1)
    return counts


def agrees(report, counts, names):
    """Whether the numbers in a report are those of this matrix (shelhamer's score.py, in numpy)."""
    np.testing.assert_array_equal(report["matrix"], counts)
    with np.errstate(invalid="ignore"):
        accuracy = np.diag(counts) / counts.sum(1)
        iu = np.diag(counts) / (counts.sum(0) + counts.sum(1) - np.diag(counts))
    frequency = counts.sum(1) / counts.sum()
    assert report["pixel_accuracy"] == pytest.approx(np.diag(counts).sum() / counts.sum())
    assert report["mean_accuracy"] == pytest.approx(np.nanmean(accuracy))
    assert report["mean_iu"] == pytest.approx(np.nanmean(iu))
    assert report["mean_iu_of_true_classes"] == pytest.approx(iu[counts.sum(1) > 0].mean())
    assert report["frequency_weighted_iu"] == pytest.approx(np.nansum(frequency * iu))
    rows = zip(report["classes"], names, counts.sum(1), accuracy, iu, strict=True)
    for row, name, pixels, of_accuracy, of_iu in rows:
        assert row["name"] == name and row["pixels"] == pixels
        for value, expected in ((row["accuracy"], of_accuracy), (row["iu"], of_iu)):
            assert value is None if np.isnan(expected) else value == pytest.approx(expected)


@pytest.mark.parametrize("kind, name", [("voc", "voc-fcn8s"), ("nyud", "nyud-fcn32s-color-hha")])
def test_evaluates(kind, name, tmp_path, generator, weights, capsys, monkeypatch):
    getattr(trees, kind)(tmp_path / "set", generator)
    path, out = weights(name), tmp_path / "new" / "out"
    dataset = data.open_data(f"{kind}:{tmp_path / 'set'}", transform=TRANSFORMS[models.VARIANTS[name].transform])
    counts = counted(path, dataset)[""]
    monkeypatch.setattr(models.FCN, "forward", None)  # it would hold the logits
    assert run("--data", f"{kind}:{tmp_path / 'set'}", "--weights", path, "--out", out, "--device", "cpu") == 0
    printed, err = capsys.readouterr()
    assert not err  # no progress where there is no terminal
    assert sorted(file.name for file in out.iterdir()) == ["confusion.png", "evaluation.json"]

    report = json.loads((out / "evaluation.json").read_text())
    assert (report["model"], report["split"]) == (name, "test" if kind == "nyud" else "val")
    assert (report["images"], report["skipped"]) == (3, {})
    assert re.match(rf"{name} on {kind}:\S+, {report['split']}: 3 images in \d+\.\d s\n\n", printed)
    agrees(report["heads"]["labels"], counts, dataset.classes)
    for measure, label in evaluate.MEASURES.items():
        assert re.search(rf"^{label} +{report['heads']['labels'][measure]:.2%}$", printed, re.M)
    for row, total in zip(report["heads"]["labels"]["classes"], [counts.sum()] * len(counts), strict=True):
        shown = ["-" if v is None else f"{v:.2%}" for v in (row["pixels"] / total, row["accuracy"], row["iu"])]
        assert re.search(rf"^{row['name']} +{' +'.join(map(re.escape, shown))}$", printed, re.M)
    picture = np.asarray(Image.open(out / "confusion.png").convert("RGB"))
    assert min(picture.shape[:2]) > 500 and picture.std() > 10


def test_generated_pictures(tmp_path, weights, monkeypatch):
    monkeypatch.setitem(shapes._SPLITS, "val", 4)
    path = weights("voc-fcn16s")
    counts = counted(path, data.open_data("shapes:40x33"))[""]
    assert run("--data", "shapes:40x33", "--weights", path, "--out", tmp_path, "--skip-broken") == 0
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert (report["images"], report["split"], report["skipped"]) == (4, "val", {})
    agrees(report["heads"]["labels"], counts, shapes.CLASSES)


def test_two_heads(tmp_path, generator, weights, capsys):
    trees.siftflow(tmp_path / "set", generator, split="few")
    path, out = weights("siftflow-fcn16s"), tmp_path / "out"
    spec = f"siftflow:{tmp_path / 'set'}"
    counts = counted(path, data.open_data(spec, "few"))
    assert run("--data", spec, "--weights", path, "--out", out, "--split", "few") == 0
    assert sorted(file.name for file in out.iterdir()) == ["confusion_geo.png", "confusion_sem.png", "evaluation.json"]
    report = json.loads((out / "evaluation.json").read_text())
    for head, names in data.SIFTFlow.classes.items():
        agrees(report["heads"][head], counts[head], names)
    printed = capsys.readouterr().out
    assert printed.index("\nsem:\n") < printed.index("\nawning ") < printed.index("\ngeo:\n")


def test_says_when_a_class_is_predicted_that_does_not_occur(tmp_path, generator, weights, capsys):
    stored = trees.voc(tmp_path, generator)
    for name, labels in stored.items():
        trees.save_palette(tmp_path / "SegmentationClass" / f"{name}.png", np.full_like(labels, 3))
    net = models.build("voc-fcn32s", width=NARROW)
    for label, mean in ((5, "0.00%"), (3, "100.00%")):
        with torch.no_grad():
            net.stage3.score_fr.bias.zero_()[label] = 1e6
        models.save_safetensors(net, tmp_path / "net.safetensors")
        assert run("--data", f"voc:{tmp_path}", "--weights", tmp_path / "net.safetensors", "--out", tmp_path) == 0
        printed = capsys.readouterr().out
        assert re.search(rf"^mean IU +{mean}$", printed, re.M)
        said = "(mean IU 0.00% of the 1 classes that occur; others were predicted)" in printed
        assert said == (label == 5)


def test_broken_files(tmp_path, generator, weights, capsys):
    trees.voc(tmp_path, generator)
    options = ["--data", f"voc:{tmp_path}", "--weights", weights("voc-fcn32s"), "--out", tmp_path]
    broken = tmp_path / "JPEGImages" / "2008_000123.jpg"
    broken.write_text("not an image")
    assert f"image: expected an image such as a JPEG or PNG, got {broken}" in refused(capsys, *options)
    assert not (tmp_path / "evaluation.json").exists()
    assert run(*options, "--skip-broken") == 0
    printed = capsys.readouterr().out
    assert f"skipped 1 images, the first: image: expected an image such as a JPEG or PNG, got {broken}" in printed
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["images"] == 2 and list(report["skipped"]) == ["2008_000123"]


def test_nothing_labelled(tmp_path, generator, weights, capsys):
    stored = trees.voc(tmp_path, generator)
    for name, labels in stored.items():
        trees.save_palette(tmp_path / "SegmentationClass" / f"{name}.png", np.full_like(labels, 255))
    assert run("--data", f"voc:{tmp_path}", "--weights", weights("voc-fcn32s"), "--out", tmp_path) == 0
    assert re.search(r"^mean IU +-$", capsys.readouterr().out, re.M)
    assert json.loads((tmp_path / "evaluation.json").read_text())["heads"]["labels"]["mean_iu"] is None


def test_what_cannot_be_evaluated(tmp_path, generator, weights, capsys):
    trees.voc(tmp_path / "voc", generator)
    trees.siftflow(tmp_path / "sift", generator)
    net, options = weights("voc-fcn32s"), ["--out", tmp_path / "out"]
    line = refused(capsys, "--data", f"coco:{tmp_path}", "--weights", net, *options)
    assert "data: expected KIND:PATH with one of nyud, pascalcontext, " in line and f"got coco:{tmp_path}" in line
    line = refused(capsys, "--data", f"voc:{tmp_path}", "--weights", net, *options)
    assert f"data: expected a folder with ImageSets/Segmentation, got {tmp_path}" in line
    line = refused(capsys, "--data", f"voc:{tmp_path / 'voc'}", "--split", "test", "--weights", net, *options)
    assert "split: expected one of the lists (val), got " in line
    line = refused(capsys, "--data", f"siftflow:{tmp_path / 'sift'}", "--weights", net, *options)
    assert "data: expected labels of 21 classes, as voc-fcn32s gives, got 33 sem and 3 geo" in line
    line = refused(capsys, "--data", f"voc:{tmp_path / 'voc'}", "--weights", weights("nyud-fcn32s-color-d"), *options)
    assert "data: expected a data set with depth, got one with color" in line
    other = models.build("voc-fcn32s", width=NARROW)
    other.class_names = {"": shapes.CLASSES}
    models.save_safetensors(other, tmp_path / "shapes.safetensors")
    line = refused(capsys, "--data", f"voc:{tmp_path / 'voc'}", "--weights", tmp_path / "shapes.safetensors", *options)
    assert "data: expected the classes of the weights, such as striped disc, got aeroplane there" in line
    line = refused(capsys, "--data", f"voc:{tmp_path / 'voc'}", "--weights", tmp_path / "none.pth", *options)
    assert "weights: expected a file that can be read, got" in line


def test_help_names_every_kind(capsys):
    with pytest.raises(SystemExit):
        run("--help")
    printed = capsys.readouterr().out
    assert all(re.search(rf"\b{kind}\b", printed) for kind in data.KINDS)
