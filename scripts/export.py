"""Exports a checkpoint of a run as a SavedModel.

scripts/export.py --run_dir=runs/demo --out=runs/demo/export
"""

import os

from absl import flags

from kmax_tf import checkpoint, config, export, runtime
from kmax_tf.experiment import Experiment

RUN_DIR = flags.DEFINE_string("run_dir", None, "Folder of the run.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder of the export.", required=True)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Which one; the newest if not given.")


def main():
    experiment = config.load(Experiment, os.path.join(RUN_DIR.value, "config.gin"))
    path = CHECKPOINT.value or checkpoint.newest(RUN_DIR.value)
    model = experiment.build_evaluation_model()
    checkpoint.restore_model(model, path)
    export.export(experiment, model, OUT.value)
    print(f"exported {path} to {OUT.value}")


if __name__ == "__main__":
    runtime.run(main)
