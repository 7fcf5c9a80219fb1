"""What the benchmarks show: tables, plots, what moved, the command, and that the documentation is up to date."""

import copy
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcn_fast import cli
from fcn_fast.bench import command, machine, nets, plots, records, scaling, suites, tables
from fcn_fast.bench.cases import SIZES, Case, Size

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
RATES = {"copy": 2e10, "float32": 2e11, "multiply_add": 1e11}


@pytest.fixture(autouse=True)
def rates(monkeypatch):
    """A machine whose rates need not be measured."""
    monkeypatch.setattr(machine, "rates", lambda device, dtypes: RATES)


def entry(case, variant, milliseconds, spread=0.02, **more):
    """What a case gives whose times are spread evenly about this median."""
    low, high = milliseconds * (1 - spread / 2), milliseconds * (1 + spread / 2)
    times = {"min": low, "q1": low, "median": milliseconds, "q3": high, "max": high, "rounds": 20}
    limit = case.limit(RATES)
    found = {"group": case.group, "variant": variant, **case.facts, "threads": 2, "milliseconds": times, "error": 1e-7}
    if limit:
        parts = dict(zip(("milliseconds", "memory", "arithmetic"), (1e3 * part for part in limit), strict=True))
        found["limit"] = {**parts, "by": limit.by, "percent": 1e5 * limit.seconds / milliseconds}
    rate = case.facts.get("bytes", 0) / milliseconds / 1e6
    return {**found, "gb_per_s": rate, "percent_of_copy": 5 * rate, "peak_bytes": 3 << 20, **more}


@pytest.fixture
def record():
    """A machine on which fcn_fast takes 2 ms where eager takes 9 and torch.compile 5, whatever it is."""
    sides = {"eager": 9.0, "compile": 5.0, "fcn_fast": 2.0}
    found = [Case(name, size, way, kind) for size in SIZES for name, kind, way in suites.SHOWN]
    entries = [entry(case, "grouped" if v == "eager" and case.kind == "deconvolution" else v, ms)
               for case in found for v, ms in sides.items()]  # fmt: skip
    entries += [entry(case, v, ms) for case in nets.stage_cases(CPU) for v, ms in sides.items()]
    entries += [entry(case, v, sides[v]) for case in nets.predict_cases([(500, 500)]) for v in suites.SIDES]
    for job in suites.scaling(CPU):
        for variant in suites.SIDES:
            ms = sides[variant] * job.case.limit(RATES).seconds
            entries.append(entry(job.case, variant, ms, sweep=job.sweep, threads=job.threads or 2))
    return json.loads(json.dumps(records.new(CPU, entries, ["skipped: something"])))


def test_speed_says_how_many_times_as_long_the_others_take(record):
    table = tables.speed(record)
    assert [row[0] for row in table.rows] == list(tables.LABELS.values())
    assert all(cell == "**2.00 ms** (eager 4.5x, compile 2.5x)" for row in table.rows for cell in row[1:])
    lines = table.markdown().splitlines()
    assert lines[0].startswith("|  | VOC 1x21x63x63, x8 |") and set(lines[1]) == set("|-")
    assert all(line.count("|") == 5 for line in lines)
    widths = {len(line) for line in table.plain().splitlines()}
    assert len(widths) == 1 and "**" not in table.plain()


def test_a_ratio_inside_the_noise_is_called_so(record):
    for found in record["entries"]:
        if found["variant"] == "eager" and found["group"] == "softmax_loss VOC both":
            found["milliseconds"].update(q1=1.9, median=2.1, q3=2.6)
    row = next(row for row in tables.speed(record).rows if row[0].startswith("softmax_loss"))
    assert row[1] == "**2.00 ms** (eager 1.05x, inside the noise, compile 2.5x)" and "noise" not in row[2]
    assert "busy" not in tables.spread(record)
    few, many = ({"milliseconds": {"min": 1.0, "q1": 2.0, "q3": 3.0, "max": 9.0, "rounds": n}} for n in (5, 50))
    assert not records.noisy(many, {"milliseconds": {"q1": 4.0, "q3": 5.0, "rounds": 10}})
    assert records.noisy(few, {"milliseconds": {"q1": 4.0, "q3": 5.0, "rounds": 10}})
    assert not records.noisy(few, {"milliseconds": {"q1": 9.5, "q3": 9.9, "rounds": 10}})
    for found in record["entries"]:
        found["milliseconds"]["q3"] *= 1.5
    assert "the machine was busy" in tables.spread(record)


def test_stages_stand_beside_the_papers(record):
    rows = tables.stages(record).rows
    assert [row[2] for row in rows] == ["60.0 (59%)", "18.7 (18%)", "23.0 (23%)", "101.7"]
    assert [row[1] for row in rows] == ["181.9", "91.4", "88.7", "361.9"]
    assert rows[0][3:6] == ["9.00 (33%)", "5.00 (33%)", "2.00 (33%)"]
    floor = nets.NetCase("stage1").limit(RATES).seconds
    assert rows[0][6:] == [tables.figure(1e3 * floor), f"{1e3 * floor / 9:.0%}", f"{1e3 * floor / 2:.0%}"]
    assert not tables.stages(record, "caffe", "bfloat16")


def test_laws_of_cost_and_memory(record):
    # The made-up times are those of the machine's limits, which arithmetic sets for this one: proportional to logits.
    row = next(row for row in scaling.cost(record).rows if row[:2] == ["bilinear_upsample", "eager"])
    assert float(row[4]) > 0 and row[-1] == "24"
    assert {row[1] for row in scaling.memory(record).rows} == set(suites.SIDES)
    peaks = [found for found in record["entries"] if "sweep" in found]
    for found in peaks:
        batch, classes, height, width = found["shape"]
        found["peak_bytes"] = 12 * batch * classes * height * width * found["stride"] ** 2
    assert all(row[2] == "3.00" and row[-2:] == ["0%", "0%"] for row in scaling.memory(record).rows)


def test_laws_that_are_far_off_are_not_shown_in_a_terminal(record):
    """Nor blamed on others; a record shows every law with its deviations."""
    found = [each for each in record["entries"] if "sweep" in each and each["variant"] == "eager"]
    for number, each in enumerate(each for each in found if each["operation"] == "softmax_loss"):
        each["milliseconds"]["median"] *= (1, 3)[number % 2]
    marked = [row[:3] for row in scaling.cost(record, command.NOISY).rows if "too noisy to fit" in row]
    assert marked == [["softmax_loss", "eager", "too noisy to fit"]]
    assert command.report(record).count("too noisy to fit") == 1
    assert "noisy" not in str(command.sections(record)["Cost as work grows"])


def test_figures():
    values = {0: "0", 0.012345: "0.0123", 1.005: "1.00", 12.34: "12.3", 999: "999", 123456: "123,456", 1: "1.00"}
    assert {value: tables.figure(value) for value in values} == values


def test_plots_are_drawn_and_say_what_from(record, tmp_path):
    for name in plots.PLOTS:
        path = plots.save(name, record, tmp_path / f"{name}.png")
        with Image.open(path) as image:
            assert image.format == "PNG" and min(image.size) > 300
            assert np.asarray(image.convert("L")).std() > 5
        assert plots.digest(path) == plots.digest_of(name, record)
    changed = copy.deepcopy(record)
    for found in changed["entries"]:
        found["milliseconds"]["median"] *= 1 + 1e-3 * len(found["group"] + found["variant"])
        found["peak_bytes"] += 1 << 20
    assert all(plots.digest(tmp_path / f"{name}.png") != plots.digest_of(name, changed) for name in plots.PLOTS)
    empty = {**record, "entries": []}
    assert all(plots.save(name, empty, tmp_path / "none.png") is None for name in plots.PLOTS)


def test_records_come_back(record, tmp_path):
    records.save(tmp_path / "a.json", record)
    assert records.load(tmp_path / "a.json") == {**record, "environment": record["environment"]}
    half = len(record["entries"]) // 2
    (tmp_path / "parts").mkdir()
    for name, part in (("operations", record["entries"][:half]), ("scaling", record["entries"][half:])):
        records.save(tmp_path / "parts" / f"{name}.json", {**record, "entries": part})
    (tmp_path / "parts" / "other.json").write_text("somebody else's")
    assert records.load(tmp_path / "parts")["entries"] == record["entries"]
    (tmp_path / "none").mkdir()
    with pytest.raises(records.InputError, match="expected a folder with one of operations, stages"):
        records.load(tmp_path / "none")


def test_sessions_of_a_record_are_told_apart(record, tmp_path):
    slower = {**RATES, "copy": RATES["copy"] / 2, "bfloat16": 3e11}
    for part, rates in (("operations", RATES), ("stages", RATES), ("scaling", slower)):
        records.save(tmp_path / f"{part}.json", {**record, "environment": {**record["environment"], "rates": rates}})
    whole = records.load(tmp_path)
    assert whole["environment"]["rates"] == {**slower, **RATES}  # those of the part whose limits are shown
    assert tables.rates(whole) == (
        "machine: operations and stages: copy 20.0 GB/s, convolution in float32 200 GFLOP/s; "
        "scaling: copy 10.0 GB/s, convolution in float32 200 GFLOP/s, convolution in bfloat16 300 GFLOP/s"
    )
    (tmp_path / "scaling.json").unlink()
    assert tables.rates(records.load(tmp_path)) == "machine: copy 20.0 GB/s, convolution in float32 200 GFLOP/s"


def test_what_was_interrupted_keeps_what_it_has(tmp_path, monkeypatch, capsys):
    calls = iter([([{"group": "a"}], []), KeyboardInterrupt()])

    def measure(*args, **kwargs):
        result = next(calls)
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr(suites.run, "measure", measure)
    jobs = [suites.Job(Case("softmax_loss", SIZES[0])) for _ in range(3)]
    assert suites.measure(jobs, CPU) == ([{"group": "a"}], ["interrupted after 1 of 3 cases"])
    module = recorder()
    monkeypatch.setattr(suites, "measure", lambda jobs, device: ([], ["interrupted after 0 of 1 cases"]))
    with pytest.raises(SystemExit, match="nothing of it is kept"):
        module.record(tmp_path, ["stages"])
    assert not list(tmp_path.iterdir())


def compare(tmp_path, before, after, capsys):
    for name, record in (("a", before), ("b", after)):
        records.save(tmp_path / f"{name}.json", record)
    code = cli.main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    return code, capsys.readouterr().out


def test_compare_shows_what_moved_beyond_the_noise(record, tmp_path, capsys):
    assert compare(tmp_path, record, record, capsys)[0] == 0
    slower = copy.deepcopy(record)
    moved = [found for found in slower["entries"] if found["group"] == "softmax_loss VOC both"]
    for found in moved:
        factor = 1.5 if found["variant"] == "fcn_fast" else 1.005  # inside the noise
        found["milliseconds"] = {name: factor * value for name, value in found["milliseconds"].items()}
    code, out = compare(tmp_path, record, slower, capsys)
    assert code == 1 and f"1 of {len(record['entries'])} times moved beyond the noise" in out
    line = next(line for line in out.splitlines() if line.startswith("softmax_loss VOC both"))
    assert line.split()[3:] == ["fcn_fast", "2.00", "3.00", "+50%", "+0%"]
    code, out = compare(tmp_path, slower, record, capsys)
    assert code == 0 and "-33%" in out


def test_compare_does_not_blame_the_machine_on_fcn_fast(record, tmp_path, capsys):
    slower = copy.deepcopy(record)
    for found in slower["entries"]:
        found["milliseconds"] = {name: 1.5 * value for name, value in found["milliseconds"].items()}
    slower["environment"]["rates"] = {name: rate / 2 for name, rate in RATES.items()}
    slower["environment"]["threads"] = 99
    code, out = compare(tmp_path, record, slower, capsys)
    threads = record["environment"]["threads"]
    assert code == 0 and "rate of a copy: -50%" in out and f"threads: {threads} before, 99 after" in out


@pytest.mark.parametrize("text", [None, "text", "[]", '{"entries": [{"group": "x"}]}', "{}"])
def test_records_that_are_none(record, tmp_path, capsys, text):
    records.save(tmp_path / "a.json", record)
    if text is not None:
        (tmp_path / "b.json").write_text(text)
    assert cli.main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    assert "record: expected " in capsys.readouterr().err


def test_records_with_nothing_in_common(record, tmp_path, capsys):
    records.save(tmp_path / "a.json", record)
    records.save(tmp_path / "b.json", {**record, "entries": []})
    assert cli.main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    assert "got none in common" in capsys.readouterr().err


def test_bench_prints_tables_and_writes_what_is_wanted(tmp_path, capsys, monkeypatch):
    small, huge = Size("VOC", 1, 3, 5, 5, 8), Size("huge", 64, 1000, 512, 512, 8)
    found = [Case("upsample_argmax", small, kind="smooth"), Case("softmax_loss", huge, "both")]
    jobs = [suites.Job(case, suites.SIDES, 0.001) for case in found]
    sweep = [
        suites.Job(Case("upsample_argmax", Size("x", n, 3, 4, 4, 8), kind="smooth"), None, 0.001, "batch")
        for n in (1, 2)
    ]
    monkeypatch.setattr(
        suites, "quick", lambda device: jobs + [suites.Job(j.case, suites.SIDES, 0.001, "batch") for j in sweep]
    )
    arguments = ["--quick", "--device", "cpu", "--json", str(tmp_path / "a.json"), "--plots", str(tmp_path / "plots")]
    assert cli.main(["bench", *arguments]) == 0
    out, err = capsys.readouterr()
    assert "upsample_argmax, smooth scores" in out and "of a copy" in out and "us a call" in out
    assert "skipped: softmax_loss huge both: needs about" in out and "case" not in err  # no bar without a terminal
    found = records.load(tmp_path / "a.json")
    assert len(found["entries"]) == 6 and found["environment"]["torch"] == torch.__version__
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == [
        "memory.png",
        "roofline.png",
        "scaling.png",
        "speed.png",
    ]


@pytest.mark.parametrize("option", ["--json", "--plots"])
def test_bench_refuses_early_what_it_cannot_write(tmp_path, capsys, option):
    (tmp_path / "file").touch()
    assert cli.main(["bench", option, str(tmp_path / "file" / "below")]) == 2
    assert "expected a f" in capsys.readouterr().err


def test_benchmarks_under_pytest(tmp_path):
    """One of them, in a process of its own: conftest.py has options that only its own folder knows."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        ROOT / "benchmarks",
        "-q",
        "-p",
        "no:cacheprovider",
        "--benchmark-only",
    ]
    command += ["-k", "skip_fuse and FCN-8s and fcn_fast", "--device", "cpu", f"--benchmark-json={tmp_path / 'a.json'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)  # beside other tests nothing is measured
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads((tmp_path / "a.json").read_text())["benchmarks"]
    assert found["group"] == "skip_fuse deconvolution FCN-8s forward"
    wanted = {
        "bytes",
        "bytes_formula",
        "gb_per_s",
        "percent_of_copy",
        "peak_bytes",
        "error",
        "torch",
        "threads",
        "device",
    }
    assert wanted <= set(found["extra_info"])


def recorder():
    spec = importlib.util.spec_from_file_location("record", ROOT / "benchmarks" / "record.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_documentation_shows_the_records():
    module = recorder()
    if not module.machines():
        pytest.skip("nothing is recorded")
    for path, text in module.texts().items():
        assert path.read_text() == text, f"{path.name} is stale: python -P benchmarks/record.py --render-only"
    for name, whole in module.machines().items():
        for plot in plots.PLOTS:
            path = ROOT / module.RESULTS / name / f"{plot}.png"
            if plots.PLOTS[plot][0](whole):
                assert plots.digest(path) == plots.digest_of(plot, whole), f"{path.name} of {name} is stale"


def test_recording_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    module = recorder()
    small = [suites.Job(Case("upsample_argmax", Size("VOC", 1, 3, 5, 5, 8), kind="smooth"), suites.SIDES, 0.001)]
    asked = []
    parts = {name: lambda device, name=name: asked.append(name) or small for name in ("operations", "scaling")}
    monkeypatch.setattr(suites, "PARTS", parts)
    module.record(tmp_path, [])
    assert asked == ["operations", "scaling"]
    (tmp_path / "scaling.json").unlink()
    module.record(tmp_path, [])
    module.record(tmp_path, ["operations"])
    assert asked == ["operations", "scaling", "scaling", "operations"]
    assert records.load(tmp_path)["environment"]["commit"]


def test_what_is_rendered_stands_between_the_marks(record, tmp_path, monkeypatch):
    module = recorder()
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/benchmarks.md"):
        (tmp_path / name).write_text("before\n<!-- speed:begin -->\nold\n<!-- speed:end -->\nafter\n")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    assert {path.read_text() for path in module.texts()} == set(module.texts().values())  # nothing recorded
    (tmp_path / module.RESULTS / "here").mkdir(parents=True)
    records.save(tmp_path / module.RESULTS / "here" / "operations.json", record)
    module.render()
    readme, details = ((tmp_path / name).read_text() for name in ("README.md", "docs/benchmarks.md"))
    for text in (readme, details):
        assert text.startswith("before\n<!-- speed:begin -->\n") and text.endswith("\n<!-- speed:end -->\nafter\n")
        assert "old" not in text
    assert "**2.00 ms** (eager 4.5x, compile 2.5x)" in readme and "peak MiB above the inputs" in readme
    assert "| stage |" in details and "../benchmarks/results/here/stages.png" in details
    assert "### What bounds each case" in details and "../benchmarks/results/here/roofline.png" in details
    assert all((tmp_path / module.RESULTS / "here" / f"{name}.png").exists() for name in plots.PLOTS)
    assert {path: path.read_text() for path in module.texts()} == module.texts()
