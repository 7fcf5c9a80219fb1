"""Reads the parameters in a Caffe model: a binary NetParameter of caffe.proto (BVLC/caffe)."""

import functools
import math

import numpy as np

from fcn_fast.models.assign import WeightsError

__all__ = ["read"]

_MAX_AXES = 32  # as Caffe's own blobs


def read(path):
    """The parameters of every layer that has any.

    Both forms of a net are read: ``layer``, and the older V1 ``layers`` of the first published nets.

    Args:
        path: of a ``.caffemodel``.

    Returns:
        {layer: [array, ...]}, float32 or float64 arrays of the shapes in the file, the weight before the bias.

    Raises:
        WeightsError: no such net, a layer that occurs twice, or an array of another size than its shape.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read()
    from google.protobuf.message import DecodeError

    net = _net_parameter()()
    try:
        net.ParseFromString(data)
    except DecodeError as error:
        raise WeightsError(f"{path}: expected a binary NetParameter of Caffe, got something else") from error
    del data
    arrays = {}
    for layer in (*net.layer, *net.layers):
        if layer.blobs:
            if layer.name in arrays:
                raise WeightsError(f"{path}: expected layers with different names, got two called {layer.name!r}")
            arrays[layer.name] = [_array(blob, f"{path}: {layer.name}") for blob in layer.blobs]
    if not arrays:
        raise WeightsError(f"{path}: expected a Caffe model with parameters, got no layer that has any")
    return arrays


def _array(blob, name):
    old_shape = (blob.num, blob.channels, blob.height, blob.width)
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else old_shape
    dtype, parts = ("<f8", blob.double_data) if blob.double_data else ("<f4", blob.data)
    values = b"".join(parts)
    if len(shape) > _MAX_AXES:
        raise WeightsError(f"{name}: expected at most {_MAX_AXES} axes, got {len(shape)}")
    if min(shape, default=1) < 0 or len(values) != math.prod(shape) * int(dtype[2]):
        raise WeightsError(f"{name}: expected {shape} values, got {len(values) // int(dtype[2])}")
    if not values:
        raise WeightsError(f"{name}: expected some values, got none")
    return np.frombuffer(values, dtype).reshape(shape)


@functools.cache
def _net_parameter():
    """The message class NetParameter, with the fields of caffe.proto that say where the parameters are."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    # Packed floats look like bytes on the wire; read as such they need no Python number each. A field may come in
    # several packed parts, hence repeated.
    messages = {
        "BlobShape": [("dim", 1, "repeated", field.TYPE_INT64)],
        "BlobProto": [
            *(
                (name, i, "optional", field.TYPE_INT32)
                for i, name in enumerate(("num", "channels", "height", "width"), 1)
            ),
            ("data", 5, "repeated", field.TYPE_BYTES),
            ("shape", 7, "optional", "BlobShape"),
            ("double_data", 8, "repeated", field.TYPE_BYTES),
        ],
        "LayerParameter": [("name", 1, "optional", field.TYPE_STRING), ("blobs", 7, "repeated", "BlobProto")],
        "V1LayerParameter": [("name", 4, "optional", field.TYPE_STRING), ("blobs", 6, "repeated", "BlobProto")],
        "NetParameter": [("layers", 2, "repeated", "V1LayerParameter"), ("layer", 100, "repeated", "LayerParameter")],
    }
    # A package of its own: a real caffe_pb2 can be loaded in the same process.
    package = "fcn_fast.caffe"
    file = descriptor_pb2.FileDescriptorProto(name="fcn_fast/caffe.proto", package=package, syntax="proto2")
    for message, fields in messages.items():
        descriptor = file.message_type.add(name=message)
        for name, number, label, kind in fields:
            added = descriptor.field.add(name=name, number=number, label=getattr(field, f"LABEL_{label.upper()}"))
            if isinstance(kind, str):
                added.type, added.type_name = field.TYPE_MESSAGE, f".{package}.{kind}"
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.NetParameter"))
