import copy
import io
import json
import sys
import tracemalloc

import pytest
from PIL import Image

from kmax_tf import errors, files
from kmax_tf.data import coco_panoptic, label_png

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


def test_a_gray_png_is_not_taken_for_an_incomplete_json():
    content = io.BytesIO()
    Image.new("L", (4, 3), 7).save(content, "PNG")
    ids = label_png.decode_ids(content.getvalue(), "a.png")
    with pytest.raises(errors.InputError, match="segment id 460551 .*; save the PNG as RGB"):
        coco_panoptic.number_segments(ids, [coco_panoptic.LabelSegment(7, 1, False, None)])


def test_good_file_is_read(tmp_path):
    panoptic = read(tmp_path, GOOD)
    assert [category.name for category in panoptic.categories] == ["cat", "sky"]
    (annotation,) = panoptic.annotations
    assert annotation[:3] == ("7", "a.jpg", "a.png")
    assert annotation.segments == ((5, 2, True, 4), (6, 1, False, None))


def test_numbers_of_other_json_writers_are_exact(tmp_path):
    def change(content):
        content["images"][0]["id"] = content["annotations"][0]["image_id"] = 7.0
        first, second = content["annotations"][0]["segments_info"]
        first.update(id=5.0, category_id=2.0, iscrowd=True, area=4.0)
        second.update(iscrowd=None)
        for category in content["categories"]:
            category["isthing"] = bool(category["isthing"])

    assert read(tmp_path, edit(change)) == read(tmp_path, GOOD)


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
        (edit(lambda c: c["images"][1].update(id=7)), r'images\[1\]: "id" 7 is used twice'),
        (edit(lambda c: c["images"].pop(0)), r'annotations\[0\]: "image_id" 7 is not in "images"'),
        (edit(lambda c: c["annotations"].append(c["annotations"][0])), "7 is annotated twice"),
        (
            edit(lambda c: c["annotations"][0]["segments_info"][1].update(category_id=9)),
            r'segments_info\[1\]: "category_id" 9 is not in "categories"',
        ),
        (edit(lambda c: c["annotations"][0]["segments_info"][1].update(id=5)), '"id" 5 is used'),
        (edit(lambda c: c["annotations"][0]["segments_info"][1].update(id=0)), "0 means void"),
        (edit(lambda c: c["annotations"][0]["segments_info"][0].update(id="5")), "must be int"),
        (edit(lambda c: c["annotations"][0].pop("segments_info")), '"segments_info" is missing'),
        (
            edit(lambda c: c["annotations"][0].update(segmentation=[[0, 0, 4, 0, 4, 4]])),
            r"COCO's instance format; convert it with `kmax prepare coco_instances`",
        ),
        *(
            (
                edit(lambda c, w=wrong: c["annotations"][0]["segments_info"][0].update(iscrowd=w)),
                r'segments_info\[0\]: field "iscrowd" must be 0 or 1, found',
            )
            for wrong in ("0", "1", "false", "", 2, 0.5, [], {})
        ),
        *(
            (
                edit(lambda c, w=wrong: c["categories"][1].update(isthing=w)),
                r'categories\[1\]: field "isthing" must be 0 or 1, found',
            )
            for wrong in ("0", "1", None, 2)
        ),
        *(
            (
                edit(lambda c, w=wrong: c["annotations"][0]["segments_info"][0].update(area=w)),
                r'segments_info\[0\]: field "area" must be int, found',
            )
            for wrong in ("4", True, 4.5)
        ),
        (edit(lambda c: c["images"][0].update(id=True)), r'images\[0\]: field "id" must be int'),
        (edit(lambda c: c["categories"][0].update(id="1")), r'field "id" must be int'),
        (edit(lambda c: c["images"][0].update(file_name="a\n.jpg")), r'"file_name" is .*rename'),
        (edit(lambda c: c["images"][0].update(file_name="\udce9.jpg")), r'"file_name" is .*rename'),
        (edit(lambda c: c["images"][0].update(file_name="")), '"file_name" is empty'),
        ([], "expected a JSON object, found list"),
    ],
)
def test_bad_file_gives_one_line_that_names_it(tmp_path, content, message):
    with pytest.raises(errors.InputError, match=message) as error:
        read(tmp_path, content)
    assert str(error.value).startswith(str(tmp_path / "panoptic.json"))
    assert "\n" not in str(error.value)


def test_a_file_is_read_in_parts(tmp_path, monkeypatch):
    whole = read(tmp_path, GOOD)
    monkeypatch.setattr(files, "PART", 7)
    assert read(tmp_path, GOOD) == whole


def test_a_large_json_takes_little_memory_for_its_segments(tmp_path):
    def entry(number):
        segments = [
            {"id": k << 12, "category_id": 1, "iscrowd": 0, "bbox": [k, k, 300, 400], "area": 4000}
            for k in range(number + 1, number + 21)
        ]
        return {"image_id": number, "file_name": f"{number}.png", "segments_info": segments}

    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(1000)]
    annotations = [entry(number) for number in range(1000)]
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps({**GOOD, "images": images, "annotations": annotations}))
    tracemalloc.start()
    panoptic = coco_panoptic.read_panoptic(str(path))
    held, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(panoptic.annotations[7].segments) == 20
    # The bytes and the text of the file, then what stays of it.
    times = 2.5 if sys.version_info >= (3, 11) else 2.8
    assert highest < times * path.stat().st_size and held < path.stat().st_size / 2
