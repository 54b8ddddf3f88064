"""The two ways in which a slice runs the training: TensorFlow's servers, and PJRT."""

import dataclasses
import shlex
from typing import ClassVar

from kmax_tf.errors import InputError
from kmax_tf.tools.launch.gcloud import TRIES, say
from kmax_tf.tools.launch.jobs import Code
from kmax_tf.tools.launch.machines import TpuSlice
from kmax_tf.tools.tpu_chips import Slice

# What the wheel for TPU asks for, and the stock wheel does not.
PINS = {
    "2.18.0": ["libtpu==2.18.0", "ml-dtypes<0.5"],
    "2.19.1": ["libtpu==0.0.10"],
    "2.20.0": ["libtpu==0.0.14"],
}
# cloud.google.com/tpu/docs/runtimes
IMAGES = {"v5e": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}


def python(tensorflow: str) -> str:
    """Returns the Python of the environment that scripts/setup_venv makes."""
    minor = tensorflow.rpartition(".")[0]
    return ".venv/bin/python" if minor == "2.20" else f".venv-{minor}/bin/python"


def setup_venv(tensorflow: str) -> str:
    """Returns the shell command that makes the environment with the stock TensorFlow."""
    return f"kmax_tf/scripts/setup_venv {tensorflow.rpartition('.')[0]}"


@dataclasses.dataclass(frozen=True)
class Servers:
    """TensorFlow's way, of v3 and v4: the hosts serve, and a program on worker 0 drives them."""

    name: str  # of the slice
    hosts: int
    tensorflow: str
    image: str
    workers: ClassVar[str] = "0"

    @property
    def device(self) -> str:
        """The --device of the programs."""
        return f"tpu:{self.name}"

    @property
    def client(self) -> list[str]:
        """The words before scripts/NAME.py."""
        variables = [f"TPU_NAME={self.name}", "TPU_LOAD_LIBRARY=0", "TF_USE_LEGACY_KERAS=1"]
        return ["env", *variables, python(self.tensorflow)]

    def set_up(self, machine: TpuSlice, code: Code) -> bool:
        """Installs the servers on all hosts, and the program on worker 0."""
        if not all(self._serve(machine, str(worker)) for worker in range(self.hosts)):
            return False
        say("installing on worker 0")
        pip = f"{python(self.tensorflow)} -m pip install --quiet"
        wheels = "https://storage.googleapis.com/libtpu-tf-releases/index.html"
        commands = [
            "set -e",
            "cd kmax_tf",
            f"{pip} {shlex.join(PINS[self.tensorflow])} --find-links={wheels}",
            # Last: whatever requires tensorflow would pull the stock wheel over it.
            f"{pip} --force-reinstall --no-deps tensorflow-tpu=={self.tensorflow}",
        ]
        environment = setup_venv(self.tensorflow)
        return code.install(machine, "0", environment) and machine.run(
            "\n".join(commands), "0", times=2
        )

    def _serve(self, machine, worker):
        """Names the container of the client's TensorFlow in a worker's service file."""
        unit = "/etc/systemd/system/tpu-runtime.service"
        interface = "pjrt" if "-pjrt" in self.image else "se"
        tag = f"grpc_tpu_worker:tf-{self.tensorflow}-{interface}"
        say(f"worker {worker} serves with {tag}")
        command = f"""set -e
if ! grep -q '{tag}"' {unit}; then
    sudo sed -i -E 's#(TF_DOCKER_URL=[^"]*/)[^/":]*:[^"]*#\\1{tag}#' {unit}
    sudo systemctl daemon-reload
    sudo systemctl restart tpu-runtime
fi
grep -q '{tag}"' {unit}"""
        return machine.run(command, worker, times=TRIES)


@dataclasses.dataclass(frozen=True)
class Pjrt:
    """The way of newer chips: each host runs the program, and JAX finds the others."""

    tensorflow: str
    image: str
    workers: ClassVar[str] = "all"
    device: ClassVar[str] = "pjrt"

    @property
    def client(self) -> list[str]:
        """The words before scripts/NAME.py."""
        return [python(self.tensorflow)]

    def set_up(self, machine: TpuSlice, code: Code) -> bool:
        """Installs the program on all hosts."""
        say("installing on all workers")
        # The images have Python 3.10, which is too old for JAX; uv brings a newer one.
        environment = python(self.tensorflow).partition("/")[0]
        commands = [
            "python3 -m venv uv",
            "uv/bin/pip install --quiet uv",
            f"uv/bin/uv venv --quiet --seed --python=3.12 kmax_tf/{environment}",
            setup_venv(self.tensorflow),
            "cd kmax_tf",
            f"{python(self.tensorflow)} -m pip install --quiet --editable '.[pjrt]' 'jax[tpu]'",
        ]
        return code.install(machine, self.workers, "\n".join(commands))


def choose(tpu: Slice, name: str, tensorflow: str, image: str) -> Servers | Pjrt:
    """Returns the way of a slice: TensorFlow's servers if there are such for its generation.

    Args:
        tpu: The slice.
        name: The name that the user gives it.
        tensorflow: Version of TensorFlow, or "" for the default.
        image: Software version of the hosts, or "" for the default.

    Raises:
        InputError: The version is unknown, or the slice has one host and TensorFlow's servers.
    """
    if tensorflow and tensorflow not in PINS:
        raise InputError(f"--tensorflow={tensorflow} is none of {', '.join(PINS)}")
    if tpu.generation in IMAGES:
        return Pjrt(tensorflow or "2.20.0", image or IMAGES[tpu.generation])
    hosts = tpu.cores // 8
    if hosts < 2:
        raise InputError(f"--accelerator={tpu.name} has one host; docs/train.md, 'One host'")
    return Servers(name, hosts, tensorflow or "2.18.0", image or "tpu-vm-tf-2.18.0-pod-se")
