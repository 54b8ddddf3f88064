"""Says what this machine has and what does not fit together; exit status 1 if something does not.

scripts/doctor.py
scripts/doctor.py --gin_file=gin/experiments/demo.gin --run_dir=runs/demo
"""

import argparse
import sys

try:
    from kmax_tf.tools import doctor
except ModuleNotFoundError as missing:
    sys.exit(f"error: no package {missing.name} in {sys.executable}; run scripts/setup_venv")


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--gin_file", help="an experiment whose records are to be found")
    parser.add_argument("--gin", action="append", default=[], help="a binding that overrides")
    parser.add_argument("--data_dir", help="folder of records, in place of the experiment's")
    parser.add_argument("--run_dir", help="folder of the run: can it be written?")
    parser.add_argument("--device", default="auto", help="the device that training will be given")
    return parser.parse_args()


def main():
    rows, problems = doctor.look(parse())
    print(doctor.text(rows, problems))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
