"""What changes the function of a model, but no name or shape of its variables."""

from collections.abc import Mapping, Sequence
from typing import Any

import tf_keras

# The official code and the PyTorch port differ in these.
OF_THE_PORT = (
    "pixel_encoder.max_pool",
    "pixel_encoder.activate_endpoints",
    "pixel_decoder.dilation",
    "semantic_branch.activates_low_level",
)
NAMES = (
    *OF_THE_PORT,
    # Experiments of one's own may differ in these, too.
    "pixel_encoder.activation_name",
    "pixel_decoder.activation_name",
    "pixel_decoder.endpoints",
    "cluster_path.activation_name",
    "cluster_path.cross_attention",
    "cluster_path.source",
    "semantic_branch.activation_name",
)


def describe(model: tf_keras.Model) -> dict[str, Any]:
    """Returns {name: value} of a `KMaX`; a ConvNeXt, say, has no max-pool."""
    values = {name: _value(model, name) for name in NAMES}
    return {name: value for name, value in values.items() if value is not None}


def differences(model: tf_keras.Model, theirs: Mapping[str, Any], part: str = "") -> list[str]:
    """Says where the function of a `KMaX`, or of one part, is not that of other weights."""
    return [
        f"{name} is {value!r} here and {theirs[name]!r} there"
        for name, value in describe(model).items()
        if name.startswith(part) and theirs.get(name) not in (None, value)
    ]


def _value(model, name):
    layer, attribute = name.split(".")
    value = getattr(getattr(model, layer, None), attribute, None)
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
