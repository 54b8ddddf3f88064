"""kMaX-DeepLab panoptic segmentation in TensorFlow."""

import os

# Read when TensorFlow is imported: its C++ code reports errors, not what it found on the way.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
