import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kmax_tf import errors
from kmax_tf.data.records import example, serialize


def image_bytes(height, width, kind="PNG", mode="RGB", **options):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def record(image, segment_map, count, **changes):
    fields = {
        "image": image,
        "filename": "folder/a.jpg",
        "image_id": "17",
        "segment_map": segment_map,
        "segment_id": [1000 + k for k in range(count)],
        "category_id": [k % 5 for k in range(count)],
        "is_crowd": [k % 2 == 1 for k in range(count)],
    }
    return serialize.record(**{**fields, **changes})


def features(serialized):
    return tf.train.Example.FromString(serialized).features.feature


@pytest.mark.parametrize("count, bits", [(0, "L"), (3, "L"), (255, "L"), (256, "I;16")])
def test_round_trip(count, bits):
    height, width = 30, 41
    segment_map = np.random.default_rng(1).integers(0, count + 1, (height, width))
    image = image_bytes(height, width)
    serialized = record(image, segment_map, count)

    stored = features(serialized)
    assert stored["image/encoded"].bytes_list.value[0] == image
    assert stored["image/format"].bytes_list.value[0] == b"png"
    assert stored["image/height"].int64_list.value[0] == height
    assert stored["image/width"].int64_list.value[0] == width
    png = Image.open(io.BytesIO(stored["panoptic/encoded"].bytes_list.value[0]))
    assert png.mode == bits
    np.testing.assert_array_equal(np.asarray(png), segment_map)
    areas = [int((segment_map == k).sum()) for k in range(1, count + 1)]
    assert list(stored["segment/area"].int64_list.value) == areas

    parsed = next(iter(tf.data.Dataset.from_tensors(serialized).map(example.parse)))
    np.testing.assert_array_equal(parsed.image, Image.open(io.BytesIO(image)))
    np.testing.assert_array_equal(parsed.segment_map, segment_map)
    assert parsed.image.dtype == tf.uint8 and parsed.segment_map.dtype == tf.int32
    assert parsed.segment_id.numpy().tolist() == [1000 + k for k in range(count)]
    assert parsed.category_id.numpy().tolist() == [k % 5 for k in range(count)]
    assert parsed.is_crowd.numpy().tolist() == [k % 2 == 1 for k in range(count)]
    assert (parsed.filename.numpy(), parsed.image_id.numpy()) == (b"folder/a.jpg", b"17")


def test_gray_jpeg_has_three_channels():
    image = image_bytes(20, 32, "JPEG", "L")
    serialized = record(image, np.ones((20, 32), np.int32), 1)
    assert features(serialized)["image/format"].bytes_list.value[0] == b"jpeg"
    parsed = example.parse(serialized)
    assert parsed.image.shape == (20, 32, 3)
    assert np.ptp(parsed.image, axis=-1).max() == 0


def test_more_segments_than_16_bits_can_number():
    numbers = np.arange(256 * 257).reshape(256, 257)
    image = image_bytes(256, 257)
    most = numbers % (2**16 - 1) + 1
    png = features(record(image, most, 2**16 - 1))["panoptic/encoded"].bytes_list.value[0]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), most)
    with pytest.raises(errors.InputError, match=r"a.jpg: has 65,536 segments, over 65,535; cut"):
        record(image, numbers % 2**16 + 1, 2**16)


def test_a_huge_image_is_not_called_broken(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_500_000)
    with pytest.raises(errors.InputError, match="^folder/a.jpg: more than 3 million pixels; cut"):
        record(image_bytes(2000, 2000), np.zeros((2000, 2000), np.int32), 0)


@pytest.mark.parametrize(
    "image, message",
    [
        (b"no image", "broken or truncated image"),
        (image_bytes(64, 64, "JPEG")[:-500], "broken or truncated image"),
        (image_bytes(64, 64, "PNG")[:-500], "broken or truncated image"),
        (image_bytes(64, 64, "BMP"), "is BMP; convert it to JPEG or PNG"),
        (image_bytes(64, 63), "the image is 63 x 64 but its label map 64 x 64"),
    ],
)
def test_bad_image_is_one_line_that_names_it(image, message):
    with pytest.raises(errors.InputError, match=message) as error:
        record(image, np.zeros((64, 64), np.int32), 0)
    assert str(error.value).startswith("folder/a.jpg: ") and "\n" not in str(error.value)
