"""Measures the inference speed of a model on this device.

scripts/benchmark_model.py --gin_file=gin/experiments/coco_resnet50.gin --input_size 641 641
scripts/benchmark_model.py runs/demo/export
"""

import dataclasses
import json

from kmax_tf import command_line


def parse():
    optional = ["gin_file", "gin", "input_size", "json"]
    parser = command_line.Parser(__doc__, optional=optional)
    parser.add_argument("export", nargs="?", help="folder of an export, instead of --gin_file")
    parser.add_argument("--batch_size", type=int, default=1, help="images")
    parser.add_argument("--seconds", type=float, default=20.0, help="time to measure")
    parser.add_argument(
        "--tpu", action="store_true", help="also query the TPU compiler; needs --gin_file"
    )
    options = parser.parse_args()
    if bool(options.export) == bool(options.gin_file):
        parser.error("give the folder of an export, or --gin_file")
    if options.export and (options.gin or options.input_size or options.tpu):
        parser.error("--gin, --input_size and --tpu need --gin_file; an export is fixed")
    return options


def main(options):
    from kmax_tf import config
    from kmax_tf.experiment import Experiment
    from kmax_tf.tools import benchmark_model

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
        tpu = {"tpu": estimate._replace(program="")._asdict()} if estimate else {}
        print(json.dumps(benchmark.as_json() | tpu))
    else:
        print(benchmark_model.text(benchmark, estimate))


if __name__ == "__main__":
    command_line.run(main, parse)
