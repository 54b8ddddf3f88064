"""The benchmark runs what it says, and counts what it ran."""

import json
import time

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf.errors import InputError
from kmax_tf.tools import benchmark_model


def test_counts_runs_apart_from_compilation():
    shapes = []

    def predict(image):
        shapes.append(tuple(image.shape))
        time.sleep(0.2 if len(shapes) == 1 else 0.01)
        return tf.zeros([1])

    benchmark = benchmark_model.run(predict, (33, 49), batch_size=2, seconds=0)
    assert set(shapes) == {(2, 33, 49, 3)}
    assert len(benchmark.run_seconds) == len(shapes) - 1 - benchmark_model.WARM_UP
    assert len(benchmark.run_seconds) == benchmark_model.FEWEST
    assert benchmark.compile_seconds >= 0.2 and benchmark.run_seconds.min() >= 0.01
    assert benchmark.images_per_second == 2 / np.median(benchmark.run_seconds)
    latency = benchmark.as_json()["latency_ms"]
    assert latency["p50"] <= latency["p90"] <= latency["p99"]
    assert benchmark.peak_memory_bytes > 2 * 33 * 49 * 3 * 4


def test_export_gives_what_the_experiment_gives(exported):
    of_export, size = benchmark_model.of_export(exported.folder)
    assert size == exported.experiment.evaluation_size
    image = tf.random.stateless_uniform([1, *size, 3], [0, 1]) * 255
    # As a graph, for there operations are merged and round otherwise.
    outputs = tf.function(exported.model, autograph=False)(image, training=False)
    expected = exported.experiment.postprocess(
        outputs.final, size, exported.experiment.dataset.num_things
    )
    np.testing.assert_array_equal(of_export(image), expected.segment_map)
    with pytest.raises(InputError, match="not a readable export"):
        benchmark_model.of_export("nothing")


def test_command_line(exported, run_script, capsys):
    run_script("benchmark_model.py", exported.folder, "--json", "--seconds=0")
    printed = json.loads(capsys.readouterr().out)
    assert printed["input_size"] == list(exported.experiment.evaluation_size)
    assert printed["images_per_second"] > 0 and "p99" in printed["latency_ms"]
