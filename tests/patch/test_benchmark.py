"""The recording script of patch: what it measures, and the page that it renders."""

import importlib.util
import json
from pathlib import Path

import pytest

from . import families

pytest.importorskip("transformers")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "patch.py"


@pytest.fixture
def script():
    specification = importlib.util.spec_from_file_location("benchmark_of_patch", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_records_and_renders(script, tmp_path, monkeypatch, peaks_side_by_side):
    monkeypatch.setattr(script, "MODELS", {"SegFormer-B0": script.MODELS["SegFormer-B0"]})
    build = script.build

    def build_smooth(name, quick):
        model, *batch = build(name, quick)
        return families.smooth(model), *batch

    monkeypatch.setattr(script, "build", build_smooth)
    peaks = script.scripts.peaks

    def peaks_of_maps_here(path, case, sides, quick, **options):
        """Without processes of their own, which would import transformers once more each."""
        if case != script.PROCESSOR:
            return peaks(path, case, sides, quick, **options)
        calls = {side: script.warm_call(case, side, quick) for side in sides}
        return {side: script.scripts.memory.growth(call, script.DEVICE) / 2**20 for side, call in calls.items()}

    monkeypatch.setattr(script.scripts, "peaks", peaks_of_maps_here)
    found = script.measure(quick=True)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "patch.json").write_text(json.dumps(found))
    model, maps = found["models"].values()
    assert model["loss_difference"] < 1e-5 and model["gradient_difference"] < 1e-4
    assert model["gradient_error"]["patched"] < 1.1 * model["gradient_error"]["plain"] + 1e-6
    assert "upsample_softmax_loss" in model["replaced"] and maps["labels_differ"] < 1e-3
    assert all(model["peak_mib"][side] > 0 for side in script.SIDES)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- patch:begin -->\nold\n<!-- patch:end -->\nafter\n")
    script.render(tmp_path, page)
    text = page.read_text()
    assert text.startswith("before\n<!-- patch:begin -->\n### here\n") and text.endswith("<!-- patch:end -->\nafter\n")
    assert "old" not in text and "| SegFormer-B0 | 2x3x128x128 |" in text and "SegFormer's label maps" in text
    script.render(tmp_path, page)
    assert page.read_text() == text


def test_without_records_the_page_stays(script, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- patch:begin -->\nold\n<!-- patch:end -->")
    script.render(tmp_path, page)
    assert "old" in page.read_text()


def test_the_page_is_what_the_records_say(script, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(script.PAGE.read_text())
    script.render(script.RESULTS, page)
    assert page.read_text() == script.PAGE.read_text()
