"""Draws segments and cluster assignments with NumPy and Pillow."""

import collections
import colorsys
import contextlib
import functools
import io
import math
import unicodedata

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

SMALLEST_SIDE = 512  # pixels; images with a smaller longer side are enlarged
BAND = 256  # rows that are painted together, for their memory
GOLDEN_RATIO = 0.618034  # its multiples, modulo 1, stay apart
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc")  # of the system
NO_SIGN = "\uffff"  # for which a font has the picture of what it lacks


def overlay(image: np.ndarray, segment_map: np.ndarray, segments: list) -> np.ndarray:
    """Draws segments over the image, each with a color, an outline and a label.

    Args:
        image: uint8 [height, width, 3].
        segment_map: int32 [height, width], segment ids; other ids are void.
        segments: list of (id, label text, (r, g, b) of its class, 0..255). Segments with the same
            color, such as the things of a class, get shades of it in the order of the list.

    Returns:
        uint8 [k height, k width, 3], with an integer k that is 1 from 512 pixels on. Void pixels
        show the image, darkened.
    """
    factor = _factor(image)
    height, width = segment_map.shape
    size = (width * factor, height * factor)
    photo = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    numbers = _repeat(_numbers(segment_map, [i for i, *_ in segments]), factor)
    outline = _outline(numbers)
    colors = shades([color for *_, color in segments])
    colors = np.array([np.zeros(3), *colors], np.float32)
    picture = np.empty_like(photo)
    for start in range(0, len(photo), BAND):
        rows = slice(start, start + BAND)
        picture[rows] = _paint(photo[rows], numbers[rows], outline[rows], colors)
    canvas = Image.fromarray(picture)
    draw, places = ImageDraw.Draw(canvas), ndimage.find_objects(numbers, len(segments))
    for number, ((_, text, _), place) in enumerate(zip(segments, places, strict=True), start=1):
        if place:
            _label(draw, numbers[place] == number, place, numbers.shape, text)
    return np.asarray(canvas)


def _numbers(segment_map, ids):
    """Returns int32 [height, width], k for the k-th of the ids, 0 for others."""
    table = np.zeros(max(segment_map.max(), *ids, 0) + 1, np.int32)
    table[np.array(ids, int)] = np.arange(1, len(ids) + 1)
    return table[segment_map]


def _paint(photo, numbers, outline, colors):
    """Paints rows of the photo, uint8 [height, width, 3], with the color of each number."""
    photo, paint = photo.astype(np.float32), colors[numbers]
    alpha = np.where(numbers[..., None] > 0, np.float32(0.55), np.float32(0))
    picture = np.where(alpha > 0, (1 - alpha) * photo + alpha * paint, 0.6 * photo)
    outline = outline & (numbers > 0)
    picture[outline] = 0.35 * picture[outline] + 0.65 * (0.4 * paint[outline] + 0.6 * 255)
    return np.rint(picture).astype(np.uint8)


def assignment_picture(assignment: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
    """Draws the cluster center of each pixel, each center in a color of its own.

    Args:
        assignment: int32 [height, width], cluster index >= 0. An index always has the same color.
        image: uint8 [image height, image width, 3] to draw under the colors, or None.

    Returns:
        uint8 [k height, k width, 3] with an integer k, or with an image the size of its `overlay`.
    """
    colors = np.array([cluster_color(i) for i in range(int(assignment.max()) + 1)], np.float32)
    if image is None:
        return np.rint(colors[_repeat(assignment, _factor(assignment))]).astype(np.uint8)
    height, width = (side * _factor(image) for side in image.shape[:2])
    # Corners are aligned, as everywhere in the model.
    rows = np.rint(np.linspace(0, assignment.shape[0] - 1, height)).astype(int)
    columns = np.rint(np.linspace(0, assignment.shape[1] - 1, width)).astype(int)
    photo = Image.fromarray(image).convert("L").resize((width, height), Image.Resampling.BICUBIC)
    grey = np.asarray(photo, np.float32)[..., None]
    return np.rint(0.7 * colors[assignment[rows][:, columns]] + 0.3 * grey).astype(np.uint8)


def shades(colors: list) -> list[np.ndarray]:
    """The colors of segments in an `overlay`, from those of their classes; (r, g, b) 0..255."""
    seen = collections.Counter()
    shaded = []
    for color in colors:
        shaded.append(_shade(color, seen[color]))
        seen[color] += 1
    return shaded


def cluster_color(i: int) -> np.ndarray:
    """The color of cluster i, (r, g, b) 0..255; consecutive clusters differ clearly in hue."""
    lightness, saturation = ((0.55, 0.8), (0.4, 0.6), (0.72, 0.7))[i % 3]
    return np.multiply(colorsys.hls_to_rgb((i * GOLDEN_RATIO) % 1, lightness, saturation), 255)


def webp(picture: np.ndarray, longer_side: int) -> bytes:
    """Encodes uint8 [height, width, 3] as WebP, scaled down to `longer_side` pixels at most."""
    content = io.BytesIO()
    # Half the time of the default method, for files that are 6 % larger.
    _thumbnail(picture, longer_side).save(content, "WEBP", quality=80, method=2)
    return content.getvalue()


def png(picture: np.ndarray) -> bytes:
    """Encodes uint8 [height, width, 3] as PNG, with fast compression."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG", compress_level=1)
    return content.getvalue()


def thumbnail(picture: np.ndarray, longer_side: int) -> np.ndarray:
    """Scales uint8 [height, width, 3] down to `longer_side` pixels at most."""
    return np.asarray(_thumbnail(picture, longer_side))


def _thumbnail(picture, longer_side):
    image = Image.fromarray(picture)
    image.thumbnail((longer_side, longer_side))
    return image


def decode(picture: bytes, longer_side: int | None = None) -> np.ndarray:
    """Decodes WebP, PNG or JPEG to uint8 [height, width, 3], of `longer_side` pixels at most."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    if longer_side:
        image.thumbnail((longer_side, longer_side))
    return np.asarray(image)


def contact_sheet(rows: list) -> np.ndarray:
    """Arranges pictures in rows, each under its title.

    Args:
        rows: list of rows, each a list of (title, uint8 [height, width, 3]). Pictures are scaled to
            the height of the tallest one in their row. Titles that are wider than their picture
            and 24 signs lose their middle.

    Returns:
        uint8 [sheet height, sheet width, 3], with a white background.
    """
    gap, title_height = 16, 36
    placed, top, right = [], gap, 0
    for row in rows:
        height = max(picture.shape[0] for _, picture in row)
        left = gap
        for title, picture in row:
            width = max(1, round(picture.shape[1] * height / picture.shape[0]))
            title, name = _writable(printable(title))
            font = _font(name, 22)
            title = _fitted(title, font, max(width, font.getlength(24 * "n")))
            resized = Image.fromarray(picture).resize((width, height))
            placed.append((left, top, title, font, resized))
            left += max(width, math.ceil(font.getlength(title))) + gap
        right = max(right, left)
        top += title_height + height + gap
    sheet = Image.new("RGB", (right, top), "white")
    draw = ImageDraw.Draw(sheet)
    for left, top, title, font, picture in placed:
        draw.text((left, top + title_height / 2), title, (30, 30, 30), font, anchor="lm")
        sheet.paste(picture, (left, top + title_height))
    return np.asarray(sheet)


def printable(text: str) -> str:
    """Returns a text on one line: signs that cannot be printed become escapes such as \\n."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _fitted(text, font, width):
    """Returns the text, without its middle if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    kept = max(k for k in range(len(text) // 2) if font.getlength(_short(text, k)) <= width)
    return _short(text, kept)


def _short(text, kept):
    """Returns the first and last `kept` signs of a text."""
    return f"{text[:kept]} ... {text[len(text) - kept :]}"


def _factor(image):
    """The smallest integer factor that brings the longer side to SMALLEST_SIDE."""
    return -(-SMALLEST_SIDE // max(image.shape[:2]))


def _repeat(index_map, factor):
    return index_map.repeat(factor, 0).repeat(factor, 1)


def _shade(color, k):
    """The k-th shade of a color, (r, g, b) 0..255; shade 0 is the color itself."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(channel / 255 for channel in color))
    low, high = min(0.28, lightness), max(0.78, lightness + 0.01)
    # The two factors are the golden ratio's counterpart in the plane: the shades stay apart.
    hue += 0.18 * ((0.754878 * k + 0.5) % 1 - 0.5)
    place = (lightness - low) / (high - low)
    lightness = min(1, low + (high - low) * ((0.569840 * k + place) % 1))
    return np.multiply(colorsys.hls_to_rgb(hue % 1, lightness, saturation), 255)


def _outline(segment_map):
    """bool [height, width], pixels next to another segment."""
    edge = np.zeros(segment_map.shape, bool)
    across = segment_map[:, 1:] != segment_map[:, :-1]
    down = segment_map[1:] != segment_map[:-1]
    edge[:, :-1] |= across
    edge[:, 1:] |= across
    edge[:-1] |= down
    edge[1:] |= down
    return edge


def _label(draw, mask, place, shape, text):
    """Writes the text at the most interior point of a segment, if there is room.

    The room is an ellipse of the text's proportions. Letters are between 11 pixels and a 28th of
    the longer side high.

    Args:
        mask: bool [rows, columns], of the segment in its box.
        place: slices, the box in the picture.
        shape: height and width of the picture.
    """
    rows, columns = place
    largest = max(shape) // 28
    text, name = _writable(text)
    width = _font(name, largest).getlength(text) + 1
    step = max(1, largest // 6)  # using every pixel would take most of the drawing time
    inside = np.pad(mask[::step, ::step], 1)
    distance = ndimage.distance_transform_edt(inside, sampling=(step * width / largest, step))
    # The nearest pixel outside may be between those of the grid.
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
        _font(name, size),
        anchor="mm",
        stroke_width=max(1, size // 8),
        stroke_fill=(20, 20, 20),
    )


@functools.cache
def _writable(text):
    """Returns a text and the name of a font with its signs, "" for Pillow's, which has ASCII.

    A text whose signs no font has becomes ASCII, with escapes such as \\u65e5.
    """
    if text.isascii():
        return text, ""
    for name in FONTS:
        with contextlib.suppress(OSError):  # it is not installed
            pictures = {c: bytes(_font(name, 22).getmask(c)) for c in {*text, NO_SIGN}}
            if list(pictures.values()).count(pictures[NO_SIGN]) == 1:
                return text, name
    signs = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(signs).encode("ascii", "backslashreplace").decode(), ""


@functools.cache
def _font(name, size):
    return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
