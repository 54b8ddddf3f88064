"""Our variables by the path of attributes that leads to each."""

import collections

import tensorflow as tf
import tf_keras

PARTS = ("pixel_encoder", "pixel_decoder", "cluster_path", "semantic_branch")


def variables(model: tf_keras.Model) -> dict[str, tf.Variable]:
    """Returns {path: variable} of a built `KMaX`, such as "pixel_encoder/stem/0/conv/kernel".

    If several paths lead to a variable, the shortest one counts.

    Raises:
        RuntimeError: a variable of the model has no path.
    """
    found, seen = {}, set()
    waiting = collections.deque((part, getattr(model, part)) for part in PARTS)
    while waiting:
        path, thing = waiting.popleft()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, tf.Variable):
            found[path] = thing
            continue
        for name, child in sorted(tf.train.TrackableView.children(thing).items()):
            waiting.append((f"{path}/{name}", child))
    if len(found) != len(model.variables):
        raise RuntimeError(f"{len(model.variables)} variables, but {len(found)} have a path")
    return found
