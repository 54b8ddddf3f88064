"""The line that training shows, and what its user should know beside it."""

import sys
from collections.abc import Mapping

from tqdm import tqdm

from kmax_tf import skipped
from kmax_tf.data.records import Records
from kmax_tf.experiment import Experiment

NO_VOID = (
    "no pixel of the crops is void: clusters without a segment hardly learn that they have none,"
    ' and instances separate slowly; bind Criterion.unmatched to "nonvoid", or scale images below 1'
)
# Steps a second, however few; tqdm's own would become seconds a step.
RATE = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"


def line(experiment: Experiment, start: int) -> tqdm:
    """The progress line of a training that goes on from step `start`."""
    return tqdm(None, "training", experiment.steps, initial=start, unit=" steps", bar_format=RATE)


def show(
    bar: tqdm,
    experiment: Experiment,
    found: Records,
    skips: skipped.SkippedSteps,
    step: int,
    scalars: Mapping[str, float],
) -> None:
    """Shows that a training on the `Records` has come to `step`, by what its last loop gave.

    Raises InputError after too many skipped steps in a row.
    """
    for text in skipped.report(experiment, found, skips.since(bar.n)):
        bar.write(text, sys.stderr)
    skipped.check(skips, step)
    void_matters = experiment.criterion.unmatched == "void"
    if bar.n == bar.initial and scalars["void_share"] == 0 and void_matters:
        bar.write(NO_VOID, sys.stderr)
    bar.update(step - bar.n)
    damaged = scalars.get("damaged_records")
    note = f", {damaged:.0f} damaged records skipped" if damaged else ""
    images = experiment.batch_size * (bar.format_dict["rate"] or 0)
    bar.set_postfix_str(f"{images:.1f} images/s, loss {scalars['loss/total']:.3f}{note}")
