"""Golden cases of mask-wise merging: the official maps, looked up in what `PostProcess` gives."""

import numpy as np
import tensorflow as tf

from kmax_tf.model.kmax_decoder import Prediction
from kmax_tf.model.postprocess import PostProcess
from kmax_tf.parity.cases import Case, Comparison

SCORE_TOLERANCE = 2e-6  # of probabilities, absolute


def compare(case: Case, comparison: Comparison) -> None:
    """Compares every map of a case."""
    facts = case.facts
    masks = case["mask_logits_int8"].astype(np.float32) / 8 + case["mask_logits_offset"]
    logits = case["class_logits_int8"].astype(np.float32) / 8
    prediction = Prediction(tf.constant(masks), tf.constant(logits), None)
    postprocess = PostProcess(
        thing_threshold=facts["class_threshold_thing"],
        stuff_threshold=facts["class_threshold_stuff"],
        overlap_threshold=facts["overlap_threshold"],
        thing_area=facts["thing_area_limit"],
        stuff_area=facts["stuff_area_limit"],
        pixel_threshold=facts["pixel_threshold"],
        mask_exponent=facts["mask_exponent"],
    )
    pasted, panoptic = (
        tf.nest.map_structure(np.asarray, merge(prediction, facts["canvas"], facts["things"]))
        for merge in (postprocess.paste, postprocess)
    )
    category = np.array(facts["class_order"])
    lowest = min(postprocess.thing_threshold, postprocess.stuff_threshold)
    # The official code leaves both score maps empty where no mask reaches the lowest threshold.
    any_mask = (pasted.confidence.max(axis=1) >= lowest)[:, None, None]
    confidence = _look_up(np.pad(pasted.confidence, [(0, 0), (1, 0)]), pasted.mask_map)
    scores = np.where(any_mask, pasted.probability, 0).ravel()

    comparison.add("panoptic_pred", _official(panoptic, category, facts), case["panoptic_pred"], 0)
    comparison.add("instance_pred", np.maximum(pasted.mask_map, 1), case["instance_pred"], 0)
    comparison.add("semantic_pred", category[panoptic.semantic_map], case["semantic_pred"], 0)
    comparison.add("semantic_scores", confidence, case["semantic_scores"], SCORE_TOLERANCE)
    stored = case["instance_scores_every_3rd"]
    comparison.add("instance_scores", scores[::3], stored, SCORE_TOLERANCE)


def _look_up(table, ids):
    """Returns table[ids] of each image: tables [batch, n], ids [batch, height, width]."""
    return np.take_along_axis(table, ids.reshape(len(ids), -1), axis=1).reshape(ids.shape)


def _official(panoptic, category, facts):
    """Returns class * divisor + rank of a thing's mask, from 1; the ignore label's for void."""
    classes, divisor = panoptic.segment_class, facts["divisor"]
    rank = np.arange(1, classes.shape[1] + 1)
    label = category[classes] * divisor + np.where(classes < facts["things"], rank, 0)
    void = facts["ignore_label"] * divisor
    return _look_up(np.pad(label, [(0, 0), (1, 0)], constant_values=void), panoptic.segment_map)
