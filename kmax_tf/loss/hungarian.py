"""Exact assignment of segments to clusters on the device: shortest augmenting paths."""

from typing import NamedTuple

import tensorflow as tf


class _Search(NamedTuple):
    """The state of every image's search; each image is at its own row."""

    done: tf.Tensor  # int32 [batch], rows assigned so far
    price: tf.Tensor  # float32 [batch, columns], dual variables, 0 for free columns
    row_of: tf.Tensor  # int32 [batch, columns], the row of each column or -1
    length: tf.Tensor  # float32 [batch, columns], shortest path to each column
    previous: tf.Tensor  # int32 [batch, columns], the column before it on that path or -1
    scanned: tf.Tensor  # bool [batch, columns]
    column: tf.Tensor  # int32 [batch], the column scanned last, -1 at the start of a row


def match(cost: tf.Tensor, exists: tf.Tensor) -> tf.Tensor:
    """Assigns each existing row to a column of its own with the least total cost.

    Successive shortest augmenting paths (Jonker and Volgenant, 1987) over the existing rows alone;
    each step is one vector operation over the columns of all images, so it compiles with XLA.

    Arguments:
      cost: float32 [batch, rows, columns]. Numbers that are not finite count as 0: the search would
        not end with them, and the step that made them, which is skipped for it, neither.
      exists: bool [batch, rows], which rows are to be assigned.
    Returns int32 [batch, rows]: the column of each row, -1 where the row does not exist.
    Raises ValueError if there are more rows than columns.
    """
    rows, columns = cost.shape[1:]
    if rows > columns:
        raise ValueError(f"{rows} rows cannot be assigned to {columns} columns, one to one")
    cost = tf.where(tf.math.is_finite(cost), cost, 0.0)
    order = tf.argsort(tf.cast(exists, tf.int32), direction="DESCENDING", stable=True)
    todo = tf.reduce_sum(tf.cast(exists, tf.int32), axis=1)
    (end,) = tf.while_loop(
        lambda state: tf.reduce_any(state.done < todo),
        lambda state: (_step(state, cost, order, todo),),
        (_start(cost),),
    )
    assigned = end.row_of[:, None, :] == tf.range(rows)[None, :, None]
    column = tf.argmax(assigned, axis=2, output_type=tf.int32)
    return tf.where(tf.reduce_any(assigned, axis=2), column, -1)


def _start(cost):
    """The `_Search` before the first row of every image."""
    batch = cost.shape[0] or tf.shape(cost)[0]
    columns = [batch, cost.shape[2]]
    return _Search(
        done=tf.zeros([batch], tf.int32),
        price=tf.zeros(columns),
        row_of=tf.fill(columns, -1),
        length=tf.fill(columns, tf.float32.max),
        previous=tf.fill(columns, -1),
        scanned=tf.fill(columns, False),
        column=tf.fill([batch], -1),
    )


def _step(state, cost, order, todo):
    """Scans one more column of every image, and where that is free assigns the row.

    Arguments:
      state: a `_Search`.
      cost: float32 [batch, rows, columns].
      order: int32 [batch, rows], the rows with those that exist first; todo: int32 [batch], these.
    Returns the next `_Search`.
    """
    active = state.done < todo
    start = state.column < 0
    current_row = tf.gather(order, tf.minimum(state.done, order.shape[1] - 1), batch_dims=1)
    row = tf.where(start, current_row, _at(state.row_of, state.column))
    row = tf.maximum(row, 0)
    reduced = tf.gather(cost, row, batch_dims=1) - state.price
    # The dual of a matched row makes its own edge cost nothing; the first row needs none.
    offset = tf.where(start, 0.0, _at(state.length, state.column) - _at(reduced, state.column))
    length = reduced + offset[:, None]
    better = ~state.scanned & (length < state.length)
    length = tf.where(better, length, state.length)
    previous = tf.where(better, state.column[:, None], state.previous)
    open_length = tf.where(state.scanned, tf.float32.max, length)
    nearest = tf.argmin(open_length, axis=1, output_type=tf.int32)
    scanned = state.scanned | _is_column(nearest, length)
    found = active & (_at(state.row_of, nearest) < 0)

    change = tf.where(scanned, _at(length, nearest)[:, None] - length, 0.0)
    fresh = found[:, None]
    return _Search(
        done=state.done + tf.cast(found, tf.int32),
        price=tf.where(fresh, state.price - change, state.price),
        row_of=_augment(state.row_of, previous, tf.where(found, nearest, -1), current_row),
        length=tf.where(fresh, tf.float32.max, length),
        previous=tf.where(fresh, -1, previous),
        scanned=scanned & ~fresh,
        column=tf.where(found, -1, nearest),
    )


def _at(values, column):
    """values [batch, columns] at int32 [batch]: [batch]; column 0 stands for -1."""
    return tf.gather(values, tf.maximum(column, 0), batch_dims=1)


def _is_column(column, values):
    """bool [batch, columns], the shape of `values`: where int32 [batch] `column` is."""
    return tf.range(values.shape[1])[None] == column[:, None]


def _augment(row_of, previous, column, first_row):
    """Moves every row on the path that ends in `column` (int32 [batch], -1 for none) one back."""

    def body(row_of, column):
        before = _at(previous, column)
        row = tf.where(before < 0, first_row, _at(row_of, before))
        chosen = _is_column(column, row_of)
        return tf.where(chosen, row[:, None], row_of), tf.where(column < 0, -1, before)

    return tf.while_loop(lambda _, c: tf.reduce_any(c >= 0), body, (row_of, column))[0]
