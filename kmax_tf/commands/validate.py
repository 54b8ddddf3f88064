"""Lists every problem of a dataset in one run; exit status 1 if there are errors.

kmax validate --images train2017 --panoptic_json train.json --panoptic_dir train
kmax validate --records data/coco/records --split train
"""

import sys

from kmax_tf import command_line


def parse():
    parser = command_line.Parser(__doc__, optional=["workers"])
    parser.add_argument("--images", help="folder of the images")
    parser.add_argument("--panoptic_json", help="annotation file in COCO panoptic format")
    parser.add_argument("--panoptic_dir", help="folder of the id PNGs")
    parser.add_argument("--records", help="folder of converted records, instead of the three above")
    parser.add_argument("--split", help="split of the records")
    parser.add_argument(
        "--dataset", help="dataset of records without dataset.json, for example coco"
    )
    parser.add_argument("--out", default="validation", help="folder for the report")
    options = parser.parse_args()
    raw = options.images, options.panoptic_json, options.panoptic_dir
    converted = options.records and options.split
    if not ((converted and not any(raw)) or (all(raw) and not options.records)):
        parser.error("give --records and --split, or --images, --panoptic_json and --panoptic_dir")
    return options


def main(options):
    from data_prep import validate

    if options.records:
        dataset = validate.converted(options.records, options.split, options.dataset)
    else:
        dataset = validate.raw(options.images, options.panoptic_json, options.panoptic_dir)
    text, errors = validate.validate(dataset, options.out, options.workers)
    print(text)
    print(f"{errors} errors; all problems and overlays are in {options.out}")
    sys.exit(errors > 0)
