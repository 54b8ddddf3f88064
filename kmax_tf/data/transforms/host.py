"""The augmentations on the host, equal to the official code's in every pixel.

`device.py` makes the same images inside the training step.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from kmax_tf.data.transforms import color, copy_paste, geometry, pixels
from kmax_tf.data.transforms.geometry import AugmentParams, Sample
from kmax_tf.data.transforms.targets import Targets, make_targets


def make_example(
    samples: Sequence[tuple[Sample, tf.Tensor]],
    params: Sequence[AugmentParams],
    pasted_stuff: tf.Tensor,
    options: Any,
    num_things: int,
    stride: int,
) -> tuple[tf.Tensor, Targets]:
    """Makes one training example.

    Segments are numbered after the crop, so that their limit is that of a crop and not of an image.

    Args:
        samples: an image with the class index of each segment, int32 [n], -1 for void; and, for
            copy-paste, the image to paste with its classes.
        params: the `AugmentParams` of both.
        pasted_stuff: bool [num_classes], from `copy_paste.draw_stuff`.
        options: the experiment's `TrainingInput`.
        num_things, stride: as in `make_targets`.

    Returns:
        The image, float32 [height, width, 3] of options.size, 0 to 255; and its `Targets`.
    """

    def number(sample, classes):
        ids = sample.segment_map
        ids, segments = copy_paste.number_segments(ids, classes, num_things, pasted_stuff)
        return sample._replace(segment_map=ids), segments

    sample, classes = samples[0]
    if options.augment:
        sample = augment(sample, params[0], options)
    else:
        sample = fit_and_pad(sample, options.size, options.resize_to_crop)
    sample, segments = number(sample, classes)
    image, segment_map, classes = (*sample, segments.classes)
    if len(samples) > 1:
        pasted, pasted_classes = samples[1]
        pasted, corner = augment_visible(pasted, params[1], options)
        pasted, pasted_segments = number(pasted, pasted_classes)
        image, segment_map, classes = copy_paste.paste_part(
            sample, segments, pasted, pasted_segments, corner
        )
    return image, make_targets(
        segment_map, classes, num_things=num_things, stride=stride, **options.target_options
    )


def augment(sample: Sample, params: AugmentParams, options: Any) -> Sample:
    """Augments one image: a `Sample` of options.size, its image float32 [height, width, 3]."""
    return pad(*augment_visible(sample, params, options), options.size)


def augment_visible(
    sample: Sample, params: AugmentParams, options: Any
) -> tuple[Sample, tf.Tensor]:
    """Augments the part of an image that the crop shows.

    Returns:
        A `Sample` of at most options.size, and its corner in the crop, int32 [2].
    """
    fitted = options.fitted(tf.shape(sample.segment_map))
    geom = geometry.locate(fitted, params, options.size)
    begin, end, corner = geometry.window(geom, options.size)
    if options.color is None:
        image = resize_window(sample.image, begin, end, fitted, geom.scaled)
    else:
        image = resize_image(sample.image, fitted, geom.scaled)
        image = _augment_color(tf.cast(image, tf.uint8), begin, end, params, options.color)
    segment_map = resize_map(sample.segment_map, begin, end, fitted, geom.scaled)
    return mirror(Sample(image, segment_map), geom.flip), corner


def _augment_color(image, begin, end, params, magnitude):
    """Colors the image, uint8, and cuts it from `begin` to `end`.

    The official code colors before it crops; most operations give the same pixels afterwards.
    """

    def whole():
        frame = color.whole_frame(image, crop=lambda x: pixels.cut(x, begin, end))
        return color.augment(image, params, magnitude, frame)

    def window():
        # One more pixel on each side, because sharpness looks at neighbors.
        size = tf.shape(image)[:2]
        first, after = tf.maximum(begin - 1, 0), tf.minimum(end + 1, size)
        rows, columns = (tf.range(*side) for side in zip(tf.unstack(first), tf.unstack(after)))
        frame = color.Frame(rows, columns, size)
        colored = color.augment(pixels.cut(image, first, after), params, magnitude, frame, None)
        return pixels.cut(colored, begin - first, end - first)

    return tf.cond(color.needs_whole_image(params), whole, window)


def resize_image(image: tf.Tensor, *sizes: tf.Tensor) -> tf.Tensor:
    """Resizes [height, width, 3] to each size, int32 [2], in turn; the result is float32.

    Bilinear, corners aligned.
    """
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


def resize_window(
    image: tf.Tensor, begin: tf.Tensor, end: tf.Tensor, *sizes: tf.Tensor
) -> tf.Tensor:
    """Resizes [height, width, 3] to each size in turn, and cuts it to begin:end.

    Only the pixels that the window needs are touched. Every bit is as of `resize_image`. Sizes,
    `begin` and `end` are int32 [2].
    """
    if not sizes:
        return tf.cast(pixels.cut(image, begin, end), tf.float32)
    *before, size = sizes
    original = before[-1] if before else tf.shape(image)[:2]
    low, high, part = zip(*(_neighbors(begin[i], end[i], size[i], original[i]) for i in (0, 1)))
    first, after = tf.stack([low[0][0], low[1][0]]), tf.stack([high[0][-1], high[1][-1]]) + 1
    pixel = resize_window(image, first, after, *before)
    left, right = (tf.gather(pixel, column[1] - first[1], axis=1) for column in (low, high))
    pixel = left + (right - left) * part[1][:, None]
    top, bottom = (tf.gather(pixel, row[0] - first[0]) for row in (low, high))
    return top + (bottom - top) * part[0][:, None, None]


def _neighbors(begin, end, size, original):
    """The pixels of a side before and after those of its resized one, and the part between them."""
    position = tf.cast(tf.range(begin, end), tf.float32) * geometry.step(size, original)
    low = tf.floor(position)
    high = tf.minimum(tf.cast(tf.math.ceil(position), tf.int32), original - 1)
    return tf.cast(low, tf.int32), high, position - low


def resize_map(
    segment_map: tf.Tensor, begin: tf.Tensor, end: tf.Tensor, *sizes: tf.Tensor
) -> tf.Tensor:
    """Resizes a map, integers [height, width], to each size in turn, and cuts it to begin:end.

    Nearest neighbor, corners aligned. Sizes, `begin` and `end` are int32 [2].
    """
    ways = tf.unstack(tf.stack([*reversed(sizes), tf.shape(segment_map)]), axis=1, num=2)
    rows, columns = (
        geometry.nearest(tf.range(first, after), *tf.unstack(way))
        for first, after, way in zip(tf.unstack(begin), tf.unstack(end), ways, strict=True)
    )
    # Columns are slower to gather, so they come first, when there are fewer rows.
    return tf.gather(tf.gather(segment_map, columns, axis=1), rows, axis=0)


def resize(sample: Sample, size: tf.Tensor) -> Sample:
    """Resizes a sample to `size`, int32 (height, width); its image becomes float32."""
    return Sample(
        resize_image(sample.image, size),
        resize_map(sample.segment_map, tf.zeros([2], tf.int32), size, size),
    )


def mirror(sample: Sample, flip: tf.Tensor) -> Sample:
    """Mirrors a sample [height, width, ...] left to right if `flip`, a bool scalar, is true."""
    return tf.nest.map_structure(
        lambda x: tf.cond(flip, lambda: tf.reverse(x, axis=[1]), lambda: x), sample
    )


def pad(sample: Sample, corner: tf.Tensor, size: tuple[int, int]) -> Sample:
    """Pads a sample to `size` (height, width), with its corner at `corner`, int32 [2].

    The image becomes float32; the margin is gray in the image and void in the map.
    """
    image = pixels.pad(tf.cast(sample.image, tf.float32), corner, size, geometry.GRAY)
    return Sample(image, pixels.pad(sample.segment_map, corner, size, 0))


def fitted_size(sample: Sample, size: tuple[int, int], enlarge: bool = True) -> tf.Tensor:
    """Computes the largest size of the sample's proportions within `size`: int32 [2], in pixels.

    Without `enlarge`, a smaller sample keeps its size.
    """
    return geometry.fit(tf.shape(sample.segment_map), size if enlarge else None, size)


def fit_and_pad(sample: Sample, size: tuple[int, int], enlarge: bool = True) -> Sample:
    """Resizes a sample to its `fitted_size`, and pads it at the bottom and the right."""
    return pad(resize(sample, fitted_size(sample, size, enlarge)), tf.constant([0, 0]), size)


def to_original_size(
    values: tf.Tensor, fitted_size: tf.Tensor, original_size: tf.Tensor
) -> tf.Tensor:
    """Takes a map of `fit_and_pad`, numbers [height, width], back to the image: [*original_size].

    Cuts the padding off and resizes by nearest neighbor. Both sizes are int32 [2], (height, width).
    """
    values = values[None, : fitted_size[0], : fitted_size[1], None]
    resized = tf.compat.v1.image.resize_nearest_neighbor(values, original_size, align_corners=True)
    return resized[0, :, :, 0]
