"""Every loss term, the matching and the gradients equal the official code's numbers."""

import json

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf.data.targets import Targets
from kmax_tf.loss.criterion import Criterion, match_segments
from kmax_tf.model.heads import Prediction
from kmax_tf.model.kmax import Outputs

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
SEGMENTS = 32


class Case:
    """One golden case: predictions as variables, targets in our form, the stored numbers."""

    def __init__(self, folder, name):
        self.facts = json.loads((folder / f"{name}.json").read_text())
        self.stored = np.load(folder / f"{name}.npz")
        self.classes = [int(c) for c in self.facts["class_order"]]
        self.variables = {
            f"{output}/{field}": tf.Variable(self.prediction(f"{output}/{field}"))
            for output in OUTPUTS
            for field in FIELDS
            if f"pred_int8/{output}/{field}" in self.stored
        }
        self.targets, self.row_of = self.make_targets()

    def prediction(self, name):
        scale = self.facts["scale"][FIELDS[name.split("/")[1]]]
        return self.stored[f"pred_int8/{name}"].astype(np.float32) * np.float32(scale)

    def outputs(self):
        predictions = [
            Prediction(*(self.variables[f"{o}/{f}"] for f in list(FIELDS)[:3])) for o in OUTPUTS
        ]
        # The official semantic channels are dataset ids, ours class indices.
        others = set(range(self.variables["main/semantic_logits"].shape[-1])) - set(self.classes)
        channels = self.classes + sorted(others)
        semantic = tf.gather(self.variables["main/semantic_logits"], channels, axis=-1)
        return Outputs(predictions[0], tuple(predictions[1:]), semantic)

    def make_targets(self):
        """Targets, and for each image the official row of each of our rows."""
        height = self.variables["main/pixel_space_mask_logits"].shape[1]
        semantic, thing, weight = (
            self.stored[f"gt/{k}"] for k in ("semantic", "thing_id_mask", "semantic_loss_weight")
        )
        stride = (semantic.shape[1] - 1) // (height - 1)
        semantic, thing, weight = (v[:, ::stride, ::stride] for v in (semantic, thing, weight))
        thing_class = self.stored["gt/thing_id_class"]
        first_stuff = self.facts["classes"] - (self.facts["rows"] - self.facts["max_thing_id"])
        index = {c: i for i, c in enumerate(self.classes)}
        class_map = np.vectorize(lambda c: index.get(int(c), -1))(semantic).astype(np.int32)
        segment = np.full(class_map.shape, -1, np.int32)
        segment_class = np.full((len(class_map), SEGMENTS), -1, np.int32)
        rows = []
        for image in range(len(class_map)):
            official = {}
            for t in np.unique(thing[image][thing[image] >= 0]).astype(int):
                segment[image][thing[image] == t] = len(official)
                segment_class[image, len(official)] = index[int(thing_class[image, t])]
                official[len(official)] = t
            for c in np.unique(class_map[image][class_map[image] >= first_stuff]):
                segment[image][class_map[image] == c] = len(official)
                segment_class[image, len(official)] = c
                official[len(official)] = self.facts["max_thing_id"] + c - first_stuff
            rows.append(official)
        targets = Targets(segment, segment_class, class_map, weight.astype(np.float32))
        return Targets(*map(tf.constant, targets)), rows

    def losses(self):
        """Losses and gradients of the batch mean of the total."""
        pixels = int(np.prod(self.targets.segment.shape[1:]))
        noise = np.full((7, len(self.targets.segment), pixels), 0.5, np.float32)
        noise = self.stored.get("noise", noise)
        criterion = Criterion(
            contrast_pixels=self.facts["sample_k"],
            contrast_temperature=self.facts["sample_temperature"],
            semantic_top_fraction=self.facts["semantic_top_k"],
        )
        with tf.GradientTape() as tape:
            losses = criterion(self.outputs(), self.targets, tf.constant(noise, tf.float32))
            total = tf.reduce_mean(losses.total)
        return losses, tape.gradient(total, self.variables)


@pytest.fixture(params=["coco", "coco_sampled", "cityscapes", "ade20k"])
def case(request, shared):
    return Case(shared / "golden" / "loss", request.param)


def test_matching(case):
    matching = match_segments(case.outputs().final, case.targets)
    for image, rows in enumerate(case.row_of):
        for ours, official in rows.items():
            assert (
                matching.cluster_of_segment[image, ours]
                == case.stored["match/slot_of_row"][image, official]
            )
    np.testing.assert_allclose(
        matching.class_weight, case.stored["match/class_weight"], rtol=1e-4, atol=1e-6
    )
    assert (matching.class_of_cluster.numpy() == case.stored["match/class_target"]).all()


def test_terms_and_gradients(case):
    losses, gradients = case.losses()
    ours = {"semantic_loss": losses.semantic, "total_loss": losses.total}
    for i in range(len(OUTPUTS)):
        for official, name in TERMS.items():
            ours[("" if i == 0 else f"aux_{i - 1}") + official] = getattr(losses, name)[i]
    for term, stored in zip(case.facts["terms"], case.stored["terms"], strict=True):
        assert (np.abs(ours[term["name"]] - stored) <= term["tol"]).all(), term["name"]
    for stored in case.facts["gradients"]:
        name = stored["name"]
        gradient = gradients[name.removeprefix("grad/")].numpy().ravel()[:: stored["stride"]]
        assert np.abs(gradient - case.stored[name].ravel()).max() <= stored["tol"], name
