"""Reads the records of others as an `Example`: of the official deeplab2, and of TFDS."""

import tensorflow as tf

from kmax_tf.data import datasets
from kmax_tf.data.records import example
from kmax_tf.data.records.example import Example


def parse_deeplab2(serialized: tf.Tensor, dataset: datasets.Dataset) -> Example:
    """Reads a record of the official deeplab2 (reference: its data/data_utils.py).

    Scalar string -> `Example`, whose image is uint8 [h, w, 3], with TensorFlow operations only.

    Its label is raw int32, rank * label_divisor + instance, see `Dataset`; it is absent in the test
    split. Instances of things count from 1; instance 0 of a thing is crowd. The record gives no ids
    of segments, so they are 1 to s, and none of the image, which is its file name.
    """
    record = tf.io.parse_single_example(
        serialized,
        {
            "image/encoded": example.TEXT,
            "image/filename": example.TEXT,
            "image/segmentation/class/encoded": tf.io.FixedLenFeature([], tf.string, ""),
        },
    )
    image = example.decode_image(record["image/encoded"])
    shape = tf.shape(image)[:2]
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
    return example.checked(
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
    """Finds the segments of an official label, int32 [h, w], which may be any number if corrupt.

    Returns:
        int32 [h, w], 0 void, k the k-th segment, from 1; and int64 [s], the labels of the segments.
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


def parse_tfds(serialized: tf.Tensor, category_ids: list[int]) -> Example:
    """Reads a record of TFDS' `coco/2017_panoptic`; `category_ids` are those of its labels.

    Scalar string -> `Example`, whose image is uint8 [h, w, 3], with TensorFlow operations only.
    """
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
    # Void is a segment of id 0 too, at place 0 of this list.
    known = tf.concat([[0], record["panoptic_objects/id"]], 0)
    order = tf.argsort(known)
    place = tf.searchsorted(tf.gather(known, order), tf.reshape(pixel_id, [-1]))
    number = tf.reshape(tf.gather(order, tf.minimum(place, tf.size(known) - 1)), tf.shape(pixel_id))
    tf.debugging.assert_equal(tf.gather(known, number), pixel_id, "ids of pixels and segments")
    return example.checked(
        Example(
            image=example.decode_image(record["image"]),
            segment_map=number,
            segment_id=record["panoptic_objects/id"],
            category_id=tf.gather(
                tf.constant(category_ids, tf.int64), record["panoptic_objects/label"]
            ),
            is_crowd=record["panoptic_objects/is_crowd"] != 0,
            filename=record["image/filename"],
            image_id=tf.strings.as_string(record["image/id"]),
        )
    )
