"""Compares our code with golden numbers of the official code; exit status 1 if any case fails.

scripts/check_parity.py
scripts/check_parity.py FOLDER --part=model --case=coco_r50 --json
"""

import json
import sys

from kmax_tf import command_line


def parse():
    parser = command_line.Parser(__doc__, optional=["json"])
    parser.add_argument(
        "folder",
        nargs="?",
        help="golden numbers, PART/CASE.json and .npz; default: tests/golden of the checkout",
    )
    parser.add_argument(
        "--part",
        help="this part alone: model, loss, postprocess, augment, optimizer, port or encoders",
    )
    parser.add_argument("--case", help="this case alone")
    return parser.parse_args()


def main(options):
    from kmax_tf.parity import cases, check

    check.prepare()
    results = check.check(options.folder or cases.FOLDER, options.part, options.case)
    print(json.dumps(check.as_json(results), indent=1) if options.json else check.table(results))
    sys.exit(not all(result.passed for result in results))


if __name__ == "__main__":
    command_line.run(main, parse)
