"""Which images a user means, what they are called, and that odd ones are read right or refused."""

import io
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from kmax_tf.errors import InputError
from kmax_tf.predict import image_sources

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
PIXELS = np.kron(PIXELS, np.ones((8, 8, 1), np.uint8))


def write(path, content=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content or tf.io.encode_png(PIXELS).numpy())
    return str(path)


def encode(image, kind, **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def test_files_folders_and_globs(tmp_path):
    a, b = write(tmp_path / "x/b.png"), write(tmp_path / "x/a.jpg")
    write(tmp_path / "x/notes.txt")
    c = write(tmp_path / "y/z/000012.png")
    root, sources = image_sources.find([str(tmp_path / "x"), c, a])  # a is in the folder too
    assert root == str(tmp_path)
    assert [s.name for s in sources] == ["x/a.jpg", "x/b.png", "y/z/000012.png"]
    assert [s.stem for s in sources] == ["x/a", "x/b", "y/z/000012"]
    assert [s.image_id for s in sources] == ["a", "b", 12]  # a number as COCO names its images
    root, sources = image_sources.find([str(tmp_path / "x/*.[jp]*g")])
    assert root == str(tmp_path / "x") and [s.name for s in sources] == ["a.jpg", "b.png"]
    np.testing.assert_array_equal(sources[1].read(), PIXELS)
    assert [s.name for s in image_sources.find([a, b])[1]] == ["b.png", "a.jpg"]


def test_images_of_one_name_do_not_collide(tmp_path):
    paths = [write(tmp_path / name) for name in ("a/1.jpg", "b/1.jpg", "b/01.png", "b/1.png")]
    for chosen in (paths, paths[:2], paths[1:3], paths[1::2]):
        _, sources = image_sources.find(chosen)
        for names in zip(*(source[:3] for source in sources), strict=True):
            assert len(set(map(str, names))) == len(chosen), names


def test_a_folder_of_folders_stands_for_the_images_below_it(tmp_path):
    paths = [write(tmp_path / name) for name in ("day1/a.jpg", "day2/b/c.png")]
    write(tmp_path / "day2/notes.txt")
    assert [s.name for s in image_sources.find([str(tmp_path)])[1]] == [
        "day1/a.jpg",
        "day2/b/c.png",
    ]
    assert image_sources.find([str(tmp_path)])[0] == image_sources.find(paths)[0]
    write(tmp_path / "d.jpg")  # what is below is not meant now
    assert [s.name for s in image_sources.find([str(tmp_path)])[1]] == ["d.jpg"]


def test_paths_that_name_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    for path, message in (
        ("none.jpg", "none.jpg: no such image"),
        ("*.jpg", r"\*.jpg: no such image"),
        ("empty", "empty: holds no .jpg, .jpeg, .png file"),
    ):
        with pytest.raises(InputError, match=message):
            image_sources.find([str(tmp_path / path)])


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "LA", "RGBA", "1"])
def test_kinds_of_png(mode, tmp_path):
    image = Image.fromarray(PIXELS).convert(mode)
    path = write(tmp_path / "image.png", encode(image, "PNG"))
    np.testing.assert_array_equal(image_sources.read_image(path), image.convert("RGB"))


def test_sixteen_bits_and_one_pixel(tmp_path):
    deep = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
    path = write(tmp_path / "deep.png", encode(Image.fromarray(deep), "PNG"))
    np.testing.assert_array_equal(image_sources.read_image(path)[..., 1], deep >> 8)
    path = write(tmp_path / "one.png", encode(Image.fromarray(PIXELS[:1, :1]), "PNG"))
    np.testing.assert_array_equal(image_sources.read_image(path), PIXELS[:1, :1])


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_kinds_of_jpeg(mode, tmp_path):
    image = Image.fromarray(PIXELS).convert(mode)
    content = encode(image, "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), int)
    read = image_sources.read_image(write(tmp_path / "image.jpg", content))
    assert np.abs(read - expected).max() <= 5  # two decoders


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotation_of_exif(orientation, tmp_path):
    image = Image.fromarray(PIXELS)
    image.getexif()[image_sources.ORIENTATION] = orientation
    path = write(tmp_path / "image.png", encode(image, "PNG", exif=image.getexif()))
    np.testing.assert_array_equal(image_sources.read_image(path), ImageOps.exif_transpose(image))


def test_files_that_are_no_images(tmp_path):
    huge = bytearray(encode(Image.fromarray(PIXELS), "PNG"))
    huge[16:24] = (11_000).to_bytes(4, "big") * 2  # width and height in the header
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    for content, message in (
        (b"a text", "x.png: not a JPEG or PNG"),
        (encode(Image.fromarray(PIXELS), "JPEG")[:-300], "x.png: not a JPEG or PNG"),
        (bytes(huge), "x.png: more than 100 million pixels"),
    ):
        with pytest.raises(InputError, match=message):
            image_sources.read_image(write(tmp_path / "x.png", content))
    with pytest.raises(InputError, match="cannot be read"):
        image_sources.read_image(str(tmp_path / "gone.png"))


def test_frames_of_a_video(tmp_path):
    import cv2

    path = str(tmp_path / "clip.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 5, (56, 40))
    for brightness in (50, 120, 200):
        writer.write(np.full((40, 56, 3), (brightness, 0, 0), np.uint8))  # blue, green, red
    writer.release()
    _, sources = image_sources.find([path, write(tmp_path / "a.png")])
    names = [source.name for source in sources]
    assert names == [*(f"clip.avi/00000{k}.png" for k in (1, 2, 3)), "a.png"]
    for source, brightness in zip(sources, (50, 120, 200), strict=False):
        frame = source.read()
        assert frame.shape == (40, 56, 3)
        assert np.abs(frame.mean((0, 1)) - [0, 0, brightness]).max() < 8
    with pytest.raises(InputError, match="no video that can be decoded"):
        image_sources.find([write(tmp_path / "broken.mp4", b"no video")])
