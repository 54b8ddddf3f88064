"""Scores predictions in COCO panoptic format, of any system, with the official metric.

scripts/panoptic_quality.py --gt_json=panoptic_val2017.json --pred_json=predictions.json
"""

import argparse
import json
import sys

from kmax_tf.errors import InputError
from kmax_tf.evaluation.metrics import GROUPS, panoptic_quality


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    # The longer names are those of the official script.
    for name, what in (("gt", "ground truth"), ("pred", "predictions")):
        parser.add_argument(f"--{name}_json", f"--{name}_json_file", required=True, help=what)
        parser.add_argument(
            f"--{name}_folder", help=f"PNG files of the {what}; the JSON's path without .json"
        )
    parser.add_argument("--json", action="store_true", help="print fractions, and every class")
    return parser.parse_args()


def table(quality):
    """The table of the official script, in percent."""
    lines = [f"{'':10}|{'PQ':>6} {'SQ':>6} {'RQ':>6} {'N':>5}", "-" * 37]
    for group in GROUPS:
        figures = "".join(f"{100 * quality[group][key]:6.1f} " for key in ("pq", "sq", "rq"))
        lines.append(f"{group:10}|{figures}{quality[group]['n']:5d}")
    return "\n".join(lines)


def main():
    options = parse()
    quality = panoptic_quality(
        options.gt_json,
        options.gt_folder or options.gt_json.removesuffix(".json"),
        options.pred_json,
        options.pred_folder or options.pred_json.removesuffix(".json"),
    )
    print(json.dumps(quality) if options.json else table(quality))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
