"""Writes segments in COCO panoptic format: a JSON file and a folder of PNG files."""

import json
import os
import re
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from kmax_tf.data.datasets import Category
from kmax_tf.data.label_png import encode_ids
from kmax_tf.files import write_atomic


def coco_image_id(name: str) -> int | str:
    """The image id for a file name: 142238 for 000000142238.jpg, with or without extension.

    A name of other signs than 1 to 18 decimal digits is its own id.
    """
    number = re.fullmatch(r"([0-9]{1,18})(\.(jpe?g|png))?", name, re.IGNORECASE)
    return int(number[1]) if number else name


def coco_image_ids(names: Sequence[str]) -> list[int | str]:
    """The image ids for unique names; the names themselves if two, as 007 and 7, would meet."""
    ids = [coco_image_id(name) for name in names]
    return ids if len(set(ids)) == len(ids) else list(names)


def write_annotation(
    folder: str,
    image_id: int | str,
    file_name: str,
    segment_map: np.ndarray,
    segments: Sequence[dict],
    png_name: str | None = None,
) -> tuple[dict, dict]:
    """Writes the PNG file of an image, and returns its entries of the JSON file.

    Args:
        folder: the folder for the PNG file.
        image_id: a unique id; in the file it is as `coco_image_ids` makes it.
        file_name: name of the image file, such as "000000142238.jpg".
        segment_map: int32 [height, width], 0 for void, else a segment id below 2^24.
        segments: dicts with "id" (int >= 1), "category_id" and any other field to write, such
            as "score" or "iscrowd". "area" (pixels) is added.
        png_name: name of the PNG file; `<stem of file_name>.png` by default.

    Returns:
        The entry of "images" and that of "annotations", for `PanopticWriter.enter`.

    Raises:
        ValueError: the ids of the map and of the segments differ.
    """
    ids, areas = np.unique(segment_map, return_counts=True)
    area = {i: n for i, n in zip(ids.tolist(), areas.tolist()) if i != 0}
    listed = [int(segment["id"]) for segment in segments]
    if sorted(listed) != sorted(area):
        raise ValueError(
            f"{file_name}: segments: ids {sorted(listed)} but the map holds {sorted(area)}; "
            "list every segment of the map once"
        )
    name = png_name or os.path.splitext(os.path.basename(file_name))[0] + ".png"
    write_atomic(tf.io.gfile.join(folder, name), encode_ids(segment_map))
    height, width = segment_map.shape
    image = {"id": image_id, "file_name": file_name, "height": height, "width": width}
    annotation = {
        "image_id": image_id,
        "file_name": name,
        "segments_info": [{**s, "area": area[i]} for s, i in zip(segments, listed)],
    }
    return image, annotation


class PanopticWriter:
    """Writes files like the official ones: a PNG file in each `add`, the JSON file in `finish`.

    Args:
        json_path: the JSON file to write.
        folder: the folder for the PNG files.
        categories: the "categories" of the JSON file.
    """

    def __init__(self, json_path: str, folder: str, categories: Sequence[Category]):
        self._json_path = json_path
        self._folder = folder
        self._content: dict[str, list] = {
            "images": [],
            "annotations": [],
            "categories": [
                {"id": c.id, "name": c.name, "isthing": int(c.isthing), "color": list(c.color)}
                for c in categories
            ],
        }

    def add(
        self,
        image_id: int | str,
        file_name: str,
        segment_map: np.ndarray,
        segments: Sequence[dict],
        png_name: str | None = None,
    ) -> None:
        """Writes the PNG file of an image and notes its segments; several threads may call it.

        Args and raises are those of `write_annotation`.
        """
        self.enter(
            *write_annotation(self._folder, image_id, file_name, segment_map, segments, png_name)
        )

    def enter(self, image: dict, annotation: dict) -> None:
        """Notes the entries of an image, whose PNG file `write_annotation` wrote elsewhere."""
        self._content["images"].append(image)
        self._content["annotations"].append(annotation)

    def finish(self) -> None:
        """Writes the JSON file, its lists sorted by file name."""
        given = [image["id"] for image in self._content["images"]]
        image_ids = dict(zip(given, coco_image_ids([str(i) for i in given]), strict=True))
        for image in self._content["images"]:
            image["id"] = image_ids[image["id"]]
        for annotation in self._content["annotations"]:
            annotation["image_id"] = image_ids[annotation["image_id"]]
        for entries in (self._content["images"], self._content["annotations"]):
            entries.sort(key=lambda entry: entry["file_name"])
        text = json.dumps(self._content, default=lambda number: number.item())
        write_atomic(self._json_path, text)
