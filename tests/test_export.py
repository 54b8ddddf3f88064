"""An export predicts what the model predicts, at the image's own size."""

import json

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf import export, inference, postprocess, predict
from kmax_tf.data import augment
from kmax_tf.files import InputError


@pytest.fixture
def experiment(tiny):
    # An untrained model is sure of nothing: every mask is to be pasted.
    names = ("thing_threshold", "stuff_threshold", "overlap_threshold")
    return tiny(*(f"postprocess.PostProcess.{name} = 0.0" for name in names))


@pytest.fixture
def image():
    noise = np.random.default_rng(0).integers(0, 256, (5, 8, 3)).astype(np.uint8)
    return np.kron(noise, np.ones((20, 20, 1), np.uint8))  # [100, 160, 3]


def test_export_equals_model(experiment, image, tmp_path):
    model = experiment.build_model()
    model.cluster_path.head.mask_norm.gamma.assign(tf.fill([1, 1, 1, 1], 100.0))  # sharp masks
    export.export(experiment, model, str(tmp_path / "export"))
    loaded, categories = predict.load(str(tmp_path / "export"))
    result = {key: value.numpy() for key, value in loaded(image).items()}

    sample = augment.Sample(tf.cast(image, tf.float32), tf.zeros(image.shape[:2], tf.int32))
    size = experiment.evaluation_size
    panoptic, _ = inference.predictor(model, experiment)(
        augment.fit_and_pad(sample, size).image[None]
    )
    expected = postprocess.to_original_size(
        panoptic.segment_map[0], augment.fitted_size(sample, size), image.shape[:2]
    ).numpy()
    assert result["panoptic_map"].shape == image.shape[:2]
    np.testing.assert_array_equal(result["panoptic_map"], expected)

    ids, areas = np.unique(expected[expected > 0], return_counts=True)
    assert len(ids) > 0
    np.testing.assert_array_equal(result["segment_id"], ids)
    np.testing.assert_array_equal(result["area"], areas)
    classes = [experiment.dataset.categories[panoptic.segment_class[0, i - 1]] for i in ids]
    np.testing.assert_array_equal(result["category_id"], [c.id for c in classes])
    np.testing.assert_array_equal(result["isthing"], [c.isthing for c in classes])
    assert tuple(categories) == experiment.dataset.categories


def test_predict_writes_coco_format_and_skips_what_is_no_image(experiment, image, tmp_path, capsys):
    export.export(experiment, experiment.build_model(), str(tmp_path / "export"))
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "0012.png").write_bytes(tf.io.encode_png(image).numpy())
    (folder / "b.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    assert predict.predict(str(tmp_path / "export"), [str(folder)], str(out)) == 1
    assert "b.jpg" in "".join(capsys.readouterr())
    content = json.loads((out / "predictions.json").read_text())
    [annotation] = content["annotations"]
    assert annotation["image_id"] == 12  # as COCO names its images
    png = tf.io.decode_png((out / "predictions" / annotation["file_name"]).read_bytes()).numpy()
    ids = png[..., 0] + 256 * png[..., 1].astype(int)
    listed = {s["id"]: s["area"] for s in annotation["segments_info"]}
    assert listed == {i: (ids == i).sum() for i in np.unique(ids) if i}
    assert (out / "overlays" / "0012.png").exists()


def test_missing_export_and_image_are_named(tmp_path):
    with pytest.raises(InputError, match="categories.json"):
        predict.load(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="no such image"):
        predict.find_images([str(tmp_path / "none.jpg")])
