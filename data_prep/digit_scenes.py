"""Composes the images of *panoptic digits*: textures, then digits on cards from far to near."""

import functools
from typing import NamedTuple

import numpy as np
import scipy.ndimage
from PIL import Image, ImageDraw, ImageFilter

from kmax_tf.data import datasets

LEVELS = ("cards", "strokes")
SIZE = 97  # height and width of an image
FACE = 96  # height and width at which cards and digits are drawn before they shrink
CELL = 18  # height and width of a place in a crowd
MIN_VISIBLE = 0.7  # share of each thing that must be in the frame and not covered
MIN_STUFF = 30  # pixels; smaller pieces of stuff become void
# Tables of 256 values for Image.point.
OPAQUE = [255 * (alpha >= 128) for alpha in range(256)]
SHADOW = [int(0.45 * alpha) for alpha in range(256)]
CRISP = [min(max(3 * (ink - 95), 0), 255) for ink in range(256)]


class Digits(NamedTuple):
    """The handwritten digits of one split."""

    ink: np.ndarray  # uint8 [k, 8, 8], 0 paper to 255 ink
    label: np.ndarray  # int64 [k], 0 to 9


class Sprite(NamedTuple):
    """A thing to place."""

    picture: Image.Image  # RGBA; the mask is where alpha is at least 128
    label: int  # 0 to 9
    is_crowd: bool


class Scene(NamedTuple):
    """One image of the dataset."""

    image: np.ndarray  # uint8 [97, 97, 3]
    ids: np.ndarray  # int32 [97, 97], 0 void
    segments: list[dict]  # segments_info of the COCO format
    visible: list[float]  # visible share of each thing, in the order of its segments


def compose(rng: np.random.Generator, digits: Digits, level: str) -> Scene:
    """Composes one image: textures, then things from far to near."""
    categories = load_categories()
    image, stuff_map = _background(rng)
    index_map = Image.new("L", (SIZE, SIZE))  # 0 stuff, k the k-th thing, from 1
    sprites, full, seen = [], [], []
    for sprite in _sprites(rng, digits, level):
        place = _find_place(rng, sprite.picture, full, seen)
        if place is None:
            continue
        corner, mask, area = place
        seen = [visible & ~mask for visible in seen] + [mask]
        full.append(area)
        sprites.append(sprite)
        alpha = sprite.picture.getchannel("A")
        shadow = alpha.filter(ImageFilter.GaussianBlur(1.5)).point(SHADOW)
        image.paste((0, 0, 0), (corner[0] + 1, corner[1] + 2), shadow)
        image.paste(sprite.picture, corner, sprite.picture)
        index_map.paste(len(sprites), corner, alpha.point(OPAQUE))

    index_map = np.asarray(index_map)
    parts = [
        (categories[sprite.label], sprite.is_crowd, index_map == k)
        for k, sprite in enumerate(sprites, 1)
    ]
    for index in np.unique(stuff_map):
        mask = _drop_small((stuff_map == index) & (index_map == 0))
        if mask.any():
            parts.append((categories[10 + index], False, mask))
    ids = np.zeros((SIZE, SIZE), np.int32)
    segments = []
    for k, (category, is_crowd, mask) in enumerate(parts):
        red, green, blue = category.color
        twins = sum(other is category for other, _, _ in parts[:k])
        red += twins * (24 if red < 128 else -24)  # a distinct id near the category's color
        identity = red + 256 * green + 65536 * blue
        ids[mask] = identity
        segments.append(_segment(identity, category.id, is_crowd, mask))
    visible = [mask.sum() / area for mask, area in zip(seen, full, strict=True)]
    return Scene(_photograph(rng, image), ids, segments, visible)


@functools.cache
def load_categories() -> tuple[datasets.Category, ...]:
    """Returns the classes: digits 0 to 9, then grass, sky, brick and sand."""
    return datasets.load("panoptic_digits").categories


def _sprites(rng: np.random.Generator, digits: Digits, level: str) -> list[Sprite]:
    """Draws 1 to 4 things, and in 8 of 100 images a crowd, all of distinct colors."""
    # Some find no place; 2.5 per image remain on average.
    count = rng.choice([1, 2, 3, 4], p=[0.2, 0.25, 0.27, 0.28])
    hues = rng.random() + 0.618 * np.arange(count + 1)  # golden-ratio steps: all far apart
    sprites = []
    for hue in hues[:count]:
        index = rng.integers(len(digits.ink))
        size = round(SIZE * rng.uniform(0.28, 0.5))
        picture = _draw(rng, digits.ink[index], level, size, _colors(rng, hue))
        sprites.append(Sprite(picture, int(digits.label[index]), False))
    if rng.random() < 0.08:
        label = rng.integers(10)
        colors = _colors(rng, hues[count])
        columns, rows = int(rng.integers(2, 4)), 2
        picture = Image.new("RGBA", ((columns * CELL) + 6, (rows * CELL) + 6))
        for cell in range(columns * rows):
            ink = digits.ink[rng.choice(np.flatnonzero(digits.label == label))]
            member = _draw(rng, ink, level, CELL + 2, colors)
            corner = np.array([cell % columns, cell // columns]) * CELL + rng.integers(0, 3, 2)
            picture.alpha_composite(member, tuple(corner.tolist()))
        sprites.insert(rng.integers(count + 1), Sprite(picture, int(label), True))
    return sprites


def _colors(rng: np.random.Generator, hue: float) -> tuple[tuple, tuple]:
    """Returns the RGB of a card and of its ink: one light, the other dark, of one hue."""
    light = _rgb(hue, rng.uniform(0.25, 0.5), rng.uniform(0.92, 1))
    dark = _rgb(hue, rng.uniform(0.7, 0.95), rng.uniform(0.3, 0.45))
    black, white = _rgb(hue, 0.6, 0.15), (255, 255, 255)
    return (light, black) if rng.random() < 0.5 else (dark, white)


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    """Converts a hue of any size, and saturation and value 0 to 1, to RGB, 0 to 255."""
    ramp = np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    rgb = 255 * value * (1 - saturation * (1 - np.clip(ramp, 0, 1)))
    return tuple(np.round(rgb).astype(int).tolist())


def _draw(
    rng: np.random.Generator, ink: np.ndarray, level: str, size: int, colors: tuple
) -> Image.Image:
    """Draws one digit, uint8 [8, 8], as RGBA of `size` pixels, rotated up to 10 degrees."""
    paper, pen = colors
    padded = Image.fromarray(np.pad(ink, 1)).resize((FACE, FACE), Image.Resampling.BICUBIC)
    stroke = padded.point(CRISP)  # a crisp edge instead of the blur of 8 x 8
    if level == "cards":
        picture = Image.new("RGB", (FACE, FACE), tuple(v * 3 // 4 for v in paper))
        picture.paste(paper, (0, 0), _rounded(3))
        picture.paste(pen, (0, 0), stroke)
        picture.putalpha(_rounded(0))
    else:
        picture = Image.new("RGB", (FACE, FACE), max(colors, key=lambda c: max(c) - min(c)))
        picture.putalpha(stroke)
    picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    return picture.rotate(rng.uniform(-10, 10), Image.Resampling.BICUBIC, expand=True)


@functools.cache
def _rounded(margin: int) -> Image.Image:
    """Returns a mask, L, of a card with rounded corners and a margin in pixels."""
    mask = Image.new("L", (FACE, FACE))
    box = (margin, margin, FACE - 1 - margin, FACE - 1 - margin)
    ImageDraw.Draw(mask).rounded_rectangle(box, radius=16 - margin, fill=255)
    return mask


def _find_place(
    rng: np.random.Generator, picture: Image.Image, full: list, seen: list
) -> tuple | None:
    """Looks for a place that leaves enough of every thing visible.

    Args:
        picture: the sprite, RGBA.
        full: area in pixels of each thing placed before.
        seen: bool [97, 97] of each of them, the part still visible.

    Returns:
        Its corner (x, y), its mask bool [97, 97] and its whole area in pixels, or None.
    """
    alpha = picture.getchannel("A").point(OPAQUE)
    area = np.count_nonzero(np.asarray(alpha))
    for _ in range(30):
        low = [-0.08 * side for side in picture.size]  # the frame may cut off a little
        high = [SIZE - 0.92 * side for side in picture.size]
        corner = tuple(np.round(rng.uniform(low, high)).astype(int).tolist())
        canvas = Image.new("L", (SIZE, SIZE))
        canvas.paste(alpha, corner)
        mask = np.asarray(canvas) > 0
        left = [np.count_nonzero(visible & ~mask) for visible in seen] + [np.count_nonzero(mask)]
        whole = [*full, area]
        if all(part >= MIN_VISIBLE * size for part, size in zip(left, whole, strict=True)):
            return corner, mask, area
    return None


def _drop_small(mask: np.ndarray) -> np.ndarray:
    """Removes the connected pieces of a bool [h, w] mask that are too small to be labeled."""
    pieces, _ = scipy.ndimage.label(mask)
    return mask & (np.bincount(pieces.ravel()) >= MIN_STUFF)[pieces]


def _background(rng: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """Returns an RGB image of 1 to 4 textures in warped regions and its int [97, 97] of 0 to 3."""
    count = rng.choice([1, 2, 3, 4], p=[0.1, 0.35, 0.35, 0.2])
    chosen = rng.permutation(4)[:count]
    chosen = np.array(sorted(chosen, key=lambda index: index != 1))  # the sky is on top
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    y = y + 0.3 * (_noise(rng, SIZE, 4) - 0.5)
    x = x + 0.3 * (_noise(rng, SIZE, 4) - 0.5)
    center_y = (np.arange(count) + rng.uniform(0.2, 0.8, count)) / count
    center_x = rng.random(count)
    distance = (y[..., None] - center_y) ** 2 + 0.4 * (x[..., None] - center_x) ** 2
    stuff_map = chosen[distance.argmin(-1)]
    image = Image.new("RGB", (SIZE, SIZE))
    for index in chosen:
        texture = _textures()[index]
        side = SIZE * rng.uniform(0.8, 1.2)
        left, top = rng.uniform(0, texture.width - side, 2)
        crop = texture.resize(
            (SIZE, SIZE), Image.Resampling.BICUBIC, (left, top, left + side, top + side)
        )
        image.paste(crop, (0, 0), Image.fromarray((255 * (stuff_map == index)).astype(np.uint8)))
    return image, stuff_map


def _photograph(rng: np.random.Generator, image: Image.Image) -> np.ndarray:
    """Adds uneven light, a tint and sensor noise: RGB image -> uint8 [h, w, 3]."""
    light = 0.9 + 0.2 * _noise(rng, SIZE, 3)[..., None]
    tint = rng.uniform(0.95, 1.05, 3)
    grain = rng.normal(0, 2.5, (SIZE, SIZE, 1))
    return np.clip(np.asarray(image) * light * tint + grain, 0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator, size: int, cells: int, rows: int | None = None) -> np.ndarray:
    """Returns smooth noise, float32 [size, size] of about 0 to 1, with so many cells across."""
    grid = rng.random((rows or cells, cells), np.float32)
    return np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC))


@functools.cache
def _textures() -> tuple[Image.Image, ...]:
    """Returns grass, sky, brick and sand: RGB, larger than an image, the same for every seed."""
    rng, size = np.random.default_rng(0), 320
    y, x = np.mgrid[:size, :size].astype(np.float32)

    def shade(dark, light, amount):
        amount = np.clip(amount, 0, 1)[..., None]
        return Image.fromarray(np.uint8(np.array(dark) * (1 - amount) + np.array(light) * amount))

    # Grass: blades are noise that is finer across than along, in lush and dry patches.
    blades = sum(_noise(rng, size, c, c // 4) for c in (110, 160, 220)) / 3
    grass = 0.5 + 1.8 * (blades - 0.5) + 0.5 * (_noise(rng, size, 12) - 0.5)
    # Sky: clouds are noise summed over scales.
    clouds = sum(_noise(rng, size, 6 * 2**k, 9 * 2**k) / 2**k for k in range(5)) / 1.94
    sky = (clouds - 0.42) * 4
    # Brick: rows shifted by half a brick; each brick has a tone; mortar is light.
    row = y // 9
    column = (x + row % 2 * 10) // 20
    tone = rng.random((40, 40), np.float32)[row.astype(int), column.astype(int)]
    mortar = (y % 9 < 1.6) | ((x + row % 2 * 10) % 20 < 1.6)
    rough = 0.4 * (_noise(rng, size, 160) - 0.5)
    brick = np.asarray(shade((128, 48, 36), (196, 98, 72), tone + rough))
    cement = np.asarray(shade((176, 168, 156), (206, 198, 186), 0.5 + rough))
    # Sand: bent wind ripples under grains.
    bent = y + 0.35 * x + 40 * _noise(rng, size, 7)
    sand = 0.5 + 0.28 * np.sin(bent * 0.7) + 0.9 * (_noise(rng, size, 320) - 0.5) * 0.7
    return (
        shade((22, 74, 20), (134, 182, 62), grass),
        shade((84, 152, 226), (246, 249, 252), sky),
        Image.fromarray(np.where(mortar[..., None], cement, brick)),
        shade((186, 156, 100), (242, 222, 172), sand),
    )


def _segment(identity: int, category_id: int, is_crowd: bool, mask: np.ndarray) -> dict:
    """Returns the segments_info entry of one bool [h, w] mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    low, high = (columns[0], rows[0]), (columns[-1], rows[-1])
    return {
        "id": identity,
        "category_id": category_id,
        "iscrowd": int(is_crowd),
        "area": int(mask.sum()),
        "bbox": [int(v) for v in (*low, high[0] - low[0] + 1, high[1] - low[1] + 1)],
    }
