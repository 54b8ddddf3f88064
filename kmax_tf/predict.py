"""Prediction with an exported model, without any of the model's code."""

import os

import tensorflow as tf
from tqdm import tqdm

from kmax_tf import visualize
from kmax_tf.coco_writer import PanopticWriter
from kmax_tf.data.datasets import parse_categories
from kmax_tf.files import InputError, first_line, read_bytes, read_json, write_atomic

CATEGORIES = "categories.json"  # in an export, beside the SavedModel
IMAGES = (".jpg", ".jpeg", ".png")
SEGMENT_KEYS = ("segment_id", "category_id", "score", "isthing")


def load(export_dir):
    """The model of an export, a function uint8 [height, width, 3] -> dict, and its categories.

    Raises InputError if there is no export, or a damaged one.
    """
    path = os.path.join(export_dir, CATEGORIES)
    categories = parse_categories(read_json(path), path)
    try:
        return tf.saved_model.load(export_dir), categories
    except (OSError, tf.errors.OpError) as error:
        reason = first_line(error)
        raise InputError(f"{export_dir}: cannot be read ({reason}); export again") from error


def find_images(paths):
    """The image files that `paths` name, folders standing for the images in them.

    Raises InputError for a path that is not there or a folder without images.
    """
    found = []
    for path in paths:
        if tf.io.gfile.isdir(path):
            names = sorted(n for n in tf.io.gfile.listdir(path) if n.lower().endswith(IMAGES))
            if not names:
                raise InputError(f"{path}: holds no {', '.join(IMAGES)} file")
            found += [os.path.join(path, name) for name in names]
        elif tf.io.gfile.exists(path):
            found.append(path)
        else:
            raise InputError(f"{path}: no such image")
    return found


def read_image(path):
    """An image file as uint8 [height, width, 3]; InputError if it cannot be decoded."""
    try:
        return tf.io.decode_image(read_bytes(path), channels=3, expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        raise InputError(f"{path}: not a JPEG or PNG that can be decoded; convert it") from error


def predict(export_dir, paths, out_dir):
    """Writes the segmentations of images into `out_dir`.

    predictions.json and predictions/*.png are in COCO panoptic format, overlays/*.png to look at.
    A file that is no image is named and left out. Returns the number of images predicted.
    """
    model, categories = load(export_dir)
    by_id = {category.id: category for category in categories}
    writer = PanopticWriter(
        os.path.join(out_dir, "predictions.json"), os.path.join(out_dir, "predictions"), categories
    )
    done = 0
    for path in tqdm(find_images(paths), desc="predicting", unit="image"):
        try:
            image = read_image(path)
        except InputError as error:
            tqdm.write(f"skipped: {error}")
            continue
        result = {key: value.numpy() for key, value in model(image).items()}
        segments = [
            {"id": int(i), "category_id": int(c), "score": round(float(s), 4), "isthing": int(t)}
            for i, c, s, t in zip(*(result[key] for key in SEGMENT_KEYS), strict=True)
        ]
        name = os.path.basename(path)
        stem = os.path.splitext(name)[0]
        image_id = int(stem) if stem.isdecimal() else stem  # COCO's own, so that labels join these
        writer.add(image_id, name, result["panoptic_map"], segments)
        labelled = [
            (s["id"], by_id[s["category_id"]].name, by_id[s["category_id"]].color) for s in segments
        ]
        overlay = visualize.overlay(image.numpy(), result["panoptic_map"], labelled)
        target = os.path.join(out_dir, "overlays", f"{stem}.png")
        write_atomic(target, tf.io.encode_png(overlay).numpy())
        done += 1
    writer.finish()
    return done
