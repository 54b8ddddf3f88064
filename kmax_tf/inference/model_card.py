"""Writes the model card of an export, in Markdown."""

import dataclasses
import math
from collections.abc import Sequence

import tf_keras

from kmax_tf.data.transforms import geometry
from kmax_tf.experiment import Experiment
from kmax_tf.inference.file_format import OUTPUTS, FileFormat

TEMPLATE = """# kMaX-DeepLab on {dataset}

Panoptic segmentation by the k-means Mask Transformer (arXiv 2207.04044), exported by kmax_tf.

| | |
|---|---|
{facts}

It was trained on images of {dataset} with the classes below. Measure it on other images before you
rely on it. Scores are not calibrated: they only rank segments of a class.
{large}
## Use

```python
import kmax_tf

model = kmax_tf.load("FOLDER OF THIS FILE")
result = model.predict("photo.jpg")
result.overlay().save("overlay.png")
```

or `kmax predict FOLDER photos/ --out DIR`, or with TensorFlow alone:

```python
model = tf.saved_model.load(FOLDER)
result = model.signatures["serving_default"](images=tf.constant([open("photo.jpg", "rb").read()]))
```

| signature | images |
|---|---|
| `serving_default`, `serving_details` | string [batch]: JPEG, PNG, GIF, or BMP without a palette |
| `uint8`, `uint8_details` | uint8 [batch, height, width, 3], of any size |

Files are decoded as stored, without EXIF rotation. `kmax_tf.predict` applies it.

| output | |
|---|---|
{segments}

With details also:

| output | |
|---|---|
{details}
{files}
## Classes

Things: {things}.

Stuff: {stuff}.
"""

FILES = """
## Other runtimes

A file for another runtime takes images of {height} x {width} pixels, float32 in 0..255. They are
{fitted}, and padded with {gray} at the bottom and the right. Pillow resizes a little
differently from the SavedModel.{merging}

```python
import numpy as np
from PIL import Image, ImageOps

photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
{fit}
image = np.full((1, {height}, {width}, 3), {gray}, np.float32)
image[0, : photo.height, : photo.width] = photo
```
{uses}
`result["segment_map"][0, : photo.height, : photo.width]` is without the padding.

| output | |
|---|---|
{outputs}
"""

AT_THIS_SIZE = """

Such a file merges masks at this size, and the SavedModel at the image's: segments can differ."""
FIT = "photo = ImageOps.contain(photo, ({width}, {height}), Image.Resampling.BILINEAR)"
SHRINK = "photo.thumbnail(({width}, {height}), Image.Resampling.BILINEAR)  # if it is larger"
SCALE = """scale = min({scale:g}, {width} / photo.width, {height} / photo.height)
photo = ImageOps.scale(photo, scale, Image.Resampling.BILINEAR)"""

USE = """
`{file_name}`, with {runtime}:

```python
{use}
```
"""

LARGE = """
## Large images

`kmax_tf.predict` and `kmax predict` scale an image by {scale:g}. They cut one that is larger
than {height} x {width} pixels then into tiles of that size, which share at least {overlap} pixels.
The signatures cut no tiles. They shrink such an image to fit, and lose its small things. Use
`kmax_tf.predict` for it.
"""


def text(
    experiment: Experiment,
    model: tf_keras.Model,
    facts: Sequence[tuple[str, str]],
    segments: dict[str, str],
    details: dict[str, str],
    formats: Sequence[FileFormat] = (),
) -> str:
    """Returns the model card of an export.

    Args:
        facts: (name, value) pairs about the weights.
        segments, details: {output: description} of the signatures.
        formats: of the files for other runtimes.
    """
    dataset, merging = experiment.dataset, experiment.postprocess
    height, width = experiment.evaluation_size
    tiles, clusters = experiment.tiles, model.cluster_path.num_clusters
    large, fitted = "", "images are resized to fit"
    if not experiment.enlarges:
        fitted = f"larger {fitted}"
    if tiles:
        fitted = "larger images are cut into tiles"
        large = LARGE.format(**dataclasses.asdict(tiles), height=height, width=width)
    parameters = sum(math.prod(v.shape) for v in model.trainable_variables)
    rows = [
        *facts,
        ("input", f"{height} x {width} pixels; {fitted}"),
        ("segments", f"at most {clusters} {'a tile' if tiles else 'an image'}"),
        ("precision", experiment.precision),
        ("trainable parameters", f"{parameters:,}, including the semantic branch of training"),
        (
            "merging",
            f"things above {merging.thing_threshold}, stuff {merging.stuff_threshold},"
            f" overlap {merging.overlap_threshold}, mask probability {merging.pixel_threshold}",
        ),
    ]
    names = {kind: [c.name for c in dataset.categories if c.isthing == kind] for kind in (1, 0)}
    return TEMPLATE.format(
        dataset=dataset.name,
        files=_files(formats, experiment),
        large=large,
        facts=_rows(rows),
        segments=_outputs(segments),
        details=_outputs(details),
        things=", ".join(names[1]) or "none",
        stuff=", ".join(names[0]) or "none",
    )


def weights_facts(path: str, metrics: dict | None) -> list[tuple[str, str]]:
    """Returns the facts about a checkpoint: its name and its metrics, None if there are none."""
    facts = [("weights", "/".join(path.split("/")[-2:]))]
    if metrics:
        names = ("PQ", "PQ_things", "PQ_stuff", "recall", "AP", "mIoU")
        figures = ", ".join(f"{n} {metrics[n]:.1f}" for n in names if metrics.get(n) is not None)
        facts.append(("metrics", f"{figures} on {metrics['num_images']} images"))
    return facts


def _files(formats, experiment):
    if not formats:
        return ""
    (height, width), tiles = experiment.evaluation_size, experiment.tiles
    uses = (USE.format(**kind._asdict()) for kind in formats)
    place = dict(height=height, width=width, gray=geometry.GRAY)
    fitted, fit = "resized to fit", FIT.format(**place)
    if not experiment.enlarges:
        fitted, fit = "resized to fit if they are larger", SHRINK.format(**place)
    if tiles:  # a small image keeps the scale of training
        fitted = f"scaled by {tiles.scale:g}, or less to fit"
        fit = SCALE.format(**place, scale=tiles.scale)
    uses, outputs = "".join(uses), _outputs(OUTPUTS)
    merging = AT_THIS_SIZE if experiment.postprocess.at_image_size else ""
    return FILES.format(
        **place, fitted=fitted, fit=fit, merging=merging, uses=uses, outputs=outputs
    )


def _outputs(described):
    return _rows((f"`{name}`", what) for name, what in described.items())


def _rows(pairs):
    return "\n".join(f"| {name} | {value} |" for name, value in pairs)
