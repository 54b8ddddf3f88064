"""Predicts with an exported model, without any of the model's code.

from kmax_tf import predict
model = predict.load("runs/demo/export")
result = model.predict("photo.jpg")
"""

from kmax_tf.predict.segmentation import Segment, Segmentation
from kmax_tf.predict.segmenter import Segmenter, load, predict_sources, write_predictions

__all__ = [
    "Segment",
    "Segmentation",
    "Segmenter",
    "load",
    "predict_sources",
    "write_predictions",
]
