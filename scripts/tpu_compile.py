"""Compiles an experiment's whole training step with the TPU compiler, without a TPU.

scripts/tpu_compile.py --gin_file=gin/experiments/coco_resnet50.gin --topology=v3-32
scripts/tpu_compile.py --all
"""

import json

from kmax_tf import command_line


def parse():
    parser = command_line.Parser(__doc__, optional=["gin_file", "gin", "json"])
    parser.add_argument("--all", action="store_true", help="print a table of all experiments")
    parser.add_argument("--topology", default="v3-32", help="v3-8 or v3-32")
    parser.add_argument(
        "--stablehlo",
        metavar="FILE",
        help="also write one core's step, without sums over cores, for scripts/time_stablehlo.py",
    )
    options = parser.parse_args()
    if options.all == bool(options.gin_file):
        parser.error("give --gin_file, or --all for every experiment")
    return options


def main(options):
    from kmax_tf import config
    from kmax_tf.experiment import Experiment
    from kmax_tf.files import matching, write_atomic
    from kmax_tf.tools import tpu_compile, tpu_report

    if options.all:
        print(tpu_report.HEAD, flush=True)
        for path in matching("gin/experiments", "*.gin"):
            row = tpu_report.table_row(__file__, path, options.gin, options.topology)
            print(row, flush=True)
        return
    experiment = config.load(Experiment, options.gin_file, options.gin)
    if options.stablehlo:
        cores = tpu_compile.topology(options.topology).cores
        write_atomic(options.stablehlo, tpu_compile.portable(experiment, cores))
    report = tpu_report.report(experiment, options.topology)
    print(json.dumps(report) if options.json else tpu_report.text(report))


if __name__ == "__main__":
    command_line.run(main, parse)
