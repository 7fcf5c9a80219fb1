"""The profiler's run: what it writes, what it prints, and inputs captured from a model."""

import json
import shlex

import pytest
import torch

from fcn_fast import cli, models, profile
from fcn_fast.bench import nets
from fcn_fast.command import InputError


@pytest.fixture
def captured(tmp_path):
    """A file of captured inputs, and what the model made of them."""
    net = models.fcn8s(5, width=1 / 32)
    image, target = torch.randn(1, 3, 40, 56), torch.randint(5, (1, 40, 56), dtype=torch.int16)
    image = image.contiguous(memory_format=torch.channels_last)
    with profile.capture(tmp_path / "inputs.pt"):
        loss = net.eval().loss(image, target)
        loss.backward()
        scores = net(image)
        scores.sum().backward()
        labels = net.predict(image)
    return tmp_path / "inputs.pt", {
        "upsample_softmax_loss": loss,
        "bilinear_upsample": scores,
        "upsample_argmax": labels,
    }


def test_captured_inputs_give_what_the_model_gave(captured):
    path, results = captured
    calls = profile.load(path)
    names = [name for name, _ in calls]
    assert sorted(names) == sorted([*results, "skip_fuse", "bilinear_upsample_backward"])
    for name, arguments in calls:
        found = getattr(torch.ops.fcn_fast, name)(*arguments)
        if name in results:
            assert torch.equal(found[0] if isinstance(found, tuple) else found, results[name].detach())
    scores = dict(calls)["upsample_argmax"][0]
    assert not scores.requires_grad


def test_more_than_one_call_is_kept_where_wanted(tmp_path):
    scores = [torch.randn(1, 3, 4, 4) for _ in range(5)]
    with profile.capture(tmp_path / "inputs.pt", calls=2):
        for x in scores:
            torch.ops.fcn_fast.upsample_argmax(x, [8, 8, 2, 2, -1, -1, 4, 4, 0], torch.uint8)
            x.add_(1)  # what is kept is what the call saw
    kept = profile.load(tmp_path / "inputs.pt")
    assert len(kept) == 2 and all(torch.equal(a[0] + 1, x) for (_, a), x in zip(kept, scores, strict=False))


def test_replay_names_every_operator_in_the_trace(captured, tmp_path, capfd):
    path, results = captured
    words = ["profile", "op", "--replay", str(path), "--device", "cpu", "--out", str(tmp_path), "--rounds"]
    assert cli.main([*words, "2"]) == 0
    out, _ = capfd.readouterr()
    events = json.loads((tmp_path / "fcn_fast_replay.json").read_text())["traceEvents"]
    names = [event["name"] for event in events if "name" in event]
    for name in results:
        # Once a round; twice where the operator's autograd calls it again below.
        assert sum(found == f"fcn_fast::{name}" for found in names) in (2, 4)
        assert any(found.startswith(f"{name} ") for found in names) and f"\n{name} " in out
    assert cli.main([*words, "1", "skip_fuse"]) == 0
    assert "upsample_argmax" not in capfd.readouterr().out


def test_stages_are_parts_of_the_trace(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(nets.models, "fcn8s", lambda *args, **kwargs: models.build("voc-fcn8s", 21, 1 / 32, **kwargs))
    for cache in (nets._weights, nets._net, nets._features):
        cache.cache_clear()
    try:
        assert cli.main(["profile", "stages", "--rounds", "1", "--device", "cpu", "--out", str(tmp_path)]) == 0
    finally:
        for cache in (nets._weights, nets._net, nets._features):
            cache.cache_clear()
    out, _ = capfd.readouterr()
    names = {event.get("name") for event in json.loads((tmp_path / "fcn_fast_stages.json").read_text())["traceEvents"]}
    assert {"stage1", "stage2", "stage3", "fcn_fast::skip_fuse", "fcn_fast::bilinear_upsample"} <= names
    assert all(f"\n{stage} " in out for stage in nets.STAGES)


def test_nsight_commands_are_command_lines(tmp_path):
    words = ("fcn-fast", "profile", "op", "softmax_loss", "--out", "a folder")
    lines = profile._nsight_commands("softmax_loss", ["softmax_loss both"], "a folder", words)
    nsys, stats, ncu = (shlex.split(line) for line in lines if line.startswith("  "))
    assert nsys[:2] == ["nsys", "profile"] and nsys[-6:] == list(words)
    assert "--capture-range=cudaProfilerApi" in nsys and "--output=a folder/fcn_fast_softmax_loss" in nsys
    assert stats[-1] == "a folder/fcn_fast_softmax_loss.nsys-rep"
    assert ncu[ncu.index("--nvtx-include") + 1] == "softmax_loss both/" and ncu[-8:] == [*words, "--rounds", "1"]


@pytest.mark.parametrize("content", [b"", b"text", "other"])
def test_files_that_are_no_captured_inputs(tmp_path, content):
    path = tmp_path / "inputs.pt"
    if content == "other":
        torch.save({"calls": [("no_such_operator", [])]}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match="replay: expected"):
        profile.load(path)
    with pytest.raises(InputError, match="No such file"):
        profile.load(tmp_path / "missing.pt")


def test_refusals(captured, capsys, tmp_path):
    for arguments, message in (
        (["op"], "op: expected the name of an operation, or --replay FILE, got neither"),
        (["op", "softmax_loss", "--replay", str(captured[0])], "replay: expected a file with calls of softmax_loss"),
        (["stages", "--out", str(captured[0])], "out: expected a folder that can be written"),
    ):
        assert cli.main(["profile", *arguments]) == 2
        assert message in capsys.readouterr().err
