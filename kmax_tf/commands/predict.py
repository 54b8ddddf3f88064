"""Segments images with an exported model.

kmax predict runs/demo/export photos 'more/*.jpg' clip.mp4 --out predictions
"""

import shlex

from kmax_tf import command_line


def parse():
    parser = command_line.Parser(__doc__)
    parser.add_argument(
        "words", nargs="*", metavar="EXPORT IMAGES", help="same as --export and --images"
    )
    parser.add_argument("--export", help="folder of the export")
    parser.add_argument(
        "--images", action="append", default=[], help="image, video, folder or glob; repeatable"
    )
    parser.add_argument("--out", default="predictions", help="folder for the results")
    parser.add_argument(
        "--batch_size",
        type=command_line.positive,
        help="images or tiles per batch; default: 8, but 1 image on a CPU",
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
    if options.gt_json and not options.cluster_assignments:
        parser.error("--gt_json needs --cluster_assignments")
    if options.gt_folder and not options.gt_json:
        parser.error("--gt_folder has the PNG files of --gt_json: add that, too")
    if options.pseudo_labels is not None and not 0 <= options.pseudo_labels <= 1:
        parser.error("--pseudo_labels must be 0 to 1")
    if not (options.export and options.images):
        parser.error("give the folder of an export, then images")
    return options


def main(options):
    from kmax_tf import predict
    from kmax_tf.predict import image_sources, output_files

    root, sources = image_sources.find(options.images, output_files.earlier(options.out))
    if options.pseudo_labels is not None:
        image_sources.check_recordable(root, sources)
    segmenter, labels = predict.load(options.export), None
    if options.gt_json:
        folder = options.gt_folder or options.gt_json.removesuffix(".json")
        labels = output_files.Labels(options.gt_json, folder, segmenter.categories)
    predict.write_predictions(
        segmenter,
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
