"""The input: files > shard per host > shuffle > parse > augment > targets > batch, in that order.

Random numbers are stateless, so the position is a step number: an input that starts at step n
gives what one from the beginning gives after n batches.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from kmax_tf.data import augment
from kmax_tf.data.datasets import Dataset
from kmax_tf.data.example import parse
from kmax_tf.data.targets import class_indices, make_targets

ENDLESS = 2**40


@dataclasses.dataclass(frozen=True)
class TrainingInput:
    """How training examples are made; every field differs between datasets or recipes."""

    size: tuple[int, int]  # height, width of the crop in pixels
    augment: bool = True  # False: every image as the evaluation sees it
    scales: tuple[float, ...] = (1.0,)  # of the random scale, after fitting into `size`
    flip: bool = True
    max_segments: int = 128  # rows of the targets, at most the number of clusters
    thing_weight: float = 1.0  # weight of thing pixels in the semantic loss
    shuffle_buffer: int = 1000  # records


class EvaluationSample(NamedTuple):
    """An image of the evaluation, with what takes its prediction back to the original size."""

    image: tf.Tensor  # float32 [height, width, 3], fitted and padded
    fitted_size: tf.Tensor  # int32 [2], height and width without the padding
    original_size: tf.Tensor  # int32 [2]
    filename: tf.Tensor  # string
    image_id: tf.Tensor  # string


def training_input(
    paths: list[str],
    dataset: Dataset,
    options: TrainingInput,
    *,
    parse: Callable = parse,
    stride: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    host: int = 0,
    num_hosts: int = 1,
) -> tf.data.Dataset:
    """Endless batches of (image float32 [batch, height, width, 3], `Targets`) for one host.

    Arguments:
      paths: all shards, of which the host reads every num_hosts-th.
      parse: of the records, see records.py.
      stride: the model's output stride, at which the targets are.
      batch_size: images a host and step.
      start_step: the number of steps done before.
    """
    paths = paths[host::num_hosts] or paths

    def epoch(number):
        order = tf.random.experimental.stateless_shuffle(tf.constant(paths), [seed, number])
        records = tf.data.Dataset.from_tensor_slices(order).interleave(
            tf.data.TFRecordDataset, cycle_length=16
        )
        return records.shuffle(
            options.shuffle_buffer, seed=seed + number, reshuffle_each_iteration=False
        )

    def example(index, record):
        index = index * num_hosts + host
        return _training_example(parse(record), dataset, options, stride, tf.stack([seed, index]))

    return (
        tf.data.Dataset.range(ENDLESS)
        .flat_map(epoch)
        .enumerate()
        .skip(start_step * batch_size)
        .map(example, tf.data.AUTOTUNE, deterministic=True)
        .batch(batch_size, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def _augmented(sample, options, seed):
    seeds = tf.unstack(tf.random.split(seed, 3), num=3)
    sample = augment.resize_to_fit(sample, options.size)
    sample = augment.random_scale(sample, options.scales, seeds[0])
    sample = augment.random_pad_and_crop(sample, options.size, seeds[1])
    return augment.random_flip(sample, seeds[2]) if options.flip else sample


def _training_example(example, dataset, options, stride, seed):
    sample = augment.Sample(tf.cast(example.image, tf.float32), example.segment_map)
    if options.augment:
        sample = _augmented(sample, options, seed)
    else:
        sample = augment.fit_and_pad(sample, options.size)
    return sample.image, make_targets(
        sample.segment_map,
        class_indices(dataset, example.category_id),
        example.is_crowd,
        num_things=dataset.num_things,
        stride=stride,
        max_segments=options.max_segments,
        thing_weight=options.thing_weight,
    )


def evaluation_input(
    paths: list[str], size: tuple[int, int], batch_size: int, parse: Callable = parse
) -> tf.data.Dataset:
    """Every image once, in order: batches of `EvaluationSample`, the last one perhaps smaller.

    `size`: height and width, in pixels, into which each image is fitted; `parse`: see records.py.
    """

    def prepare(record):
        example = parse(record)
        sample = augment.Sample(tf.cast(example.image, tf.float32), example.segment_map)
        return EvaluationSample(
            image=augment.fit_and_pad(sample, size).image,
            fitted_size=augment.fitted_size(sample, size),
            original_size=tf.shape(example.segment_map),
            filename=example.filename,
            image_id=example.image_id,
        )

    records = tf.data.TFRecordDataset(paths)
    batches = records.map(prepare, tf.data.AUTOTUNE, deterministic=True).batch(batch_size)
    return batches.prefetch(tf.data.AUTOTUNE)
