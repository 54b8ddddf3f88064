"""Prints what the model of an experiment is made of.

scripts/describe.py --gin_file=gin/experiments/coco_resnet50.gin --input_size 1281 1281
"""

import argparse
import json

from kmax_tf import config, runtime
from kmax_tf.experiment import Experiment
from kmax_tf.tools import describe


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gin_file", required=True, help="the experiment")
    parser.add_argument("--gin", action="append", default=[], help="a binding that overrides")
    parser.add_argument(
        "--input_size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="in pixels; the evaluation's if not given",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def main(options):
    experiment = config.load(Experiment, options.gin_file, options.gin)
    size = options.input_size or experiment.evaluation_size
    description = describe.describe(experiment, *size)
    print(json.dumps(description) if options.json else describe.text(description))


if __name__ == "__main__":
    runtime.run(main, parse())
