"""Writes segments, predicted or true, in COCO panoptic format: a folder of PNG files and a JSON."""

import json
import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from kmax_tf.data.coco_panoptic import encode_ids
from kmax_tf.data.datasets import Category
from kmax_tf.files import write_atomic


class PanopticWriter:
    """One PNG file per `add`, the JSON file at `finish`; both as the official COCO files are.

    Args:
        json_path: the JSON file to write.
        folder: the folder for the PNG files.
        categories: sequence of `Category`, the "categories" of the JSON file.
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
        """Writes the PNG file and notes the image and its segments; several threads may call it.

        Args:
            image_id: int or str, unique.
            file_name: str, name of the image file, e.g. "000000142238.jpg".
            segment_map: int32 [height, width], 0 = void, else a segment's id, below 2^24.
            segments: list of dicts with "id" (int >= 1), "category_id" and what else is to be noted
                ("score", "isthing", "iscrowd"); "area" (pixels) is counted here.
            png_name: str, name of the PNG file, `<stem of file_name>.png` if not given.

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
        write_atomic(tf.io.gfile.join(self._folder, name), encode_ids(segment_map))
        height, width = segment_map.shape
        self._content["images"].append(
            {"id": image_id, "file_name": file_name, "height": height, "width": width}
        )
        self._content["annotations"].append(
            {
                "image_id": image_id,
                "file_name": name,
                "segments_info": [{**s, "area": area[i]} for s, i in zip(segments, listed)],
            }
        )

    def finish(self) -> None:
        """Writes the JSON file, its lists in the order of the file names."""
        for entries in (self._content["images"], self._content["annotations"]):
            entries.sort(key=lambda entry: entry["file_name"])
        text = json.dumps(self._content, default=lambda number: number.item())
        write_atomic(self._json_path, text)
