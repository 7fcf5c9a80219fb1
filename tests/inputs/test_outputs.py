"""Names of files as people and machines give them, and that no command writes over what it reads."""

import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

from fcn_fast import cli, models
from fcn_fast.command import InputError, spare_inputs
from fcn_fast.data.images import PHOTO, read_image

NAMES = ["with spaces and 'quotes'", "ünï→漢字 🙂", "-dash", "percent%20s {braces}", "$(touch it); rm *"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    models.save_safetensors(models.build("voc-fcn32s", width=1 / 64), path)
    return path


def small_photo(path):
    read_image(PHOTO).resize((24, 18)).save(path, "PNG")
    return path


def run(*arguments):
    return cli.main([os.fspath(argument) for argument in arguments])


@pytest.mark.parametrize("name", NAMES)
def test_predict_takes_any_name(name, weights, tmp_path, capsys):
    folder = tmp_path / name
    folder.mkdir()
    image = small_photo(folder / f"{name}.png")
    copy = folder / f"{name}.safetensors"
    copy.write_bytes(weights.read_bytes())
    assert run("predict", image, "--weights", copy, "--out", folder / f"out {name}") == 0
    assert str(image) in capsys.readouterr().out
    with Image.open(folder / f"out {name}" / f"{name}_labels.png") as labels:
        assert labels.size == (24, 18)
    assert sorted(os.listdir(folder)) == sorted([image.name, copy.name, f"out {name}"])


@pytest.mark.parametrize("name", NAMES)
def test_convert_takes_any_name(name, tmp_path, capsys, monkeypatch):
    build = models.build
    monkeypatch.setattr(models, "build", lambda name, **options: build(name, **{"width": 1 / 64, **options}))
    source, target = tmp_path / f"{name}.pth", tmp_path / f"{name}.safetensors"
    state = models.build("voc-fcn32s", learned_upsampling="dense").state_dict()
    torch.save({key.partition(".")[2]: tensor for key, tensor in state.items()}, source)
    assert run("convert", source, target, "--model", "voc-fcn32s") == 0
    assert str(target) in capsys.readouterr().out and target.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text exist on Linux")
def test_a_name_that_is_no_text(weights, tmp_path):
    """On a terminal that takes UTF-8 and nothing else: the picture is written, the name is printed as it can be."""
    image = os.fsencode(tmp_path) + b"/photo \xff\xfe.png"
    small_photo(tmp_path / "photo.png")
    os.rename(tmp_path / "photo.png", image)
    command = [sys.executable, "-P", "-m", "fcn_fast.cli", "predict", image, "--weights", weights, "--out", tmp_path]
    if sys.version_info < (3, 11):
        command.remove("-P")
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8"}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"photo \\udcff\\udcfe.png" in done.stdout
    assert b"photo \xff\xfe_labels.png" in os.listdir(os.fsencode(tmp_path))


def test_predict_does_not_write_over_an_image(weights, tmp_path, capsys):
    """An image that is called as the result of another would be."""
    first, second = small_photo(tmp_path / "a.png"), small_photo(tmp_path / "a_labels.png")
    before = second.read_bytes()
    assert run("predict", first, second, "--weights", weights, "--out", tmp_path) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1
    assert f"{second} would be written over the input {second}" in err
    assert second.read_bytes() == before and sorted(os.listdir(tmp_path)) == ["a.png", "a_labels.png"]
    assert run("predict", first, second, "--weights", weights, "--out", tmp_path / "elsewhere") == 0


def test_predict_sees_through_links(weights, tmp_path, capsys):
    image, out = small_photo(tmp_path / "b.png"), tmp_path / "out"
    out.mkdir()
    for link in (os.link, os.symlink):
        link(image, out / "b_overlay.png")
        assert run("predict", image, "--weights", weights, "--out", out) == 2
        assert f"would be written over the input {image}" in capsys.readouterr().err
        os.remove(out / "b_overlay.png")
    assert run("predict", image, "--weights", weights, "--out", out) == 0


def test_predict_replaces_its_own_pictures(weights, tmp_path, capsys):
    image = small_photo(tmp_path / "c.png")
    for _ in range(2):
        assert run("predict", image, "--weights", weights, "--out", tmp_path) == 0
    assert sorted(os.listdir(tmp_path)) == ["c.png", "c_labels.png", "c_overlay.png"]


def test_spare_inputs(tmp_path):
    (tmp_path / "there").touch()
    spare_inputs([tmp_path / "new", tmp_path / "there"], [tmp_path / "other", tmp_path / "none"])
    with pytest.raises(InputError, match="would be written over the input .*there"):
        spare_inputs([tmp_path / "new", tmp_path / "there"], [tmp_path / "x" / ".." / "there", tmp_path / "there"])
