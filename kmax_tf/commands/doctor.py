"""Checks packages, devices, the run folder and the records; exit status 1 if there are problems.

kmax doctor
kmax doctor --gin_file=gin/experiments/demo.gin --run_dir=runs/demo
"""

import sys

from kmax_tf import command_line


def parse():
    optional = ["gin_file", "gin", "run_dir", "device"]
    parser = command_line.Parser(__doc__, optional=optional)
    parser.add_argument("--data_dir", help="folder of records; default: the experiment's")
    return parser.parse_args()


def main(options):
    from kmax_tf.tools import doctor

    rows, problems = doctor.examine(options)
    print(doctor.text(rows, problems))
    sys.exit(bool(problems))
