"""What a fingerprint says about scale, crop, clusters, loss and merging.

Each rule gives settings, and each setting names the number it comes from.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kmax_tf.data.transforms.copy_paste import MAX_SEGMENTS
from kmax_tf.planning.fingerprint import Fingerprint

STRIDE = 4  # of the mask grid, in pixels of the model's input
GRID_PIXELS = 9  # that a thing should cover, 3 x 3
SMALLEST = 0.05  # share of the things that may be smaller
SCALES = (1 / 8, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1.0, 1.5, 2.0)  # more than 2 shows nothing new
SPREAD = 1.2  # of the random scale, both ways
FILLED = 0.9  # share of a tile's side that nearly all things keep to
SPARE = 1.25  # clusters for each segment of a full crop
BUFFER = 2**28  # bytes of records that wait to be shuffled


class Setting(NamedTuple):
    """One line of the plan."""

    name: str  # of the gin parameter, module.Class.parameter
    value: Any
    reason: str


class View(NamedTuple):
    """How the model sees an image."""

    crop: int  # pixels a side of its input, of training and evaluation
    scale: float | None  # of the images before they are cut into tiles; None: whole images fit
    reason: str

    def scale_of(self, size: np.ndarray) -> np.ndarray:
        """The scale of images of `size`, integers [n, 2]: float64 [n]."""
        if self.scale is not None:
            return np.full(len(size), self.scale)
        return self.crop / size.max(axis=1)


def choose_view(fingerprint: Fingerprint, crops: Sequence[int], usual: int) -> View:
    """Chooses whole images or tiles, their scale and the size of the input.

    Nearly all things should cover `GRID_PIXELS` of the mask grid, and nearly all must fit in a
    tile. Where both cannot be, large things come first.

    Args:
        fingerprint: of the training images.
        crops: sizes of the input that the device can train, ascending, in pixels.
        usual: one of them, that is not made smaller without a reason.
    """
    longer = float(np.quantile(fingerprint.size.max(axis=1), 0.95))
    thing = fingerprint.is_thing
    if not thing.any():
        crop = next((crop for crop in crops if crop >= longer), crops[-1])
        return View(crop, None, f"no things; 95 % of the images have at most {longer:.0f} pixels")
    area = float(np.quantile(fingerprint.area[thing], SMALLEST))
    large = float(np.quantile(fingerprint.longer_side[thing], 0.95))
    needed = STRIDE * math.sqrt(GRID_PIXELS / area)
    small = f"95 % of the things have {area:.0f} or more pixels"
    whole = max(min(needed, SCALES[-1]) * longer, min(usual, longer))
    fitting = [crop for crop in crops if crop >= whole]
    if fitting:
        return View(fitting[0], None, f"{small}, and images at most {longer:.0f} a side")
    scale = next((s for s in SCALES if s >= needed), SCALES[-1])
    holding = [crop for crop in crops if FILLED * crop >= scale * large]
    if not holding:
        lost = f"95 % of the things are up to {large:.0f} pixels long: too long for tiles"
        return View(crops[-1], None, lost)
    reason = f"{small}, and are at most {large:.0f} pixels long"
    return View(max(holding[0], usual), scale, reason)


def view_settings(fingerprint: Fingerprint, view: View) -> list[Setting]:
    """Sizes, tiles and the random scale."""
    sizes = [
        Setting("training_input.TrainingInput.size", (view.crop,) * 2, view.reason),
        Setting("experiment.Experiment.evaluation_size", (view.crop,) * 2, "as in training"),
    ]
    base = 1.0
    if view.scale is not None:
        base = view.scale
        scale = f"so that 95 % of things cover {GRID_PIXELS} mask-grid pixels; at most 2"
        sizes += [
            Setting("experiment.Experiment.tiles", "@tiles.Tiles()", "things are small in images"),
            Setting("tiles.Tiles.scale", round(base, 4), scale),
            Setting("tiles.Tiles.overlap", view.crop // 4, "a quarter of a tile"),
            Setting(
                "training_input.TrainingInput.resize_to_crop", False, "crops keep the scale too"
            ),
        ]
    buffer = int(np.clip(BUFFER // max(fingerprint.record_bytes, 1), 16, 1000))
    spread = f"a factor of {SPREAD} around the scale of the evaluation"
    return [
        *sizes,
        Setting("training_input.TrainingInput.scales", "@geometry.scale_set()", spread),
        Setting("geometry.scale_set.low", round(base / SPREAD, 4), ""),
        Setting("geometry.scale_set.high", round(base * SPREAD, 4), ""),
        Setting("geometry.scale_set.step", round(base / 10, 4), ""),
        Setting("training_input.TrainingInput.flip", True, "False where left and right matter"),
        Setting(
            "training_input.TrainingInput.shuffle_buffer",
            buffer,
            f"records of up to {fingerprint.record_bytes:,} bytes",
        ),
    ]


def cluster_settings(
    fingerprint: Fingerprint, view: View, given: int | None = None
) -> list[Setting]:
    """The number of clusters: `given` by weights, or the most segments of a crop or tile."""
    side = None if view.scale is None else view.crop / view.scale
    counts = fingerprint.segments_of_crops(side)
    most = float(np.quantile(counts, 0.99))
    clusters = int(np.clip(16 * math.ceil(SPARE * most / 16), 16, MAX_SEGMENTS // 16 * 16))
    place = "images" if side is None else "tiles"
    reason = f"99 % of the {place} have at most {most:.0f} segments"
    if given is not None:
        clusters, reason = given, f"as many as the weights have; {reason}"
    return [
        Setting("kmax_decoder.ClusterPath.num_clusters", clusters, reason),
        Setting("training_input.TrainingInput.max_segments", clusters, "as many as clusters"),
    ]


def loss_settings(fingerprint: Fingerprint) -> list[Setting]:
    """How the loss treats clusters without a segment."""
    void = float(fingerprint.void.mean())
    weight = "void_share" if void > 0.05 else "nonvoid_share"
    return [
        Setting(
            "criterion.Criterion.unmatched_class_weight",
            weight,
            f"{100 * void:.1f} % of the pixels are void",
        )
    ]


def merging_settings(fingerprint: Fingerprint, view: View) -> list[Setting]:
    """Thresholds and least areas of predicted segments."""
    settings = [
        Setting("postprocess.PostProcess.thing_threshold", 0.4, "as in the demo"),
        Setting("postprocess.PostProcess.stuff_threshold", 0.4, "as in the demo"),
    ]
    scales = view.scale_of(fingerprint.size)[fingerprint.image]
    areas = fingerprint.area * scales**2
    for kind, which in (("thing", fingerprint.is_thing), ("stuff", ~fingerprint.is_thing)):
        # A tile may show a corner of a large piece of stuff.
        if which.any() and not (kind == "stuff" and view.scale is not None):
            classes = fingerprint.segment_class[which]  # a rare one may be smaller than all others
            each = [np.quantile(areas[which][classes == c], 0.01) for c in np.unique(classes)]
            least = float(min(each))
            name = f"postprocess.PostProcess.{kind}_area"
            reason = f"half of the 1 % quantile of areas at this scale, {least:.0f} pixels"
            reason += f", of the smallest {kind} class" if len(each) > 1 else ""
            settings.append(Setting(name, int(least / 2), reason))
    return settings
