"""The trainer whose steps run on the devices of JAX; everything else is that of `Trainer`.

Between checkpoints weights and moments are on the devices only. The compiled step is kept in the
run folder, so that a restart neither traces nor compiles.
"""

import collections
import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Sequence

import jax
import numpy as np
import tensorflow as tf
import tf_keras
from jax.errors import JaxRuntimeError

from kmax_tf import config
from kmax_tf.errors import InputError, first_line
from kmax_tf.experiment import Experiment
from kmax_tf.files import PACKAGE, read_bytes, write_atomic
from kmax_tf.run_folder import layout
from kmax_tf.training import pjrt, replica_program
from kmax_tf.training.trainer import Trainer, make_trainer

IN_FLIGHT = 2  # steps that the devices have ahead of the host
CPUS = "/proc/cpuinfo"


class Step:
    """The compiled training step.

    Its arguments are a batch, then `variables` of the trainer by their numbers. It returns the new
    values of the variables.
    """

    def __init__(
        self, executable: pjrt.Executable, variables: Sequence[int], outputs: Sequence[int | None]
    ):
        """outputs: for each of `variables`, the number of the output that replaces it, or None."""
        self.executable, self.variables, self.outputs = executable, variables, outputs

    def __call__(
        self, batch: Sequence[jax.Array], state: Sequence[jax.Array]
    ) -> tuple[list[jax.Array], object]:
        """Starts a step; returns the new state and a token that is ready when the step ends."""
        outputs, token = self.executable([*batch, *state])
        pairs = zip(self.outputs, state, strict=True)
        return [old if number is None else outputs[number] for number, old in pairs], token


class PjrtTrainer(Trainer):
    """A `Trainer` in a `PjrtStrategy`."""

    kept_at = ""  # path of the kept step
    _state: list[jax.Array]  # the values of `_variables`, on the devices

    @pjrt.named_errors()
    def train(self, num_steps: tf.Tensor) -> dict[str, float]:
        """Runs a loop of steps, and returns its scalars."""
        tokens = collections.deque()
        for _ in range(int(num_steps)):
            batch = self._next_batch()
            if len(tokens) == IN_FLIGHT:
                tokens.popleft().block_until_ready()
            self._state, token = self._step(batch, self._state)
            tokens.append(token)
        self._fetch(self._light)
        scalars = self.train_loop_end()
        self._send(self._light)
        return scalars

    @pjrt.named_errors()
    def save(self, run_dir: str) -> None:
        if self.strategy.extended.should_checkpoint:  # the others need no copy
            self._fetch(self._heavy)
            super().save(run_dir)

    @pjrt.named_errors()
    def prepare(self) -> None:
        """Loads or compiles the step, and copies the variables to the devices."""
        self._step = _kept(self) or _compile(self)
        self._variables = [self.step_variables[number] for number in self._step.variables]
        heavy = [*self.model.variables, *self.optimizer.moments]
        heavy = {v.ref() for v in (*heavy, *(self.ema.variables if self.ema else ()))}
        numbers = range(len(self._variables))
        self._heavy = [i for i in numbers if self._variables[i].ref() in heavy]
        # What the host reads after each loop: metrics, counters and the learning rate.
        self._light = [i for i in numbers if self._variables[i].ref() not in heavy]
        self._state = [None] * len(self._variables)
        self._send(numbers)
        self._batches = iter(self.train_dataset)

    def _next_batch(self):
        """Sends the next batch of each device here."""
        batches = [tf.nest.flatten(next(self._batches)) for _ in self.strategy.devices.here]
        return [
            self._step.executable.send([part.numpy() for part in parts])
            for parts in zip(*batches, strict=True)
        ]

    def _send(self, numbers):
        """Copies variables to the devices; only the first replica gets a part of a sum."""
        count = len(self.strategy.devices.here)
        for number in numbers:
            variable = self._variables[number]
            value = variable.numpy()
            values = [value] * count
            if _is_sum(variable):
                first = value if self.strategy.extended.should_checkpoint else np.zeros_like(value)
                values = [first, *[np.zeros_like(value)] * (count - 1)]
            self._state[number] = self._step.executable.send(values)

    def _fetch(self, numbers):
        """Copies variables from the devices; a sum is added up over all replicas."""
        sums = {}
        for number in numbers:
            shards = self._state[number].addressable_shards
            if _is_sum(self._variables[number]):
                sums[number] = np.sum([np.asarray(shard.data) for shard in shards], axis=0)
            else:  # equal on all replicas
                self._variables[number].assign(np.asarray(shards[0].data))
        if sums:
            flat = np.concatenate([value.ravel() for value in sums.values()])
            parts = np.split(
                self.strategy.sum_of_processes(flat),
                np.cumsum([value.size for value in sums.values()])[:-1],
            )
            for (number, value), part in zip(sums.items(), parts, strict=True):
                self._variables[number].assign(part.reshape(value.shape))


def make(experiment: Experiment, strategy: pjrt.PjrtStrategy, run_dir: str) -> PjrtTrainer:
    """Builds the trainer of a run."""
    trainer = make_trainer(experiment, strategy, PjrtTrainer)
    trainer.kept_at = layout.program(run_dir)
    print(f"device: {strategy.devices}")
    return trainer


def _is_sum(variable):
    return variable.aggregation == tf.VariableAggregation.SUM


def _compile(trainer):
    """Traces, compiles and keeps the step."""
    start = time.monotonic()
    print("compiling the training step; this can take minutes", flush=True)
    module, variables, outputs = replica_program.step_program(trainer)
    compiled = Step(pjrt.compile_module(module, trainer.strategy.devices), variables, outputs)
    print(f"compiled in {time.monotonic() - start:.0f} s", flush=True)
    _keep(compiled, trainer)
    return compiled


def _keep(step, trainer):
    if not trainer.strategy.extended.should_checkpoint:
        return
    head = {"key": _key(trainer), "variables": step.variables, "outputs": step.outputs}
    try:
        content = json.dumps(head).encode() + b"\n" + step.executable.serialize()
        write_atomic(trainer.kept_at, content)
    except (JaxRuntimeError, InputError) as error:  # it only spares the next start's time
        print(f"the compiled step is not kept: {first_line(error)}")


def _kept(trainer):
    """Loads the kept step, None if there is none of this code, configuration and machine."""
    if not tf.io.gfile.exists(trainer.kept_at):
        return None
    start = time.monotonic()
    head, _, content = read_bytes(trainer.kept_at).partition(b"\n")
    try:
        head = json.loads(head)
        if head["key"] != _key(trainer):
            return None
        executable = pjrt.load(content, trainer.strategy.devices)
    except (JaxRuntimeError, ValueError, KeyError, TypeError) as error:
        print(f"{trainer.kept_at}: cannot be loaded ({first_line(error)}); it is compiled again")
        return None
    print(f"loaded the compiled training step in {time.monotonic() - start:.1f} s", flush=True)
    return Step(executable, head["variables"], head["outputs"])


def _key(trainer):
    """Returns a digest of all that the compiled step depends on.

    Of code outside of this package it knows the modules that the configuration imports.
    """
    devices = trainer.strategy.devices.everywhere
    parts = [config.resolved(), tf.__version__, tf_keras.__version__, jax.__version__]
    parts.append(str([category[:3] for category in trainer.experiment.dataset.categories]))
    parts += [str(trainer.strategy.devices), devices[0].client.platform_version]
    parts.append(str([(device.process_index, device.id) for device in devices]))
    parts += [_instructions()] if devices[0].platform == "cpu" else []
    parts += [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    own = (os.path.join(f, n) for f, _, names in os.walk(PACKAGE) for n in names)
    sources = sorted({*own, *config.sources()})
    parts += [read_bytes(path).decode() for path in sources if path.endswith(".py")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _instructions():
    """Returns the instruction sets of this machine's CPU; only Linux lists them."""
    listed = read_bytes(CPUS).decode() if tf.io.gfile.exists(CPUS) else ""
    found = re.search(r"^(?:flags|Features)\s*:.*", listed, re.MULTILINE)
    return found[0] if found else platform.processor()
