"""Runs a study: variants of an experiment times seeds, with a table, curves and pictures.

kmax study interaction --seeds 6
kmax study dual_path --dataset coco       prints the commands for a TPU v3-32

The studies are interaction, dual_path, decoders, drop_query, losses, or a gin file of your own.
The same command resumes an interrupted study.
"""

import os

from kmax_tf import command_line


def parse():
    parser = command_line.Parser(__doc__)
    parser.add_argument("study", help="name, or path of a gin file")
    parser.add_argument("--seeds", type=command_line.positive, default=3, help="runs per variant")
    parser.add_argument("--out", default="runs/studies", help="folder of all studies")
    parser.add_argument("--jobs", type=command_line.positive, default=1, help="parallel runs")
    parser.add_argument(
        "--dataset",
        choices=["digits", "coco"],
        default="digits",
        help="digits runs here, coco prints commands",
    )
    parser.add_argument("--dry_run", action="store_true", help="print the planned runs")
    return parser.parse_args()


def main(options):
    from kmax_tf.studies import study, study_report

    chosen = study.load(options.study)
    name = os.path.splitext(os.path.basename(options.study))[0]
    if options.dataset == "coco":
        print("\n".join(study.commands(name, chosen, options.seeds)))
    elif options.dry_run:
        print(study_report.plan(chosen, options.out, options.seeds))
    else:
        result = study.run(name, chosen, options.out, options.seeds, options.jobs)
        print(study_report.text(result))
        print(f"wrote {study_report.write(result, options.out)}")
