"""Segments images with an exported model.

kmax predict runs/demo/export photos 'more/*.jpg' clip.mp4 --out predictions
"""

import shlex

from kmax_tf import command_line


def parse():
    parser = command_line.Parser(__doc__)
    parser.add_argument("words", nargs="*", metavar="EXPORT IMAGES", help="as the flags below")
    parser.add_argument("--export", help="folder of the export")
    parser.add_argument(
        "--images", action="append", default=[], help="image, video, folder or glob; repeatable"
    )
    parser.add_argument("--out", default="predictions", help="folder for the results")
    parser.add_argument(
        "--batch_size", type=int, help="images or tiles per batch; default: 8, but 1 image on a CPU"
    )
    parser.add_argument(
        "--cluster_assignments", action="store_true", help="also draw each decoder's clusters"
    )
    parser.add_argument("--gt_json", help="ground truth in COCO panoptic format, drawn as well")
    parser.add_argument(
        "--gt_folder", help="PNG files of the ground truth; default: the JSON's path minus .json"
    )
    parser.add_argument(
        "--pseudo_labels",
        type=float,
        nargs="?",
        const=0.7,
        metavar="CONFIDENCE",
        help="also write segments of this confidence (0 to 1; %(const)s if omitted) as labels",
    )
    options = parser.parse_args()
    if not options.export and options.words:
        options.export = options.words.pop(0)
    options.images += options.words
    if not (options.export and options.images):
        parser.error("give the folder of an export, then images")
    return options


def main(options):
    from kmax_tf import predict
    from kmax_tf.predict import image_sources
    from kmax_tf.predict.output_files import Labels

    root, sources = image_sources.find(options.images)
    labels = None
    if options.gt_json:
        labels = Labels(options.gt_json, options.gt_folder or options.gt_json.removesuffix(".json"))
    predict.write_predictions(
        predict.load(options.export),
        sources,
        options.out,
        batch_size=options.batch_size,
        cluster_assignments=options.cluster_assignments,
        confidence=options.pseudo_labels,
        labels=labels,
    )
    if options.pseudo_labels is not None:
        images, labels = shlex.quote(root), shlex.quote(f"{options.out}/pseudo_labels")
        print(
            "convert the pseudo labels to records with\n"
            f"  kmax prepare coco_format --split=pseudo --out=RECORDS --images={images} \\\n"
            f"    --panoptic_json={labels}.json --panoptic_dir={labels}"
        )
