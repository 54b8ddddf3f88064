"""Reads the records of the official deeplab2 code as an `Example`."""

import tensorflow as tf

from kmax_tf.data import datasets
from kmax_tf.data.records import example
from kmax_tf.data.records.example import Example


def parse(serialized: tf.Tensor, dataset: datasets.Dataset) -> Example:
    """Parses a record of `dataset` as `example.parse` does (reference: deeplab2's data_utils.py).

    The label is raw int32, rank * label_divisor + instance, see `Dataset`, and absent for testing.
    Instances of things count from 1; instance 0 of a thing is crowd. The record has no segment ids,
    so they are 1 to s, and no image id, so it is the file name. Height, width and label are of the
    upright image, but it is decoded as stored: if EXIF turns it by 90 degrees, it is corrupt.
    """
    record = tf.io.parse_single_example(
        serialized,
        {
            "image/encoded": example.TEXT,
            "image/filename": example.TEXT,
            "image/height": tf.io.FixedLenFeature([], tf.int64),
            "image/width": tf.io.FixedLenFeature([], tf.int64),
            "image/segmentation/class/encoded": tf.io.FixedLenFeature([], tf.string, ""),
        },
    )
    image = example.decode_image(record["image/encoded"])
    shape = tf.cast([record["image/height"], record["image/width"]], tf.int32)
    raw = record["image/segmentation/class/encoded"]
    divisor, ignore = dataset.label_divisor, dataset.ignore_label
    label = tf.cond(
        tf.strings.length(raw) > 0,
        lambda: tf.reshape(tf.io.decode_raw(raw, tf.int32), shape),
        lambda: tf.fill(shape, ignore * divisor),
    )
    segment_map, present = _number_labels(label, dataset)
    first = 1 if ignore == 0 else 0  # rank of the first class
    ids = tf.constant(sorted(dataset.class_of_category), tf.int64)
    category_id = tf.gather(ids, present // divisor - first)
    things = tf.constant([c.id for c in dataset.categories if c.isthing], tf.int64)
    is_thing = tf.reduce_any(category_id[:, None] == things, axis=1)
    return example.assert_consistent(
        Example(
            image=image,
            segment_map=segment_map,
            segment_id=tf.range(1, tf.size(present, tf.int64) + 1),
            category_id=category_id,
            is_crowd=is_thing & (present % divisor == 0),
            filename=record["image/filename"],
            image_id=record["image/filename"],
        )
    )


def _number_labels(label: tf.Tensor, dataset: datasets.Dataset) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds the segments of a label, int32 [height, width]; a corrupt one may hold any number.

    Returns:
        int32 [height, width], 0 void, k the k-th segment, from 1; and int64 [s], their labels.
    """
    divisor, ignore = dataset.label_divisor, dataset.ignore_label
    ranks = max(ignore, dataset.num_classes - (ignore != 0)) + 1
    with tf.control_dependencies(
        [
            tf.debugging.assert_non_negative(label, "labels"),
            tf.debugging.assert_less(label, ranks * divisor, "labels"),
        ]
    ):
        label = tf.identity(label)
    count = tf.math.bincount(label, minlength=ranks * divisor, maxlength=ranks * divisor)
    is_void = tf.range(ranks * divisor) // divisor == ignore
    present = tf.where((count > 0) & ~is_void)
    number = tf.scatter_nd(present, tf.range(1, tf.shape(present)[0] + 1), [ranks * divisor])
    return tf.gather(number, label), present[:, 0]
