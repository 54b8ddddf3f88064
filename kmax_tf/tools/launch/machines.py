"""The two machines that a run rents: the slice that trains, and the VM that evaluates."""

import re
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from kmax_tf.errors import InputError
from kmax_tf.tools.launch.gcloud import PATIENCE, POLL, Gcloud, say, show
from kmax_tf.tools.tpu_chips import Slice

# A connection that is lost ends instead of hanging.
PATIENT = ("--ssh-flag=-o ConnectTimeout=30", "--ssh-flag=-o ServerAliveInterval=15")


class Machine:
    """A machine that costs money while it exists."""

    kind = ""  # in messages
    ready = ""  # the state in which it can be used

    def __init__(self, gcloud: Gcloud, name: str):
        self.gcloud, self.name = gcloud, name
        self.dry_state = "absent"

    def creation(self) -> list[str]:
        """Returns the command that creates the machine."""
        raise NotImplementedError

    def deletion(self) -> list[str]:
        """Returns the command that deletes the machine."""
        raise NotImplementedError

    def ssh(self, command: str, workers: str) -> list[str]:
        """Returns the command that runs a shell command on workers: "0", another, or "all"."""
        raise NotImplementedError

    def copying(self, path: str, workers: str) -> list[str]:
        """Returns the command that copies a local file to the home folder of workers."""
        raise NotImplementedError

    def state(self) -> str:
        """Returns Google's word, "absent" if there is nothing, or "unknown" without an answer."""
        raise NotImplementedError

    def known_state(self) -> str:
        """Returns the state once Google Cloud tells it; raises Unreachable if it does not."""
        for _ in range(PATIENCE):
            if (state := self.state()) != "unknown":
                return state
            self.gcloud.wait()
        raise Unreachable(f"Google Cloud does not report the state of {self.name}")

    def create(self) -> bool:
        """Creates the machine, and returns whether that succeeded."""
        created = self.gcloud.call(*self.creation())
        if created:
            self.dry_state = self.ready
        return created

    def remove(self) -> bool:
        """Deletes the machine; if it may still be there, says so, and how to delete it."""
        for _ in range(3):
            say(f"deleting the {self.kind}")
            if self.gcloud.call(*self.deletion()):
                self.dry_state = "absent"
            else:
                time.sleep(POLL)
            if self.state() == "absent":
                return True
        self.warn()
        return False

    def warn(self) -> None:
        """Says how to delete a machine that may cost."""
        show(
            f"The {self.kind} may STILL RUN AND COST MONEY. Delete it:\n"
            f"    {shlex.join(self.deletion())}",
            is_error=True,
        )

    def run(self, command: str, workers: str, times: int = 1) -> bool:
        """Runs a shell command on workers, and returns whether it succeeded on all.

        Args:
            command: The shell command.
            workers: As in `ssh`.
            times: As in `Gcloud.call`.
        """
        return self.gcloud.call(*self.ssh(command, workers), times=times)

    def _described(self, *words, dry):
        done = self.gcloud.ask("gcloud", "compute", *words, *self.gcloud.place, dry=dry)
        if done.returncode == 0:
            return done.stdout.strip()
        if re.search("not.found", done.stderr, re.IGNORECASE):
            return "absent"
        show(done.stderr.strip(), is_error=True)
        return "unknown"


class TpuSlice(Machine):
    """A request of a slice, with the node of the same name that it becomes."""

    kind = "slice"
    ready = "ACTIVE"

    def __init__(self, gcloud: Gcloud, name: str, tpu: Slice, runtime: str, spot: bool):
        super().__init__(gcloud, name)
        self.tpu, self.runtime, self.spot = tpu, runtime, spot

    def creation(self) -> list[str]:
        return [
            *("gcloud", "compute", "tpus", "queued-resources", "create", self.name),
            *(f"--node-id={self.name}", *self.gcloud.place),
            f"--accelerator-type={self.tpu.accelerator_type}",
            f"--runtime-version={self.runtime}",
            "--scopes=https://www.googleapis.com/auth/cloud-platform",
            *(["--spot"] if self.spot else []),
        ]

    def deletion(self) -> list[str]:
        words = ["gcloud", "compute", "tpus", "queued-resources", "delete", self.name]
        return [*words, *self.gcloud.place, "--force"]

    def ssh(self, command: str, workers: str) -> list[str]:
        words = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", self.name, *self.gcloud.place]
        return [*words, f"--worker={workers}", *PATIENT, f"--command={command}"]

    def copying(self, path: str, workers: str) -> list[str]:
        words = ["gcloud", "compute", "tpus", "tpu-vm", "scp", path, f"{self.name}:"]
        return [*words, *self.gcloud.place, f"--worker={workers}"]

    def state(self) -> str:
        request = self._described(
            *("tpus", "queued-resources", "describe", self.name, "--format=value(state.state)"),
            dry=self.dry_state,
        )
        if request != "ACTIVE":
            return request
        # An active request may hold a node that is gone.
        node = self._described(
            *("tpus", "tpu-vm", "describe", self.name, "--format=value(state)"), dry="READY"
        )
        if node == "absent":
            return "TERMINATED"  # the request is still there, and has to be deleted
        return request if node == "READY" else node

    def explain(self) -> None:
        """Prints all that Google says about the request."""
        words = ["gcloud", "compute", "tpus", "queued-resources", "describe", self.name]
        self.gcloud.call(*words, *self.gcloud.place)


class EvaluatorVm(Machine):
    """The VM of the evaluator."""

    kind = "evaluator"
    ready = "RUNNING"

    def __init__(self, gcloud: Gcloud, name: str, machine_type: str):
        super().__init__(gcloud, name)
        self.machine_type = machine_type

    @property
    def has_gpu(self) -> bool:
        """Whether machines of this type have a GPU."""
        return self.machine_type.startswith(("g2-", "a2-", "a3-"))

    def creation(self) -> list[str]:
        return [
            *("gcloud", "compute", "instances", "create", self.name, *self.gcloud.place),
            f"--machine-type={self.machine_type}",
            *("--image-family=ubuntu-2204-lts", "--image-project=ubuntu-os-cloud"),
            "--boot-disk-size=100GB",
            "--maintenance-policy=TERMINATE",  # a VM with a GPU cannot be moved
            "--scopes=cloud-platform",
        ]

    def deletion(self) -> list[str]:
        return ["gcloud", "compute", "instances", "delete", self.name, *self.gcloud.place]

    def ssh(self, command: str, workers: str) -> list[str]:
        words = ["gcloud", "compute", "ssh", self.name, *self.gcloud.place]
        return [*words, *PATIENT, f"--command={command}"]

    def copying(self, path: str, workers: str) -> list[str]:
        return ["gcloud", "compute", "scp", path, f"{self.name}:", *self.gcloud.place]

    def state(self) -> str:
        return self._described(
            *("instances", "describe", self.name, "--format=value(status)"), dry=self.dry_state
        )


class Interrupted(SystemExit):
    """Ctrl-C, SIGTERM or a closed terminal."""


class Unreachable(InputError):
    """A machine does not answer, though its job may still run, or runs a job of somebody else."""


class Rental:
    """Takes care that each machine of a run is deleted at the end, or named.

    An interruption while `job_runs`, or an `Unreachable`, leaves the machines alone. What was never
    taken is left alone, too: an earlier command started it.

    Args:
        machines: All that the run may find or rent.
    """

    def __init__(self, machines: Sequence[Machine]) -> None:
        self.machines = machines
        self.taken: set[Machine] = set()
        self.job_runs = False
        self.failed = False  # a machine may still be there, or training went on unevaluated

    def take(self, machine: Machine) -> None:
        """Makes this program responsible for a machine that exists, or may exist soon."""
        self.taken.add(machine)

    def __enter__(self) -> "Rental":
        for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(kind) != signal.SIG_IGN:  # as nohup sets it
                signal.signal(kind, _interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        leave = isinstance(error, Unreachable)
        leave |= isinstance(error, Interrupted) and self.job_runs
        left = [machine for machine in self.machines if machine.state() != "absent"]
        if leave and left:
            say(_what_continues(left))
        for machine in left:
            if leave or machine not in self.taken:
                machine.warn()
                self.failed = True
            elif not machine.remove():
                self.failed = True
        if error is None and self.failed:
            sys.exit(1)


def _what_continues(left):
    """Returns what is said of machines whose jobs run on."""
    if any(isinstance(machine, TpuSlice) for machine in left):
        return "the job continues without this program; rerun the command to follow it"
    # The same command would rent a slice again.
    return "training is done, and the evaluator continues without this program"


def _interrupt(number: int, frame: Any) -> None:
    raise Interrupted(130)
