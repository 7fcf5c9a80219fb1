"""Layers that a GPU runs in one kernel each, in inference: the same results, and nowhere else."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from fcn_fast import eager, kernels, models, reference
from fcn_fast.models import stages

from .support import by_head, image
from .test_canvas import build

NAMES = [
    "voc-fcn8s",
    "voc-fcn32s",
    "voc-fcn-alexnet",
    "siftflow-fcn16s",
    "nyud-fcn32s-color-d",
    "nyud-fcn32s-color-hha",
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture
def calls(monkeypatch):
    """A CPU that passes for a GPU; what is called there."""
    found = []

    def conv_relu(x, weight, bias, stride, padding, dilation, groups):
        found.append(weight.shape)
        return F.relu(F.conv2d(x, weight, bias, stride, padding, dilation, groups))

    def max_pool(x, frame=None, corner=(0, 0)):
        found.append("pool" if frame is None else "pool into a frame")
        return reference.max_pool(x, frame, corner)

    monkeypatch.setattr(stages, "_on_gpu", lambda tensor: True)
    monkeypatch.setattr(stages, "LARGE", 0)
    monkeypatch.setattr(stages, "_LOADED", set())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", conv_relu)
    monkeypatch.setattr(kernels, "max_pool", max_pool)
    return found


def assert_near(found, expected, tolerance):
    for head, scores in by_head(expected).items():
        assert (by_head(found)[head] - scores).abs().max() <= tolerance * scores.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_same_results(name, layout, dtype, calls):
    if name == "voc-fcn-alexnet" and dtype == torch.bfloat16:
        pytest.skip("PyTorch's local_response_norm does not know bfloat16 on a CPU")
    for padding in ("caffe", "lean") if name == "voc-fcn8s" else ("caffe",):
        model = build(name, width=1 / 32, padding=padding).to(dtype).to(memory_format=layout)
        x = image(model, 41, 56, batch=2).contiguous(memory_format=layout)
        model.ops = eager
        plain = model(x), models.freeze_canvas(model, (41, 56))(x)
        assert not calls
        model.ops = models.fcn8s(width=1 / 64).ops
        found = model(x), models.freeze_canvas(model, (41, 56))(x)
        # The same convolutions with zero channels more: another order of sums, at most.
        tolerance = 1e-5 if dtype == torch.float32 else 0.05
        for pair in zip(found, plain, strict=True):
            assert_near(*pair, tolerance)
        fused = {call for call in calls if not isinstance(call, str)}
        assert fused and all(max(shape[2:]) <= 3 and shape[1] >= 16 // dtype.itemsize for shape in fused)
        assert ("pool" in calls) == (layout == torch.channels_last and name != "voc-fcn-alexnet")
        calls.clear()


def test_a_pool_writes_into_the_canvas(calls):
    model = build(width=1 / 32).to(memory_format=torch.channels_last)
    x = image(model, 41, 56).contiguous(memory_format=torch.channels_last)
    frozen = models.freeze_canvas(model.float(), (41, 56))
    frozen(x.float())
    calls.clear()
    frozen(x.float())
    assert calls.count("pool into a frame") == 3 and calls.count("pool") == 2  # two feed score layers


def test_small_maps_are_pooled_by_pytorch_where_no_graph_is_made(calls, monkeypatch):
    """But the first time, which loads the kernel: that cannot be done while a CUDA graph is made."""
    monkeypatch.setattr(stages, "LARGE", 1 << 40)
    trunk = models.fcn8s(width=1 / 64).eval().stage1
    x = torch.randn(1, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        for capturing, pools in ((True, 0), (False, 1), (False, 1), (True, 2), (True, 3), (False, 3)):
            monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda capturing=capturing: capturing)
            assert torch.equal(trunk.max_pool(2, x), F.max_pool2d(x, 2, 2))
            assert calls.count("pool") == pools


def test_frames_are_of_the_image_s_layout(calls):
    model = build(width=1 / 32)
    frozen = models.freeze_canvas(model, (41, 56))
    x = image(model, 41, 56)
    expected = frozen(x)
    assert_near(frozen(x.contiguous(memory_format=torch.channels_last)), expected, 1e-5)
    assert_near(frozen(x), expected, 1e-5)


def layer():
    conv = stages.Conv(8, 8, 3, padding=1).requires_grad_(False)
    trunk = models.fcn8s(width=1 / 64).eval().stage1
    trunk.conv1_2 = conv
    return trunk, conv, torch.randn(1, 8, 6, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fused", "not fused"])
def test_zeros_around(dtype, calls):
    trunk, conv, x = layer()
    conv, x = conv.to(dtype), x.to(dtype)
    expected = F.relu(F.conv2d(F.pad(x, (3, 4, 1, 2)), conv.weight, conv.bias))
    torch.testing.assert_close(trunk.conv_relu("conv1_2", x, ((1, 2), (3, 4))), expected)
    assert len(calls) == (dtype == torch.float32)


def other_weight(conv):
    torch.nn.utils.parametrize.register_parametrization(conv, "weight", torch.nn.Identity())


def subclass(conv):
    conv.weight = torch.nn.Parameter(type("Subclass", (torch.Tensor,), {})(conv.weight.detach()), requires_grad=False)


CHANGES = {
    "requires a gradient": lambda conv: conv.requires_grad_(True),
    "hook": lambda conv: conv.register_forward_hook(lambda *_: None),
    "hook before": lambda conv: conv.register_forward_pre_hook(lambda *_: None),
    "parametrized": other_weight,
    "subclass": subclass,
    "own forward": lambda conv: setattr(conv, "forward", conv.forward),
    "float64": lambda conv: conv.double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_convolutions_are_called(change, calls):
    trunk, conv, x = layer()
    expected = trunk.conv_relu("conv1_2", x)
    assert calls == [conv.weight.shape]
    CHANGES[change](conv)
    x = x.to(conv.weight.dtype)
    torch.testing.assert_close(trunk.conv_relu("conv1_2", x), expected, check_dtype=False)
    assert len(calls) == 1


def test_hooks_are_called(calls):
    trunk, conv, x = layer()
    conv.register_forward_hook(lambda module, inputs, output: output + 1)
    assert torch.equal(trunk.conv_relu("conv1_2", x), F.relu(F.conv2d(x, conv.weight, conv.bias, padding=1) + 1))


@pytest.mark.parametrize("setting", ["enabled", "deterministic"])
def test_settings_of_cudnn(setting, calls, monkeypatch):
    trunk, _, x = layer()
    monkeypatch.setattr(torch.backends.cudnn, setting, setting == "deterministic")
    trunk.conv_relu("conv1_2", x)
    assert not calls


def test_deterministic_algorithms(calls, deterministic):
    trunk, _, x = layer()
    trunk.conv_relu("conv1_2", x)
    assert not calls


def test_who_looks_on_sees_pytorch(calls):
    trunk, conv, x = layer()
    maps = x.contiguous(memory_format=torch.channels_last)
    run = lambda x: trunk.max_pool(2, trunk.conv_relu("conv1_2", x))  # noqa: E731
    expected = run(maps)
    assert len(calls) == 2
    others = {
        "vmap": lambda: torch.func.vmap(run)(maps[None])[0],
        "jvp": lambda: torch.func.jvp(run, (maps,), (maps,))[0],
        "grad": lambda: run(maps.clone().requires_grad_()).detach(),
        "trace": lambda: torch.jit.trace(run, maps, check_trace=False)(maps.clone()),
        "export": lambda: torch.export.export(Run(run), (maps,)).module()(maps),
        "compile": lambda: torch.compile(run, fullgraph=True, backend="aot_eager")(maps),
    }
    for name, other in others.items():
        torch.testing.assert_close(other(), expected, msg=name)
        assert len(calls) == 2, name
    with FlopCounterMode(display=False) as counter:
        run(maps)
    assert counter.get_total_flops() == 2 * 8 * 8 * 9 * 36


class Run(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_other_channels_fail_as_before(calls):
    trunk, _, x = layer()
    with pytest.raises(RuntimeError, match="channels"):
        trunk.conv_relu("conv1_2", x[:, :4])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu(name, layout, dtype, monkeypatch):
    model = build(name, width=1 / 8).cuda()
    x = image(model, 41, 56, batch=2).cuda() / 128  # what these random weights make of more is beyond float16
    exact = model(x)
    model, x = model.to(dtype).to(memory_format=layout), x.to(dtype).contiguous(memory_format=layout)
    original, calls = torch.cudnn_convolution_relu, []
    monkeypatch.setattr(torch, "cudnn_convolution_relu", lambda *args: calls.append(0) or original(*args))
    found = model(x), models.freeze_canvas(model, (41, 56))(x)
    assert calls
    model.ops = eager
    plain = model(x)
    for head, scores in by_head(exact).items():
        allowed = 2 * (by_head(plain)[head] - scores).abs().max() + 1e-5 * scores.abs().max()
        for result in found:
            assert (by_head(result)[head] - scores).abs().max() <= allowed
