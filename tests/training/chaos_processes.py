"""The processes of test_chaos.py: a real training, one that only writes, and an evaluator."""

import dataclasses
import os
import pathlib
import random
import time

import tensorflow as tf
import toy
from stubs import Stub

from kmax_tf import config, runtime
from kmax_tf.evaluation import evaluate
from kmax_tf.experiment import Experiment
from kmax_tf.run_folder import layout
from kmax_tf.training import train as training

STEPS = 24  # of the training that only writes
REAL_STEPS = 100
TRUNCATED, DELETED, REPAIRED = 5, 7, 3  # every so many checkpoints


def train_for_real(gin_file, run_dir):
    """Trains the toy model, with a checkpoint after each step."""
    experiment = dataclasses.replace(toy.of(config.load(Experiment, gin_file)), steps=REAL_STEPS)
    training.train(experiment, run_dir, runtime.strategy("cpu"))


def load(gin_file):
    return dataclasses.replace(config.load(Experiment, gin_file), model=Stub, steps=STEPS)


def train(run_dir, seed):
    """Writes a checkpoint now and then; some it damages, of which it repairs some."""
    drawn = random.Random(seed)
    model = Stub(14)
    folder = layout.checkpoints(run_dir)
    saver = tf.train.Checkpoint(model=model)
    manager = tf.train.CheckpointManager(saver, folder, max_to_keep=None)
    for step in range(1, STEPS + 1):
        model.step.assign(step)
        data = pathlib.Path(f"{manager.save(checkpoint_number=step)}.data-00000-of-00001")
        whole = data.read_bytes()
        if step % DELETED == 0:
            data.unlink()
        elif step % TRUNCATED == 0 or step % REPAIRED == 0:
            data.write_bytes(whole[: drawn.randrange(len(whole))])
        time.sleep(drawn.uniform(0, 1.0))
        if step % REPAIRED == 0:
            data.write_bytes(whole)


def follow(gin_file, run_dir, log):
    """Evaluates; appends what it prints to a file."""
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(fd, 1)
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        evaluate.evaluate_run(load(gin_file), run_dir, wait=20.0)
