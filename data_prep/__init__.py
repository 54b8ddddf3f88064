"""Programs that turn datasets into TFRecord files."""

import kmax_tf  # noqa: F401 (before TensorFlow: what it sets is read there)
