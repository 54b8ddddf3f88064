"""Evaluates the checkpoints of a run as training writes them; start it beside scripts/train.py.

scripts/evaluate.py --run_dir=runs/demo
"""

from absl import flags

from kmax_tf import config, evaluate, runtime
from kmax_tf.experiment import Experiment

RUN_DIR = flags.DEFINE_string("run_dir", None, "Folder of the run.", required=True)
GIN = flags.DEFINE_multi_string("gin", [], "A binding that overrides the run's config.gin.")
DEVICE = flags.DEFINE_string("device", "auto", "auto, cpu, gpu, tpu:NAME or local (a TPU host).")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Evaluate this one alone.")
WAIT = flags.DEFINE_float("wait", 3600.0, "Seconds to wait for the next checkpoint.", 0)


def main():
    gin_file = evaluate.wait_for_config(RUN_DIR.value, WAIT.value)
    with runtime.strategy(DEVICE.value).scope():
        experiment = config.load(Experiment, gin_file, GIN.value)
        evaluate.evaluate_run(
            experiment, RUN_DIR.value, checkpoint_path=CHECKPOINT.value, wait=WAIT.value
        )


if __name__ == "__main__":
    runtime.run(main)
