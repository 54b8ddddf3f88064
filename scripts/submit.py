"""Predicts a split and writes what the test servers of COCO and of Cityscapes take.

scripts/submit.py --run_dir=runs/coco --split=test --out=panoptic_test-dev2017_kmax_results.zip
scripts/submit.py --run_dir=runs/cityscapes --split=test --out=cityscapes_results
"""

import dataclasses

from absl import flags

from kmax_tf import config, runtime
from kmax_tf.errors import InputError
from kmax_tf.evaluation import submission
from kmax_tf.experiment import Experiment
from kmax_tf.inference import predictor
from kmax_tf.run_folder import checkpoint, layout

RUN_DIR = flags.DEFINE_string("run_dir", None, "Folder of the run.", required=True)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Which one; the newest if not given.")
DEVICE = flags.DEFINE_string("device", "auto", "auto, cpu, gpu, tpu:NAME or local (a TPU host).")
SPLIT = flags.DEFINE_string("split", None, "Of the records; that of the evaluation if not given.")
OUT = flags.DEFINE_string("out", None, "NAME.zip, or for Cityscapes a folder.", required=True)
LABELS = flags.DEFINE_string("labels", None, "gtFine of that split: print the official AP too.")


def main():
    with runtime.strategy(DEVICE.value).scope():
        experiment = config.load(Experiment, layout.config(RUN_DIR.value))
        experiment = dataclasses.replace(
            experiment, evaluation_split=SPLIT.value or experiment.evaluation_split
        )
        path = CHECKPOINT.value or checkpoint.newest(RUN_DIR.value)
        model = experiment.build_evaluation_model()
        checkpoint.restore_model(model, path)
        is_cityscapes = experiment.dataset.name == "cityscapes"
        write = submission.write_cityscapes if is_cityscapes else submission.write_coco
        write(experiment, predictor.build_predictor(model, experiment), OUT.value)
    print(f"wrote the predictions of {path} to {OUT.value}")
    if LABELS.value:
        if not is_cityscapes:
            raise InputError("--labels is for Cityscapes; COCO's are scored by scripts/evaluate.py")
        scores = submission.cityscapes_average_precision(OUT.value, LABELS.value)
        print(f"Cityscapes AP {100 * scores['AP']:.1f}  AP50 {100 * scores['AP50']:.1f}")


if __name__ == "__main__":
    runtime.run(main)
