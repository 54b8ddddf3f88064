"""Evaluates the checkpoints of a run as training writes them; start it beside scripts/train.py.

scripts/evaluate.py --run_dir=runs/demo
"""

from absl import flags

from kmax_tf import config, runtime
from kmax_tf.evaluation import evaluate
from kmax_tf.experiment import Experiment
from kmax_tf.run_folder import watch

RUN_DIR = flags.DEFINE_string("run_dir", None, "Folder of the run.", required=True)
GIN = flags.DEFINE_multi_string("gin", [], "A binding that overrides the run's config.gin.")
DEVICE = flags.DEFINE_string("device", "auto", "auto, cpu, gpu, tpu:NAME or local (a TPU host).")
ONCE = flags.DEFINE_bool("once", False, "Evaluate one checkpoint, the newest, and stop.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Evaluate this one, and stop.")
WAIT = flags.DEFINE_float("wait", 3600.0, "Seconds to wait for the next checkpoint.", 0)
ORDER = flags.DEFINE_enum("order", "steps", ["steps", "newest"], "Which checkpoint comes next.")


def main():
    once = ONCE.value or CHECKPOINT.value is not None
    gin_file = watch.wait_for_config(RUN_DIR.value, 0 if once else WAIT.value)
    with runtime.strategy(DEVICE.value).scope():
        experiment = config.load(Experiment, gin_file, GIN.value)
        evaluate.evaluate_run(
            experiment,
            RUN_DIR.value,
            once=once,
            checkpoint_path=CHECKPOINT.value,
            wait=WAIT.value,
            newest_first=ORDER.value == "newest",
        )


if __name__ == "__main__":
    runtime.run(main)
