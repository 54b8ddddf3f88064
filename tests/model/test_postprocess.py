"""Merging by pairwise overlaps gives what pasting the masks one after the other gives."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf.model import postprocess
from kmax_tf.model.kmax_decoder import Prediction
from kmax_tf.model.postprocess import PostProcess
from kmax_tf.parity import check

THINGS, CLASSES, SIZE = 3, 5, (33, 49)
SETTINGS = PostProcess(
    thing_threshold=0.3, stuff_threshold=0.2, overlap_threshold=0.8, thing_area=30, stuff_area=60
)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def paste_one_by_one(mask_logits, canvas_logits, class_logits):
    """The official procedure for one image, in float64: a map of class * 1000 + rank for things."""
    probabilities = softmax(class_logits)[:, :-1]
    classes, confidence = probabilities.argmax(-1), probabilities.max(-1)
    low = softmax(mask_logits)
    inside = low > 0.4
    score = np.where(inside, low, 0).sum((0, 1)) / np.maximum(inside.sum((0, 1)), 1)
    order = np.argsort(-confidence * score, kind="stable")
    masks = softmax(canvas_logits) > 0.4
    result = np.full(SIZE, -1)
    for rank, n in enumerate(order):
        threshold = 0.3 if classes[n] < THINGS else 0.2
        new = masks[..., n] & (result == -1)
        if confidence[n] >= threshold and new.sum() > 0.8 * masks[..., n].sum():
            result[new] = classes[n] * 1000 + (rank + 1 if classes[n] < THINGS else 0)
    for value in np.unique(result[result >= 0]):
        limit = 30 if value // 1000 < THINGS else 60
        if (result == value).sum() < limit:
            result[result == value] = -1
    return result


@pytest.fixture
def prediction():
    """Random predictions of smooth masks with many overlaps: batch 12, 9 x 13 pixels, 10 masks."""
    rng = np.random.default_rng(0)
    coarse = tf.constant(rng.standard_normal((12, 3, 4, 10)) * 4, tf.float32)
    masks = tf.image.resize(coarse, (9, 13), "bicubic")
    classes = tf.constant(rng.standard_normal((12, 10, CLASSES + 1)) * 2, tf.float32)
    return Prediction(masks, classes, pixel_features=None)


def test_equals_pasting_one_by_one(prediction):
    panoptic = SETTINGS(prediction, SIZE, THINGS)
    canvas = tf.compat.v1.image.resize_bilinear(prediction.mask_logits, SIZE, align_corners=True)
    voids = segments = 0
    for i in range(12):
        expected = paste_one_by_one(
            *(np.asarray(v[i], np.float64) for v in (prediction.mask_logits, canvas)),
            np.asarray(prediction.class_logits[i], np.float64),
        )
        ours = assert_same_segments(panoptic, i, expected)
        voids += (expected == -1).sum()
        segments += len(np.unique(ours[ours > 0]))
    assert voids > 0 and segments > 24  # the case is worth the test


def assert_same_segments(panoptic, i, expected):
    """Compares image i with a map of `paste_one_by_one`; returns its segment map."""
    ours = panoptic.segment_map[i].numpy()
    assert ((ours == 0) == (expected == -1)).all()
    for k in np.unique(ours[ours > 0]):
        [value] = np.unique(expected[ours == k])
        assert (ours[expected == value] == k).all()
        assert panoptic.segment_class[i, k - 1] == value // 1000
    return ours


def test_an_assignment_is_merged_as_masks_without_doubt(prediction):
    """On a grid of stride 4 a pixel has the area 16."""
    canvas = tf.compat.v1.image.resize_bilinear(prediction.mask_logits, SIZE, align_corners=True)
    assignment = tf.argmax(canvas, axis=-1, output_type=tf.int32)
    settings = dataclasses.replace(SETTINGS, thing_area=16 * 30, stuff_area=16 * 60)
    size = [4 * (side - 1) + 1 for side in SIZE]
    panoptic = settings.merge_assignment(assignment, prediction.class_logits, size, THINGS)
    lost = 0
    for i, classes in enumerate(np.asarray(prediction.class_logits, np.float64)):
        sure = 100.0 * np.eye(10)[assignment[i]]
        expected = paste_one_by_one(sure, sure, classes)
        ours = assert_same_segments(panoptic, i, expected)
        lost += len(np.unique(assignment[i])) - len(np.unique(ours[ours > 0]))
    assert lost > 12  # some are too small, unsure or joined


def test_segments_that_are_not_on_the_map_are_not_listed(prediction):
    panoptic = SETTINGS(prediction, SIZE, THINGS)
    for segment_map, classes, *scores, _ in zip(*panoptic, strict=True):
        on_map = set(np.unique(segment_map)) - {0}
        assert on_map == set(np.flatnonzero(classes.numpy() >= 0) + 1)
        for score in scores:
            assert on_map == set(np.flatnonzero(score.numpy() > 0) + 1)


def test_pixel_threshold_that_three_masks_could_pass_is_refused():
    with pytest.raises(ValueError, match="pixel_threshold is 0.3"):
        PostProcess(pixel_threshold=0.3)


def test_scores_and_semantic_map(prediction):
    panoptic = SETTINGS(prediction, SIZE, THINGS)
    canvas = tf.compat.v1.image.resize_bilinear(prediction.mask_logits, SIZE, align_corners=True)
    class_probability = softmax(prediction.class_logits.numpy().astype(np.float64))[..., :-1]
    mask_probability = softmax(canvas.numpy().astype(np.float64)).max(-1)
    likeliest = canvas.numpy().argmax(-1)
    pasted = SETTINGS.paste(prediction, SIZE, THINGS)
    shared = 0
    for i in range(12):
        classes, confidence = class_probability[i].argmax(-1), class_probability[i].max(-1)
        np.testing.assert_array_equal(panoptic.semantic_map[i], classes[likeliest[i]])
        np.testing.assert_allclose(np.sort(pasted.confidence[i]), np.sort(confidence), rtol=1e-5)
        for k in np.flatnonzero(panoptic.segment_class[i].numpy() >= 0):
            inside = panoptic.segment_map[i].numpy() == k + 1
            # Whose pixel it is shows in the map of masks, which the segments of stuff merge.
            masks = pasted.mask_map[i].numpy()[inside] - 1
            shared += len(np.unique(masks)) > 1
            mean = pasted.confidence[i].numpy()[masks].mean()
            assert float(panoptic.segment_confidence[i, k]) == pytest.approx(mean, rel=1e-5)
            expected = mean * mask_probability[i][inside].mean()
            assert float(panoptic.segment_score[i, k]) == pytest.approx(expected, rel=1e-5)
    assert shared  # some stuff is of several masks


def test_scores_of_a_whole_photo_are_means_of_all_its_pixels():
    """One float32 sum of its 6 million values would be 4 % too high, and the order another one."""
    height, width, split = 2000, 3000, 600
    noise = np.random.default_rng(0).uniform(2.4, 5.0, (1, height, width)).astype(np.float32)
    small = np.arange(width) < split
    noise[..., small] += 0.1  # the small mask is the better one
    logits = tf.stack([tf.where(small, 0.0, noise), tf.where(small, noise, 0.0)], axis=-1)
    classes = tf.constant([[[9.0, 0, 0, 0, 0, 0], [0, 9.0, 0, 0, 0, 0]]])
    pasted = SETTINGS.paste(Prediction(logits, classes, None), None, THINGS)
    assert pasted.mask_class.numpy().tolist() == [[1, 0]]
    panoptic = SETTINGS.merge(pasted, THINGS)
    probability = 1 / (1 + np.exp(-noise[0].astype(np.float64)))
    expected = [probability[:, small].mean(), probability[:, ~small].mean()]
    confidence = softmax(classes.numpy().astype(np.float64)).max()
    np.testing.assert_allclose(panoptic.segment_score[0], confidence * np.array(expected), 1e-5)


def test_pixels_of_a_pair_are_counted_beyond_the_whole_numbers_of_float32():
    """A sum of ones in float32 stops at 2^24 = 16,777,216."""
    first = tf.fill([1, 4200, 4200], 1)
    second = tf.where(tf.range(4200) < 100, 2, first)
    overlaps = postprocess._overlaps(first, second, 2)
    assert overlaps.dtype == tf.float32
    np.testing.assert_array_equal(overlaps, [[[4200 * 4100, 4200 * 100], [0, 0]]])


def test_a_tpu_rounds_no_area(prediction, round_products):
    exact = SETTINGS(prediction, SIZE, THINGS)
    round_products()
    for ours, expected in zip(SETTINGS(prediction, SIZE, THINGS), exact, strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.xla
@pytest.mark.parametrize("ties", [False, True])
def test_compiled_by_xla_it_is_the_same(prediction, ties):
    size = SIZE
    if ties:
        prediction = prediction._replace(mask_logits=tf.round(prediction.mask_logits / 2) * 2)
        size = prediction.mask_logits.shape[1:3]  # as they are: a resize rounds in its own way
    merge = tf.function(lambda p: SETTINGS(p, size, THINGS), jit_compile=True, autograph=False)
    for ours, eager in zip(merge(prediction), SETTINGS(prediction, size, THINGS), strict=True):
        np.testing.assert_allclose(ours, eager, rtol=1e-5)


def test_golden_maps(golden):
    results = check.check(str(golden), "postprocess")
    assert len(results) == 4 and all(result.passed for result in results), results
