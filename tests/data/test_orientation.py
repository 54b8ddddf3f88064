"""Orientations of EXIF, with Pillow as the independent source."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from kmax_tf import errors
from kmax_tf.data import orientation
from kmax_tf.data.records import example, serialize

TURNS = [None, *range(1, 9)]


def encode(kind, turn, mode="RGB"):
    """A 5 x 7 image of noise as a file that says it is turned."""
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3)).astype(np.uint8)
    exif = Image.Exif()
    if turn is not None:
        exif[orientation.TAG] = turn
    content = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(content, kind, exif=exif)
    return content.getvalue()


def record(image, segment_map):
    return serialize.record(
        image=image,
        filename="a.jpg",
        image_id="1",
        segment_map=segment_map,
        segment_id=[1],
        category_id=[1],
        is_crowd=[False],
    )


@pytest.mark.parametrize("kind, mode", [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB")])
@pytest.mark.parametrize("turn", TURNS)
def test_a_record_is_upright(kind, mode, turn):
    content = encode(kind, turn, mode)
    stored = Image.fromarray(tf.io.decode_image(content, 3).numpy())
    stored.getexif()[orientation.TAG] = turn or 1
    upright = np.asarray(ImageOps.exif_transpose(stored))
    segment_map = np.ones(upright.shape[:2], np.int32)
    serialized = record(content, segment_map)
    parsed = next(iter(tf.data.Dataset.from_tensors(serialized).map(example.parse)))
    np.testing.assert_array_equal(parsed.image, upright)
    features = tf.train.Example.FromString(serialized).features.feature
    assert features["image/encoded"].bytes_list.value[0] == content
    assert ("image/orientation" in features) == (turn not in (None, 1))


@pytest.mark.parametrize("turn", [5, 6, 7, 8])
def test_a_label_of_the_stored_size_is_refused(turn):
    message = r"a\.jpg: the image is 7 x 5 \(upright, .* EXIF .*\) but its label map 5 x 7"
    with pytest.raises(errors.InputError, match=message):
        record(encode("JPEG", turn), np.ones((7, 5), np.int32))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_invalid_orientation_is_upright(value):
    assert orientation.read(encode("JPEG", value)) == 1


def test_a_broken_file_is_upright():
    assert orientation.read(b"") == orientation.read(encode("JPEG", 6)[:30]) == 1
