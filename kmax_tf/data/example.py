"""The schema of a record: one image with its panoptic segments.

| key | value |
|---|---|
| image/encoded | bytes of the JPEG or PNG file, untouched |
| image/format | "jpeg" or "png" |
| image/filename, image/id | text |
| image/height, image/width | int64 |
| panoptic/encoded | PNG of one channel: 0 void, k the k-th segment; 16 bit if over 255 |
| segment/id, segment/category_id, segment/is_crowd, segment/area | int64, one for each segment |
"""

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf

from kmax_tf import files

TEXT = tf.io.FixedLenFeature([], tf.string)
SEGMENTS = tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)  # one for each


class Example(NamedTuple):
    """One image as tensors: h, w pixels, s segments."""

    image: tf.Tensor  # uint8 [h, w, 3]
    segment_map: tf.Tensor  # int32 [h, w], 0 void, k the k-th segment, from 1
    segment_id: tf.Tensor  # int64 [s], as in the source
    category_id: tf.Tensor  # int64 [s], as in the source
    is_crowd: tf.Tensor  # bool [s]
    filename: tf.Tensor  # string
    image_id: tf.Tensor  # string


def parse(serialized: tf.Tensor) -> Example:
    """Reads a record back: scalar string -> Example, whose image is uint8 [h, w, 3].

    With TensorFlow operations only. A damaged one is an InvalidArgumentError when it is read.
    """
    record = tf.io.parse_single_example(
        serialized,
        {
            "image/encoded": TEXT,
            "image/filename": TEXT,
            "image/id": TEXT,
            "panoptic/encoded": TEXT,
            "segment/id": SEGMENTS,
            "segment/category_id": SEGMENTS,
            "segment/is_crowd": SEGMENTS,
        },
    )
    labels = tf.io.decode_png(record["panoptic/encoded"], channels=1, dtype=tf.uint16)
    # An 8-bit PNG read as 16 bit has its values in both bytes.
    shift = tf.cast(tf.where(tf.size(record["segment/id"]) > 255, 0, 8), tf.uint16)
    return checked(
        Example(
            image=decode_image(record["image/encoded"]),
            segment_map=tf.cast(tf.bitwise.right_shift(labels[..., 0], shift), tf.int32),
            segment_id=record["segment/id"],
            category_id=record["segment/category_id"],
            is_crowd=record["segment/is_crowd"] != 0,
            filename=record["image/filename"],
            image_id=record["image/id"],
        )
    )


def decode_image(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a JPEG or PNG: scalar string -> uint8 [h, w, 3]."""
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def checked(example: Example) -> Example:
    """Returns the example, whose use is an InvalidArgumentError unless its parts fit together."""
    count = tf.size(example.segment_id)
    checks = [
        tf.debugging.assert_equal(
            tf.shape(example.image)[:2], tf.shape(example.segment_map), "sizes of image and labels"
        ),
        tf.debugging.assert_equal(
            [tf.size(example.category_id), tf.size(example.is_crowd)],
            [count, count],
            "lengths of the lists of segments",
        ),
        tf.debugging.assert_less_equal(
            tf.reduce_max(example.segment_map), count, "pixels of a segment that is not listed"
        ),
    ]
    with tf.control_dependencies(checks):
        return Example(*map(tf.identity, example))


def shard_name(split: str, index: int, count: int) -> str:
    """Returns the file name of shard `index`, from 0, of `count`."""
    return f"{split}-{index:05d}-of-{count:05d}.tfrecord"


def shard_paths(folder: str, split: str) -> list[str]:
    """Returns the paths of all shards of a split, in order.

    They are named as by `shard_name` or as TFDS does (coco-train.tfrecord-00000-of-00512).

    Raises:
        InputError: there is none, one is missing, or two conversions are mixed.
    """
    number = r"(\d{5})-of-(\d{5})"
    name = re.compile(
        rf"{re.escape(split)}-{number}\.tfrecord|\w+-{re.escape(split)}\.tfrecord-{number}"
    )
    present = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
    matches = sorted(filter(None, map(name.fullmatch, present)), key=lambda match: match[0])
    if not matches:
        raise files.InputError(
            f'{folder}: no records of split "{split}"; check the path and the split, or convert'
        )
    last = matches[-1][0]
    count = int(re.search(r"-of-(\d{5})", last)[1])
    expected = [re.sub(r"\d{5}-of", f"{index:05d}-of", last) for index in range(count)]
    wrong = sorted(set(expected) ^ {match[0] for match in matches})
    if wrong:
        problem = "is missing" if wrong[0] in expected else f"does not belong to {count} shards"
        raise files.InputError(f"{folder}: {wrong[0]} {problem}; convert again")
    return [os.path.join(folder, name) for name in expected]


def read_records(path: str) -> Iterator[bytes]:
    """Yields the serialized records of one file; InputError if it is missing or damaged."""
    try:
        yield from tf.data.TFRecordDataset(path).as_numpy_iterator()
    except tf.errors.OpError as error:
        raise files.InputError(
            f"{path}: missing or damaged records ({error.message}); convert again"
        ) from error
