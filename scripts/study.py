"""Runs a study: variants of an experiment times seeds, with a table, curves and pictures.

scripts/study.py interaction --seeds 3
scripts/study.py interaction --dataset coco     prints the commands for a TPU v3-32

Studies: interaction, decoders, convergence, drop_query, losses, or a gin file of your own.
Interrupted, the same command goes on where it stopped.
"""

import argparse
import os

from kmax_tf import runtime
from kmax_tf.studies import study, study_report


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("study", help="name, or gin file")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant")
    parser.add_argument("--out", default="runs/studies", help="folder of all studies")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--dataset", choices=["digits", "coco"], default="digits")
    parser.add_argument("--dry_run", action="store_true", help="say what would be run")
    options = parser.parse_args()
    if min(options.seeds, options.jobs) < 1:
        parser.error("--seeds and --jobs are at least 1")
    return options


def main(options):
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


if __name__ == "__main__":
    runtime.run(main, parse())
