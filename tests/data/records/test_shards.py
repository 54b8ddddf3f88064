import os

import pytest
import tensorflow as tf

from kmax_tf import errors, files
from kmax_tf.data.records import shards


def test_records_are_read_and_damage_is_named(tmp_path):
    path = tmp_path / "a.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for _ in range(3):
            writer.write(b"a record" * 9)
    assert list(shards.read(str(path))) == [b"a record" * 9] * 3
    data = path.read_bytes()
    for corrupt in (data[:-5], data[:40] + b"?" + data[41:], b"not records at all"):
        path.write_bytes(corrupt)
        with pytest.raises(errors.InputError, match=r"a\.tfrecord: .*convert again"):
            list(shards.read(str(path)))
    with pytest.raises(errors.InputError, match="gone.tfrecord"):
        list(shards.read(str(tmp_path / "gone.tfrecord")))


def test_a_storage_that_does_not_answer_is_no_damage(monkeypatch):
    def refuse(path):
        raise tf.errors.UnavailableError(None, None, "the service is busy\nand so on")

    monkeypatch.setattr(tf.data, "TFRecordDataset", refuse)
    line = r"^gs://b/a\.tfrecord: cannot be read now \(the service is busy\); try again$"
    with pytest.raises(files.NotAtHand, match=line):
        list(shards.read("gs://b/a.tfrecord"))


def test_paths_are_those_of_one_whole_conversion(tmp_path):
    names = [shards.name("val", index, 12) for index in range(12)]
    assert names[3] == "val-00003-of-00012.tfrecord"
    for name in [*names, "val-big-00000-of-00001.tfrecord", "val-00000-of-00012.tfrecord.tmp"]:
        (tmp_path / name).touch()
    assert shards.paths(str(tmp_path), "val") == [str(tmp_path / name) for name in names]
    (tmp_path / names[11]).unlink()
    with pytest.raises(errors.InputError, match="val-00011-of-00012.tfrecord is missing"):
        shards.paths(str(tmp_path), "val")
    (tmp_path / names[11]).touch()
    (tmp_path / shards.name("val", 0, 2)).touch()
    with pytest.raises(errors.InputError, match="does not belong to 12 shards"):
        shards.paths(str(tmp_path), "val")
    with pytest.raises(errors.InputError, match='no records of split "train"'):
        shards.paths(str(tmp_path), "train")
    with pytest.raises(errors.InputError, match='no records of split "train"'):
        shards.paths(str(tmp_path / "nowhere"), "train")


def test_shards_are_found_by_the_names_of_tfds(tmp_path):
    names = [f"coco-train.tfrecord-{k:05d}-of-00003" for k in range(3)]
    for name in [*names, "coco-validation.tfrecord-00000-of-00001", "dataset_info.json"]:
        (tmp_path / name).touch()
    assert shards.paths(str(tmp_path), "train") == [str(tmp_path / n) for n in names]
    (tmp_path / names[1]).unlink()
    with pytest.raises(errors.InputError, match="train.tfrecord-00001-of-00003 is missing"):
        shards.paths(str(tmp_path), "train")


def test_a_folder_with_a_name_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / shards.name("val", 0, 1)).touch()
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w"):
        pass
    with pytest.raises(errors.InputError, match=r"has a name that is not UTF-8 .*caf.*; rename it"):
        shards.paths(str(tmp_path), "val")
