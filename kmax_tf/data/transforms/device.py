"""The augmentations inside the training step: XLA code of static shapes, from decoded images.

A resize is two products with matrices of weights, which have no row for a pixel off the crop.
Resizing twice (to fit, then by the random scale) is one matrix. So no tensor is larger than the
crop, except for an operation that counts the whole image (`color.needs_whole_image`).

With the same random numbers the result equals host.py's, except that copy-paste takes the previous
image of the batch.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from kmax_tf.data.transforms import color, copy_paste, geometry, pixels
from kmax_tf.data.transforms.targets import Targets, make_targets

ROUNDING = 2.0**-9  # gray levels; a value this little below an integer is not cut off


class PlacedParams(NamedTuple):
    """The parameters of an augmentation, with the place that they give an image of known size."""

    geometry: geometry.Geometry
    augment: geometry.AugmentParams


class Decoded(NamedTuple):
    """An image as the host sends it, padded at the bottom and the right to the decoded size."""

    image: tf.Tensor  # uint8 [height, width, 3], 0 to 255
    segment_map: tf.Tensor  # uint8 [height, width], 0 void, k the k-th segment
    segments: copy_paste.Segments
    size: tf.Tensor  # int32 [2], height and width without the padding
    params: PlacedParams  # [roles]: of the example itself, and with copy-paste as pasted image
    intact: tf.Tensor  # bool, False if the record was corrupt


def _bilinear(pixels, scaled, fitted, stored, length):
    """Weights float32 [n, length] of a side's stored pixels in the scaled pixels, int32 [n].

    The side was resized from `stored` to `fitted` to `scaled` pixels. Pixels outside weigh 0.
    """
    position = tf.cast(pixels, tf.float32) * geometry.step(scaled, fitted)
    low = tf.floor(position)
    high = tf.minimum(low + 1, tf.cast(fitted - 1, tf.float32))
    part = (position - low)[:, None]

    def weights(pixel):
        pixel = pixel[:, None] * geometry.step(fitted, stored)
        return tf.maximum(1 - tf.abs(pixel - tf.range(length, dtype=tf.float32)), 0)

    return (1 - part) * weights(low) + part * weights(high)


def _nearest(pixels, scaled, fitted, stored, length):
    """As `_bilinear`, but the one nearest pixel has the weight 1."""
    exists = (pixels >= 0) & (pixels < scaled)
    nearest = geometry.nearest(pixels, scaled, fitted, stored)
    return tf.one_hot(tf.where(exists, nearest, -1), length)


def _parts(x):
    return tf.round(x), x - tf.round(x)


def _product(equation, weights, *values):
    """einsum of weights with the sum of values 0 to 255, to 1/100 even with bfloat16 operands.

    A TPU takes 8 bits of each operand. So weights are split into two parts of 8 bits, and values
    too unless they are integers.
    """
    parts = [part / 256 for part in _parts(weights * 256)]
    return tf.add_n([tf.einsum(equation, w, v) for w in parts for v in values])


def _sides(decoded, geom):
    """The sizes on the way back, (scaled, fitted, stored), of the rows and of the columns."""
    return tf.unstack(tf.stack([geom.scaled, geom.fitted, decoded.size]), axis=1, num=2)


def _resample(decoded, geom, rows, columns):
    """The pixels of the scaled image at rows x columns: float32 [rows, columns, 3]."""
    height, width, _ = decoded.image.shape
    sides = _sides(decoded, geom)
    down = _bilinear(rows, *tf.unstack(sides[0]), height)
    across = _bilinear(columns, *tf.unstack(sides[1]), width)
    image = _product("yh,hwc->ywc", down, tf.cast(decoded.image, tf.float32))
    return _product("xw,ywc->yxc", across, *_parts(image))


def _resample_map(decoded, geom, rows, columns):
    """The segment map of the scaled image at rows x columns: uint8, 0 outside of the image."""
    height, width = decoded.segment_map.shape
    sides = _sides(decoded, geom)
    down = _nearest(rows, *tf.unstack(sides[0]), height)
    across = _nearest(columns, *tf.unstack(sides[1]), width)
    # Ones, and ids below 256, are exact in bfloat16.
    ids = tf.einsum("yh,hw->yw", down, tf.cast(decoded.segment_map, tf.float32))
    return tf.cast(tf.einsum("xw,yw->yx", across, ids), tf.uint8)


def _window(geom, size, margin):
    """Rows and columns of the scaled image that the crop shows, and `margin` more on each side."""
    rows, columns = (tf.range(-margin, side + margin) for side in size)
    columns = tf.where(geom.flip, size[1] - 1 - columns, columns)
    return rows - geom.offset[0], columns - geom.offset[1]


def _augment_color(decoded, params, rows, columns, magnitude, limit):
    """The scaled image after the color policy, at rows x columns: uint8."""

    def window(rows, columns, table):
        image = _resample(decoded, params.geometry, rows, columns)
        image = tf.cast(image + ROUNDING, tf.uint8)
        frame = color.Frame(rows, columns, params.geometry.scaled)
        return color.augment(image, params.augment, magnitude, frame, table)

    def whole():
        image = window(*(tf.range(side) for side in limit), pixels.DEVICE)
        image = tf.gather(image, tf.clip_by_value(rows, 0, limit[0] - 1), axis=0)
        return tf.gather(image, tf.clip_by_value(columns, 0, limit[1] - 1), axis=1)

    needs_whole = color.needs_whole_image(params.augment)
    return tf.cond(needs_whole, whole, lambda: window(rows, columns, None))


def _augment(decoded, params, options, limit):
    """One image in one role after its augmentation: a `Sample` of the crop's size."""
    geom = params.geometry
    # One more pixel on each side, because sharpness looks at neighbors.
    rows, columns = _window(geom, options.size, margin=1)
    if options.color is None:
        image = _resample(decoded, geom, rows, columns)
    else:
        image = _augment_color(decoded, params, rows, columns, options.color, limit)
    exists = color.Frame(rows, columns, geom.scaled).within(0)[..., None]
    image = tf.where(exists, tf.cast(image, tf.float32), geometry.GRAY)[1:-1, 1:-1]
    segment_map = _resample_map(decoded, geom, rows[1:-1], columns[1:-1])
    return geometry.Sample(image, segment_map)


def _augment_batch(batch, options):
    """All images of a `Decoded` batch in all roles: a `Sample` [batch, roles, height, width, ...].

    The images are made one after the other, to hold the temporaries of one image at a time.
    """
    number, roles = batch.params.augment.flip.shape
    scales = max((*options.scales, *options.paste_scales))
    limit = [
        int(side * scales)
        for side in (options.size if options.resize_to_crop else options.max_decoded_size)
    ]

    def augment(index):
        position, role = index // roles, index % roles
        decoded = tf.nest.map_structure(lambda x: x[position], batch)
        params = tf.nest.map_structure(lambda x: x[role], decoded.params)
        return _augment(decoded, params, options, limit)

    signature = geometry.Sample(
        tf.TensorSpec([*options.size, 3], tf.float32), tf.TensorSpec(options.size, tf.uint8)
    )
    samples = tf.map_fn(augment, tf.range(number * roles), fn_output_signature=signature)
    return tf.nest.map_structure(lambda x: tf.reshape(x, [number, roles, *x.shape[1:]]), samples)


def make_examples(
    decoded: Decoded, options: Any, num_things: int, stride: int
) -> tuple[tf.Tensor, Targets]:
    """Makes one replica's batch of training examples.

    Args:
        decoded: a batch of `Decoded`; if images are pasted, of two or more.
        options: the experiment's `TrainingInput`.
        num_things, stride: as in `make_targets`.

    Returns:
        The images, float32 [batch, height, width, 3], 0 to 255; and their `Targets`.
    """
    samples, segments = _augment_batch(decoded, options), decoded.segments
    sample = tf.nest.map_structure(lambda x: x[:, 0], samples)
    image, segment_map, classes = (*sample, segments.classes)
    if options.paste_scales:
        pasted, pasted_segments = tf.nest.map_structure(
            lambda x: tf.roll(x, 1, axis=0),
            (tf.nest.map_structure(lambda x: x[:, 1], samples), segments),
        )
        image, segment_map, classes = copy_paste.paste(sample, segments, pasted, pasted_segments)

    def targets(map_and_classes):
        return make_targets(
            *map_and_classes,
            num_things=num_things,
            stride=stride,
            **options.target_options,
            table=pixels.DEVICE,
        )

    grid = [-(-side // stride) for side in options.size]
    signature = Targets(
        segment=tf.TensorSpec(grid, tf.int32),
        segment_class=tf.TensorSpec([options.max_segments], tf.int32),
        semantic=tf.TensorSpec(grid, tf.int32),
        semantic_weight=tf.TensorSpec(grid, tf.float32),
    )
    made = tf.map_fn(targets, (segment_map, classes), fn_output_signature=signature)
    intact = tf.cast(decoded.intact, tf.float32)[:, None, None]
    return image, made._replace(semantic_weight=made.semantic_weight * intact)
