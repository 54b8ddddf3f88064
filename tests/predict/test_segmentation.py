"""A result for other libraries, and as a picture."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from kmax_tf import predict
from kmax_tf.data.datasets import Category
from kmax_tf.errors import InputError

CATEGORIES = (Category(7, "cell", True, (255, 0, 0)), Category(3, "sky", False, (0, 0, 255)))
MAP = np.array([[2, 2, 2, 0], [2, 1, 1, 0], [2, 1, 2, 0]], np.int32)
SEGMENTS = [
    predict.Segment(1, 7, True, 0.75, 3, [1, 1, 2, 2]),
    predict.Segment(2, 3, False, 0.5, 6, [0, 0, 3, 3]),
]


def result(segments):
    return predict.Segmentation(MAP, segments, np.zeros((3, 4, 3), np.uint8), CATEGORIES)


def test_supervision_gets_every_segment():
    supervision = pytest.importorskip("supervision")
    found = result(SEGMENTS).to_supervision()
    np.testing.assert_array_equal(found.mask, [MAP == 1, MAP == 2])
    # Its own boxes are of the first and last pixel.
    expected = supervision.mask_to_xyxy(found.mask) + [0, 0, 1, 1]
    np.testing.assert_array_equal(found.xyxy, expected)
    assert found.class_id.tolist() == [7, 3] and found.confidence.tolist() == [0.75, 0.5]
    assert found["class_name"].tolist() == ["cell", "sky"]
    scene = np.zeros((3, 4, 3), np.uint8)
    drawn = supervision.MaskAnnotator(opacity=1.0).annotate(scene, found)
    assert (drawn.any(axis=-1) == (MAP > 0)).all()
    assert len(result([]).to_supervision()) == 0


def test_without_supervision_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match="supervision: not installed; pip install supervision"):
        result(SEGMENTS).to_supervision()


def test_a_picture_in_a_notebook_is_of_bounded_size():
    large = np.zeros((100, 3000, 3), np.uint8)
    shown = predict.Segmentation(large[..., 0].astype(np.int32), [], large, CATEGORIES)
    assert shown.overlay().size == (3000, 100)
    assert Image.open(io.BytesIO(shown._repr_png_())).width == 1024
