"""Counts the segments that crops and resized images lose, before a training silently lacks them.

Masks are at the model's output stride, so that a segment may have no pixel there. The clusters, and
the rows of the targets, hold a limited number of segments; the smallest ones of an image go first.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from kmax_tf.data import training_input
from kmax_tf.data.datasets import Dataset
from kmax_tf.data.records import corrupt, reader
from kmax_tf.data.records.reader import Records
from kmax_tf.data.training_input import TrainingInput
from kmax_tf.data.transforms import geometry, host
from kmax_tf.data.transforms.copy_paste import MAX_SEGMENTS
from kmax_tf.data.transforms.targets import class_indices

SAMPLE = 200  # images
READ = 1000  # records at most to take the sample from
PIXELS = 6 * 10**7  # of images and crops; with more the sample ends early


class Counts(NamedTuple):
    """Segments without crowd; stuff of one class in an image is one segment."""

    segments: int
    too_small: int  # without a pixel on the mask grid
    too_many: int  # on the grid, but beyond the number that an image may have


class SegmentCounts(NamedTuple):
    """What a sample of images loses in training and in the evaluation."""

    images: int
    training: Counts  # of the segments that crops show
    evaluation: Counts  # of the segments of whole images
    max_segments: int  # of a crop
    num_clusters: int  # of an image or tile in the evaluation
    tiled: bool  # whether the evaluation cuts images into tiles


class _View(NamedTuple):
    """One image as training or the evaluation sees it."""

    shown: np.ndarray  # int64 [1 + segments], original pixels in view of void and each segment
    grid: np.ndarray  # the map on the mask grid: [height, width], k the k-th segment


class _Image(NamedTuple):
    """One image of the sample."""

    classes: np.ndarray  # int32 [segments], class index, -1 for crowd and unknown
    whole: _View  # in the evaluation
    crops: tuple[_View, ...]  # in training: as the image and, with copy-paste, as the pasted one
    pasted_stuff: np.ndarray  # bool [num_classes]


def of_experiment(records: Records, experiment: Any, model: Any) -> SegmentCounts:
    """Counts the segments of `records` for an `Experiment` and its model."""
    return count(
        records,
        experiment.dataset,
        experiment.training_input,
        evaluation_size=experiment.evaluation_size,
        scale=experiment.tiles.scale if experiment.tiles else None,
        stride=model.output_stride,
        num_clusters=model.cluster_path.num_clusters,
    )


def count(
    records: Records,
    dataset: Dataset,
    options: TrainingInput,
    *,
    evaluation_size: tuple[int, int],
    scale: float | None,
    stride: int,
    num_clusters: int,
) -> SegmentCounts:
    """Counts the segments of a sample of images, the same in every call.

    Args:
        records: of one split.
        options: of the training; its `max_segments` is the limit of a crop.
        evaluation_size: height and width in pixels, of the evaluation's image or of a tile.
        scale: of images that are cut into tiles; None: each image is fitted.
        stride: the model's output stride.
        num_clusters: of the model, the limit of an image or tile of the evaluation.

    Raises:
        InputError: a record is corrupt, and `options` do not skip it; or a file cannot be opened.
    """
    side = [1 + (pixels - 1) // stride for pixels in evaluation_size]
    training, evaluation, before = [], [], None
    with reader.named_errors(records, "the split", skips=options.skip_corrupt):
        for image in _sample(records, dataset, options, evaluation_size, scale, stride):
            pasted = before if len(image.crops) > 1 else None
            training.append(_count_crop(image, pasted, dataset, options))
            evaluation.append(_count_whole(image, dataset, side, num_clusters))
            before = image
    nothing = Counts(0, 0, 0)  # all records may be corrupt, and skipped
    return SegmentCounts(
        images=len(training),
        training=Counts(*map(sum, zip(nothing, *training))),
        evaluation=Counts(*map(sum, zip(nothing, *evaluation))),
        max_segments=options.max_segments,
        num_clusters=num_clusters,
        tiled=scale is not None,
    )


def _sample(
    records: Records,
    dataset: Dataset,
    options: TrainingInput,
    evaluation_size: tuple[int, int],
    scale: float | None,
    stride: int,
) -> Iterator[_Image]:
    """Yields images that are evenly spread over the first shards, each of which spans the split."""
    options = dataclasses.replace(options, color=None)  # without a use for the maps
    pastes = options.augment and options.paste_scales

    @tf.autograph.experimental.do_not_convert
    def load(number, record):
        example = (
            corrupt.parse_or_blank(record, records.parse)[0]
            if options.skip_corrupt
            else records.parse(record)
        )
        sample = geometry.Sample(example.image, example.segment_map)
        *params, stuff = training_input.draw_params(tf.stack([0, number]), dataset, options)
        return tf.size(sample.segment_map), _Image(
            classes=tf.where(example.is_crowd, -1, class_indices(dataset, example.category_id)),
            whole=_resize(sample, evaluation_size, options.resize_to_crop, scale, stride),
            crops=tuple(_crop(sample, p, options, stride) for p in params[: 2 if pastes else 1]),
            pasted_stuff=stuff,
        )

    chosen = _spread(records, options.skip_corrupt)
    images = reader.decode_each(chosen, load, large=scale is not None)
    pixels = 0
    for size, image in images.as_numpy_iterator():
        yield image
        pixels += int(size) + math.prod(options.size)
        if pixels > PIXELS:
            return


def _spread(records, skip):
    """A dataset of (number, record), at most SAMPLE of them."""
    number = reader.count(records)
    wanted = min(SAMPLE, number)
    shards = math.ceil(wanted * len(records.paths) / number)  # as many as hold the sample
    present = min(READ, number * shards // len(records.paths))
    paths = tf.data.Dataset.from_tensor_slices(records.paths[:shards])
    ordered = paths.flat_map(lambda path: corrupt.read(path, skip)).enumerate()
    return ordered.filter(lambda i, _: i * wanted % present < wanted).take(wanted)


def _resize(sample, evaluation_size, enlarge, scale, stride):
    """The `_View` of an image in the evaluation."""
    size = host.fitted_size(sample, evaluation_size, enlarge)
    if scale:
        scaled = tf.cast(tf.shape(sample.segment_map), tf.float32) * scale
        size = tf.maximum(tf.cast(tf.round(scaled), tf.int32), 1)
    segment_map = host.resize(sample, size).segment_map
    return _View(tf.math.bincount(sample.segment_map), segment_map[::stride, ::stride])


def _crop(sample, params, options, stride):
    """The `_View` of an image that is augmented with `params`."""
    if not options.augment:
        return _resize(sample, options.size, options.resize_to_crop, None, stride)
    shape = tf.shape(sample.segment_map)
    sent = host.resize(sample, options.sent(shape))
    fitted = options.fitted(tf.shape(sent.segment_map))
    place = geometry.locate(fitted, params, options.size)
    begin, end, _ = geometry.window(place, options.size)
    (top, bottom), (left, right) = (
        tf.unstack(geometry.nearest(tf.stack([first, after - 1]), *tf.unstack(sides)))
        for first, after, sides in zip(
            tf.unstack(begin), tf.unstack(end), tf.unstack([place.scaled, fitted, shape], axis=1)
        )
    )
    segment_map = host.augment(sent, params, options).segment_map
    return _View(
        tf.math.bincount(sample.segment_map[top : bottom + 1, left : right + 1]),
        segment_map[::stride, ::stride],
    )


def _identities(classes, dataset, first):
    """Unique numbers of an image's segments, [1 + segments]: stuff by class, things from `first`.

    Void, at 0, and segments without a class have 0.
    """
    things = first + np.arange(len(classes))
    own = np.where(classes < dataset.num_things, things, 1 + classes)
    return np.concatenate([[0], np.where(classes < 0, 0, own)])


def _unnumbered(image, view, dataset, first):
    """The set of the segments in a view of an image that MAX_SEGMENTS numbers leave out.

    `copy_paste.number_segments` numbers what is pasted, then the other stuff.
    """
    identities = _identities(image.classes, dataset, first)
    present = _found(identities, view.shown)
    stuff = image.classes >= dataset.num_things
    last = stuff & ~image.pasted_stuff[np.maximum(image.classes, 0)]
    ordered = identities[1:][np.argsort(last, kind="stable")]
    numbered = [i for i in dict.fromkeys(ordered.tolist()) if i in present]
    return set(numbered[MAX_SEGMENTS:])


def _found(identities, pixels):
    """The set of the segments with pixels, from the number of pixels of each."""
    return set(identities[np.flatnonzero(pixels)].tolist()) - {0}


def _on_grid(identities, grid):
    return _found(identities, np.bincount(grid.ravel()))


def _count_crop(image, pasted, dataset, options):
    """The `Counts` of a crop onto which the image `pasted` is pasted, None for none."""
    on_device = options.placement == "device"  # which gets the map of the whole image
    own, first = image.crops[0], 1 + dataset.num_classes
    identities = _identities(image.classes, dataset, first)
    shown, grid = _found(identities, own.shown), _on_grid(identities, own.grid)
    unnumbered = _unnumbered(image, image.whole if on_device else own, dataset, first)
    if pasted:
        above = pasted.crops[1]
        numbered, after = pasted.whole if on_device else above, first + len(image.classes)
        unnumbered |= _unnumbered(pasted, numbered, dataset, after)
        stays = (pasted.classes >= dataset.num_things) & ~image.pasted_stuff[pasted.classes]
        classes = np.where(stays, -1, pasted.classes)
        added = _identities(classes, dataset, first + len(image.classes))
        visible = np.where(added[above.grid] > 0, 0, own.grid)
        covered = grid - _on_grid(identities, visible)
        on_top = _on_grid(added, above.grid)
        shown = (shown - covered) | _found(added, above.shown)
        grid = (grid - covered) | on_top
    lost = grid & unnumbered
    return _counts(shown, grid, len(lost) + max(0, len(grid - lost) - options.max_segments))


def _count_whole(image, dataset, side, limit):
    """The `Counts` of a whole image, at most `limit` segments in each [height, width] `side`."""
    identities = _identities(image.classes, dataset, 1 + dataset.num_classes)
    grid = image.whole.grid
    windows = [
        _on_grid(identities, grid[top : top + side[0], left : left + side[1]])
        for top in range(0, grid.shape[0], side[0])
        for left in range(0, grid.shape[1], side[1])
    ]
    beyond = sum(max(0, len(found) - limit) for found in windows)
    return _counts(_found(identities, image.whole.shown), set().union(*windows), beyond)


def _counts(shown, grid, beyond):
    return Counts(len(shown), len(shown - grid), max(0, beyond))


def describe(counts: SegmentCounts) -> list[str]:
    """Returns plain lines: the segments, those lost, and the bindings that change it."""
    training, evaluation = counts.training, counts.evaluation
    images = f"{counts.images} images"
    larger = "experiment.Experiment.evaluation_size, or experiment.Experiment.tiles"
    fewer = "higher, or experiment.Experiment.tiles"
    if counts.tiled:
        larger, fewer = "tiles.Tiles.scale", "higher"
    if not any((*training[1:], *evaluation[1:])):
        return [f"segments: none of {training.segments:,} lost in crops of {images}"]
    return [
        *_lines(
            f"segments in sampled crops of {images}",
            training,
            "bind a larger training_input.TrainingInput.size, or its resize_to_crop to False"
            ' and experiment.Experiment.tiles; with placement "device" also its decoded_size, as'
            " large as the images",
            f"TrainingInput.max_segments {counts.max_segments}: raise it and"
            " kmax_decoder.ClusterPath.num_clusters; the limit is"
            f' {MAX_SEGMENTS} per crop, or per image with TrainingInput.placement "device"',
        ),
        *_lines(
            f"segments of these {images} at the evaluation's size",
            evaluation,
            f"bind a larger {larger}",
            f"the {counts.num_clusters} clusters: bind kmax_decoder.ClusterPath.num_clusters"
            f" {fewer}",
        ),
    ]


def _lines(title, counts, if_small, if_many):
    def share(number):
        return f"{number:,} ({100 * number / counts.segments:.1f} %)"

    lines = [f"{title}: {counts.segments:,}"]
    if counts.too_small:
        what = f"{share(counts.too_small)} have no pixel on the mask grid"
        lines.append(f"    {what}: {if_small}")
    if counts.too_many:
        lines.append(f"    {share(counts.too_many)} are beyond {if_many}")
    return lines if len(lines) > 1 else [f"{lines[0]}, none lost"]
