"""Says in plain words what is wrong with a dataset, all of it at once; exit status 1 for errors.

scripts/validate_dataset.py --images train2017 --panoptic_json train.json --panoptic_dir train
scripts/validate_dataset.py --records data/coco/records --split train
"""

import argparse
import sys

from data_prep import validate
from kmax_tf import runtime
from kmax_tf.errors import InputError


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--images", help="folder of the images")
    parser.add_argument("--panoptic_json", help="annotation file in COCO panoptic format")
    parser.add_argument("--panoptic_dir", help="folder of the id PNGs")
    parser.add_argument("--records", help="folder of converted records")
    parser.add_argument("--split", help="of the records")
    parser.add_argument("--dataset", help="of records without dataset.json, as coco")
    parser.add_argument("--out", default="validation", help="folder for the report (validation)")
    parser.add_argument("--workers", type=int, help="number of processes (one a core)")
    return parser.parse_args()


def main(options):
    raw = options.images, options.panoptic_json, options.panoptic_dir
    if options.records and options.split and not any(raw):
        dataset = validate.converted(options.records, options.split, options.dataset)
    elif all(raw) and not options.records:
        dataset = validate.raw(*raw)
    else:
        raise InputError(
            "give --records and --split, or --images, --panoptic_json and --panoptic_dir"
        )
    text, errors = validate.validate(dataset, options.out, options.workers)
    print(text)
    print(f"{errors} errors; all problems and overlays are in {options.out}")
    sys.exit(errors > 0)


if __name__ == "__main__":
    runtime.run(main, parse())
