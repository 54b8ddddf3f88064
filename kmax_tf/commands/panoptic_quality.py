"""Scores predictions of any system in COCO panoptic format with the official metric.

kmax panoptic_quality --gt_json=panoptic_val2017.json --pred_json=predictions.json
"""

import json

from kmax_tf import command_line


def parse():
    parser = command_line.Parser(__doc__, optional=["json"])
    # The longer names are those of the official script.
    for name, what in (("gt", "ground truth"), ("pred", "predictions")):
        parser.add_argument(f"--{name}_json", f"--{name}_json_file", required=True, help=what)
        parser.add_argument(
            f"--{name}_folder",
            help=f"PNG files of the {what}; default: the JSON's path minus .json",
        )
    return parser.parse_args()


def table(quality):
    """Returns the table of the official script, in percent."""
    from kmax_tf.evaluation.metrics import GROUPS

    lines = [f"{'':10}|{'PQ':>6} {'SQ':>6} {'RQ':>6} {'N':>5}", "-" * 37]
    for group in GROUPS:
        figures = "".join(f"{100 * quality[group][key]:6.1f} " for key in ("pq", "sq", "rq"))
        lines.append(f"{group:10}|{figures}{quality[group]['n']:5d}")
    return "\n".join(lines)


def main(options):
    from kmax_tf.evaluation.coco_score import panoptic_quality

    quality = panoptic_quality(
        options.gt_json,
        options.gt_folder or options.gt_json.removesuffix(".json"),
        options.pred_json,
        options.pred_folder or options.pred_json.removesuffix(".json"),
    )
    print(json.dumps(quality) if options.json else table(quality))
