"""Predicts with an exported model, without any of the model's code.

from kmax_tf import predict
segmenter = predict.load("runs/demo/export")
result = segmenter("photo.jpg")
"""

from kmax_tf.predict.segmenter import Segment, Segmentation, Segmenter, load, predict_sources

__all__ = ["Segment", "Segmentation", "Segmenter", "load", "predict_sources"]
