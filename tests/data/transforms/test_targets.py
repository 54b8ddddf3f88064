"""Training targets as worked by hand."""

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf.data import datasets
from kmax_tf.data.transforms import pixels
from kmax_tf.data.transforms.targets import class_indices, make_targets

pytestmark = pytest.mark.xla


def both(segment_map, segment_class, **options):
    """The targets, made in the way of the host and of the device, which must be the same."""
    arguments = tf.constant(segment_map), tf.constant(segment_class)
    options = dict(num_things=3, stride=1, max_segments=3) | options
    host = make_targets(*arguments, **options)
    device = tf.function(
        lambda: make_targets(*arguments, **options, table=pixels.DEVICE), jit_compile=True
    )()
    tf.nest.map_structure(np.testing.assert_array_equal, host, device)
    return host


def test_by_hand():
    # Segment 1 is a thing of class 2, 2 stuff of class 4, 3 void, 4 too small for stride 2.
    segment_map = np.zeros((5, 5), np.int32)
    segment_map[:2] = 1
    segment_map[2:] = 2
    segment_map[4, 4] = 3
    segment_map[1, 1] = 4
    options = dict(stride=2, small_thing_area=10, small_thing_weight=4.0)
    targets = both(segment_map, [2, 4, -1, 0], **options)
    # By area at stride 2: the stuff (5 pixels) is row 0, the thing (3 pixels) row 1.
    np.testing.assert_array_equal(targets.segment, [[1, 1, 1], [0, 0, 0], [0, 0, -1]])
    np.testing.assert_array_equal(targets.segment_class, [4, 2, -1])
    np.testing.assert_array_equal(targets.semantic, [[2, 2, 2], [4, 4, 4], [4, 4, -1]])
    np.testing.assert_array_equal(targets.semantic_weight, [[4, 4, 4], [1, 1, 1], [1, 1, 1]])
    # The area that makes a thing small is that before the stride: 9 pixels.
    targets = both(segment_map, [2, 4, -1, 0], **options | dict(small_thing_area=9))
    np.testing.assert_array_equal(targets.semantic_weight, np.ones((3, 3)))


def test_segments_beyond_the_rows_become_void():
    targets = both(np.repeat([1, 2, 3], [1, 2, 3])[None], [0, 1, 0], max_segments=2)
    np.testing.assert_array_equal(targets.segment, [[-1, 1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(targets.segment_class, [0, 1])
    np.testing.assert_array_equal(targets.semantic, [[-1, 1, 1, 0, 0, 0]])


def test_stuff_of_one_class_is_one_segment():
    # 1 and 3 are stuff of class 4, 2 and 4 things of class 1; alone, 2 would be the largest.
    targets = both(np.repeat([1, 2, 3, 4], [2, 3, 2, 1])[None], [4, 1, 4, 1], max_segments=5)
    np.testing.assert_array_equal(targets.segment, [[0, 0, 1, 1, 1, 0, 0, 2]])
    np.testing.assert_array_equal(targets.segment_class, [4, 1, 1, -1, -1])


def test_class_indices_of_unknown_categories():
    dataset = datasets.load("coco")
    ids = [dataset.categories[5].id, 10**9, -1, dataset.categories[100].id]
    np.testing.assert_array_equal(
        class_indices(dataset, tf.constant(ids, tf.int64)), [5, -1, -1, 100]
    )
