"""Golden cases of the objective: matching, every loss term, gradients of the predictions."""

import numpy as np
import tensorflow as tf

from kmax_tf.data.transforms.targets import Targets
from kmax_tf.loss import terms
from kmax_tf.loss.criterion import Criterion
from kmax_tf.loss.matching import match_segments
from kmax_tf.model.kmax import Outputs
from kmax_tf.model.kmax_decoder import Prediction
from kmax_tf.parity.cases import Case, Comparison

OUTPUTS = ["main"] + [f"aux_{i}" for i in range(6)]
FIELDS = {
    "pixel_space_mask_logits": "mask_logits",
    "transformer_class_logits": "class_logits",
    "pixel_space_normalized_feature": "feature",
    "semantic_logits": "semantic_logits",
}
TERMS = {
    "pq_style_loss_class_term": "pq_class",
    "pq_style_loss_mask_dice_term": "pq_mask",
    "mask_id_cross_entropy_loss": "mask_id",
    "instance_discrimination_loss": "contrast",
}
# The stored tolerances are of terms and gradients; these are for means of softmaxes in float32.
RELATIVE, ABSOLUTE = 1e-4, 1e-6


def compare(case: Case, comparison: Comparison) -> None:
    """Compares every array of a loss case."""
    variables = {name: tf.Variable(value) for name, value in _predictions(case)}
    targets, rows = _targets(case, variables["main/pixel_space_mask_logits"].shape[1])
    pixels = targets.segment.shape[1] * targets.segment.shape[2]
    noise = np.full((len(OUTPUTS), len(rows), pixels), 0.5, np.float32)
    noise = tf.constant(case.get("noise", noise), tf.float32)
    criterion = Criterion(
        contrast_pixels=case.facts["sample_k"],
        contrast_temperature=case.facts["sample_temperature"],
        semantic_top_fraction=case.facts["semantic_top_k"],
    )
    with tf.GradientTape() as tape:
        outputs = _outputs(case, variables)
        losses = criterion(outputs, targets, noise)
        total = tf.reduce_mean(losses.total)
    gradients = tape.gradient(total, variables)

    _compare_matching(case, comparison, match_segments(outputs.final, targets), rows)
    if "sampled_indices" in case:
        _compare_samples(case, comparison, targets, noise)
    ours = {"semantic_loss": losses.semantic, "total_loss": losses.total}
    for i, output in enumerate(OUTPUTS):
        prefix = "" if output == "main" else output
        ours |= {prefix + official: getattr(losses, name)[i] for official, name in TERMS.items()}
    for term, stored in zip(case.facts["terms"], case["terms"], strict=True):
        comparison.add(f"terms/{term['name']}", ours[term["name"]], stored, term["tol"])
    for facts in case.facts["gradients"]:
        gradient = tf.convert_to_tensor(gradients[facts["name"].removeprefix("grad/")])
        comparison.add_whole(facts, gradient, case[facts["name"]])


def _predictions(case):
    """Yields name and float32 array of each prediction."""
    for output in OUTPUTS:
        for field, scale in FIELDS.items():
            name = f"{output}/{field}"
            if f"pred_int8/{name}" in case:
                whole = case[f"pred_int8/{name}"].astype(np.float32)
                yield name, whole * np.float32(case.facts["scale"][scale])


def _outputs(case, variables):
    predictions = [Prediction(*(variables[f"{o}/{f}"] for f in list(FIELDS)[:3])) for o in OUTPUTS]
    # The official semantic channels are dataset ids, ours class indices.
    semantic = variables["main/semantic_logits"]
    known = case.facts["class_order"]
    channels = known + sorted(set(range(semantic.shape[-1])) - set(known))
    return Outputs(predictions[0], tuple(predictions[1:]), tf.gather(semantic, channels, axis=-1))


def _targets(case, height):
    """Returns `Targets` of `height` rows of pixels, and for each image {official row: our row}."""
    facts = case.facts
    maps = [case[f"gt/{name}"] for name in ("semantic", "thing_id_mask", "semantic_loss_weight")]
    stride = (maps[0].shape[1] - 1) // (height - 1)
    semantic, thing, weight = (v[:, ::stride, ::stride] for v in maps)
    thing_class = case["gt/thing_id_class"]
    index = {c: i for i, c in enumerate(facts["class_order"])}
    first_stuff = facts["classes"] - (facts["rows"] - facts["max_thing_id"])
    class_map = np.vectorize(lambda c: index.get(int(c), -1))(semantic).astype(np.int32)
    segment = np.full(class_map.shape, -1, np.int32)
    segment_class = np.full((len(class_map), facts["mask_slots"]), -1, np.int32)
    rows = []
    for image, (things, stuff) in enumerate(zip(thing, class_map, strict=True)):
        # The official row, where it is, and its class.
        found = [
            (t, things == t, index[int(thing_class[image, t])])
            for t in np.unique(things[things >= 0]).astype(int)
        ]
        found += [
            (facts["max_thing_id"] + c - first_stuff, stuff == c, c)
            for c in np.unique(stuff[stuff >= first_stuff])
        ]
        for ours, (_, inside, c) in enumerate(found):
            segment[image][inside] = ours
            segment_class[image, ours] = c
        rows.append({official: ours for ours, (official, *_) in enumerate(found)})
    targets = Targets(segment, segment_class, class_map, weight.astype(np.float32))
    return Targets(*map(tf.constant, targets)), rows


def _compare_matching(case, comparison, matching, rows):
    """Compares the assignment, and what it weighs; `rows` as from `_targets`."""
    matching = type(matching)(*(tensor.numpy() for tensor in matching))

    def add(name, ours):
        stored = case[f"match/{name}"]
        comparison.add(f"match/{name}", ours, stored, ABSOLUTE + RELATIVE * np.abs(stored))

    slots = np.full(case["match/slot_of_row"].shape, -1)
    for image, row_of in enumerate(rows):
        slots[image, [*row_of]] = matching.cluster_of_segment[image, [*row_of.values()]]
    comparison.add("match/slot_of_row", slots, case["match/slot_of_row"], 0)
    where = [(image, rows[image][official]) for image, official in case["match/rows"]]
    images, segments = np.array(where, int).reshape(-1, 2).T
    add("dice", matching.dice[images, segments])
    add("cost", matching.cost[images, segments])
    clusters = matching.cluster_of_segment[images, segments]
    add("dice_weight", matching.mask_weight[images, clusters])
    comparison.add("match/class_target", matching.class_of_cluster, case["match/class_target"], 0)
    add("class_weight", matching.class_weight)
    # A matched slot's void ratio has no part in anything.
    unmatched = matching.class_of_cluster == case.facts["classes"]
    void = np.maximum(case["match/void_ratio"], terms.PROBABILITY_FLOOR)[unmatched]
    tolerance = ABSOLUTE + RELATIVE * np.abs(void)
    comparison.add("match/void_ratio", matching.class_weight[unmatched], void, tolerance)


def _compare_samples(case, comparison, targets, noise):
    """Compares the pixels that the contrast term draws; their order does not matter."""
    segment = targets.segment.numpy().reshape(len(targets.segment), -1)
    area = [[(row == s).sum() if s >= 0 else 1 for s in row] for row in segment]
    nonvoid = targets.semantic.numpy().reshape(segment.shape) >= 0
    settings = case.facts["sample_k"], case.facts["sample_temperature"]
    ours = [
        terms.sample_pixels(tf.constant(nonvoid), tf.constant(area, tf.float32), n, *settings)
        for n in noise
    ]
    stored = np.sort(case["sampled_indices"], axis=-1)
    comparison.add("sampled_indices", np.sort(np.stack(ours), axis=-1), stored, 0)
