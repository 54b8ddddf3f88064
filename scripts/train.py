"""Trains an experiment.

scripts/train.py --gin_file=gin/experiments/demo.gin --run_dir=runs/demo
"""

from absl import flags

from kmax_tf import config, runtime
from kmax_tf.experiment import Experiment
from kmax_tf.training import batch_size, train

GIN_FILE = flags.DEFINE_string("gin_file", None, "The experiment.", required=True)
GIN = flags.DEFINE_multi_string("gin", [], "A binding that overrides the file's.")
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    None,
    "Images a step, of all replicas together, where they are not the experiment's: the learning"
    " rate becomes larger in proportion, warm-up and schedule shorter, so that they last as many"
    " epochs. What really ran is in the run's config.gin.",
)
RUN_DIR = flags.DEFINE_string("run_dir", None, "Folder of the run.", required=True)
ALLOW_CHANGES = flags.DEFINE_bool(
    "allow_changes", False, "Go on with a run that began with another configuration or dataset."
)
DEVICE = flags.DEFINE_string("device", "auto", "auto, cpu, gpu, tpu:NAME or local (a TPU host).")
SERVICE = flags.DEFINE_string(
    "tf_data_service",
    "",
    "grpc://HOST:PORT of the dispatcher of a tf.data service whose workers make the input. With one"
    " worker batches come in the usual order; with more of them each makes whole epochs, whose"
    " batches come as they are ready, so that a resumed run is not exactly the uninterrupted one.",
)


def main():
    strategy = runtime.strategy(DEVICE.value)
    experiment = config.load(Experiment, GIN_FILE.value, GIN.value)
    if BATCH_SIZE.value is not None:
        bindings = GIN.value + batch_size.linear_scaling(experiment, BATCH_SIZE.value)
        experiment = config.load(Experiment, GIN_FILE.value, bindings)
    service = runtime.service_address(SERVICE.value)
    train.train(experiment, RUN_DIR.value, strategy, service, allow_changes=ALLOW_CHANGES.value)


if __name__ == "__main__":
    runtime.run(main)
