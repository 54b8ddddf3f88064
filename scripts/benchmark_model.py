"""Measures how fast a model predicts on the device at hand.

scripts/benchmark_model.py --gin_file=gin/experiments/coco_resnet50.gin --input_size 641 641
scripts/benchmark_model.py runs/demo/export
"""

import argparse
import dataclasses
import json

from kmax_tf import config, runtime
from kmax_tf.experiment import Experiment
from kmax_tf.tools import benchmark_model


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("export", nargs="?", help="folder of an export")
    parser.add_argument("--gin_file", help="or an experiment, with random weights")
    parser.add_argument("--gin", action="append", default=[], help="a binding that overrides")
    parser.add_argument(
        "--input_size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="of an experiment, in pixels; the evaluation's if not given",
    )
    parser.add_argument("--batch_size", type=int, default=1, help="images")
    parser.add_argument("--seconds", type=float, default=20.0, help="to measure for")
    parser.add_argument(
        "--tpu", action="store_true", help="also ask the TPU compiler (an experiment alone)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if bool(options.export) == bool(options.gin_file):
        parser.error("give the folder of an export, or --gin_file")
    if options.export and (options.gin or options.input_size or options.tpu):
        parser.error("an export is as it is; --gin, --input_size and --tpu go with --gin_file")
    return options


def main(options):
    experiment, estimate = None, None
    if options.gin_file:
        experiment = config.load(Experiment, options.gin_file, options.gin)
        size = options.input_size or experiment.evaluation_size
        experiment = dataclasses.replace(experiment, evaluation_size=tuple(size))
        predict, size = benchmark_model.of_experiment(experiment)
    else:
        predict, size = benchmark_model.of_export(options.export)
    benchmark = benchmark_model.run(predict, size, options.batch_size, options.seconds)
    if options.tpu:
        estimate = benchmark_model.tpu_estimate(experiment, options.batch_size)
    if options.json:
        tpu = {"tpu": estimate._asdict()} if estimate else {}
        print(json.dumps(benchmark.as_json() | tpu))
    else:
        print(benchmark_model.text(benchmark, estimate))


if __name__ == "__main__":
    runtime.run(main, parse())
