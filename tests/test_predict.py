"""``fcn-fast predict`` and ``fcn-fast convert`` on narrow nets: what they write, print and refuse."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from fcn_fast import cli, models, predict
from fcn_fast.data import siftflow, voc
from fcn_fast.data.images import PHOTO, read_image, to_input

from .models import caffe_nets

NARROW = 1 / 64


@pytest.fixture
def narrow(monkeypatch):
    """Nets are narrow where a file does not say how wide its net is."""
    build = models.build
    monkeypatch.setattr(models, "build", lambda name, **options: build(name, **{"width": NARROW, **options}))


@pytest.fixture
def weights(tmp_path):
    """Saves the weights of a random net; the path."""

    def save(name="voc-fcn8s", **options):
        models.save_safetensors(models.build(name, width=NARROW, **options), tmp_path / f"{name}.safetensors")
        return tmp_path / f"{name}.safetensors"

    return save


@pytest.fixture
def folder(tmp_path):
    """Photographs of several sizes and formats, and other files."""
    folder = tmp_path / "images"
    folder.mkdir()
    photo = read_image(PHOTO)
    photo.resize((60, 41)).save(folder / "b.jpg")
    photo.resize((33, 90)).save(folder / "a.PNG")
    Image.new("L", (1, 1), 7).save(folder / "dot.bmp")
    (folder / "notes.txt").write_text("not an image")
    (folder / "below").mkdir()
    return folder


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def refused(capsys, *arguments):
    """The one line of a command that must end with code 2."""
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("fcn-fast: ") and err.count("\n") == 1
    return err


def shares(line):
    """{class: per cent} of a line that predict prints."""
    found = re.findall(r"(?:labels: |, |: )([a-z0-9 ]+?) (\d+\.\d)%", line)
    return {name: float(share) for name, share in found}


def test_predicts_a_folder(folder, weights, tmp_path, capsys):
    path, out = weights(), tmp_path / "new" / "out"
    assert run("predict", folder, "--weights", path, "--out", out, "--device", "cpu") == 0
    printed, err = capsys.readouterr()
    assert "image/s" not in err  # no progress where there is no terminal
    model = models.from_safetensors(path)
    lines = printed.splitlines()
    assert [line.split()[0] for line in lines[::2]] == [str(folder / name) for name in ("a.PNG", "b.jpg", "dot.bmp")]
    for line, name in zip(lines[::2], ("a.PNG", "b.jpg", "dot.bmp"), strict=True):
        photo = read_image(folder / name)
        expected = model.predict(to_input(photo))[0].numpy()
        stem = name.partition(".")[0]
        with Image.open(out / f"{stem}_labels.png") as image:
            assert image.mode == "P" and image.size == photo.size
            np.testing.assert_array_equal(np.asarray(image), expected)
            colours = np.array(voc.palette())[expected]
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), colours)
        overlay = np.asarray(Image.open(out / f"{stem}_overlay.png")).astype(int)
        assert abs(overlay - (0.4 * np.asarray(photo) + 0.6 * colours)).max() <= 1
        counts = np.bincount(expected.ravel())
        assert shares(line) == {
            voc.CLASSES[label]: pytest.approx(100 * count / expected.size, abs=0.051)
            for label, count in enumerate(counts)
            if count
        }
        listed = list(shares(line).values())
        assert f"{photo.width}x{photo.height}" in line and listed == sorted(listed, reverse=True)

    assert run("predict", out.parent.parent / "images", "--weights", path, "--out", folder) == 0
    capsys.readouterr()
    assert run("predict", folder, "--weights", path, "--out", folder) == 0  # its own results are no images
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_classes_are_called_as_the_weights_say(folder, tmp_path, capsys):
    model = models.build("voc-fcn32s", 3, width=NARROW)
    with torch.no_grad():
        model.stage3.score_fr.bias.copy_(torch.tensor([0.0, 0.0, 1e6]))

    def printed():
        models.save_safetensors(model, tmp_path / "net.safetensors")
        assert run("predict", folder / "b.jpg", "--weights", tmp_path / "net.safetensors", "--out", tmp_path) == 0
        return capsys.readouterr().out

    assert "labels: class 2 100.0%" in printed()  # and not bicycle
    model.class_names = {"": ("road", "tree", "street lamp")}
    assert "labels: street lamp 100.0%" in printed()
    assert models.from_safetensors(tmp_path / "net.safetensors").class_names == model.class_names
    for names in ({"": ("one", "two")}, {"sem": ("one", "two", "three")}, {"": ("one", "two", "thr\nee")}, ["one"]):
        model.class_names = names
        models.save_safetensors(model, tmp_path / "net.safetensors")
        with pytest.raises(models.WeightsError, match="expected a name for each of {'': 3} classes, got "):
            models.from_safetensors(tmp_path / "net.safetensors")


def test_predicts_with_every_kind_of_weights(tmp_path, narrow, capsys):
    net = caffe_nets.build("voc-fcn16s", 1, 1, NARROW)
    (tmp_path / "net.caffemodel").write_bytes(caffe_nets.caffemodel(net.blobs, form="layers", shapes="old"))
    model = models.build("voc-fcn16s")
    models.load_caffemodel(model, tmp_path / "net.caffemodel")
    torch.save({key.split(".", 1)[1]: value for key, value in model.state_dict().items()}, tmp_path / "net.pth")
    torch.save(model.state_dict(), tmp_path / "net.pt")
    read_image(PHOTO).resize((50, 37)).save(tmp_path / "photo.png")
    assert run("convert", tmp_path / "net.caffemodel", tmp_path / "net.safetensors", "--model", "voc-fcn16s") == 0
    assert re.search(r"net.safetensors: voc-fcn16s, [\d,]+ parameters, \d+\.\d MB", capsys.readouterr().out)

    expected = model.eval().predict(to_input(read_image(tmp_path / "photo.png")))[0].numpy()
    for name in ("net.caffemodel", "net.pth", "net.pt", "net.safetensors"):
        arguments = ["predict", tmp_path / "photo.png", "--weights", tmp_path / name, "--out", tmp_path / name[4:]]
        if name != "net.safetensors":
            arguments += ["--model", "voc-fcn16s"]
        assert run(*arguments) == 0
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name[4:] / "photo_labels.png")), expected)


def test_two_heads_have_a_picture_each(tmp_path, weights, capsys):
    Image.new("RGB", (20, 10), (200, 10, 40)).save(tmp_path / "photo.png")
    path = weights("siftflow-fcn32s")
    assert run("predict", tmp_path / "photo.png", "--weights", path, "--out", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()[::2]
    for line, head, classes in zip(lines, ("sem", "geo"), (33, 3), strict=True):
        labels = np.asarray(Image.open(tmp_path / f"photo_{head}_labels.png"))
        assert labels.shape == (10, 20) and labels.max() < classes
        found = re.findall(r"([a-z]+) \d+\.\d%", line.split(f" {head}: ")[1])
        assert set(found) == {siftflow.CLASSES[head][label] for label in np.unique(labels)}


def test_the_transform_is_the_nets(tmp_path, weights, monkeypatch):
    Image.new("RGB", (20, 10), (200, 10, 40)).save(tmp_path / "photo.png")
    seen = []
    original = models.FCN.predict
    monkeypatch.setattr(
        models.FCN, "predict", lambda self, x: (seen.append(x[0, :, 0, 0].tolist()), original(self, x))[1]
    )
    for name, mean in (
        ("siftflow-fcn32s", (114.578, 115.294, 108.353)),
        ("nyud-fcn32s-color", (116.190, 97.203, 92.318)),
    ):
        assert run("predict", tmp_path / "photo.png", "--weights", weights(name), "--out", tmp_path) == 0
        assert seen.pop() == pytest.approx([40 - mean[0], 10 - mean[1], 200 - mean[2]], abs=1e-4)
    assert run("predict", tmp_path / "photo.png", "--weights", weights("nyud-fcn32s-hha"), "--out", tmp_path) == 0
    assert seen.pop() == pytest.approx([200 - 132.431, 10 - 94.076, 40 - 118.477], abs=1e-4)


def test_a_broken_image_does_not_stop_the_others(folder, weights, tmp_path, capsys):
    (folder / "aaa.jpg").write_text("not an image")
    assert run("predict", folder, "--weights", weights(), "--out", tmp_path) == 2
    out, err = capsys.readouterr()
    assert err == f"fcn-fast: image: expected an image such as a JPEG or PNG, got {folder / 'aaa.jpg'}\n"
    assert len(out.splitlines()) == 6 and (tmp_path / "dot_labels.png").exists()


def test_broken_images_are_left_out_when_asked(folder, weights, tmp_path, capsys):
    path, missing = folder / "aaa.jpg", tmp_path / "none.jpg"
    path.write_text("not an image")
    options = ["--weights", weights(), "--out", tmp_path, "--skip-broken"]
    assert run("predict", folder, missing, *options) == 0
    out, err = capsys.readouterr()
    assert err == (
        f"fcn-fast: image: expected an image such as a JPEG or PNG, got {path}\n"
        f"fcn-fast: image: expected a file that can be read, got {missing} (No such file or directory)\n"
    )
    assert len(out.splitlines()) == 6
    assert run("predict", path, missing, *options) == 2  # nothing is left
    assert capsys.readouterr().err == err
    assert "expected an image such as a JPEG or PNG" in refused(capsys, "predict", path, *options)


def test_images_whose_names_differ_in_their_endings(folder, weights, tmp_path, capsys):
    Image.new("RGB", (4, 4)).save(folder / "b.png")
    out = tmp_path / "out"
    assert run("predict", folder, "--weights", weights(), "--out", out) == 0
    stems = {path.name.removesuffix("_labels.png") for path in out.glob("*_labels.png")}
    assert stems == {"a", "b.jpg", "b.png", "dot"}
    for name in ("b.jpg", "b.png"):
        with Image.open(folder / name) as photo, Image.open(out / f"{name}_labels.png") as labels:
            assert labels.size == photo.size
    Image.new("RGB", (4, 4)).save(folder / "b.jpg.bmp")  # whose pictures would be called as those of b.jpg
    capsys.readouterr()
    line = refused(capsys, "predict", folder, "--weights", weights(), "--out", out)
    assert f"expected images with different names, got {folder / 'b.jpg'} and {folder / 'b.jpg.bmp'}" in line


def test_images_that_cannot_be_used(folder, weights, tmp_path, capsys):
    path = weights()
    options = ["--weights", path, "--out", tmp_path / "out"]
    line = refused(capsys, "predict", folder, tmp_path / "none.jpg", *options)
    assert f"image: expected a file or folder, got {tmp_path / 'none.jpg'} (No such file or directory)" in line
    line = refused(capsys, "predict", folder / "below", *options)
    assert f"image: expected a folder with images, got {folder / 'below'}" in line
    line = refused(capsys, "predict", folder / "notes.txt", *options)
    assert f"image: expected an image such as a JPEG or PNG, got {folder / 'notes.txt'}" in line
    Image.new("RGB", (4, 4)).save(folder / "below" / "b.jpg")
    line = refused(capsys, "predict", folder, folder / "below", *options)
    assert f"expected images with different names, got {folder / 'b.jpg'} and {folder / 'below' / 'b.jpg'}" in line


def test_weights_that_cannot_be_used(tmp_path, weights, narrow, capsys):
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    net = caffe_nets.build("voc-fcn32s", 1, 1, NARROW)
    (tmp_path / "net.caffemodel").write_bytes(caffe_nets.caffemodel(net.blobs))
    for name in ("bad.caffemodel", "bad.pth", "bad.safetensors", "bad.h5"):
        (tmp_path / name).write_text("no weights")

    def line(weights, *options):
        return refused(capsys, "predict", tmp_path / "photo.png", "--weights", weights, "--out", tmp_path, *options)

    assert "weights: expected a file that can be read, got" in line(tmp_path / "none.pth")
    assert "weights: expected a file that can be read, got" in line(tmp_path / "none.safetensors")
    assert "expected a binary NetParameter of Caffe, got something else" in line(tmp_path / "bad.caffemodel")
    assert "expected a state dict that torch.save wrote" in line(tmp_path / "bad.pth")
    assert "expected a safetensors file" in line(tmp_path / "bad.safetensors")
    kinds = "expected a file that ends in one of .caffemodel, .pth, .pt, .safetensors, got"
    assert kinds in line(tmp_path / "bad.h5")
    text = line(tmp_path / "net.caffemodel", "--model", "voc-fcn8s")
    assert "missing: score_pool3.bias: expected (21,), got none" in text and "; and 2 more" in text
    assert "model: expected one of " in line(tmp_path / "net.caffemodel", "--model", "voc")
    text = line(weights("voc-fcn16s"), "--model", "voc-fcn8s")
    assert "model: expected voc-fcn16s, which " in text and "is for, got voc-fcn8s" in text
    text = line(weights("nyud-fcn32s-color-hha"))
    assert "expected one that takes one image, got nyud-fcn32s-color-hha, which takes color and hha" in text


def test_convert_refuses(tmp_path, narrow, capsys):
    net = caffe_nets.build("voc-fcn32s", 1, 1, NARROW)
    net.blobs["upscore"][0][2, 2, 30, 30] += 0.1
    source = tmp_path / "net.caffemodel"
    source.write_bytes(caffe_nets.caffemodel(net.blobs))
    target, options = tmp_path / "net.safetensors", ["--model", "voc-fcn32s"]
    assert "not bilinear: upscore.weight" in refused(capsys, "convert", source, target, *options)
    assert not target.exists()
    assert run("convert", source, target, *options, "--learned-upsampling") == 0
    capsys.readouterr()
    learned = models.from_safetensors(target).stage3.upscore.weight.detach()
    np.testing.assert_array_equal(learned, net.blobs["upscore"][0].astype(np.float32))
    line = refused(capsys, "convert", source, tmp_path / "net.pth", *options)
    assert f"target: expected a file that ends in .safetensors, got {tmp_path / 'net.pth'}" in line
    line = refused(capsys, "convert", source, tmp_path / "no" / "net.safetensors", *options, "--learned-upsampling")
    assert "target: expected a file that can be written, got" in line
    line = refused(capsys, "convert", target, tmp_path / "twin.safetensors")
    assert "source: expected one of .caffemodel, .pth, .pt, got" in line and "safetensors already" in line


def test_images_are_found_in_order(folder):
    found = predict.find_images([folder / "notes.txt", folder])
    assert [path.name for path in found] == ["notes.txt", "a.PNG", "b.jpg", "dot.bmp"]
    assert list(found.values()) == ["notes", "a", "b", "dot"]
