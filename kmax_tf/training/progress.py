"""The line that training shows, and what its user should know beside it."""

import sys
from collections.abc import Mapping

from tqdm import tqdm

from kmax_tf.data.records.reader import Records
from kmax_tf.experiment import Experiment
from kmax_tf.training import nonfinite

NO_VOID = (
    "no pixel of the crops is void: clusters without a segment hardly learn that they have none,"
    ' and instances separate slowly; bind Criterion.unmatched_class_weight to "nonvoid_share", or'
    " scale images below 1"
)
# Steps a second, however few; tqdm's own would become seconds a step.
RATE = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"


def line(experiment: Experiment, start: int) -> tqdm:
    """The progress line of a training that goes on from step `start`."""
    return tqdm(None, "training", experiment.steps, initial=start, unit=" steps", bar_format=RATE)


def show(
    bar: tqdm,
    experiment: Experiment,
    records: Records,
    skips: nonfinite.NonFiniteSteps,
    step: int,
    scalars: Mapping[str, float],
) -> None:
    """Shows that a training on the `Records` has come to `step`, by what its last loop gave.

    Raises InputError after too many skipped steps in a row.
    """
    for text in nonfinite.report(experiment, records, skips.since(bar.n)):
        bar.write(text, sys.stderr)
    nonfinite.check(skips, step)
    void_matters = experiment.criterion.unmatched_class_weight == "void_share"
    if bar.n == bar.initial and scalars["void_share"] == 0 and void_matters:
        bar.write(NO_VOID, sys.stderr)
    bar.update(step - bar.n)
    corrupt = scalars.get("corrupt_records")
    note = f", {corrupt:.0f} corrupt records skipped" if corrupt else ""
    images = experiment.batch_size * (bar.format_dict["rate"] or 0)
    bar.set_postfix_str(f"{images:.1f} images/s, loss {scalars['loss/total']:.3f}{note}")
