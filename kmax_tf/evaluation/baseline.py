"""The PQ of predictions without a model, which a trained one should exceed."""

import numpy as np
import tensorflow as tf
from scipy import ndimage
from tqdm import tqdm

from kmax_tf.data.datasets import Dataset
from kmax_tf.data.records import reader
from kmax_tf.data.records.reader import Records
from kmax_tf.evaluation.metrics import Metrics, evaluate_image, ground_truth
from kmax_tf.inference.predictor import ImagePrediction
from kmax_tf.report.quality import GROUPS

LIMIT = 200  # images
SMALLEST = 10  # pixels of a thing found by Otsu's threshold


def measure(records: Records, dataset: Dataset, *, large: bool) -> dict | None:
    """Measures the better one of the trivial predictions on the first images of a split.

    The first one gives all pixels to the most frequent stuff class. The second one exists for one
    thing and one stuff class: connected components above or below Otsu's threshold.

    Args:
        records: of the split.
        dataset: its classes.
        large: the images may be large, see `reader.decode_each`.

    Returns:
        {"name", "num_images", "PQ", "PQ_things", "PQ_stuff"}, in percent as in metrics.json. None
        for a dataset without stuff.
    """
    if dataset.num_things == dataset.num_classes:
        return None
    examples = tf.data.TFRecordDataset(records.paths).take(LIMIT)
    parse = tf.autograph.experimental.do_not_convert(records.parse)
    examples = reader.decode_each(examples, parse, large=large)
    stuff = _most_frequent_stuff(examples, dataset)
    ways = {f"all pixels {dataset.categories[stuff].name}": lambda image: all_one(image, stuff)}
    if (dataset.num_things, dataset.num_classes) == (1, 2):
        ways["Otsu's threshold"] = components
    results = [_score(examples, dataset, *way) for way in ways.items()]
    return max(results, key=lambda result: result["PQ"] or 0)


def _shown(examples):
    """The examples, with a progress bar."""
    bar = dict(desc="trivial baseline", unit="image", leave=False, disable=None)
    return tqdm(examples, **bar)


def _most_frequent_stuff(examples, dataset):
    pixels = np.zeros(dataset.num_classes, np.int64)
    for example in _shown(examples):
        truth = ground_truth(dataset, example)
        area = np.bincount(truth.segment_map.ravel(), minlength=1 + len(truth.segment_class))
        np.add.at(pixels, truth.segment_class, area[1:])
    return dataset.num_things + int(pixels[dataset.num_things :].argmax())


def _score(examples, dataset, name, predict):
    """The result of `measure` for predict(image) -> (segment map, class indices)."""
    totals = Metrics(dataset.categories)
    for number, example in enumerate(_shown(examples)):
        segment_map, classes = predict(example.image.numpy())
        prediction = ImagePrediction(
            image_id=str(number),
            name="",
            segment_map=segment_map,
            semantic_map=np.append(classes, 0)[segment_map - 1],
            segment_class=classes,
            segment_score=np.ones(len(classes), np.float32),
            canvas=None,
            fitted_size=None,
            assignments=(),
        )
        truth = ground_truth(dataset, example)
        totals.add(str(number), evaluate_image(dataset.categories, truth, prediction))
    quality = totals.quality()
    return {"name": name, "num_images": number + 1} | {
        "PQ" + suffix: 100 * quality[group]["pq"] if quality[group]["n"] else None
        for group, suffix in GROUPS
    }


def all_one(image: np.ndarray, stuff: int) -> tuple[np.ndarray, np.ndarray]:
    """Predicts one segment of the class index `stuff`; arguments and results as `components`."""
    return np.ones(image.shape[:2], np.int32), np.array([stuff], np.int32)


def components(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predicts the connected components on one side of Otsu's threshold, the smaller side.

    Args:
        image: uint8 [height, width, 3].

    Returns:
        The segment map, int32 [height, width], and the class index of each segment, int32. Things
        (0) have at least SMALLEST pixels; the last segment is the rest (1).
    """
    gray = np.round(image @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)  # Rec. 601
    bright = gray > otsu(gray)
    things, _ = ndimage.label(bright if 2 * bright.sum() < bright.size else ~bright)
    kept = np.bincount(things.ravel()) >= SMALLEST
    kept[0] = False
    count = int(kept.sum())
    number = np.where(kept, np.cumsum(kept), count + 1).astype(np.int32)
    return number[things], np.array([0] * count + [1], np.int32)


def otsu(gray: np.ndarray) -> int:
    """Computes the threshold of the largest variance between those above and the others.

    N. Otsu, "A threshold selection method from gray-level histograms", 1979.

    Args:
        gray: uint8 [height, width].
    """
    number = np.cumsum(np.bincount(gray.ravel(), minlength=256)).astype(np.float64)
    total = np.cumsum(np.bincount(gray.ravel(), minlength=256) * np.arange(256.0))
    above = number[-1] - number
    difference = number[-1] * total - number * total[-1]
    variance = difference**2 / np.maximum(number * above, 1)  # up to a factor
    return int(variance.argmax())
