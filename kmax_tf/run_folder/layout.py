"""Paths in a run folder. Training writes the folder, the evaluator writes eval/ and best/."""

import os

from kmax_tf.files import matching


def config(run_dir: str) -> str:
    """The resolved configuration, which the other programs read."""
    return os.path.join(run_dir, "config.gin")


def plan(run_dir: str) -> str:
    """The plan of a training that was started from Python."""
    return os.path.join(run_dir, "plan.gin")


def provenance(run_dir: str) -> str:
    """The code, packages and data of the run."""
    return os.path.join(run_dir, "run.json")


def segments(run_dir: str) -> str:
    """The segments that the crops and the evaluation lose, as lines of text."""
    return os.path.join(run_dir, "segments.txt")


def checkpoints(run_dir: str) -> str:
    """The folder of the training's checkpoints."""
    return os.path.join(run_dir, "checkpoints")


def program(run_dir: str) -> str:
    """The compiled training step, which a restart with PJRT loads."""
    return os.path.join(run_dir, "program.pjrt")


def training(run_dir: str) -> str:
    """The TensorBoard summaries of training."""
    return os.path.join(run_dir, "train")


def evaluation(run_dir: str) -> str:
    """The TensorBoard summaries of the evaluator; it also holds the metrics and pictures."""
    return os.path.join(run_dir, "eval")


def pictures(run_dir: str) -> str:
    """The pictures of the latest evaluated step."""
    return os.path.join(evaluation(run_dir), "pictures")


def baseline(run_dir: str) -> str:
    """The PQ of the trivial baseline on the evaluation split."""
    return os.path.join(evaluation(run_dir), "baseline.json")


def image_counts(run_dir: str, step: int) -> str:
    """The counts of each image at a step, for the bootstrap."""
    return os.path.join(evaluation(run_dir), f"images-{step:08d}.npz")


def metrics(run_dir: str, step: int) -> str:
    """The metrics of a step; the step is done once they exist."""
    return os.path.join(evaluation(run_dir), f"metrics-{step:08d}.json")


def all_metrics(run_dir: str) -> list[str]:
    """The metrics of all evaluated steps, ascending."""
    return matching(evaluation(run_dir), "metrics-*.json")


def latest_metrics(run_dir: str) -> str:
    """A copy of the metrics of the latest evaluated step."""
    return os.path.join(run_dir, "metrics.json")


def metrics_table(run_dir: str) -> str:
    """The metrics of all evaluated steps as one table."""
    return os.path.join(run_dir, "metrics.csv")


def report(run_dir: str) -> str:
    """The report page."""
    return os.path.join(run_dir, "report.html")


def best(run_dir: str) -> str:
    """The folder of the best checkpoint by PQ."""
    return os.path.join(run_dir, "best")


def best_export(run_dir: str) -> str:
    """The export of the best checkpoint."""
    return os.path.join(best(run_dir), "export")


def export(run_dir: str) -> str:
    """The export of the newest checkpoint, for a run without a best one."""
    return os.path.join(run_dir, "export")


def best_note(folder: str) -> str:
    """The step and PQ of the best checkpoint, in `best` and in its export."""
    return os.path.join(folder, "best.json")
