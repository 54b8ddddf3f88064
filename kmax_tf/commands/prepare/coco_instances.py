"""Converts objects in COCO's instance format, polygons and RLE, to TFRecord.

    own/images/       images; "file_name" may include a folder
    own/objects.json  "images", "annotations" with "segmentation", "categories"

kmax prepare coco_instances --images own/images --json own/objects.json --out data/own

All categories are things, except empty ones that only group others, such as Roboflow's first, and
labelme's "_background_". Where objects overlap, the smaller one wins; crowd always loses. Images
without objects are left out and counted. The validation is a random share of the images, or
--val_images and --val_json.

OUT gets records/, validation/ with contact sheets and reports, and the labels in COCO panoptic
format: train.json, train_labels/, val.json and val_labels/.
"""

from kmax_tf.commands.prepare import _own_dataset


def parse():
    made = _own_dataset.parser(__doc__)
    made.add_argument("--images", required=True, help="folder of the images")
    made.add_argument("--json", required=True, help="annotation file in COCO's instance format")
    made.add_argument("--val_images", help="folder of the images of the validation")
    made.add_argument("--val_json", help="annotation file of the validation")
    return made.parse_args()


def main(options):
    from data_prep import coco_instances

    inputs = "images", "json", "val_images", "val_json"
    _own_dataset.run(options, inputs, coco_instances.read)
