"""Writes the report of a run, or compares two evaluations.

kmax report runs/a                   writes runs/a/report.html
kmax report runs/a runs/b            compares two runs in comparison.html
kmax report runs/a@1000 runs/a@2000  compares two steps of one run
"""

from kmax_tf import command_line


def parse():
    parser = command_line.Parser(__doc__)
    parser.add_argument("run", help="folder of a run; FOLDER@STEP if two are compared")
    parser.add_argument("other", nargs="?", help="the run or FOLDER@STEP to compare with it")
    parser.add_argument("--out", help="page of the comparison; default: comparison.html")
    options = parser.parse_args()
    if options.out and not options.other:
        parser.error("--out needs two runs: the report of one run is in its folder")
    return options


def main(options):
    from kmax_tf.evaluation import compare_runs
    from kmax_tf.report import report

    if options.other is None:
        print(f"wrote {report.write_report(options.run)}")
        return
    out = options.out or "comparison.html"
    differences = compare_runs.write_comparison(options.run, options.other, out)
    print(f"PQ of {options.other} minus PQ of {options.run}, {compare_runs.CONFIDENCE} % interval:")
    for group, difference in differences.items():
        value, low, high = (100 * number for number in difference)
        words = compare_runs.verdict(difference)
        print(f"{group:7} {value:+6.2f}  ({low:+.2f} to {high:+.2f})  {words}")
    print(f"wrote {out}")
