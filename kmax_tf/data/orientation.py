"""EXIF orientation: images are upright everywhere, as labeling tools show them."""

import io
import warnings

import tensorflow as tf
from PIL import Image

TAG = 0x0112  # of EXIF
UPRIGHT = 1
# Where a PNG can have an orientation. Pillow decodes all pixels to search after them.
PLACES = b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp"


def read(content: bytes) -> int:
    """Returns the orientation of an image file, 1 to 8; 1 (upright) if it gives no valid one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(content))
            has_place = picture.format != "PNG" or any(place in content for place in PLACES)
            exif = picture.getexif() if has_place else {}
    except Exception:  # Pillow raises many classes for broken files
        return UPRIGHT
    value = exif.get(TAG, UPRIGHT)
    return int(value) if value in range(1, 9) else UPRIGHT


def swaps_sides(orientation: int) -> bool:
    """Returns whether the upright image has the height and the width of the stored one swapped."""
    return orientation >= 5


def turn_upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns a stored image upright, with TensorFlow operations only.

    Args:
        image: [height, width, channels].
        orientation: integer scalar, 1 to 8, as `read` returns it.

    Returns:
        The upright image, of the same dtype; [width, height, channels] for 5 to 8.
    """

    def turned():
        sides = tf.cond(
            swaps_sides(orientation), lambda: tf.transpose(image, [1, 0, 2]), lambda: image
        )
        is_reversed = [
            tf.reduce_any(orientation == tf.constant(values, orientation.dtype))
            for values in ([3, 4, 7, 8], [2, 3, 6, 7])  # of the rows, of the columns
        ]
        return tf.reverse(sides, tf.where(is_reversed)[:, 0])

    orientation = tf.convert_to_tensor(orientation)
    return tf.cond(orientation == UPRIGHT, lambda: tf.identity(image), turned)
