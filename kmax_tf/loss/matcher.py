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


def match(cost, exists):
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
    batch, rows, columns = cost.shape[0] or tf.shape(cost)[0], cost.shape[1], cost.shape[2]
    if rows > columns:
        raise ValueError(f"{rows} rows cannot be assigned to {columns} columns, one to one")
    cost = tf.where(tf.math.is_finite(cost), cost, 0.0)
    order = tf.argsort(tf.cast(exists, tf.int32), direction="DESCENDING", stable=True)
    todo = tf.reduce_sum(tf.cast(exists, tf.int32), axis=1)
    every_column = tf.range(columns)[None]

    def fill(value, dtype):
        return tf.fill([batch, columns], tf.cast(value, dtype))

    def is_column(j):
        return every_column == j[:, None]

    def current_row(state):
        return tf.gather(order, tf.minimum(state.done, rows - 1), batch_dims=1)

    def at(values, j):
        return tf.gather(values, tf.maximum(j, 0), batch_dims=1)

    def step(state):
        active = state.done < todo
        start = state.column < 0
        row = tf.where(start, current_row(state), at(state.row_of, state.column))
        row = tf.maximum(row, 0)
        reduced = tf.gather(cost, row, batch_dims=1) - state.price
        # The dual of a matched row makes its own edge cost nothing; the first row needs none.
        offset = tf.where(start, 0.0, at(state.length, state.column) - at(reduced, state.column))
        length = reduced + offset[:, None]
        better = ~state.scanned & (length < state.length)
        length = tf.where(better, length, state.length)
        previous = tf.where(better, state.column[:, None], state.previous)
        nearest = tf.argmin(
            tf.where(state.scanned, tf.float32.max, length), axis=1, output_type=tf.int32
        )
        scanned = state.scanned | is_column(nearest)
        found = active & (at(state.row_of, nearest) < 0)

        change = tf.where(scanned, at(length, nearest)[:, None] - length, 0.0)
        price = tf.where(found[:, None], state.price - change, state.price)
        row_of = _augment(
            state.row_of, previous, tf.where(found, nearest, -1), current_row(state), is_column
        )
        fresh = found[:, None]
        return (
            _Search(
                done=state.done + tf.cast(found, tf.int32),
                price=price,
                row_of=row_of,
                length=tf.where(fresh, tf.float32.max, length),
                previous=tf.where(fresh, -1, previous),
                scanned=scanned & ~fresh,
                column=tf.where(found, -1, nearest),
            ),
        )

    start = _Search(
        done=tf.zeros_like(todo),
        price=fill(0, tf.float32),
        row_of=fill(-1, tf.int32),
        length=fill(tf.float32.max, tf.float32),
        previous=fill(-1, tf.int32),
        scanned=fill(False, tf.bool),
        column=tf.fill([batch], -1),
    )
    (end,) = tf.while_loop(lambda state: tf.reduce_any(state.done < todo), step, (start,))
    assigned = end.row_of[:, None, :] == tf.range(rows)[None, :, None]
    column = tf.argmax(assigned, axis=2, output_type=tf.int32)
    return tf.where(tf.reduce_any(assigned, axis=2), column, -1)


def _augment(row_of, previous, column, first_row, is_column):
    """Moves every row on the path that ends in `column` (int32 [batch], -1 for none) one back."""

    def body(row_of, column):
        before = tf.gather(previous, tf.maximum(column, 0), batch_dims=1)
        row = tf.gather(row_of, tf.maximum(before, 0), batch_dims=1)
        row = tf.where(before < 0, first_row, row)
        return tf.where(is_column(column), row[:, None], row_of), tf.where(column < 0, -1, before)

    return tf.while_loop(lambda _, c: tf.reduce_any(c >= 0), body, (row_of, column))[0]
