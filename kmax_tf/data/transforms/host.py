"""The augmentations on the host, to the pixel those of the official code.

`device.py` makes the same pictures, inside the training step.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from kmax_tf.data.transforms import color, copy_paste, geometry, pixels
from kmax_tf.data.transforms.geometry import AugmentParams, Sample
from kmax_tf.data.transforms.targets import Targets, make_targets


def example(
    loaded: Sequence[tuple[Sample, copy_paste.Segments]],
    draws: Sequence[AugmentParams],
    options: Any,
    num_things: int,
    stride: int,
) -> tuple[tf.Tensor, Targets]:
    """One image float32 [height, width, 3] of options.size, and its `Targets`.

    Arguments:
      loaded: an image with its segments and, where there is copy-paste, the one to paste.
      draws: of both.
      options: the experiment's `TrainingInput`.
      num_things, stride: as in `make_targets`.
    """
    sample, segments = loaded[0]
    if options.augment:
        sample = augmented(sample, draws[0], options)
    else:
        sample = fit_and_pad(sample, options.size)
    image, segment_map, classes = (*sample, segments.classes)
    if len(loaded) > 1:
        other, other_segments = loaded[1]
        other, corner = shown(other, draws[1], options)
        image, segment_map, classes = copy_paste.paste_part(
            sample, segments, other, other_segments, corner
        )
    return image, make_targets(
        segment_map, classes, num_things=num_things, stride=stride, **options.target_options
    )


def augmented(sample: Sample, draw: AugmentParams, options: Any) -> Sample:
    """One image with its augmentations, a `Sample` of options.size.

    The image becomes float32 [height, width, 3].
    """
    return pad(*shown(sample, draw, options), options.size)


def shown(sample: Sample, draw: AugmentParams, options: Any) -> tuple[Sample, tf.Tensor]:
    """What the crop shows of the augmented image, a `Sample` [h, w, ...] of its size at most.

    Returns also its corner in the crop, int32 [2].
    """
    fitted = options.fitted(tf.shape(sample.segment_map))
    geom = geometry.locate(fitted, draw, options.size)
    begin, end, corner = geometry.window(geom, options.size)
    image = resize_image(sample.image, fitted, geom.scaled)
    if options.color is None:
        image = pixels.cut(image, begin, end)
    else:
        image = _colored(tf.cast(image, tf.uint8), begin, end, draw, options.color)
    segment_map = resize_map(sample.segment_map, begin, end, fitted, geom.scaled)
    return mirror(Sample(image, segment_map), geom.flip), corner


def _colored(image, begin, end, draw, magnitude):
    """The image, uint8, colored, from `begin` to `end`.

    The official code colors before it crops; most operations give the same pixels afterwards.
    """

    def whole():
        frame = color.whole(image, shown=lambda x: pixels.cut(x, begin, end))
        return color.augment(image, draw, magnitude, frame)

    def window():
        # One pixel more on each side, for the sharpness of the outermost.
        size = tf.shape(image)[:2]
        first, after = tf.maximum(begin - 1, 0), tf.minimum(end + 1, size)
        rows, columns = (tf.range(*side) for side in zip(tf.unstack(first), tf.unstack(after)))
        frame = color.Frame(rows, columns, size)
        colored = color.augment(pixels.cut(image, first, after), draw, magnitude, frame, None)
        return pixels.cut(colored, begin - first, end - first)

    return tf.cond(color.needs_whole(draw), whole, window)


def resize_image(image: tf.Tensor, *sizes: tf.Tensor) -> tf.Tensor:
    """Scales [h, w, 3] to each size, int32 [2], in turn: float32, bilinear, corners aligned."""
    image = tf.cast(image, tf.float32)
    for size in sizes:
        image = tf.cond(
            tf.reduce_all(tf.shape(image)[:2] == size),
            lambda image=image: image,
            lambda image=image, size=size: tf.compat.v1.image.resize_bilinear(
                image[None], size, align_corners=True
            )[0],
        )
    return image


def resize_map(
    segment_map: tf.Tensor, begin: tf.Tensor, end: tf.Tensor, *sizes: tf.Tensor
) -> tf.Tensor:
    """From `begin` to `end`, int32 [2], the map [h, w] scaled to each size in turn.

    To the nearest pixel, corners aligned.
    """
    ways = tf.unstack(tf.stack([*reversed(sizes), tf.shape(segment_map)]), axis=1, num=2)
    rows, columns = (
        geometry.nearest(tf.range(first, after), *tf.unstack(way))
        for first, after, way in zip(tf.unstack(begin), tf.unstack(end), ways, strict=True)
    )
    # Columns first, which are the slower ones: there are fewer of them before the rows.
    return tf.gather(tf.gather(segment_map, columns, axis=1), rows, axis=0)


def resize(sample: Sample, size: tf.Tensor) -> Sample:
    """Scales a sample to `size`, int32 (height, width); the image becomes float32 [h, w, 3]."""
    return Sample(
        resize_image(sample.image, size),
        resize_map(sample.segment_map, tf.zeros([2], tf.int32), size, size),
    )


def mirror(sample: Sample, flip: tf.Tensor) -> Sample:
    """The sample [h, w, ...], mirrored left to right where `flip`, a bool scalar."""
    return tf.nest.map_structure(
        lambda x: tf.cond(flip, lambda: tf.reverse(x, axis=[1]), lambda: x), sample
    )


def pad(sample: Sample, corner: tf.Tensor, size: tuple[int, int]) -> Sample:
    """Puts the sample into `size` (height, width), its corner at `corner`, int32 [2].

    The image becomes float32, grey around; the map is void there.
    """
    image = pixels.pad(tf.cast(sample.image, tf.float32), corner, size, geometry.GREY)
    return Sample(image, pixels.pad(sample.segment_map, corner, size, 0))


def fitted_size(sample: Sample, size: tuple[int, int]) -> tf.Tensor:
    """The largest size (height, width), int32, of the sample's proportions that `size` holds."""
    fitted = geometry.fit(tf.shape(sample.segment_map), size, size)
    return tf.maximum(fitted, 1)  # of a line of pixels


def fit_and_pad(sample: Sample, size: tuple[int, int]) -> Sample:
    """Evaluation input: scaled to fit into `size` (height, width), padded at bottom and right."""
    return pad(resize(sample, fitted_size(sample, size)), tf.constant([0, 0]), size)
