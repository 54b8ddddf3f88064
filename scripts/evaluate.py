"""Evaluates the checkpoints of a run as training writes them; start it beside scripts/train.py.

scripts/evaluate.py --run_dir=runs/demo
"""

import os
import time

import tensorflow as tf
from absl import flags

from kmax_tf import config, evaluate, runtime
from kmax_tf.experiment import Experiment
from kmax_tf.files import InputError

RUN_DIR = flags.DEFINE_string("run_dir", None, "Folder of the run.", required=True)
GIN = flags.DEFINE_multi_string("gin", [], "A binding that overrides the run's config.gin.")
DEVICE = flags.DEFINE_string("device", "auto", "auto, cpu, gpu, tpu:NAME or local (a TPU host).")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Evaluate this one alone.")
WAIT = flags.DEFINE_float("wait", 3600.0, "Seconds to wait for the next checkpoint.", 0)


def main():
    config_path = os.path.join(RUN_DIR.value, "config.gin")
    deadline = time.monotonic() + WAIT.value
    while not tf.io.gfile.exists(config_path):
        if time.monotonic() > deadline:
            raise InputError(f"{config_path}: missing; start scripts/train.py with this run_dir")
        time.sleep(1.0)
    with runtime.strategy(DEVICE.value).scope():
        experiment = config.load(Experiment, config_path, GIN.value)
        evaluate.evaluate_run(
            experiment, RUN_DIR.value, checkpoint_path=CHECKPOINT.value, wait=WAIT.value
        )


if __name__ == "__main__":
    runtime.run(main)
