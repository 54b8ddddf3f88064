"""The error for a training step that needs more memory than the device has."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from kmax_tf.errors import InputError, file_system_reason, first_line


class DoesNotFit(InputError):
    """The training step needs more memory than the device has; it is made from the cause."""

    def __init__(self, error: Exception):
        super().__init__(
            f"the step does not fit in the device's memory ({first_line(error):.200}); use a"
            ' smaller --batch_size, or bind experiment.Experiment.precision = "mixed_bfloat16" or a'
            " larger experiment.Experiment.accumulation"
        )


@contextlib.contextmanager
def named_errors() -> Iterator[None]:
    """Turns TensorFlow's error about memory into `DoesNotFit`; a full disk has the same one."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        if file_system_reason(error):
            raise
        raise DoesNotFit(error) from error
