"""Colour: the auto-augment policy of the reference, with all its oddities.

The factor 1 leaves an image as it is. The policy's magnitudes m mean the factor 0.18 m + 0.1, so
that scaled by 0.2 (Cityscapes) they do not weaken the operations: 0.14 to 0.46, far from 1.
"""

from typing import NamedTuple

import tensorflow as tf

from kmax_tf.data import tables


class Frame(NamedTuple):
    """Which pixels of the whole image a window holds; those outside of it count for nothing."""

    rows: tf.Tensor  # int32 [h], the whole image's row of each of the window's
    columns: tf.Tensor  # int32 [w]
    size: tf.Tensor  # int32 [2], of the whole image

    def within(self, margin):
        """bool [h, w]: the pixels at least `margin` away from the outside."""
        last = self.size - 1 - margin
        rows = (self.rows >= margin) & (self.rows <= last[0])
        return rows[:, None] & (self.columns >= margin) & (self.columns <= last[1])


def whole(image):
    """The frame of an image that is its own window."""
    size = tf.shape(image)[:2]
    return Frame(tf.range(size[0]), tf.range(size[1]), size)


def _blend(degenerate, image, factor):
    """uint8 images mixed, `factor` of the second; cut off to whole numbers."""
    degenerate, image = tf.cast(degenerate, tf.float32), tf.cast(image, tf.float32)
    mixed = degenerate + factor * (image - degenerate)
    return tf.cast(tf.clip_by_value(mixed, 0.0, 255.0), tf.uint8)


def _factor(magnitude):
    return magnitude / 10 * 1.8 + 0.1


def brightness(image, magnitude, frame, table):
    """Darker below magnitude 5, brighter above."""
    return _blend(tf.zeros_like(image), image, _factor(magnitude))


def color(image, magnitude, frame, table):
    """Towards grey below magnitude 5, away from it above."""
    red, green, blue = tf.unstack(tf.cast(image, tf.float32) / 255, axis=-1)
    luma = red * 0.2989 + green * 0.587 + blue * 0.114
    return _blend(tf.cast(luma * 255.5, tf.uint8)[..., None], image, _factor(magnitude))


def contrast(image, magnitude, frame, table):
    """Towards one grey below magnitude 5, away from it above.

    The grey is the number of pixels over 256, where the mean was meant: white, but in small images.
    """
    grey = tf.cast(tf.minimum(tf.reduce_prod(frame.size) / 256, 255), tf.uint8)
    return _blend(grey, image, _factor(magnitude))


def solarize(image, magnitude, frame, table):
    """Inverts what is at least as bright as a threshold."""
    return tf.where(image < int(magnitude / 10 * 256), image, 255 - image)


def sharpness(image, magnitude, frame, table):
    """Blurs below magnitude 5, sharpens above; the outermost pixels stay."""
    padded = tf.pad(tf.cast(image, tf.int32), [[1, 1], [1, 1], [0, 0]])
    across = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    total = across[:-2] + across[1:-1] + across[2:] + 4 * tf.cast(image, tf.int32)
    blurred = tf.where(frame.within(1)[..., None], tf.cast(total // 13, tf.uint8), image)
    return _blend(blurred, image, _factor(magnitude))


def equalize(image, magnitude, frame, table):
    """Makes all levels of each channel about equally frequent; it has no magnitude."""
    valid = frame.within(0)

    def channel(values):
        count = table.count(tf.where(valid, tf.cast(values, tf.int32), 256), 257)[:256]
        last = tf.gather(count, tf.reduce_max(tf.where(count > 0, tf.range(256), 0)))
        step = (tf.reduce_sum(count) - last) // 255
        levels = (tf.cumsum(count, exclusive=True) + step // 2) // tf.maximum(step, 1)
        # Below the darkest level the sum is 0, where the official table begins with 0.
        levels = tf.where(tf.range(256) > 0, tf.minimum(levels, 255), 0)
        return tf.where(step == 0, values, tf.cast(table.lookup(levels, values), tf.uint8))

    return tf.stack([channel(values) for values in tf.unstack(image, axis=-1)], axis=-1)


# Sub-policies, of which one is taken: operation, probability, magnitude.
POLICY = (
    ((sharpness, 0.4, 7), (brightness, 0.2, 10)),
    ((equalize, 0.0, 9), (contrast, 0.2, 10)),
    ((sharpness, 0.2, 9), (color, 0.2, 9)),
    ((solarize, 0.2, 7), (equalize, 0.6, 9)),
    ((sharpness, 0.2, 1), (equalize, 0.2, 7)),
)


def augment(image, draw, magnitude_scale, frame, table=tables.HOST):
    """Applies the sub-policy that was drawn.

    Arguments:
      image: uint8 [h, w, 3], the window that `frame` describes.
      draw: the image's `Draw`.
      magnitude_scale: factor of the policy's magnitudes.
    """

    def apply(operations):
        result = image
        for (operation, probability, magnitude), chance in zip(
            operations, tf.unstack(draw.chance, num=2), strict=True
        ):
            result = tf.cond(
                chance < probability,
                lambda operation=operation, magnitude=magnitude, before=result: operation(
                    before, magnitude * magnitude_scale, frame, table
                ),
                lambda before=result: before,
            )
        return result

    return tf.switch_case(draw.policy, [lambda o=operations: apply(o) for operations in POLICY])


def needs_whole(draw):
    """Whether the draw applies `equalize`, which counts all pixels of the whole image."""
    probability = [[p if o is equalize else 0.0 for o, p, _ in pair] for pair in POLICY]
    return tf.reduce_any(draw.chance < tf.gather(probability, draw.policy))
