"""Lost segments, counted by hand on maps of a few pixels."""

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf.data import datasets, segment_counts
from kmax_tf.data.records import example, serialize, shards
from kmax_tf.data.records.reader import Records
from kmax_tf.data.segment_counts import Counts
from kmax_tf.data.training_input import TrainingInput

DATASET = datasets.load("panoptic_digits")  # 10 things, 4 stuff
THING, STUFF = 0, 10


@pytest.fixture
def write(tmp_path):
    """A function that writes records of segment maps with their classes."""

    def write(*images):
        path = str(tmp_path / shards.name("train", 0, 1))
        with tf.io.TFRecordWriter(path) as writer:
            for number, (segment_map, classes, crowd) in enumerate(images):
                data = serialize.record(
                    image=tf.io.encode_png(np.zeros([*segment_map.shape, 3], np.uint8)).numpy(),
                    filename=f"{number}.png",
                    image_id=str(number),
                    segment_map=segment_map,
                    segment_id=list(range(1, 1 + len(classes))),
                    category_id=[DATASET.categories[c].id for c in classes],
                    is_crowd=[k in crowd for k in range(1, 1 + len(classes))],
                )
                writer.write(data)
        return Records([path], example.parse, len(images))

    return write


def count(records, evaluation_size=(16, 16), scale=None, num_clusters=3, **options):
    return segment_counts.count(
        records,
        DATASET,
        TrainingInput(**dict(size=(16, 16), max_segments=2, flip=False) | options),
        evaluation_size=evaluation_size,
        scale=scale,
        stride=4,
        num_clusters=num_clusters,
    )


@pytest.fixture
def scattered(write):
    """One image of 16 x 16; the grid of stride 4 has rows and columns 0, 4, 8, 12."""
    segment_map = np.zeros([16, 16], np.int32)
    segment_map[0, 0] = 1
    segment_map[1:4, 1:4] = 2  # between the pixels of the grid
    segment_map[4, 4] = 3  # crowd
    segment_map[8, 8], segment_map[8, 12] = 4, 5  # one segment, for it is stuff
    segment_map[12, 12] = 6
    segment_map[1:4, 12] = 7  # between the rows of the grid
    classes = [THING, THING, THING, STUFF, STUFF, THING, THING]
    return write((segment_map, classes, {3}))


def test_between_the_pixels_of_the_grid_and_beyond_the_clusters(scattered):
    counts = count(scattered, augment=False)
    assert counts.images == 1
    assert counts.training == Counts(segments=5, too_small=2, too_many=1)
    assert counts.evaluation == Counts(segments=5, too_small=2, too_many=0)


def test_a_smaller_evaluation_loses_more(scattered):
    # 16 rows on 8, every fourth of them: rows and columns 0 and 9 of the image.
    counts = count(scattered, evaluation_size=(8, 8), augment=False)
    assert counts.evaluation == Counts(segments=5, too_small=4, too_many=0)


def test_tiles_have_clusters_each(scattered):
    # At twice the size the grid has every second row; two tiles hold two segments each.
    counts = count(scattered, scale=2.0, num_clusters=1, augment=False)
    assert counts.evaluation == Counts(segments=5, too_small=0, too_many=2)


def test_a_pasted_image_adds_segments_and_hides_others(write):
    above, below = np.zeros([2, 16, 16], np.int32)
    above[:4, :4] = below[:4, :4] = 1
    below[8, 8], below[9:12, 9:12] = 2, 3
    counts = count(
        write((above, [THING], ()), (below, [THING] * 3, ())), paste_scales=(1.0,), max_segments=1
    )
    # The first crop: one. The second: the pasted one, one on the grid, one beside it.
    assert counts.training == Counts(segments=1 + 3, too_small=1, too_many=1)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_crops_of_a_large_image(write, scale):
    pixels = np.arange(1, 1601, dtype=np.int32).reshape(40, 40)  # each pixel is a thing
    records = write((pixels, [THING] * 1600, ()))
    counts = count(records, scales=(scale,), resize_to_crop=False, max_segments=16).training
    assert counts.segments - counts.too_small == 16  # the grid is 4 x 4
    side = np.sqrt(counts.segments)
    assert side == 16 if scale == 1 else 8 <= side <= 9 and counts.segments in (64, 72, 81)


def test_segments_beyond_the_numbers_of_a_map(write):
    """Of 320 things, 65 that are annotated last, and on the grid, are beyond 255."""
    segment_map = np.zeros([80, 80], np.int32)
    on_grid = np.zeros([80, 80], bool)
    on_grid[::4, ::4] = True
    later = np.argwhere(on_grid)[-65:]
    others = np.argwhere(~on_grid)[:255]
    for k, (y, x) in enumerate([*others, *later], start=1):
        segment_map[y, x] = k
    records = write((segment_map, [THING] * 320, ()))
    for placement in ("host", "device"):
        counts = count(
            records,
            evaluation_size=(80, 80),
            size=(80, 80),
            max_segments=255,
            scales=(1.0,),
            placement=placement,
        ).training
        assert counts == (320, 255, 65)


def described(training, evaluation, tiled=False):
    return segment_counts.describe(
        segment_counts.SegmentCounts(
            7, training, evaluation, max_segments=16, num_clusters=32, tiled=tiled
        )
    )


def test_lines_name_the_bindings():
    lost, none = Counts(200, 50, 1), Counts(100, 0, 0)
    title, small, many, rest = described(lost, none)
    assert title.endswith("7 images: 200") and rest.endswith(": 100, none lost")
    assert "50 (25.0 %)" in small and "training_input.TrainingInput.size" in small
    assert "1 (0.5 %) are beyond TrainingInput.max_segments 16" in many
    assert "kmax_decoder.ClusterPath.num_clusters" in many
    *_, small, many = described(none, lost)
    assert "Experiment.evaluation_size" in small and "or experiment.Experiment.tiles" in many
    *_, small, many = described(none, lost, tiled=True)
    assert "tiles.Tiles.scale" in small and "Experiment.tiles" not in small + many
    (line,) = described(none, none)
    assert line == "segments: none of 100 lost in crops of 7 images"
