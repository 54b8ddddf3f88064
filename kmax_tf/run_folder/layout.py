"""What lies where in the folder of a run: training writes it, the evaluator writes into eval/."""

import os

import tensorflow as tf


def config(run_dir: str) -> str:
    """The configuration that training resolved; the other programs read it."""
    return os.path.join(run_dir, "config.gin")


def provenance(run_dir: str) -> str:
    """What the run is made with."""
    return os.path.join(run_dir, "run.json")


def training(run_dir: str) -> str:
    """The TensorBoard summaries of training."""
    return os.path.join(run_dir, "train")


def evaluation(run_dir: str) -> str:
    """The TensorBoard summaries of the evaluator, and beside them what follows."""
    return os.path.join(run_dir, "eval")


def pictures(run_dir: str) -> str:
    """The pictures of the latest evaluated step."""
    return os.path.join(evaluation(run_dir), "pictures")


def statistics(run_dir: str, step: int) -> str:
    """The `Statistics` of a step."""
    return os.path.join(evaluation(run_dir), f"images-{step:08d}.npz")


def metrics(run_dir: str, step: int) -> str:
    """The metrics of a step; the step is done once they are there."""
    return os.path.join(evaluation(run_dir), f"metrics-{step:08d}.json")


def all_metrics(run_dir: str) -> list[str]:
    """The metrics of all evaluated steps, ascending."""
    return sorted(tf.io.gfile.glob(os.path.join(evaluation(run_dir), "metrics-*.json")))


def latest_metrics(run_dir: str) -> str:
    """A copy of the metrics of the latest evaluated step."""
    return os.path.join(run_dir, "metrics.json")
