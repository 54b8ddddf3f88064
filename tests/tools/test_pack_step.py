"""A packed step trains where there is only JAX."""

import pathlib
import re
import subprocess
import sys

import pytest
import tensorflow as tf

from kmax_tf.errors import InputError
from kmax_tf.tools import pack_step
from kmax_tf.training import replica_program, train
from kmax_tf.training.replica_strategy import ReplicaStrategy
from kmax_tf.training.trainer import make_trainer

STEPS = 3


@pytest.mark.xla
@pytest.mark.long
@pytest.mark.slow
def test_the_loss_is_that_of_tensorflow(tiny, tmp_path):
    pytest.importorskip("jax")
    # With the paper's activation, whose error function StableHLO has not.
    experiment = tiny("experiment.Experiment.batch_size=2", "resnet.ResNet.activation='gelu'")
    path = tmp_path / "step.npz"
    pack_step.pack(experiment, str(path), STEPS)
    script = pathlib.Path(__file__).parents[2] / "scripts/run_step.py"
    done = subprocess.run(
        [sys.executable, script, path, f"--steps={STEPS}"],
        capture_output=True,
        text=True,
        env={"JAX_PLATFORMS": "cpu"},
    )
    (loss,) = re.findall(rf"step {STEPS}: loss ([\d.]+)", done.stdout) or [done.stderr]
    assert "ms a step" in done.stdout

    trainer = make_trainer(experiment, ReplicaStrategy(1))
    step, _ = replica_program.training_step(trainer)  # compiled by TensorFlow's XLA
    records = train.training_records(experiment)
    stride = trainer.model.output_stride
    batches = train.training_dataset(experiment, records, trainer.strategy, stride, 0)
    for batch in batches.take(STEPS):
        step(*tf.nest.flatten(batch))
    expected = trainer.train_loop_end()["loss/total"]
    assert float(loss) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "command", ["pack_step.py --gin_file=x.gin --out=x.npz --batches", "run_step.py x.npz --steps"]
)
def test_no_batches_and_no_steps_are_refused(command):
    if command.startswith("run_step.py"):
        pytest.importorskip("jax")
    name, *words = command.split()
    script = pathlib.Path(__file__).parents[2] / "scripts" / name
    done = subprocess.run([sys.executable, script, *words, "0"], capture_output=True, text=True)
    assert f"error: argument {words[-1]}: 0 is less than 1" in done.stderr and done.returncode


def test_an_initial_checkpoint_is_refused(tiny, tmp_path):
    experiment = tiny("experiment.Experiment.initial_checkpoint='x'")
    with pytest.raises(InputError, match="random weights; bind"):
        pack_step.pack(experiment, str(tmp_path / "step.npz"), 1)
