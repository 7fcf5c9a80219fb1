"""What the benchmarks share: the sizes, the three ways to compute a thing, and one way to time them.

Every group of the report holds one operation at one size and direction, done by eager PyTorch as its users write it
(``fcn_fast.eager``), by torch.compile of the same, and by fcn_fast, on the same inputs. What is timed has been checked
against eager first.
"""

import math
import os
import platform
import time
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

import fcn_fast
from fcn_fast import eager, ops

SECONDS = 0.7  # of rounds a benchmark, within the bounds below
ROUNDS = (3, 50)


@dataclass(frozen=True)
class Size:
    """A data set's usual scores: batch, classes, height and width of the low-resolution map, and its stride."""

    name: str
    batch: int
    classes: int
    height: int
    width: int
    stride: int

    @property
    def pixels(self):
        return self.height * self.stride, self.width * self.stride

    def scores(self, device, size=None):
        """Random scores, of the low-resolution map unless another size is given."""
        return torch.randn(self.batch, self.classes, *(size or (self.height, self.width)), device=device)

    def smooth_scores(self, device):
        """Scores whose classes form regions, as a network's do: a random map of a 16th of the size, and some noise."""
        coarse = torch.randn(self.batch, self.classes, math.ceil(self.height / 16), math.ceil(self.width / 16))
        smooth = F.interpolate(coarse, (self.height, self.width), mode="bilinear") * 8
        return (smooth + 0.5 * torch.randn_like(smooth)).to(device)

    def labels(self, device):
        """Labels in blocks of 16 pixels, a few of them ignored; int64, as F.cross_entropy wants them."""
        blocks = torch.randint(self.classes, (self.batch, *(math.ceil(n / 16) for n in self.pixels)))
        blocks[torch.rand(blocks.shape) < 0.05] = 255
        whole = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)
        return whole[:, : self.pixels[0], : self.pixels[1]].contiguous().to(device)


SIZES = (
    Size("voc", 1, 21, 63, 63, 8),
    Size("cityscapes", 1, 19, 128, 256, 8),
    Size("ade20k", 2, 150, 128, 128, 4),
)


def pytest_configure(config):
    if fcn_fast._C is None and os.environ.get("FCN_FAST_ALLOW_REFERENCE") != "1":
        raise pytest.UsageError(f"nothing to measure: {fcn_fast.__file__} has no compiled module")


def pytest_report_header(config):
    return ", ".join(f"{name}: {value}" for name, value in machine().items())


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.pop("node", None)  # the name of somebody's computer says nothing


def machine():
    """What a number means nothing without."""
    facts = {
        "torch": torch.__version__,
        "fcn_fast": fcn_fast.__version__,
        "isa": fcn_fast._C.build_facts()["isa"] if fcn_fast._C else "none: the reference",
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
    }
    if torch.cuda.is_available():
        facts |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return facts


@pytest.fixture(scope="session")
def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=SIZES, ids=lambda size: size.name)
def size(request):
    return request.param


@pytest.fixture
def cityscapes():
    return next(size for size in SIZES if size.name == "cityscapes")


@pytest.fixture(params=["forward", "forward_backward"])
def direction(request):
    return request.param


@pytest.fixture(params=["eager", "compile", "fcn_fast"])
def variant(request):
    return request.param


@pytest.fixture
def measure(benchmark, variant, device):
    """measure(group, functions, inputs): time one variant, a call or a call with its gradients."""
    torch.manual_seed(0)

    def measure(group, functions, inputs, backward=False, **extra_info):
        if backward:
            inputs = [x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs]
            functions = {name: with_gradients(function, inputs) for name, function in functions.items()}
        # What runs is bound to its inputs here, so that nothing else is inside the timer.
        call = functions[variant]
        half = any(x.is_floating_point() and x.dtype.itemsize == 2 for x in inputs)
        check(call(*inputs), functions["eager"](*inputs), half)

        def synchronised():
            call(*inputs)
            if device == "cuda":
                torch.cuda.synchronize()

        synchronised()
        start = time.perf_counter()
        synchronised()
        rounds = int(min(max(SECONDS / (time.perf_counter() - start), ROUNDS[0]), ROUNDS[1]))
        benchmark.group = group
        shapes = [list(x.shape) for x in inputs]
        benchmark.extra_info.update(machine(), variant=variant, device=device, inputs=shapes, **extra_info)
        benchmark.pedantic(synchronised, rounds=rounds)

    with torch.set_grad_enabled(False):
        torch.compiler.reset()
        yield measure


@pytest.fixture
def measure_operation(measure):
    """measure_operation(name, group, inputs, **options): an operation of fcn_fast.ops and its namesake in eager."""

    def measure_operation(name, group, inputs, backward=False, **options):
        fast, plain = getattr(ops, name), getattr(eager, name)
        functions = {
            "eager": lambda *inputs: plain(*inputs, **options),
            "compile": torch.compile(lambda *inputs: plain(*inputs, **options), dynamic=False),
            "fcn_fast": lambda *inputs: fast(*inputs, **options),
        }
        measure(f"{name} {group}", functions, inputs, backward, operation=name)

    return measure_operation


def with_gradients(function, inputs):
    leaves = [x for x in inputs if x.requires_grad]
    shape = []

    def call(*inputs):
        with torch.enable_grad():
            output = function(*inputs)
            if not shape:
                shape.append(torch.ones_like(output))
            return output.detach(), *torch.autograd.grad(output, leaves, shape[0])

    return call


def check(actual, expected, half):
    """Both agree, in half precision as far as eager's own rounding of what lies between lets them."""
    if not isinstance(actual, (tuple, list)):
        actual, expected = [actual], [expected]
    for a, e in zip(actual, expected, strict=True):
        if a is None or not a.is_floating_point():
            assert a is e or (a == e).double().mean() > (0.95 if half else 0.999)
        else:
            assert (a.float() - e.float()).abs().max() <= (2e-2 if half else 1e-4) * e.float().abs().max()
