"""Packs a training step with its state and real batches, for machines that have only JAX."""

import io
import itertools
import json
from typing import Any

import numpy as np
import tensorflow as tf

from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment
from kmax_tf.files import write_atomic
from kmax_tf.training import replica_program, train
from kmax_tf.training.replica_strategy import ReplicaStrategy
from kmax_tf.training.trainer import make_trainer


def pack(experiment: Experiment, path: str, num_batches: int) -> int:
    """Writes the step of one device, its state before the first step, and the first batches.

    Returns the size of the file in bytes.

    The file is an archive of NumPy:
      - "program": uint8, the step in portable StableHLO;
      - "batch_I_J": argument J of batch I;
      - "state_K": the arguments that follow a batch;
      - "head": JSON. "outputs" are the numbers of the outputs that replace the state, null
        where it is only read. "losses" are pairs of numbers of the state, whose quotients add up to
        the mean loss since the start.

    Args:
        num_batches: Batches that are packed, in the order of the training.

    Raises:
        InputError: The records are missing, or the training starts from a checkpoint.
    """
    if experiment.initial_checkpoint:
        raise InputError(
            "a packed step starts from random weights; bind"
            " experiment.Experiment.initial_checkpoint = ''"
        )
    strategy = ReplicaStrategy(1)
    records = train.training_records(experiment)
    trainer = make_trainer(experiment, strategy)
    program = replica_program.step_program(trainer)
    stride = trainer.model.output_stride
    batches = train.training_dataset(experiment, records, strategy, stride, 0)
    code = replica_program.serialize(program.module)
    arrays: dict[str, Any] = {"program": np.frombuffer(code, np.uint8)}
    for i, batch in enumerate(itertools.islice(batches, num_batches)):
        for j, part in enumerate(tf.nest.flatten(batch)):
            arrays[f"batch_{i}_{j}"] = part.numpy()
    for k, number in enumerate(program.variables):
        arrays[f"state_{k}"] = trainer.step_variables[number].numpy()
    head = {"batches": num_batches, "outputs": program.outputs}
    head |= {"losses": _losses(trainer, program.variables)}
    content = io.BytesIO()
    np.savez_compressed(content, head=json.dumps(head), **arrays)
    write_atomic(path, content.getvalue())
    return len(content.getvalue())


def _losses(trainer, variables):
    """Returns the places in the state of (sum, count) of each term of the loss."""
    places = {trainer.step_variables[number].ref(): k for k, number in enumerate(variables)}
    terms = [*trainer.losses[:4], trainer.losses.semantic]
    return [[places[v.ref()] for v in term.variables] for term in terms]
