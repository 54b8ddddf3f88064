"""Reads the records of TFDS' `coco/2017_panoptic` as an `Example`."""

import os

import tensorflow as tf

from kmax_tf import errors, files
from kmax_tf.data import datasets
from kmax_tf.data.records import example
from kmax_tf.data.records.example import Example


def category_ids(folder: str, dataset: datasets.Dataset) -> list[int]:
    """Returns the category id of each label, by the class names that TFDS writes into `folder`.

    Raises:
        InputError: the names are missing, or are not those of `dataset`.
    """
    path = os.path.join(folder, "panoptic_objects-label.labels.txt")
    names = files.read_bytes(path).decode("utf-8", "replace").splitlines()
    ids = {category.name: category.id for category in dataset.categories}
    if sorted(names) != sorted(ids):
        raise errors.InputError(
            f"{path}: its classes are not those of dataset {dataset.name!r};"
            " bind datasets.load.source to the dataset of these records"
        )
    return [ids[name] for name in names]


def parse(serialized: tf.Tensor, ids: list[int]) -> Example:
    """Parses a record as `example.parse` does; `ids` are the `category_ids` of its labels."""
    record = tf.io.parse_single_example(
        serialized,
        {
            "image": example.TEXT,
            "image/filename": example.TEXT,
            "image/id": tf.io.FixedLenFeature([], tf.int64),
            "panoptic_image": example.TEXT,
            "panoptic_objects/id": example.SEGMENTS,
            "panoptic_objects/label": example.SEGMENTS,
            "panoptic_objects/is_crowd": example.SEGMENTS,
        },
    )
    rgb = tf.cast(tf.io.decode_png(record["panoptic_image"], channels=3), tf.int64)
    pixel_id = tf.linalg.matvec(rgb, tf.constant([1, 256, 65536], tf.int64))
    # Void is a segment too, with id 0, at place 0 of this list.
    known = tf.concat([[0], record["panoptic_objects/id"]], 0)
    order = tf.argsort(known)
    place = tf.searchsorted(tf.gather(known, order), tf.reshape(pixel_id, [-1]))
    number = tf.reshape(tf.gather(order, tf.minimum(place, tf.size(known) - 1)), tf.shape(pixel_id))
    tf.debugging.assert_equal(tf.gather(known, number), pixel_id, "ids of pixels and segments")
    return example.assert_consistent(
        Example(
            image=example.decode_image(record["image"]),
            segment_map=number,
            segment_id=record["panoptic_objects/id"],
            category_id=tf.gather(tf.constant(ids, tf.int64), record["panoptic_objects/label"]),
            is_crowd=record["panoptic_objects/is_crowd"] != 0,
            filename=record["image/filename"],
            image_id=tf.strings.as_string(record["image/id"]),
        )
    )
