"""Images streamed into PQ, mask AP and mIoU, against the official scripts on the same images."""

import contextlib
import io
import json
import pathlib

import numpy as np
import pytest
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kmax_tf.data.coco_panoptic import read_panoptic
from kmax_tf.data.coco_writer import PanopticWriter
from kmax_tf.data.datasets import Category
from kmax_tf.data.label_png import decode_ids
from kmax_tf.evaluation import metrics
from kmax_tf.evaluation.coco_score import panoptic_quality
from kmax_tf.evaluation.metrics import GROUPS, GroundTruth, Metrics, evaluate_image
from kmax_tf.inference.predictor import ImagePrediction

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/panoptic_quality"
CATEGORIES = tuple(
    Category(10 + i, f"class {i}", i < 3, (i, 0, 0)) for i in range(5)
)  # 3 things, 2 stuff
SIZE = (240, 260)  # holds small, medium and large segments


def predicted(segment_map, segment_class, segment_score, semantic_map):
    return ImagePrediction(
        "0", "0.jpg", segment_map, semantic_map, segment_class, segment_score, None, None, ()
    )


def random_map(rng, num_segments):
    """int32 [*SIZE]: blobs and void, not every segment visible."""
    segment_map = np.zeros(SIZE, np.int32)
    for k in range(1, num_segments + 1):
        height, width = rng.integers(5, 200, 2)
        top, left = rng.integers(0, SIZE[0] - 5), rng.integers(0, SIZE[1] - 5)
        segment_map[top : top + height, left : left + width] = k
    return segment_map


def random_image(rng):
    """A label with crowd and void, and a prediction that is partly right."""
    truth_map = random_map(rng, 9)
    truth_class = rng.integers(0, 5, 9)
    crowd = (rng.random(9) < 0.3) & (truth_class < 3)
    shift = rng.integers(-4, 5, 2)
    predicted_map = np.roll(truth_map, shift, (0, 1))
    extra = random_map(rng, 3)
    predicted_map = np.where(extra > 0, extra + 9, predicted_map)
    predicted_class = np.concatenate([truth_class, rng.integers(0, 5, 3)])
    wrong = rng.random(12) < 0.2
    predicted_class[wrong] = rng.integers(0, 5, wrong.sum())
    score = (rng.random(12) * 8).astype(int) / 8  # with ties
    return (
        GroundTruth(truth_map, truth_class, crowd),
        predicted(predicted_map, predicted_class, score, rng.integers(0, 5, SIZE)),
    )


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [random_image(rng) for _ in range(12)]


@pytest.fixture(scope="module")
def streamed(images):
    metrics = Metrics(CATEGORIES)
    for number, (truth, prediction) in enumerate(images):
        metrics.add(str(number), evaluate_image(CATEGORIES, truth, prediction))
    return metrics


def write(folder, name, maps, classes, crowds):
    """The images as COCO panoptic files."""
    writer = PanopticWriter(f"{folder}/{name}.json", f"{folder}/{name}", CATEGORIES)
    for number, (segment_map, segment_class, crowd) in enumerate(zip(maps, classes, crowds)):
        segments = [
            {
                "id": int(k),
                "category_id": CATEGORIES[segment_class[k - 1]].id,
                "iscrowd": int(crowd[k - 1]),
            }
            for k in np.unique(segment_map)
            if k
        ]
        writer.add(number, f"{number}.jpg", segment_map, segments)
    writer.finish()
    return f"{folder}/{name}.json", f"{folder}/{name}"


@pytest.fixture
def as_files(images, tmp_path):
    truths, predictions = zip(*images)
    none = [np.zeros(12, bool)] * len(images)
    return (
        *write(
            tmp_path, "gt", *zip(*((t.segment_map, t.segment_class, t.is_crowd) for t in truths))
        ),
        *write(
            tmp_path,
            "pred",
            [p.segment_map for p in predictions],
            [p.segment_class for p in predictions],
            none,
        ),
    )


def assert_close(ours, theirs):
    for group in GROUPS:
        assert ours[group] == pytest.approx(theirs[group], rel=0, abs=1e-12)
    assert ours["per_class"].keys() == theirs["per_class"].keys()
    for category, expected in theirs["per_class"].items():
        assert ours["per_class"][category] == pytest.approx(expected, rel=0, abs=1e-12)


def test_panoptic_quality_is_that_of_the_files(streamed, as_files):
    assert_close(streamed.quality(), panoptic_quality(*as_files))


def test_panoptic_quality_is_that_of_panopticapi(streamed, as_files):
    evaluation = pytest.importorskip("panopticapi.evaluation")
    gt_json, gt_folder, pred_json, pred_folder = as_files
    truth, found = (json.loads(pathlib.Path(p).read_text()) for p in (gt_json, pred_json))
    categories = {c["id"]: c for c in truth["categories"]}
    pairs = list(zip(truth["annotations"], found["annotations"], strict=True))
    with contextlib.redirect_stdout(io.StringIO()):
        counts = evaluation.pq_compute_single_core(0, pairs, gt_folder, pred_folder, categories)
    ours = streamed.quality()
    for group, isthing in zip(GROUPS, (None, True, False), strict=True):
        expected, per_class = counts.pq_average(categories, isthing)
        assert ours[group] == pytest.approx(expected, rel=0, abs=1e-12)
        assert group != "All" or ours["per_class"].keys() == per_class.keys()
    for category, entry in ours["per_class"].items():
        theirs = counts[category]
        assert (entry["tp"], entry["fp"], entry["fn"]) == (theirs.tp, theirs.fp, theirs.fn)
        assert entry["iou_sum"] == pytest.approx(theirs.iou, rel=0, abs=1e-12)


def coco_annotations(segment_map, segment_class, image_id, more):
    """COCO annotations of the things on a map, encoded by pycocotools."""
    for k in np.unique(segment_map):
        if k and CATEGORIES[segment_class[k - 1]].isthing:
            rle = mask.encode(np.asfortranarray(segment_map == k))
            yield {
                "image_id": image_id,
                "category_id": int(segment_class[k - 1]),
                "segmentation": rle,
                "area": int(mask.area(rle)),
                **more(k - 1),
            }


def test_average_precision_is_that_of_pycocotools(images, streamed):
    truth, found = [], []
    for number, (label, prediction) in enumerate(images):
        truth += coco_annotations(
            label.segment_map,
            label.segment_class,
            number,
            lambda k, label=label: {"iscrowd": int(label.is_crowd[k])},
        )
        found += coco_annotations(
            prediction.segment_map,
            prediction.segment_class,
            number,
            lambda k, p=prediction: {"score": float(p.segment_score[k])},
        )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in range(len(images))],
            "annotations": [{**entry, "id": i + 1} for i, entry in enumerate(truth)],
            "categories": [{"id": i, "name": str(i)} for i in range(3)],
        }
        coco.createIndex()
        official = COCOeval(coco, coco.loadRes(found), "segm")
        official.evaluate()
        official.accumulate()
        official.summarize()
    ours = streamed.average_precision()
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    assert len(set(official.stats)) > 6  # the case is worth the test
    for name, expected in zip(names, official.stats, strict=True):
        assert ours[name] == pytest.approx(expected, rel=0, abs=1e-12), name
    precision = official.eval["precision"][:, :, :, 0, -1]
    for i in range(3):
        expected = precision[:, :, i].mean()
        assert ours["per_class"][CATEGORIES[i].id] == pytest.approx(expected, abs=1e-12)


def test_mean_iou_is_that_of_the_confusion_matrix(images, streamed):
    confusion = np.zeros([5, 5], int)
    for truth, prediction in images:
        for k, index in enumerate(truth.segment_class, start=1):
            inside = truth.segment_map == k
            confusion[index] += np.bincount(prediction.semantic_map[inside], minlength=5)
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    ours = streamed.mean_iou()
    assert ours["mIoU"] == pytest.approx((confusion.diagonal() / union).mean(), abs=1e-12)
    np.testing.assert_array_equal(streamed.confusion(), confusion)
    assert ours["per_class"][12] == pytest.approx(confusion[2, 2] / union[2], abs=1e-12)


@pytest.mark.parametrize("case", ["mixed_seed0", "crowd_overlap_partial_and_void_growth"])
def test_golden_images(case):
    paths = GOLDEN / "gt", GOLDEN / case
    truth = read_panoptic(str(paths[0] / "panoptic_examples.json"))
    index = {category.id: i for i, category in enumerate(truth.categories)}
    found_of = {
        str(entry["image_id"]): entry
        for entry in json.loads((paths[1] / "pred.json").read_text())["annotations"]
    }
    metrics = Metrics(truth.categories)
    for annotation in truth.annotations:
        entry = found_of[annotation.image_id]
        label = [(s.id, index[s.category_id], s.is_crowd) for s in annotation.segments]
        found = [(s["id"], index[s["category_id"]], 1.0) for s in entry["segments_info"]]
        png = paths[0] / "panoptic_examples" / annotation.png_name
        prediction = numbered(paths[1] / "pred" / entry["file_name"], found)
        metrics.add(
            annotation.image_id,
            evaluate_image(
                truth.categories,
                GroundTruth(*numbered(png, label)),
                predicted(*prediction, np.zeros(prediction[0].shape, np.int32)),
            ),
        )
    official = json.loads((GOLDEN / case / "result.json").read_text())
    official["per_class"] = {int(i): entry for i, entry in official["per_class"].items()}
    assert_close(metrics.quality(), official)
    precision = official["ap_from_panoptic_pycocotools"]
    for name in ("AP", "AP50", "AP75"):
        assert metrics.average_precision()[name] == pytest.approx(precision[name], abs=1e-12)


def numbered(path, segments):
    """A PNG's map with its segments numbered from 1, and what is known of each as arrays."""
    ids = decode_ids(path.read_bytes(), str(path))
    segment_map = np.zeros(ids.shape, np.int32)
    for k, (identity, *_) in enumerate(segments, start=1):
        segment_map[ids == identity] = k
    _, *known = zip(*segments)
    return segment_map, *map(np.array, known)


@pytest.mark.parametrize("seed", range(30))
def test_annotations_are_those_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    number = int(rng.choice([1, 5, 300]))  # 300 need more than a byte
    classes = rng.integers(-1, 5, number)
    noise = rng.integers(0, number + 1, rng.integers(1, 30, 2))
    segment_map = noise.repeat(rng.integers(1, 4), 0).repeat(rng.integers(1, 9), 1)
    crowd = rng.random(number) < 0.5
    found = metrics.coco_annotations(segment_map.astype(np.int32), classes, crowd)
    assert set(found) == {k for k in np.unique(segment_map).tolist() if k and classes[k - 1] >= 0}
    for k, entry in found.items():
        rle = mask.encode(np.asfortranarray(segment_map == k))
        assert entry["segmentation"] == rle and entry["area"] == mask.area(rle)
        assert (entry["id"], entry["category_id"]) == (k, classes[k - 1])
        assert entry["iscrowd"] == crowd[k - 1]


def test_nothing_labelled_and_nothing_found():
    metrics = Metrics(CATEGORIES)
    empty = np.zeros(SIZE, np.int32)
    none = np.zeros(0, np.int32)
    measured = evaluate_image(
        CATEGORIES, GroundTruth(empty, none, none), predicted(empty, none, none, empty)
    )
    assert measured.quality is None  # not 0, for nothing is wrong
    metrics.add("0", measured)
    assert metrics.quality()["All"] == {"pq": 0.0, "sq": 0.0, "rq": 0.0, "n": 0}
    assert metrics.average_precision()["AP"] is None
    assert metrics.mean_iou()["mIoU"] is None
