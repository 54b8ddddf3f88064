"""The choice of example images, and their pictures."""

import numpy as np

from kmax_tf import visualize
from kmax_tf.data.datasets import Category
from kmax_tf.evaluation.example_images import BEST, FIRST, WORST, EvaluatedImage, ExampleImages
from kmax_tf.evaluation.metrics import GroundTruth, evaluate_image
from kmax_tf.inference.predictor import ImagePrediction
from kmax_tf.report import chart

CATEGORIES = (Category(1, "cat", True, (255, 0, 0)), Category(2, "sky", False, (0, 0, 255)))
HEIGHT, WIDTH = 30, 40


def evaluated(number, found, drawn):
    """An image of a cat on sky, with `found` of the cat's 20 columns predicted.

    All have one file name, in folders of their own.
    """
    truth = np.full((HEIGHT, WIDTH), 2, np.int32)
    truth[:, :20] = 1
    segment_map = truth.copy()
    segment_map[:, found:20] = 0
    classes = np.array([0, 1])
    prediction = ImagePrediction(
        image_id=f"{number}/image",
        name=f"{number}/image.jpg",
        segment_map=segment_map,
        semantic_map=np.ones_like(segment_map),
        segment_class=classes,
        segment_score=np.ones(2),
        canvas=lambda: drawn.append(number) or np.full((41, 41, 3), 200, np.uint8),
        fitted_size=np.array([30, 40]),
        assignments=(np.zeros((6, 6), np.int32), np.ones((11, 11), np.int32)),
    )
    label = GroundTruth(truth, classes, np.zeros(2, bool))
    return EvaluatedImage(number, prediction, label, evaluate_image(CATEGORIES, label, prediction))


def test_first_best_and_worst(tmp_path):
    examples, drawn = ExampleImages(CATEGORIES), []
    columns = [15] * FIRST + [12, 20, 11, 19, 3, 16, 13, 18, 14, 17]
    for number, found in enumerate(columns):
        examples.offer(evaluated(number, found, drawn))
    (tmp_path / "left").mkdir()
    (tmp_path / "left/over.png").write_text("")
    entries = examples.write(str(tmp_path))
    by_role = {
        role: [e["folder"] for e in entries if e["role"] == role]
        for role in ("first", "worst", "best")
    }
    assert by_role["first"] == [f"{k}%2Fimage" for k in range(4)]
    # 3, 11 and 12 columns found
    assert by_role["worst"] == [f"{k}%2Fimage" for k in (8, 6, 4)] and WORST == 3
    # 20, 19 and 18
    assert by_role["best"] == [f"{k}%2Fimage" for k in (5, 7, 11)] and BEST == 3
    worst = next(e for e in entries if e["folder"] == "8%2Fimage")
    assert worst["missed"] == {"cat": 1} and worst["false"] == {"cat": 1}
    assert worst["PQ"] == 50 and worst["name"] == "8/image.jpg"
    best = next(e for e in entries if e["folder"] == "5%2Fimage")
    assert best["PQ"] == 100 and best["missed"] == best["false"] == {}

    folders = {path.name for path in tmp_path.iterdir()}
    assert folders == {e["folder"] for e in entries}  # the previous ones are gone
    names = {path.name for path in (tmp_path / "8%2Fimage").iterdir()}
    assert names == {f"{n}.webp" for n in ("image", "label", "prediction", "assignment_1")} | {
        "assignment_2.webp"
    }
    assert visualize.decode((tmp_path / "8%2Fimage/image.webp").read_bytes()).shape == (
        HEIGHT,
        WIDTH,
        3,
    )


def test_an_empty_image_that_is_right_has_no_quality(tmp_path):
    """The pages show a dash; 0.00 would say that all is wrong."""
    image, empty = evaluated(0, 20, []), np.zeros((HEIGHT, WIDTH), np.int32)
    prediction = image.prediction._replace(segment_map=empty)
    label = image.ground_truth._replace(segment_map=empty)
    measured = evaluate_image(CATEGORIES, label, prediction)
    examples = ExampleImages(CATEGORIES)
    examples.offer(EvaluatedImage(0, prediction, label, measured))
    (entry,) = examples.write(str(tmp_path))
    assert (entry["PQ"], entry["missed"], entry["false"]) == (None, {}, {})
    assert chart.format_percent(entry["PQ"]) == "–"


def test_large_images_are_kept_with_fewer_pixels(tmp_path):
    height, width = 3000, 4000
    truth = np.full((height, width), 2, np.int32)
    truth[:, :2000] = 1
    image = np.full((height, width, 3), 200, np.uint8)
    image[:, 2000:] = 50
    classes = np.array([0, 1])
    prediction = ImagePrediction(
        "0",
        "0.jpg",
        truth,
        truth - 1,
        classes,
        np.ones(2),
        lambda: image,
        np.array(truth.shape),
        (),
    )
    label = GroundTruth(truth, classes, np.zeros(2, bool))
    measured = evaluate_image(CATEGORIES, label, prediction)
    kept = EvaluatedImage(0, prediction, label, measured).with_cached_image()
    for values in (kept.prediction.segment_map, kept.ground_truth.segment_map):
        assert values.shape == (1500, 2000)
    examples = ExampleImages(CATEGORIES)
    examples.offer(EvaluatedImage(0, prediction, label, measured))
    examples.write(str(tmp_path))
    picture = visualize.decode((tmp_path / "0/image.webp").read_bytes())
    assert picture.shape == (576, 768, 3)
    np.testing.assert_allclose(picture[300, [100, 600]].mean(-1), (200, 50), atol=8)
    for name in ("label", "prediction"):
        assert (tmp_path / f"0/{name}.webp").exists()


def test_images_that_are_not_kept_are_not_drawn():
    examples, drawn = ExampleImages(CATEGORIES), []
    for number, found in enumerate([20] * FIRST + [1, 2, 3, 20, 19, 18] + [10] * 50):
        examples.offer(evaluated(number, found, drawn))
    assert len(drawn) == FIRST + 6 + 3  # six best so far, three worst
