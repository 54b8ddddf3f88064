"""The schema of a record: one image with its panoptic segments.

| key | value |
|---|---|
| image/encoded | bytes of the JPEG or PNG file, untouched |
| image/format | "jpeg" or "png" |
| image/filename, image/id | text |
| image/height, image/width | int64, of the upright image |
| image/orientation | int64, EXIF orientation, 2 to 8; missing if the image is stored upright |
| panoptic/encoded | PNG of one channel: 0 void, k the k-th segment; 16 bit if over 255 |
| segment/id, segment/category_id, segment/is_crowd, segment/area | int64, one for each segment |
"""

from typing import NamedTuple

import tensorflow as tf

from kmax_tf.data import orientation

TEXT = tf.io.FixedLenFeature([], tf.string)
SEGMENTS = tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)  # one for each


class Example(NamedTuple):
    """One image of the dataset as tensors: height x width pixels, s segments."""

    image: tf.Tensor  # uint8 [height, width, 3], 0 to 255, upright
    segment_map: tf.Tensor  # int32 [height, width], 0 void, k the k-th segment, from 1
    segment_id: tf.Tensor  # int64 [s], as in the source
    category_id: tf.Tensor  # int64 [s], as in the source
    is_crowd: tf.Tensor  # bool [s]
    filename: tf.Tensor  # string
    image_id: tf.Tensor  # string


def parse(serialized: tf.Tensor) -> Example:
    """Parses a record, a string scalar, with TensorFlow operations only.

    The `Example` of a corrupt record raises InvalidArgumentError when it is evaluated.
    """
    record = tf.io.parse_single_example(
        serialized,
        {
            "image/encoded": TEXT,
            "image/filename": TEXT,
            "image/id": TEXT,
            "image/orientation": tf.io.FixedLenFeature([], tf.int64, orientation.UPRIGHT),
            "panoptic/encoded": TEXT,
            "segment/id": SEGMENTS,
            "segment/category_id": SEGMENTS,
            "segment/is_crowd": SEGMENTS,
        },
    )
    labels = tf.io.decode_png(record["panoptic/encoded"], channels=1, dtype=tf.uint16)
    # The decoder repeats the values of an 8-bit PNG in both bytes.
    shift = tf.cast(tf.where(tf.size(record["segment/id"]) > 255, 0, 8), tf.uint16)
    return assert_consistent(
        Example(
            image=orientation.turn_upright(
                decode_image(record["image/encoded"]), record["image/orientation"]
            ),
            segment_map=tf.cast(tf.bitwise.right_shift(labels[..., 0], shift), tf.int32),
            segment_id=record["segment/id"],
            category_id=record["segment/category_id"],
            is_crowd=record["segment/is_crowd"] != 0,
            filename=record["image/filename"],
            image_id=record["image/id"],
        )
    )


def decode_image(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a JPEG or PNG, a string scalar, to uint8 [height, width, 3], as stored."""
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def assert_consistent(example: Example) -> Example:
    """Adds checks that the sizes of an `Example` agree: its use else is an InvalidArgumentError."""
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
