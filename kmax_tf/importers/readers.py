"""Reads weight files as {name: array}: TensorFlow checkpoints, HDF5 and safetensors.

torch_file.py reads PyTorch's format. No reader runs code from the file.
"""

import contextlib
import glob
import io
import json
import math
import os
import struct
import tempfile
from collections.abc import Callable, Iterator

import h5py
import numpy as np
import tensorflow as tf

from kmax_tf.errors import InputError, first_line
from kmax_tf.files import check_literal, matching, read_bytes
from kmax_tf.importers import torch_file

_BFLOAT16 = tf.bfloat16.as_numpy_dtype
_SAFETENSORS = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": _BFLOAT16,
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


def read(source: str, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """Reads the arrays of a weight file, in the format that its content shows.

    Args:
        source: prefix or folder of a TensorFlow checkpoint, or a PyTorch, safetensors or HDF5
            (.h5) file.
        wanted: tells whether a name is to be read.

    Raises:
        InputError: the file is missing, corrupt or of none of these formats.
    """
    source = os.path.expanduser(source)
    if tf.io.gfile.isdir(source):
        return _read_tensorflow(_newest(source), wanted)
    prefix = source.removesuffix(".index")
    if tf.io.gfile.exists(f"{prefix}.index"):
        return _read_tensorflow(prefix, wanted)
    data = read_bytes(source)
    if data.startswith(b"\x89HDF"):
        arrays = _read_hdf5(source, data)
    elif data.startswith((b"PK", b"\x80\x02")):
        arrays = torch_file.read(source, data)
    elif data[8:9] == b"{":
        arrays = _read_safetensors(source, data)
    elif data.startswith(b"\x80"):
        raise InputError(
            f"{source}: is a pickle that PyTorch did not write; if the port's script converted it,"
            " import the TensorFlow checkpoint itself with --kind=deeplab2"
        )
    else:
        raise InputError(
            f"{source}: is neither a TensorFlow checkpoint nor a PyTorch, safetensors or HDF5"
            " file; convert it to one of them"
        )
    return {name: arrays[name] for name in _chosen(source, arrays, wanted)}


def _newest(folder):
    """Returns the prefix of the newest TensorFlow checkpoint in a folder, which is no pattern."""
    # TensorFlow's own function takes the folder for a pattern.
    state = tf.train.get_checkpoint_state(folder)
    prefix = state and os.path.join(folder, os.path.basename(state.model_checkpoint_path))
    if not prefix or not tf.io.gfile.exists(f"{prefix}.index"):
        raise InputError(f"{folder}: holds no checkpoint; give a checkpoint prefix or a file")
    return prefix


def _chosen(source, names, wanted):
    chosen = list(filter(wanted, names))
    if not chosen:
        raise InputError(
            f"{source}: none of its {len(names)} names match, e.g."
            f" {', '.join(sorted(names)[:3])}; choose another --kind or file"
        )
    return chosen


def _read_tensorflow(prefix, wanted):
    try:
        with _literal(prefix) as path:
            reader = tf.train.load_checkpoint(path)
            types = reader.get_variable_to_dtype_map()
            # What this project's own checkpoints say of themselves is text.
            numbers = [name for name, dtype in types.items() if dtype != tf.string]
            names = _chosen(prefix, numbers, wanted)
            return {name: reader.get_tensor(name) for name in names}
    except InputError:
        raise
    except (tf.errors.OpError, RuntimeError, ValueError) as error:
        reason = first_line(error)
        raise InputError(f"{prefix}: cannot be read ({reason}); use another checkpoint") from error


@contextlib.contextmanager
def _literal(prefix: str) -> Iterator[str]:
    """Yields the prefix, or that of a copy if TensorFlow takes the prefix for a pattern."""
    try:
        check_literal(prefix)
    except InputError:
        folder, name = os.path.split(prefix)
        with tempfile.TemporaryDirectory() as copies:
            for path in matching(folder or ".", f"{glob.escape(name)}.*"):
                end = os.path.basename(path).removeprefix(name)
                tf.io.gfile.copy(path, os.path.join(copies, f"weights{end}"))
            yield os.path.join(copies, "weights")
    else:
        yield prefix


def _read_hdf5(path, data):
    """Reads Keras weights; names are the paths of the data sets, without the ":0" at the end."""
    arrays = {}

    def collect(name, item):
        if isinstance(item, h5py.Dataset):
            arrays[name.removesuffix(":0")] = item[()]

    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            file.get("model_weights", file).visititems(collect)
    except (OSError, KeyError, RuntimeError) as error:
        raise InputError(f"{path}: corrupt HDF5 file ({error}); download it again") from error
    return arrays


def _read_safetensors(path, data):
    """Reads a length, a JSON header of that length, and then the numbers of all tensors."""
    try:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        body, arrays = memoryview(data)[8 + length :], {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            kind = np.dtype(_SAFETENSORS[entry["dtype"]])
            if not 0 <= begin <= end <= len(body) or (
                end - begin != math.prod(entry["shape"]) * kind.itemsize
            ):
                raise ValueError(f"tensor {name!r} does not fit its place")
            values = np.frombuffer(body[begin:end], kind).reshape(entry["shape"])
            arrays[name] = values.astype(np.float32) if kind == _BFLOAT16 else values
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise InputError(
            f"{path}: corrupt safetensors file ({error}); download it again"
        ) from error
    return arrays
