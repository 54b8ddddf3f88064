"""Writes the report of a run anew, or compares two evaluations.

scripts/report.py runs/a                   writes runs/a/report.html
scripts/report.py runs/a runs/b            is b better than a? and writes comparison.html
scripts/report.py runs/a@1000 runs/a@2000  two steps of one run
"""

import argparse
import sys

from kmax_tf.errors import InputError
from kmax_tf.evaluation import compare_runs
from kmax_tf.report import report


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="folder of a run, or folder@step")
    parser.add_argument("other", nargs="?", help="the one to compare with it")
    parser.add_argument("--out", default="comparison.html", help="page of the comparison")
    return parser.parse_args()


def main():
    options = parse()
    if options.other is None:
        print(f"wrote {report.write_report(options.run)}")
        return
    differences = compare_runs.write_comparison(options.run, options.other, options.out)
    print(
        f"PQ of {options.other} less that of {options.run}, {compare_runs.CONFIDENCE} % interval:"
    )
    for group, difference in differences.items():
        value, low, high = (100 * number for number in difference)
        words = compare_runs.verdict(difference)
        print(f"{group:7} {value:+6.2f}  ({low:+.2f} to {high:+.2f})  {words}")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
