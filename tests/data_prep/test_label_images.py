"""Label images of every depth become panoptic labels; images of other formats become PNG."""

import collections
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data_prep import label_pairs
from kmax_tf import commands, errors

H, W = 10, 14
FORMATS = [("png", np.uint8), ("png", np.uint16), ("tif", np.uint8), ("tif", np.uint16)]
FORMATS += [("tif", np.int32), ("tif", np.float32)]


def label(top):
    """Objects 3 and `top`, of which the second has two parts."""
    values = np.zeros((H, W), np.int64)
    values[1:4, 1:5], values[6:8, 2:4], values[6:8, 9:12] = 3, top, top
    return values


@pytest.fixture
def folders(tmp_path, draw_image):
    (tmp_path / "labels").mkdir()
    for k, (kind, dtype) in enumerate(FORMATS):
        draw_image(tmp_path / f"images/{k}.jpg", H, W, k)
        top = 200 if dtype == np.uint8 else 60000
        values = label(top).astype(dtype)
        Image.fromarray(values).save(tmp_path / f"labels/{k}_masks.{kind}")
    draw_image(tmp_path / "images/bare.png", H, W, 8)
    draw_image(tmp_path / "labels/other.png", H, W, 8)
    return tmp_path


def run(folders, *more):
    arguments = ["--images", folders / "images", "--labels", folders / "labels"]
    arguments += ["--out", folders / "out", "--workers", "1", "--val_share", "0.2", *more]
    commands.main(["prepare", "label_images", *map(str, arguments)])
    return folders / "out"


def test_every_depth(folders, read_labels, capsys):
    out = run(folders)
    labels = {**read_labels(out, "train"), **read_labels(out, "val")}
    assert set(labels) == {f"{k}.jpg" for k in range(len(FORMATS))}
    wanted = sorted((label(9) == value).tobytes() for value in (3, 9))
    for objects in labels.values():
        assert sorted(mask.tobytes() for mask in objects["object", False]) == wanted
        np.testing.assert_array_equal(objects["background", False][0], label(9) == 0)
    told = capsys.readouterr().out
    assert f"the label of image NAME is NAME_masks ({len(FORMATS)} pairs)" in told
    assert "           1 images without a label: left out" in told
    assert "           1 labels without an image: left out" in told


def test_a_binary_mask_is_one_object_and_told(folders, capsys):
    binary = np.where(label(9) > 0, 255, 0).astype(np.uint8)
    Image.fromarray(binary).save(folders / "labels/0_masks.png")
    run(folders)
    assert "           1 labels of 0 and 255 alone: one object each" in capsys.readouterr().out


def test_images_of_other_formats_become_png(folders, read_all):
    pixels = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
    for k, kind in enumerate(("tif", "bmp", "webp")):
        (folders / f"images/{k}.jpg").unlink()
        Image.fromarray(pixels + np.uint8(k)).save(folders / f"images/{k}.{kind}", lossless=True)
    Image.fromarray(pixels[..., 0]).save(folders / "images/bare.tif")
    (folders / "images/bare.png").unlink()
    turned = Image.fromarray(np.rot90(pixels).copy())  # EXIF 6 turns it back
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folders / "images/2.webp", lossless=True, exif=exif)
    records = run(folders) / "records"
    found = {**read_all(records, "train"), **read_all(records, "val")}
    for k in range(2):
        np.testing.assert_array_equal(found[str(k)].image, pixels + np.uint8(k))
    np.testing.assert_array_equal(found["2"].image, pixels)
    jpeg = (folders / "images/3.jpg").read_bytes()  # its bytes are kept
    np.testing.assert_array_equal(found["3"].image, tf.io.decode_jpeg(jpeg))


def save(name, values, **options):
    return lambda f: Image.fromarray(values).save(f / name, **options)


PAGE = Image.fromarray(np.zeros((H, W), np.uint8))


@pytest.mark.parametrize(
    "change, message",
    [
        (
            save("labels/0_masks.png", np.uint8(label(9)[..., None] * [1, 2, 3])),
            "0_masks.png: .* RGB",
        ),
        (save("labels/2_masks.tif", np.zeros((H, W, 3), np.uint8)), "2_masks.tif: has colors"),
        (save("labels/4_masks.tif", np.full((H, W), -1, np.int32)), "4_masks.tif: has the value"),
        (save("labels/5_masks.tif", np.full((H, W), 0.5, np.float32)), "has the value 0.5; lab"),
        (save("labels/5_masks.tif", np.full((H, W), np.nan, np.float32)), "has the value nan"),
        (
            lambda f: PAGE.save(f / "labels/2_masks.tif", save_all=True, append_images=[PAGE]),
            "2_masks.tif: has 2 pages",
        ),
        (
            lambda f: PAGE.save(f / "images/bare.tif", save_all=True, append_images=[PAGE]),
            "bare.png and bare.tif differ only in extension",
        ),
        (save("labels/0_masks.png", np.zeros((H + 1, W), np.uint8)), "0.jpg: the image is 14 x 10"),
        (lambda f: (f / "labels/2_masks.tif").write_bytes(b"II*"), "2_masks.tif: not a readable"),
        (lambda f: (f / "labels/2_masks.tif").rename(f / "labels/2_masks.jpg"), None),
        (lambda f: PAGE.save(f / "labels/0_masks.jpg"), "0_masks.jpg and 0_masks.png differ"),
    ],
)
def test_what_is_wrong_is_named(folders, change, message):
    change(folders)
    if message is None:  # the content counts, not the extension
        run(folders)
        return
    with pytest.raises(SystemExit, match=message) as stopped:
        run(folders)
    assert "\n" not in str(stopped.value)


def test_jpeg_labels_are_refused(folders):
    (folders / "labels/0_masks.png").unlink()
    PAGE.save(folders / "labels/0_masks.jpg")
    with pytest.raises(SystemExit, match="0_masks.jpg: is JPEG; save labels as gray PNG or TIFF"):
        run(folders)


def test_folders_that_do_not_fit(folders, monkeypatch):
    with pytest.raises(SystemExit, match="mixes images and labels; move labels elsewhere"):
        run(folders, "--labels", folders / "images")
    with pytest.raises(SystemExit, match="--val_images and --val_labels: give both"):
        run(folders, "--val_labels", folders / "labels")
    with pytest.raises(SystemExit, match="--labels .*: would be overwritten"):
        run(folders, "--labels", folders / "out/train_labels")
    (folders / "out").mkdir()
    (folders / "same").symlink_to(folders / "out")
    for labels, out in ((folders / "out", "."), (folders / "same", folders / "out")):
        monkeypatch.chdir(folders / "out")
        with pytest.raises(SystemExit, match="--labels .*: would be overwritten"):
            run(folders, "--labels", labels / "train_labels", "--out", out)
    (folders / "others").mkdir()
    with pytest.raises(SystemExit, match="no label has the name of an image"):
        run(folders, "--labels", folders / "others")


@pytest.mark.parametrize("name", ["train.json", "val_labels/0.png", "records/notes.txt"])
def test_files_of_somebody_else_are_never_replaced(folders, name):
    out = folders / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_bytes(b"mine")
    with pytest.raises(
        SystemExit, match=rf"{name.split('/')[0]}: exists, and this version of `kmax prepare`"
    ):
        run(folders)
    assert [p.read_bytes() for p in out.rglob("*") if p.is_file()] == [b"mine"]
    (out / name).unlink()
    (out / name).parent.rename(folders / "empty") if "/" in name else None
    run(folders)
    run(folders)  # its own files it replaces


def test_names_that_start_each_other(tmp_path, draw_image):
    """Image 1 and image 10: the ending that pairs all is taken, though 1 + 0_mask also fits."""
    for k in range(1, 13):
        draw_image(tmp_path / f"images/{k}.png", 4, 4, k)
        draw_image(tmp_path / f"labels/{k}_mask.png", 4, 4, k)
    folders = str(tmp_path / "images"), str(tmp_path / "labels")
    listing, _ = label_pairs.pair(*folders, collections.Counter())
    assert {source.image_id: source.labels for source in listing.sources} == {
        str(k): str(tmp_path / f"labels/{k}_mask.png") for k in range(1, 13)
    }


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (["a", "b"], ["a_0", "a_1", "a_2", "b_0"], r"a_0\.png and a_1\.png .* a\.png \(1 images"),
        (["a", "b"], ["a", "a_1", "b", "b_1"], r"a\.png and a_1\.png .* a\.png \(2 images"),
        (
            ["1", "10"],
            ["1", "10", "10_b"],
            r"10\.png and 10_b\.png both label the image 10",
        ),
        (["1", "2"], ["1_mask", "2_mask", "10_mask"], None),  # of an image that is not there
        (["a", "a_m"], ["a_mask", "a_m_mask"], None),
        (["a", "b"], ["a_mask", "b_edge"], None),  # b has no label of the same ending
    ],
)
def test_an_image_has_one_label(tmp_path, draw_image, images, labels, message):
    for folder, stems in (("images", images), ("labels", labels)):
        for stem in stems:
            draw_image(tmp_path / folder / f"{stem}.png", 4, 4, 0)
    folders = str(tmp_path / "images"), str(tmp_path / "labels")
    if message is None:
        label_pairs.pair(*folders, collections.Counter())
        return
    with pytest.raises(errors.InputError, match=message) as error:
        label_pairs.pair(*folders, collections.Counter())
    assert "kmax prepare mask_folders" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("white_is_zero", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_stored_values_of_a_tiff_count(tmp_path, bits, white_is_zero):
    """By hand, for Pillow writes no such file. ImageJ's inverting table is "white is zero"."""
    values = np.arange(24).reshape(3, 8) % (1 << bits)
    samples = values.astype("<u2").tobytes()
    if bits < 16:
        places = np.arange(bits)[::-1]
        samples = np.packbits((values[..., None] >> places & 1).reshape(3, -1), axis=1).tobytes()
    entries = {256: 8, 257: 3, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 8}
    entries |= {277: 1, 278: 3, 279: len(samples)}
    head = struct.pack("<2sHI", b"II", 42, 8 + len(samples)) + samples
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    path = tmp_path / "a.tif"
    path.write_bytes(head + struct.pack("<H", len(entries)) + tags + bytes(4))
    shown = 1 - values if bits == 1 and white_is_zero else values  # as fax programs write masks
    np.testing.assert_array_equal(label_pairs.read_values(str(path)), shown)


def test_a_missing_label_is_one_line(tmp_path):
    with pytest.raises(errors.InputError, match="no.png: cannot be read"):
        label_pairs.read_values(str(tmp_path / "no.png"))
