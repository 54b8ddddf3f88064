import json

import pytest

from kmax_tf import errors
from kmax_tf.data import datasets


def test_packaged_coco():
    coco = datasets.load("coco")
    assert (coco.num_classes, coco.num_things) == (133, 80)
    names = [category.name for category in coco.categories]
    assert (names[0], names[79], names[80], names[132]) == (
        "person",
        "toothbrush",
        "banner",
        "rug-merged",
    )
    assert coco.class_of_category[1] == 0
    assert coco.class_of_category[92] == 80
    assert coco.class_of_category[200] == 132


def test_packaged_cityscapes_and_ade20k():
    cityscapes = datasets.load("cityscapes")
    assert [c.id for c in cityscapes.categories] == [*range(11, 19), *range(11)]
    assert [c.name for c in cityscapes.categories if c.isthing] == [
        *("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
    ]
    ade20k = datasets.load("ade20k")
    assert (ade20k.num_classes, ade20k.num_things) == (150, 100)
    assert sorted(c.id for c in ade20k.categories) == list(range(150))
    # Ids are those of the JSON that Mask2Former's script makes: one less than in the PNG.
    by_id = {c.id: (c.name, c.isthing) for c in ade20k.categories}
    assert (by_id[0], by_id[12], by_id[149]) == (("wall", False), ("person", True), ("flag", True))


def test_packaged_digits():
    digits = datasets.load("panoptic_digits")
    assert (digits.num_classes, digits.num_things) == (14, 10)
    assert [category.id for category in digits.categories] == list(range(1, 15))
    assert digits.categories[3].name == "digit 3"


def test_things_keep_their_order_and_stuff_is_sorted():
    content = {
        "categories": [
            {"id": 9, "name": "z", "isthing": 0},
            {"id": 8, "name": "y", "isthing": 1},
            {"id": 2, "name": "x", "isthing": 0},
            {"id": 1, "name": "w", "isthing": 1},
        ]
    }
    categories = datasets.parse_categories(content, "a.json")
    assert [category.id for category in categories] == [8, 1, 2, 9]


def test_missing_colors_are_distinct_and_repeatable():
    entries = [{"id": k, "name": str(k), "isthing": 1} for k in range(300)]
    first = datasets.parse_categories({"categories": entries}, "a.json")
    assert len({category.color for category in first}) == 300
    assert first == datasets.parse_categories({"categories": entries}, "a.json")
    entries[5]["color"] = list(first[0].color)
    mixed = datasets.parse_categories({"categories": entries}, "a.json")
    assert len({category.color for category in mixed}) == 300


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"name": "a", "isthing": 1}, '"id" is missing'),
        ({"id": 1, "name": "a"}, '"isthing" is missing'),
        ({"id": 1, "name": 4, "isthing": 1}, '"name" must be str'),
        ({"id": 1, "name": "a", "isthing": 1, "color": [0, 0]}, '"color" must be three'),
        ({"id": 1, "name": "a", "isthing": 1, "color": [0, 0, 256]}, '"color" must be three'),
        ({"id": 0, "name": "a", "isthing": 1}, '"id" 0 is used twice'),
        ({"id": 1 << 31, "name": "a", "isthing": 1}, '"id" 2147483648 is not 0 to'),
        ({"id": -1, "name": "a", "isthing": 1}, '"id" -1 is not 0 to'),
    ],
)
def test_bad_category_names_file_and_place(entry, message):
    content = {"categories": [{"id": 0, "name": "b", "isthing": 0}, entry]}
    with pytest.raises(errors.InputError, match=message) as error:
        datasets.parse_categories(content, "a.json")
    assert str(error.value).startswith("a.json: categories[1]")


def test_a_list_of_no_classes_is_refused():
    with pytest.raises(errors.InputError, match='^a.json: "categories" is empty; list the classes'):
        datasets.parse_categories({"categories": []}, "a.json")


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(errors.InputError, match="did you mean 'panoptic_digits'"):
        datasets.load("panoptic_digit")


def test_a_folder_that_is_not_there_is_not_taken_for_a_name():
    with pytest.raises(errors.InputError, match='"data/own/records": no such folder; convert'):
        datasets.load("data/own/records")


def test_folder_without_dataset_json(tmp_path):
    with pytest.raises(errors.InputError, match="dataset.json: cannot be read"):
        datasets.load(str(tmp_path))


def test_folder_and_file_give_the_same_and_splits_add_up(tmp_path):
    coco, path = datasets.load("coco"), tmp_path / "dataset.json"
    path.write_text(datasets.with_split(str(tmp_path), coco, "train", datasets.Split(9, 2)))
    path.write_text(datasets.with_split(str(tmp_path), coco, "val", datasets.Split(3, 1)))
    assert datasets.load(str(tmp_path)) == datasets.load(str(path))
    assert datasets.load(str(tmp_path)).categories == coco.categories
    assert datasets.read_split(str(tmp_path), "train") == (9, 2, None)
    assert datasets.read_split(str(tmp_path), "val") == (3, 1, None)
    with pytest.raises(errors.InputError, match='no split "test", only train, val'):
        datasets.read_split(str(tmp_path), "test")


def test_split_of_other_categories_is_refused(tmp_path):
    text = datasets.with_split(str(tmp_path), datasets.load("coco"), "train", datasets.Split(9, 2))
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(errors.InputError, match='"categories" differ'):
        digits = datasets.load("panoptic_digits")
        datasets.with_split(str(tmp_path), digits, "val", datasets.Split(3, 1))
    assert json.loads(text)["name"] == "coco"
