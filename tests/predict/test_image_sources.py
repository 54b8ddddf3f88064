"""Which images a user means, what they are called, and that odd ones are read right or refused."""

import contextlib
import io
import os
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image, ImageOps

from data_prep import raw_images
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
    assert [s.image_id for s in sources] == ["a", "b", "000012"]
    root, sources = image_sources.find([str(tmp_path / "x/*.[jp]*g")])
    assert root == str(tmp_path / "x") and [s.name for s in sources] == ["a.jpg", "b.png"]
    np.testing.assert_array_equal(sources[1].read(), PIXELS)
    assert [s.name for s in image_sources.find([a, b])[1]] == ["b.png", "a.jpg"]


def test_local_and_remote_images_keep_their_results_below_the_output_folder(tmp_path):
    """An absolute name would put a result over the user's own image."""
    local, remote = write(tmp_path / "b.png"), "ram://bucket/folder/b.png"
    with tf.io.gfile.GFile(remote, "wb") as file:
        file.write(tf.io.encode_png(PIXELS).numpy())
    for paths in ([local, remote], [remote, local]):
        root, sources = image_sources.find(paths)
        with pytest.raises(InputError, match="^pseudo labels: predict local and remote images"):
            image_sources.check_recordable(root, sources)
        stems = {source.stem for source in sources}
        assert stems == {f"{tmp_path}/b"[1:], "ram/bucket/folder/b"}
        for source in sources:
            np.testing.assert_array_equal(source.read(), PIXELS)


@pytest.mark.parametrize(
    "files, root",
    [
        (["/data/x/a.png", "/data/y/b.png"], "/data"),
        (["/data/a.png", "/home/b.png"], "/"),
        (["gs://one/x/a.png", "gs://one/y/b.png"], "gs://one"),
        (["gs://one/a.png", "gs://two/b.png"], "gs://"),
    ],
)
def test_the_shared_folder_and_the_names_lead_to_the_images(files, root):
    """The command that is printed for pseudo labels has this folder."""
    found, names = image_sources._shared(files)
    assert found == root and [os.path.join(root, name) for name in names] == files


def test_images_of_one_name_do_not_collide(tmp_path):
    paths = [write(tmp_path / name) for name in ("a/1.jpg", "b/1.jpg", "b/01.png", "b/1.png")]
    for chosen in (paths, paths[:2], paths[1:3], paths[1::2]):
        _, sources = image_sources.find(chosen)
        for names in zip(*(source[:3] for source in sources), strict=True):
            assert len(set(map(str, names))) == len(chosen), names


def test_only_names_that_meet_get_their_extension(tmp_path):
    for name in ("1.jpg", "2.jpg", "x.jpg", "x.png", "deep/2.png"):
        write(tmp_path / name)
    _, sources = image_sources.find([str(tmp_path / "*.*"), str(tmp_path / "deep")])
    stems = {source.name: source.stem for source in sources}
    assert stems == {
        "1.jpg": "1",
        "2.jpg": "2",
        "x.jpg": "x.jpg",
        "x.png": "x.png",
        "deep/2.png": "deep/2",
    }
    assert {source.name: source.image_id for source in sources} == stems
    write(tmp_path / "x.jpg.png")  # whose own stem is another's name
    _, sources = image_sources.find([str(tmp_path / "x*")])
    assert len({source.stem for source in sources}) == 3


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


def test_what_a_folder_does_not_give_is_counted(tmp_path, capsys):
    for name in ("a.png", "b.BMP", "c.tif", "clip.mp4", "notes.txt", "below/d.gif"):
        write(tmp_path / name)
    found = [s.name for s in image_sources.find([str(tmp_path)])[1]]
    assert found == ["a.png", "b.BMP", "c.tif"]
    counts = "1 other files, 1 videos, 1 images in folders below"
    line = f"{tmp_path}: {counts} are left out; name them, or give a glob\n"
    assert sorted(capsys.readouterr().out.split(", ")) == sorted(line.split(", "))


def test_hidden_files_and_folders_are_left_out(tmp_path, capsys):
    """As the thumbnails of a desktop: the ids of the photos would change, too."""
    for place in (str(tmp_path), "ram://hidden"):
        for name in ("a/1.png", "a/._1.png", ".cache/1.png", "b/2.png", "b/.trash/2.png"):
            tf.io.gfile.makedirs(os.path.dirname(f"{place}/{name}"))
            tf.io.write_file(f"{place}/{name}", tf.io.encode_png(PIXELS))
        _, sources = image_sources.find([place])
        assert [source.image_id for source in sources] == ["1", "2"]
        assert capsys.readouterr().out.startswith(f"{place}: 3 other files are left out")
        assert len(image_sources.find([f"{place}/.cache"])[1]) == 1  # it is named


def test_a_folder_on_a_storage_is_counted_as_a_local_one(tmp_path, capsys):
    lines = []
    for place in (str(tmp_path), "ram://counted"):
        for name in ("a.png", "b.heic", "c.jp2", "below/d.png", "below/e/f.png"):
            tf.io.gfile.makedirs(os.path.dirname(f"{place}/{name}"))
            tf.io.write_file(f"{place}/{name}", tf.io.encode_png(PIXELS))
        assert [s.name for s in image_sources.find([place])[1]] == ["a.png"]
        lines.append(capsys.readouterr().out.removeprefix(place))
    assert lines[0] == lines[1]
    assert "2 other files" in lines[0] and "2 images in folders below" in lines[0]


def test_results_of_other_predictions_are_no_photos(tmp_path, capsys):
    photos = [write(tmp_path / f"day{k}/a.png") for k in (1, 2)]
    for out, mark in (("out1", "predictions.json"), ("day2", "unfinished.json")):
        (tmp_path / out).mkdir(exist_ok=True)
        (tmp_path / out / mark).write_text("{}")
        for name in ("contact_sheet.png", "overlays/a.png", "predictions/a.png"):
            write(tmp_path / out / name)
    _, sources = image_sources.find([str(tmp_path)])
    assert [source.name for source in sources] == ["day1/a.png", "day2/a.png"]
    assert f"{tmp_path}: 8 results of other predictions are left out" in capsys.readouterr().out
    assert len(image_sources.find([str(tmp_path / "out1/overlays")])[1]) == 1  # it is named
    write(tmp_path / "own/overlays/b.png")  # no prediction's
    assert len(image_sources.find([str(tmp_path)])[1]) == len(photos) + 1


def test_a_glob_gives_no_results_of_an_earlier_prediction(tmp_path):
    """As of the same command, a second time."""
    write(tmp_path / "a.png"), write(tmp_path / "out/day/b.png")
    found = {"out": ("overlays/a.png", "predictions/a.png", "contact_sheet.png"), ".": ("c.png",)}
    earlier = [write(tmp_path / place / name) for place, names in found.items() for name in names]
    (tmp_path / "out/predictions.json").write_text("{}")
    for pattern in ("**/*.png", "*", "[ao]*"):
        _, sources = image_sources.find([str(tmp_path / pattern)], earlier)
        names = {os.path.basename(source.name) for source in sources}
        assert names == {"a.png", "b.png"}, pattern
    (tmp_path / "out/day/b.png").unlink()
    for pattern in ("ou*", "out/over*", "out", "c.*"):
        with pytest.raises(InputError, match="no such image; check the path"):
            image_sources.find([str(tmp_path / pattern)], earlier)


def test_a_link_back_up_gives_each_image_once(tmp_path):
    write(tmp_path / "x/a/1.png"), write(tmp_path / "x/b/2.png")
    (tmp_path / "x/a/up").symlink_to("..")
    (tmp_path / "x/b/round").symlink_to("../../x")
    (tmp_path / "x/elsewhere").symlink_to(tmp_path / "y")
    write(tmp_path / "y/3.png")
    _, sources = image_sources.find([str(tmp_path / "x")])
    assert sorted(os.path.basename(source.name) for source in sources) == [
        "1.png",
        "2.png",
        "3.png",
    ]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch, capsys):
    write(tmp_path / "good/a.png"), write(tmp_path / "locked/b.png")
    locked = str(tmp_path / "locked")

    def refuse(function):
        def listed(path="."):  # rights do not stop root, who may run the tests
            if path == locked:
                raise PermissionError(13, "Permission denied", path)
            return function(path)

        return listed

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, refuse(getattr(os, name)))
    _, sources = image_sources.find([str(tmp_path)])
    assert [source.name for source in sources] == ["a.png"]
    assert f"{locked}: cannot be listed, and is left out" in capsys.readouterr().out


def test_pseudo_labels_are_of_files_that_records_hold(tmp_path):
    good = write(tmp_path / "a.png", encode(Image.fromarray(PIXELS), "PNG"))
    bad = write(tmp_path / "b.bmp")
    image_sources.check_recordable(*image_sources.find([good]))
    deep = write(tmp_path / "c.png", encode(Image.fromarray(np.zeros((2, 2), np.uint16)), "PNG"))
    with pytest.raises(InputError, match="c.png: pseudo labels need images of 8 bits"):
        image_sources.check_recordable(*image_sources.find([good, deep]))
    write_webm(tmp_path / "clip.webm")
    for path, name in ((bad, "b.bmp"), (str(tmp_path / "clip.webm"), "clip.webm/000001.png")):
        with pytest.raises(
            InputError, match=f"^{name}: pseudo labels need .jpg, .jpeg, .png files"
        ):
            image_sources.check_recordable(*image_sources.find([good, path]))


def test_paths_that_name_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    for path, message in (
        ("none.jpg", "none.jpg: no such image"),
        ("*.jpg", r"\*.jpg: no such image"),
        ("empty", "empty: has no .jpg, .jpeg, .png, .tif, .*gif file"),
    ):
        with pytest.raises(InputError, match=message):
            image_sources.find([str(tmp_path / path)])


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "LA", "RGBA", "1"])
def test_kinds_of_png(mode, tmp_path):
    image = Image.fromarray(PIXELS).convert(mode)
    path = write(tmp_path / "image.png", encode(image, "PNG"))
    np.testing.assert_array_equal(image_sources.read_image(path), image.convert("RGB"))


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "GIF", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_other_formats_have_the_pixels_of_the_training(kind, mode, tmp_path):
    """Those that `kmax prepare` copies as PNG, also with the EXIF orientation of a TIFF."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    options = {"lossless": True} if kind == "WEBP" else {}
    options |= {"exif": exif} if kind in ("TIFF", "WEBP") else {}
    content = encode(Image.fromarray(PIXELS).convert(mode), kind, **options)
    trained = tf.io.decode_png(raw_images.to_png(content, "a"), channels=3)
    path = write(tmp_path / f"image.{kind.lower()}", content)
    np.testing.assert_array_equal(image_sources.read_image(path), trained)


def test_a_big_tiff_is_read(tmp_path):
    content = encode(Image.fromarray(PIXELS), "TIFF", big_tiff=True)
    assert content.startswith(b"II+\0")
    path = write(tmp_path / "a.tif", content)
    np.testing.assert_array_equal(image_sources.read_image(path), PIXELS)


def test_a_tiff_that_is_no_picture_is_named(tmp_path):
    first, second = (Image.fromarray(PIXELS) for _ in range(2))
    pages = encode(first, "TIFF", save_all=True, append_images=[second])
    numbers = encode(Image.fromarray(PIXELS[..., 0].astype(np.float32)), "TIFF")
    for content, message in ((pages, "x.tif: has 2 pages"), (numbers, "save it as PNG of 8 bits")):
        with pytest.raises(InputError, match=message):
            image_sources.read_image(write(tmp_path / "x.tif", content))


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_are_told(kind, tmp_path, capsys):
    deep = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
    path = write(tmp_path / f"deep.{kind}", encode(Image.fromarray(deep), kind.upper()))
    np.testing.assert_array_equal(image_sources.read_image(path)[..., 1], deep >> 8)
    assert f"{path}: has 16 bits, of which the upper 8 are read" in capsys.readouterr().out


def twelve_bit_tiff(values):
    """A gray TIFF of 12 bits, two pixels in three bytes, which Pillow reads but does not write."""
    height, width = values.shape
    left, right = values[:, ::2], values[:, 1::2]
    packed = np.stack([left >> 4, (left & 15) << 4 | right >> 8, right & 255], axis=-1)
    data = packed.astype(np.uint8).tobytes()
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 277: 1, 278: height, 279: len(data)}
    tags[273] = 8 + 2 + 12 * (len(tags) + 1) + 4  # where the pixels begin
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + data


def test_twelve_bits_are_not_almost_black(tmp_path, capsys):
    values = np.arange(600, dtype=np.uint16).reshape(20, 30) * 6
    path = write(tmp_path / "deep.tif", twelve_bit_tiff(values))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), values)
    np.testing.assert_array_equal(image_sources.read_image(path)[..., 1], values // 16)
    assert f"{path}: has 12 bits, of which the upper 8 are read" in capsys.readouterr().out
    pixels = image_sources.to_pixels(Image.open(path))
    np.testing.assert_array_equal(pixels[..., 1], values // 16)
    assert capsys.readouterr().out == "image: has 12 bits, of which the upper 8 are read\n"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_of_pillow_are_told_once(kind, tmp_path, capsys):
    path = write(tmp_path / "deep", encode(Image.fromarray(DEEP), kind))
    np.testing.assert_array_equal(image_sources.to_pixels(Image.open(path))[..., 1], DEEP >> 8)
    assert capsys.readouterr().out == "image: has 16 bits, of which the upper 8 are read\n"
    image_sources.to_pixels(as_pillow("L"))
    image_sources.read_image(path)
    assert capsys.readouterr().out == f"{path}: has 16 bits, of which the upper 8 are read\n"


def test_one_pixel(tmp_path):
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
    image.getexif()[ExifTags.Base.Orientation] = orientation
    path = write(tmp_path / "image.png", encode(image, "PNG", exif=image.getexif()))
    np.testing.assert_array_equal(image_sources.read_image(path), ImageOps.exif_transpose(image))


def test_files_that_are_no_images(tmp_path):
    huge = bytearray(encode(Image.fromarray(PIXELS), "PNG"))
    huge[16:24] = (11_000).to_bytes(4, "big") * 2  # width and height in the header
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    for content, message in (
        (b"a text", "x.png: not an image that"),
        (encode(Image.fromarray(PIXELS), "JPEG")[:-300], "x.png: not an image that"),
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


def write_webm(path, frames=6):
    """Writes a video; returns its content and where its element Duration begins."""
    import cv2

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"VP80"), 10, (128, 96))
    for pixels in np.random.default_rng(0).integers(0, 255, (frames, 96, 128, 3), np.uint8):
        writer.write(pixels)
    writer.release()
    content = path.read_bytes()
    return content, content.find(bytes([0x44, 0x89, 0x88]))


def readable(sources):
    """Number of sources that can be read."""
    read = 0
    for source in sources:
        with contextlib.suppress(InputError):
            read += source.read().shape == (96, 128, 3)
    return read


def test_a_video_with_a_colon_in_its_name(tmp_path, monkeypatch):
    """Not of a protocol."""
    write_webm(tmp_path / "12:30.webm")
    monkeypatch.chdir(tmp_path)
    _, sources = image_sources.find(["12:30.webm"])
    assert sources[0].name == "12:30.webm/000001.png" and readable(sources) == 6


def test_video_without_a_number_of_frames_is_read_to_its_end(tmp_path, capsys):
    content, at = write_webm(tmp_path / "clip.webm")
    void = bytes([0xEC, 0x89]) + bytes(9)  # takes the place of the duration
    (tmp_path / "clip.webm").write_bytes(content[:at] + void + content[at + 11 :])
    _, sources = image_sources.find([str(tmp_path / "clip.webm")])
    assert len(sources) == readable(sources) == 6
    assert not capsys.readouterr().out


def test_video_without_its_end_gives_the_frames_before_and_a_line(tmp_path, capsys):
    content, _ = write_webm(tmp_path / "clip.webm", 20)
    (tmp_path / "clip.webm").write_bytes(content[: len(content) * 7 // 10])
    _, sources = image_sources.find([str(tmp_path / "clip.webm")])
    assert 5 < len(sources) == readable(sources) < 20
    [line] = capsys.readouterr().out.splitlines()
    assert f"clip.webm: has {len(sources)} of the 20 frames in its header" in line


def test_broken_video_does_not_stop_the_others(tmp_path):
    write(tmp_path / "a.png")
    for name, content in (("broken.mp4", b"no video"), ("empty.avi", b"RIFF")):
        write(tmp_path / name, content)
    _, sources = image_sources.find([str(tmp_path / name) for name in ("broken.mp4", "*.avi")])
    assert [source.name for source in sources] == ["broken.mp4", "empty.avi"]
    for source in sources:
        with pytest.raises(InputError, match=f"{source.name}: not a video that can be decoded"):
            source.read()


ODD_NAMES = (
    "line\nbreak.png",
    "tab\t.png",
    "\x1b[31m.png",
    "\u202f\u3000.png",
    "日本.png",
    "-dash.png",
    " .png",
    "a?*[b]\\.png",
    "{x}%s~.png",
    "n" * 246 + ".png",
    "é" * 123 + ".png",
)


def test_odd_names_are_found_and_read(tmp_path):
    folder = tmp_path / "[1] *?\\"
    for name in ODD_NAMES:
        write(folder / name)
    for path in (folder, folder / "*.png", folder / "*.p[n]g", tmp_path):
        found = image_sources.find([str(path)])[1]
        assert {source.name for source in found} >= {n for n in ODD_NAMES if path != tmp_path}
        assert len(found) == len(ODD_NAMES)
        for source in found:
            np.testing.assert_array_equal(source.read(), PIXELS)
    for name in ODD_NAMES:
        [source] = image_sources.find([str(folder / name)])[1]
        assert source.name == name


@pytest.mark.parametrize("place", ["bad\udcff.png", "folder\udce9/a.png", "a/b\udc80.PNG"])
def test_name_that_is_not_utf8_does_not_stop_the_others(place, tmp_path):
    folder = tmp_path / "photos"
    write(folder / place)
    write((folder / place).parent / "good.png" if "\udce9" not in place else folder / "b/good.png")
    found = image_sources.find([str(folder)])[1]
    assert len(found) == 2
    bad, good = sorted(found, key=lambda source: "good" in source.name)
    np.testing.assert_array_equal(good.read(), PIXELS)
    with pytest.raises(InputError, match=r"\\udc.*: the name is not UTF-8; rename it"):
        bad.read()
    video = folder / "clip\udcff.mp4"
    video.write_bytes(b"x")
    [source] = image_sources.find([str(folder / "*.mp4")])[1]
    with pytest.raises(InputError, match="the name is not UTF-8"):
        source.read()


def as_pillow(mode):
    return Image.fromarray(PIXELS).convert(mode)


DEEP = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100


@pytest.mark.parametrize(
    "image, expected",
    [
        (PIXELS, PIXELS),
        (PIXELS[..., 0], PIXELS[..., [0, 0, 0]]),
        (PIXELS[..., :1], PIXELS[..., [0, 0, 0]]),
        (np.dstack([PIXELS, PIXELS[..., :1]]), PIXELS),
        (PIXELS[:1, :1], PIXELS[:1, :1]),
        (PIXELS[::-1, ::-2], PIXELS[::-1, ::-2]),
        (tf.constant(PIXELS), PIXELS),
        *((as_pillow(mode), as_pillow(mode).convert("RGB")) for mode in ("RGB", "L", "P", "1")),
        *((as_pillow(mode), as_pillow(mode).convert("RGB")) for mode in ("LA", "RGBA", "CMYK")),
        (Image.fromarray(DEEP), np.stack([DEEP >> 8] * 3, axis=-1)),
    ],
)
def test_forms_of_an_image(image, expected):
    pixels = image_sources.to_pixels(image)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_paths_and_pillow_agree_and_are_upright(orientation, tmp_path):
    image = Image.fromarray(PIXELS)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    path = tmp_path / "image.png"
    write(path, encode(image, "PNG", exif=image.getexif()))
    for given in (str(path), path, Image.open(path)):
        np.testing.assert_array_equal(
            image_sources.to_pixels(given), ImageOps.exif_transpose(image)
        )


@pytest.mark.parametrize(
    "image, message",
    [
        (PIXELS / np.float32(255), "is float32 with values 0 to 1; give"),
        (PIXELS.astype(np.float64), "is float64 with values"),
        (PIXELS.astype(np.int16) - 127, "is int16 with values -127 to 128"),
        (PIXELS.astype(np.uint16) * 257, "is uint16 with values 0 to 6.55e[+]04"),
        (PIXELS.astype(np.int64), "is int64"),
        (PIXELS > 9, "is bool"),
        (PIXELS.astype(np.complex64), "is complex64"),
        (np.full((4, 4, 3), np.nan, np.float32), "is float32 with values nan to nan"),
        (as_pillow("F"), "is float32"),
        (as_pillow("I"), "is int32"),
        (None, "is object"),
        ([1, 2], "is int64"),
        (np.zeros((0, 5, 3), np.uint8), r"has shape \[0, 5, 3\]"),
        (PIXELS[None], r"has shape \[1, 40, 56, 3\]"),
        (PIXELS.transpose(2, 0, 1), r"has shape \[3, 40, 56\]"),
        (PIXELS[..., :2], r"has shape \[40, 56, 2\]"),
        (PIXELS[0, 0], r"has shape \[3\]"),
        (np.uint8(3), r"has shape \[\]"),
    ],
)
def test_other_forms_are_refused_in_one_line(image, message):
    with pytest.raises(InputError, match=f"^image: {message}") as refusal:
        image_sources.to_pixels(image)
    assert "\n" not in str(refusal.value)


def test_broken_files_in_pillow_are_refused(tmp_path):
    path = tmp_path / "cut.png"
    write(path, encode(Image.fromarray(PIXELS), "PNG")[:-60])
    with pytest.raises(InputError, match="image: cannot be decoded"):
        image_sources.to_pixels(Image.open(path))


def test_a_glob_gives_the_images_of_folders_that_match(tmp_path):
    """As where the shell expands it."""
    write(tmp_path / "x/day1/a.png"), write(tmp_path / "x/day2/b.png"), write(tmp_path / "x/c.png")
    _, sources = image_sources.find([str(tmp_path / "x/*")])
    assert [source.name for source in sources] == ["c.png", "day1/a.png", "day2/b.png"]
    (tmp_path / "empty/inner").mkdir(parents=True)
    with pytest.raises(InputError, match="empty/inner: has no .jpg"):
        image_sources.find([str(tmp_path / "empty/*")])


def test_a_glob_of_any_depth(tmp_path):
    write(tmp_path / "x/a.png"), write(tmp_path / "x/1/b.png"), write(tmp_path / "x/1/2/c.png")
    _, sources = image_sources.find([str(tmp_path / "x/**/*.png")])
    assert [source.name for source in sources] == ["1/2/c.png", "1/b.png", "a.png"]


def test_only_the_first_frame_of_an_animation_is_decoded(tmp_path):
    """A second frame may be far larger than the header says."""
    frames = [Image.fromarray(PIXELS).quantize(), Image.new("P", (5000, 5000))]
    small = encode(frames[0], "GIF")
    # The image descriptor, which gives a frame's size, and all after it but the trailer.
    frame = encode(frames[1], "GIF")
    path = write(tmp_path / "a.gif", small[:-1] + frame[frame.index(b",\0\0\0\0") :])
    with Image.open(path) as opened:
        assert opened.n_frames == 2
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(image_sources.read_image(path), expected)
    assert expected.shape == PIXELS.shape
    for length in range(4, len(small) - 1, 3):
        write(tmp_path / "cut.gif", small[:length])
        with pytest.raises(InputError, match="cut.gif: not an image that can be decoded"):
            image_sources.read_image(str(tmp_path / "cut.gif"))


def test_videos_do_not_stay_open(tmp_path):
    """Else the descriptors of a process end after some hundred clips."""
    for k in range(5):
        write_webm(tmp_path / f"{k}.webm")
    before = len(os.listdir("/proc/self/fd"))
    _, sources = image_sources.find([str(tmp_path / "*.webm")])
    for source in sources:
        source.read()
        assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert len(os.listdir("/proc/self/fd")) == before
