import copy
import io
import json

import numpy as np
import pytest
from PIL import Image

from kmax_tf import errors
from kmax_tf.data import coco_panoptic

GOOD = {
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
    "annotations": [
        {
            "image_id": 7,
            "file_name": "a.png",
            "segments_info": [
                {"id": 5, "category_id": 2, "iscrowd": 1, "area": 4},
                {"id": 6, "category_id": 1, "area": None},
            ],
        }
    ],
    "categories": [
        {"id": 1, "name": "sky", "isthing": 0},
        {"id": 2, "name": "cat", "isthing": 1},
    ],
}


def read(tmp_path, content):
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps(content))
    return coco_panoptic.read_panoptic(str(path))


def test_ids_are_red_plus_256_green_plus_65536_blue():
    ids = np.array([[0, 255, 256], [65536, 0xFFFFFF, 0x030201]])
    rgb = np.asarray(Image.open(io.BytesIO(coco_panoptic.encode_ids(ids))))
    assert rgb[0].tolist() == [[0, 0, 0], [255, 0, 0], [0, 1, 0]]
    assert rgb[1].tolist() == [[0, 0, 1], [255, 255, 255], [1, 2, 3]]
    decoded = coco_panoptic.decode_ids(coco_panoptic.encode_ids(ids), "a.png")
    assert decoded.dtype == np.int32
    np.testing.assert_array_equal(decoded, ids)


@pytest.mark.parametrize("wrong", [-1, 1 << 24])
def test_ids_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="segment ids"):
        coco_panoptic.encode_ids(np.array([[0, wrong]]))


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_broken_png_names_the_file(keep):
    png = coco_panoptic.encode_ids(np.random.default_rng(0).integers(0, 1 << 24, (40, 40)))
    with pytest.raises(errors.InputError, match="folder/a.png: not a readable PNG"):
        coco_panoptic.decode_ids(png[:keep], "folder/a.png")


def test_a_grey_png_is_not_taken_for_an_incomplete_json():
    content = io.BytesIO()
    Image.new("L", (4, 3), 7).save(content, "PNG")
    ids = coco_panoptic.decode_ids(content.getvalue(), "a.png")
    with pytest.raises(errors.InputError, match="segment id 460551 .*; save the PNG as RGB"):
        coco_panoptic.number_segments(ids, [coco_panoptic.LabelSegment(7, 1, False, None)])


def test_good_file_is_read(tmp_path):
    panoptic = read(tmp_path, GOOD)
    assert [category.name for category in panoptic.categories] == ["cat", "sky"]
    (annotation,) = panoptic.annotations
    assert annotation[:3] == ("7", "a.jpg", "a.png")
    assert annotation.segments == ((5, 2, True, 4), (6, 1, False, None))


def edit(change):
    content = copy.deepcopy(GOOD)
    change(content)
    return content


@pytest.mark.parametrize(
    "content, message",
    [
        (edit(lambda c: c.pop("images")), '"images" is missing'),
        (edit(lambda c: c.pop("annotations")), '"annotations" is missing'),
        (edit(lambda c: c.pop("categories")), '"categories" is missing'),
        (edit(lambda c: c["images"][1].update(id=7)), r'images\[1\]: "id" 7 is there twice'),
        (edit(lambda c: c["images"].pop(0)), r'annotations\[0\]: "image_id" 7 is not in "images"'),
        (edit(lambda c: c["annotations"].append(c["annotations"][0])), "7 is annotated twice"),
        (
            edit(lambda c: c["annotations"][0]["segments_info"][1].update(category_id=9)),
            r'segments_info\[1\]: "category_id" 9 is not in "categories"',
        ),
        (edit(lambda c: c["annotations"][0]["segments_info"][1].update(id=5)), '"id" 5 is there'),
        (edit(lambda c: c["annotations"][0]["segments_info"][1].update(id=0)), "0 means void"),
        (edit(lambda c: c["annotations"][0]["segments_info"][0].update(id="5")), "must be int"),
        (edit(lambda c: c["annotations"][0].pop("segments_info")), '"segments_info" is missing'),
        (
            edit(lambda c: c["annotations"][0].update(segmentation=[[0, 0, 4, 0, 4, 4]])),
            r"instance format\); make the panoptic format",
        ),
        ([], "expected a JSON object, found list"),
    ],
)
def test_bad_file_gives_one_line_that_names_it(tmp_path, content, message):
    with pytest.raises(errors.InputError, match=message) as error:
        read(tmp_path, content)
    assert str(error.value).startswith(str(tmp_path / "panoptic.json"))
    assert "\n" not in str(error.value)
