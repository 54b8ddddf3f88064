"""Every color type and bit depth of PNG, as label and as image: exact pixels or one line.

Also every EXIF orientation, on the whole way from a photo by way of a prediction to a record.
"""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_prep import ade20k, coco_format, convert, validate
from kmax_tf import errors, predict
from kmax_tf.data import coco_panoptic, datasets, label_png
from kmax_tf.data.records import example
from kmax_tf.predict import image_sources, output_files, segmentation

GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGBA: 4}
HEADERS = [
    *((GRAY, bits) for bits in (1, 2, 4, 8, 16)),
    *((PALETTE, bits) for bits in (1, 2, 4, 8)),
    *((color, bits) for color in (RGB, GRAY_ALPHA, RGBA) for bits in (8, 16)),
]
every_header = pytest.mark.parametrize("color, bits", HEADERS)


def write_png(path, samples, color, bits, palette=None, before=(), after=()):
    """Writes samples, integers [height, width, channels], as the PNG specification says.

    `before` and `after` are chunks (name, content) before and after the pixels.
    """
    height, width, _ = samples.shape
    places = np.arange(bits)[::-1]
    rows = np.packbits((samples[..., None] >> places & 1).reshape(height, -1), axis=1)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))]
    if palette is not None:
        chunks.append((b"PLTE", palette.astype(np.uint8).tobytes()))
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    chunks += [*before, (b"IDAT", zlib.compress(data)), *after, (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    path.write_bytes(content)


def shown(samples, color, bits, palette):
    """The RGB of 8 bits that a viewer shows."""
    if color == PALETTE:
        return palette[samples[..., 0]]
    eight = samples >> 8 if bits == 16 else samples * 255 // (2**bits - 1)
    return eight[..., :3] if color in (RGB, RGBA) else np.repeat(eight[..., :1], 3, axis=-1)


@pytest.fixture
def item(tmp_path):
    """An image and a label of 6 x 9 pixels, both without segments."""
    Image.new("RGB", (9, 6)).save(tmp_path / "image.png")
    (tmp_path / "label.png").write_bytes(label_png.encode_ids(np.zeros((6, 9), np.int32)))
    paths = str(tmp_path / "image.png"), str(tmp_path / "label.png")
    annotation = coco_panoptic.Annotation("1", "image.png", "label.png", ())
    return convert.Item(*paths, "own.json", annotation)


def draw(color, bits):
    """Random samples, and a palette for those that have one."""
    rng = np.random.default_rng(bits)
    samples = rng.integers(0, 1 << bits, (6, 9, CHANNELS[color]))
    return samples, rng.integers(0, 256, (1 << bits, 3)) if color == PALETTE else None


@every_header
def test_images(item, tmp_path, color, bits):
    samples, palette = draw(color, bits)
    write_png(tmp_path / "image.png", samples, color, bits, palette)
    (fact,) = validate.look_at_items([item])
    if bits > 8:
        message = r"image\.png: is a PNG of 16 bits; scale it as you want it seen, and save it as"
        assert [problem.kind for problem in fact.problems] == ["images that cannot be read"]
        with pytest.raises(errors.InputError, match=message):
            convert.convert_item(item, *convert.read_files(item))
        return
    assert [problem.kind for problem in fact.problems] == ["images without a segment"]
    found = example.parse(convert.convert_item(item, *convert.read_files(item)))
    np.testing.assert_array_equal(found.image, shown(samples, color, bits, palette))


@every_header
@pytest.mark.parametrize("meaning", ["colors", "numbers"])
def test_segment_ids(item, tmp_path, color, bits, meaning):
    """Ids are the colors that a PNG shows; whoever stores them otherwise is told."""
    samples, palette = draw(color, bits)
    write_png(tmp_path / "label.png", samples, color, bits, palette)
    rgb = shown(samples, color, bits, palette)
    ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
    listed = np.unique(ids if meaning == "colors" else samples[..., 0])
    segments = [coco_panoptic.LabelSegment(i, 1, False, None) for i in listed.tolist() if i]
    labelled = item._replace(annotation=item.annotation._replace(segments=tuple(segments)))
    (fact,) = validate.look_at_items([labelled])
    is_right = bits <= 8 and meaning == "colors"
    assert is_right == all(problem.level != validate.ERROR for problem in fact.problems)
    if is_right:
        found = example.parse(convert.convert_item(labelled, *convert.read_files(labelled)))
        numbers = np.array([0, *found.segment_id])[found.segment_map]
        np.testing.assert_array_equal(numbers, ids)
    else:
        with pytest.raises(errors.InputError, match=r"label\.png: .*;.* save ") as error:
            convert.convert_item(labelled, *convert.read_files(labelled))
        assert "\n" not in str(error.value)


@every_header
def test_classes(item, tmp_path, color, bits):
    samples, palette = draw(color, bits)
    classes = samples[..., 0] % 150
    samples[..., 0] = classes
    write_png(tmp_path / "label.png", samples, color, bits, palette)
    semantic = item._replace(annotation=item.annotation._replace(segments=None), num_classes=150)
    if color in (GRAY, PALETTE):
        found = example.parse(convert.convert_item(semantic, *convert.read_files(semantic)))
        categories = np.array([-1, *found.category_id])[found.segment_map]
        np.testing.assert_array_equal(categories, classes - 1)
    else:
        with pytest.raises(errors.InputError, match=r"label\.png: is a PNG of .* gray PNG$"):
            convert.convert_item(semantic, *convert.read_files(semantic))


@pytest.mark.parametrize("color, bits", [(GRAY, 8), (GRAY, 16), (PALETTE, 8)])
def test_values_that_are_no_class_are_refused(tmp_path, color, bits):
    for folder in ("images", "annotations"):
        (tmp_path / folder / "training").mkdir(parents=True)
    Image.new("RGB", (9, 6)).save(tmp_path / "images/training/a.jpg")
    samples = np.zeros((6, 9, 1), int)
    samples[2] = 151
    palette = np.zeros((256, 3)) if color == PALETTE else None
    write_png(tmp_path / "annotations/training/a.png", samples, color, bits, palette)
    ((item,), _) = ade20k.read(str(tmp_path), "train", semantic=True)
    message = r"a\.png: value 151 \(9 pixels\) is no class, 1 to 150"
    with pytest.raises(errors.InputError, match=message):
        convert.convert_item(item, *convert.read_files(item))


@pytest.mark.parametrize("keep", [0, 20, 26, 60])
def test_a_truncated_map_of_classes_is_refused(item, tmp_path, keep):
    png = label_png.encode_labels(np.random.default_rng(0).integers(0, 9, (6, 9)).astype(np.uint8))
    (tmp_path / "label.png").write_bytes(png[:keep])
    semantic = item._replace(annotation=item.annotation._replace(segments=None), num_classes=9)
    with pytest.raises(errors.InputError, match=r"label\.png: not a readable PNG"):
        convert.convert_item(semantic, *convert.read_files(semantic))


def test_an_empty_image_file_is_reported(item, tmp_path):
    (tmp_path / "image.png").write_bytes(b"")
    (fact,) = validate.look_at_items([item])
    assert [problem.kind for problem in fact.problems] == ["images that cannot be read"]


class Brightness:
    """A model that finds what is bright in red, and is as sure as green is bright."""

    categories = (
        datasets.Category(3, "bright", True, (255, 0, 0)),
        datasets.Category(5, "dark", False, (0, 0, 255)),
    )

    def in_tiles(self, image):
        return False

    def batch(self, images, details, tile_batch):
        return list(map(self.segment, images))

    def segment(self, image):
        found = np.where(image[..., 0] > 127, 1, 2).astype(np.int32)
        segments = [
            predict.Segment(k, *self.categories[k - 1][::2], 0.9, *measured)
            for k, measured in segmentation.measure(found).items()
        ]
        segments = [s._replace(isthing=self.categories[s.id - 1].isthing) for s in segments]
        confidence = np.float32(image[..., 1]) / 255
        return predict.Segmentation(found, segments, image, self.categories, confidence)


def write_headers(folder):
    """Writes a PNG of each color type and bit depth, with and without a transparent color."""
    for color, bits in HEADERS:
        samples, palette = draw(color, bits)
        write_png(folder / f"{color}-{bits}.png", samples, color, bits, palette)
        if color in (GRAY, RGB, PALETTE):
            first = samples[0, 0].tolist()
            alpha = (
                bytes(range(1 << bits))
                if color == PALETTE
                else struct.pack(f">{len(first)}H", *first)
            )
            chunks = [(b"tRNS", alpha)]
            path = folder / f"{color}-{bits}-transparent.png"
            write_png(path, samples, color, bits, palette, before=chunks)


def write_orientations(folder):
    """Writes a JPEG and three PNG of each EXIF orientation: the chunk is first, last, or in XMP."""
    blocks = np.random.default_rng(0).choice([0, 90, 160, 255], (2, 3, 3)).astype(np.uint8)
    pixels = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x112] = turn
        place = folder / f"exif-{turn}.jpg"
        Image.fromarray(pixels).save(place, exif=exif, quality=100, subsampling=0)
        chunk = [(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))]
        write_png(folder / f"exif-{turn}-first.png", pixels, RGB, 8, before=chunk)
        write_png(folder / f"exif-{turn}-last.png", pixels, RGB, 8, after=chunk)
        text = f'XML:com.adobe.xmp\0\0\0\0\0<a tiff:Orientation="{turn}"/>'.encode()
        write_png(folder / f"xmp-{turn}.png", pixels, RGB, 8, before=[(b"iTXt", text)])


def as_pillow_shows(path):
    """Upright RGB of 8 bits by Pillow, an independent decoder."""
    picture = ImageOps.exif_transpose(Image.open(path))
    if picture.mode == "I;16":
        return np.repeat((np.asarray(picture) >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    return np.asarray(picture.convert("RGBA").convert("RGB"))


def test_from_photos_by_way_of_pseudo_labels_to_records(tmp_path, alone):
    photos, labels = tmp_path / "photos", str(tmp_path / "out/pseudo_labels")
    photos.mkdir()
    write_headers(photos)
    write_orientations(photos)
    model, (_, sources) = Brightness(), image_sources.find([str(photos)])
    written = output_files.OutputFiles(
        str(tmp_path / "out"), model.categories, sources, confidence=0.5
    )
    assert predict.predict_sources(model, sources, written.add, batch_size=4, details=True) == []
    written.finish()
    source = [str(photos)], [f"{labels}.json"], [labels]
    text, count = validate.validate(validate.raw(*(s[0] for s in source)), str(tmp_path), 1)
    items, dataset = coco_format.read(*source)
    deep = [item for item in items if "-16" in item.annotation.image_name]
    assert count == len(deep) == 6, text  # predictions take them, records do not
    shallow = [item for item in items if item not in deep]
    convert.convert(shallow, dataset, str(tmp_path / "records"), "pseudo", run=alone)
    assert len(items) == len(sources) == len(HEADERS) + 11 + 4 * 8
    for item in items:
        shown = as_pillow_shows(item.image_path)
        expected = model.segment(shown).panoptic_map
        ids = np.asarray(Image.open(f"{labels}/../predictions/{item.annotation.png_name}"), int)
        np.testing.assert_array_equal(ids @ [1, 256, 65536], expected, item.image_path)
        if item in deep:
            continue
        difference = 2 if item.image_path.endswith(".jpg") else 0  # two decoders
        found = example.parse(convert.convert_item(item, *convert.read_files(item)))
        assert np.abs(found.image.numpy().astype(int) - shown).max() <= difference, item.image_path
        sure = np.where(shown[..., 1] >= 127.5, expected, 0)
        numbers = np.array([0, *found.segment_id])[found.segment_map]
        np.testing.assert_array_equal(numbers, sure, item.image_path)
        categories = dict(
            zip(found.segment_id.numpy().tolist(), found.category_id.numpy().tolist())
        )
        assert categories == {k: {1: 3, 2: 5}[k] for k in np.unique(sure).tolist() if k}
