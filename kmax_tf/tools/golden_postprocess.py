"""Golden cases of mask-wise merging."""

import numpy as np
import tensorflow as tf

from kmax_tf.model.heads import Prediction
from kmax_tf.postprocess import PostProcess


def compare(case, comparison) -> None:
    """Compares the panoptic map of a case; `PostProcess` gives none of the other maps."""
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
    prediction = Prediction(tf.constant(masks), tf.constant(logits), None)
    panoptic = postprocess(prediction, facts["canvas"], facts["things"])
    ours = [
        _official(segment_map, segment_class, facts)
        for segment_map, segment_class in zip(
            panoptic.segment_map.numpy(), panoptic.segment_class.numpy()
        )
    ]
    comparison.add("panoptic_pred", np.stack(ours), case["panoptic_pred"], 0)


def _official(segment_map, segment_class, facts):
    """class * divisor + rank of a thing's mask, from 1; the ignore label's for void."""
    divisor = facts["divisor"]
    label = [facts["ignore_label"] * divisor]
    for rank, index in enumerate(segment_class, 1):
        instance = rank if index < facts["things"] else 0
        label.append(facts["class_order"][index] * divisor + instance)
    return np.array(label)[segment_map]
