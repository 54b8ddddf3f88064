"""Copy-paste as worked by hand, and how often stuff is pasted."""

import numpy as np
import tensorflow as tf

from kmax_tf.data.transforms import copy_paste, geometry, host
from kmax_tf.data.transforms.copy_paste import MAX_SEGMENTS


def test_numbers_what_is_pasted_first():
    # Classes 0 to 2 are things: stuff 3, void, thing 1, stuff 4, stuff 3 again, thing 1.
    segment_map = np.array([[0, 1, 2, 3, 4, 5, 6]], np.int32)
    classes = [3, -1, 1, 4, 3, 1]
    stuff = tf.constant([False, False, False, False, True])
    ids, segments = copy_paste.number_segments(
        tf.constant(segment_map), tf.constant(classes), 3, stuff
    )
    # The things and stuff 4 in their order, then stuff 3, once.
    np.testing.assert_array_equal(ids, [[0, 4, 0, 1, 2, 4, 3]])
    np.testing.assert_array_equal(segments.classes[:5], [1, 4, 1, 3, -1])
    assert set(segments.classes.numpy()[4:]) == {-1} and int(segments.num_pasted) == 3


def test_an_image_without_segments():
    none, stuff = tf.zeros([0], tf.int32), tf.constant([True])
    ids, segments = copy_paste.number_segments(tf.zeros([2, 3], tf.int32), none, 1, stuff)
    assert not ids.numpy().any() and int(segments.num_pasted) == 0
    assert set(segments.classes.numpy()) == {-1}


def test_too_many_segments_become_void():
    ids, segments = copy_paste.number_segments(
        tf.range(301)[None], tf.zeros([300], tf.int32), 1, tf.constant([False])
    )
    np.testing.assert_array_equal(ids[0, :256], range(256))
    assert not ids.numpy()[0, 256:].any() and int(segments.num_pasted) == MAX_SEGMENTS


def test_pastes_things_and_drawn_stuff_over_the_image():
    def sample(ids, gray, classes, num_pasted):
        image = tf.fill([1, 4, 3], float(gray))
        padded = classes + [-1] * (MAX_SEGMENTS - len(classes))
        segments = copy_paste.Segments(tf.constant(padded), tf.constant(num_pasted))
        return geometry.Sample(image, tf.constant([ids], tf.uint8)), segments

    below, above = sample([1, 1, 2, 0], 10, [5, 0], 1), sample([0, 1, 2, 3], 20, [0, 4, 5], 2)
    image, ids, classes = copy_paste.paste(*below, *above)
    np.testing.assert_array_equal(image[0, :, 0], [10, 20, 20, 10])
    np.testing.assert_array_equal(ids, [[1, MAX_SEGMENTS + 1, MAX_SEGMENTS + 2, 0]])
    np.testing.assert_array_equal(classes[:2], [5, 0])
    np.testing.assert_array_equal(classes[MAX_SEGMENTS:][:3], [0, 4, 5])


def test_how_many_classes_of_stuff_is_uniform():
    """Of n labels, 0 to n with the same probability, as the official code draws them."""
    draws = tf.data.Dataset.range(6000).map(lambda i: copy_paste.draw_stuff(tf.stack([7, i]), 5))
    kept = next(iter(draws.batch(6000))).numpy()
    share = np.bincount(kept.sum(axis=1), minlength=6) / len(kept)
    np.testing.assert_allclose(share, 1 / 6, atol=0.02)  # four standard deviations
    np.testing.assert_allclose(kept.mean(axis=0), 1 / 2, atol=0.03)


def test_a_part_is_pasted_as_if_it_were_padded():
    random = np.random.default_rng(0)

    def sample(height, width):
        image = tf.constant(random.integers(0, 256, [height, width, 3]), tf.uint8)
        segment_map = tf.constant(random.integers(0, 4, [height, width]), tf.uint8)
        classes = tf.constant([5, 6, 7] + [-1] * (MAX_SEGMENTS - 3))
        return geometry.Sample(image, segment_map), copy_paste.Segments(classes, tf.constant(2))

    size = (9, 11)
    for (height, width), corner in (((4, 5), (2, 3)), (size, (0, 0)), ((1, 11), (8, 0))):
        (below, segments), (part, pasted) = sample(*size), sample(height, width)
        below = host.pad(below, tf.constant([0, 0]), size)
        ours = copy_paste.paste_part(below, segments, part, pasted, tf.constant(corner))
        margins = [(c, s - c - n) for c, s, n in zip(corner, size, (height, width), strict=True)]
        padded = geometry.Sample(
            tf.constant(np.pad(part.image, [*margins, (0, 0)], constant_values=99), tf.float32),
            tf.constant(np.pad(part.segment_map, margins)),
        )
        for a, b in zip(ours, copy_paste.paste(below, segments, padded, pasted), strict=True):
            np.testing.assert_array_equal(a, b)


def test_numbers_are_those_of_a_loop_over_the_segments():
    """Any order of things, stuff that repeats, void, and segments without pixels."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        count = rng.integers(1, 40)
        classes = rng.integers(-1, 7, count)
        segment_map = rng.integers(0, count + 1, (6, 7))
        stuff = np.concatenate([np.zeros(3, bool), rng.random(4) < 0.5])
        expected = number_one_by_one(segment_map, classes, 3, stuff)
        ids, segments = copy_paste.number_segments(
            tf.constant(segment_map, tf.int32),
            tf.constant(classes, tf.int32),
            3,
            tf.constant(stuff),
        )
        np.testing.assert_array_equal(ids, expected[0])
        np.testing.assert_array_equal(segments.classes[: len(expected[1])], expected[1])
        assert int(segments.num_pasted) == expected[2]


def number_one_by_one(segment_map, classes, num_things, pasted_stuff):
    pasted, others, ids = [], [], np.zeros_like(segment_map)
    for k, label in enumerate(classes, start=1):
        if label >= 0 and (segment_map == k).any():
            is_pasted = label < num_things or pasted_stuff[label]
            key = k if label < num_things else f"stuff {label}"
            group = pasted if is_pasted else others
            if key not in [one for one, _ in group]:
                group.append((key, label))
    numbers = {key: n for n, (key, _) in enumerate([*pasted, *others], start=1)}
    for k, label in enumerate(classes, start=1):
        key = k if label < num_things else f"stuff {label}"
        ids[segment_map == k] = numbers.get(key, 0) if label >= 0 else 0
    return ids, [label for _, label in [*pasted, *others]], len(pasted)
