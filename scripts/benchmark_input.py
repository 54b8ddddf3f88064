"""Measures the training input of an experiment on this host.

scripts/benchmark_input.py --gin_file=gin/experiments/coco_resnet50.gin --threads=2
"""

import argparse
import json
import os

from kmax_tf import config, runtime
from kmax_tf.experiment import Experiment
from kmax_tf.tools import benchmark_input


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gin_file", required=True, help="the experiment")
    parser.add_argument("--gin", action="append", default=[], help="a binding that overrides")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="one a core by default")
    parser.add_argument("--batch_size", type=int, default=2, help="images a replica")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each stage")
    parser.add_argument(
        "--accelerator",
        type=float,
        default=benchmark_input.TPU_V3_HOST,
        help="images/s that one host's accelerator takes (default: %(default)s, a TPU v3's)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def main(options):
    runtime.strategy("cpu")
    experiment = config.load(Experiment, options.gin_file, options.gin)
    benchmark = benchmark_input.run(
        experiment, options.threads, options.batch_size, options.seconds
    )
    if options.json:
        print(json.dumps(benchmark.as_json()))
    else:
        print(benchmark_input.text(benchmark, options.accelerator))


if __name__ == "__main__":
    runtime.run(main, parse())
