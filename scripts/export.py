"""Exports a checkpoint of a run as a SavedModel.

scripts/export.py --run_dir=runs/demo --out=runs/demo/export
"""

import os

from absl import flags

from kmax_tf import config, files, runtime
from kmax_tf.evaluation import evaluate
from kmax_tf.experiment import Experiment
from kmax_tf.inference import export, predictor, tflite
from kmax_tf.run_folder import checkpoint, layout

RUN_DIR = flags.DEFINE_string("run_dir", None, "Folder of the run.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder of the export.", required=True)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Which one; the newest if not given.")
PRECISION = flags.DEFINE_string("precision", None, "float32 or mixed_bfloat16, if not the run's.")
TFLITE = flags.DEFINE_bool("tflite", False, "Also in TensorFlow Lite, weights in 8 bits.")
MEASURE = flags.DEFINE_bool("measure", False, "Print the PQ of the model and of each file.")


def main():
    bindings = [f"experiment.Experiment.precision = {PRECISION.value!r}"] if PRECISION.value else []
    experiment = config.load(Experiment, layout.config(RUN_DIR.value), bindings)
    path = CHECKPOINT.value or checkpoint.newest(RUN_DIR.value)
    model = experiment.build_evaluation_model()
    checkpoint.restore_model(model, path)
    facts = evaluate.facts(RUN_DIR.value, path)
    export.export(experiment, model, OUT.value, facts, lite=TFLITE.value)
    print(f"exported {path} to {OUT.value}")
    if MEASURE.value:
        predictors = {"model": predictor.build_predictor(model, experiment)}
        predictors["SavedModel"] = export.load_predictor(OUT.value)
        if TFLITE.value:
            content = files.read_bytes(os.path.join(OUT.value, tflite.FILE_NAME))
            predictors["TensorFlow Lite"] = tflite.load_predictor(content)
        for name, predict in predictors.items():
            metrics, *_ = evaluate.evaluate(experiment, predict, checkpoint.step_of(path))
            print(f"{name}: PQ {metrics['PQ'] or 0:.2f} on {metrics['num_images']} images")


if __name__ == "__main__":
    runtime.run(main)
