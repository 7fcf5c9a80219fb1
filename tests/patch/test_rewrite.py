"""Whatever a module's code does with an upsampling, the patched module does the same."""

import copy
import pickle
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fcn_fast
from fcn_fast import ops
from fcn_fast.patch.deferred import Deferred
from fcn_fast.patch.source import CannotRewriteError, parse

from . import snippets
from .support import copies


def notes(report):
    return [row.note for row in report.replaced]


@pytest.fixture
def calls(monkeypatch):
    """The operations called, in order."""
    names = []
    for name in ("bilinear_upsample", "skip_fuse", "softmax_loss", "upsample_softmax_loss", "upsample_argmax"):
        function = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *a, f=function, n=name, **k: names.append(n) or f(*a, **k))
    return names


def scores(device="cpu"):
    return torch.randn(2, 5, 6, 7, dtype=torch.float64, device=device, requires_grad=True)


def labels(device="cpu"):
    target = torch.randint(0, 5, (2, 12, 14), device=device)
    target[torch.rand(target.shape, device=device) < 0.2] = -100
    return target


# Each module, what it calls when patched, and what is reported. Its inputs are scores, labels and a finer map.
_READ = ["bilinear_upsample, where the map is read"]
_TWO = ["bilinear_upsample", "bilinear_upsample"]
CASES = [
    (snippets.Plain, ["bilinear_upsample"], ["bilinear_upsample"]),
    (snippets.Functional, ["upsample_softmax_loss"], None),
    (snippets.Criterion, ["upsample_softmax_loss"], None),
    (snippets.Weighted, ["upsample_softmax_loss"], None),
    (snippets.Attribute, ["upsample_softmax_loss"], None),
    (snippets.ByHelper, ["upsample_softmax_loss"], None),
    (snippets.LossAndMap, ["upsample_softmax_loss", "bilinear_upsample"], None),
    (snippets.MapThenLoss, ["bilinear_upsample", "upsample_softmax_loss"], None),
    (snippets.Unknown, ["bilinear_upsample"], None),
    (snippets.SoftTarget, ["bilinear_upsample"], None),
    (snippets.OldReduction, ["bilinear_upsample"], None),
    (snippets.Labels, ["upsample_argmax"], ["bilinear_upsample, where the map is read", "upsample_argmax"]),
    (snippets.LabelsKept, ["upsample_argmax"], None),
    (snippets.LabelsAtOnce, ["upsample_argmax"], ["upsample_argmax"]),
    (snippets.FlatLabels, ["bilinear_upsample"], None),
    (snippets.Sum, ["skip_fuse"], ["skip_fuse"]),
    (snippets.SumOtherWay, ["skip_fuse"], ["skip_fuse"]),
    (snippets.SumOfName, ["skip_fuse"], None),
    (snippets.SumOfTwo, ["bilinear_upsample", "skip_fuse"], ["skip_fuse"]),
    (snippets.Broadcast, ["bilinear_upsample"], ["skip_fuse"]),
    (snippets.Chain, ["skip_fuse", "skip_fuse"], None),
    (snippets.Loop, ["skip_fuse", "skip_fuse"], ["skip_fuse"]),
    (snippets.Twice, ["bilinear_upsample", "upsample_softmax_loss"], None),
    (snippets.InPlace, ["bilinear_upsample"], None),
    (snippets.InputInPlace, ["bilinear_upsample"], None),
    (snippets.InputByMethod, ["bilinear_upsample"], None),
    (snippets.Branches, ["upsample_softmax_loss"], None),
    (snippets.Rebound, ["upsample_softmax_loss"], None),
    (snippets.NestedFunction, ["bilinear_upsample"], None),
    (snippets.Comprehension, ["bilinear_upsample", "bilinear_upsample"], None),
    (snippets.Inherited, ["bilinear_upsample"], None),
    (snippets.SuperCall, _TWO, None),
    (snippets.SuperAlone, ["upsample_softmax_loss"] * 2, [*_READ, "upsample_softmax_loss"]),
    (snippets.SuperOfSuper, ["upsample_softmax_loss"] * 2, [*_READ, "upsample_softmax_loss"]),
    (snippets.Sibling, ["bilinear_upsample", "upsample_softmax_loss"], None),
    (snippets.Diamond, ["bilinear_upsample", "upsample_softmax_loss"] * 2, None),
    (snippets.NotCalled, [], []),
    (snippets.Hidden, [], []),
    (snippets.Wrapped, [], []),
    (snippets.OverWrapped, [], []),
    (snippets.EqualNames, [*_TWO, "skip_fuse"], ["skip_fuse", *_TWO]),
    (snippets.Registered, ["bilinear_upsample"], ["bilinear_upsample"]),
    (snippets.Kind, _TWO, _TWO),
    (snippets.ParentByName, [], []),
    (snippets.Decorated, ["upsample_softmax_loss"], None),
    (snippets.Scaled, ["upsample_softmax_loss"], None),
    (snippets.Aligned, ["upsample_softmax_loss"], None),
    (snippets.IsNone, ["upsample_softmax_loss"], None),
    (snippets.Closure, ["bilinear_upsample"], None),
    (snippets.SameSize, ["upsample_softmax_loss"], None),
    (snippets.ReadWithoutGradient, ["bilinear_upsample", "upsample_softmax_loss"], None),
    (snippets.ReadInInferenceMode, ["bilinear_upsample"], None),
    (snippets.MadeWithoutGradient, ["upsample_softmax_loss", "skip_fuse", "bilinear_upsample"], None),
    (snippets.Private, ["upsample_softmax_loss"], None),
    (snippets.OtherName, ["upsample_softmax_loss"], ["upsample_softmax_loss"]),
    (snippets.OldName, ["upsample_softmax_loss"], ["upsample_softmax_loss"]),
    (snippets.SizeOfTensors, [], None),
    (snippets.Locals, ["bilinear_upsample"], ["bilinear_upsample"]),
    (snippets.MadeAndCalled, ["upsample_softmax_loss"], [*_READ, "upsample_softmax_loss"]),
    (snippets.PartOfAttribute, ["upsample_softmax_loss"], [*_READ, "upsample_softmax_loss"]),
    (snippets.Partial, ["bilinear_upsample"], _READ),
    (snippets.Shadowed, [], []),
]


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize(("kind", "called", "reported"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_does_the_same(kind, called, reported, device, calls):
    model, patched = copies(kind().to(device).double())
    report = fcn_fast.patch(patched)
    assert not report.left and (reported is None or notes(report) == reported)
    x, target, finer = scores(device), labels(device), torch.randn(2, 5, 12, 14, dtype=torch.float64, device=device)
    inputs = [x, target, finer]
    expected = model(*inputs)
    assert not calls
    actual = patched(*inputs)
    assert calls == called
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    torch.testing.assert_close(actual, expected)
    if expected.requires_grad:
        direction = torch.randn_like(expected)
        torch.testing.assert_close(
            torch.autograd.grad(actual, x, direction), torch.autograd.grad(expected, x, direction)
        )


def test_case_list_is_complete():
    values = [value for value in vars(snippets).values() if isinstance(value, type)]
    kinds = {value for value in values if issubclass(value, nn.Module) and value.__module__ == snippets.__name__}
    assert kinds - {kind for kind, *_ in CASES} == {snippets.Base, snippets.Untouched, snippets.ByMode, snippets.Late}


@pytest.mark.parametrize(
    "kind",
    [
        snippets.ReadWithoutGradient,
        snippets.MadeWithoutGradient,
        snippets.MadeAndCalled,
        snippets.Partial,
        snippets.Diamond,
    ],
)
def test_compiles_as_one_graph(kind, device, compile):
    model, patched = copies(kind().to(device))
    fcn_fast.patch(patched)
    x, finer = scores(device), torch.randn(2, 5, 12, 14, dtype=torch.float64, device=device)
    target = labels(device)
    expected, actual = model(x, target, finer), compile(patched, backend="aot_eager")(x, target, finer)
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad(value.sum(), x) for value in (actual, expected)]
    torch.testing.assert_close(*gradients)


def test_transforms_of_torch_func_run_the_models_own_code(calls):
    model, patched = copies(snippets.MapThenLoss().double())
    fcn_fast.patch(patched)
    x, target = scores().detach(), labels()
    gradients = [torch.func.grad(lambda x, m=m: m(x, target, None))(x) for m in (model, patched)]
    torch.testing.assert_close(*gradients)
    tangents = [torch.func.jvp(lambda x, m=m: m(x, target, None), (x,), (x.exp(),))[1] for m in (model, patched)]
    torch.testing.assert_close(*tangents)
    assert not calls


def test_a_method_that_was_replaced_since_is_the_one_that_is_rewritten(monkeypatch, calls):
    fcn_fast.patch(snippets.Inherited())
    monkeypatch.setattr(snippets.Inherited, "forward", snippets.Labels.forward)
    patched = snippets.Inherited()
    fcn_fast.patch(patched)
    patched(scores(), labels(), None)
    assert calls == ["upsample_argmax"]


def test_an_instance_with_a_forward_of_its_own_keeps_it(calls):
    model = snippets.Plain()
    model.forward = types.MethodType(lambda self, x: snippets.Plain.forward(self, x, None, None), model)
    report = fcn_fast.patch(nn.Sequential(model))
    assert not report.replaced and "the instance has one of its own" in str(report)
    assert type(model) is snippets.Plain
    model(scores())
    assert not calls


def test_the_report_says_whose_method_is_called_by_super():
    report = fcn_fast.patch(snippets.Diamond())
    places = {row.place.partition(",")[0] for row in report.replaced}
    assert places == {"Sibling.forward", "Functional.forward"}


def test_a_parents_method_runs_whatever_the_instance_has(calls):
    model = snippets.SuperAlone()
    forward = model.forward
    model.forward = lambda *inputs: 2 * forward(*inputs)
    report = fcn_fast.patch(model)
    assert report.replaced and not report.left
    model(scores(), labels(), None)
    assert calls == ["upsample_softmax_loss"] * 2


def test_a_class_does_not_hear_of_its_twins():
    model, patched = copies(snippets.Kind())
    fcn_fast.patch(patched)
    assert snippets.Registered.known == {"own": type(model)} and type(model) is snippets.Kind


def test_a_parents_method_without_source_is_left_and_told():
    class Child(type(snippets.without_source())):
        def forward(self, x):
            return super().forward(x) + 1

    assert "Made.forward  " in (report := str(fcn_fast.patch(Child()))) and "no source" in report


@pytest.mark.parametrize("kind", [nn.ReLU, snippets.Untouched])
def test_nothing_to_replace(kind):
    model = kind()
    report = fcn_fast.patch(model)
    assert type(model) is kind and not report and not report.left
    assert "nothing replaced" in str(report) and "no bilinear upsampling was found" in str(report)
    with pytest.raises(ValueError, match="expected a patched one"):
        fcn_fast.unpatch(model)


def test_the_mode_of_an_instance_decides(calls):
    for mode, count in (("bilinear", 1), ("nearest", 0), ("bicubic", 0)):
        model, patched = copies(snippets.ByMode(mode))
        assert len(fcn_fast.patch(patched).replaced) == count
        x = torch.randn(1, 2, 3, 4)
        torch.testing.assert_close(patched(x), model(x))
        calls.clear()
        nn.Sequential(patched)(x)
        assert len(calls) == count


@pytest.mark.parametrize("module", [nn.Upsample(scale_factor=2.5, mode="bilinear"), nn.UpsamplingBilinear2d((9, 4))])
def test_upsampling_modules(module, calls):
    model, patched = copies(nn.Sequential(module))
    assert notes(fcn_fast.patch(patched)) == ["bilinear_upsample"]
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(patched(x), model(x))
    assert calls == ["bilinear_upsample"]
    assert type(patched[0]).__name__ == type(module).__name__
    assert not fcn_fast.patch(nn.Upsample(scale_factor=2))


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "nearest"},
        {"mode": "bilinear", "antialias": True},
        {"mode": "bilinear", "recompute_scale_factor": True},
        {"mode": "area"},
    ],
)
def test_other_resizes_run_as_they_are(options, calls):
    module = nn.Upsample(scale_factor=2)
    fcn_fast.patch(bilinear := nn.Upsample(scale_factor=2, mode="bilinear"))
    function = type(bilinear).forward.__closure__
    resize = next(c.cell_contents for c in function if getattr(c.cell_contents, "__name__", "") == "resize")
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(
        resize(F.interpolate, x, scale_factor=1.7, **options), F.interpolate(x, scale_factor=1.7, **options)
    )
    assert not calls and type(module) is nn.Upsample


def test_maps_of_other_dimensions_and_dtypes_run_as_they_are(calls):
    patched = nn.Upsample(scale_factor=2, mode="bilinear")
    fcn_fast.patch(patched)
    image = torch.randint(0, 255, (1, 3, 4, 4), dtype=torch.uint8)
    assert patched(image).dtype == torch.uint8
    with pytest.raises(NotImplementedError):  # PyTorch's own complaint
        patched(torch.randn(2, 3, 4))
    assert not calls


def test_scores_changed_in_place_are_an_error_and_not_a_wrong_number():
    patched = snippets.Late()
    fcn_fast.patch(patched)
    with pytest.raises(RuntimeError, match="changed in place.*unpatch"):
        patched(torch.randn(2, 5, 6, 7), labels(), None)
    with torch.inference_mode():  # whose tensors have no versions
        Deferred(torch.randn(1, 1, 1, 1), None).scores()


def test_copies_and_pickles_of_parts():
    patched = nn.ModuleList([snippets.Sum(), nn.Upsample(scale_factor=2, mode="bilinear"), snippets.Diamond()])
    fcn_fast.patch(patched)
    for twin in (copy.deepcopy(patched), pickle.loads(pickle.dumps(patched))):
        assert [type(module) for module in twin] == [type(module) for module in patched]
        fcn_fast.unpatch(twin)
        assert [type(module) for module in twin] == [snippets.Sum, nn.Upsample, snippets.Diamond]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (snippets.without_source, "no source"),
        (snippets.with_other_source, "its source file is not what runs"),
        (snippets.with_hiding_decorator, "its decorator hidden hides it"),
        (snippets.pickled_its_own_way, "its class has a way of its own to be pickled"),
        (snippets.super_by_instance, "its forward goes by the class of the instance to find its parent's"),
        (snippets.super_by_class_of_instance, "its forward goes by the class of the instance to find its parent's"),
    ],
)
def test_code_that_cannot_be_used_is_left_and_told(make, why):
    model = make()
    kind = type(model)
    report = fcn_fast.patch(model)
    assert type(model) is kind and not report.replaced
    assert why in str(report)


def test_only_functions_have_source():
    with pytest.raises(CannotRewriteError, match="builtin_function_or_method has no source"):
        parse(len)


@pytest.mark.parametrize("thing", [None, 3, "model", nn.ReLU, F.relu])
def test_no_module(thing):
    for function in (fcn_fast.patch, fcn_fast.unpatch):
        with pytest.raises(TypeError, match="model: expected a torch.nn.Module.* got"):
            function(thing)


def test_patched_already():
    model = nn.Sequential(nn.ReLU(), snippets.Sum())
    fcn_fast.patch(model[1])
    for whole, which in ((model, "one whose part 1 is"), (model[1], "one that is")):
        message = rf"model: expected a model that is not patched yet, got {which} \(fcn_fast.unpatch it first\)"
        with pytest.raises(ValueError, match=message):
            fcn_fast.patch(whole)
    fcn_fast.unpatch(model)
    assert type(model[1]) is snippets.Sum


def test_nothing_is_half_undone_where_a_class_was_changed_since():
    model = nn.Sequential(snippets.Sum(), snippets.Plain())
    fcn_fast.patch(model)
    model[1].__class__ = type("Later", (type(model[1]),), {})
    with pytest.raises(ValueError, match="unpatch before what changes classes"):
        fcn_fast.unpatch(model)
    assert type(model[0]) is not snippets.Sum


def test_nothing_is_half_patched_where_a_class_cannot_be_changed(monkeypatch):
    class Stubborn(snippets.Plain):
        def __setattr__(self, name, value):
            if name == "__class__":
                raise TypeError("no")
            super().__setattr__(name, value)

    model = nn.Sequential(snippets.Sum(), Stubborn())
    with pytest.raises(TypeError, match="no"):
        fcn_fast.patch(model)
    assert type(model[0]) is snippets.Sum


def test_tracebacks_show_the_models_own_lines():
    import traceback

    patched = snippets.Functional()
    fcn_fast.patch(patched)
    with pytest.raises(ValueError, match="target: expected labels") as caught:
        patched(scores(), torch.full((2, 12, 14), 9), None)
    lines = [frame.line for frame in traceback.extract_tb(caught.tb) if frame.filename == snippets.__file__]
    assert lines == ["return F.cross_entropy(x, target)"]
