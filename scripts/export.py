"""Exports a checkpoint of a run as a SavedModel.

scripts/export.py --run_dir=runs/demo --out=runs/demo/export
"""

import os

from absl import flags

from kmax_tf import checkpoint, config, export, runtime
from kmax_tf.experiment import Experiment
from kmax_tf.files import InputError

RUN_DIR = flags.DEFINE_string("run_dir", None, "Folder of the run.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder of the export.", required=True)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Which one; the newest if not given.")


def main():
    experiment = config.load(Experiment, os.path.join(RUN_DIR.value, "config.gin"))
    paths = [CHECKPOINT.value] if CHECKPOINT.value else checkpoint.completed(RUN_DIR.value)
    if not paths:
        raise InputError(f"{RUN_DIR.value}: holds no checkpoint yet; train first")
    model = experiment.build_evaluation_model()
    checkpoint.restore_model(model, paths[-1])
    export.export(experiment, model, OUT.value)
    print(f"exported {paths[-1]} to {OUT.value}")


if __name__ == "__main__":
    runtime.run(main)
