"""The benchmarks under pytest: which cases run, and how a variant of one is timed.

    pytest benchmarks/ --benchmark-only [--sizes all] [--dtypes float16] [-k "VOC and both"]

By default that is everything at VOC's size, the fused loss at the larger ones, and FCN-8s in its published geometry:
7 min 46 s on two threads of a Xeon with nothing in torch.compile's cache.

A group holds one case (fcn_fast/bench/cases.py, nets.py): its variants compute the same from the same inputs, and each
is checked before it is timed. ``extra_info`` has the bytes that the case must move and by which formula, GB/s, per cent
of a copy in this session, the machine's limit, peak memory, and the error against float64.
"""

import os

import pytest
import torch

import fcn_fast
from fcn_fast.bench import cases, machine, nets, run
from fcn_fast.bench.memory import peak_bytes_later
from fcn_fast.bench.timing import times

SECONDS = 0.2  # of rounds a benchmark, within the bounds below
ROUNDS = (3, 50)
KNOWN = {
    "sizes": {size.name: size for size in cases.SIZES},
    "dtypes": dict.fromkeys(cases.DTYPES),
    "layouts": dict.fromkeys(cases.LAYOUTS),
}


def pytest_addoption(parser):
    group = parser.getgroup("fcn_fast")
    for option, default in (("sizes", "VOC"), ("dtypes", "float32,bfloat16"), ("layouts", "all")):
        group.addoption(f"--{option}", default=default, help=f"{', '.join(KNOWN[option])} or all (default: {default})")
    group.addoption("--device", help="cpu or cuda (default: cuda where there is a GPU)")


def pytest_configure(config):
    if fcn_fast._C is None and os.environ.get("FCN_FAST_ALLOW_REFERENCE") != "1":
        raise pytest.UsageError(f"nothing to measure: {fcn_fast.__file__} has no compiled module")
    _device(config)
    for option in KNOWN:
        _chosen(config, option)


def pytest_report_header(config):
    return ", ".join(f"{name}: {value}" for name, value in machine.facts(_device(config)).items())


@pytest.hookimpl
def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.pop("node", None)  # the name of somebody's computer says nothing
    machine_info.update(machine.facts(_device(config)))


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        pairs = [(case, variant) for case in _cases(metafunc) for variant in case.variants]
        metafunc.parametrize(("case", "variant"), pairs, ids=["-".join([*c.names, v]) for c, v in pairs])


def _cases(metafunc):
    config, name = metafunc.config, metafunc.function.__name__.removeprefix("test_")
    sizes = _chosen(config, "sizes")
    all_sizes = len(sizes) == len(cases.SIZES)
    if name == "stages":
        found = nets.stage_cases(_device(config))
        return found if all_sizes else [case for case in found if case.padding == "caffe"]
    if name == "predict":
        found = nets.predict_cases([(500, 500), (1024, 2048)])
        return found if all_sizes else [case for case in found if case.part == "labels" and case.height == 500]
    dtypes = _chosen(config, "dtypes")
    layouts = _chosen(config, "layouts")
    return cases.operation_cases(full=list(sizes.values()), dtypes=dtypes, layouts=layouts, operations=[name])


def _chosen(config, option):
    known = KNOWN[option]
    names = list(known) if config.getoption(option) == "all" else config.getoption(option).split(",")
    for name in names:
        if name not in known:
            raise pytest.UsageError(f"--{option}: expected some of {', '.join(known)}, or all, got {name}")
    return {name: known[name] for name in names}


def _device(config):
    name = config.getoption("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise pytest.UsageError(
            f"--device: expected {'cpu or cuda' if name != 'cuda' else 'cpu, without a GPU'}, got {name}"
        )
    return torch.device(name)


@pytest.fixture(scope="session")
def device(pytestconfig):
    return _device(pytestconfig)


@pytest.fixture(scope="session")
def unfinished():
    """What has no peak memory yet: another process measures it while the next benchmark is compiled and checked."""
    found = []
    yield found
    finish(found)


def finish(unfinished):
    while unfinished:
        extra_info, peak = unfinished.pop()
        extra_info["peak_bytes"] = peak()


@pytest.fixture
def measure(benchmark, device, unfinished):
    """measure(case, variant): check a variant of a case and time it."""

    def measure(case, variant):
        try:
            run.check_memory(case, device, [variant])
        except run.Skipped as reason:
            pytest.skip(str(reason))
        calls, errors, notes = run.calls_of(case, device, [variant])
        if notes:
            pytest.skip(notes[0])
        call = calls[variant]
        finish(unfinished)  # nothing else runs while this is timed

        def timed(*prepared):
            call(*prepared)
            if device.type == "cuda":
                torch.cuda.synchronize()

        # What takes longer than all rounds of others, as a whole net does, need not run once more to know that.
        slow = call.first > ROUNDS[0] * SECONDS and variant != "compile" and device.type == "cpu"
        once = call.first if slow else times(call, device, 1)[""][0] / 1e3
        rounds = int(min(max(SECONDS / once, ROUNDS[0]), ROUNDS[1]))
        benchmark.group = case.group
        benchmark.pedantic(timed, setup=lambda: (call.prepare(), {}), rounds=rounds)
        if benchmark.disabled:
            return
        samples = {"": [1e3 * seconds for seconds in benchmark.stats.stats.data]}
        if device.type == "cuda":
            samples["event_"] = times(call, device, rounds)["event_"]
        entry = run.entry(case, device, variant, call, samples, errors[variant])
        benchmark.extra_info.update({**machine.facts(device), **entry})
        unfinished.append((benchmark.extra_info, peak_bytes_later(case, variant, call, device)))

    yield measure
    torch.compiler.reset()
