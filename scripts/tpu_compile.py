"""Compiles the core of an experiment's training step with the TPU compiler, without a TPU.

scripts/tpu_compile.py --gin_file=gin/experiments/coco_resnet50.gin --topology=v3-32
"""

import json

from absl import flags

from kmax_tf import config, runtime
from kmax_tf.experiment import Experiment
from kmax_tf.tools import tpu_compile

GIN_FILE = flags.DEFINE_string("gin_file", None, "The experiment.", required=True)
GIN = flags.DEFINE_multi_string("gin", [], "A binding that overrides the file's.")
TOPOLOGY = flags.DEFINE_string("topology", "v3-32", "v3-8 or v3-32.")
CORE_BATCH = flags.DEFINE_integer("core_batch", 2, "Images a core.", 1)
JSON = flags.DEFINE_bool("json", False, "Print JSON.")


def main():
    experiment = config.load(Experiment, GIN_FILE.value, GIN.value)
    function, specs = tpu_compile.step_function(experiment, CORE_BATCH.value)
    compiled = tpu_compile.compile_for_tpu(function, specs, TOPOLOGY.value)
    if JSON.value:
        print(json.dumps(compiled._asdict()))
        return
    for name, value in compiled._asdict().items():
        print(f"{name:20} {value:.4g}")


if __name__ == "__main__":
    runtime.run(main)
