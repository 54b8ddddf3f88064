"""The benchmark of the input on records that it makes itself."""

import io
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kmax_tf.data import datasets, training_input
from kmax_tf.data.records import example
from kmax_tf.tools import benchmark_input

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["coco", "cityscapes"])
def test_made_records_cost_as_much_as_photographs(name):
    dataset = datasets.load(name)
    record = benchmark_input._record(np.random.default_rng(0), dataset)
    jpeg = tf.train.Example.FromString(record).features.feature["image/encoded"].bytes_list.value[0]
    assert Image.open(io.BytesIO(jpeg)).format == "JPEG" and 80e3 < len(jpeg) < 300e3
    made = example.parse(tf.constant(record))
    assert made.image.shape == (480, 640, 3)
    assert 8 <= len(made.category_id) <= benchmark_input.THINGS + benchmark_input.STUFF
    assert set(np.unique(made.segment_map)) == set(range(1, len(made.category_id) + 1))


@pytest.mark.parametrize("placement", training_input.PLACEMENTS)
def test_measures_each_stage(placement, tiny):
    experiment = tiny(f"training_input.TrainingInput.placement = '{placement}'")
    result = benchmark_input.run(experiment, threads=1, batch_size=2, seconds=0.2)
    assert list(result.stages) == ["read", "decode", "augment", "batch"]
    assert all(s.images_per_second > 0 and s.cpu_seconds > 0 for s in result.stages.values())
    facts = result.as_json()
    assert facts["images_per_second"] == facts["by_stage"]["batch"]
    assert (facts["threads"], facts["placement"]) == (1, placement)
    assert 100 < facts["peak_memory_mb"] < 1e5
    cores = result.host_cores(50)
    assert cores == pytest.approx(50 * result.stages["batch"].cpu_seconds)
    assert f"needs {cores:.1f} cores" in benchmark_input.text(result, 50)


@pytest.mark.slow
def test_script():
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "scripts" / "benchmark_input.py", "--json"),
            *("--gin_file", "gin/experiments/coco_resnet50.gin", "--threads=2", "--seconds=0.2"),
            *("--gin", "training_input.TrainingInput.placement = 'device'"),
            *("--gin", "training_input.TrainingInput.size = (129, 129)"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    facts = json.loads(done.stdout)
    assert facts["placement"] == "device" and facts["threads"] == 2
    assert facts["images_per_second"] > 0
