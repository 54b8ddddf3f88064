"""The training input: position by step, every example once an epoch, targets as worked by hand."""

import numpy as np
import tensorflow as tf

from kmax_tf.data import datasets, example, pipeline
from kmax_tf.data.targets import class_indices, make_targets


def batches(records, count, **arguments):
    dataset = pipeline.training_input(
        example.shard_paths(records, "train"),
        datasets.load(records),
        pipeline.TrainingInput(size=(65, 65), scales=(0.8, 1.0), shuffle_buffer=4),
        **{"stride": 4, "batch_size": 2, "seed": 3} | arguments,
    )
    return [tf.nest.map_structure(np.asarray, b) for b, _ in zip(dataset, range(count))]


def assert_equal(a, b):
    tf.nest.map_structure(np.testing.assert_array_equal, a, b)


def test_starts_anywhere_as_if_from_the_beginning(records):
    whole = batches(records, 8)
    for start in (1, 3, 5):
        assert_equal(batches(records, 8 - start, start_step=start), whole[start:])


def test_epochs_differ_and_hold_each_example_once(records):
    # The second field of an example tells images apart without augmentation.
    still = pipeline.TrainingInput(size=(65, 65), augment=False, shuffle_buffer=4)
    dataset = pipeline.training_input(
        example.shard_paths(records, "train"),
        datasets.load(records),
        still,
        stride=4,
        batch_size=6,
        seed=0,
    )
    epochs = [[float(x) for x in tf.reduce_sum(b[0], [1, 2, 3])] for b, _ in zip(dataset, range(4))]
    assert len(set(epochs[0])) == 6
    assert all(sorted(e) == sorted(epochs[0]) for e in epochs)
    assert len({tuple(e) for e in epochs}) > 1


def test_hosts_share_the_files(records):
    still = dict(size=(65, 65), augment=False, shuffle_buffer=1)
    sums = set()
    for host in range(2):
        dataset = pipeline.training_input(
            example.shard_paths(records, "train"),
            datasets.load(records),
            pipeline.TrainingInput(**still),
            stride=4,
            batch_size=3,
            seed=0,
            host=host,
            num_hosts=2,
        )
        image, _ = next(iter(dataset))
        sums |= {float(x) for x in tf.reduce_sum(image, [1, 2, 3])}
    assert len(sums) == 6


def test_targets_by_hand():
    # Segment 1 is a thing of class 2, 2 stuff of class 4, 3 crowd, 4 too small for stride 2.
    segment_map = np.zeros((5, 5), np.int32)
    segment_map[:2] = 1
    segment_map[2:] = 2
    segment_map[4, 4] = 3
    segment_map[1, 1] = 4
    targets = make_targets(
        tf.constant(segment_map),
        tf.constant([2, 4, 1, 0]),
        tf.constant([False, False, True, False]),
        num_things=3,
        stride=2,
        max_segments=3,
        thing_weight=4.0,
    )
    # By area at stride 2: the stuff (5 pixels) is row 0, the thing (3 pixels) row 1.
    np.testing.assert_array_equal(targets.segment, [[1, 1, 1], [0, 0, 0], [0, 0, -1]])
    np.testing.assert_array_equal(targets.segment_class, [4, 2, -1])
    np.testing.assert_array_equal(targets.semantic, [[2, 2, 2], [4, 4, 4], [4, 4, -1]])
    np.testing.assert_array_equal(targets.semantic_weight, [[4, 4, 4], [1, 1, 1], [1, 1, 1]])


def test_segments_beyond_the_rows_become_void():
    segment_map = np.repeat([1, 2, 3], [1, 2, 3])[None].astype(np.int32)
    targets = make_targets(
        tf.constant(segment_map),
        tf.constant([0, 1, 0]),
        tf.constant([False] * 3),
        num_things=2,
        stride=1,
        max_segments=2,
        thing_weight=1.0,
    )
    np.testing.assert_array_equal(targets.segment, [[-1, 1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(targets.semantic, [[-1, 1, 1, 0, 0, 0]])


def test_class_indices_of_unknown_categories():
    dataset = datasets.load("coco")
    ids = [dataset.categories[5].id, 10**9, -1, dataset.categories[100].id]
    np.testing.assert_array_equal(
        class_indices(dataset, tf.constant(ids, tf.int64)), [5, -1, -1, 100]
    )


def test_no_python_operation_in_the_training_input(records):
    """On a slice the input runs in servers without Python."""
    dataset = pipeline.training_input(
        example.shard_paths(records, "train"),
        datasets.load(records),
        pipeline.TrainingInput(size=(65, 65)),
        stride=4,
        batch_size=2,
        seed=0,
    )
    graph = tf.compat.v1.GraphDef.FromString(dataset._as_serialized_graph().numpy())
    nodes = list(graph.node) + [n for f in graph.library.function for n in f.node_def]
    names = {node.op for node in nodes}
    assert "DecodePng" in names or "DecodeImage" in names
    assert not names & {"PyFunc", "EagerPyFunc", "PyFuncStateless"}
