"""Trains and evaluates on rented machines, and rents again after a preemption."""

import os
import shlex
import time
from collections.abc import Sequence

from kmax_tf.errors import InputError
from kmax_tf.tools.launch import runtimes
from kmax_tf.tools.launch.gcloud import PATIENCE, POLL, say
from kmax_tf.tools.launch.jobs import APT_GET, Code, Job
from kmax_tf.tools.launch.machines import EvaluatorVm, Rental, TpuSlice, Unreachable

# A training that ends sooner is not started again.
SETTLED = float(os.environ.get("KMAX_SETTLED_SECONDS", "600"))
GONE = ("SUSPENDED", "PREEMPTED", "TERMINATED", "STOPPED")


class Evaluation:
    """The evaluator on its VM."""

    def __init__(self, machine: EvaluatorVm, code: Code, tensorflow: str, run_dir: str):
        self.machine, self.code = machine, code
        self.tensorflow, self.run_dir = tensorflow, run_dir
        self.job = Job("evaluate", machine, run_dir)

    def ensure(self, rental: Rental) -> bool:
        """Creates the VM and starts the evaluator, unless it runs or has finished.

        Raises Unreachable if it may run, but Google Cloud does not say.
        """
        state = self._known_state()
        if state == "RUNNING" and self.job.follow() in ("running", "finished", "unknown"):
            rental.take(self.machine)
            return True  # a VM that does not answer now may be evaluating
        try:
            _ = self.code.bundle  # or what is not committed would cost first
        except InputError as error:
            say(str(error))
            return False
        if state == "absent":
            say(f"creating {self.machine.machine_type} as {self.machine.name}")
            rental.take(self.machine)
            if not self.machine.create():
                return False
        rental.take(self.machine)
        say(f"installing on {self.machine.name}")
        environment = runtimes.setup_venv(self.tensorflow)
        if not self.code.install(self.machine, "0", environment) or not self._install_gpu():
            return False
        python = runtimes.python(self.tensorflow)
        words = [python, "scripts/evaluate.py", f"--run_dir={self.run_dir}"]
        return self.job.start([*words, "--order=newest", "--wait=inf"])

    def _known_state(self):
        """Returns the state of the VM, once Google Cloud tells it."""
        for _ in range(PATIENCE):
            if (state := self.machine.state()) != "unknown":
                return state
            self.machine.gcloud.wait()
        raise Unreachable(f"Google Cloud does not say what {self.machine.name} is doing")

    def _install_gpu(self):
        """Installs the driver and libraries of a GPU, if the VM has one."""
        if not self.machine.has_gpu:
            return True
        python, minor = runtimes.python(self.tensorflow), self.tensorflow.rpartition(".")[0]
        commands = [
            "set -e",
            f"{APT_GET} install -q -y ubuntu-drivers-common",
            "sudo ubuntu-drivers install --gpgpu",
            "sudo modprobe nvidia",
            "cd kmax_tf",
            f"{python} -m pip install --quiet 'tensorflow[and-cuda]=={minor}.*'",
        ]
        return self.machine.run("\n".join(commands), "0")

    def wait(self) -> None:
        """Waits until the last checkpoint is evaluated.

        Raises InputError if that fails, Unreachable if the VM does not answer.
        """
        missed = 0
        while self.job.follow() in ("running", "unknown"):
            missed = missed + 1 if self.job.state == "unknown" else 0
            if missed > PATIENCE:
                raise Unreachable("the evaluator does not answer")
            time.sleep(POLL)
        if self.job.state != "finished":
            raise InputError(
                "the evaluator ended with the error above; it can run anywhere:"
                f" scripts/evaluate.py --run_dir={self.run_dir}"
            )


class Training:
    """The training on its slice.

    Args:
        machine: The slice.
        code: The committed code.
        runtime: How the slice runs the training.
        flags: The experiment, for `kmax train` and `kmax doctor`.
        run_dir: The run folder.
    """

    def __init__(
        self,
        machine: TpuSlice,
        code: Code,
        runtime: runtimes.Servers | runtimes.Pjrt,
        flags: Sequence[str],
        run_dir: str,
    ):
        self.machine, self.code, self.runtime = machine, code, runtime
        self.flags = [*flags, f"--run_dir={run_dir}", f"--device={runtime.device}"]
        self.job = Job("train", machine, run_dir, runtime.workers)

    def run(self, rental: Rental, evaluation: Evaluation | None) -> Evaluation | None:
        """Trains to the end.

        Returns:
            The evaluation, or None if it did not start.

        Raises:
            InputError: A step failed, or training ended with an error.
        """
        while self.job.state != "finished":
            rental.job_runs = False
            self._rent(rental)
            self._ensure_job(rental)
            rental.job_runs = True
            evaluation = self._evaluate(rental, evaluation)
            evaluation = self._watch(rental, evaluation)
        rental.job_runs = False
        return evaluation

    def _evaluate(self, rental, evaluation):
        """Returns the evaluation, which runs now, or None."""
        if not evaluation or evaluation.ensure(rental):
            return evaluation
        say("the evaluator did not start; training continues without it")
        evaluation.machine.remove()
        rental.failed = True
        return None

    def _rent(self, rental):
        """Requests the slice if there is none, and waits until it can be used.

        One that is there at the first look may be training, so an interruption leaves it alone.
        """
        before, missed = "", 0
        while (now := self.machine.state()) != "ACTIVE":
            if now != before:
                say(f"slice {self.machine.name}: {now}")
            before = now
            missed = missed + 1 if now == "unknown" else 0
            if now == "unknown":
                if missed > PATIENCE:
                    self.machine.warn()
                    raise InputError(f"Google Cloud does not say what {self.machine.name} is doing")
            elif now == "absent":
                self._request(rental)
            elif now == "FAILED":
                self._give_up(rental)
            elif now in GONE:
                rental.take(self.machine)
                say(f"slice {self.machine.name} was preempted")
                if not self.machine.remove():
                    raise InputError("the preempted slice cannot be deleted")
            self.machine.gcloud.wait()
        rental.job_runs = before in ("", "unknown")
        rental.take(self.machine)

    def _request(self, rental):
        """Requests the slice."""
        _ = self.code.bundle  # or what is not committed would cost first
        say(f"requesting {self.machine.tpu.name} as {self.machine.name}")
        rental.take(self.machine)
        if not self.machine.create():
            raise InputError("the slice cannot be requested; the message of gcloud is above")

    def _give_up(self, rental):
        """Explains a request that failed."""
        rental.take(self.machine)
        self.machine.explain()
        raise InputError(
            f"the request for {self.machine.tpu.name} failed; look at quota, zone and --runtime"
            " (the versions: gcloud compute tpus versions list"
            f" {self.machine.gcloud.place[0]})"
        )

    def _ensure_job(self, rental):
        """Starts the training, unless it runs or has finished; installs it if it never ran."""
        for _ in range(PATIENCE):
            if (state := self.job.follow()) != "unknown":
                break
            self.machine.gcloud.wait()
        if state == "unknown" and rental.job_runs:
            raise Unreachable("worker 0 does not answer")
        rental.job_runs &= state in ("running", "finished")
        if state in ("absent", "failed", "unknown"):
            if not self.runtime.set_up(self.machine, self.code):
                raise InputError("the slice cannot be set up; the reason is above")
            words = [*self.runtime.client, "scripts/doctor.py", *self.flags]
            if not self.machine.run(f"cd kmax_tf && {shlex.join(words)}", "0"):
                raise InputError("the doctor found the problems above")
        if state not in ("running", "finished"):
            words = [*self.runtime.client, "scripts/train.py", *self.flags]
            if not self.job.start(words):
                raise InputError("training cannot be started; the reason is above")

    def _watch(self, rental, evaluation):
        """Follows training until it is done, or has to be started again; returns the evaluation."""
        missed = 0
        while (state := self.job.follow()) != "finished":
            if state == "failed":
                raise InputError(
                    "training ended with the error above; the run folder has what it saved"
                )
            missed = missed + 1 if state == "unknown" else 0
            if state != "running" and self._stopped(missed):
                break
            time.sleep(POLL)
            stopped = evaluation and evaluation.job.follow() == "stopped"
            if stopped and evaluation.job.seconds >= SETTLED:  # as after a restart of its VM
                evaluation = self._evaluate(rental, evaluation)
        return evaluation

    def _stopped(self, missed):
        """Returns whether a training that does not run has to be started again."""
        time.sleep(POLL)
        place = self.machine.state()
        if place not in ("ACTIVE", "unknown"):
            name = self.machine.name
            say(f"slice {name}: {place}; training continues from its newest checkpoint")
            return True
        if self.job.state in ("absent", "stopped"):
            if self.job.seconds < SETTLED:
                raise InputError(
                    f"training ended {self.job.seconds} s after its start; its last lines are above"
                )
            say("training stopped; it continues from its newest checkpoint")
            return True
        if missed > PATIENCE:
            raise Unreachable("worker 0 does not answer")
        return False
