"""The augmentations inside the training step: XLA code of static shapes, from decoded images.

A resize is two products with matrices of weights. What is off the crop has no row in them, and
scaling twice (fit, then random scale) is one matrix, so that nothing larger than the crop is made,
unless it is counted whole (`color.needs_whole`). From the same draws come the pictures of the host
placement, but that the image to paste is the one before in the batch of the same replica.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from kmax_tf.data.transforms import color, copy_paste, geometry, pixels
from kmax_tf.data.transforms.targets import Targets, make_targets

ROUNDING = 2.0**-9  # grey levels; what is this little below a whole number is not cut off


class PlacedParams(NamedTuple):
    """How an image is placed and colored."""

    geometry: geometry.Geometry
    draw: geometry.AugmentParams


class Decoded(NamedTuple):
    """An image as the host sends it, padded at bottom and right to the canvas."""

    image: tf.Tensor  # uint8 [height, width, 3]
    segment_map: tf.Tensor  # uint8 [height, width]
    segments: copy_paste.Segments
    size: tf.Tensor  # int32 [2], without the padding
    drawn: PlacedParams  # [roles]: as an example, and where there is copy-paste as what is pasted
    intact: tf.Tensor  # bool, False where the record was corrupt


def _bilinear(pixels, scaled, fitted, stored, length):
    """Weights float32 [n, length] of a stored side's pixels in `pixels`, int32 [n], of the scaled.

    stored > fitted > scaled: the side's sizes on its way. 0 for pixels that do not exist.
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
    """einsum of weights and the sum of values 0..255, to 1/100 even if bfloat16 is all it takes.

    As on a TPU: 8 bits. So the weights are taken as two parts of 8 bits, and values as well where
    they are not whole.
    """
    parts = [part / 256 for part in _parts(weights * 256)]
    return tf.add_n([tf.einsum(equation, w, v) for w in parts for v in values])


def _sides(decoded, geom):
    """The sizes on the way back, (scaled, fitted, stored) of the rows, and of the columns."""
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
    """The segment map of the scaled image at rows x columns, uint8; 0 where there is no image."""
    height, width = decoded.segment_map.shape
    sides = _sides(decoded, geom)
    down = _nearest(rows, *tf.unstack(sides[0]), height)
    across = _nearest(columns, *tf.unstack(sides[1]), width)
    # Ones and ids under 256: exact in bfloat16.
    ids = tf.einsum("yh,hw->yw", down, tf.cast(decoded.segment_map, tf.float32))
    return tf.cast(tf.einsum("xw,yw->yx", across, ids), tf.uint8)


def _window(geom, size, margin):
    """Rows and columns of the scaled image that the crop shows, `margin` more on each side."""
    rows, columns = (tf.range(-margin, side + margin) for side in size)
    columns = tf.where(geom.flip, size[1] - 1 - columns, columns)
    return rows - geom.offset[0], columns - geom.offset[1]


def _colored(decoded, drawn, rows, columns, magnitude, limit):
    """The scaled image after the color policy, at rows x columns: uint8."""
    geom, draw = drawn

    def window(rows, columns, table):
        image = tf.cast(_resample(decoded, geom, rows, columns) + ROUNDING, tf.uint8)
        frame = color.Frame(rows, columns, geom.scaled)
        return color.augment(image, draw, magnitude, frame, table)

    def whole():
        image = window(*(tf.range(side) for side in limit), pixels.DEVICE)
        image = tf.gather(image, tf.clip_by_value(rows, 0, limit[0] - 1), axis=0)
        return tf.gather(image, tf.clip_by_value(columns, 0, limit[1] - 1), axis=1)

    return tf.cond(color.needs_whole(draw), whole, lambda: window(rows, columns, None))


def _placed(decoded, drawn, options, limit):
    """The image augmented alone, as a `Sample` of the crop's size."""
    geom = drawn.geometry
    # One pixel more on each side, for the sharpness of the outermost.
    rows, columns = _window(geom, options.size, margin=1)
    if options.color is None:
        image = _resample(decoded, geom, rows, columns)
    else:
        image = _colored(decoded, drawn, rows, columns, options.color, limit)
    exists = color.Frame(rows, columns, geom.scaled).within(0)[..., None]
    image = tf.where(exists, tf.cast(image, tf.float32), geometry.GREY)[1:-1, 1:-1]
    segment_map = _resample_map(decoded, geom, rows[1:-1], columns[1:-1])
    return geometry.Sample(image, segment_map)


def _samples(decoded, options):
    """All images in all their roles, as a `Sample` [batch, roles, height, width, ...].

    One after the other, so that the temporaries are those of one image.
    """
    batch, roles = decoded.drawn.draw.flip.shape
    scales = max((*options.scales, *options.paste_scales))
    limit = [
        int(side * scales)
        for side in (options.size if options.resize_to_crop else options.max_decoded_size)
    ]

    def placed(index):
        image, role = index // roles, index % roles
        one = tf.nest.map_structure(lambda x: x[image], decoded)
        return _placed(one, tf.nest.map_structure(lambda x: x[role], one.drawn), options, limit)

    signature = geometry.Sample(
        tf.TensorSpec([*options.size, 3], tf.float32), tf.TensorSpec(options.size, tf.uint8)
    )
    samples = tf.map_fn(placed, tf.range(batch * roles), fn_output_signature=signature)
    return tf.nest.map_structure(lambda x: tf.reshape(x, [batch, roles, *x.shape[1:]]), samples)


def examples(
    decoded: Decoded, options: Any, num_things: int, stride: int
) -> tuple[tf.Tensor, Targets]:
    """One replica's batch of (image float32 [batch, height, width, 3], `Targets`).

    Arguments:
      decoded: a batch of `Decoded`. In a batch of one an image is pasted onto itself.
      options: the experiment's `TrainingInput`.
      num_things, stride: as in `make_targets`.
    """
    samples, segments = _samples(decoded, options), decoded.segments
    own = tf.nest.map_structure(lambda x: x[:, 0], samples)
    image, segment_map, classes = (*own, segments.classes)
    if options.paste_scales:
        other, other_segments = tf.nest.map_structure(
            lambda x: tf.roll(x, 1, axis=0),
            (tf.nest.map_structure(lambda x: x[:, 1], samples), segments),
        )
        image, segment_map, classes = copy_paste.paste(own, segments, other, other_segments)

    def targets(one):
        return make_targets(
            *one,
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
