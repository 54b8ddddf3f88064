"""Converts COCO panoptic 2017 to TFRecord.

    annotations/panoptic_{train,val}2017.json
    annotations/panoptic_{train,val}2017/*.png   unpack the two zip files in annotations/ there
    {train,val,test}2017/*.jpg                   test has no labels

kmax prepare coco --source coco --out data/coco/records [--split train val test]
"""

from kmax_tf.commands.prepare import _conversion


def parse():
    made = _conversion.parser(__doc__, splits=("train", "val", "test"))
    return _conversion.parse(made)


def main(options):
    from data_prep import coco, convert

    convert.run(options, lambda split: coco.read(options.source, split))
