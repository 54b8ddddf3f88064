"""Measures the training input of an experiment on this host.

scripts/benchmark_input.py --gin_file=gin/experiments/coco_resnet50.gin --threads=2
"""

import json

from kmax_tf import command_line, host

TPU_V3_HOST = 22.0  # images/s: 8 cores, each 2 images in 0.72 s (official COCO step, compiled)


def parse():
    parser = command_line.Parser(__doc__, ["gin_file"], ["gin", "json"])
    parser.add_argument("--threads", type=int, default=host.cores(), help="of tf.data")
    parser.add_argument("--batch_size", type=int, default=2, help="images per replica")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each stage")
    parser.add_argument(
        "--accelerator",
        type=float,
        default=TPU_V3_HOST,
        metavar="RATE",
        help="images/s that one host's accelerators take",
    )
    return parser.parse_args()


def main(options):
    from kmax_tf import config, runtime
    from kmax_tf.experiment import Experiment
    from kmax_tf.tools import benchmark_input

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
    command_line.run(main, parse)
