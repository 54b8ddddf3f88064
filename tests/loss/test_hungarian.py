"""The matcher finds assignments as cheap as SciPy's, whatever the costs."""

import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf

from kmax_tf.loss import hungarian

ROWS, COLUMNS = 7, 9


def kinds_of_costs(rng):
    """Cost matrices [ROWS, COLUMNS] of every kind that could break an augmenting path."""
    shape = (ROWS, COLUMNS)
    yield rng.standard_normal(shape)
    yield -rng.random(shape) * rng.random(shape)  # dice times probability
    yield rng.integers(0, 3, shape)  # many ties
    yield np.full(shape, -0.5)
    yield np.zeros(shape)
    yield rng.standard_normal(shape) * 1e30
    yield rng.standard_normal(shape) * 1e-30
    yield np.where(rng.random(shape) < 0.3, 1e6, rng.random(shape))  # what must be avoided
    yield np.outer(np.arange(ROWS), np.arange(COLUMNS))  # every greedy choice is wrong
    yield np.where(rng.random(shape) < 0.3, -1.0, 0.0)


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.xla)])
def test_equals_scipy(jit):
    rng = np.random.default_rng(0)
    solve = tf.function(hungarian.match, jit_compile=jit)
    for _ in range(210):  # 2,100 cases
        cost = np.stack([np.asarray(c, np.float32) for c in kinds_of_costs(rng)])
        exists = rng.random(cost.shape[:2]) < rng.choice([0.0, 0.3, 0.7, 1.0])
        columns = solve(tf.constant(cost), tf.constant(exists)).numpy()
        for c, e, column in zip(cost.astype(np.float64), exists, columns, strict=True):
            assert (column[~e] == -1).all()
            assert len(set(column[e])) == e.sum() and (column[e] >= 0).all()
            rows, best = scipy.optimize.linear_sum_assignment(c[e])
            least = c[e][rows, best].sum()
            np.testing.assert_allclose(c[e, column[e]].sum(), least, rtol=1e-5, atol=1e-37)


def test_square_and_full():
    rng = np.random.default_rng(1)
    cost = rng.random((2, 40, 40)).astype(np.float32)
    columns = hungarian.match(tf.constant(cost), tf.ones([2, 40], tf.bool)).numpy()
    for c, column in zip(cost, columns, strict=True):
        rows, best = scipy.optimize.linear_sum_assignment(c)
        assert (column == best).all()


def test_no_row():
    columns = hungarian.match(tf.zeros([2, 3, 4]), tf.zeros([2, 3], tf.bool))
    assert (columns.numpy() == -1).all()


def test_more_rows_than_columns_are_refused():
    with pytest.raises(ValueError, match="5 segments for 4 clusters"):
        hungarian.match(tf.zeros([1, 5, 4]), tf.ones([1, 5], tf.bool))


def test_costs_that_are_not_finite_end_too():
    cost = tf.fill([1, 3, 5], float("nan"))
    columns = hungarian.match(cost, tf.constant([[True, True, False]]))[0].numpy()
    assert len({*columns[:2]}) == 2 and (columns[:2] >= 0).all() and columns[2] == -1
