"""The flags of the commands that predict: the split of a submission, the precision of an export."""

import json
import pathlib
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf import commands, config, runtime
from kmax_tf.experiment import Experiment
from kmax_tf.importers import output

pytestmark = pytest.mark.slow


@pytest.fixture
def run_dir(exported, tmp_path):
    """A run folder with the weights of the toy model."""
    gin_file = pathlib.Path(exported.folder).with_name("tiny.gin")
    experiment = config.load(Experiment, str(gin_file))
    output.write(exported.model, experiment.dataset, str(tmp_path / "run"))
    return tmp_path / "run"


def test_the_named_split_is_submitted(run_dir, tmp_path):
    out = tmp_path / "train.zip"
    commands.main(["submit", f"--run_dir={run_dir}", f"--out={out}", "--split=train"])
    with zipfile.ZipFile(out) as archive:
        (listed,) = [name for name in archive.namelist() if name.endswith(".json")]
        assert len(json.loads(archive.read(listed))["annotations"]) == 6  # "val" has 3


def test_an_export_has_the_named_precision(exported, run_dir, tmp_path):
    """It rounds, so that the probabilities are near those in float32, and not the same."""
    words = [f"--run_dir={run_dir}", f"--out={tmp_path}/export", "--precision=mixed_bfloat16"]
    try:
        commands.main(["export", *words])
    finally:
        runtime.set_precision("float32")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 97, 97, 3)).astype(np.uint8)
    loaded = [tf.saved_model.load(folder) for folder in (exported.folder, f"{tmp_path}/export")]
    exact, rounded = (
        one.signatures["uint8_details"](images=tf.constant(pixels))["class_probability"].numpy()
        for one in loaded
    )
    assert 0 < np.abs(rounded - exact).max() < 0.1
