"""kMaX-DeepLab panoptic segmentation in TensorFlow."""

# Before TensorFlow: its wheel for TPU holds an OpenSSL of its own, over which Python's crashes.
import hashlib  # noqa: F401
import os
import warnings
from typing import TYPE_CHECKING, Any

from kmax_tf import host

# Read when TensorFlow is imported: its C++ code reports errors only, not what it found on the way.
# Without a GPU it reports nothing: the search for one would end in a line of its own.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if host.has_nvidia_gpu() else "3")
# Training, evaluator and workers share a GPU: each takes the memory that it needs, not all of it.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
# And one Keras in a process, ours: importing Keras 3 beside it would take a second of each start.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

# Of google.api_core, which the Model Garden imports, on a slice's Python; nobody can act on it.
warnings.filterwarnings("ignore", "You are using a non-supported Python version", FutureWarning)

__all__ = ["evaluate", "load", "train"]

if TYPE_CHECKING:
    from kmax_tf.api import evaluate, load, train
else:

    def __getattr__(name: str) -> Any:
        """Imports the calls of Python when one is used, because TensorFlow takes seconds."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from kmax_tf import api

        return getattr(api, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
