"""Datasets without tf.data's autotuning, whose end can take a minute."""

import tensorflow as tf


def off(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Lets a map that is as parallel as `tf.data.AUTOTUNE` use all cores of its machine at once.

    The thread that would find a better number can miss the end of its iterator, because tf.data
    wakes it before the end is marked. The program then waits for it, up to a minute.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    options.autotune.initial_parallelism = 1024  # or all cores, if they are fewer; else at most 16
    return dataset.with_options(options)
