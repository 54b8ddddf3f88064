"""What the golden cases do not reach: features between pixels, the options beyond the paper."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf.data.transforms.targets import Targets
from kmax_tf.errors import InputError
from kmax_tf.loss import remax, terms
from kmax_tf.loss.criterion import Criterion
from kmax_tf.loss.matching import match_segments, recall
from kmax_tf.model.kmax import Outputs
from kmax_tf.model.kmax_decoder import Prediction

CLASSES, CLUSTERS, SEGMENTS = 3, 5, 4
RANDOM = np.random.default_rng(0)


def _normal(*shape):
    return tf.constant(RANDOM.normal(size=shape), tf.float32)


def _prediction(height, width):
    return Prediction(
        _normal(2, height, width, CLUSTERS),
        _normal(2, CLUSTERS, CLASSES + 1),
        tf.math.l2_normalize(_normal(2, height, width, 8), axis=-1),
    )


@pytest.fixture
def outputs():
    return Outputs(_prediction(9, 13), (_prediction(3, 4),), _normal(2, 9, 13, CLASSES))


@pytest.fixture
def targets():
    """Three segments of 9 x 13 pixels in bands, the first column void in the first image."""
    segment = np.repeat([[0, 0, 0, 0, 1, 1, 1, 2, 2]], 2, axis=0)[:, :, None].repeat(13, axis=2)
    segment[0, :, 0] = -1
    classes = np.array([[2, 0, 1, -1], [0, 2, 2, -1]], np.int32)
    semantic = np.where(segment >= 0, np.take_along_axis(classes, segment.max(2), 1)[..., None], -1)
    return Targets(
        tf.constant(segment, tf.int32),
        tf.constant(classes),
        tf.constant(semantic, tf.int32),
        tf.ones([2, 9, 13]),
    )


def _losses(outputs, targets, **options):
    noise = tf.constant(RANDOM.uniform(size=[2, 2, 9 * 13]), tf.float32)
    return Criterion(contrast_pixels=9 * 13, **options)(outputs, targets, noise)


@pytest.mark.parametrize("height, width", [(9, 13), (5, 7), (4, 5)])
def test_gathered_features_are_those_of_the_resized_map(height, width):
    features = _normal(2, height, width, 3)
    pixels = tf.constant(RANDOM.integers(0, 9 * 13, [2, 40]), tf.int32)
    whole = tf.compat.v1.image.resize_bilinear(features, [9, 13], align_corners=True)
    expected = tf.gather(tf.reshape(whole, [2, 9 * 13, 3]), pixels, batch_dims=1)
    ours = terms.gather_features(features, pixels, (9, 13))
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_own_resolution_is_the_loss_of_a_smaller_picture(outputs, targets):
    losses = _losses(outputs, targets, native_resolution_supervision=True)
    small = Targets(
        targets.segment[:, ::4, ::4],
        targets.segment_class,
        targets.semantic[:, ::4, ::4],
        targets.semantic_weight[:, ::4, ::4],
    )
    matching = match_segments(outputs.final, targets)
    logits = outputs.auxiliary[0].mask_logits
    cluster = matching.cluster_of_pixel[:, ::4, ::4]
    expected = 3 * terms.pq_mask(logits, cluster, matching.mask_weight)
    np.testing.assert_allclose(losses.pq_mask[1], expected, rtol=1e-6)
    expected = 0.3 * terms.mask_id(logits, cluster, small.semantic >= 0)
    np.testing.assert_allclose(losses.mask_id[1], expected, rtol=1e-6)
    # All twelve pixels take part, whatever their order.
    features = tf.reshape(outputs.auxiliary[0].pixel_features, [2, 12, 8])
    expected = terms.contrast(features, tf.reshape(small.segment, [2, 12]), SEGMENTS)
    np.testing.assert_allclose(losses.contrast[1], expected, rtol=1e-5)
    whole = _losses(outputs, targets)
    np.testing.assert_array_equal(losses.pq_mask[0], whole.pq_mask[0])
    assert not np.allclose(losses.pq_mask[1], whole.pq_mask[1])


def test_found_are_segments_whose_cluster_has_their_class_and_more_than_half_of_them(targets):
    classes = targets.segment_class.numpy()
    cluster = targets.segment.numpy() % CLUSTERS  # void: the last one
    cluster[1, 3] = 4  # segment 0 keeps three rows of four: an IoU of 3 / 4
    cluster[1, 5:7] = 4  # segment 1 keeps one row of three
    predicted = np.pad(np.maximum(classes, 0), [(0, 0), (0, 1)], constant_values=CLASSES)
    predicted[0, 2] = 0  # the class of the first image's segment 2 is 1
    final = Prediction(
        30 * tf.one_hot(cluster, CLUSTERS), 9 * tf.one_hot(predicted, CLASSES + 1), None
    )
    matching = match_segments(final, targets)
    found = recall(final.class_logits, targets.segment_class, matching)
    np.testing.assert_allclose(found, [2 / 3, 2 / 3], rtol=1e-6)
    nothing = targets._replace(segment_class=tf.fill([2, SEGMENTS], -1))
    matching = match_segments(final, nothing)
    found = recall(final.class_logits, nothing.segment_class, matching)
    np.testing.assert_array_equal(found, [1, 1])


def test_a_tpu_keeps_classes_beyond_256(targets, round_products):
    classes = np.array([[257, 999, 511, -1], [301, 0, 255, -1]], np.int32)
    targets = targets._replace(segment_class=tf.constant(classes))
    cluster = targets.segment.numpy() % CLUSTERS  # void: the last one
    final = Prediction(30 * tf.one_hot(cluster, CLUSTERS), tf.zeros([2, CLUSTERS, 1001]), None)
    round_products()
    matching = match_segments(final, targets)
    np.testing.assert_array_equal(matching.class_of_cluster[:, :3], classes[:, :3])


def test_unmatched_clusters_weigh_their_share_of_void_or_the_rest(outputs, targets):
    official, meant = (
        match_segments(outputs.final, targets, u) for u in ("void_share", "nonvoid_share")
    )
    mask = tf.nn.softmax(outputs.final.mask_logits).numpy()[0].reshape(-1, CLUSTERS)
    void = targets.semantic.numpy()[0].reshape(-1) < 0
    share = mask[void].sum(axis=0) / mask.sum(axis=0)
    unmatched = official.class_of_cluster[0].numpy() == CLASSES
    assert unmatched.sum() == 2
    np.testing.assert_allclose(official.class_weight[0].numpy()[unmatched], share[unmatched], 1e-4)
    np.testing.assert_allclose(meant.class_weight[0].numpy()[unmatched], 1 - share[unmatched], 1e-4)
    matched = ~unmatched
    np.testing.assert_array_equal(
        official.class_weight[0].numpy()[matched], meant.class_weight[0].numpy()[matched]
    )
    # The second image has no void at all: officially its unmatched clusters learn nothing.
    assert (official.class_weight[1].numpy()[official.class_of_cluster[1] == CLASSES] < 2e-5).all()
    with pytest.raises(
        InputError, match="unmatched_class_weight 'viod' is neither \"void_share\" nor"
    ):
        Criterion(unmatched_class_weight="viod")


def test_relaxed_masks_follow_the_semantic_branch(outputs):
    prediction = outputs.final
    relaxed = remax.relax_masks(prediction, outputs.semantic_logits).mask_logits.numpy()
    classes = tf.nn.softmax(prediction.class_logits).numpy()[..., :-1]
    semantic = tf.nn.softmax(outputs.semantic_logits).numpy()
    agreement = np.einsum("bnc,bhwc->bhwn", classes, semantic)
    np.testing.assert_allclose(relaxed, prediction.mask_logits * (1 + agreement), rtol=1e-5)
    with tf.GradientTape() as tape:
        tape.watch(outputs.semantic_logits)
        loss = tf.reduce_sum(remax.relax_masks(prediction, outputs.semantic_logits).mask_logits)
    assert tape.gradient(loss, outputs.semantic_logits) is None


def test_class_shares_of_hard_masks_are_fractions_of_each_class():
    semantic = tf.constant([[[0, 0, 1], [0, 0, -1]]])
    cluster = tf.constant([[[0, 1, 1], [1, 1, 1]]])
    shares = remax.reclass_targets(1e4 * tf.one_hot(cluster, 3), semantic, CLASSES)
    np.testing.assert_allclose(shares[0], [[1 / 4, 0, 0, 0], [3 / 4, 1, 0, 0], [0, 0, 0, 0]])


def test_relaxed_class_targets(outputs):
    logits = outputs.final.class_logits
    cluster_class = tf.constant([[0, 1, 2, 3, 3]] * 2)
    weight = tf.constant(RANDOM.uniform(0.5, 1, [2, CLUSTERS]), tf.float32)
    share = RANDOM.uniform(0, 0.1, [2, CLUSTERS, CLASSES + 1]).astype(np.float32)
    target = share + (1 - share) * np.eye(CLASSES + 1)[cluster_class]
    entropy = -(target * tf.nn.log_softmax(logits).numpy()).sum(axis=-1)
    expected = (weight.numpy() * np.where(cluster_class == CLASSES, 0.25, 0.75) * entropy).mean(1)
    ours = terms.pq_class(logits, cluster_class, weight, tf.constant(share))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_relaxation_is_off_by_default_and_changes_what_it_should(outputs, targets):
    plain, relaxed = _losses(outputs, targets), _losses(outputs, targets, relaxation=0.1)
    for field in ("pq_mask", "pq_class", "mask_id"):
        assert not np.allclose(getattr(plain, field), getattr(relaxed, field))
    np.testing.assert_allclose(plain.semantic, relaxed.semantic)
    np.testing.assert_allclose(plain.contrast, relaxed.contrast, rtol=1e-5)
    assert dataclasses.asdict(Criterion())["relaxation"] == 0
