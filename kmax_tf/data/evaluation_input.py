"""The evaluation's input: every image once, fitted and padded."""

from typing import NamedTuple

import tensorflow as tf

from kmax_tf.data import host
from kmax_tf.data.augment import Sample
from kmax_tf.data.records import Records


class EvaluationSample(NamedTuple):
    """An image of the evaluation, with what takes its prediction back to the original size."""

    image: tf.Tensor  # float32 [height, width, 3], fitted and padded
    fitted_size: tf.Tensor  # int32 [2], height and width without the padding
    original_size: tf.Tensor  # int32 [2]
    filename: tf.Tensor  # string
    image_id: tf.Tensor  # string


def evaluation_input(found: Records, size: tuple[int, int], batch_size: int) -> tf.data.Dataset:
    """Every image once, in order: batches of `EvaluationSample`, the last one perhaps smaller.

    `size`: height and width, in pixels, into which each image is fitted.
    """

    def prepare(record):
        example = found.parse(record)
        sample = Sample(example.image, example.segment_map)
        return EvaluationSample(
            image=host.fit_and_pad(sample, size).image,
            fitted_size=host.fitted_size(sample, size),
            original_size=tf.shape(example.segment_map),
            filename=example.filename,
            image_id=example.image_id,
        )

    records = tf.data.TFRecordDataset(found.paths)
    batches = records.map(prepare, tf.data.AUTOTUNE, deterministic=True).batch(batch_size)
    return batches.prefetch(tf.data.AUTOTUNE)
