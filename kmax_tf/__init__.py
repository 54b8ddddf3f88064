"""kMaX-DeepLab panoptic segmentation in TensorFlow."""

# Before TensorFlow: its wheel for TPU holds an OpenSSL of its own, over which Python's crashes.
import hashlib  # noqa: F401
import os

# Read when TensorFlow is imported: its C++ code reports errors, not what it found on the way;
# on a machine without GPU not even errors, for the search for one ends in a line of its own.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if os.path.exists("/dev/nvidia0") else "3")
