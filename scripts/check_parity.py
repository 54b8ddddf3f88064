"""Compares our code with golden numbers of the official code; exit status 1 if any case fails.

scripts/check_parity.py FOLDER [--part=model|loss|postprocess|augment|optimizer] [--json]
"""

import argparse
import json
import sys

from kmax_tf.errors import InputError
from kmax_tf.parity import check


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="golden numbers: PART/CASE.json and .npz")
    parser.add_argument("--part", choices=list(check.PARTS), help="this part alone")
    parser.add_argument("--case", help="this case alone")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    arguments = parser.parse_args()
    check.prepare()
    try:
        results = check.check(arguments.folder, arguments.part, arguments.case)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(check.as_json(results), indent=1))
    else:
        print(check.table(results))
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
