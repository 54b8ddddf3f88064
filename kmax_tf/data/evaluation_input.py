"""The evaluation's input: every image once, resized to fit and padded, or as it is."""

from typing import NamedTuple

import tensorflow as tf

from kmax_tf.data.records import reader
from kmax_tf.data.records.reader import Records
from kmax_tf.data.transforms import host
from kmax_tf.data.transforms.geometry import Sample


class EvaluationSample(NamedTuple):
    """An image of the evaluation, with the sizes that take its prediction back to it."""

    image: tf.Tensor  # float32 [height, width, 3], 0 to 255, resized to fit and padded
    fitted_size: tf.Tensor  # int32 [2], height and width without the padding
    original_size: tf.Tensor  # int32 [2], height and width of the stored image
    filename: tf.Tensor  # string
    image_id: tf.Tensor  # string


def evaluation_input(
    records: Records, size: tuple[int, int], batch_size: int, enlarge: bool = True
) -> tf.data.Dataset:
    """Makes batches of every image once, in order: a dataset of `EvaluationSample`, batched.

    Each image is fitted into `size`, (height, width) in pixels; without `enlarge` a smaller one
    keeps its size. The last batch may be smaller.
    """

    @tf.autograph.experimental.do_not_convert
    def prepare(record):
        example = records.parse(record)
        sample = Sample(example.image, example.segment_map)
        return EvaluationSample(
            image=host.fit_and_pad(sample, size, enlarge).image,
            fitted_size=host.fitted_size(sample, size, enlarge),
            original_size=tf.shape(example.segment_map),
            filename=example.filename,
            image_id=example.image_id,
        )

    examples = reader.serialized(records).map(prepare, tf.data.AUTOTUNE, deterministic=True)
    return examples.batch(batch_size).prefetch(1)


def evaluation_images(records: Records) -> tf.data.Dataset:
    """Makes a dataset of every image once, in order: an `Example` without its segment map."""

    @tf.autograph.experimental.do_not_convert
    def image(record):
        return records.parse(record)._replace(segment_map=tf.zeros([0, 0], tf.int32))

    return reader.decode_each(reader.serialized(records), image, large=True)
