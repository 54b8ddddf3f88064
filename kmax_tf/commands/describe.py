"""Prints the parts of an experiment's model: parameters, multiply-adds, output shapes.

kmax describe --gin_file=gin/experiments/coco_resnet50.gin --input_size 1281 1281
"""

import json

from kmax_tf import command_line


def parse():
    return command_line.Parser(__doc__, ["gin_file"], ["gin", "input_size", "json"]).parse_args()


def main(options):
    from kmax_tf import config
    from kmax_tf.experiment import Experiment
    from kmax_tf.tools import describe

    experiment = config.load(Experiment, options.gin_file, options.gin)
    size = options.input_size or experiment.evaluation_size
    description = describe.describe(experiment, *size)
    print(json.dumps(description) if options.json else describe.text(description))
