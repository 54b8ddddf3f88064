"""The host's resizing of a window alone."""

import numpy as np
import tensorflow as tf

from kmax_tf.data.transforms import host, pixels


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
