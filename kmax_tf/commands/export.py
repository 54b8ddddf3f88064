"""Exports a checkpoint of a run as a SavedModel.

kmax export --run_dir=runs/demo --out=runs/demo/export
"""

import os

from kmax_tf import command_line


def parse():
    parser = command_line.Parser(__doc__, ["run_dir"], ["checkpoint"])
    parser.add_argument("--out", required=True, help="folder of the export")
    parser.add_argument("--precision", help="float32 or mixed_bfloat16; default: the run's")
    parser.add_argument("--onnx", action="store_true", help="also write ONNX")
    parser.add_argument(
        "--tflite", action="store_true", help="also write TensorFlow Lite with 8-bit weights"
    )
    parser.add_argument(
        "--measure", action="store_true", help="print the PQ of the model and of each file"
    )
    return parser.parse_args()


def main(options):
    formats = chosen_formats(options)
    from kmax_tf.errors import InputError
    from kmax_tf.evaluation import evaluate
    from kmax_tf.inference import export
    from kmax_tf.run_folder import checkpoint, layout

    best = layout.best_export(options.run_dir)
    if os.path.normpath(options.out) == os.path.normpath(best):
        raise InputError(f"{best}: is the evaluator's; choose another --out")
    path = options.checkpoint or checkpoint.newest(options.run_dir)
    kind = dict(precision=options.precision, formats=formats)
    experiment, model = export.export_checkpoint(options.run_dir, path, options.out, **kind)
    if options.measure:
        for name, predict in predictors(experiment, model, options.out, formats).items():
            metrics, *_ = evaluate.evaluate(experiment, predict, checkpoint.step_of(path))
            print(f"{name}: PQ {metrics['PQ'] or 0:.2f} on {metrics['num_images']} images")


def chosen_formats(options):
    """Returns the `FileFormat`s to write; InputError if the extra of one is not installed."""
    found = []
    if options.onnx:
        from kmax_tf.inference.onnx import ONNX

        found.append(ONNX)
    if options.tflite:
        from kmax_tf.inference.tflite import TFLITE

        found.append(TFLITE)
    return found


def predictors(experiment, model, folder, formats):
    """Returns the functions that predict with the model and with each exported file."""
    from kmax_tf import files
    from kmax_tf.inference import export, predictor

    found = {
        "model": predictor.build_predictor(model, experiment),
        "SavedModel": export.load_predictor(folder, experiment.postprocess.at_image_size),
    }
    for kind in formats:
        content = files.read_bytes(os.path.join(folder, kind.file_name))
        found[kind.name] = kind.load_predictor(content)
    return found
