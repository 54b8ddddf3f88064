"""The color operations against Pillow, whose operations the reference's are after."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from kmax_tf.data.transforms import color, geometry, pixels


@pytest.fixture(scope="module")
def image():
    y, x = np.mgrid[:67, :83]
    waves = np.stack([np.sin(x / (5 + c)) * np.cos(y / (7 - c)) for c in range(3)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 6, waves.shape)
    return np.clip(140 + 90 * waves + noise, 20, 255).astype(np.uint8)


def apply(operation, image, argument, table=pixels.HOST):
    image = tf.constant(image)
    return operation(image, argument, color.whole_frame(image), table).numpy()


def assert_near(ours, theirs):
    """Equal up to one gray level."""
    assert np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).max() <= 1


@pytest.mark.parametrize("factor", [0.28, 1.72])
def test_as_in_pillow(image, factor):
    picture = Image.fromarray(image)
    # Pillow rounds where the reference cuts off, and to gray with other weights.
    theirs = ImageEnhance.Brightness(picture).enhance(factor)
    assert_near(apply(color.brightness, image, factor), theirs)
    assert_near(apply(color.color, image, factor), ImageEnhance.Color(picture).enhance(factor))
    theirs = ImageEnhance.Sharpness(picture).enhance(factor)
    assert_near(apply(color.sharpness, image, factor), theirs)


def test_exactly_as_in_pillow(image):
    picture = Image.fromarray(image)
    assert np.array_equal(apply(color.solarize, image, 179.0), ImageOps.solarize(picture, 179))
    for table in pixels.HOST, pixels.DEVICE:
        ours = apply(color.equalize, image, 0.0, table)
        assert np.array_equal(ours, ImageOps.equalize(picture))
        flat = np.full_like(image, 9)  # one level alone stays as it is
        assert np.array_equal(apply(color.equalize, flat, 0.0, table), flat)


def test_contrast_is_towards_the_number_of_pixels(image):
    small, large = image[:32, :32], np.tile(image, [5, 5, 1])
    assert np.array_equal(apply(color.contrast, small, 0.0), np.full_like(small, 4))
    assert np.array_equal(apply(color.contrast, large, 0.0), np.full_like(large, 255))


def test_a_window_is_part_of_the_whole(image):
    rows, columns = tf.range(10, 30), tf.range(82, 51, -1)  # the columns mirrored
    frame = color.Frame(rows, columns, tf.constant(image.shape[:2]))
    window = image[10:30, 82:51:-1]
    for operation in (color.brightness, color.color, color.contrast, color.sharpness):
        ours = operation(tf.constant(window), 1.5, frame, pixels.HOST).numpy()
        whole = apply(operation, image, 1.5)[10:30, 82:51:-1]
        # At the window's edge the blur lacks neighbors, but not at the image's.
        inside = np.s_[1:-1, :-1] if operation is color.sharpness else np.s_[:]
        assert np.array_equal(ours[inside], whole[inside])


def test_the_policy_as_drawn(image):
    """Each sub-policy is taken, and its operations applied one after the other."""
    frame, outcomes = color.whole_frame(tf.constant(image)), set()

    @tf.autograph.experimental.do_not_convert
    def augmented(seed):
        params = geometry.draw_params(tf.stack([0, seed]), (1.0,))
        result = color.augment(tf.constant(image), params, 0.2, frame)
        return params, color.needs_whole_image(params), result

    for params, needs_whole, ours in tf.data.Dataset.range(80).map(augmented):
        expected, applied = image, []
        for (operation, probability, magnitude), chance in zip(
            color.POLICY[int(params.policy)], params.chance.numpy()
        ):
            if chance < probability:
                applied.append(operation)
                argument = color.argument(operation, 0.2 * magnitude)
                expected = apply(operation, expected, argument)
        assert np.array_equal(ours, expected)
        assert bool(needs_whole) == (color.equalize in applied)
        outcomes |= {(int(params.policy), operation) for operation in applied}
    assert outcomes == {(i, o) for i, pair in enumerate(color.POLICY) for o, p, _ in pair if p}
