"""Compiles an experiment's whole training step with the TPU compiler, without a TPU.

scripts/tpu_compile.py --gin_file=gin/experiments/coco_resnet50.gin --topology=v5e-16
scripts/tpu_compile.py --gin_file=gin/experiments/coco_resnet50.gin --topology v3-32 v6e-16
scripts/tpu_compile.py --all
"""

import json
import os

from kmax_tf import command_line


def parse():
    parser = command_line.Parser(__doc__, optional=["gin_file", "gin", "json"])
    parser.add_argument(
        "--all",
        action="store_true",
        help="print a table of all experiments, by default on 16 chips of each generation",
    )
    parser.add_argument(
        "--topology",
        nargs="+",
        metavar="SLICE",
        help="one or more of v3-N, v4-N, v5e-N, v5p-N, v6e-N, such as v5e-16; default: v3-32;"
        " several print a table",
    )
    parser.add_argument(
        "--batch_size", type=int, help="images per step, with the schedule scaled as in train.py"
    )
    parser.add_argument(
        "--by_part",
        action="store_true",
        help="also print the memory traffic of each part, for one slice",
    )
    options = parser.parse_args()
    if options.all == bool(options.gin_file):
        parser.error("give --gin_file, or --all for every experiment")
    if options.all or len(options.topology or [""]) > 1:
        for flag in ("json", "by_part"):
            if getattr(options, flag):
                parser.error(f"--{flag} takes one experiment and one slice")
    return options


def main(options):
    from kmax_tf.files import GIN_ROOT, matching
    from kmax_tf.tools import tpu_chips, tpu_report

    slices = options.topology or (tpu_chips.SIXTEEN_CHIPS if options.all else ["v3-32"])
    for name in slices:
        tpu_chips.parse(name)  # a mistake is found before minutes of compilation
    if len(slices) == 1 and not options.all:
        report_one(options, slices[0])
        return
    flags = [f"--gin={binding}" for binding in options.gin]
    if options.batch_size is not None:
        flags.append(f"--batch_size={options.batch_size}")
    print(tpu_report.HEAD, flush=True)
    experiments = os.path.join(GIN_ROOT, "gin/experiments")
    for path in matching(experiments, "*.gin") if options.all else [options.gin_file]:
        for name in slices:
            print(tpu_report.table_row(__file__, path, name, flags), flush=True)


def report_one(options, accelerator):
    from kmax_tf.tools import hlo_traffic, tpu_report
    from kmax_tf.training import batch_size

    experiment = batch_size.load(options.gin_file, options.gin, batch_size=options.batch_size)
    report = tpu_report.report(experiment, accelerator)
    print(json.dumps(report) if options.json else tpu_report.text(report))
    if options.by_part and not options.json and "bytes_by_part" in report:
        parts = report["bytes_by_part"]
        print(hlo_traffic.table(parts) if parts else "by part: JAX cannot read this program")


if __name__ == "__main__":
    command_line.run(main, parse)
