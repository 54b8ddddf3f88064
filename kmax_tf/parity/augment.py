"""Golden cases of the input: color, geometry, targets and copy-paste, on the host.

Every operation is run twice, eagerly and inside tf.data.
"""

import numpy as np
import tensorflow as tf

from kmax_tf.data import datasets
from kmax_tf.data.transforms import color, copy_paste, geometry, host, pixels
from kmax_tf.data.transforms.targets import make_targets
from kmax_tf.importers.classes import channels
from kmax_tf.parity.cases import Case, Comparison

IMAGE_TOLERANCE = 5e-5  # of bilinear values, 0..255
SHARPNESS_SHARE = 0.004  # of its values may differ by one: the blur's rounding before the cut
COLOR_STEPS = {"small": 1, "large": 3}  # of the pixels stored, where the facts do not say
SCALES = {"coco": (0.3, 1.7), "cityscapes": (0.5, 2.0), "ade20k": (0.5, 2.0)}
LAST_DRAW = np.nextafter(np.float32(1), np.float32(0))


def compare(case: Case, comparison: Comparison) -> None:
    """Compares every array of an augment case."""
    {"colour": _color, "geometry": _geometry, "targets": _targets}[case.name](case, comparison)


def _both(function, *inputs):
    """Returns what a function of arrays gives eagerly, and inside tf.data."""
    plain = tf.autograph.experimental.do_not_convert(function)  # as the input maps it
    dataset = tf.data.Dataset.from_tensors(inputs).map(plain)
    return function(*map(tf.constant, inputs)), next(iter(dataset))


def _color(case, comparison):
    for name, policy in case.facts["policies"].items():
        factor = float(name.partition("magnitude_scale_")[2] or 1)
        ours = [[(o.__name__, p, m * factor) for o, p, m in pair] for pair in color.POLICY]
        stored = [[(o.lower(), p, m) for o, p, m in pair] for pair in policy]
        same = [[a[0] == b[0] for a, b in zip(*pairs)] for pairs in zip(ours, stored)]
        comparison.add(f"{name}/operations", same, np.ones_like(same), 0)
        numbers = [[[o[1:] for o in pair] for pair in p] for p in (ours, stored)]
        comparison.add(f"{name}/numbers", *numbers, 1e-6)
    for facts in case.facts["operations"]:
        for size, step in case.facts.get("steps", COLOR_STEPS).items():
            _operation(case, comparison, facts, size, step)


def _operation(case, comparison, facts, size, step):
    """Compares a color operation on one image; every `step`-th row and column is stored."""
    operation = getattr(color, facts["operation"].lower())
    argument = color.argument(operation, facts["magnitude"])
    sharpness = operation is color.sharpness
    name = f"op/{facts['name']}/{size}"
    for image in _both(
        lambda image: operation(image, argument, color.whole_frame(image), pixels.HOST),
        case[f"image/{size}"],
    ):
        ours, stored = image.numpy()[::step, ::step], case[name]
        comparison.add(name, ours, stored, 1 if sharpness else 0)
        if sharpness and ours.shape == stored.shape:
            comparison.add(f"{name}/share", np.mean(ours != stored), 0, SHARPNESS_SHARE)


def _geometry(case, comparison):
    facts = case.facts
    for kind, prefix, function in (
        ("resize_to_range", "resize", _resized),
        ("random_scale", "scale", _scaled),
        ("pad_crop", "pad_crop", _placed),
    ):
        for entry in facts[kind]:
            _compare_sample(case, comparison, f"{prefix}/{entry['case']}", entry, function)
    for entry in facts["pad_crop"]:
        shape = case[f"image/{entry['source']}"].shape[:2]
        last = geometry.locate(tf.constant(shape), _draw(place=LAST_DRAW), entry["crop"]).offset
        limits = np.concatenate([np.maximum(last, 0), np.maximum(-last, 0)]) + 1
        stored = entry["exclusive_upper_limits_of_the_4_draws"]
        comparison.add(f"pad_crop/{entry['case']}/limits", limits, stored, 0)
    entry = facts["evaluation"]
    crop = entry["crop"]
    _compare_sample(
        case, comparison, "evaluation", entry, lambda sample, _: host.fit_and_pad(sample, crop)
    )
    fitted = geometry.fit(case[f"image/{entry['source']}"].shape[:2], crop, crop)
    comparison.add("evaluation/size", fitted, entry["resized"][:2], 0)
    for height, width, limit, *out in facts["resize_shapes_h_w_limit_outh_outw"]:
        ours = geometry.fit([height, width], [limit] * 2, [limit] * 2)
        comparison.add(f"fit {height} x {width} into {limit}", ours, out, 0)
    for name in facts["scale_sets"]:
        dataset, _, role = name.partition("_")
        half = 0.5 if role == "paste" else 1.0
        ours = geometry.scale_set(*(half * bound for bound in SCALES[dataset]))
        stored = case[f"scale_set/{name}"]
        comparison.add(f"scale_set/{name}", np.array(ours, np.float32), stored, 0)


def _compare_sample(case, comparison, name, facts, function):
    """Compares image and label of what `function` makes of a `Sample` and the facts."""
    inputs = [case[f"{kind}/{facts['source']}"] for kind in ("image", "label")]
    for sample in _both(lambda *arrays: function(geometry.Sample(*arrays), facts), *inputs):
        image = sample.image.numpy()
        part, stored = image.ravel()[:: facts["image_stride"]], case[f"{name}/image"]
        comparison.add(f"{name}/image", part, stored, IMAGE_TOLERANCE)
        comparison.add(f"{name}/mean", image.mean(), facts["image_mean"], IMAGE_TOLERANCE)
        comparison.add(f"{name}/label", sample.segment_map, case[f"{name}/label"], 0)


def _draw(scale=1.0, place=0.0):
    scale, place, flip = tf.constant(scale), tf.fill([2], place), tf.constant(False)
    return geometry.AugmentParams(scale, place, flip, policy=None, chance=None)


def _resized(sample, facts):
    smallest, largest = facts["min_size"], facts["max_size"]
    shape = tf.shape(sample.segment_map)
    # The official code takes 0 for no limit.
    return host.resize(sample, geometry.fit(shape, smallest, largest) if any(largest) else shape)


def _scaled(sample, facts):
    shape = tf.shape(sample.segment_map)
    return host.resize(sample, geometry.locate(shape, _draw(scale=facts["scale"]), [1, 1]).scaled)


def _placed(sample, facts):
    shape = tf.shape(sample.segment_map)
    offset = tf.constant(facts["pad_offset"]) - tf.constant(facts["crop_offset"])
    place = geometry.Geometry(shape, shape, offset, tf.constant(facts["flip"]))
    begin, end, corner = geometry.window(place, facts["crop"])
    cropped = tf.nest.map_structure(lambda x: pixels.cut(x, begin, end), sample)
    return host.pad(host.mirror(cropped, place.flip), corner, facts["crop"])


class _Labels:
    """The official panoptic labels of one dataset, class * divisor + instance, and our segments."""

    def __init__(self, name, divisor, ignore_label):
        dataset = datasets.load(name)
        order = "by_id_void_first" if ignore_label == 0 else "by_id"
        self.classes = channels(dataset, order, dataset.num_classes + 1)[:-1]
        self.num_things, self.divisor, self.ignore_label = dataset.num_things, divisor, ignore_label

    def segments(self, label, padding=None):
        """Returns labels that are segments, the map of their numbers from 1, and their classes."""
        classes = {official: index for index, official in enumerate(self.classes)}
        labels = [v for v in np.unique(label) if v != padding and v // self.divisor in classes]
        number = {v: k for k, v in enumerate(labels, 1)}
        segment_map = np.vectorize(lambda v: number.get(v, 0), otypes=[np.int32])(label)
        return labels, segment_map, np.array([classes[v // self.divisor] for v in labels], np.int32)

    def is_crowd(self, label):
        """Returns where the class is one of things, but no instance is given."""
        thing = np.isin(label // self.divisor, self.classes[: self.num_things])
        return thing & (label % self.divisor == 0)


def _targets(case, comparison):
    official = {}
    for facts in case.facts["targets"]:
        labels = _Labels(facts["dataset"], facts["divisor"], facts["ignore_label"])
        official[facts["dataset"]] = labels
        _compare_targets(case, comparison, facts, labels)
    for facts in case.facts["copy_paste"]:
        for v in range(facts["cases"]):
            name = f"copy_paste/{facts['dataset']}_{v}"
            _compare_paste(case, comparison, name, facts, official[facts["dataset"]])


def _compare_targets(case, comparison, facts, official):
    def add(name, ours):
        name = f"targets/{facts['dataset']}/{name}"
        comparison.add(name, ours, case[name], 0)

    label = case[f"targets/{facts['dataset']}/label"]
    crowd = official.is_crowd(label)
    add("is_crowd_gt", crowd)
    # As our records have it: crowd is a segment of its own, which is made void.
    labels, segment_map, classes = official.segments(label)
    classes = np.where([crowd[label == v].any() for v in labels], -1, classes)
    area, weight = facts["small_instance"] or (0, 1.0)
    for ours in _both(
        lambda segment_map, classes: make_targets(
            segment_map,
            tf.ensure_shape(classes, [len(labels)]),
            num_things=official.num_things,
            stride=1,
            max_segments=len(labels),
            small_thing_area=area,
            small_thing_weight=weight,
        ),
        segment_map,
        classes,
    ):
        semantic = np.array([*official.classes, official.ignore_label])[ours.semantic]
        # Crowd keeps its class in the official semantic map.
        add("semantic_gt", np.where(crowd, label // official.divisor, semantic))
        mask, classes_in_order = _things(ours, official, facts["max_thing_id"])
        add("thing_id_mask_gt", mask)
        add("thing_id_class_gt", classes_in_order)
        add("semantic_loss_weight", ours.semantic_weight)


def _things(targets, official, rows):
    """Returns the things numbered in the order of their first pixels, and their classes.

    Both are -1 where there is none; the classes are float64 [rows].
    """
    segment, classes = targets.segment.numpy(), targets.segment_class.numpy()
    seen = [k for k in dict.fromkeys(segment.ravel()) if k >= 0]
    things = [k for k in seen if 0 <= classes[k] < official.num_things]
    number = {row: k for k, row in enumerate(things)}
    mask = np.vectorize(lambda row: number.get(row, -1), otypes=[np.int32])(segment)
    padded = np.full(rows, -1.0)
    padded[: len(things)] = [official.classes[classes[row]] for row in things]
    return mask, padded


def _compare_paste(case, comparison, name, facts, official):
    labels, maps, classes = zip(
        official.segments(case[f"{name}/label_a"]),
        official.segments(case[f"{name}/label_b"], facts["padding_value"]),
    )
    drawn = dict(zip(case[f"{name}/unique_b"], case[f"{name}/drawn_keep"]))
    first_seen = [*dict.fromkeys(case[f"{name}/label_b"].ravel())]
    comparison.add(f"{name}/unique_b", first_seen, case[f"{name}/unique_b"], 0)
    stuff = np.zeros(len(official.classes), bool)
    for label, index in zip(labels[1], classes[1]):
        stuff[index] = drawn[label]

    def pasted(image_a, image_b, map_a, map_b, classes_a, classes_b):
        (map_a, segments_a), (map_b, segments_b) = (
            copy_paste.number_segments(m, c, official.num_things, tf.constant(stuff))
            for m, c in ((map_a, classes_a), (map_b, classes_b))
        )
        return copy_paste.paste(
            geometry.Sample(image_a, map_a), segments_a, geometry.Sample(image_b, map_b), segments_b
        )

    stride = facts.get("image_stride", 1)
    inputs = [case[f"{name}/image_{x}"] for x in "ab"]
    for image, segment_map, ours in _both(pasted, *inputs, *maps, *classes):
        stored = case[f"{name}/image_out"].ravel()
        comparison.add(f"{name}/image_out", image.numpy().ravel()[::stride], stored, 0)
        label = _pasted_label(case, name, official, segment_map.numpy(), ours.numpy())
        comparison.add(f"{name}/label_out", label, case[f"{name}/label_out"], 0)


def _pasted_label(case, name, official, segment_map, classes):
    """Returns the official labels of our map, with the instances of the labels they came from."""
    label = np.full(segment_map.shape, official.ignore_label * official.divisor)
    for k, index in enumerate(classes, 1):
        other, here = k > copy_paste.MAX_SEGMENTS, segment_map == k
        source = case[f"{name}/label_{'b' if other else 'a'}"][here]
        instance = source % official.divisor
        if other:  # the official names of pasted instances
            instance = np.where(instance > 0, official.divisor - 1 - instance, 0)
        label[here] = official.classes[index] * official.divisor + instance
    return label
