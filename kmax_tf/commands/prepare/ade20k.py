"""Converts ADE20K (150 classes: 100 things, 50 stuff) to TFRecord.

    images/{training,validation}/*.jpg
    ade20k_panoptic_{train,val}.json
    ade20k_panoptic_{train,val}/*.png

Mask2Former's prepare_ade20k_pan_seg.py makes the last two from the semantic and the instance
release, as for the official code.

kmax prepare ade20k --source ADEChallengeData2016 --out data/ade20k/records

--semantic needs only the semantic release; each class of an image is then one segment:

    annotations/{training,validation}/*.png   gray or palette: 0 void, k the k-th class
"""

from kmax_tf.commands.prepare import _conversion


def parse():
    made = _conversion.parser(__doc__, splits=("train", "val"))
    made.add_argument(
        "--semantic", action="store_true", help="use the semantic release, one segment per class"
    )
    return _conversion.parse(made)


def main(options):
    from data_prep import ade20k, convert

    convert.run(options, lambda split: ade20k.read(options.source, split, options.semantic))
