"""The experiment: the parts and numbers that gin binds, shared by all programs."""

import dataclasses
import math
import numbers
import os
from collections.abc import Callable
from typing import Any

import tf_keras

from kmax_tf import runtime
from kmax_tf.data.datasets import Dataset
from kmax_tf.data.training_input import TrainingInput
from kmax_tf.errors import InputError, check_size
from kmax_tf.loss.criterion import Criterion
from kmax_tf.model.kmax_decoder import Prediction
from kmax_tf.model.postprocess import Panoptic, PostProcess
from kmax_tf.predict.tiles import Tiles

# What makes each part. A criterion of one's own has no common class.
PARTS: dict[str, tuple[Any, str]] = {
    "dataset": (Dataset, "@datasets.load()"),
    "training_input": (TrainingInput, "@training_input.TrainingInput()"),
    "criterion": (object, "@criterion.Criterion()"),
    "postprocess": (PostProcess, "@postprocess.PostProcess()"),
    "tiles": (Tiles | None, "@tiles.Tiles()"),
}
# Each counts something.
POSITIVE = ("accumulation", "batch_size", "checkpoint_interval", "checkpoints_kept")
POSITIVE += ("evaluation_batch_size", "steps", "steps_per_loop")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts and numbers that training, evaluation and export share."""

    dataset: Dataset
    data_dir: str  # folder of the records
    model: Callable  # num_classes -> KMaX
    optimizer: Callable  # steps -> AdamW
    training_input: TrainingInput
    criterion: Criterion
    postprocess: PostProcess
    batch_size: int  # images a step, over all replicas
    steps: int
    evaluation_size: tuple[int, int]  # height, width in pixels
    evaluation_batch_size: int = 1  # images or tiles
    tiles: Tiles | None = None  # of images in evaluation and prediction; None: fitted into the size
    initial_checkpoint: str = ""  # of a model or a pixel encoder, that a new run starts from
    train_split: str = "train"
    evaluation_split: str = "val"
    steps_per_loop: int = 100  # steps of a summary
    checkpoint_interval: int = 1000  # steps, a multiple of steps_per_loop
    checkpoints_kept: int = 5
    accumulation: int = 1  # micro-batches of each replica, one after another
    ema_decay: float = 0.0  # of the EMA of the weights, a step; 0: no EMA
    clip_norm: float = math.inf  # largest global norm of the gradient
    precision: str = "float32"
    seed: int = 0  # of initial weights and the order and augmentation of images

    def __post_init__(self):
        for name in ("data_dir", "initial_checkpoint"):  # as the command line does
            object.__setattr__(self, name, os.path.expanduser(getattr(self, name) or ""))
        for name, (kind, call) in PARTS.items():
            part = getattr(self, name)
            if isinstance(part, type) or not isinstance(part, kind):
                raise InputError(f"Experiment.{name} is not made by a call; write it as {call}")
        for name in POSITIVE:
            if (value := _whole(name, getattr(self, name))) < 1:
                raise InputError(f"Experiment.{name} {value} is below 1; bind it to 1 or more")
        check_size("Experiment.evaluation_size", self.evaluation_size)
        if not _number("clip_norm", self.clip_norm) > 0:
            raise InputError(
                f"Experiment.clip_norm {self.clip_norm} is not positive; leave it out for no limit"
            )
        if not 0 <= _whole("seed", self.seed) < 2**31:
            raise InputError(f"Experiment.seed {self.seed} is not 0 to 2147483647; bind 0")
        if not 0 <= _number("ema_decay", self.ema_decay) < 1:
            raise InputError(f"Experiment.ema_decay {self.ema_decay} is not in [0, 1); bind 0.9999")
        if self.checkpoint_interval % self.steps_per_loop:
            raise InputError(
                f"checkpoint_interval {self.checkpoint_interval} is not a multiple of"
                f" steps_per_loop {self.steps_per_loop}; bind Experiment.steps_per_loop to one"
            )
        if self.tiles:
            self.tiles.check(self.evaluation_size)
            if self.postprocess.at_image_size:
                raise InputError(
                    "Experiment.tiles merges at the size of a tile; bind it to None, or"
                    " PostProcess.at_image_size to False"
                )
            training = self.training_input
            if training.placement == "device" and training.decoded_size is None:
                raise InputError(
                    "Experiment.tiles keeps the scale of images, but they are shrunk to"
                    ' TrainingInput.size for the device; bind TrainingInput.placement to "host", or'
                    " decoded_size to the largest image"
                )

    @property
    def enlarges(self) -> bool:
        """Whether evaluation enlarges images below its size: if training does; tiles have a scale.

        The official evaluation of Cityscapes enlarges none.
        """
        return self.training_input.resize_to_crop or self.tiles is not None

    def build_model(self) -> tf_keras.Model:
        """Builds the model with its variables, for images of the training size.

        Raises:
            InputError: training has fewer clusters than TrainingInput.max_segments, or a size does
                not fit the model's strides.
        """
        model = self._build(self.training_input.size)
        model.check_size(*self.evaluation_size)  # not only when the first checkpoint is evaluated
        path, rows = model.cluster_path, self.training_input.max_segments
        clusters = path.num_clusters // 2 if path.drop_query else path.num_clusters
        if rows > clusters:
            half = " (half of them, by drop_query)" if path.drop_query else ""
            raise InputError(
                f"training_input.TrainingInput.max_segments {rows} exceeds the {clusters} clusters"
                f" of training{half}; bind it to at most {clusters}, or raise"
                f" kmax_decoder.ClusterPath.num_clusters {path.num_clusters}"
            )
        return model

    def build_evaluation_model(self) -> tf_keras.Model:
        """Builds the model for images of the evaluation size; its variables are the same."""
        return self._build(self.evaluation_size)

    def build_weights(self, num_classes: int) -> tf_keras.Model:
        """Builds the model with the weights of another number of classes."""
        return self._build(self.training_input.size, num_classes)

    def segment(self, prediction: Prediction) -> Panoptic:
        """Merges a final `Prediction` into panoptic maps [batch, *evaluation_size]."""
        return self.postprocess(prediction, self.evaluation_size, self.dataset.num_things)

    def _build(self, size, num_classes=None):
        runtime.set_precision(self.precision)
        return self.model(num_classes or self.dataset.num_classes).create_variables(*size)


def _whole(name, value):
    """Returns a setting that has to be a whole number; InputError if it is not."""
    if not isinstance(value, numbers.Integral):
        raise InputError(f"Experiment.{name} {value!r} is not a whole number; bind e.g. 100")
    return value


def _number(name, value):
    """Returns a setting that has to be a number; InputError if it is not."""
    if not isinstance(value, numbers.Real):
        raise InputError(f"Experiment.{name} {value!r} is not a number; leave it out, or bind one")
    return value
