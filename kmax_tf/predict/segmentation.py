"""The segments of an image, as data, as a picture and for other libraries."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from kmax_tf import visualize
from kmax_tf.data.datasets import Category
from kmax_tf.errors import InputError

if TYPE_CHECKING:
    import supervision

NOTEBOOK = 1024  # largest side of a picture in a notebook, pixels


class Segment(NamedTuple):
    """One segment of a panoptic map.

    Attributes:
        id: its number on the map, from 1.
        category_id: its class, the `id` of one of the categories.
        isthing: whether the class is countable, such as cars; else it is stuff, such as sky.
        score: probability of its class times the mean one of its pixels' likeliest masks, 0 to 1.
        area: in pixels.
        box: left, top, width and height in pixels.
    """

    id: int
    category_id: int
    isthing: bool
    score: float
    area: int
    box: list[int]


class Segmentation(NamedTuple):
    """The prediction of one image, at its size. A notebook shows it as a picture.

    Attributes:
        panoptic_map: int32 [height, width], 0 void, else the id of a segment.
        segments: the `Segment`s on the map.
        image: uint8 [height, width, 3]. An array that you gave is not copied.
        categories: the classes, each with id, name, isthing and color (r, g, b).
        confidence: float32 [height, width], probability of the pixel's likeliest mask, 0 to 1. None
            without `details`.
        assignments: int32 [decoders, height, width], the pixel's cluster in each decoder; without a
            decoder for an image that is cut into tiles. None without `details`.
    """

    panoptic_map: np.ndarray
    segments: list[Segment]
    image: np.ndarray
    categories: Sequence[Category]
    confidence: np.ndarray | None = None
    assignments: np.ndarray | None = None

    def overlay(self) -> Image.Image:
        """Draws the segments over the image, each with a color, an outline and its class.

        Returns:
            An RGB image of Pillow, of the image's size. If the image's longer side is below 512
            pixels, the picture is enlarged by the smallest integer that brings it there.
        """
        shown = named(self.segments, self.categories)
        return Image.fromarray(visualize.overlay(self.image, self.panoptic_map, shown))

    def to_supervision(self) -> "supervision.Detections":
        """Converts the segments for the library `supervision`, in their order.

        Returns:
            `supervision.Detections` of n segments, things and stuff, with
              - `mask`: bool [n, height, width];
              - `xyxy`: float32 [n, 4], left, top, right and bottom in pixels, the latter two
                exclusive;
              - `class_id`: int64 [n], the category ids;
              - `confidence`: float32 [n], the scores;
              - `data["class_name"]`: [n] names.

        Raises:
            InputError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise InputError(f"{error.name}: not installed; pip install supervision") from error
        ids = np.array([s.id for s in self.segments], np.int32)
        boxes = np.array([s.box for s in self.segments], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        names = [name for _, name, _ in named(self.segments, self.categories)]
        return supervision.Detections(
            xyxy=boxes,
            mask=self.panoptic_map == ids[:, None, None],
            confidence=np.array([s.score for s in self.segments], np.float32),
            class_id=np.array([s.category_id for s in self.segments], np.int64),
            data={"class_name": np.array(names, str)},
        )

    def _repr_png_(self) -> bytes:
        """Encodes the overlay for a notebook."""
        return visualize.png(visualize.thumbnail(np.asarray(self.overlay()), NOTEBOOK))


def named(segments: Sequence[Any], categories: Sequence[Category]) -> list:
    """Lists (id, name of its class, color of its class) of segments, for `visualize.overlay`."""
    by_id = {category.id: category for category in categories}
    return [(s.id, by_id[s.category_id].name, by_id[s.category_id].color) for s in segments]


def measure(panoptic_map: np.ndarray) -> dict[int, tuple[int, list[int]]]:
    """Returns {id: (area in pixels, box)} of a map, int32 [height, width], whose 0 is void.

    A box is left, top, width and height in pixels.
    """
    areas = np.bincount(panoptic_map.ravel()).tolist()
    places = enumerate(ndimage.find_objects(panoptic_map), start=1)
    return {
        i: (areas[i], [x.start, y.start, x.stop - x.start, y.stop - y.start])
        for i, (y, x) in ((i, place) for i, place in places if place)
    }
