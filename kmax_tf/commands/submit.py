"""Predicts a split and writes the files for the test servers of COCO or Cityscapes.

kmax submit --run_dir=runs/coco --split=test --out=panoptic_test-dev2017_kmax_results.zip
kmax submit --run_dir=runs/cityscapes --split=test --out=cityscapes_results
"""

import dataclasses

from kmax_tf import command_line


def parse():
    parser = command_line.Parser(__doc__, ["run_dir"], ["checkpoint", "device"])
    parser.add_argument("--split", help="split of the records; default: the evaluation's")
    parser.add_argument("--out", required=True, help="NAME.zip, or a folder for Cityscapes")
    parser.add_argument("--labels", help="gtFine folder of the split: also print the official AP")
    return parser.parse_args()


def main(options):
    from kmax_tf import config, runtime
    from kmax_tf.data import datasets
    from kmax_tf.data.records import reader
    from kmax_tf.errors import InputError
    from kmax_tf.evaluation import submission
    from kmax_tf.experiment import Experiment
    from kmax_tf.inference import predictor
    from kmax_tf.run_folder import checkpoint, layout

    with runtime.strategy(options.device).scope():
        experiment = config.load(Experiment, layout.config(options.run_dir))
        experiment = dataclasses.replace(
            experiment, evaluation_split=options.split or experiment.evaluation_split
        )
        dataset, official = experiment.dataset, datasets.load("cityscapes")
        is_cityscapes = datasets.same_classes(dataset.categories, official.categories)
        if options.labels and not is_cityscapes:
            raise InputError("--labels is for Cityscapes' 19 classes; kmax evaluate scores others")
        labels = []
        if options.labels:
            count = reader.count(predictor.evaluation_records(experiment))
            split = experiment.evaluation_split
            labels = submission.find_labels(options.labels, options.out, split, count)
        path = options.checkpoint or checkpoint.newest(options.run_dir)
        model = experiment.build_evaluation_model()
        checkpoint.restore_model(model, path, dataset)
        write = submission.write_cityscapes if is_cityscapes else submission.write_coco
        write(experiment, predictor.build_predictor(model, experiment), options.out)
    print(f"wrote the predictions of {path} to {options.out}")
    if labels:
        scores = submission.cityscapes_average_precision(options.out, labels)
        print(f"Cityscapes AP {100 * scores['AP']:.1f}  AP50 {100 * scores['AP50']:.1f}")
