"""Pictures of segments and cluster assignments, with NumPy and Pillow alone."""

import collections
import colorsys
import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

SMALLEST_SIDE = 512  # pixels: images whose longer side is smaller are enlarged
GOLDEN = 0.618034  # multiples of it, modulo 1, never come close to each other


def overlay(image: np.ndarray, segment_map: np.ndarray, segments: list) -> np.ndarray:
    """The image under its segments, each in its color with its outline and its label.

    Args:
        image: uint8 [height, width, 3].
        segment_map: int32 [height, width], segment ids; pixels of no listed segment are void.
        segments: list of (id, label text, (r, g, b) of its class, 0..255). Segments that share a
            color, the things of one class, get shades of it in the order of the list.

    Returns:
        uint8 [k height, k width, 3], k a whole number (1 for images of 512 pixels and more). Void
        is the image, darker.
    """
    factor = _factor(image)
    height, width = segment_map.shape
    size = (width * factor, height * factor)
    photo = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), np.float32)
    segment_map = _repeat(segment_map, factor)

    paint = np.zeros_like(photo)
    alpha = np.zeros((*segment_map.shape, 1), np.float32)
    for (i, _, _), shade in zip(segments, shades([color for *_, color in segments])):
        mask = segment_map == i
        paint[mask] = shade
        alpha[mask] = 0.55
    picture = np.where(alpha > 0, (1 - alpha) * photo + alpha * paint, 0.6 * photo)

    outline = _outline(segment_map) & (alpha[..., 0] > 0)
    picture[outline] = 0.35 * picture[outline] + 0.65 * (0.4 * paint[outline] + 0.6 * 255)
    canvas = Image.fromarray(np.rint(picture).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for i, text, _ in segments:
        _label(draw, segment_map == i, text)
    return np.asarray(canvas)


def assignment_picture(assignment: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
    """Which cluster centre each pixel belongs to, every centre in a color of its own.

    Args:
        assignment: int32 [height, width], cluster index >= 0. An index has the same color always.
        image: uint8 [image height, image width, 3] to lay under the colors, or None.

    Returns:
        uint8 [k height, k width, 3], k a whole number, or with an image
        [k image height, k image width, 3], as `overlay` makes it from that image.
    """
    colors = np.array([cluster_color(i) for i in range(int(assignment.max()) + 1)], np.float32)
    if image is None:
        return np.rint(colors[_repeat(assignment, _factor(assignment))]).astype(np.uint8)
    height, width = (side * _factor(image) for side in image.shape[:2])
    # The corners of map and image coincide.
    rows = np.rint(np.linspace(0, assignment.shape[0] - 1, height)).astype(int)
    columns = np.rint(np.linspace(0, assignment.shape[1] - 1, width)).astype(int)
    photo = Image.fromarray(image).convert("L").resize((width, height), Image.Resampling.BICUBIC)
    grey = np.asarray(photo, np.float32)[..., None]
    return np.rint(0.7 * colors[assignment[rows][:, columns]] + 0.3 * grey).astype(np.uint8)


def shades(colors: list) -> list[np.ndarray]:
    """The colors that `overlay` gives segments of the classes' colors, (r, g, b) 0..255."""
    seen = collections.Counter()
    found = []
    for color in colors:
        found.append(_shade(color, seen[color]))
        seen[color] += 1
    return found


def cluster_color(i: int) -> np.ndarray:
    """(r, g, b) 0..255: neighbours in number are far apart in hue, repeats differ in lightness."""
    lightness, saturation = ((0.55, 0.8), (0.4, 0.6), (0.72, 0.7))[i % 3]
    return np.multiply(colorsys.hls_to_rgb((i * GOLDEN) % 1, lightness, saturation), 255)


def webp(picture: np.ndarray, longer_side: int) -> bytes:
    """A picture, uint8 [height, width, 3], as a WebP file of at most so many pixels a side."""
    content = io.BytesIO()
    _thumbnail(picture, longer_side).save(content, "WEBP", quality=80)
    return content.getvalue()


def png(picture: np.ndarray) -> bytes:
    """A picture, uint8 [height, width, 3], as a PNG file, quickly."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG", compress_level=1)
    return content.getvalue()


def thumbnail(picture: np.ndarray, longer_side: int) -> np.ndarray:
    """A picture, uint8 [height, width, 3], scaled down to at most so many pixels a side."""
    return np.asarray(_thumbnail(picture, longer_side))


def _thumbnail(picture, longer_side):
    image = Image.fromarray(picture)
    image.thumbnail((longer_side, longer_side))
    return image


def decode(picture: bytes, longer_side: int | None = None) -> np.ndarray:
    """A WebP, PNG or JPEG file as uint8 [height, width, 3], of at most so many pixels a side."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    if longer_side:
        image.thumbnail((longer_side, longer_side))
    return np.asarray(image)


def contact_sheet(rows: list) -> np.ndarray:
    """Pictures in a grid, each under its title.

    Args:
        rows: list of rows, each a list of (title, uint8 [height, width, 3]). Pictures are scaled to
            the height of the tallest one of their row.

    Returns:
        uint8 [sheet height, sheet width, 3] on white.
    """
    gap, title_height = 16, 36
    font = ImageFont.load_default(22)
    placed, top, right = [], gap, 0
    for row in rows:
        height = max(picture.shape[0] for _, picture in row)
        left = gap
        for title, picture in row:
            width = round(picture.shape[1] * height / picture.shape[0])
            placed.append((left, top, title, Image.fromarray(picture).resize((width, height))))
            left += max(width, math.ceil(font.getlength(title))) + gap
        right = max(right, left)
        top += title_height + height + gap
    sheet = Image.new("RGB", (right, top), "white")
    draw = ImageDraw.Draw(sheet)
    for left, top, title, picture in placed:
        draw.text((left, top + title_height / 2), title, (30, 30, 30), font, anchor="lm")
        sheet.paste(picture, (left, top + title_height))
    return np.asarray(sheet)


def _factor(image):
    """The least whole number that brings the longer side to SMALLEST_SIDE."""
    return -(-SMALLEST_SIDE // max(image.shape[:2]))


def _repeat(index_map, factor):
    return index_map.repeat(factor, 0).repeat(factor, 1)


def _shade(color, k):
    """The k-th shade of a color as (r, g, b) 0..255: k = 0 is the color itself."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(channel / 255 for channel in color))
    low, high = min(0.28, lightness), max(0.78, lightness + 0.01)
    # The plane's counterpart of the golden ratio keeps the pairs apart.
    hue += 0.18 * ((0.754878 * k + 0.5) % 1 - 0.5)
    place = (lightness - low) / (high - low)
    lightness = low + (high - low) * ((0.569840 * k + place) % 1)
    return np.multiply(colorsys.hls_to_rgb(hue % 1, lightness, saturation), 255)


def _outline(segment_map):
    """bool [height, width]: pixels whose right or lower neighbour is of another segment."""
    edge = np.zeros(segment_map.shape, bool)
    across = segment_map[:, 1:] != segment_map[:, :-1]
    down = segment_map[1:] != segment_map[:-1]
    edge[:, :-1] |= across
    edge[:, 1:] |= across
    edge[:-1] |= down
    edge[1:] |= down
    return edge


def _label(draw, mask, text):
    """Writes the text at the most interior point of the mask, where it finds room for it.

    Room is an ellipse of the text's proportions; letters are 11 pixels to a 28th of
    the longer side high, or absent.
    """
    if not mask.any():
        return
    rows, columns = ndimage.find_objects(mask.astype(np.int32))[0]
    largest = max(mask.shape) // 28
    width = ImageFont.load_default(largest).getlength(text) + 1
    step = max(1, largest // 6)  # every pixel would take most of the time of the picture
    inside = np.pad(mask[rows, columns][::step, ::step], 1)
    distance = ndimage.distance_transform_edt(inside, sampling=(step * width / largest, step))
    # The nearest pixel outside may be one that was left out.
    distance = np.maximum(distance - (step - 1), 0)
    roomy = np.argwhere(distance >= 0.95 * distance.max())
    y, x = roomy[((roomy - roomy.mean(0)) ** 2).sum(1).argmin()]
    size = min(largest, int(largest * distance[y, x] / (width / 2)))
    if size < 11:
        return
    draw.text(
        (columns.start + step * (x - 1), rows.start + step * (y - 1)),
        text,
        "white",
        ImageFont.load_default(size),
        anchor="mm",
        stroke_width=max(1, size // 8),
        stroke_fill=(20, 20, 20),
    )
