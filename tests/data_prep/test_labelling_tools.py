"""Labels as cvat, Label Studio, labelme, Roboflow and Supervisely write them: exact, or one line.

Each export is written here field by field as the tool does it.
"""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from data_prep import coco_format, convert
from kmax_tf import commands
from kmax_tf.data import datasets
from kmax_tf.data.records import example
from kmax_tf.errors import InputError

H, W = 12, 16
BOX = [2.0, 3.0, 7.0, 3.0, 7.0, 9.0, 2.0, 9.0]  # as a polygon
CAR = np.zeros((H, W), bool)
CAR[3:9, 2:7] = True
TREE = np.zeros((H, W), bool)
TREE[1:5, 9:14] = True
COLORS = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)  # of VOC: nothing, 1, 2
CLASSES = CAR * 1 + TREE * 2


def runs(mask):
    """Run lengths as cvat (by Datumaro) and Supervisely write them: a list."""
    flat = mask.T.ravel().astype(int)
    ends = np.flatnonzero(np.diff(flat)) + 1
    return {"counts": np.diff([0, *ends, flat.size]).tolist(), "size": list(mask.shape)}


def run_text(mask):
    made = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": made["size"], "counts": made["counts"].decode()}


def cvat(name, number):
    """COCO 1.0: masks of the brush are crowd, attributes, ids from 1."""
    image = {"id": number + 1, "width": W, "height": H, "file_name": name, "license": 0}
    image |= {"flickr_url": "", "coco_url": "", "date_captured": 0}
    annotation = {"id": number + 1, "image_id": number + 1, "category_id": 1, "area": 30.0}
    annotation |= {"bbox": [2.0, 3.0, 5.0, 6.0], "attributes": {"occluded": False}, "iscrowd": 0}
    return {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "description": "", "year": ""},
        "categories": [{"id": 1, "name": "car", "supercategory": ""}],
        "images": [image],
        "annotations": [{**annotation, "segmentation": [BOX]}],
    }


def label_studio(name, number):
    """Everything from 0, the folder in the name, no supercategory."""
    image = {"width": W, "height": H, "id": number, "file_name": f"images/{name}"}
    annotation = {"id": number, "image_id": number, "category_id": 0, "segmentation": [BOX]}
    annotation |= {"bbox": [2.0, 3.0, 5.0, 6.0], "ignore": 0, "iscrowd": 0, "area": 30.0}
    return {
        "images": [image],
        "categories": [{"id": 0, "name": "car"}],
        "annotations": [annotation],
        "info": {"year": 2024, "version": "1.0", "contributor": "Label Studio"},
    }


def labelme(name, number):
    """labelme2coco.py: "_background_" is category 0, the folder in the name."""
    image = {"license": 0, "url": None, "file_name": f"JPEGImages/{name}", "height": H, "width": W}
    annotation = {"id": number, "image_id": number, "category_id": 1, "segmentation": [BOX]}
    annotation |= {"area": 30.0, "bbox": [2.0, 3.0, 5.0, 6.0], "iscrowd": 0}
    return {
        "info": {"description": None, "url": None, "version": None, "year": 2024},
        "licenses": [{"url": None, "id": 0, "name": None}],
        "images": [{**image, "date_captured": None, "id": number}],
        "type": "instances",
        "annotations": [annotation],
        "categories": [
            {"supercategory": None, "id": 0, "name": "_background_"},
            {"supercategory": None, "id": 1, "name": "car"},
        ],
    }


def roboflow(name, number):
    """Category 0 is the group of the others; a box alone has an empty segmentation."""
    image = {"id": number, "license": 1, "file_name": name, "height": H, "width": W}
    image |= {"date_captured": "2024-01-01T00:00:00+00:00", "extra": {"name": "a.jpg"}}
    annotation = {"image_id": number, "category_id": 1, "bbox": [2, 3, 5, 6], "area": 30}
    annotation |= {"segmentation": [BOX], "iscrowd": 0}
    return {
        "info": {"year": "2024", "version": "1", "description": "Exported from roboflow.com"},
        "licenses": [{"id": 1, "url": "https://creativecommons.org", "name": "CC BY 4.0"}],
        "categories": [
            {"id": 0, "name": "cars-Xy12", "supercategory": "none"},
            {"id": 1, "name": "car", "supercategory": "cars-Xy12"},
        ],
        "images": [image],
        "annotations": [
            {**annotation, "id": 2 * number},
            {**annotation, "id": 2 * number + 1, "segmentation": []},
        ],
    }


def supervisely(name, number):
    """Export to COCO mask: run lengths as a list; the supercategory is the class itself."""
    image = {"license": "None", "file_name": name, "url": "None", "height": H, "width": W}
    annotation = {"segmentation": runs(CAR), "area": 30.0, "iscrowd": 0, "bbox": [2, 3, 5, 6]}
    return {
        "info": {"description": "", "url": "None", "version": "1.0", "year": 2024},
        "licenses": [{"url": "None", "id": 0, "name": "None"}],
        "images": [{**image, "date_captured": "None", "id": number + 1}],
        "annotations": [{**annotation, "image_id": number + 1, "category_id": 1, "id": number + 1}],
        "categories": [{"supercategory": "car", "id": 1, "name": "car"}],
    }


def without_extras(name, number):
    """What a script of one's own writes: no info, no licenses, ids as text, a text RLE."""
    return {
        "images": [{"id": f"{number:03}", "file_name": name}],
        "annotations": [
            {"image_id": f"{number:03}", "category_id": 7, "segmentation": run_text(CAR)},
        ],
        "categories": [{"id": 7, "name": "car"}],
    }


TOOLS = [cvat, label_studio, labelme, roboflow, supervisely, without_extras]
FOLDERS = {label_studio: "images/", labelme: "JPEGImages/"}  # which file names start with


@pytest.fixture
def export(tmp_path, draw_image, write_json):
    """A function: tool -> the folder of the images, and the JSON of two images."""

    def write(tool):
        content = {}
        for number in range(2):
            draw_image(tmp_path / FOLDERS.get(tool, "") / f"{number}.png", H, W, number)
            for key, value in tool(f"{number}.png", number).items():
                is_list = key in ("images", "annotations")
                content[key] = content.get(key, []) + value if is_list else value
        return content, lambda: write_json(tmp_path / "export.json", content)

    return write


def convert_instances(folder, path, *more):
    arguments = ["--images", str(folder), "--json", path, "--out", str(folder / "out")]
    commands.main(
        ["prepare", "coco_instances", *arguments, "--workers", "1", "--val_share", "0.5", *more]
    )
    return folder / "out"


def labels_of(out, read_labels):
    return {**read_labels(out, "train"), **read_labels(out, "val")}


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__name__)
def test_instances(tool, export, tmp_path, read_labels, capsys):
    _, save = export(tool)
    out = convert_instances(tmp_path, save())
    labels = labels_of(out, read_labels)
    assert set(labels) == {f"{FOLDERS.get(tool, '')}{number}.png" for number in range(2)}
    for objects in labels.values():
        (car,) = objects["car", False]
        np.testing.assert_array_equal(car, CAR)
        (background,) = objects["background", False]
        np.testing.assert_array_equal(background, ~CAR)
    categories = datasets.load(str(out / "records")).categories
    assert [(c.name, c.isthing) for c in categories] == [("car", True), ("background", False)]
    told = capsys.readouterr().out
    assert ("1 categories without objects" in told) == (tool in (labelme, roboflow))
    assert ("2 objects with a box but no segmentation" in told) == (tool is roboflow)


def test_a_group_that_has_objects_is_a_class(export, tmp_path, read_labels):
    content, save = export(roboflow)
    content["annotations"][1].update(category_id=0, segmentation=runs(TREE))
    labels = labels_of(convert_instances(tmp_path, save()), read_labels)
    np.testing.assert_array_equal(labels["0.png"]["cars-Xy12", False][0], TREE)


def test_masks_of_cvat_are_crowd_and_it_is_said(export, tmp_path, read_labels, capsys):
    content, save = export(cvat)
    content["annotations"][0].update(segmentation=runs(CAR), iscrowd=1)
    labels = labels_of(convert_instances(tmp_path, save()), read_labels)
    np.testing.assert_array_equal(labels["0.png"]["car", True][0], CAR)
    told = capsys.readouterr().out
    assert "           1 objects marked as crowd: void in training" in told
    assert 'cvat marks each mask of its brush so; if they are objects, set "iscrowd" to 0' in told


@pytest.mark.parametrize("name", ["images/0.png", "images\\0.png", "/data/local-files/0.png"])
def test_names_that_start_elsewhere_are_named(name, export, tmp_path):
    content, save = export(cvat)
    content["images"][0]["file_name"] = name
    with pytest.raises(SystemExit, match=r'0.png: cannot be read .*"file_name" .* starts from'):
        convert_instances(tmp_path, save())


def test_an_absolute_name_of_a_file_that_exists(export, tmp_path, read_labels):
    content, save = export(supervisely)
    content["images"][0]["file_name"] = str(tmp_path / "0.png")
    labels = labels_of(convert_instances(tmp_path, save()), read_labels)
    np.testing.assert_array_equal(labels[str(tmp_path / "0.png")]["car", False][0], CAR)


def test_panoptic_of_datumaro(tmp_path, draw_image, write_json):
    """Ids from 1 in the PNG, "supercategory", areas, boxes, an image of another folder."""
    draw_image(tmp_path / "images/street/0.jpg", H, W, 0)
    ids = np.uint8(CAR + 2 * TREE)
    (tmp_path / "panoptic").mkdir()
    Image.fromarray(np.stack([ids, ids * 0, ids * 0], -1)).save(tmp_path / "panoptic/0.png")
    segments = [
        {"id": k, "category_id": k, "area": float(mask.sum()), "bbox": [0, 0, 1, 1], "iscrowd": 0}
        for k, mask in ((1, CAR), (2, TREE))
    ]
    image = {"id": 1, "width": W, "height": H, "file_name": "street/0.jpg", "license": 0}
    content = {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "year": ""},
        "categories": [
            {"id": 1, "name": "car", "supercategory": "", "isthing": 1},
            {"id": 2, "name": "tree", "supercategory": "", "isthing": 0},
        ],
        "images": [image],
        "annotations": [{"image_id": 1, "file_name": "0.png", "segments_info": segments}],
    }
    path = write_json(tmp_path / "panoptic.json", content)
    source = [str(tmp_path / "images")], [path], [str(tmp_path / "panoptic")]
    ((item,), dataset) = coco_format.read(*source)
    found = example.parse(convert.convert_item(item, *convert.read_files(item)))
    np.testing.assert_array_equal(np.array([0, *found.segment_id])[found.segment_map], ids)
    assert [(c.name, c.isthing) for c in dataset.categories] == [("car", True), ("tree", False)]
    del content["categories"][0]["isthing"]
    write_json(tmp_path / "panoptic.json", content)
    with pytest.raises(
        InputError, match=r'panoptic.json: categories\[0\]: field "isthing" is miss'
    ):
        coco_format.read(*source)


@pytest.fixture
def two_images(tmp_path, draw_image):
    """A function: label of each image as a picture, its name -> the folder."""

    def write(picture, name="labels/{}.png"):
        for number in range(2):
            draw_image(tmp_path / f"images/{number}.jpg", H, W, number)
            path = tmp_path / name.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        return tmp_path

    return write


def run(tool, folder, *more):
    arguments = ["--images", folder / "images", "--labels", folder / "labels"]
    arguments += ["--out", folder / "out", "--workers", "1", "--val_share", "0.5", *more]
    commands.main(["prepare", tool, *map(str, arguments)])
    return folder / "out"


def palette(values):
    """As labelme's lblsave and VOC: indices of a palette, 255 for void."""
    picture = Image.fromarray(values.astype(np.uint8))
    colors = np.zeros((256, 3), np.uint8)
    colors[:3], colors[255] = COLORS, (224, 224, 192)
    picture.putpalette(colors.ravel().tolist())
    return picture


EDGE = np.zeros((H, W), bool)
EDGE[2, 2:7] = True  # the border above the car
MACHINE = Image.fromarray(np.repeat(CLASSES[..., None], 3, -1).astype(np.uint8))  # Supervisely


@pytest.mark.parametrize(
    "picture",
    [palette(np.where(EDGE, 255, CLASSES)), Image.fromarray(CLASSES.astype(np.uint8)), MACHINE],
    ids=["labelme", "gray", "supervisely"],
)
def test_class_maps(picture, two_images, read_labels):
    folder = two_images(picture)
    (folder / "classes.csv").write_text("value,name,isthing\n0,_background_,0\n1,car,1\n2,tree,0\n")
    labels = labels_of(run("class_maps", folder, "--classes", folder / "classes.csv"), read_labels)
    void = EDGE & (picture.mode == "P")
    for objects in labels.values():
        np.testing.assert_array_equal(objects["car", False][0], CAR)
        np.testing.assert_array_equal(objects["tree", False][0], TREE)
        np.testing.assert_array_equal(objects[None, False][0], void)


def test_objects_of_voc_and_labelme(two_images, read_labels, capsys):
    """SegmentationObject: the border of an object is no object, and no background."""
    labels = labels_of(
        run("label_images", two_images(palette(np.where(EDGE, 255, CLASSES)))), read_labels
    )
    for objects in labels.values():
        found = sorted(mask.tobytes() for mask in objects["object", False])
        assert found == sorted([CAR.tobytes(), TREE.tobytes()])
        np.testing.assert_array_equal(objects[None, False][0], EDGE)
        np.testing.assert_array_equal(objects["background", False][0], ~(CAR | TREE | EDGE))
    assert f"          {2 * EDGE.sum()} pixels of value 255 of a palette" in capsys.readouterr().out


def test_a_gray_label_of_255_is_an_object(two_images, read_labels):
    folder = two_images(Image.fromarray(np.where(CAR, 255, 0).astype(np.uint8)))
    for objects in labels_of(run("label_images", folder), read_labels).values():
        np.testing.assert_array_equal(objects["object", False][0], CAR)


@pytest.mark.parametrize("tool", ["class_maps", "label_images"])
def test_colors_are_no_numbers(tool, two_images):
    """cvat's SegmentationClass and SegmentationObject, Supervisely's masks_human, label_viz."""
    folder = two_images(Image.fromarray(COLORS[CLASSES]))
    (folder / "labels/labelmap.txt").write_text("# label:color_rgb:parts:actions\ncar:128,0,0::\n")
    with pytest.raises(SystemExit, match=r"labels/\d.png: is a PNG of 8 bits, RGB, .* gray PNG$"):
        run(tool, folder)


def test_masks_of_the_brush_of_label_studio(two_images):
    """Files of all objects in one folder; their names do not start with those of the images."""
    mask = Image.fromarray(np.where(CAR, 255, 0).astype(np.uint8))
    folder = two_images(mask, "labels/task-{}-annotation-1-by-1-tag-car-0.png")
    with pytest.raises(SystemExit, match="labels: no label has the name of an image in .*; rename"):
        run("label_images", folder)
    with pytest.raises(
        SystemExit, match="no folder in it has an image in images/ and masks in mas"
    ):
        commands.main(
            ["prepare", "mask_folders", "--source", str(folder), "--out", str(folder / "out")]
        )


def test_images_and_masks_in_one_folder(two_images):
    """Roboflow's semantic masks: train/NAME.jpg, train/NAME_mask.png, train/_classes.csv."""
    folder = two_images(Image.fromarray(CLASSES.astype(np.uint8)), "images/{}_mask.png")
    with pytest.raises(SystemExit, match="images: mixes images and labels; move labels elsewhere"):
        run("class_maps", folder, "--labels", folder / "images")


def test_the_table_of_roboflow(two_images):
    folder = two_images(Image.fromarray(CLASSES.astype(np.uint8)))
    (folder / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, car\n2, tree\n")
    with pytest.raises(SystemExit, match="_classes.csv: line 1 is .*; make it value,name,isthing"):
        run("class_maps", folder, "--classes", folder / "_classes.csv")


def test_files_of_labelme_itself(tmp_path, draw_image, write_json):
    draw_image(tmp_path / "0.png", H, W, 0)
    shape = {"label": "car", "points": [[2, 3], [7, 3], [7, 9]], "shape_type": "polygon"}
    content = {"version": "5.4.1", "flags": {}, "shapes": [shape], "imagePath": "0.png"}
    path = write_json(tmp_path / "0.json", content)
    with pytest.raises(SystemExit, match='0.json: field "categories" is missing'):
        convert_instances(tmp_path, path)
    assert json.loads((tmp_path / "0.json").read_text()) == content
