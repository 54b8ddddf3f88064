"""The files of other runtimes: what they take and give, and their check against the SavedModel.

Their input is a fitted and padded image (`host.fit_and_pad`), and their segments have that size.
Such runtimes are slow at shapes that depend on the image, or refuse them.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from scipy.optimize import linear_sum_assignment

from kmax_tf.data.evaluation_input import evaluation_input
from kmax_tf.errors import InputError, first_line
from kmax_tf.experiment import Experiment
from kmax_tf.inference import predictor
from kmax_tf.inference.frozen_graph import FrozenGraph, freeze
from kmax_tf.model.postprocess import Panoptic

OUTPUTS = {  # `Panoptic`
    "segment_map": "int32 [batch, height, width]: 0 void, k the k-th segment",
    "segment_class": "int32 [batch, segments]: place in categories.json from 0, -1 for no segment",
    "segment_confidence": "float32 [batch, segments], probability of the class",
    "segment_score": "float32 [batch, segments], that times its pixels' mean probability of"
    " their likeliest masks",
    "semantic_map": "int32 [batch, height, width]: class of the likeliest mask, without void",
}


class FileFormat(NamedTuple):
    """A format of another runtime."""

    name: str
    file_name: str
    runtime: str
    use: str  # Python that makes `result`, the outputs by name, from `image`, for the model card
    batch: int | None  # images of the input; None: any number
    convert: Callable[[FrozenGraph], bytes]  # of a function of `image` that returns `OUTPUTS`
    load_predictor: Callable[[bytes], Callable]  # a function like that of `build_predictor`
    largest_difference: float  # share of the pixels of an image, from 0 to 1


def convert(kind: FileFormat, segmenter: Any) -> bytes:
    """Converts an `ExportedModel` and returns the content of the file.

    It maps `image`, float32 [batch, height, width, 3] in 0..255, to `OUTPUTS`. Raises
    InputError with the converter's reason if it refuses.
    """

    @tf.function(input_signature=[tf.TensorSpec([kind.batch, *segmenter.size, 3], name="image")])
    @tf.autograph.experimental.do_not_convert
    def predict(image):
        panoptic, *_ = segmenter.predict(image)
        return panoptic._asdict()

    frozen = freeze(predict)
    try:
        content = kind.convert(frozen)
        kind.load_predictor(content)
    except Exception as error:  # the converters have no error class of their own
        # Each operation has a long line, and the reasons repeat.
        reasons = dict.fromkeys(re.findall(r"error: (.*)", str(error))) or [first_line(error)]
        raise InputError(
            f"the {kind.name} converter rejects the model: {', '.join(reasons):.400};"
            f" export it in float32, or without {kind.name}"
        ) from error
    return content


def example_image(experiment: Experiment) -> tuple[tf.Tensor, str]:
    """Returns an image for `check`, and its description: of the records, or noise and why."""
    size = experiment.evaluation_size
    try:
        records = predictor.evaluation_records(experiment)
    except InputError as error:
        noise = np.random.default_rng(0).uniform(0, 255, (1, *size, 3))
        return tf.constant(noise, tf.float32), f"noise, because no records can be used ({error})"
    [batch] = evaluation_input(records, size, 1, experiment.enlarges).take(1)
    return batch.image, f"an image of {experiment.evaluation_split}"


def check(kind: FileFormat, content: bytes, expected: Panoptic, image: tf.Tensor) -> str:
    """Compares a file with the SavedModel.

    Args:
        content: of the file.
        expected: the `Panoptic` of the SavedModel.
        image: float32 [1, height, width, 3] in 0..255.

    Returns:
        The number of segments, and the share of the pixels that differ, as text; or that there is
        no segment to compare.

    Raises:
        InputError: more of them differ than the format allows.
    """
    panoptic, _ = kind.load_predictor(content)(image)
    ours, theirs = (sorted(p.segment_class[p.segment_class >= 0]) for p in (panoptic, expected))
    segments = f"the same {len(theirs)} segments"
    if ours != theirs:
        segments = f"{len(ours)} segments, where the SavedModel has {len(theirs)}"
    if not ours + theirs:
        return "nothing was compared, because there is no segment"
    share = differing(panoptic, expected)
    found = f"{segments}, {100 * share:.3f} % of the pixels differ"
    if share > kind.largest_difference:
        raise InputError(f"{kind.file_name}: {found}; export without {kind.name}")
    return found


def differing(panoptic: Panoptic, expected: Panoptic) -> float:
    """Returns the share of the pixels of an image that are in another segment.

    Segments of one class correspond one to one, as most pixels agree; their numbers are free, as
    near scores may change the order of pasting.
    """
    n = expected.segment_class.shape[1] + 1
    pairs = np.ravel(panoptic.segment_map * n + expected.segment_map)
    ours, theirs = (np.append(-1, p.segment_class) for p in (panoptic, expected))  # void first
    overlap = np.bincount(pairs, minlength=n * n).reshape(n, n) * (ours[:, None] == theirs)
    return 1 - overlap[linear_sum_assignment(overlap, maximize=True)].sum() / pairs.size
