"""The auto-augment color policy of the official code, with all its oddities.

An operation maps uint8 [height, width, 3], its argument, a `Frame` and `Tables` to uint8 of the
same shape. Factor 1 does not change an image. Magnitude m means the factor 0.18 m + 0.1. So the
scale 0.2 (Cityscapes) does not weaken the operations: factors are 0.14 to 0.46, far from 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from kmax_tf.data.transforms import pixels
from kmax_tf.data.transforms.geometry import AugmentParams
from kmax_tf.data.transforms.pixels import Tables


class Frame(NamedTuple):
    """The pixels of the whole image that a window holds; pixels outside of it do not count."""

    rows: tf.Tensor  # int32 [height], row of the whole image for each row of the window
    columns: tf.Tensor  # int32 [width]
    size: tf.Tensor  # int32 [2], of the whole image
    is_whole: bool = False  # the window is the image
    crop: Callable = lambda image: image  # cuts out the wanted part after equalize has counted

    def within(self, margin: int) -> tf.Tensor:
        """Marks the pixels inside the image, `margin` from its border: bool [height, width]."""
        last = self.size - 1 - margin
        rows = (self.rows >= margin) & (self.rows <= last[0])
        return rows[:, None] & (self.columns >= margin) & (self.columns <= last[1])


def whole_frame(image: tf.Tensor, **options: Callable) -> Frame:
    """Makes the `Frame` of an image [height, width, 3] that is its own window."""
    size = tf.shape(image)[:2]
    return Frame(tf.range(size[0]), tf.range(size[1]), size, is_whole=True, **options)


def _blend(degenerate, image, factor):
    """Mixes uint8 images with the weight `factor` for the second; truncates to integers."""
    degenerate, image = tf.cast(degenerate, tf.float32), tf.cast(image, tf.float32)
    mixed = degenerate + factor * (image - degenerate)
    return tf.cast(tf.clip_by_value(mixed, 0.0, 255.0), tf.uint8)


def brightness(
    image: tf.Tensor, factor: tf.Tensor, frame: Frame, table: Tables | None
) -> tf.Tensor:
    """Darkens uint8 [height, width, 3] below factor 1, brightens it above."""
    return _blend(tf.zeros_like(image), image, factor)


def color(image: tf.Tensor, factor: tf.Tensor, frame: Frame, table: Tables | None) -> tf.Tensor:
    """Moves uint8 [height, width, 3] toward gray below factor 1, away from it above."""
    red, green, blue = tf.unstack(tf.cast(image, tf.float32) / 255, axis=-1)
    luma = red * 0.2989 + green * 0.587 + blue * 0.114
    return _blend(tf.cast(luma * 255.5, tf.uint8)[..., None], image, factor)


def contrast(image: tf.Tensor, factor: tf.Tensor, frame: Frame, table: Tables | None) -> tf.Tensor:
    """Moves uint8 [height, width, 3] toward one gray below factor 1, away from it above.

    The official gray is the number of pixels / 256, not the mean: white except in small images.
    """
    gray = tf.cast(tf.minimum(tf.reduce_prod(frame.size) // 256, 255), tf.uint8)
    return _blend(gray, image, factor)


def solarize(
    image: tf.Tensor, threshold: tf.Tensor, frame: Frame, table: Tables | None
) -> tf.Tensor:
    """Inverts the values of uint8 [height, width, 3] from the threshold, 0 to 255, on."""
    bright = tf.cast(image >= tf.cast(threshold, tf.uint8), tf.uint8)
    return tf.bitwise.bitwise_xor(image, 255 * bright)


def sharpness(image: tf.Tensor, factor: tf.Tensor, frame: Frame, table: Tables | None) -> tf.Tensor:
    """Blurs uint8 [height, width, 3] below factor 1, sharpens it above; border pixels stay."""
    image = tf.cast(image, tf.float32)
    # As rows of numbers, in which the next pixel is 3 away: faster on a CPU than as pixels.
    padded = tf.pad(tf.reshape(image, [tf.shape(image)[0], -1]), [[1, 1], [3, 3]])
    down = padded[:-2] + padded[1:-1] + padded[2:]
    total = tf.reshape(down[:, :-6] + down[:, 3:-3] + down[:, 6:], tf.shape(image)) + 4 * image
    blurred = tf.floor((total + 0.5) / 13)  # the half keeps multiples of 13 what they are
    return _blend(pixels.choose(frame.within(1), blurred, image), image, factor)


def equalize(image: tf.Tensor, _: tf.Tensor, frame: Frame, table: Tables) -> tf.Tensor:
    """Makes all levels of each channel of uint8 [height, width, 3] about equally frequent.

    Returns the part that `frame.crop` cuts out.
    """

    def levels(values):
        counted = tf.cast(values, tf.int32)
        if not frame.is_whole:
            counted = tf.where(frame.within(0), counted, 256)
        count = table.count(counted, 257)[:256]
        level = tf.range(256)
        last = tf.gather(count, tf.reduce_max(tf.where(count > 0, level, 0)))
        step = (tf.reduce_sum(count) - last) // 255
        equal = (tf.cumsum(count, exclusive=True) + step // 2) // tf.maximum(step, 1)
        # The official table begins with 0, whatever half a step would give.
        equal = tf.where(level > 0, tf.minimum(equal, 255), 0)
        return tf.cast(tf.where(step == 0, level, equal), tf.uint8)

    levels = tf.stack([levels(values) for values in tf.unstack(image, axis=-1)])
    return table.recolor(levels, frame.crop(image))


def argument(operation: Callable, magnitude: float) -> float:
    """Converts a magnitude, 0 to 10, to the factor or threshold of an operation."""
    if operation is solarize:
        return float(int(magnitude / 10 * 256))
    return magnitude / 10 * 1.8 + 0.1


# One of these sub-policies is drawn: (operation, probability, magnitude); equalize ignores its own.
POLICY = (
    ((sharpness, 0.4, 7), (brightness, 0.2, 10)),
    ((equalize, 0.0, 9), (contrast, 0.2, 10)),
    ((sharpness, 0.2, 9), (color, 0.2, 9)),
    ((solarize, 0.2, 7), (equalize, 0.6, 9)),
    ((sharpness, 0.2, 1), (equalize, 0.2, 7)),
)


def augment(
    image: tf.Tensor,
    params: AugmentParams,
    magnitude_scale: float,
    frame: Frame,
    table: Tables | None = pixels.HOST,
) -> tf.Tensor:
    """Applies the drawn sub-policy: its first operation, then its second.

    Args:
        image: uint8 [height, width, 3], the window that `frame` describes.
        params: the image's random numbers.
        magnitude_scale: factor of the policy's magnitudes.
        frame: the window's place in the whole image.
        table: pixels.HOST or pixels.DEVICE; None if `params` do not apply equalize.

    Returns:
        uint8 [height, width, 3].
    """
    for chance, entries in zip(tf.unstack(params.chance, num=2), zip(*POLICY), strict=True):
        operations = [
            o for o in dict.fromkeys(o for o, p, _ in entries if p) if table or o is not equalize
        ]
        index = [1 + operations.index(o) if o in operations else 0 for o, _, _ in entries]
        values = [argument(o, m * magnitude_scale) for o, _, m in entries]
        applied = chance < tf.gather([p for _, p, _ in entries], params.policy)
        value = tf.gather(values, params.policy)
        branches = [lambda image=image: image]
        branches += [
            lambda o=o, image=image, value=value: o(image, value, frame, table) for o in operations
        ]
        image = tf.switch_case(tf.where(applied, tf.gather(index, params.policy), 0), branches)
    return image


def needs_whole_image(params: AugmentParams) -> tf.Tensor:
    """Tells whether `equalize` is applied, which counts all pixels of the image: bool scalar."""
    probability = [[p if o is equalize else 0.0 for o, p, _ in pair] for pair in POLICY]
    return tf.reduce_any(params.chance < tf.gather(probability, params.policy))
