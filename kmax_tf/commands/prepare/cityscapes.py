"""Converts Cityscapes (19 training classes) to TFRecord.

    gtFine/cityscapes_panoptic_{train,val}_trainId.json
    gtFine/cityscapes_panoptic_{train,val}_trainId/*.png
    leftImg8bit/{train,val,test}/<city>/*_leftImg8bit.png  test has no labels

The official script makes gtFine/ (`pip install cityscapesscripts`):

    CITYSCAPES_DATASET=cityscapes csCreatePanopticImgs --use-train-id

kmax prepare cityscapes --source cityscapes --out data/cityscapes/records \
    [--split train val test]
"""

from kmax_tf.commands.prepare import _conversion


def parse():
    made = _conversion.parser(__doc__, splits=("train", "val", "test"))
    return _conversion.parse(made)


def main(options):
    from data_prep import cityscapes, convert

    convert.run(options, lambda split: cityscapes.read(options.source, split))
