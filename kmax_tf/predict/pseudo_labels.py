"""Predictions as labels to train on: what is sure stays, the rest is void."""

import numpy as np
from scipy import ndimage

from kmax_tf.predict.segmenter import Segmentation


def confident(result: Segmentation, confidence: float) -> tuple[np.ndarray, list]:
    """The sure part of a `Segmentation`: its map, int32 [height, width], and its segments.

    Segments of a score below `confidence`, and pixels whose likeliest mask is less probable than
    that, are void (0). Areas and boxes are those of what is left.
    """
    sure = [s for s in result.segments if s.score >= confidence]
    kept = np.isin(result.panoptic_map, [s.id for s in sure]) & (result.confidence >= confidence)
    panoptic_map = np.where(kept, result.panoptic_map, 0)
    places = ndimage.find_objects(panoptic_map)
    areas = np.bincount(panoptic_map.ravel())
    segments = []
    for segment in sure:
        if segment.id < len(areas) and areas[segment.id]:
            rows, columns = places[segment.id - 1]
            size = columns.stop - columns.start, rows.stop - rows.start
            box = [columns.start, rows.start, *size]
            segments.append(segment._replace(area=int(areas[segment.id]), box=box))
    return panoptic_map, segments
