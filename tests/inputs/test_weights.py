"""Files of weights that are cut off, changed, or made to hurt: refused in a WeightsError, with nothing loaded."""

import json
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fcn_fast import models
from fcn_fast.models import caffemodel

from ..models import caffe_nets
from ..models.support import build, published, refused, snapshot

LIMITED = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
CHANGES = st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=9), st.integers(0, 9)), min_size=1, max_size=5)
NET = caffe_nets.caffemodel({"a": [np.ones((2, 3, 1, 1)), np.arange(2)], "b": [np.ones(5)]})
OLD = caffe_nets.caffemodel({"a": [np.ones((2, 3, 1, 1))], "b": [np.ones(5)]}, form="layers", shapes="old", dtype="<f8")


def changed(data, changes):
    for where, new, gone in changes:
        at = int(where * len(data))
        data = data[:at] + new + data[at + gone :]
    return data


def blob(*dims, data=b"", shape=True):
    body = b"".join(caffe_nets._varint(d % (1 << 64)) for d in dims)
    return (caffe_nets._bytes(7, caffe_nets._bytes(1, body)) if shape else b"") + caffe_nets._bytes(5, data)


def layer(*blobs, name=b"a"):
    return caffe_nets._bytes(100, caffe_nets._bytes(1, name) + b"".join(caffe_nets._bytes(7, b) for b in blobs))


# --- .caffemodel


@pytest.mark.parametrize(
    "data",
    [
        layer(blob(1 << 62, data=bytes(8))),
        layer(blob(1 << 40, 1 << 40, data=bytes(8))),
        layer(blob(-1, -2, data=bytes(8))),
        layer(blob(0, 1 << 62)),
        layer(blob(0)),
        layer(blob()),
        layer(blob(2, data=bytes(7))),
        layer(blob(*[1] * 33, data=bytes(4))),
        layer(blob(*[1] * 10000, data=bytes(4))),
        layer(blob(2, data=bytes(8)), name=b"\xff\xfe"),
        caffe_nets._bytes(100, b"") * 1000,
        b"\x0b" * 5000,  # groups within groups
        b"\xa2\x06" + b"\xff" * 9 + b"\x01",  # a layer of 2^63 bytes
        b"\x80" * 100,
    ],
    ids=str,
)
def test_hostile_caffemodels(data, tmp_path):
    (tmp_path / "net.caffemodel").write_bytes(data)
    refused(models.load_caffemodel, build("voc-fcn32s"), tmp_path / "net.caffemodel")


@pytest.mark.parametrize("data", [NET, OLD], ids=["layer", "layers"])
def test_caffemodels_cut_off_anywhere(data, tmp_path):
    path, whole = tmp_path / "net.caffemodel", {}
    path.write_bytes(data)
    whole = caffemodel.read(path)
    for end in range(len(data)):
        path.write_bytes(data[:end])
        try:
            arrays = caffemodel.read(path)
        except models.WeightsError as error:
            assert str(path) in str(error)
        else:  # cut between two layers, which nothing in the format marks
            assert len(arrays) < len(whole) and all(
                np.array_equal(x, y) for k in arrays for x, y in zip(arrays[k], whole[k], strict=True)
            )


@LIMITED
@given(st.sampled_from([NET, OLD]), CHANGES)
def test_changed_caffemodels(tmp_path, data, changes):
    """Whatever stands in a file, it is arrays or it is refused."""
    path = tmp_path / "net.caffemodel"
    path.write_bytes(changed(data, changes))
    try:
        arrays = caffemodel.read(path)
    except models.WeightsError as error:
        assert str(path) in str(error)
    else:
        assert all(isinstance(x, np.ndarray) and x.size for each in arrays.values() for x in each)


@LIMITED
@given(st.binary(max_size=200))
def test_any_bytes_as_a_caffemodel(tmp_path, data):
    (tmp_path / "net.caffemodel").write_bytes(data)
    try:
        caffemodel.read(tmp_path / "net.caffemodel")
    except models.WeightsError:
        pass


# --- files of torch.save


@pytest.fixture(scope="module")
def state():
    return published(build("voc-fcn32s"))


@pytest.mark.parametrize("legacy", [False, True])
def test_pth_cut_off_anywhere(legacy, state, tmp_path):
    path, model = tmp_path / "net.pth", build("voc-fcn32s")
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    for end in [*range(0, 200, 20), *range(200, len(data) - 1, len(data) // 12)]:
        path.write_bytes(data[:end])
        refused(models.load_torchfcn, model, path, "expected a state dict that torch.save wrote")


@settings(LIMITED, max_examples=60)
@given(CHANGES, st.booleans())
def test_changed_pth(tmp_path, changes, legacy):
    path, model = tmp_path / "net.pth", build("voc-fcn32s")
    torch.save(published(model), path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(changed(path.read_bytes(), changes))
    before = snapshot(model)
    try:
        models.load_torchfcn(model, path)
    except models.WeightsError:
        assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_pth_of_tensors_that_hold_no_numbers(state, tmp_path):
    """Of the right shape, but sparse, on no device, or a quantised one; nothing of the others is loaded either."""
    path, shape = tmp_path / "net.pth", state["fc7.bias"].shape
    odd = {
        "sparse": torch.zeros(shape).to_sparse(),
        "meta": torch.zeros(shape, device="meta"),
        "complex": torch.zeros(shape, dtype=torch.complex64),
        "bool": torch.zeros(shape, dtype=torch.bool),
    }
    for tensor in odd.values():
        torch.save(state | {"fc7.bias": tensor}, path)
        refused(models.load_torchfcn, build("voc-fcn32s"), path)


def test_pth_of_a_tensor_that_claims_to_be_huge(state, tmp_path):
    """One number, seen 2^50 times over: it takes no memory, and it does not fit."""
    torch.save(state | {"fc7.bias": torch.zeros(1).expand(1 << 50)}, tmp_path / "net.pth")
    refused(models.load_torchfcn, build("voc-fcn32s"), tmp_path / "net.pth", f"got ({1 << 50},)")


def test_pth_that_unpacks_to_gigabytes(tmp_path):
    with zipfile.ZipFile(tmp_path / "net.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("net/data.pkl", bytes(1 << 26))
        file.writestr("net/version", "3\n")
    refused(models.load_torchfcn, build("voc-fcn32s"), tmp_path / "net.pth")


# --- .safetensors


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    models.save_safetensors(build("voc-fcn32s"), path)
    return path.read_bytes()


def claiming(shape="[2]", dtype="F32", offsets="[0,8]"):
    header = f'{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}'.encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


@pytest.mark.parametrize(
    "data",
    [
        *(struct.pack("<Q", size) + b"{}" for size in (2, 1 << 62, (1 << 64) - 1)),
        struct.pack("<Q", 8) + b"\xff" * 8,
        claiming(shape=f"[{1 << 62},4]"),
        claiming(shape="[-2]"),
        claiming(offsets=f"[0,{1 << 53}]"),
        claiming(dtype="F1"),
    ],
    ids=range(8),
)
def test_hostile_safetensors(data, tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(data)
    refused(models.load_safetensors, build("voc-fcn32s"), path)
    with pytest.raises(models.WeightsError):
        models.from_safetensors(path)


def test_safetensors_cut_off_anywhere(saved, tmp_path):
    path = tmp_path / "net.safetensors"
    for end in [*range(0, 100, 9), *range(100, len(saved), len(saved) // 30)]:
        path.write_bytes(saved[:end])
        with pytest.raises(models.WeightsError, match="expected a safetensors file, got something else"):
            models.from_safetensors(path)


@settings(LIMITED, max_examples=60)
@given(CHANGES)
def test_changed_safetensors(tmp_path, saved, changes):
    (tmp_path / "net.safetensors").write_bytes(changed(saved, changes))
    try:
        models.from_safetensors(tmp_path / "net.safetensors")
    except models.WeightsError as error:
        assert str(tmp_path / "net.safetensors") in str(error)


@pytest.mark.parametrize(
    "facts",
    [
        {"num_classes": 10**12},
        {"num_classes": 10**40},
        {"num_classes": 10**9, "learned_upsampling": "dense"},
        {"num_classes": "many"},
        {"num_classes": -3},
        {"num_classes": {"sem": 4}},
        {"width": 1e9},
        {"width": float("nan")},
        {"width": "wide"},
        {"padding": "thick"},
        {"padding": ["caffe"]},
        {"learned_upsampling": "dense"},
        {"learned_upsampling": {"a": 1}},
        {"model": "voc-fcn8s"},
        {"model": ["voc-fcn32s"]},
        {"model": {}},
        {"model": None},
    ],
    ids=str,
)
def test_safetensors_that_claim_to_be_another_net(facts, saved, tmp_path):
    """Refused by the shapes, before a net as large as they claim is made."""
    path = tmp_path / "net.safetensors"
    path.write_bytes(saved)
    state = load_file(path)
    known = {"model": "voc-fcn32s", "num_classes": 21, "width": 1 / 64, "padding": "caffe", "learned_upsampling": False}
    save_file(state, path, metadata={"fcn_fast": json.dumps(known)})
    models.from_safetensors(path)
    save_file(state, path, metadata={"fcn_fast": json.dumps(known | facts)})
    with pytest.raises(models.WeightsError) as caught:
        models.from_safetensors(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100000, "[1, 2]", "7", "null", "{", "\x00"], ids=lambda text: text[:8])
def test_safetensors_whose_facts_are_none(text, saved, tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(saved)
    save_file(load_file(path), path, metadata={"fcn_fast": text})
    with pytest.raises(models.WeightsError):
        models.from_safetensors(path)
