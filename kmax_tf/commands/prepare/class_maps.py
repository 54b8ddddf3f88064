"""Converts images with class maps, whose pixels are numbers of classes, to TFRecord.

    own/images/NAME.png    an image
    own/labels/NAME.png    or NAME_label.png ...: gray, or the indices of a palette

kmax prepare class_maps --images own/images --labels own/labels --out data/own \\
    --classes classes.csv --void 11

classes.csv has the columns value,name,isthing,color; the last two may be missing. Without a table
the names are "class 0", "class 1" ... A class is stuff, one segment in an image. A class with
isthing 1 is a thing: each part whose pixels touch at a side is a segment. Value 255 is void unless
the table has it. The validation is a random share of the images, or --val_images and --val_labels.

OUT gets records/, validation/ with contact sheets and reports, and the labels in COCO panoptic
format: train.json, train_labels/, val.json and val_labels/.
"""

from kmax_tf.commands.prepare import _own_dataset


def parse():
    made = _own_dataset.parser(__doc__, has_background=False)
    _own_dataset.add_folders(made)
    made.add_argument("--classes", metavar="TABLE.csv", help="table of the classes")
    made.add_argument("--void", nargs="+", type=int, default=[], help="values that are void")
    return made.parse_args()


def main(options):
    from data_prep import class_maps

    _own_dataset.run(options, (*_own_dataset.FOLDERS, "classes"), class_maps.read)
