"""Trains an experiment.

scripts/train.py --gin_file=gin/experiments/demo.gin --run_dir=runs/demo
"""

from absl import flags

from kmax_tf import config, runtime, train
from kmax_tf.experiment import Experiment

GIN_FILE = flags.DEFINE_string("gin_file", None, "The experiment.", required=True)
GIN = flags.DEFINE_multi_string("gin", [], "A binding that overrides the file's.")
RUN_DIR = flags.DEFINE_string("run_dir", None, "Folder of the run.", required=True)
DEVICE = flags.DEFINE_string("device", "auto", "auto, cpu, gpu, tpu:NAME or local (a TPU host).")


def main():
    strategy = runtime.strategy(DEVICE.value)
    experiment = config.load(Experiment, GIN_FILE.value, GIN.value)
    train.train(experiment, RUN_DIR.value, strategy)


if __name__ == "__main__":
    runtime.run(main)
