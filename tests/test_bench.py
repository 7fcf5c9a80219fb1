"""What the benchmarks count and measure: bytes, FLOP, errors, memory, and what does not fit."""

import math
import random
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from fcn_fast import models, ops
from fcn_fast.bench import cases, machine, memory, nets, run, scaling, suites, timing, work
from fcn_fast.bench.cases import OPERATIONS, Case, Size

CPU = torch.device("cpu")
# GFLOP of stages 1 to 3 at 500x500, as others counted them: score layers with stage 3, deconvolutions too.
GFLOP = {"caffe": (181.8, 91.4, 88.8), "lean": (93.0, 46.8, 75.9)}


@pytest.fixture(autouse=True)
def rates(monkeypatch):
    """A machine whose rates need not be measured."""
    found = {"copy": 2e10, "float32": 2e11, "multiply_add": 1e11}
    monkeypatch.setattr(machine, "rates", lambda device, dtypes: found)


@pytest.fixture
def size():
    return Size("test", random.randint(1, 2), random.randint(2, 9), random.randint(3, 9), random.randint(3, 9), 4)


WAYS = [
    (operation, kind, direction)
    for operation in OPERATIONS
    for kind in cases.KINDS.get(operation, ("",))
    for direction in ("forward", "backward", "both")
    if operation != "upsample_argmax" or direction == "forward"
]


@pytest.mark.parametrize("operation, kind, direction", WAYS)
def test_variants_agree_and_bytes_are_those_of_the_tensors(operation, kind, direction, size, device):
    device = torch.device(device)
    case = Case(operation, size, direction, kind)
    inputs, grad = timing.input_sets(case, device)[0]
    variants = [variant for variant in case.variants if variant != "compile"]
    calls, errors, _ = run.calls_of(case, device, variants)
    assert set(errors) == set(variants) and max(errors.values()) < 1e-5

    output = ops_result(case, inputs)
    gradients = []
    if direction != "forward":
        gradients = torch.autograd.grad(output, [x for x in inputs if x.requires_grad], grad)
        for found, wanted in zip(
            calls["fcn_fast"](*calls["fcn_fast"].prepare())[-len(gradients) :], gradients, strict=True
        ):
            assert torch.equal(found, wanted)
    loss = operation.endswith("loss")
    read = sum(x.nbytes for x in inputs)
    if kind == "deconvolution" and operation == "skip_fuse":
        read = inputs[0].nbytes + output.nbytes  # of the skip no more than what is added
    forward = read + (0 if loss else output.nbytes)
    backward = (read if loss else output.nbytes) + (gradients[0].nbytes if gradients else 0)
    expected = {"forward": forward, "backward": backward, "both": forward + backward}
    assert work.transferred(case) == expected[direction]


def ops_result(case, inputs):
    with torch.set_grad_enabled(case.direction != "forward"):
        return case.function("fcn_fast", inputs[0].device)(*inputs)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_precision_and_layout(name, size):
    for case in (Case(o, size, "forward", dtype=name, layout="channels_last") for o in OPERATIONS):
        scores = case.inputs(CPU)[0]
        assert scores.dtype == getattr(torch, name) and scores.is_contiguous(memory_format=torch.channels_last)
        _, errors, _ = run.calls_of(case, CPU, ["eager", "fcn_fast"])
        assert errors["fcn_fast"] <= 2 * errors["eager"] + 1e-3


def test_dense_and_grouped_deconvolutions_are_caffes(size, monkeypatch):
    monkeypatch.setattr(cases, "VOC", size)
    for operation in ("bilinear_upsample", "skip_fuse"):
        case = Case(operation, size, kind="deconvolution")
        assert case.variants == ("grouped", "dense", "compile", "fcn_fast")
        calls, errors, _ = run.calls_of(case, CPU, ["grouped", "dense"])
        assert max(errors.values()) < 1e-5


@pytest.mark.parametrize("padding", nets.PADDINGS)
def test_flop_of_the_stages(padding):
    layers = nets.layers(padding)
    found = [sum(layer.flop for layer in layers[stage]) / 1e9 for stage in nets.STAGES]
    assert found == pytest.approx(GFLOP[padding], abs=0.2) and sum(found) == pytest.approx(sum(GFLOP[padding]), abs=0.3)
    assert sum(len(of_stage) for of_stage in layers.values()) == 18

    with torch.device("meta"):
        net, image = models.fcn8s(padding=padding).eval(), torch.empty(1, 3, 500, 500)
    with FlopCounterMode(display=False) as counter:
        pool4, _ = net.stage2(net.stage1(image)[0])
        before = counter.get_total_flops()
        net.stage3.deepest(pool4)
    assert before / 1e9 == pytest.approx(found[0] + found[1], rel=1e-9)
    assert (counter.get_total_flops() - before) / 1e9 == pytest.approx(found[2], rel=1e-9)


def test_floor_of_the_stages_on_an_h100():
    rates = {"copy": 3.0e12, "bfloat16": 800e12}
    ranges = {"stage1": (0.246, 0.292), "stage2": (0.114, 0.117), "stage3": (0.114, 0.124), "forward": (0.474, 0.533)}
    for part, (low, high) in ranges.items():
        limit = nets.NetCase(part, dtype="bfloat16").limit(rates)
        assert low <= 1e3 * limit.seconds <= high
        assert max(limit.memory, limit.arithmetic) <= limit.seconds <= limit.memory + limit.arithmetic


def test_limit_of_an_operation():
    case = Case("upsample_softmax_loss", Size("test", 1, 10, 8, 8, 8), "both")
    rates = {"copy": 1e9, "multiply_add": 1e9}
    logits, low, labels = 10 * 64 * 64, 4 * 10 * 8 * 8, 8 * 64 * 64
    limit = case.limit(rates)
    assert limit.memory == pytest.approx((3 * low + 2 * labels) / 1e9)
    assert limit.arithmetic == pytest.approx((5 + 16 / 4) * logits / 1e9)
    assert limit.by == "arithmetic" and limit.seconds == limit.arithmetic
    assert case.limit({"copy": 1e9}).by == "memory"


def test_a_measurement_says_how_near_to_the_machine_it_comes(size, device):
    device = torch.device(device)
    case = Case("skip_fuse", size, "both", "deconvolution")
    entries, notes = run.measure(case, device, seconds=0.001, variants=["grouped", "fcn_fast"])
    assert not notes
    assert [entry["variant"] for entry in entries] == ["grouped", "fcn_fast"]
    for entry in entries:
        times = entry["milliseconds"]
        assert 0 < times["min"] <= times["q1"] <= times["median"] <= times["q3"] <= times["max"]
        assert entry["bytes"] == work.transferred(case) and entry["bytes_formula"] == "2 low + 3 high"
        assert entry["error"] < 1e-5 and entry["threads"] == torch.get_num_threads()
        best = entry["milliseconds"]
        if device.type == "cuda":
            assert entry["event_milliseconds"]["median"] > 0
            best = entry["graph_milliseconds"]  # which a call as short as this has
        assert entry["gb_per_s"] == pytest.approx(entry["bytes"] / best["median"] / 1e6, rel=1e-3)
        assert entry["percent_of_copy"] == pytest.approx(entry["gb_per_s"] / 0.2, rel=1e-2)
        assert entry["limit"]["percent"] == pytest.approx(
            100 * entry["limit"]["milliseconds"] / best["median"], rel=1e-2
        )


def test_rates_are_work_over_time(monkeypatch):
    work_done = []
    monkeypatch.setattr(machine, "_seconds", lambda call, device: work_done.append(call()) or 0.5)
    cache = 4 * machine._last_level_cache()
    rates = {name: rate.__wrapped__ for name, rate in vars(machine).items() if name.endswith("_rate")}
    assert rates["_copy_rate"](CPU, 1) == 2 * max(cache, 2**28) / 0.5
    assert rates["_matrix_rate"](CPU, "bfloat16", 1) == 2 * 256 * 256 * 9 * 64 * 64 / 0.5
    assert len(work_done) == len(rates) == 2


def test_variants_take_turns_in_changing_order(monkeypatch):
    turns, milliseconds = [], {"slow": 100.0, "middle": 40.0, "fast": 0.1}

    def times(name, device, count):
        turns.append((name, count))
        return {"": [milliseconds[name]] * count}

    monkeypatch.setattr(timing, "times", times)
    samples = timing.interleave({name: name for name in milliseconds}, CPU, seconds=1.0)
    assert {name: len(found[""]) for name, found in samples.items()} == {"slow": 10, "middle": 20, "fast": 100}
    rounds = [[name for name, _ in turns[i : i + 3]] for i in range(3, len(turns), 3)]
    assert all(sorted(names) == sorted(milliseconds) for names in rounds)
    assert {names[0] for names in rounds} == {names[-1] for names in rounds} == set(milliseconds)
    neighbours = [pair for names in rounds for pair in zip(names, names[1:], strict=False)]
    assert set(neighbours) == {(a, b) for a in milliseconds for b in milliseconds if a != b}


def test_statistics():
    values = [random.random() + 0.1 for _ in range(41)]
    found = timing.statistics_of(values)
    quartiles = torch.tensor(values).quantile(torch.tensor([0, 0.25, 0.5, 0.75, 1]))
    assert [found[n] for n in ("min", "q1", "median", "q3", "max")] == pytest.approx(quartiles.tolist(), rel=1e-4)
    assert found["rounds"] == 41 and timing.statistics_of([2.0])["q3"] == 2.0


def test_a_wrong_operation_is_noticed(size, monkeypatch):
    wrong = SimpleNamespace(**vars(ops))
    monkeypatch.setattr(cases, "ops", wrong)
    right = ops.bilinear_upsample
    wrong.bilinear_upsample = lambda *args, **kwargs: right(*args, **kwargs) * 1.001
    with pytest.raises(
        run.WrongResult, match="bilinear_upsample resize test forward: expected an error of at most 0.0001"
    ):
        run.measure(Case("bilinear_upsample", size, kind="resize"), CPU, 0.001, ["eager", "fcn_fast"])
    wrong.bilinear_upsample = lambda *args, **kwargs: right(*args, **kwargs) * float("nan")
    jobs = [suites.Job(Case("bilinear_upsample", size, kind="resize"), ("eager", "fcn_fast"), 0.001)]
    entries, notes = suites.measure(jobs, CPU)
    assert not entries and notes[0].startswith("WRONG: bilinear_upsample") and "got inf" in notes[0]


def test_what_fails_stops_nothing_else(size, monkeypatch):
    def fails(*inputs, **options):
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(cases, "compiled", lambda function: fails)
    jobs = [
        suites.Job(Case("softmax_loss", size), seconds=0.001),
        suites.Job(Case("skip_fuse", size), ("eager", "fcn_fast"), 0.001),
    ]
    monkeypatch.setattr(cases.ops, "skip_fuse", fails)
    entries, notes = suites.measure(jobs, CPU)
    assert [entry["variant"] for entry in entries] == ["eager", "fcn_fast"]
    assert notes == [
        "left out: compile softmax_loss test forward: RuntimeError: no compiler",
        "WRONG: skip_fuse test forward: RuntimeError: no compiler",
    ]


def test_what_does_not_fit_is_left_out_with_its_figure(monkeypatch):
    huge = Case("softmax_loss", Size("huge", 64, 1000, 512, 512, 8), "both")
    small = Case("softmax_loss", Size("small", 1, 2, 3, 3, 8), "forward")
    jobs = [suites.Job(case, ("eager", "fcn_fast"), 0.001) for case in (huge, small)]
    entries, notes = suites.measure(jobs, CPU)
    assert [entry["size"] for entry in entries] == ["small", "small"]
    logits = 64 * 1000 * 4096**2
    gigabytes = 2 * (3 * 4 * logits + 2 * 8 * 64 * 4096**2 + 4 * 3 * logits) / 1e9
    assert notes[0].startswith(f"skipped: softmax_loss huge both: needs about {gigabytes:,.1f} GB, ")
    monkeypatch.setattr(machine, "available_bytes", lambda device: 1000)
    with pytest.raises(run.Skipped, match="0.0 GB are free"):
        run.check_memory(small, CPU, ["eager"])


def test_a_sweep_leaves_out_what_would_take_too_long():
    notes, points = [], [Case("softmax_loss", Size("x", 1, classes, 8, 8, 8), "both") for classes in (10, 40)]
    before = {("softmax_loss", "eager"): (math.prod(points[0].high), 1.2), ("softmax_loss", "fcn_fast"): (1e9, 0.1)}
    job = suites.Job(points[1], suites.SIDES, sweep="classes")
    assert suites._affordable(job, CPU, list(suites.SIDES), before, notes) == ["fcn_fast"]
    assert notes == ["skipped: eager softmax_loss x both: a call takes about 4.8 s"]


def test_a_sweep_leaves_out_what_does_not_fit(monkeypatch):
    case, notes = Case("upsample_softmax_loss", Size("image of 4096x4096", 1, 21, 512, 512, 8), "both"), []
    low, high, labels = 4 * math.prod(case.low), 4 * math.prod(case.high), 8 * 4096**2
    needed = {"eager": 3 * low + 2 * labels + 3 * high, "fcn_fast": 3 * low + 2 * labels}
    monkeypatch.setattr(machine, "available_bytes", lambda device: needed["fcn_fast"] / 0.8)
    assert suites._affordable(suites.Job(case, sweep="image"), CPU, list(suites.SIDES), {}, notes) == ["fcn_fast"]
    (note,) = notes
    assert note.startswith(f"skipped: eager {case.group}: needs about {needed['eager'] / 1e9:.1f} GB, ")


def test_peak_memory_is_what_a_call_holds(device):
    device = torch.device(device)
    resize = Case("bilinear_upsample", Size("test", 2, 16, 64, 64, 8), kind="resize")
    labels = Case("upsample_argmax", resize.size, kind="smooth")
    peaks = {}
    for case in (resize, labels):
        for variant in ("eager", "fcn_fast"):
            call = timing.Call(case.function(variant, device), timing.input_sets(case, device), "forward")
            call(*call.prepare())
            peaks[case, variant] = memory.peak_bytes(case, variant, call, device) / 1e6
    megabytes = 4 * math.prod(resize.high) / 1e6
    assert peaks[resize, "eager"] == pytest.approx(megabytes, abs=2)
    assert peaks[resize, "fcn_fast"] == pytest.approx(megabytes, abs=2)
    assert peaks[labels, "fcn_fast"] < megabytes / 10 < megabytes < peaks[labels, "eager"]


def test_smooth_scores_are_what_they_are_called():
    size = Size("test", 1, 8, 64, 64, 4)
    shares = {}
    for kind in ("smooth", "random"):
        scores = Case("upsample_argmax", size, kind=kind).inputs(CPU)[0]
        labels = F.interpolate(scores, scale_factor=4, mode="bilinear").argmax(1)
        shares[kind] = (labels[:, 1:] == labels[:, :-1]).double().mean().item()
    assert shares["smooth"] > 0.95 > 0.9 > shares["random"]


def test_fitted_laws_find_what_made_the_points():
    wanted = [random.uniform(1, 9) for _ in range(3)]
    terms = [(1, random.uniform(1, 100), random.uniform(1, 100)) for _ in range(9)]
    values = [sum(a * b for a, b in zip(wanted, row, strict=True)) for row in terms]
    found, off = scaling.fit(terms, values)
    assert found == pytest.approx(wanted) and off[-1] < 1e-9
    found, off = scaling.fit([(1, 7 * x, 64 * 7 * x) for x in (1, 2, 3)], [0.7, 1.4, 2.1])
    assert found == pytest.approx([0, 0.1, 0])  # and not 0.1 / 64 of the last, wherever that is a rounding nearer
    found, off = scaling.fit([(1, x) for x in (1, 2, 3)], [3.0, 2.0, 1.0])  # falls: no law without a negative part
    assert found[1] == 0 and found[0] > 0 and off[-1] > 0.1


def test_what_the_default_and_the_record_measure():
    for jobs in (suites.quick(CPU), suites.default(CPU), *(part(CPU) for part in suites.PARTS.values())):
        keys = [(job.case, job.sweep, job.threads) for job in jobs]
        assert jobs and len(set(keys)) == len(keys)
    groups = {job.case.group for job in suites.operations(CPU)}
    for name, kind, way in suites.SHOWN:
        for size in cases.SIZES:
            assert " ".join([name, *([kind] if kind else []), size.name, way]) in groups
