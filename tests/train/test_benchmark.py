"""The recording script of the training step: what it measures, and the page that it renders."""

import importlib.util
import json
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_step.py"


@pytest.fixture
def script():
    specification = importlib.util.spec_from_file_location("benchmark_of_train_step", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_records_and_renders(script, tmp_path, monkeypatch, set_num_threads, peaks_side_by_side):
    set_num_threads(1)
    name = list(script.CASES)[1]
    monkeypatch.setattr(script, "CASES", {name: script.CASES[name]})
    record = script.measure(quick=True)
    (found,) = record["cases"].values()
    assert {side: len(losses) for side, losses in found["losses"].items()} == dict.fromkeys(
        ("eager", "fcn_fast", script.CONTROL), 5
    )
    assert found["losses"]["eager"][0] != found["losses"]["eager"][-1]  # it trains
    assert script.differences(found["losses"], "fcn_fast")[0] < 1e-5
    assert max(script.differences(found["losses"], script.CONTROL)) < 1e-3
    assert all(found["peak_mib"][side] > 0 for side in script.SIDES)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "train_step.json").write_text(json.dumps(record))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- train_step:begin -->\nold\n<!-- train_step:end -->\nafter\n")
    script.render(tmp_path, page)
    text = page.read_text()
    assert text.startswith("before\n<!-- train_step:begin -->\n### here\n") and text.endswith(":end -->\nafter\n")
    assert "old" not in text and f"| {name} | " in text
    with Image.open(tmp_path / "here" / "train_step.png") as figure:
        assert len(figure.convert("RGB").getcolors(1 << 20)) > 50


def test_the_page_is_what_the_records_say(script, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(script.PAGE.read_text())
    script.scripts.render("train_step", script.section, script.RESULTS, page)
    assert page.read_text() == script.PAGE.read_text()
    recorded = {path.parent.name for path in script.RESULTS.glob("*/train_step.json")}
    assert all(f"### {name}\n" in page.read_text() for name in recorded)
