"""The record files (shards) of a split."""

import os
import re
from collections.abc import Iterator

import tensorflow as tf

from kmax_tf import errors, files
from kmax_tf.data import autotuning


def name(split: str, index: int, count: int) -> str:
    """Returns the file name of shard `index`, 0 to `count` - 1."""
    return f"{split}-{index:05d}-of-{count:05d}.tfrecord"


def paths(folder: str, split: str) -> list[str]:
    """Returns the paths of all shards of a split, in order.

    Their names are those of `name`, or TFDS' (coco-train.tfrecord-00000-of-00512).

    Raises:
        InputError: no shard exists, one is missing, two conversions are mixed, or a name in the
            folder is not UTF-8.
    """
    number = r"(\d{5})-of-(\d{5})"
    pattern = re.compile(
        rf"{re.escape(split)}-{number}\.tfrecord|\w+-{re.escape(split)}\.tfrecord-{number}"
    )
    present = files.names(folder, required=False)
    matches = sorted(filter(None, map(pattern.fullmatch, present)), key=lambda match: match[0])
    if not matches:
        raise errors.InputError(
            f'{folder}: no records of split "{split}"; check the path and the split, or convert it'
        )
    last = matches[-1][0]
    count = int(re.search(r"-of-(\d{5})", last)[1])
    expected = [re.sub(r"\d{5}-of", f"{index:05d}-of", last) for index in range(count)]
    wrong = sorted(set(expected) ^ {match[0] for match in matches})
    if wrong:
        problem = "is missing" if wrong[0] in expected else f"does not belong to {count} shards"
        raise errors.InputError(f"{folder}: {wrong[0]} {problem}; convert again")
    return [os.path.join(folder, name) for name in expected]


def read(path: str) -> Iterator[bytes]:
    """Yields the serialized records of one file.

    Raises:
        InputError: it is missing or corrupt.
        NotAtHand: it cannot be read now.
    """
    try:
        yield from autotuning.off(tf.data.TFRecordDataset(path)).as_numpy_iterator()
    except files.NOT_AT_HAND as error:
        raise files.NotAtHand(
            f"{path}: cannot be read now ({errors.first_line(error)}); try again"
        ) from error
    except tf.errors.OpError as error:
        raise errors.InputError(
            f"{path}: missing or corrupt records ({error.message}); convert again"
        ) from error
