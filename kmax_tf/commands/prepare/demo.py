"""Generates *panoptic digits*, the built-in dataset, and its records.

Real handwritten digits are things over four procedural textures, which are stuff. At level "cards"
each digit lies on an opaque rounded card, which is its mask. At level "strokes", which is hard, the
mask is the bare digit. Some images hold a crowd: small things of one class in one segment.

kmax prepare demo --out data/panoptic_digits

OUT gets train/, panoptic_train/ and panoptic_train.json in COCO panoptic format, the same of val,
and records/, which training reads.
"""

from kmax_tf import command_line


def parse():
    made = command_line.Parser(__doc__, optional=["workers"])
    made.add_argument("--out", required=True, help="folder for the dataset")
    for name, count, images in (
        ("num_train", 6000, "training images"),
        ("num_val", 200, "validation images"),
        ("num_holdout", 0, "images of held-out training digits"),
    ):
        made.add_argument(f"--{name}", type=int, default=count, help=f"number of {images}")
    made.add_argument(
        "--level", choices=("cards", "strokes"), default="cards", help="cards is easy"
    )
    made.add_argument("--seed", type=int, default=0, help="seed of the images")
    return made.parse_args()


def main(options):
    from data_prep import demo

    demo.make(**vars(options))
    demo.convert_splits(options.out, options.workers)
    counts = f"{options.num_train} train, {options.num_val} val, {options.num_holdout} holdout"
    print(f"{options.out}: {counts}; records/ is for training")
