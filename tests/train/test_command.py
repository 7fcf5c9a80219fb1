"""fcn-fast train: what it writes, going on after a kill, stages, several processes, TOML, and what it refuses."""

import csv
import functools
import random
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fcn_fast import cli, models
from fcn_fast.data import shapes
from fcn_fast.train import config
from fcn_fast.train.loop import Trainer

from ..data import trees
from .support import FLAGS

RECIPE = ["--solver", "shapes", "--warmup", "2", "--batch", "2", "--dropout", "0.5"]


def train(out, *flags):
    """Train in this process, on one thread, as the sums of several depend on their number."""
    return cli.main(["train", "--out", str(out), *FLAGS, *RECIPE, *map(str, flags)])


def command(out, *flags):
    """Training in a process of its own; from another folder than the source tree, which has no compiled module."""
    arguments = [sys.executable, "-m", "fcn_fast.cli", "train", "--out", out, *FLAGS, *RECIPE, *flags]
    return list(map(str, arguments))


def train_till(step, monkeypatch, out, *flags):
    """Train until it is interrupted before a step."""
    advance = Trainer.advance

    def stops(trainer):
        if trainer.step == step:
            raise KeyboardInterrupt
        return advance(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", stops)
        assert train(out, *flags) == 130


def log(out):
    with open(out / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def same(one, other):
    weights, others = (load_file(out / "weights.safetensors") for out in (one, other))
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.fixture(autouse=True)
def one_thread(set_num_threads, monkeypatch):
    set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_writes_log_weights_checkpoint_and_pictures(tmp_path, capsys, seed):
    assert train(tmp_path, "--steps", 6, "--eval-every", 4, "--seed", seed) == 0
    out, err = capsys.readouterr()
    assert not err
    rows = log(tmp_path)
    *steps, last = out.splitlines()
    assert "mean IU 0." in last and str(tmp_path / "weights.safetensors") in last
    assert steps == [  # where there is no terminal
        f"{tmp_path}: step {row['step']} of 6, loss {float(row['loss']):.4g}, mean IU {float(row['mean_iu']):.3f}"
        for row in (rows[3], rows[5])
    ]
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [int(row["images"]) for row in rows] == [2, 4, 6, 8, 10, 12]
    assert [bool(row["mean_iu"]) for row in rows] == [False, False, False, True, False, True]
    model = models.from_safetensors(tmp_path / "weights.safetensors")
    assert model.variant.name == "voc-fcn8s" and model.num_classes == 21 and model.padding == "lean"
    assert model.class_names == {"": shapes.CLASSES}
    for name in ("curves.png", "samples.png"):
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG" and len(image.convert("RGB").getcolors(1 << 20)) > 10
    assert not list(tmp_path.glob("*.partial"))
    (tmp_path / "other").touch()
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_on_a_terminal_the_bar_shows_how_far_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert train(tmp_path, "--steps", 2) == 0
    out, err = capsys.readouterr()
    assert "2/2 [" in err and "mean IU" in err and "step 2 of 2" not in out


def test_a_checkpoint_is_no_weights(tmp_path, capsys):
    train(tmp_path, "--steps", 1)
    capsys.readouterr()
    checkpoint, photo = tmp_path / "checkpoint.safetensors", tmp_path / "samples.png"
    assert cli.main(["predict", str(photo), "--weights", str(checkpoint), "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert line.startswith(
        f"fcn-fast: weights: {checkpoint}: expected weights, got a training checkpoint; use weights."
    )


def test_half_precision_halves_the_file(tmp_path):
    train(tmp_path / "whole", "--steps", 1)
    train(tmp_path / "half", "--steps", 1, "--half")
    whole, half = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "half"))
    assert all(torch.equal(half[name], whole[name].half()) for name in whole)
    assert models.from_safetensors(tmp_path / "half" / "weights.safetensors").stage3.fc7.weight.dtype == torch.float32


def test_goes_on_bit_for_bit_where_it_was_stopped(tmp_path, capsys, monkeypatch, seed):
    flags = ["--steps", 7, "--checkpoint-every", 2, "--eval-every", 0, "--seed", seed]
    train(tmp_path / "whole", *flags)
    train_till(5, monkeypatch, tmp_path / "stopped", *flags)
    assert capsys.readouterr().err == "fcn-fast: interrupted\n"
    assert len(log(tmp_path / "stopped")) == 5  # one more than the checkpoint has
    assert train(tmp_path / "stopped", *flags, "--resume") == 0
    assert "goes on at step 4 of 7" in capsys.readouterr().out
    assert log(tmp_path / "stopped") == log(tmp_path / "whole") and same(tmp_path / "stopped", tmp_path / "whole")


def test_goes_on_without_init_and_to_more_steps(tmp_path, capsys):
    """The checkpoint has the weights, and a fixed learning rate knows nothing of the last step."""
    flags = ["--solver", "voc-fcn8s", "--lr", "1e-7", "--eval-every", 2]
    for name, steps in (("whole", 4), ("stopped", 2)):
        assert train(tmp_path / name, *flags, "--init", "scratch", "--steps", steps) == 0
    capsys.readouterr()
    assert train(tmp_path / "stopped", *flags, "--steps", 4, "--resume") == 0
    assert "goes on at step 2 of 4" in capsys.readouterr().out
    assert log(tmp_path / "stopped") == log(tmp_path / "whole") and same(tmp_path / "stopped", tmp_path / "whole")
    assert train(tmp_path / "stopped", *flags, "--steps", 3, "--resume") == 2  # it has done more
    assert "resume: expected steps 4, as " in capsys.readouterr().err


def test_survives_kills_at_any_moment(tmp_path, seed):
    """Every step ends in a checkpoint, so that many of the kills come while one is written."""
    flags = ["--steps", 40, "--checkpoint-every", 1, "--eval-every", 0, "--optimizer", "sgd", "--lr", "0.01"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags.append("--resume")
    # A process of its own for all of them: other tests may have left this one with other threads.
    undisturbed = subprocess.Popen(command(whole, *flags), cwd=tmp_path, stdout=subprocess.DEVNULL)
    generator = random.Random(seed)
    for _ in range(2):
        # Leave it at least a step, or nothing would be tested.
        before = (killed / "checkpoint.safetensors").stat().st_mtime_ns if killed.exists() else None
        process = subprocess.Popen(command(killed, *flags), cwd=tmp_path, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            path = killed / "checkpoint.safetensors"
            if path.exists() and path.stat().st_mtime_ns != before:
                break
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(killed, *flags), cwd=tmp_path, stdout=subprocess.DEVNULL, check=True)
    assert undisturbed.wait(120) == 0
    assert log(killed) == log(whole) and same(killed, whole)


def test_two_processes_train_as_one_that_accumulates(tmp_path):
    flags = ["--steps", 3, "--iter-size", 2, "--batch", 1, "--eval-every", 2]
    train(tmp_path / "one", *flags)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["fcn_fast.cli", "train", "--out", tmp_path / "two", *FLAGS, *RECIPE, *flags]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = (log(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 3
    for row, other in zip(one, two, strict=True):
        assert float(other["loss"]) == pytest.approx(float(row["loss"]), rel=1e-5)
        assert bool(row["mean_iu"]) == bool(other["mean_iu"])
    assert float(two[-1]["mean_iu"]) == pytest.approx(float(one[-1]["mean_iu"]), abs=1e-2)
    weights, others = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name in weights:
        torch.testing.assert_close(others[name], weights[name], rtol=1e-3, atol=1e-4)


def test_trains_in_stages(tmp_path, capsys):
    flags = ["--steps", 1, "--lr", 0, "--weight-decay", 0, "--staged"]
    assert train(tmp_path, *flags) == 0
    weights = [load_file(tmp_path / f"voc-fcn{stride}s" / "weights.safetensors") for stride in (32, 16, 8)]
    for before, after in zip(weights, weights[1:], strict=False):
        assert set(before) < set(after)
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert not any(after[name].any() for name in set(after) - set(before))  # the new score layer
    capsys.readouterr()
    assert train(tmp_path, *flags, "--resume") == 0  # nothing is left to do
    assert capsys.readouterr().out.count("goes on at step 1 of 1") == 3
    for stride, before in zip((32, 16, 8), weights, strict=True):
        after = load_file(tmp_path / f"voc-fcn{stride}s" / "weights.safetensors")
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert train(tmp_path, *flags, "--resume", "--seed", 1) == 2  # what is done was done otherwise
    (tmp_path / "voc-fcn32s" / "checkpoint.safetensors").unlink()
    capsys.readouterr()
    assert train(tmp_path, *flags, "--resume") == 2  # rather than train it again and write over its weights
    assert "out: expected a folder without weights, or with their checkpoint too, got " in capsys.readouterr().err


def test_starts_from_given_weights(tmp_path):
    train(tmp_path / "first", "--steps", 2, "--model", "voc-fcn32s")
    first = tmp_path / "first" / "weights.safetensors"
    train(tmp_path / "second", "--steps", 1, "--lr", 0, "--weight-decay", 0, "--init", first, "--seed", 1)
    weights, others = load_file(first), load_file(tmp_path / "second" / "weights.safetensors")
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_toml_file_gives_values_and_flags_come_first(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('data = "shapes"\nout = "here"\nwidth = 1\ninit = "scratch"\neval-every = 5\nlr = 0.5\n')
    given = config.read(cli._parser().parse_args(["train", str(path), "--lr", "0.25", "--staged"]))
    assert given == config.Config(
        "shapes", "here", width=1.0, init=("scratch",), eval_every=5, staged=True, recipe={"lr": 0.25}
    )
    assert given.solver_of("voc-fcn32s").lr == 0.25 and given.solver_of("voc-fcn32s").momentum == 0.99


@pytest.mark.parametrize(
    "text, message",
    [
        ("rate = 1", "CONFIG: expected keys that are flags of fcn-fast train, got rate"),
        ("width = 'wide'", "CONFIG: expected float for width, got 'wide'"),
        ("steps = true", "CONFIG: expected int for steps, got True"),
        ("padding = 'none'", "CONFIG: expected one of caffe, lean for padding, got 'none'"),
        ("steps =", "CONFIG: expected TOML, got "),
        ("data = 'shapes'", "out: expected a value, by --out or in CONFIG, got none"),
    ],
)
def test_a_toml_file_that_is_none(tmp_path, capsys, text, message):
    (tmp_path / "run.toml").write_text(text)
    assert cli.main(["train", str(tmp_path / "run.toml")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--data", "nothing"], "data: expected KIND:PATH with one of "),
        (["--data", "shapes:3"], "size: expected "),
        (["--split", "none"], "split: expected one of train, val, got none"),
        (["--lr", "-1"], "lr: expected a number from 0 to below inf, got -1.0"),
        (["--lr", "1e30", "--optimizer", "sgd"], "lr: expected one at which the loss stays finite, got a loss of "),
        (["--solver", "voc-fcn8s"], "init: expected 1 file of weights (voc-fcn16s), or scratch, got 0"),
        (["--init", "missing.safetensors"], "init: expected a file that can be read, got missing.safetensors"),
        (["--init", "weights.onnx"], "init: expected a .safetensors, .caffemodel, .pth or .pt, or scratch, got"),
        (["--workers", "-1"], "workers: expected a whole number from 0, got -1"),
        (["--eval-images", "-1"], "eval-images: expected a whole number from 0, got -1"),
        (["--seed", "-1"], "seed: expected a whole number from 0, got -1"),
        (["--width", "-1"], "width: expected a positive number, got -1.0"),
        (["--model", "voc-fcn8s-atonce", "--staged"], "staged: expected a net with a 32s of its family, got "),
    ],
)
def test_values_that_are_none(tmp_path, capsys, flags, message):
    assert train(tmp_path / "out", "--steps", 20, *flags) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"fcn-fast: {message}") and line.count("\n") == 1


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, capsys, monkeypatch):
    """No file may grow as large as a checkpoint."""
    flags, path = ["--steps", 5, "--checkpoint-every", 2, "--resume"], tmp_path / "checkpoint.safetensors"
    train_till(3, monkeypatch, tmp_path, *flags)
    before = path.read_bytes()
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (len(before) - 1, len(before) - 1))
    done = subprocess.run(command(tmp_path, *flags), cwd=tmp_path, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("fcn-fast: out: expected space for what training writes, got ")
    assert path.read_bytes() == before and not list(tmp_path.glob("*.partial"))
    capsys.readouterr()
    assert train(tmp_path, *flags) == 0
    assert "goes on at step 2 of 5" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["log.csv", "curves.png", "samples.png", "weights.safetensors.partial"])
def test_a_file_that_cannot_be_written(tmp_path, capsys, name):
    (tmp_path / name).mkdir()
    assert train(tmp_path, "--steps", 1) == 2
    line = capsys.readouterr().err
    assert line.startswith("fcn-fast: out: expected space for what training writes, got ") and line.count("\n") == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_loses_no_step(tmp_path, capsys, workers, seed):
    names = list(trees.voc(tmp_path / "set", np.random.default_rng(seed)))
    flags = ["--data", f"voc:{tmp_path / 'set'}", "--split", "val", "--seed", seed, "--workers", workers]
    flags += ["--steps", 5, "--batch", 1, "--eval-every", 0]
    assert train(tmp_path / "whole", *flags) == 0
    last = np.random.default_rng([seed, 0]).permutation(3)[-1]  # of the first epoch
    path = tmp_path / "set" / "JPEGImages" / f"{names[last]}.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    capsys.readouterr()
    assert train(tmp_path / "broken", *flags) == 2
    line = capsys.readouterr().err
    assert line.startswith("fcn-fast: image: expected ") and line.count("\n") == 1
    assert line.endswith(f"{path}; 2 steps are kept, to go on from with --resume\n")
    path.write_bytes(whole)
    assert train(tmp_path / "broken", *flags, "--resume") == 0
    assert log(tmp_path / "broken") == log(tmp_path / "whole") and same(tmp_path / "broken", tmp_path / "whole")


def test_broken_images_are_left_out_when_asked(tmp_path, capsys, seed):
    names = list(trees.voc(tmp_path / "set", np.random.default_rng(seed)))
    path = tmp_path / "set" / "JPEGImages" / f"{names[1]}.jpg"
    path.unlink()
    flags = ["--data", f"voc:{tmp_path / 'set'}", "--split", "val", "--steps", 2]
    assert train(tmp_path / "out", *flags) == 2
    assert capsys.readouterr().err == f"fcn-fast: data: expected a file, got none at {path}\n"
    assert train(tmp_path / "out", *flags, "--skip-broken") == 0
    assert "val: skipped 1 images, the first: image: expected a file that can be read, got " in capsys.readouterr().out


def test_what_cannot_go_on(tmp_path, capsys):
    train(tmp_path, "--steps", 2)
    for flags, message in (
        (["--steps", 2], "out: expected a folder without a checkpoint, or --resume to go on from it, got "),
        (["--steps", 2, "--resume", "--lr", 1], "resume: expected lr 0.004, as "),
        (["--steps", 3, "--resume"], "resume: expected steps 2, as "),  # of half a cosine
        (["--steps", 2, "--resume", "--seed", 1], "resume: expected seed 0, as "),
        (["--steps", 2, "--resume", "--padding", "caffe"], "resume: expected padding lean, as "),
        (["--steps", 2, "--resume", "--width", 0.03], "resume: expected a checkpoint of voc-fcn8s of the same shape"),
    ):
        capsys.readouterr()
        assert train(tmp_path, *flags) == 2
        assert capsys.readouterr().err.startswith(f"fcn-fast: {message}")
    (tmp_path / "log.csv").write_text("step\n1\n")
    assert train(tmp_path, "--steps", 2, "--resume") == 2
    assert "resume: expected the log of the checkpoint, got " in capsys.readouterr().err
    (tmp_path / "checkpoint.safetensors").write_bytes(b"not one")
    assert train(tmp_path, "--steps", 2, "--resume") == 2
    assert "resume: expected a checkpoint that fcn-fast train wrote, got " in capsys.readouterr().err
