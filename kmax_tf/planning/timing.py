"""Times a few training steps of an experiment on this machine."""

import time

import tensorflow as tf

from kmax_tf.experiment import Experiment
from kmax_tf.training import train
from kmax_tf.training.trainer import make_trainer

STEPS = 50  # fewer are too fast, while buffers of the input are full


def time_steps(experiment: Experiment, strategy: tf.distribute.Strategy) -> tuple[float, float]:
    """Trains `STEPS` steps and forgets them; nothing is written.

    Returns:
        The seconds until the first loop of steps is done, with compilation; and the seconds of a
        step after it.

    Raises:
        InputError: the records are missing or corrupt.
    """
    begin = time.perf_counter()
    records = train.training_records(experiment)
    trainer = make_trainer(experiment, strategy)
    stride = trainer.model.output_stride
    trainer.train_dataset = train.training_dataset(experiment, records, strategy, stride, 0)
    trainer.train(tf.constant(2))
    first = time.perf_counter()
    trainer.train(tf.constant(STEPS))
    return first - begin, (time.perf_counter() - first) / STEPS
