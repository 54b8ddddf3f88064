"""Prediction with an exported model, without any of the model's code."""

from kmax_tf.predict.segmenter import (
    CATEGORIES,
    Segment,
    Segmentation,
    Segmenter,
    load,
    predict,
)

__all__ = ["CATEGORIES", "Segment", "Segmentation", "Segmenter", "load", "predict"]
