"""The fuzzer in short form, and that it finds what it is for."""

import importlib.util
import os
import time
from pathlib import Path

import pytest
import torch

from fcn_fast import ops

TOOL = Path(__file__).resolve().parents[2] / "tools" / "fuzz.py"
SECONDS = float(os.environ.get("FCN_FAST_FUZZ_SECONDS", 8))


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_random_calls(fuzz, seed, capsys):
    counts, wrong, worst = fuzz.run(seed, 20000, time.monotonic() + SECONDS)
    assert not wrong, capsys.readouterr().out
    assert worst <= 1 and len(counts) == 5


def test_a_call_comes_back_by_its_number(fuzz):
    (one, facts), (other, same) = fuzz.draw(123), fuzz.draw(123)
    assert str(facts) == str(same) and torch.equal(one.inputs[0].nan_to_num(), other.inputs[0].nan_to_num())
    assert fuzz.run(7, 3)[0] == fuzz.run(7, 3)[0]


@pytest.mark.parametrize("name", ["bilinear_upsample", "skip_fuse", "softmax_loss", "upsample_softmax_loss"])
def test_a_wrong_operation_is_found(name, fuzz, monkeypatch, capsys):
    """Off by a thousandth, by one, by nothing but its gradient, and not at all where it raises."""
    right = getattr(ops, name)
    wrong_ones = (
        lambda *args, **kwargs: right(*args, **kwargs) * 1.001,
        lambda *args, **kwargs: right(*args, **kwargs) + 1,
        lambda x, *args, **kwargs: right(x.detach() + 0.99 * (x - x.detach()), *args, **kwargs),
        lambda *args, **kwargs: right(None, *args[1:], **kwargs),
    )
    for wrong in wrong_ones:
        monkeypatch.setattr(ops, name, wrong)
        counts, found, _ = fuzz.run(0, 60)
        assert counts[name] and found >= counts[name] // 2, capsys.readouterr().out
        capsys.readouterr()


def test_wrong_labels_are_found(fuzz, monkeypatch):
    right = ops.upsample_argmax
    monkeypatch.setattr(ops, "upsample_argmax", lambda x, **options: right(-x, **options))
    counts, found, _ = fuzz.run(0, 60)
    assert found >= counts["upsample_argmax"] // 2


def test_memory_is_steady(fuzz, capsys):
    """In short; docs/reliability.md has the long form."""
    assert fuzz.leaks(0, 600) == 0, capsys.readouterr().out
