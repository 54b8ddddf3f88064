"""Golden cases of mask-wise merging: the official maps, looked up in what `PostProcess` gives."""

import numpy as np
import tensorflow as tf

from kmax_tf.model.kmax_decoder import Prediction
from kmax_tf.model.postprocess import PostProcess
from kmax_tf.parity.cases import Case, Comparison


def compare(case: Case, comparison: Comparison) -> None:
    """Compares every map of a case."""
    facts = case.facts
    masks = case["mask_logits_int8"].astype(np.float32) / 8 + case["mask_logits_offset"]
    logits = case["class_logits_int8"].astype(np.float32) / 8
    postprocess = PostProcess(
        thing_threshold=facts["class_threshold_thing"],
        stuff_threshold=facts["class_threshold_stuff"],
        overlap_threshold=facts["overlap_threshold"],
        thing_area=facts["thing_area_limit"],
        stuff_area=facts["stuff_area_limit"],
        pixel_threshold=facts["pixel_threshold"],
        mask_exponent=facts["mask_exponent"],
    )
    arguments = (
        Prediction(tf.constant(masks), tf.constant(logits), None),
        facts["canvas"],
        facts["things"],
    )
    pasted, panoptic = (
        tf.nest.map_structure(lambda field: field.numpy(), result)
        for result in (postprocess.paste(*arguments), postprocess(*arguments))
    )
    category = np.array(facts["class_order"])
    lowest = min(postprocess.thing_threshold, postprocess.stuff_threshold)
    # Where no mask reaches it the official code leaves both score maps empty.
    any_mask = (pasted.confidence.max(axis=1) >= lowest)[:, None, None]
    confidence = _lookup(np.pad(pasted.confidence, [(0, 0), (1, 0)]), pasted.mask_map)

    comparison.add("panoptic_pred", _official(panoptic, category, facts), case["panoptic_pred"], 0)
    comparison.add("instance_pred", np.maximum(pasted.mask_map, 1), case["instance_pred"], 0)
    comparison.add("semantic_pred", category[panoptic.semantic_map], case["semantic_pred"], 0)
    comparison.add("semantic_scores", confidence, case["semantic_scores"], 2e-6)
    scores = np.where(any_mask, pasted.probability, 0).ravel()[::3]
    comparison.add("instance_scores", scores, case["instance_scores_every_3rd"], 2e-6)


def _lookup(table, ids):
    """table[ids] of each image."""
    return np.take_along_axis(table, ids.reshape(len(ids), -1), axis=1).reshape(ids.shape)


def _official(panoptic, category, facts):
    """class * divisor + rank of a thing's mask, from 1; the ignore label's for void."""
    classes, divisor = panoptic.segment_class, facts["divisor"]
    rank = np.arange(1, classes.shape[1] + 1)
    label = category[classes] * divisor + np.where(classes < facts["things"], rank, 0)
    void = facts["ignore_label"] * divisor
    return _lookup(np.pad(label, [(0, 0), (1, 0)], constant_values=void), panoptic.segment_map)
