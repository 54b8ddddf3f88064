"""The error for a training step that needs more memory than the device has."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from kmax_tf.errors import InputError, file_system_reason, first_line
from kmax_tf.run_folder import checkpoint


class DoesNotFit(InputError):
    """The training step needs more memory than the device has; it is made from the cause."""

    def __init__(self, error: Exception):
        super().__init__(
            f"the step does not fit in the device's memory ({first_line(error):.200}); use a"
            ' smaller --batch_size, or bind kmax.KMaX.recompute = ["pixel_encoder"],'
            ' experiment.Experiment.precision = "mixed_bfloat16" or a larger'
            " experiment.Experiment.accumulation"
        )


@contextlib.contextmanager
def named_errors(run_dir: str = "") -> Iterator[None]:
    """Turns TensorFlow's error about memory into `DoesNotFit`; a full disk has the same one.

    A run with a checkpoint keeps its settings, so there it becomes an InputError of another remedy.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        if file_system_reason(error):
            raise
        if run_dir and checkpoint.completed(run_dir):
            raise InputError(
                f"{run_dir}: the device's memory is full ({first_line(error):.200}); end other"
                " programs there, such as the evaluator, and run the same command again"
            ) from error
        raise DoesNotFit(error) from error
