"""What every test stands on: the installed compiled module, a seed that can be replayed, the devices."""

import concurrent.futures
import functools
import importlib.metadata
import json
import os
import random
import tempfile
import warnings
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

# Many small operations on a busy machine: a thread that waits by spinning takes the core from the one it waits for.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes of tests: a core for each, and for what it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Inductor's cache does not know this variable, and its code for narrow vectors writes past the end of wide ones.
if capability := os.environ.get("ATEN_CPU_CAPABILITY"):
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"inductor_{capability}"))

import torch  # noqa: E402

torch.backends.cudnn.allow_tf32 = False  # or a GPU's convolutions agree to three digits

SEED = int(os.environ.get("FCN_FAST_TEST_SEED") or random.SystemRandom().randrange(2**31))
os.environ["FCN_FAST_TEST_SEED"] = str(SEED)  # of the processes that this one starts too
ALLOW_REFERENCE = os.environ.get("FCN_FAST_ALLOW_REFERENCE") == "1"

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # without a compiled module the package warns, and pytest_configure refuses
    import fcn_fast


def wrong_module():
    """Why these tests would not test the installed compiled module; empty where they do."""
    try:
        distribution = importlib.metadata.distribution("fcn_fast")
    except importlib.metadata.PackageNotFoundError:
        return "fcn_fast is not installed"
    folder = Path(str(distribution.locate_file("fcn_fast")))
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        folder = Path(url2pathname(urlsplit(origin["url"]).path), "fcn_fast")
    if fcn_fast._C is None:
        return f"{fcn_fast.__file__} has no compiled module"
    for module in (fcn_fast, fcn_fast._C):
        if Path(module.__file__).resolve().parent != folder.resolve():
            return f"{module.__file__} was imported, but fcn_fast is installed in {folder}"
    return ""


def pytest_configure(config):
    config.addinivalue_line("markers", "isa: runs again with the kernels of every instruction set")
    reason = wrong_module()
    if reason and not ALLOW_REFERENCE:
        raise pytest.UsageError(
            f"these tests would not test the installed kernels: {reason}. Install with: pip install . "
            "(FCN_FAST_ALLOW_REFERENCE=1 tests without them)"
        )


def pytest_report_header(config):
    facts = fcn_fast._C.build_facts() if fcn_fast._C else "no compiled module"
    return [f"fcn_fast: {facts}", f"torch: {torch.__version__}, seed: {SEED} (replay with FCN_FAST_TEST_SEED={SEED})"]


@pytest.fixture(autouse=True)
def seed():
    """Fresh random numbers in every session; the number that brings them back stands in the report of a failure."""
    print(f"FCN_FAST_TEST_SEED={SEED}")
    torch.default_generator.manual_seed(SEED)
    if torch.cuda.is_available():  # torch.manual_seed, which does both, takes milliseconds where there is no GPU
        torch.cuda.manual_seed_all(SEED)
    return SEED


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return request.param


@pytest.fixture(params=["kernel", "reference"])
def implementation(request, device):
    """The kernels of this device, or the reference in their place, under the same public functions."""
    if request.param == "kernel":
        yield request.param
        return
    library = torch.library.Library("fcn_fast", "IMPL")  # noqa: TOR901, taken back below
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is a kernel already, from C++ or from Python, is the point
        for name in fcn_fast.kernels.OPERATORS:
            library.impl(name, getattr(fcn_fast.reference, name), device.upper(), allow_override=True)
    yield request.param
    library._destroy()  # the dispatcher has kept the kernels from before


@pytest.fixture
def deterministic():
    """Deterministic algorithms, silently; PyTorch then fills fresh memory with NaN, so what a kernel forgets shows."""
    torch.use_deterministic_algorithms(True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*determinis")
        yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def set_num_threads():
    threads = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(threads)


@pytest.fixture
def peaks_side_by_side(monkeypatch):
    """Where a recording script measures memory on a CPU, its sides' processes run at once: most of it is imports."""
    from fcn_fast.bench import scripts

    one_by_one = scripts.peaks

    def peaks(script, case, sides, quick, **options):
        if options["device"].type != "cpu":
            return one_by_one(script, case, sides, quick, **options)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            found = pool.map(lambda side: one_by_one(script, case, [side], quick, **options)[side], sides)
            return dict(zip(sides, found, strict=True))

    monkeypatch.setattr(scripts, "peaks", peaks)


@pytest.fixture
def compile():
    """torch.compile, which must take the whole function; forgets what other tests compiled."""
    torch.compiler.reset()
    return functools.partial(torch.compile, fullgraph=True)
