"""Weights, images and patterns of the golden cases, from a name and a seed.

The official code computed the golden numbers on exactly these values.
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np

_UNIFORM = {"layer_scale": (0.1, 1.0), "gamma": (0.5, 1.5), "moving_variance": (0.5, 1.5)}
_NORMAL = {
    "beta": 0.1,
    "bias": 0.1,
    "moving_mean": 0.1,
    "cluster_centers": 1.0,
    "embeddings": 0.5,
}
# Factors by a part of the key, so that small rounding errors in the network stay small.
_FACTORS = {
    "gamma": {
        "conv3_bn/": 0.2,
        "ffn_conv2_bn/": 0.2,
        "_batch_norm_similarity/": 0.3,
    },
    "moving_variance": {
        "_batch_norm_similarity/": 20.0,
        "_kmeans_memory_batch_norm_retrieved_value/": 100.0,
    },
}


def weight(key: str, shape: Sequence[int], seed: int) -> np.ndarray:
    """Makes the value of one variable of an official checkpoint.

    Args:
        key: its name in the checkpoint, "encoder/_stem/_conv/kernel", with or without the suffix
            "/.ATTRIBUTES/VARIABLE_VALUE".
        shape: its shape.
        seed: of the golden case.

    Returns:
        float32 [*shape].

    Raises:
        KeyError: The key names no kind of weight that is known.
    """
    key = key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")
    leaf = key.rsplit("/", 1)[-1]
    generator = _generator(key, seed)
    if leaf in _UNIFORM:
        value = generator.uniform(*_UNIFORM[leaf], shape)
    else:
        value = generator.standard_normal(shape) * _deviation(leaf, shape)
    for part, factor in _FACTORS.get(leaf, {}).items():
        if part in key:
            value *= factor
    return value.astype(np.float32)


def _deviation(leaf, shape):
    """Returns the standard deviation of a normal weight; of kernels by the number of inputs."""
    if leaf.endswith("kernel"):
        inputs = np.prod(shape[:-2] if leaf == "depthwise_kernel" else shape[:-1])
        product = leaf == "qkv_kernel" or len(shape) == 3
        return ((1.0 if product else 2.0) / inputs) ** 0.5
    return _NORMAL[leaf]


def image(seed: int, shape: Sequence[int]) -> np.ndarray:
    """Makes smooth random pictures with noise: float32 of whole numbers, 0 to 255.

    Args:
        seed: of the golden case.
        shape: batch, height, width, channels.
    """
    batch, height, width, channels = shape
    generator = _generator("image", seed)
    coarse = (max(size // 12, 2) + 1 for size in (height, width))
    grid = generator.uniform(-40.0, 295.0, (batch, *coarse, channels))
    smooth = _stretch(_stretch(grid, height, axis=1), width, axis=2)
    noisy = smooth + generator.uniform(-25.0, 25.0, shape)
    return np.clip(np.floor(noisy), 0, 255).astype(np.float32)


def _stretch(grid, size, axis):
    """Interpolates an axis of a float64 array linearly to `size`; both ends stay."""
    last = grid.shape[axis] - 1
    place = np.arange(size) * last / (size - 1)
    before = np.minimum(place.astype(int), last - 1)
    share = np.expand_dims(place - before, [a for a in range(grid.ndim) if a != axis])
    return grid.take(before, axis) * (1 - share) + grid.take(before + 1, axis) * share


def pattern(name: str, shape: Sequence[int], seed: int) -> np.ndarray:
    """Makes the factors of an output in the scalar of a model case: normal, float32 [*shape]."""
    generator = _generator(f"pattern/{name}", seed)
    return generator.standard_normal(tuple(shape)).astype(np.float32)


def _generator(name, seed):
    return np.random.default_rng([zlib.crc32(name.encode()), seed])


# Of PyTorch's keys: the last norm of a residual branch; kernels whose product is an attention's.
_LAST_NORM = re.compile(
    r"^backbone\.res\d\.\d+\.conv3\.norm\.|^layer\d\.\d+\.bn3\.|_conv3_bn\.norm\.|_ffn_conv2_bn\.norm\."
)
_PRODUCT = re.compile(r"\._pixel_(conv1_bn_act|v_conv_bn)\.conv\.")
_SIMILARITY = "._batch_norm_similarity."
_SUMS = "._kmeans_query_batch_norm_retrieved_value."


def torch_weight(key: str, shape: Sequence[int], seed: int) -> np.ndarray:
    """Makes the value of one entry of a PyTorch state dict: of the port, torchvision or timm.

    Args:
        key: the entry's name, "backbone.stem.conv1.weight".
        shape: its shape in PyTorch's layout, such as [out, in / groups, height, width].
        seed: of the golden case.

    Returns:
        float32 [*shape]; int64 zeros for num_batches_tracked.
    """
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    generator = _generator(key, seed)
    if leaf in ("gamma", "layer_scale"):
        value = generator.uniform(0.1, 1.0, shape)
    elif leaf == "running_var":
        factor = 20.0 if _SIMILARITY in key else 100.0 if _SUMS in key else 1.0
        value = generator.uniform(0.5, 1.5, shape) * factor
    elif leaf == "weight" and len(shape) == 1:
        factor = 0.2 if _LAST_NORM.search(key) else 0.3 if _SIMILARITY in key else 1.0
        value = generator.uniform(0.5, 1.5, shape) * factor
    else:
        value = generator.standard_normal(shape) * _torch_deviation(key, leaf, shape)
    return value.astype(np.float32)


def _torch_deviation(key, leaf, shape):
    if leaf in ("bias", "running_mean"):
        return 0.1
    if key.endswith("._cluster_centers.weight"):
        return 1.0
    if key.endswith("_rpe._embeddings.weight"):
        return 0.5
    power = 1.0 if len(shape) == 3 or _PRODUCT.search(key) else 2.0
    return (power / np.prod(shape[1:])) ** 0.5
