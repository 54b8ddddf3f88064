"""Converts images with label images, whose pixels are numbers of objects, to TFRecord.

    own/images/NAME.png    an image
    own/labels/NAME.png    or NAME_label.tif ...: gray, 0 no object, 1 to n the objects

kmax prepare label_images --images own/images --labels own/labels --out data/own --thing cell

PNG of 8 or 16 bits, or TIFF of 8, 16 or 32. In a PNG with a palette, 255 is void, as VOC and
labelme write it. All objects are of one class. The validation is a random share of the images, or
--val_images and --val_labels.

OUT gets records/, validation/ with contact sheets and reports, and the labels in COCO panoptic
format: train.json, train_labels/, val.json and val_labels/.
"""

from kmax_tf.commands.prepare import _own_dataset


def parse():
    made = _own_dataset.parser(__doc__)
    _own_dataset.add_folders(made)
    made.add_argument("--thing", default="object", help="name of the class of the objects")
    return made.parse_args()


def main(options):
    from data_prep import label_images

    _own_dataset.run(options, _own_dataset.FOLDERS, label_images.read)
