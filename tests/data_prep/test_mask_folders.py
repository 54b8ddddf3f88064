"""Folders of masks become panoptic labels, whatever kind of PNG the masks are."""

import pathlib
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data_prep import convert
from kmax_tf import commands
from kmax_tf.data.records import shards
from kmax_tf.planning import planner

H, W = 12, 16


def disk(top, left):
    mask = np.zeros((H, W), bool)
    mask[top : top + 4, left : left + 3] = True
    return mask


def save(path, mask, mode):
    path.parent.mkdir(parents=True, exist_ok=True)
    gray = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    if mode == "palette":  # the object has index 0, and the color that is not black
        picture = Image.fromarray(np.where(mask, 0, 1).astype(np.uint8))
        picture.putpalette([9, 0, 0, 0, 0, 0])
    elif mode == "16":
        picture = Image.fromarray(np.where(mask, 256, 0).astype(np.uint16))
    else:
        picture = gray.convert(mode)
    picture.save(path)


@pytest.fixture
def folder(tmp_path, draw_image):
    """Four images with one or two masks each, and what is no image."""
    source = tmp_path / "own [1]*"  # a path is no pattern
    for k, modes in enumerate((("L", "LA"), ("RGB", "RGBA"), ("palette", "16"), ("1",))):
        draw_image(source / f"id{k}/images/a.png", H, W, k)
        for place, mode in enumerate(modes):
            save(source / f"id{k}/masks/{place}.png", disk(2, 1 + 8 * place), mode)
    draw_image(source / "bare/images/a.png", H, W, 9)
    (source / "empty/images").mkdir(parents=True)
    for name in ("id0/masks/.DS_Store", "id0/masks/Thumbs.db", "id1/images/._a.png", "labels.csv"):
        (source / name).write_bytes(b"no image")
    return source


def run(folder, *more):
    out = folder.parent / "out [2]?"
    arguments = ["--source", str(folder), "--out", str(out), "--thing", "cell", "--workers", "1"]
    commands.main(["prepare", "mask_folders", *arguments, "--val_share", "0.25", *more])
    return out


def test_all_kinds_of_masks(folder, read_labels, capsys):
    out = run(folder)
    train, val = read_labels(out, "train"), read_labels(out, "val")
    assert (len(train), len(val)) == (3, 1)
    labels = {**train, **val}
    for k, count in enumerate((2, 2, 2, 1)):
        objects = labels[f"id{k}/images/a.png"]
        found = sorted(mask.tobytes() for mask in objects["cell", False])
        assert found == sorted(disk(2, 1 + 8 * place).tobytes() for place in range(count))
        assert objects["background", False][0].sum() == H * W - 12 * count
    told = capsys.readouterr().out
    assert "           1 images without masks: left out" in told
    assert "           1 folders images/ without an image: left out" in told
    assert "           2 files and folders that are no mask: left out" in told
    assert "           1 files and folders that are no image: left out" in told
    assert "           1 files, and folders without a folder images/: left out" in told
    assert (out / "validation/val/contact_sheet.png").exists()


def test_plans_the_training_too(folder, monkeypatch):
    """--plan is `kmax plan` of the new records; its own test shows what that writes."""
    with pytest.raises(SystemExit, match="own: the plan is a gin file"):
        run(folder, "--plan", str(folder.parent / "own"))
    with pytest.raises(SystemExit, match="minutes must be above 0 and finite, not 0"):
        run(folder, "--plan", str(folder.parent / "own.gin"), "--minutes", "0")
    assert not (folder.parent / "out [2]?").exists()
    plans = []
    monkeypatch.setattr(planner, "run", lambda *arguments: plans.append(arguments))
    out = run(folder, "--plan", str(folder.parent / "own.gin"), "--minutes", "7")
    assert (out / "records/dataset.json").exists()
    assert plans == [(f"{out}/records", str(folder.parent / "own.gin"), "auto", 7.0, "")]


def test_transparent_pixels_are_outside(folder, read_labels):
    """Programs save white under what they erase; color keys are transparent too."""
    rgba = np.full((H, W, 4), 255, np.uint8)
    rgba[..., 3] = np.where(disk(2, 1), 128, 0)
    Image.fromarray(rgba).save(folder / "id0/masks/0.png")
    gray = Image.fromarray(np.where(disk(2, 9), 255, 7).astype(np.uint8))
    gray.save(folder / "id0/masks/1.png", transparency=7)
    out = run(folder)
    labels = {**read_labels(out, "train"), **read_labels(out, "val")}
    found = sorted(mask.tobytes() for mask in labels["id0/images/a.png"]["cell", False])
    assert found == sorted([disk(2, 1).tobytes(), disk(2, 9).tobytes()])


def test_copies_are_on_one_side_of_the_split(folder, read_labels, capsys):
    first = (folder / "id0/images/a.png").read_bytes()
    for k in range(1, 3):
        (folder / f"id{k}/images/a.png").write_bytes(first)
    out = run(folder)
    assert set(read_labels(out, "val")) == {"id3/images/a.png"}
    assert "2 images are duplicates within their split" in capsys.readouterr().out
    run(folder, "--val_source", str(folder))
    assert "warning: 2 images are in both training and validation" in capsys.readouterr().out


def jpeg(folder):
    Image.fromarray(np.zeros((H, W), np.uint8)).save(folder / "id0/masks/z.jpg")


def webp(folder):
    Image.fromarray(np.zeros((H, W, 3), np.uint8)).save(folder / "id0/masks/z.webp")


def turned(folder):
    exif = Image.Exif()
    exif[0x112] = 3
    Image.fromarray(np.zeros((H, W), np.uint8)).save(folder / "id0/masks/0.png", exif=exif)


def deep(folder):
    """16-bit RGB with 255 of 65535, of which Pillow and others keep 0."""
    samples = np.full((H, W, 3), 255, np.uint16)
    content = tf.io.encode_png(samples).numpy()
    (folder / "id0/masks/0.png").write_bytes(content)


def deep_alpha(folder):
    content = tf.io.encode_png(np.full((H, W, 2), 255, np.uint16)).numpy()
    (folder / "id0/masks/0.png").write_bytes(content)


def deep_tiff(folder):
    """A TIFF of one strip by hand, for Pillow writes no colors of 16 bits."""
    samples = np.full((H, W, 3), 255, "<u2").tobytes()
    values = {256: W, 257: H, 259: 1, 262: 2, 277: 3, 278: H, 279: len(samples)}
    values |= {258: 134, 273: 140}  # the places of the bits, and of the samples
    entries = b"".join(
        struct.pack("<HHII", tag, 3 if tag == 258 else 4, 3 if tag == 258 else 1, value)
        for tag, value in sorted(values.items())
    )
    head = struct.pack("<2sHIH", b"II", 42, 8, len(values)) + entries + bytes(4)
    head = head.ljust(134, b"\0") + struct.pack("<3H", 16, 16, 16)
    (folder / "id0/masks/z.tif").write_bytes(head + samples)


def deep_image(folder):
    content = tf.io.encode_png(np.full((H, W, 3), 4095, np.uint16)).numpy()
    (folder / "id0/images/a.png").write_bytes(content)


def pages(folder):
    """As ImageJ saves an object a page."""
    page = Image.fromarray(np.zeros((H, W), np.uint8))
    page.save(folder / "id0/masks/z.tif", save_all=True, append_images=[page, page])


def larger(folder):
    save(folder / "id0/masks/0.png", np.zeros((H, W + 1), bool), "L")


def gray16(folder):
    Image.fromarray(np.zeros((H, W), np.uint16)).save(folder / "id0/images/a.png")


@pytest.mark.parametrize(
    "change, message",
    [
        (jpeg, "z.jpg: JPEG is lossy; save masks as PNG"),
        (webp, "z.webp: WEBP is lossy; save masks as PNG"),
        (turned, "0.png: labels with EXIF orientation 3; save them upright"),
        (deep, "0.png: is a PNG of 16 bits, RGB; save masks as gray PNG of 8 bits"),
        (deep_alpha, "0.png: is a PNG of 16 bits, (LA|RGBA); save masks as gray PNG of 8 bits"),
        (deep_tiff, "z.tif: is a TIFF of 16 bits, RGB; save masks as gray PNG of 8 bits"),
        (deep_image, "a.png: has 16 bits in Pillow's mode RGB, .* save it as PNG"),
        (pages, "z.tif: has 3 pages; save each mask as a file of its own"),
        (larger, "0.png: the mask is 17 x 12 but its upright image 16 x 12"),
        (gray16, "a.png: has 16 bits in Pillow's mode I;16.* save it as PNG"),
        (lambda f: (f / "id0/masks/0.png").write_bytes(b"\x89PNG"), "0.png: not a readable mask"),
        (lambda f: (f / "id0/images/a.png").write_bytes(b"\x89PNG"), "a.png: broken, or no image"),
        (lambda f: jpeg(f) or (f / "id0/masks/z.jpg").rename(f / "id0/images/z.jpg"), "2 images"),
    ],
)
def test_what_is_wrong_is_named(folder, change, message):
    change(folder)
    with pytest.raises(SystemExit, match=message) as stopped:
        run(folder)
    assert "\n" not in str(stopped.value)


def test_errors_of_the_validation_stop_before_the_records(folder):
    whole = (folder / "id0/images/a.png").read_bytes()
    (folder / "id0/images/a.png").write_bytes(whole[:-60])
    with pytest.raises(SystemExit, match=r"validation/\w+/report.txt: lists 1 errors"):
        run(folder)
    records = folder.parent / "out [2]?/records"
    assert not records.exists()
    (folder / "id0/images/a.png").write_bytes(whole)
    run(folder)
    assert (records / "dataset.json").exists()


def test_an_interruption_mixes_no_old_split_with_a_new_one(folder, read_labels, monkeypatch):
    out = run(folder)
    old = [read_shards(out / "records", split) for split in ("train", "val")]
    whole = convert._make

    def stop_at_the_second(*args, **options):
        if args[3] == "val":
            raise KeyboardInterrupt
        return whole(*args, **options)

    monkeypatch.setattr(convert, "_make", stop_at_the_second)
    with pytest.raises(SystemExit, match="interrupted"):
        run(folder, "--seed", "1")
    assert [read_shards(out / "records", split) for split in ("train", "val")] == old
    monkeypatch.undo()
    run(folder, "--seed", "1")
    assert [read_shards(out / "records", split) for split in ("train", "val")] != old


def read_shards(records, split):
    return [pathlib.Path(path).read_bytes() for path in shards.paths(str(records), split)]


def test_the_folder_above_is_asked_for(folder):
    with pytest.raises(SystemExit, match="no folder in it has an image in images/"):
        run(folder / "id0")
    with pytest.raises(SystemExit, match="no such folder"):
        run(folder / "nowhere")
