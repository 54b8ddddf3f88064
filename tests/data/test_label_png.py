"""PNG files of ids and labels, as Pillow and TensorFlow read them."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kmax_tf import errors
from kmax_tf.data import label_png


def test_ids_are_red_plus_256_green_plus_65536_blue():
    ids = np.array([[0, 255, 256], [65536, 0xFFFFFF, 0x030201]])
    rgb = np.asarray(Image.open(io.BytesIO(label_png.encode_ids(ids))))
    assert rgb[0].tolist() == [[0, 0, 0], [255, 0, 0], [0, 1, 0]]
    assert rgb[1].tolist() == [[0, 0, 1], [255, 255, 255], [1, 2, 3]]
    decoded = label_png.decode_ids(label_png.encode_ids(ids), "a.png")
    assert decoded.dtype == np.int32
    np.testing.assert_array_equal(decoded, ids)


@pytest.mark.parametrize("wrong", [-1, 1 << 24])
def test_ids_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="segment ids"):
        label_png.encode_ids(np.array([[0, wrong]]))


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_broken_png_names_the_file(keep):
    png = label_png.encode_ids(np.random.default_rng(0).integers(0, 1 << 24, (40, 40)))
    with pytest.raises(errors.InputError, match="folder/a.png: not a readable PNG"):
        label_png.decode_ids(png[:keep], "folder/a.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_are_a_png_for_everyone(dtype):
    labels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, [7, 13]).astype(dtype)
    encoded = label_png.encode_labels(labels)
    np.testing.assert_array_equal(Image.open(io.BytesIO(encoded)), labels)
    np.testing.assert_array_equal(tf.io.decode_png(encoded, 1, dtype)[..., 0], labels)


def test_equal_red_green_and_blue_are_gray():
    values = np.random.default_rng(0).integers(0, 256, (5, 7)).astype(np.uint8)
    for change, mode in ((0, "RGB"), (1, "RGB"), (0, "RGBA")):
        rgb = np.dstack([values, values, values])
        rgb[2, 3, 1] ^= change
        content = io.BytesIO()
        Image.fromarray(rgb).convert(mode).save(content, "PNG")
        if change or mode == "RGBA":
            with pytest.raises(errors.InputError, match=f"a.png: is a PNG of 8 bits, {mode}, but"):
                label_png.decode_classes(content.getvalue(), "a.png")
        else:
            found = label_png.decode_classes(content.getvalue(), "a.png")
            np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("decode", [label_png.decode_ids, label_png.decode_classes])
@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_labels_that_exif_turns_are_refused(decode, turn, mode):
    exif = Image.Exif()
    exif[0x112] = turn
    content = io.BytesIO()
    Image.new(mode, (5, 3)).save(content, "PNG", exif=exif)
    if turn > 1:
        with pytest.raises(errors.InputError, match=f"a.png: labels with EXIF orientation {turn};"):
            decode(content.getvalue(), "a.png")
    elif (mode == "RGB") == (decode is label_png.decode_ids):
        assert decode(content.getvalue(), "a.png").shape == (3, 5)


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_labels_of_another_format_are_refused(kind):
    content = io.BytesIO()
    Image.new("RGB", (5, 3)).save(content, kind)
    with pytest.raises(errors.InputError, match="a.png: not a readable PNG .* save it as PNG"):
        label_png.decode_ids(content.getvalue(), "a.png")
