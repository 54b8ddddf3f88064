"""Hungarian matching on the device: exact, by shortest augmenting paths, compiled with XLA."""

from typing import NamedTuple

import tensorflow as tf


class _Search(NamedTuple):
    """The state of the search in every image; images may be at different rows."""

    done: tf.Tensor  # int32 [batch], rows assigned so far
    price: tf.Tensor  # float32 [batch, columns], dual variables, 0 for free columns
    row_of: tf.Tensor  # int32 [batch, columns], row assigned to each column, or -1
    length: tf.Tensor  # float32 [batch, columns], length of the shortest path to each column
    previous: tf.Tensor  # int32 [batch, columns], column before it on that path, or -1
    scanned: tf.Tensor  # bool [batch, columns]
    column: tf.Tensor  # int32 [batch], column scanned last, -1 at the start of a row


def match(cost: tf.Tensor, exists: tf.Tensor) -> tf.Tensor:
    """Assigns each existing row to a distinct column with the least total cost.

    Adds rows along shortest augmenting paths (Jonker and Volgenant, 1987). Each step is one vector
    operation over the columns of all images.

    Args:
        cost: float32 [batch, rows, columns]. Non-finite costs are treated as 0, or the search would
            not terminate. The training step is skipped in that case anyway.
        exists: bool [batch, rows], the rows to assign.

    Returns:
        int32 [batch, rows], the column of each row, -1 for rows that do not exist.

    Raises:
        ValueError: there are more rows than columns.
    """
    rows, columns = cost.shape[1:]
    if rows > columns:
        raise ValueError(
            f"{rows} segments for {columns} clusters; bind TrainingInput.max_segments to {columns}"
        )
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
    """Returns the `_Search` before the first row of every image."""
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
    """Scans one more column of every image, and assigns the row if that column is free.

    `order` is int32 [batch, rows], the rows with existing ones first; `todo` int32 [batch], the
    number of these.
    """
    active = state.done < todo
    start = state.column < 0
    current_row = tf.gather(order, tf.minimum(state.done, order.shape[1] - 1), batch_dims=1)
    row = tf.where(start, current_row, _at(state.row_of, state.column))
    row = tf.maximum(row, 0)
    reduced = tf.gather(cost, row, batch_dims=1) - state.price
    # The dual of a matched row makes its own edge free; the first row has none yet.
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
    """Looks up values [batch, columns] at column, int32 [batch]; column 0 stands for -1."""
    return tf.gather(values, tf.maximum(column, 0), batch_dims=1)


def _is_column(column, values):
    """Marks `column`, int32 [batch]: bool [batch, columns], the shape of `values`."""
    return tf.range(values.shape[1])[None] == column[:, None]


def _augment(row_of, previous, column, first_row):
    """Shifts the rows along the path that ends in `column`, int32 [batch], -1 for no path."""

    def body(row_of, column):
        before = _at(previous, column)
        row = tf.where(before < 0, first_row, _at(row_of, before))
        chosen = _is_column(column, row_of)
        return tf.where(chosen, row[:, None], row_of), tf.where(column < 0, -1, before)

    return tf.while_loop(lambda _, c: tf.reduce_any(c >= 0), body, (row_of, column))[0]
