"""Records of the official code and of TFDS give the targets of ours; made here with NumPy alone."""

import collections
import functools
import io
import json

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from data_prep import convert, pool
from kmax_tf import errors
from kmax_tf.data import datasets, training_input
from kmax_tf.data.coco_panoptic import Annotation, LabelSegment
from kmax_tf.data.evaluation_input import evaluation_input
from kmax_tf.data.label_png import encode_ids
from kmax_tf.data.records import deeplab2, example, reader, shards
from kmax_tf.data.transforms import copy_paste
from kmax_tf.data.transforms.targets import class_indices, make_targets


@pytest.fixture
def samples(shared):
    """A function: dataset -> (image path, int [h, w] ids, segments_info, image id) of a sample."""
    coco = shared / "data/coco_sample/sample_data"
    city = shared / "data/cityscapes_layout_sample"

    def read(dataset):
        if dataset.name == "coco":
            labels = coco / "panoptic_examples"
        else:
            labels = city / "gtFine/cityscapes_panoptic_dummy_trainId"
        for entry in json.loads(labels.with_suffix(".json").read_text())["annotations"]:
            rgb = np.asarray(Image.open(labels / entry["file_name"]), int)
            ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
            if dataset.name == "coco":
                image = coco / "input_images" / entry["file_name"].replace(".png", ".jpg")
            else:
                image = city / f"leftImg8bit/{entry['image_id']}_leftImg8bit.png"
            yield image, ids, entry["segments_info"], str(entry["image_id"])

    return read


def feature(value):
    if isinstance(value, bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))


def official_label(dataset, ids, segments, crowd_as_ignore):
    """The label of the reference: semantic * divisor + running number of the thing."""
    divisor, ignore = {"coco": (256, 0), "cityscapes": (1000, 255)}[dataset.name]
    order = sorted(c.id for c in dataset.categories)
    things = {c.id for c in dataset.categories if c.isthing}
    label, count = np.full(ids.shape, ignore * divisor), collections.Counter()
    for s in segments:
        category = s["category_id"]
        semantic = order.index(category) + 1 if dataset.name == "coco" else category
        instance = 0
        if s["iscrowd"] and crowd_as_ignore:
            semantic = ignore
        elif category in things and not s["iscrowd"]:
            count[category] += 1
            instance = count[category]
        label[ids == s["id"]] = semantic * divisor + instance
    return label.astype("<i4")


def write_official(folder, dataset, sample, crowd_as_ignore=True):
    """Writes a sample, as from `samples`, as the official converter does."""
    with tf.io.TFRecordWriter(str(folder / "val-00000-of-00001.tfrecord")) as writer:
        for path, ids, segments, _ in sample:
            label = official_label(dataset, ids, segments, crowd_as_ignore)
            values = {
                "image/encoded": path.read_bytes(),
                "image/filename": path.stem.encode(),
                "image/format": b"jpeg" if path.suffix == ".jpg" else b"png",
                "image/height": ids.shape[0],
                "image/width": ids.shape[1],
                "image/channels": 3,
                "image/segmentation/class/encoded": label.tobytes(),
                "image/segmentation/class/format": b"raw",
            }
            features = {key: feature(value) for key, value in values.items()}
            record = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(record.SerializeToString())


def write_ours(folder, dataset, sample):
    items = []
    for path, ids, segments, identity in sample:
        label = folder / f"{identity}.png"
        label.write_bytes(encode_ids(ids))
        listed = tuple(
            LabelSegment(s["id"], s["category_id"], bool(s["iscrowd"]), s["area"]) for s in segments
        )
        annotation = Annotation(identity, path.name, label.name, listed)
        items.append(convert.Item(str(path), str(label), "sample", annotation))
    alone = functools.partial(pool.run, workers=1)
    convert.convert(items, dataset, str(folder), "val", 1, alone)


def targets_of(folder, dataset):
    """Image and targets of each example, through tf.data."""
    found = reader.find(str(folder), "val", dataset)

    def prepare(record):
        e = found.parse(record)
        classes = tf.where(e.is_crowd, -1, class_indices(dataset, e.category_id))
        nothing = tf.zeros([dataset.num_classes], tf.bool)
        segment_map, segments = copy_paste.number_segments(
            e.segment_map, classes, dataset.num_things, nothing
        )
        return e.image, make_targets(
            segment_map,
            segments.classes,
            num_things=dataset.num_things,
            stride=4,
            max_segments=64,
            small_thing_area=400,
            small_thing_weight=2.0,
        )

    return list(tf.data.TFRecordDataset(found.paths).map(prepare).as_numpy_iterator())


def assert_same_targets(first, second):
    """Equal, but for the rows of segments of equal area."""
    assert len(first) == len(second) > 0
    for (image, a), (other_image, b) in zip(first, second):
        np.testing.assert_array_equal(image, other_image)
        np.testing.assert_array_equal(a.semantic, b.semantic)
        np.testing.assert_array_equal(a.semantic_weight, b.semantic_weight)
        pairs = set(zip(a.segment.ravel().tolist(), b.segment.ravel().tolist()))
        assert len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs}) > 3
        assert all((x == -1) == (y == -1) for x, y in pairs)
        for x, y in pairs - {(-1, -1)}:
            assert a.segment_class[x] == b.segment_class[y] >= 0
        assert (a.segment_class >= 0).sum() == (b.segment_class >= 0).sum()


@pytest.mark.parametrize("crowd_as_ignore", [True, False])
@pytest.mark.parametrize("name", ["coco", "cityscapes"])
def test_official_records_give_our_targets(tmp_path, samples, name, crowd_as_ignore):
    dataset = datasets.load(name)
    for folder in ("ours", "official"):
        (tmp_path / folder).mkdir()
    write_ours(tmp_path / "ours", dataset, samples(dataset))
    write_official(tmp_path / "official", dataset, samples(dataset), crowd_as_ignore)
    assert_same_targets(
        targets_of(tmp_path / "ours", dataset), targets_of(tmp_path / "official", dataset)
    )


def test_crowd_of_official_records_is_instance_0_of_a_thing(tmp_path, samples):
    dataset = datasets.load("coco")
    write_official(tmp_path, dataset, samples(dataset), crowd_as_ignore=False)
    found = reader.find(str(tmp_path), "val", dataset)
    crowd = 0
    for record, (_, ids, segments, _) in zip(shards.read(*found.paths), samples(dataset)):
        e = found.parse(record)
        listed = {s["id"]: s for s in segments}
        for k, (category, is_crowd) in enumerate(zip(e.category_id, e.is_crowd), start=1):
            (source,) = {listed[i]["iscrowd"] for i in ids[e.segment_map.numpy() == k].tolist()}
            (kind,) = {listed[i]["category_id"] for i in ids[e.segment_map.numpy() == k].tolist()}
            assert (int(category), bool(is_crowd)) == (kind, source == 1)
            crowd += source
    assert crowd > 0


def official_record(label, image_shape=(2, 3, 3), **changes):
    values = {
        "image/encoded": tf.io.encode_png(np.zeros(image_shape, np.uint8)).numpy(),
        "image/filename": b"a",
        "image/height": image_shape[0],
        "image/width": image_shape[1],
        "image/channels": 3,
        "image/segmentation/class/encoded": np.asarray(label, "<i4").tobytes(),
        **changes,
    }
    features = {key: feature(v) for key, v in values.items() if v is not None}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def test_official_ade20k_ranks_are_category_ids_plus_one():
    e = deeplab2.parse(
        official_record([[0, 1000, 1000], [13002, 150001, 7]]), datasets.load("ade20k")
    )
    # Wall, the second person, flag 1; void whatever its instance number.
    np.testing.assert_array_equal(e.segment_map, [[0, 1, 1], [2, 3, 0]])
    assert e.category_id.numpy().tolist() == [0, 12, 149]
    assert e.is_crowd.numpy().tolist() == [False, False, False]
    assert e.segment_id.numpy().tolist() == [1, 2, 3]


def test_official_record_without_label_is_all_void():
    record = official_record([], **{"image/segmentation/class/encoded": None})
    for name in ("coco", "cityscapes"):
        e = deeplab2.parse(record, datasets.load(name))
        assert e.segment_map.shape == (2, 3) and not e.segment_map.numpy().any()
        assert len(e.category_id) == 0


@pytest.mark.parametrize(
    "label", [[0, 0], [[-1] * 3] * 2, [[2**30] * 3] * 2, [[134 * 256] * 3] * 2, [1, 2, 3]]
)
def test_official_label_that_cannot_be_is_an_error(label):
    with pytest.raises(tf.errors.InvalidArgumentError):
        deeplab2.parse(official_record(label), datasets.load("coco"))


def write_tfds(folder, names, sample):
    """Writes the COCO sample with TFDS' own features, as its coco/2017_panoptic builder does."""
    label = tfds.features.ClassLabel(names=names)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "panoptic_image": tfds.features.Image(encoding_format="png"),
            "panoptic_image/filename": tfds.features.Text(),
            "panoptic_objects": tfds.features.Sequence(
                {
                    "id": np.int64,
                    "area": np.int64,
                    "bbox": tfds.features.BBoxFeature(),
                    "label": label,
                    "is_crowd": np.bool_,
                }
            ),
        }
    )
    features.save_metadata(str(folder))
    ids = sorted(c.id for c in datasets.load("coco").categories)
    with tf.io.TFRecordWriter(str(folder / "coco-val.tfrecord-00000-of-00001")) as writer:
        for path, _, segments, identity in sample:
            example_of_tfds = {
                "image": str(path),
                "image/filename": path.name,
                "image/id": int(identity),
                "panoptic_image": str(path.parents[1] / f"panoptic_examples/{path.stem}.png"),
                "panoptic_image/filename": f"{path.stem}.png",
                "panoptic_objects": [
                    {
                        "id": s["id"],
                        "area": s["area"],
                        "bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
                        "label": ids.index(s["category_id"]),
                        "is_crowd": bool(s["iscrowd"]),
                    }
                    for s in segments
                ],
            }
            writer.write(features.serialize_example(features.encode_example(example_of_tfds)))


def test_tfds_records_give_our_targets(tmp_path, samples):
    dataset = datasets.load("coco")
    for folder in ("ours", "tfds"):
        (tmp_path / folder).mkdir()
    write_ours(tmp_path / "ours", dataset, samples(dataset))
    by_id = sorted(dataset.categories)
    write_tfds(tmp_path / "tfds", [c.name for c in by_id], samples(dataset))
    assert_same_targets(
        targets_of(tmp_path / "ours", dataset), targets_of(tmp_path / "tfds", dataset)
    )
    found = reader.find(str(tmp_path / "tfds"), "val", dataset)
    ours = reader.find(str(tmp_path / "ours"), "val", dataset)
    ours_in_order = [r for path in ours.paths for r in shards.read(path)]
    for a, b in zip(shards.read(*found.paths), ours_in_order):
        a, b = found.parse(a), ours.parse(b)
        for name in ("segment_map", "segment_id", "category_id", "is_crowd", "filename"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert a.image_id.numpy() == b.image_id.numpy()
    with pytest.raises(errors.InputError, match="its classes are not those of dataset 'ade20k'"):
        reader.find(str(tmp_path / "tfds"), "val", datasets.load("ade20k"))


def test_training_takes_official_records(tmp_path, samples):
    dataset = datasets.load("coco")
    for folder, write_split in (("official", write_official), ("ours", write_ours)):
        (tmp_path / folder).mkdir()
        write_split(tmp_path / folder, dataset, samples(dataset))
    options = training_input.TrainingInput(size=(65, 97), augment=False, max_segments=64)
    batches = []
    for folder in ("official", "ours"):
        found = reader.find(str(tmp_path / folder), "val", dataset)
        assert reader.count(found) == 2
        batches.append(
            next(
                iter(
                    training_input.training_input(
                        found, dataset, options, stride=4, batch_size=2, seed=0
                    )
                )
            )
        )
    (image, targets), (our_image, our_targets) = batches
    np.testing.assert_array_equal(image, our_image)
    np.testing.assert_array_equal(targets.semantic, our_targets.semantic)
    assert (targets.segment_class.numpy() >= 0).sum() > 10


def test_evaluation_input_takes_them_all(tmp_path, samples):
    dataset = datasets.load("coco")
    write_official(tmp_path, dataset, samples(dataset))
    found = reader.find(str(tmp_path), "val", dataset)
    (batch,) = evaluation_input(found, (65, 97), 2)
    assert batch.image.shape == (2, 65, 97, 3)
    assert batch.original_size.numpy().tolist() == [[427, 640], [360, 640]]


def write(folder, *serialized):
    with tf.io.TFRecordWriter(str(folder / "val-00000-of-00001.tfrecord")) as writer:
        for record in serialized:
            writer.write(record)


@pytest.mark.parametrize(
    "serialized, message",
    [
        ([], "split 'val' holds no example"),
        ([b"\xff\xff"], "its records are no tf.train.Example"),
        ([b""], "records of an unknown schema, with no keys"),
        ([official_record([])], "dataset 'panoptic_digits' has no \"label_divisor\""),
    ],
)
def test_records_that_cannot_be_read_are_one_line(tmp_path, serialized, message):
    write(tmp_path, *serialized)
    with pytest.raises(errors.InputError, match=message) as error:
        reader.find(str(tmp_path), "val", datasets.load("panoptic_digits"))
    assert "\n" not in str(error.value)


def test_records_of_other_classes_are_refused(tiny):
    folder = tiny().data_dir
    assert reader.find(folder, "val", datasets.load("panoptic_digits")).parse is example.parse
    with pytest.raises(errors.InputError, match="its classes are not those of dataset 'coco'"):
        reader.find(folder, "val", datasets.load("coco"))


@pytest.mark.parametrize("changes", [{}, {"image/segmentation/class/encoded": None}])
def test_an_official_image_that_exif_turns_is_corrupt(tmp_path, changes):
    """The official tool stores the file as it is, and the sizes and the label upright."""
    jpeg, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # the orientation: turned by 90 degrees
    Image.new("RGB", (60, 40)).save(jpeg, "JPEG", exif=exif)
    changes = {"image/encoded": jpeg.getvalue(), **changes}
    write(tmp_path, official_record(np.zeros([60, 40]), (60, 40, 3), **changes))
    found = reader.find(str(tmp_path), "val", datasets.load("coco"))
    with pytest.raises(errors.InputError, match="record 0 is corrupt .sizes of image and labels"):
        reader.check(found)


def test_check_names_the_first_corrupt_record(tmp_path):
    good = official_record([[0] * 3] * 2)
    write(tmp_path, good, official_record([1, 2]))
    found = reader.find(str(tmp_path), "val", datasets.load("coco"))
    with pytest.raises(errors.InputError, match=r"00001\.tfrecord: record 1 is corrupt") as error:
        reader.check(found)
    assert "\n" not in str(error.value)
    write(tmp_path, good, good)
    reader.check(found)
