"""Folds another codebase's image normalization and batch-norm epsilon into the weights.

Our encoders take x = image / 127.5 - 1, and our batch norms have epsilon 1e-3. The folded function
is the same, except at the border. Zeros padded around x are gray; those around a normalized image
are the mean color.
"""

import re
from collections.abc import Sequence

import numpy as np

from kmax_tf.model.layers.norms import BatchNorm

# The first convolution of an encoder; what follows it absorbs the mean.
_STEM = re.compile(r"(pixel_encoder/stem(?:/0)?/)(conv/)?kernel$")


def fold_normalization(
    values: dict[str, np.ndarray], mean: Sequence[float], std: Sequence[float]
) -> None:
    """Makes weights for (image / 255 - mean) / std fit our input, in place.

    Args:
        values: the encoder's arrays by the paths of our variables.
        mean, std: of each color channel, in units of 255 gray levels.
    """
    path, match = next((p, m) for p in values if (m := _STEM.match(p)))
    mean, std = (np.asarray(v, np.float64)[:, None] for v in (mean, std))
    kernel = values[path].astype(np.float64)
    shift = np.sum(kernel * (0.5 - mean) / std, axis=(0, 1, 2))
    values[path] = (kernel / (2 * std)).astype(np.float32)
    stem, has_norm = match.groups()
    target, sign = (f"{stem}norm/moving_mean", -1) if has_norm else (f"{stem}bias", 1)
    values[target] = (values[target] + sign * shift).astype(np.float32)


def fold_epsilon(values: dict[str, np.ndarray], epsilon: float) -> None:
    """Makes batch norms of another epsilon fit ours, in place: gamma takes up the difference."""
    for path, variance in values.items():
        if path.endswith("/moving_variance"):
            gamma = path.replace("/moving_variance", "/gamma")
            factor = np.sqrt(
                (variance.astype(np.float64) + BatchNorm.epsilon) / (variance + epsilon)
            )
            values[gamma] = (values[gamma] * factor).astype(np.float32)
