"""Reads objects in COCO's instance format, polygons and RLE.

kmax_tf/commands/prepare/coco_instances.py shows the files.
"""

import collections
from collections.abc import Container
from typing import Any

from data_prep import class_table, coco_masks, drawing, raw_dataset
from kmax_tf import errors, files
from kmax_tf.data import json_fields

NOTHING = "_background_"  # labelme's category of the pixels of no object
CROWD = 'crowd: cvat marks each mask of its brush so; if they are objects, set "iscrowd" to 0'


def read(flags: Any) -> raw_dataset.RawDataset:
    """Lists the images and objects of the folders and JSON files of the flags."""
    if bool(flags.val_images) != bool(flags.val_json):
        raise errors.InputError("--val_images and --val_json: give both or none of them")
    notes, listings, categories = collections.Counter(), [], {}
    for images, path in ((flags.images, flags.json), (flags.val_images, flags.val_json)):
        if path:
            content = files.read_json(path)
            categories[path] = read_categories(content, path)
            listings.append(raw_dataset.Listing(images, list_sources(content, path, notes)))
    sources = [source for listing in listings for source in listing.sources]
    segments = [found.segment for source in sources for found in source.labels.objects]
    used = {segment.category_id for segment in segments}
    classes = [
        drawing.with_background(without_groups(entries, used, notes), flags.background, path)
        for path, entries in categories.items()
    ]
    if classes[0] != classes[-1]:
        raise errors.InputError(
            f'{flags.val_json}: "categories" differ from those of {flags.json}; make them equal'
        )
    remarks = [CROWD] if any(segment.is_crowd for segment in segments) else []
    return raw_dataset.RawDataset(listings, *classes[0], coco_masks.draw, notes, remarks)


def read_categories(content: Any, path: str) -> list[dict]:
    """Returns "categories" of the JSON `path`, all of them things.

    The format has no "color": tools add a list as of the panoptic format, #ff8000 or null.
    """
    categories = []
    for index, entry in enumerate(files.field(content, "categories", list, path)):
        where = f"{path}: categories[{index}]"
        json_fields.integer(entry, "id", where)
        category = {**entry, "isthing": 1}
        if isinstance(color := category.pop("color", None), str):
            color = class_table.parse_color(color, where)
        categories.append(category | ({"color": color} if color else {}))
    return categories


def without_groups(
    entries: list[dict], used: Container[int], notes: collections.Counter
) -> list[dict]:
    """Leaves out categories that only group others, or stand for the pixels of no object.

    Args:
        entries: those of `read_categories`.
        used: ids of the categories that have objects, which all stay.
        notes: gets the number of those left out.
    """
    named = [(entry.get("supercategory"), entry.get("name")) for entry in entries]
    groups = [NOTHING, *(group for group, name in named if group != name)]
    kept = [e for e in entries if int(e["id"]) in used or e.get("name") not in groups]
    notes["categories without objects, of groups or nothing: left out"] = len(entries) - len(kept)
    return kept


def list_sources(content: Any, path: str, notes: collections.Counter) -> list[raw_dataset.Source]:
    """Lists the images of a JSON that have objects.

    Args:
        content: the parsed JSON, whose categories are right.
        path: the file that it is from, for messages.
        notes: counts what is left out.

    Returns:
        The images; their labels are a `coco_masks.Objects`.

    Raises:
        InputError: a field is wrong, or an annotation names no image or category of the file.
    """
    images = _read_images(content, path)
    known = {int(entry["id"]) for entry in content["categories"]}
    objects = collections.defaultdict(list)
    for index, entry in enumerate(files.field(content, "annotations", list, path)):
        where = f"{path}: annotations[{index}]"
        image_id = json_fields.identity(entry, "image_id", where)
        if "segments_info" in entry:
            raise errors.InputError(
                f"{path}: is in the panoptic format; convert it with `kmax prepare coco_format`"
            )
        if image_id not in images:
            raise errors.InputError(
                f'{where}: "image_id" {image_id} is not in "images"; add the image there or delete'
                " this annotation"
            )
        category = json_fields.integer(entry, "category_id", where)
        if category not in known:
            raise errors.InputError(
                f'{where}: "category_id" {category} is not in "categories"; add it there'
            )
        is_crowd = entry.get("iscrowd") is not None and json_fields.flag(entry, "iscrowd", where)
        if entry.get("segmentation"):
            segment = drawing.Segment(category, is_crowd)
            objects[image_id].append(coco_masks.Object(where, segment, entry["segmentation"]))
        else:
            notes["objects with a box but no segmentation: left out"] += 1
    notes["images without objects: left out"] += len(images) - len(objects)
    return [
        raw_dataset.Source(image_id, name, coco_masks.Objects(size, objects[image_id]))
        for image_id, (name, size) in images.items()
        if image_id in objects
    ]


def _read_images(content: Any, path: str) -> dict[str, tuple[str, tuple[int, int] | None]]:
    """Maps the id of each image to its file name, and to (height, width) if they are given."""
    images = {}
    for index, entry in enumerate(files.field(content, "images", list, path)):
        where = f"{path}: images[{index}]"
        image_id = json_fields.identity(entry, "id", where)
        if image_id in images:
            raise errors.InputError(f'{where}: "id" {image_id} is used twice; make ids unique')
        name = json_fields.text(entry, "file_name", where)
        size = None
        if entry.get("height") is not None and entry.get("width") is not None:
            height, width = (json_fields.integer(entry, k, where) for k in ("height", "width"))
            if not 0 < height * width < 1 << 31 or height < 0:
                raise errors.InputError(
                    f'{where}: "height" is {height} and "width" {width}; correct them'
                )
            size = height, width
        images[image_id] = name, size
    return images
