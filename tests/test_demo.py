"""The demo on a narrow net and a small image: what it prints, what it writes, and what it notices."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fcn_fast import cli, demo, ops
from fcn_fast.data import voc
from fcn_fast.models import fcn8s
from fcn_fast.pictures import save_labels


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr(demo, "fcn8s", lambda classes: fcn8s(classes, width=1 / 32))


def run(*arguments):
    return cli.main(["demo", "--size", "64", "--rounds", "1", "--device", "cpu", *map(str, arguments)])


def numbers(line):
    return [float(number) for number in re.findall(r"(?<= )-?\d+\.\d+(?=[ %x]|$)", line)]


def test_prints_the_table_and_writes_the_pictures(narrow, tmp_path, capsys):
    assert run("--out", tmp_path / "new" / "folder") == 0
    out, err = capsys.readouterr()
    assert "measuring" not in err  # no progress where there is no terminal
    lines = {line.split(":")[0].strip(): line for line in out.splitlines()}
    assert f"{torch.get_num_threads()} thread" in lines["device"] and "untrained" in lines["weights"]
    papers = [numbers(line)[0] for line in out.splitlines() if re.match("(stage|all stages) .*x$", line)]
    assert papers == [60.0, 18.7, 23.0, 101.7]
    for label in ("fusion and upsampling", "loss, forward and backward", "label map"):
        assert re.search(rf"^{label}.*\d\.\d\dx$", out, re.MULTILINE)
    assert "agreement:  yes" in out and "equal labels: " in out
    assert numbers(lines["trained"])[-1] > 0.8
    pictures = {
        "fcn_fast_labels.png": (320, 124),
        "fcn_fast_stages.png": (1500, 900),
        "fcn_fast_shapes.png": (792, 1072),
    }
    for name, size in pictures.items():
        path = tmp_path / "new" / "folder" / name
        assert str(path) in out
        with Image.open(path) as image:
            assert image.format == "PNG" and image.size == size


def test_takes_an_image_of_the_user(narrow, tmp_path, capsys):
    Image.new("L", (30, 50), 200).save(tmp_path / "mine.png")
    assert run(tmp_path / "mine.png", "--out", tmp_path) == 0
    with Image.open(tmp_path / "fcn_fast_labels.png") as sheet:
        assert sheet.getpixel((32, 32)) == (200, 200, 200)


def test_a_wrong_operation_is_noticed(narrow, tmp_path, capsys, monkeypatch):
    wrong = SimpleNamespace(**vars(ops))
    wrong.upsample_argmax = lambda *args, **kwargs: ops.upsample_argmax(*args, **kwargs) // 2
    monkeypatch.setitem(demo.SIDES, "fcn_fast", wrong)
    assert run("--out", tmp_path) == 1
    assert "agreement:  NO" in capsys.readouterr().out

    wrong.upsample_argmax = ops.upsample_argmax
    wrong.upsample_softmax_loss = lambda *args, **kwargs: ops.upsample_softmax_loss(*args, **kwargs) * float("nan")
    assert run("--out", tmp_path) == 1


def test_labels_are_blended_over_the_photo(tmp_path):
    photo = Image.new("RGB", (200, 100), (100, 100, 100))
    labels = torch.zeros(100, 200, dtype=torch.uint8)
    labels[:, 100:] = 15
    pixels = np.asarray(Image.open(save_labels(tmp_path / "labels.png", photo, labels))).astype(int)
    assert (pixels[:100, :200] == 100).all()
    for column, label in ((210, 0), (400, 15)):
        assert abs(pixels[50, column] - (40 + 0.6 * np.array(voc.palette()[label]))).max() <= 1
    assert (pixels[100:] != 255).any()  # the legend
