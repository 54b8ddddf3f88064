"""Converts any dataset in the COCO panoptic format to TFRecord.

    images/        JPEG or PNG files; "file_name" may include a folder
    panoptic.json  "images", "annotations" with "segments_info", "categories"
    labels/        PNG of segment ids, id = R + 256 G + 65536 B, 0 void

kmax prepare coco_format --images images --panoptic_json panoptic.json \
    --panoptic_dir labels --out records --split train

Several JSON files may make one split: give as many --images and --panoptic_dir, or one for all.
Pseudo labels of `kmax predict --pseudo_labels` (pseudo_labels.json, pseudo_labels/) are in
this format too.
"""

from kmax_tf.commands.prepare import _conversion


def parse():
    made = _conversion.parser(__doc__)
    made.add_argument("--images", nargs="+", required=True, help="folder of the images")
    made.add_argument("--panoptic_json", nargs="+", required=True, help="annotation file")
    made.add_argument("--panoptic_dir", nargs="+", required=True, help="folder of the id PNGs")
    made.add_argument("--name", help="name of a new dataset; default: the JSON's")
    return _conversion.parse(made)


def main(options):
    from data_prep import coco_format, convert

    sources = options.images, options.panoptic_json, options.panoptic_dir, options.name
    convert.run(options, lambda split: coco_format.read(*sources))
