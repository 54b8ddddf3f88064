"""Trains and evaluates on rented machines, and rents again after a preemption."""

import os
import shlex
import time
from collections.abc import Sequence

from kmax_tf.errors import InputError
from kmax_tf.tools.launch import runtimes
from kmax_tf.tools.launch.gcloud import PATIENCE, POLL, say
from kmax_tf.tools.launch.jobs import APT_GET, Code, Job, Progress
from kmax_tf.tools.launch.machines import EvaluatorVm, Rental, TpuSlice, Unreachable

HOUR = float(os.environ.get("KMAX_HOUR_SECONDS", "3600"))  # between two lines while it waits
# Seconds: training prints a line a minute, and compiles in less than an hour.
SILENCE = float(os.environ.get("KMAX_SILENCE_SECONDS", "10800"))
GONE = ("SUSPENDED", "PREEMPTED", "TERMINATED", "STOPPED")
# Nothing runs on a slice in these states.
IDLE = ("absent", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "CREATING", "FAILED", *GONE)


class Evaluation:
    """The evaluator on its VM."""

    def __init__(self, machine: EvaluatorVm, code: Code, tensorflow: str, run_dir: str):
        self.machine, self.code = machine, code
        self.tensorflow, self.run_dir = tensorflow, run_dir
        self.job = Job("evaluate", machine, run_dir)
        failure = "the evaluator stopped twice without evaluating"
        self.progress = Progress(self.job, "eval/metrics-*.json", failure)
        self.remedy = f"it can run anywhere: scripts/evaluate.py --run_dir={run_dir}"

    def ensure(self, rental: Rental) -> bool:
        """Creates the VM and starts the evaluator, unless it runs, has finished, or stops in vain.

        Raises Unreachable if it may run, but Google Cloud does not say.
        """
        state = self.machine.known_state()
        if state == "RUNNING" and self.job.follow() in ("running", "finished", "unknown"):
            rental.take(self.machine)
            return True  # a VM that does not answer now may be evaluating
        try:
            if self.job.state == "stopped":
                self.progress.check()
            _ = self.code.bundle  # or what is not committed would cost first
        except InputError as error:
            say(str(error))
            return False
        rental.take(self.machine)
        if state == "absent":
            say(f"creating {self.machine.machine_type} as {self.machine.name}")
            if not self.machine.create():
                return False
        say(f"installing on {self.machine.name}")
        environment = runtimes.setup_venv(self.tensorflow)
        if not self.code.install(self.machine, "0", environment) or not self._install_gpu():
            return False
        python = runtimes.python(self.tensorflow)
        words = [python, "scripts/evaluate.py", f"--run_dir={self.run_dir}"]
        return self.job.start([*words, "--order=newest", "--wait=inf"])

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

        Raises InputError if that fails, or if the evaluator itself only waits for hours;
        Unreachable if the VM does not answer.
        """
        say("training is done; waiting for the evaluator")
        missed, hours, told = 0, 0, time.monotonic()
        while self.job.follow() in ("running", "unknown"):
            missed = missed + 1 if self.job.state == "unknown" else 0
            if missed > PATIENCE:
                raise Unreachable("the evaluator does not answer")
            # It is silent while it evaluates, also for hours; run_folder/watch.py says if it waits.
            if not self.job.line.startswith("waiting for "):
                hours = 0
            if time.monotonic() - told >= HOUR:
                hours, told = hours + 1, time.monotonic()
                say(f"the evaluator's log ends with: {self.job.line}")
            if hours == 3:
                raise InputError(
                    f"{self.run_dir}: the evaluator has waited for hours, though training is done;"
                    f" its log is above, as evaluate: ...; {self.remedy}"
                )
            time.sleep(POLL)
        if self.job.state != "finished":
            raise InputError(f"the evaluator failed (error above); {self.remedy}")


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
        self.installed = False  # by this program
        failure = "training stopped twice without saving"
        self.progress = Progress(self.job, "checkpoints/*.index", failure)

    def run(self, rental: Rental, evaluation: Evaluation | None) -> Evaluation | None:
        """Trains to the end.

        Returns:
            The evaluation, or None if it does not run.

        Raises:
            InputError: A step failed, or training ended with an error.
        """
        while self.job.state != "finished":
            self._rent(rental)
            self._ensure_job(rental)
            rental.job_runs = True
            evaluation = self._evaluate(rental, evaluation)
            evaluation = self._watch(rental, evaluation)
        rental.job_runs = False
        return evaluation

    def _evaluate(self, rental, evaluation):
        """Returns the evaluation, which runs now, or None: then its VM is deleted."""
        if not evaluation or (not evaluation.job.is_broken and evaluation.ensure(rental)):
            return evaluation
        why = "the evaluator is not running, see above: training continues without it"
        say(f"{why}; {evaluation.remedy}")
        evaluation.machine.remove()
        rental.failed = True
        return None

    def _rent(self, rental):
        """Requests the slice if there is none, and waits until it can be used.

        One that was never seen idle may be training, so an interruption leaves it alone.
        """
        before = ""
        while (now := self.machine.known_state()) != "ACTIVE":
            rental.job_runs = now not in IDLE
            rental.take(self.machine)
            if now != before:
                say(f"slice {self.machine.name}: {now}")
            before = now
            if now == "absent":
                self._request()
            elif now == "FAILED":
                self._give_up()
            elif now in GONE:
                say(f"slice {self.machine.name} was preempted")
                if not self.machine.remove():
                    raise InputError("the preempted slice cannot be deleted")
            self.machine.gcloud.wait()
        rental.job_runs = before not in IDLE
        rental.take(self.machine)

    def _request(self):
        """Requests the slice."""
        _ = self.code.bundle  # or what is not committed would cost first
        say(f"requesting {self.machine.tpu.name} as {self.machine.name}")
        if not self.machine.create():
            raise InputError("the slice request failed; see the gcloud message above")

    def _give_up(self):
        """Explains a request that failed."""
        self.machine.explain()
        raise InputError(
            f"the request for {self.machine.tpu.name} failed; check quota, zone and --runtime"
            " (the versions: gcloud compute tpus versions list"
            f" {self.machine.gcloud.place[0]})"
        )

    def _ensure_job(self, rental):
        """Starts the training with the present code, unless it runs or has finished."""
        for _ in range(PATIENCE):
            if (state := self.job.follow()) != "unknown":
                break
            self.machine.gcloud.wait()
        if state == "unknown" and rental.job_runs:
            raise Unreachable("worker 0 does not answer")
        if state in ("running", "finished"):
            return
        rental.job_runs = False
        if state != "stopped" or not self.installed:
            if not self.runtime.set_up(self.machine, self.code):
                raise InputError("slice setup failed; see the reason above")
            words = [*self.runtime.client, "scripts/doctor.py", *self.flags]
            # Twice, as its storage may not answer for a moment.
            if not self.machine.run(f"cd kmax_tf && {shlex.join(words)}", "0", times=2):
                raise InputError("kmax doctor found problems; see above")
            self.installed = True
        words = [*self.runtime.client, "scripts/train.py", *self.flags]
        if not self.job.start(words):
            raise InputError("training did not start; see the reason above")

    def _watch(self, rental, evaluation):
        """Follows training until it is done, or has to be started again; returns the evaluation."""
        missed, self.job.heard = 0, time.monotonic()
        while (state := self.job.follow()) != "finished":
            if state == "failed":
                raise InputError(
                    "training failed (error above); the run folder keeps what it saved"
                )
            if state == "running" and time.monotonic() - self.job.heard > SILENCE:
                raise InputError(
                    f"training has said nothing for hours (last line: {self.job.line or 'none'});"
                    " the run folder keeps what it saved, and the same command resumes"
                )
            missed = missed + 1 if state == "unknown" else 0
            if state != "running" and self._stopped(missed):
                break
            time.sleep(POLL)
            if evaluation and evaluation.job.follow() in ("failed", "absent", "stopped"):
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
            if self.job.is_broken:
                raise InputError(
                    f"training ended {self.job.seconds} s after its start; its last lines are above"
                )
            self.progress.check()
            say("training stopped; it continues from its newest checkpoint")
            return True
        if missed > PATIENCE:
            raise Unreachable("worker 0 does not answer")
        return False
