"""Runs a function over many jobs with Apache Beam: here, or on Dataflow, Flink or Spark."""

import re
from collections.abc import Callable, Sequence

from kmax_tf import errors


def run(function: Callable, jobs: Sequence[tuple], flags: Sequence[str]) -> None:
    """Calls function(*job) for all jobs, and waits for them.

    Args:
        function: a function of a module that is installed where the workers run.
        jobs: the arguments of each call.
        flags: options of Beam, such as ["--runner=DirectRunner"].

    Raises:
        InputError: apache_beam is not installed, the runner is unknown, or a call raises it.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise errors.InputError(
            'apache_beam is not installed; run pip install "kmax_tf[beam]", or omit --runner'
        ) from error
    try:
        with apache_beam.Pipeline(options=PipelineOptions(flags)) as pipeline:
            shards = pipeline | apache_beam.Create(jobs) | apache_beam.Reshuffle()
            shards | apache_beam.MapTuple(function)
    except Exception as error:  # each runner wraps a worker's error in a class of its own
        found = re.search(r"InputError: ([^\n]*)|Unexpected pipeline runner: .*", str(error))
        if isinstance(error, errors.InputError) or not found:
            raise
        raise errors.InputError(found[1] or found[0]) from error
