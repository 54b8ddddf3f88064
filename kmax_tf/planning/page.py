"""The page of a plan: the fingerprint, what follows from it, and what the model will see."""

import base64
import html

import numpy as np
import tensorflow as tf

from kmax_tf import visualize
from kmax_tf.data import training_input
from kmax_tf.data.records.reader import Records
from kmax_tf.experiment import Experiment
from kmax_tf.planning.fingerprint import Fingerprint
from kmax_tf.planning.plan import Plan
from kmax_tf.planning.rules import STRIDE
from kmax_tf.report import html_page

IMAGES, COLUMNS, THUMBNAIL = 8, 4, 384  # pictures of each kind, and pixels a side
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def write(
    path: str, fingerprint: Fingerprint, plan: Plan, experiment: Experiment, records: Records
) -> None:
    """Writes the page, HTML that loads no other file."""
    sections = [
        f"<header><div><p class='run'>{html.escape(experiment.dataset.name)}</p>"
        f"<p>{fingerprint.num_images:,} images, {len(fingerprint.size):,} of them read ·"
        f" {len(fingerprint.area):,} segments</p></div></header>",
        html_page.section("Numbers", _numbers(fingerprint, plan)),
        html_page.section("Class statistics", _classes(fingerprint, experiment)),
        html_page.section("Images with their labels", _figure(_images(experiment, records))),
        html_page.section("What the model sees in training", _figure(_crops(experiment, records))),
        html_page.section("Settings", _settings(plan)),
    ]
    html_page.write_page(path, f"Plan for {experiment.dataset.name}", sections)


def _numbers(fingerprint, plan):
    side = None if plan.view.scale is None else plan.view.crop / plan.view.scale
    scale = plan.view.scale_of(fingerprint.size)[fingerprint.image]
    thing = fingerprint.is_thing
    columns = {
        "image height": fingerprint.size[:, 0],
        "image width": fingerprint.size[:, 1],
        "void, percent of the pixels": 100 * fingerprint.void,
        "segments of an image": fingerprint.segments_of_crops(None),
        "segments of a crop": fingerprint.segments_of_crops(side),
        "area of things, pixels": fingerprint.area[thing],
        "area of things in training, pixels": (fingerprint.area * scale**2)[thing],
        "longer side of things, pixels": fingerprint.longer_side[thing],
    }
    rows = [
        (name, *(f"{value:,.0f}" for value in np.quantile(values, QUANTILES)))
        for name, values in columns.items()
        if len(values)
    ]
    return html_page.table(("share below", *(f"{100 * q:g} %" for q in QUANTILES)), rows)


def _classes(fingerprint, experiment):
    rows = []
    for index, category in enumerate(experiment.dataset.categories):
        mine = fingerprint.segment_class == index
        images = len(np.unique(fingerprint.image[mine]))
        kind = "thing" if category.isthing else "stuff"
        pixels = fingerprint.area[mine].sum() / np.prod(fingerprint.size, axis=1).sum()
        row = kind, f"{mine.sum():,}", f"{images:,}", f"{100 * pixels:.2f}"
        rows.append((html.escape(category.name), *row))
    head = "class", "kind", "segments", f"of {len(fingerprint.size):,} images", "percent of pixels"
    return html_page.table(head, rows)


def _images(experiment, records):
    """Images of the split with their segments."""
    for record in tf.data.TFRecordDataset(records.paths).take(IMAGES):
        example = records.parse(record)
        segments = [
            (k, category.name, category.color)
            for k, c in enumerate(example.category_id.numpy().tolist(), 1)
            for category in [experiment.dataset.categories[experiment.dataset.class_of_category[c]]]
        ]
        image = example.image.numpy()
        name = example.filename.numpy().decode("utf-8", "replace")
        yield name, visualize.overlay(image, example.segment_map.numpy(), segments)


def _crops(experiment, records):
    """Training crops with the segments that are learned, at the stride of the mask grid."""
    options, dataset = experiment.training_input, experiment.dataset
    examples = training_input.training_input(
        records, dataset, options, stride=STRIDE, batch_size=1, seed=experiment.seed
    )
    compiled = training_input.step_examples(options, dataset, STRIDE, compiled=False)
    for batch in examples.take(IMAGES):
        image, targets = compiled(*batch)
        ids = np.repeat(targets.segment[0].numpy() + 1, STRIDE, axis=0).repeat(STRIDE, axis=1)
        segments = [
            (k, dataset.categories[c].name, dataset.categories[c].color)
            for k, c in enumerate(targets.segment_class[0].numpy().tolist(), 1)
            if c >= 0
        ]
        height, width = options.size
        shown = np.rint(image[0].numpy()).astype(np.uint8)
        count = len(np.unique(ids[ids > 0]))
        yield f"segments: {count}", visualize.overlay(shown, ids[:height, :width], segments)


def _figure(pictures):
    shown = [(name, visualize.thumbnail(picture, THUMBNAIL)) for name, picture in pictures]
    rows = [shown[i : i + COLUMNS] for i in range(0, len(shown), COLUMNS)]
    content = visualize.webp(visualize.contact_sheet(rows), COLUMNS * THUMBNAIL)
    data = base64.b64encode(content).decode()
    return f'<img style="width: 100%" alt="" src="data:image/webp;base64,{data}">'


def _settings(plan):
    rows = [
        (html.escape(s.name), html.escape(str(s.value)), html.escape(s.reason))
        for s in plan.settings
    ]
    return html_page.table(("parameter", "value", "from"), rows, kind="")
