"""The command: what it prints, and how it refuses what it cannot use."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import fcn_fast
from fcn_fast import cli, env
from fcn_fast.command import InputError
from fcn_fast.data import voc
from fcn_fast.data.images import PHOTO, fit, read_image, to_input

FACTS = {
    "version": "0.1.0", "compiler": "g++ 12.2", "torch_built_with": "2.13.0", "torch_abi_target": "2.10",
    "cuda_version": "", "cuda_archs": "", "cuda_missing": "no nvcc found", "isas": ["baseline", "avx2"], "isa": "avx2",
}  # fmt: skip


@pytest.fixture
def files(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "half.jpg").write_bytes(PHOTO.read_bytes()[:20000])
    return tmp_path


def refuse(arguments, capsys):
    """Run a command that must end with code 2; returns its one line."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        code = stopped.code
    out, err = capsys.readouterr()
    assert code == 2 and not out
    assert err.startswith("fcn-fast") and err.count("\n") == 1 and err.endswith("\n")
    return err


@pytest.mark.parametrize("name", ["text.png", "empty.jpg", "half.jpg"])
def test_an_image_that_is_none(files, capsys, name):
    line = refuse(["demo", files / name], capsys)
    assert f"image: expected an image such as a JPEG or PNG, got {files / name}" in line


@pytest.mark.parametrize("name, reason", [("missing.jpg", "No such file"), ("", "Is a directory")])
def test_an_image_that_cannot_be_read(files, capsys, name, reason):
    line = refuse(["demo", files / name], capsys)
    assert f"image: expected a file that can be read, got {files / name} ({reason}" in line


@pytest.mark.parametrize("out", ["text.png", "text.png/below"])
def test_a_folder_that_cannot_be_written(files, capsys, out):
    line = refuse(["demo", "--out", files / out], capsys)
    assert f"out: expected a folder that can be written, got {files / out}" in line


@pytest.mark.parametrize("size", ["0", "-3", "4097", "wide", "1.5"])
def test_a_size_that_is_none(capsys, size):
    assert f"--size: expected a whole number from 1 to 4096, got {size}" in refuse(["demo", "--size", size], capsys)


def test_a_gpu_that_is_not_there(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = refuse(["demo", "--device", "cuda"], capsys)
    assert "device: expected cpu, as PyTorch finds no GPU, got cuda" in line


@pytest.mark.parametrize("arguments", [[], ["paint"], ["demo", "a.jpg", "b.jpg"], ["env", "--size", "3"]])
def test_commands_that_are_none(capsys, arguments):
    assert "--help explains" in refuse(arguments, capsys)


def test_runs_as_a_module(tmp_path):
    command = [sys.executable, "-m", "fcn_fast.cli", "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f"fcn_fast {fcn_fast.__version__}\n"


def test_env_reports_this_installation(capsys):
    assert cli.main(["env"]) == 0
    out, err = capsys.readouterr()
    assert not err
    assert f"torch            {torch.__version__}\n" in out
    assert f"threads          {torch.get_num_threads()}\n" in out
    for name in env.operators():
        assert hasattr(torch.ops.fcn_fast, name) and f"\n{name} " in out


def test_every_command_says_what_it_does(capsys):
    for name in ("demo", "predict", "eval", "train", "experiment", "convert", "bench", "profile", "env"):
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        before, _, options = capsys.readouterr().out.partition("\noptions:")
        *_, description = before.partition("\n\n")
        assert options and len(description.split()) > 10, name


def test_env_names_every_operator():
    assert set(fcn_fast.ops.__all__) - {"BilinearGrid"} <= set(env.operators())


def test_env_says_why_kernels_are_off(monkeypatch):
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: False)
    monkeypatch.setattr(fcn_fast, "_C", None)
    assert "cpu: fcn_fast has no compiled module (pip install . builds it)" in env.report()

    cpu_only = SimpleNamespace(build_facts=lambda: FACTS)
    monkeypatch.setattr(fcn_fast, "_C", cpu_only)
    report = env.report()
    assert "cpu: this version has no kernel for any operator" in report
    assert "cuda: built without CUDA kernels (no nvcc found)" in report

    monkeypatch.setattr(
        torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: key == "CPU" and "skip" not in name
    )
    report = env.report()
    assert "cpu: this version has no kernel for skip_fuse" in report
    assert env.kernel_of("upsample_argmax", "cpu") == "C++ (avx2)" and env.kernel_of("skip_fuse", "cpu") == "PyTorch"
    assert "compiled with g++ 12.2 against torch 2.13.0 (runs with torch 2.10 and later), no CUDA" in report
    assert "avx2 (compiled: baseline, avx2)" in report


def test_the_photograph_is_one():
    photo = read_image(PHOTO)
    assert photo.mode == "RGB" and photo.size == (512, 512)
    assert PHOTO.stat().st_size < 200_000 and np.asarray(photo).std() > 50


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "LA", "I;16"])
def test_images_of_every_mode(tmp_path, mode):
    Image.new(mode, (7, 5)).save(path := tmp_path / ("image.tif" if mode == "CMYK" else "image.png"))
    image = read_image(path)
    assert image.mode == "RGB" and image.size == (7, 5)


def test_an_image_comes_upright(tmp_path):
    image = Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(path := tmp_path / "turned.jpg", exif=exif)
    assert read_image(path).size == (4, 6)


@pytest.mark.parametrize("size", [(500, 500), (40, 10), (1, 3000), (3000, 1), (1, 1)])
def test_fit_keeps_the_shape_and_pads_with_the_mean(size):
    image = fit(Image.new("RGB", size, (255, 0, 0)), 100)
    assert image.size == (100, 100)
    height = min(100, max(1, 100 * size[1] / size[0]))
    width = min(100, max(1, 100 * size[0] / size[1]))
    pixels = np.asarray(image).reshape(-1, 3)
    assert abs((pixels == (255, 0, 0)).all(1).sum() - height * width) <= 100
    assert ((pixels == (255, 0, 0)).all(1) | (pixels == (123, 117, 104)).all(1)).all()


def test_input_is_blue_green_red_minus_mean():
    x = to_input(Image.new("RGB", (4, 3), (30, 20, 10)))
    assert x.shape == (1, 3, 3, 4) and x.dtype == torch.float32
    expected = torch.tensor([10.0, 20.0, 30.0]) - torch.tensor(voc.MEAN_BGR)
    torch.testing.assert_close(x, expected.view(1, 3, 1, 1).expand_as(x))


def test_palette_is_voc():
    colours = voc.palette()
    assert len(voc.CLASSES) == 21 and len(set(colours)) == 256
    wanted = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {label: colours[label] for label in wanted} == wanted


def test_input_errors_are_value_errors():
    assert issubclass(InputError, ValueError)
