"""Weight files of every format are read, corrupt and hostile ones are refused in one line."""

import importlib.util
import json
import pathlib
import pickle
import struct
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf

from kmax_tf.errors import InputError
from kmax_tf.importers import readers

# Test folders are no packages.
_spec = importlib.util.spec_from_file_location(
    "torch_files", pathlib.Path(__file__).with_name("torch_files.py")
)
torch_files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(torch_files)

RNG = np.random.default_rng(0)
ARRAYS = {
    "a.weight": RNG.standard_normal((2, 3)).astype(np.float32),
    "b.weight": RNG.standard_normal(5).astype(np.float16),
    "b.num_batches_tracked": np.array([7]),
}
SAVE = pytest.mark.parametrize("save", [torch_files.save_zip, torch_files.save_stream])


def assert_same(read, expected):
    assert set(read) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(read[name], value)


@SAVE
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_torch(tmp_path, save, key):
    storages, content = torch_files.state_dict(ARRAYS)
    content = content if key is None else {key: content, "iteration": 3}
    save(tmp_path / "w.pth", content, storages)
    assert_same(readers.read(str(tmp_path / "w.pth")), ARRAYS)


@SAVE
def test_torch_views_and_parameters(tmp_path, save):
    """A transposed part of a storage that two tensors share, as a parameter."""
    whole = torch_files.Storage(0, np.arange(12, dtype=np.float32))
    content = {
        "whole": torch_files.tensor(whole, (3, 4)),
        "part": torch_files.parameter(torch_files.tensor(whole, (2, 2), (1, 4), 5)),
        "empty": torch_files.tensor(whole, (0, 4)),
    }
    save(tmp_path / "w.pth", content, [whole])
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = {"whole": table, "part": table[1:, 1:3].T, "empty": table[:0]}
    assert_same(readers.read(str(tmp_path / "w.pth")), expected)


def test_torch_leaves_the_state_of_the_optimizer(tmp_path, monkeypatch):
    """It is twice as large as the weights."""
    storages, content = torch_files.state_dict(ARRAYS)
    moment = torch_files.Storage("moment", np.zeros(99, np.float32))
    state = {"state": {0: {"exp_avg": torch_files.tensor(moment, (99,))}}}
    content = {"model": content, "optimizer": state}
    torch_files.save_zip(tmp_path / "w.pth", content, [*storages, moment])
    read, names = zipfile.ZipFile.read, []
    monkeypatch.setattr(
        zipfile.ZipFile, "read", lambda self, name: names.append(name) or read(self, name)
    )
    assert_same(readers.read(str(tmp_path / "w.pth")), ARRAYS)
    assert sorted(names) == ["archive/data.pkl", *(f"archive/data/{k}" for k in range(3))]


@SAVE
@pytest.mark.parametrize("function", [("os", "system"), ("builtins", "eval"), ("torch", "load")])
def test_torch_does_not_run_code(tmp_path, save, function):
    mark = tmp_path / "mark"
    command = f"touch {mark}" if function[0] == "os" else f"open({str(mark)!r}, 'w')"
    call = torch_files.Call(torch_files.Name(*function), command)
    save(tmp_path / "w.pth", {"a": call})
    with pytest.raises(InputError, match=rf"asks for {'.'.join(function)}, which is no part"):
        readers.read(str(tmp_path / "w.pth"))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [((3, 5), (5, 1), 0), ((3, 4), (4, 1), 1), ((2,), (-1,), 1), ((2,), (1,), -1), ((9,), (9,), 0)],
)
def test_torch_tensor_outside_of_its_storage(tmp_path, shape, strides, offset):
    storage = torch_files.Storage(0, np.zeros(12, np.float32))
    content = {"a": torch_files.tensor(storage, shape, strides, offset)}
    torch_files.save_zip(tmp_path / "w.pth", content, [storage])
    with pytest.raises(InputError, match="reaches beyond its storage"):
        readers.read(str(tmp_path / "w.pth"))


def test_torch_cut_off(tmp_path):
    storages, content = torch_files.state_dict(ARRAYS)
    torch_files.save_stream(tmp_path / "w.pth", content, storages)
    data = (tmp_path / "w.pth").read_bytes()
    for length in range(2, len(data), 7):
        (tmp_path / "w.pth").write_bytes(data[:length])
        with pytest.raises(InputError, match="w.pth"):
            readers.read(str(tmp_path / "w.pth"))


def save_safetensors(path, header, body):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def test_safetensors(tmp_path):
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1.5, -2.0], np.float16)
    c = tf.cast([0.5, 3.0], tf.bfloat16).numpy()
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "F16", "shape": [2], "data_offsets": [24, 28]},
        "c": {"dtype": "BF16", "shape": [2], "data_offsets": [28, 32]},
    }
    body = a.tobytes() + b.tobytes() + c.tobytes()
    path = tmp_path / "w.safetensors"
    save_safetensors(path, header, body)
    read = readers.read(str(path))
    assert_same(read, {"a": a, "b": b, "c": np.array([0.5, 3.0])})
    assert read["c"].dtype == np.float32
    assert set(readers.read(str(path), lambda name: name != "a")) == {"b", "c"}

    for damage in ({"shape": [2, 4]}, {"data_offsets": [0, 96]}, {"dtype": "F8"}):
        save_safetensors(path, {"a": header["a"] | damage}, body)
        with pytest.raises(InputError, match="corrupt safetensors"):
            readers.read(str(path))


def test_tensorflow(tmp_path):
    prefix = str(tmp_path / "run" / "ckpt-5")
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=["encoder/a", "optimizer/a"],
        shape_and_slices=["", ""],
        tensors=[tf.ones([2, 3]), tf.zeros([])],
    )
    read = readers.read(prefix, lambda name: not name.startswith("optimizer/"))
    assert_same(read, {"encoder/a": np.ones([2, 3])})
    tf.compat.v1.train.update_checkpoint_state(str(tmp_path / "run"), prefix)
    assert set(readers.read(str(tmp_path / "run"))) == {"encoder/a", "optimizer/a"}


def test_what_a_checkpoint_of_this_project_says_in_text_is_left_out(tmp_path):
    class Said(tf.train.experimental.PythonState):
        def serialize(self):
            return "classes"

        def deserialize(self, string_value):
            pass

    saved = tf.train.Checkpoint(classes=Said(), weight=tf.Variable([1.0, 2.0]))
    read = readers.read(saved.write(str(tmp_path / "ckpt-1")))
    assert {name.split("/")[0] for name in read} == {"weight"}


ODD = ("lr=[1e-3,1e-4]", "a[!b]", "a*b", "a?b", "\\", "b\\s", "~", "~root", " a ", " ", "x" * 250)


@pytest.mark.parametrize("name", ODD)
def test_folders_of_any_name(name, tmp_path, monkeypatch):
    """A folder is no pattern; a checkpoint is found where it lies now, and not where it was."""
    folder = tmp_path / name
    tf.train.Checkpoint(a=tf.Variable([1.0, 2.0])).write(str(tmp_path / "odd/ckpt-1"))
    (tmp_path / "odd").rename(folder)
    (folder / "checkpoint").write_text('model_checkpoint_path: "/moved/ckpt-1"\n')
    with h5py.File(folder / "w.h5", "w") as file:
        file["a/.ATTRIBUTES/VARIABLE_VALUE"] = [1.0, 2.0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for end in ("", "/", "/ckpt-1", "/ckpt-1.index", "/w.h5"):
        for start in (f"{tmp_path}/", "./", "~/"):
            found = readers.read(f"{start}{name}{end}", lambda name: name.startswith("a/"))
            assert_same(found, {"a/.ATTRIBUTES/VARIABLE_VALUE": [1.0, 2.0]})


def test_a_checkpoint_that_is_gone(tmp_path):
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "ckpt-1"\n')
    with pytest.raises(InputError, match="holds no checkpoint"):
        readers.read(str(tmp_path))


def test_index_file_of_a_tensorflow_checkpoint(tmp_path):
    """What completing the name by the tab key gives."""
    path = tf.train.Checkpoint(a=tf.Variable([1.0, 2.0])).write(str(tmp_path / "ckpt"))
    found = readers.read(path + ".index", lambda name: name.startswith("a/"))
    assert_same(found, {"a/.ATTRIBUTES/VARIABLE_VALUE": [1.0, 2.0]})


def test_nothing_that_is_looked_for(tmp_path):
    path = tf.train.Checkpoint(a=tf.Variable(1.0)).write(str(tmp_path / "ckpt"))
    message = f"^{path}: none of its 1 names match, e.g. a/.*; choose another --kind"
    with pytest.raises(InputError, match=message):
        readers.read(path, lambda name: name.startswith("encoder/"))


def test_hdf5(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["model_weights/layer/layer/kernel:0"] = np.ones([2, 3])
    assert_same(readers.read(str(tmp_path / "w.h5")), {"layer/layer/kernel": np.ones([2, 3])})
    data = (tmp_path / "w.h5").read_bytes()
    (tmp_path / "w.h5").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="w.h5: corrupt HDF5 file .*; download it again"):
        readers.read(str(tmp_path / "w.h5"))


def test_what_the_script_of_the_port_writes(tmp_path):
    """A pickle of NumPy arrays, which is not read; the file it was made from is."""
    content = {"model": {"a": np.zeros(3)}, "__author__": "x", "matching_heuristics": True}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match="w.pkl: is a pickle that .* itself with --kind=deeplab2$"):
        readers.read(str(tmp_path / "w.pkl"))


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"\x89HDF", b"PK\x03\x04"])
def test_other_files(tmp_path, content):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(InputError, match=str(tmp_path / "w")):
        readers.read(str(tmp_path / "w"))


def test_missing(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        readers.read(str(tmp_path / "none"))
    with pytest.raises(InputError, match="holds no checkpoint"):
        readers.read(str(tmp_path))
