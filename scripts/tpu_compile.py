"""Compiles an experiment's whole training step with the TPU compiler, without a TPU.

scripts/tpu_compile.py --gin_file=gin/experiments/coco_resnet50.gin --topology=v3-32
scripts/tpu_compile.py --all
"""

import json

import tensorflow as tf
from absl import flags

from kmax_tf import config, runtime
from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment
from kmax_tf.files import write_atomic
from kmax_tf.tools import tpu_compile, tpu_report

GIN_FILE = flags.DEFINE_string("gin_file", None, "The experiment.")
GIN = flags.DEFINE_multi_string("gin", [], "A binding that overrides the file's.")
TOPOLOGY = flags.DEFINE_enum("topology", "v3-32", list(tpu_compile.TOPOLOGIES), "The slice.")
ALL = flags.DEFINE_bool("all", False, "Every experiment, as the rows of a table.")
JSON = flags.DEFINE_bool("json", False, "Print JSON.")
STABLEHLO = flags.DEFINE_string(
    "stablehlo",
    "",
    "Also write one core's step, without the sums over cores, for scripts/time_stablehlo.py.",
)


def main():
    if ALL.value:
        print(tpu_report.HEAD, flush=True)
        for path in sorted(tf.io.gfile.glob("gin/experiments/*.gin")):
            row = tpu_report.table_row(__file__, path, GIN.value, TOPOLOGY.value)
            print(row, flush=True)
        return
    if not GIN_FILE.value:
        raise InputError("give --gin_file, or --all for every experiment")
    experiment = config.load(Experiment, GIN_FILE.value, GIN.value)
    if STABLEHLO.value:
        cores = tpu_compile.TOPOLOGIES[TOPOLOGY.value].cores
        write_atomic(STABLEHLO.value, tpu_compile.portable(experiment, cores))
    report = tpu_report.report(experiment, TOPOLOGY.value)
    print(json.dumps(report) if JSON.value else tpu_report.text(report))


if __name__ == "__main__":
    runtime.run(main)
