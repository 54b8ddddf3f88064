"""Orientations of EXIF, with Pillow as the independent source."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps, PngImagePlugin

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


def xmp(turn):
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{turn}"/></x:xmpmeta>'


@pytest.mark.parametrize("turn", [3, 6, 8])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_other_places_of_a_png(turn, is_compressed):
    """XMP, and the text in which ImageMagick puts EXIF; Pillow turns the image by each."""
    image, exif = Image.new("RGB", (5, 7)), Image.Exif()
    exif[orientation.TAG] = turn
    dump = exif.tobytes().hex()
    text = {
        "XML:com.adobe.xmp": xmp(turn),
        "Raw profile type exif": f"\nexif\n {len(dump)}\n{dump}",
    }
    for key, value in text.items():
        info, content = PngImagePlugin.PngInfo(), io.BytesIO()
        info.add_itxt(key, value, zip=is_compressed)
        image.save(content, "PNG", pnginfo=info)
        assert ImageOps.exif_transpose(Image.open(content)).size == (
            (5, 7) if turn == 3 else (7, 5)
        )
        assert orientation.read(content.getvalue()) == turn


def test_xmp_of_a_jpeg():
    content = io.BytesIO()
    Image.new("RGB", (5, 7)).save(content, "JPEG", xmp=xmp(6).encode())
    assert ImageOps.exif_transpose(Image.open(content)).size == (7, 5)
    assert orientation.read(content.getvalue()) == 6


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_invalid_orientation_is_upright(value):
    assert orientation.read(encode("JPEG", value)) == 1


def test_a_broken_file_is_upright():
    assert orientation.read(b"") == orientation.read(encode("JPEG", 6)[:30]) == 1
