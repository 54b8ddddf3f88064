"""Makes files as torch.save does, by hand: tensors are pickled as calls of functions of PyTorch."""

import collections
import io
import pickle
import struct
import zipfile

import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}


class Call:
    """Pickles as a call of a function by its name, whether this machine has it or not."""

    def __init__(self, function, *args):
        self.function, self.args = function, args


class Name:
    """Pickles as the name of something in a module."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Storage:
    """The numbers of a tensor, kept beside the pickle."""

    def __init__(self, key, array):
        self.key, self.array = str(key), array


class _Pickler(pickle._Pickler):  # the one in Python, which can be told how to save a class
    dispatch = dict(pickle._Pickler.dispatch)

    def persistent_id(self, thing):
        if isinstance(thing, Storage):
            kind = Name("torch", STORAGES[str(thing.array.dtype)])
            extra = (None,) if self.legacy else ()
            return ("storage", kind, thing.key, "cpu", thing.array.size, *extra)
        return None

    def _save_name(self, name):
        self.write(pickle.GLOBAL + f"{name.module}\n{name.name}\n".encode())

    def _save_call(self, call):
        self.save(call.function)
        self.save(call.args)
        self.write(pickle.REDUCE)

    dispatch[Name] = _save_name
    dispatch[Call] = _save_call


def _pickled(thing, legacy=False):
    stream = io.BytesIO()
    pickler = _Pickler(stream, protocol=2)
    pickler.legacy = legacy
    pickler.dump(thing)
    return stream.getvalue()


def tensor(storage, shape, strides=None, offset=0):
    strides = strides or tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    rebuild = Name("torch._utils", "_rebuild_tensor_v2")
    hooks = Call(Name("collections", "OrderedDict"))
    return Call(rebuild, storage, offset, tuple(shape), strides, False, hooks)


def parameter(value):
    hooks = Call(Name("collections", "OrderedDict"))
    return Call(Name("torch._utils", "_rebuild_parameter"), value, True, hooks)


def state_dict(arrays):
    """Storages, and a dictionary of tensors on them."""
    storages = [Storage(i, np.ascontiguousarray(a).ravel()) for i, a in enumerate(arrays.values())]
    entries = zip(arrays.items(), storages)
    return storages, collections.OrderedDict((k, tensor(s, a.shape)) for (k, a), s in entries)


def save_zip(path, content, storages=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", _pickled(content))
        archive.writestr("archive/byteorder", "little")
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.array.tobytes())
        archive.writestr("archive/version", "3\n")


def save_stream(path, content, storages=()):
    """The format before PyTorch 1.6."""
    parts = [_pickled(v) for v in (MAGIC, PROTOCOL, {"little_endian": True})]
    parts += [_pickled(content, legacy=True), _pickled([s.key for s in storages])]
    for storage in storages:
        parts += [struct.pack("<q", storage.array.size), storage.array.tobytes()]
    path.write_bytes(b"".join(parts))
