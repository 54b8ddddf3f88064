"""Exports a checkpoint of a run as a SavedModel.

kmax export --run_dir=runs/demo --out=runs/demo/export
"""

import os

from kmax_tf import command_line


def parse():
    parser = command_line.Parser(__doc__, ["run_dir"], ["checkpoint"])
    parser.add_argument("--out", required=True, help="folder of the export")
    parser.add_argument("--precision", help="float32 or mixed_bfloat16; default: the run's")
    parser.add_argument(
        "--tflite", action="store_true", help="also write TensorFlow Lite with 8-bit weights"
    )
    parser.add_argument(
        "--measure", action="store_true", help="print the PQ of the model and of each file"
    )
    return parser.parse_args()


def main(options):
    from kmax_tf import config
    from kmax_tf.evaluation import evaluate
    from kmax_tf.experiment import Experiment
    from kmax_tf.inference import export, model_card
    from kmax_tf.run_folder import checkpoint, layout

    bindings = []
    if options.precision:
        bindings = [f"experiment.Experiment.precision = {options.precision!r}"]
    experiment = config.load(Experiment, layout.config(options.run_dir), bindings)
    path = options.checkpoint or checkpoint.newest(options.run_dir)
    model = experiment.build_evaluation_model()
    checkpoint.restore_model(model, path)
    facts = model_card.weights_facts(path, checkpoint.read_metrics(options.run_dir, path))
    export.export(experiment, model, options.out, facts, lite=options.tflite)
    print(f"exported {path} to {options.out}")
    if options.measure:
        for name, predict in predictors(experiment, model, options).items():
            metrics, *_ = evaluate.evaluate(experiment, predict, checkpoint.step_of(path))
            print(f"{name}: PQ {metrics['PQ'] or 0:.2f} on {metrics['num_images']} images")


def predictors(experiment, model, options):
    """Returns the functions that predict with the model and with each exported file."""
    from kmax_tf import files
    from kmax_tf.inference import export, predictor, tflite

    found = {
        "model": predictor.build_predictor(model, experiment),
        "SavedModel": export.load_predictor(options.out),
    }
    if options.tflite:
        content = files.read_bytes(os.path.join(options.out, tflite.FILE_NAME))
        found["TensorFlow Lite"] = tflite.load_predictor(content)
    return found
