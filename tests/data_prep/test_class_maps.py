"""Class maps become panoptic labels: tables of classes, void, parts of things."""

import numpy as np
import pytest
from PIL import Image

from kmax_tf import commands
from kmax_tf.data import datasets

MAP = np.array(
    [
        [0, 0, 0, 7, 7, 0],
        [0, 0, 0, 7, 0, 7],
        [11, 0, 0, 0, 0, 7],
        [11, 255, 0, 7, 0, 0],
    ],
    np.uint8,
)
PARTS = [[(0, 3), (0, 4), (1, 3)], [(1, 5), (2, 5)], [(3, 3)]]  # of 7: corners do not connect
TABLE = "value,name,isthing,color\n0,road,0,#804080\n7,car,1,\n"


@pytest.fixture
def folders(tmp_path, draw_image):
    """Three images with a palette, a gray map and one of two bits."""
    (tmp_path / "labels").mkdir()
    for k in range(3):
        draw_image(tmp_path / f"images/{k}.png", *MAP.shape, k)
    palette = Image.fromarray(MAP)
    palette.putpalette([200] * 768)  # colors do not matter
    palette.save(tmp_path / "labels/0.png")
    Image.fromarray(MAP).save(tmp_path / "labels/1.png")
    Image.fromarray(np.zeros_like(MAP)).save(tmp_path / "labels/2.png")
    (tmp_path / "classes.csv").write_text(TABLE)
    return tmp_path


def run(folders, *more):
    arguments = ["--images", folders / "images", "--labels", folders / "labels"]
    arguments += ["--out", folders / "out", "--workers", "1", "--val_share", "0.3", *more]
    commands.main(["prepare", "class_maps", *map(str, arguments)])
    return folders / "out"


def test_guessed_classes_are_stuff(folders, read_labels, capsys):
    out = run(folders)
    labels = {**read_labels(out, "train"), **read_labels(out, "val")}
    for name in ("0.png", "1.png"):
        assert labels[name].keys() == {
            (None, False),
            *((f"class {value}", False) for value in (0, 7, 11)),
        }
        for value in (0, 7, 11):
            (mask,) = labels[name][f"class {value}", False]
            np.testing.assert_array_equal(mask, value == MAP)
        np.testing.assert_array_equal(labels[name][None, False][0], MAP == 255)
    told = capsys.readouterr().out
    assert "           2 pixels of value 255: void" in told
    assert "names are guessed, all are stuff: give --classes TABLE.csv" in told


def test_a_table_names_things(folders, read_labels, capsys):
    out = run(folders, "--classes", folders / "classes.csv", "--void", 11)
    labels = {**read_labels(out, "train"), **read_labels(out, "val")}
    objects = labels["1.png"]
    found = [set(map(tuple, np.argwhere(mask).tolist())) for mask in objects["car", False]]
    assert sorted(map(sorted, found)) == sorted(PARTS)
    np.testing.assert_array_equal(objects["road", False][0], MAP == 0)
    np.testing.assert_array_equal(objects[None, False][0], MAP > 7)
    categories = datasets.load(str(out / "records")).categories
    assert [c[:3] for c in categories] == [(7, "car", True), (0, "road", False)]
    assert categories[1].color == (128, 64, 128)
    told = capsys.readouterr().out
    assert "           4 pixels of value 11: void" in told
    assert "car: each part whose pixels touch at a side is a segment" in told


def test_a_table_may_list_255(folders, read_labels):
    (folders / "classes.csv").write_text("\ufeffvalue,name\n0,road\n7,car\n11,sky\n255,edge\n")
    out = run(folders, "--classes", folders / "classes.csv")
    labels = {**read_labels(out, "train"), **read_labels(out, "val")}
    np.testing.assert_array_equal(labels["1.png"]["edge", False][0], MAP == 255)


def test_the_remedy_keeps_the_void_that_is_given(folders):
    (folders / "classes.csv").write_text("value,name\n0,road\n")
    with pytest.raises(SystemExit, match="--void 7 11$"):
        run(folders, "--classes", folders / "classes.csv", "--void", "7")


@pytest.mark.parametrize(
    "table, message",
    [
        (
            "value,name\n0,road\n7,car\n",
            r"lacks values of the labels: 11 \(4 pixels\); .* --void 11$",
        ),
        ("value;name\n0;road\n", "line 1 is 'value;name'; make it value,name"),
        ("value,name,thing\n0,road,1\n", "line 1 is 'value,name,thing'"),
        ("", "line 1 is ''"),
        ("value,name\nx,road\n", 'line 2: "value" is "x"'),
        ("value,name\n0,\n", 'line 2: "name" is empty'),
        ("value,name\n0,road, wide\n", "line 2: has too many fields"),
        ("value,name,isthing\n0,road,2\n", 'line 2: "isthing" is "2"; give 0 or 1'),
        ("value,name,color\n0,road,red\n", "line 2: \"color\" is 'red'; write it as #ff8000"),
        ("value,name\n0,road\n0,car\n", 'line 3: "value" 0 is repeated'),
        ("value,name\n", "lists no class; add a line for each"),
    ],
)
def test_what_is_wrong_in_a_table_is_named(folders, table, message):
    (folders / "classes.csv").write_text(table)
    with pytest.raises(SystemExit, match=message) as stopped:
        run(folders, "--classes", folders / "classes.csv")
    assert "\n" not in str(stopped.value)


def test_void_is_no_class(folders):
    with pytest.raises(SystemExit, match="--void 7: is a class of .*classes.csv"):
        run(folders, "--classes", folders / "classes.csv", "--void", 7, 11)


def test_not_all_is_void(folders):
    with pytest.raises(SystemExit, match="labels: all pixels are void; check --void"):
        run(folders, "--void", 0, 7, 11)
