"""Measures time, memory and disk of the programs on a dataset of COCO's size.

scripts/benchmark_scale.py
scripts/benchmark_scale.py --source=coco --images=1000
"""

from kmax_tf import command_line


def parse():
    parser = command_line.Parser(__doc__)
    parser.add_argument(
        "--source", help="folder in COCO's layout that has the pictures; default: drawn ones"
    )
    parser.add_argument(
        "--out", default=".", help="folder for what is made, and removed at the end"
    )
    parser.add_argument("--images", type=int, help="training images; default: 118,287, as COCO has")
    return parser.parse_args()


def main(options):
    from kmax_tf.tools import benchmark_scale

    images = options.images or benchmark_scale.TRAIN
    for line in benchmark_scale.run(options.out, options.source, images):
        print(line, flush=True)


if __name__ == "__main__":
    command_line.run(main, parse)
