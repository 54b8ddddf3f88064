"""Converts images with a folder of masks each, as of the Data Science Bowl 2018, to TFRecord.

    own/ID/images/NAME.png    one image
    own/ID/masks/*.png        a mask for each object, whose pixels are neither black nor transparent

kmax prepare mask_folders --source own --out data/own --thing nucleus

All objects are of one class. Where masks overlap, the smallest object wins. Images without masks
are left out and counted. The validation is a random share of the images, or --val_source.

OUT gets records/, validation/ with contact sheets and reports, and the labels in COCO panoptic
format: train.json, train_labels/, val.json and val_labels/.
"""

from kmax_tf.commands.prepare import _own_dataset


def parse():
    made = _own_dataset.parser(__doc__)
    made.add_argument("--source", required=True, help="folder with a folder for each image")
    made.add_argument("--val_source", help="such a folder for the validation")
    made.add_argument("--thing", default="object", help="name of the class of the objects")
    return made.parse_args()


def main(options):
    from data_prep import mask_folders

    _own_dataset.run(options, ("source", "val_source"), mask_folders.read)
