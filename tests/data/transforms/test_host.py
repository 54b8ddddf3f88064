"""The host's resizing: of a window alone, and into the evaluation's size."""

import numpy as np
import tensorflow as tf

from kmax_tf.data.transforms import geometry, host, pixels


def test_a_window_is_that_of_the_whole_resized_image():
    random = np.random.default_rng(0)
    for _ in range(30):
        image = tf.constant(random.integers(0, 256, [*random.integers(1, 90, 2), 3]), tf.uint8)
        sizes = random.integers(1, 150, [2, 2]).astype(np.int32)
        begin = random.integers(0, sizes[1])
        end = random.integers(begin + 1, sizes[1] + 1)
        steps = list(tf.constant(sizes))
        window = host.resize_window(
            image, tf.constant(begin, tf.int32), tf.constant(end, tf.int32), *steps
        )
        whole = pixels.cut(host.resize_image(image, *steps), begin, end)
        np.testing.assert_array_equal(window, whole)


def test_an_evaluation_that_enlarges_nothing_keeps_the_pixels():
    """As the official one of Cityscapes (min_resize_value and max_resize_value 0)."""
    picture = np.random.default_rng(0).integers(0, 256, (24, 48, 3)).astype(np.uint8)
    sample = geometry.Sample(tf.constant(picture), tf.ones([24, 48], tf.int32))
    image, segment_map = host.fit_and_pad(sample, (25, 49), enlarge=False)
    np.testing.assert_array_equal(image[:24, :48], picture)
    assert (image[24:].numpy() == 127.5).all() and (image[:, 48:].numpy() == 127.5).all()
    assert segment_map.numpy().sum() == 24 * 48
    for shape, size, expected in (
        ((1024, 2048), (1025, 2049), (1024, 2048)),
        ((2000, 500), (1025, 2049), (1025, 256)),  # 500 x 0.5125 = 256.25
        ((1500, 3000), (1025, 2049), (1024, 2049)),  # 1500 x 0.683 = 1024.5
    ):
        larger = sample._replace(segment_map=tf.zeros(shape, tf.int32))
        assert tuple(host.fitted_size(larger, size, enlarge=False)) == expected
