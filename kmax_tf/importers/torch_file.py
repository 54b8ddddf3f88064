"""Reads files of torch.save without PyTorch and without running code from the file.

Both formats are pickles followed by raw numbers: a zip archive since PyTorch 1.6, a stream before.
A pickle may ask for any function by name. Here it gets only the few that describe tensors, and
these only note where the numbers are.
"""

import collections
import io
import pickle
import struct
import zipfile
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from kmax_tf.errors import InputError

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the format before 1.6
_STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": tf.bfloat16.as_numpy_dtype,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_STATE_KEYS = ("model", "state_dict")  # where training programs keep the weights


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple

    def array(self, storages: dict[str, bytes]) -> np.ndarray:
        """Returns the numbers of the tensor, from the bytes of each storage."""
        last = self.offset + sum(
            (n - 1) * step for n, step in zip(self.shape, self.strides, strict=True)
        )
        flat = np.frombuffer(storages[self.storage.key], self.storage.dtype, self.storage.size)
        if 0 in self.shape:
            return np.zeros(self.shape, flat.dtype)
        if self.offset < 0 or min(self.strides, default=0) < 0 or last >= len(flat):
            raise ValueError("a tensor reaches beyond its storage")
        strides = [step * flat.itemsize for step in self.strides]
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides)
        return view.astype(np.float32) if view.dtype == tf.bfloat16.as_numpy_dtype else view.copy()


def _rebuild_tensor(storage, offset, shape, strides, *_):
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor, *_):
    return tensor


_ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
} | {("torch", name): np.dtype(kind) for name, kind in _STORAGES.items()}


class _Unpickler(pickle.Unpickler):
    """Accepts tensors, dictionaries, lists and numbers; anything else is an error."""

    def find_class(self, module, name):
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is no part of a tensor"
            )
        return _ALLOWED[module, name]

    def persistent_load(self, identity):
        _, dtype, key, _, size, *_ = identity
        return _Storage(key, np.dtype(dtype), size)


def read(path: str, data: bytes) -> dict[str, np.ndarray]:
    """Reads the state dict {name: array} from the bytes of a file of torch.save.

    The state dict is the pickled object itself, or its entry "model" or "state_dict". bfloat16
    becomes float32.

    Raises:
        InputError: the file is corrupt, holds no state dict, or asks for more than tensors.
    """
    try:
        content, read_storages = (_open_zip if data.startswith(b"PK") else _open_stream)(data)
        for key in _STATE_KEYS:
            if isinstance(content, dict) and isinstance(content.get(key), dict):
                content = content[key]
        if not isinstance(content, dict):
            raise ValueError("it holds no state dict")
        tensors = {name: t for name, t in content.items() if isinstance(t, _Tensor)}
        storages = read_storages({tensor.storage.key for tensor in tensors.values()})
        return {str(name): tensor.array(storages) for name, tensor in tensors.items()}
    except _ERRORS as error:
        raise InputError(
            f"{path}: cannot be read as a PyTorch file ({error}); save only its state dict, or"
            " safetensors"
        ) from error


# Errors of the unpickler for corrupt or hostile pickles.
_ERRORS = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)


def _open_zip(data):
    """Returns the pickled object, and a function: keys -> {key: bytes of the storage}.

    The states of an optimizer, which nobody asks for, are twice as large as the weights.
    """
    archive = zipfile.ZipFile(io.BytesIO(data))
    (index,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
    folder = f"{index.removesuffix('data.pkl')}data/"
    content = _Unpickler(io.BytesIO(archive.read(index))).load()
    return content, lambda keys: {key: archive.read(folder + key) for key in keys}


def _open_stream(data):
    """Returns what `_open_zip` does, of the format before PyTorch 1.6."""
    stream = io.BytesIO(data)

    def load():
        return _Unpickler(stream).load()

    if load() != _MAGIC:
        raise ValueError("it was not written by torch.save")
    load(), load()  # version of the protocol, sizes of the machine's types
    content, present = load(), load()
    sizes = {s.key: s.size * s.dtype.itemsize for s in _storages(content)}

    def read_storages(keys):
        storages = {}
        for key in present:
            stream.read(8)  # the number of elements
            storage = stream.read(sizes[key])
            if key in keys:
                storages[key] = storage
        return storages

    return content, read_storages


def _storages(content):
    """Yields the storages of all tensors in nested dictionaries and lists."""
    if isinstance(content, _Tensor):
        yield content.storage
    elif isinstance(content, dict):
        for value in content.values():
            yield from _storages(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _storages(value)
