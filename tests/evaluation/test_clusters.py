"""What the clusters of each decoder do, by hand on an image of 4 x 4 pixels."""

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf.data.datasets import Category
from kmax_tf.evaluation import clusters, evaluate
from kmax_tf.evaluation.metrics import GroundTruth
from kmax_tf.inference import predictor
from kmax_tf.inference.predictor import ImagePrediction
from kmax_tf.model.postprocess import PostProcess

CATEGORIES = (Category(1, "cat", True, (255, 0, 0)), Category(2, "sky", False, (0, 0, 255)))
SIZE = (5, 5)  # of the canvas
# Cluster 0 is a cat, 1 and 2 are sky, 3 is void.
CLASS_LOGITS = tf.constant([[[9.0, 0, 0], [0, 9.0, 0], [0, 9.0, 0], [0, 0, 9.0]]])
FIRST = [[0, 1, 3], [0, 2, 3], [3, 3, 3]]  # at stride 2
SECOND = [[0, 0, 1, 1, 3]] * 4 + [[3, 3, 3, 3, 3]]  # at stride 1


def image(assignments, label, fitted_size):
    """The counts of an image with these assignments; its label lists (class, is_crowd)."""
    segment_map, segments = label
    maps = [np.array(assignment, np.int32) for assignment in assignments]
    merged = [
        PostProcess().merge_assignment(tf.constant(m[None]), CLASS_LOGITS, SIZE, 1) for m in maps
    ]
    merged = [tf.nest.map_structure(lambda value: value[0].numpy(), m) for m in merged]
    prediction = ImagePrediction(
        image_id="1",
        name="1.jpg",
        segment_map=None,
        semantic_map=None,
        segment_class=None,
        segment_score=None,
        canvas=None,
        fitted_size=np.array(fitted_size, np.int32),
        assignments=tuple(maps),
        merged_clusters=tuple(merged),
    )
    truth = GroundTruth(segment_map, *(np.array(v) for v in zip(*segments)))
    return clusters.count(CATEGORIES, truth, prediction, SIZE)


def half_cat():
    """A cat in the left half, sky in the right one, and a canvas with one row of padding."""
    label = np.array([[1, 1, 2, 2]] * 4, np.int32), [(0, False), (1, False)]
    return image([FIRST, SECOND], label, (4, 4))


def only_cat():
    """A larger image of a cat alone, found by both decoders."""
    label = np.ones((10, 10), np.int32), [(0, False)]
    return image([np.zeros((3, 3)), np.zeros((5, 5))], label, (5, 5))


def test_one_image():
    # Enlarged, the first decoder has the cat in the first column: 4 of 8 pixels, not above 0.5. The
    # 12 others are sky, 8 of them rightly. Of its four pixels one changes, from cluster 2 to 1.
    # The label is the same at stride 2.
    first, second = clusters.summarize([half_cat()], CATEGORIES)
    assert first.pop("num_images") == second.pop("num_images") == 1
    quality = pytest.approx(100 * (0 + 8 / 12) / 2)
    assert first == {"PQ": quality, "label_PQ": quality, "changed": None, "in_use": 3}
    assert second == {"PQ": 100, "label_PQ": 100, "changed": 25, "in_use": 2}


def test_images_are_summed():
    first, second = clusters.summarize([half_cat(), only_cat()], CATEGORIES)
    assert first.pop("num_images") == second.pop("num_images") == 2
    # Of two cats the first decoder finds one, and adds a false one.
    quality = pytest.approx(100 * (1 / (1 + 0.5 + 0.5) + 8 / 12) / 2)
    assert first == {"PQ": quality, "label_PQ": quality, "changed": None, "in_use": 2}
    changed = pytest.approx(100 / (4 + 9))
    assert second == {"PQ": 100, "label_PQ": 100, "changed": changed, "in_use": 1.5}


def test_the_label_does_not_depend_on_the_prediction():
    label = np.array([[1, 1, 2, 2]] * 4, np.int32), [(0, False), (1, False)]
    void = [np.full((3, 3), 3), np.full((5, 5), 3)]
    decoders = clusters.summarize([image(void, label, (4, 4))], CATEGORIES)
    expected = clusters.summarize([half_cat()], CATEGORIES)
    assert [d["label_PQ"] for d in decoders] == [d["label_PQ"] for d in expected]
    assert [d["PQ"] for d in decoders] == [0, 0]


def test_without_segments_there_is_no_quality():
    void = np.zeros((4, 4), np.int32), [(0, False)]
    nothing = image([np.full((3, 3), 3), np.full((5, 5), 3)], void, (4, 4))
    assert [d["PQ"] for d in clusters.summarize([nothing], CATEGORIES)] == [None, None]


PATH = "kmax_decoder.ClusterPath"


@pytest.mark.parametrize(
    ("number", "bindings"),
    [
        (4, [f"{PATH}.depths = (2, 2)"]),
        (2, [f"{PATH}.depths = (1, 1)", f"{PATH}.dual_path = True", f"{PATH}.drop_query = True"]),
        (0, [f"{PATH}.cross_attention = 'spatial_softmax'", f"{PATH}.deep_supervision = False"]),
    ],
)
def test_the_evaluation_has_the_decoders_of_the_model_and_is_else_the_same(
    tiny, number, bindings, monkeypatch
):
    monkeypatch.setattr(clusters, "LIMIT", 2)  # of three images
    names = ("thing_threshold", "stuff_threshold", "overlap_threshold")
    experiment = tiny(*bindings, *(f"postprocess.PostProcess.{name} = 0.0" for name in names))
    predict = predictor.build_predictor(experiment.build_evaluation_model(), experiment)
    metrics, *_ = evaluate.evaluate(experiment, predict, step=1)
    assert len(metrics["decoders"]) == number
    for i, decoder in enumerate(metrics["decoders"]):
        assert 0 <= decoder["PQ"] <= 100 and 1 <= decoder["in_use"] <= 16
        assert (decoder["changed"] is None) == (i == 0) and decoder["num_images"] == 2
    alone, *_ = evaluate.evaluate(experiment, lambda image: (predict(image)[0], []), step=1)
    assert alone == metrics | {"decoders": []} and alone["mIoU"] > 0
