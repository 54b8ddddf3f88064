"""Jobs on rented machines: programs that outlive the connection which starts them."""

import functools
import os
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Sequence

from kmax_tf.errors import InputError
from kmax_tf.tools.launch.gcloud import TRIES, Gcloud, say, show
from kmax_tf.tools.launch.machines import Machine, Unreachable

# A job that ends sooner after its start, in seconds, is not started again.
SETTLED = float(os.environ.get("KMAX_SETTLED_SECONDS", "600"))
# "Start me again", of training/preemption.py: that one needs TensorFlow.
RESTART = "75"
UNLISTED = 3  # stops in a row after which the job's files cannot be listed
APT_GET = "sudo apt-get -o DPkg::Lock::Timeout=300"
# What a machine is asked about a job: how it is ("stopped" with its seconds and exit status), and
# its new log.
QUESTION = r"""
of=$(cat JOB.of 2> /dev/null || echo RUN_DIR)
if grep -qsa scripts/JOB.py "/proc/$(cat JOB.pid 2> /dev/null)/cmdline"; then
    if [ "$of" = RUN_DIR ]; then echo running; else echo "of $of"; fi
elif [ "$of" != RUN_DIR ]; then
    echo absent
elif grep -qsx 0 JOB.exit; then
    echo finished
elif ! grep -qsx RESTART JOB.exit &&
    tail -n 1 JOB.log 2> /dev/null | tr '\r' '\n' | tail -n 1 | grep -q '^error:'; then
    echo failed
elif [ -e JOB.pid ]; then
    end=$(stat -c %Y JOB.exit 2> /dev/null || date +%s)
    echo stopped $((end - $(stat -c %Y JOB.pid))) $(cat JOB.exit 2> /dev/null)
else
    echo absent
fi
if [ -e JOB.log ]; then
    seen=$(cat JOB.seen 2> /dev/null || echo 0)
    size=$(stat -c %s JOB.log)
    tail -c +$((seen + 1)) JOB.log | head -c $((size - seen)) | tr '\r' '\n'
    echo $size > JOB.seen
fi
"""
# Ends what an earlier start left on a worker: it would keep the chips.
CLEAN = r"""if grep -qsa scripts/JOB.py "/proc/$(cat JOB.pid 2> /dev/null)/cmdline"; then
    kill -9 -- "-$(cat JOB.pid)"
fi
rm -f JOB.exit JOB.pid
"""


class Code:
    """The committed code, in one file: what ran can be told from its revision."""

    def __init__(self, gcloud: Gcloud):
        self.gcloud = gcloud
        self._folder = tempfile.TemporaryDirectory()

    @functools.cached_property
    def bundle(self) -> str:
        """The path of the file; raises InputError if something is not committed."""
        status = subprocess.run(["git", "status", "--short"], capture_output=True, text=True).stdout
        if status and not self.gcloud.dry_run:
            show(status.rstrip(), is_error=True)
            raise InputError("the files above are not committed; commit them first")
        path = os.path.join(self._folder.name, "kmax_tf.bundle")
        if not self.gcloud.call("git", "bundle", "create", "--quiet", path, "HEAD"):
            raise InputError("git bundle failed; see its message above")
        return path

    def install(self, machine: Machine, workers: str, environment: str) -> bool:
        """Copies the code to workers of a machine, and makes its Python environment there.

        Args:
            machine: The machine.
            workers: As in `Machine.ssh`.
            environment: The shell commands that make the environment.
        """
        commands = [
            "set -e",
            f"{APT_GET} update -q",
            f"{APT_GET} install -q -y git python3-venv",
            "rm -rf kmax_tf",
            "git -c advice.detachedHead=false clone --quiet kmax_tf.bundle kmax_tf",
            environment,
        ]
        return (
            machine.run("true", workers, times=TRIES)
            and self.gcloud.call(*machine.copying(self.bundle, workers))
            and machine.run("\n".join(commands), workers, times=2)
        )


class Job:
    """A job: scripts/NAME.py on a machine.

    Its files in the home folder:
      - NAME.pid: the number of its process, from its start on;
      - NAME.of: the run folder;
      - NAME.log, and NAME.seen: how many bytes of the log were shown;
      - NAME.exit: the exit status.

    Attributes:
        state: "running", "finished", "failed" (with an error of its own), "stopped", "absent", or
            "unknown" if the machine does not answer.
        seconds: How long a stopped job ran.
        status: The exit status of a stopped job, "" if it could not write one.
        line: The last line of its log that was shown.
        heard: When that was, or when following began, by time.monotonic().
    """

    def __init__(self, name: str, machine: Machine, run_dir: str, workers: str = "0"):
        self.name, self.machine, self.workers = name, machine, workers
        self.run_dir = run_dir
        self.state, self.seconds, self.status = "", 0, ""
        self.line, self.heard = "", time.monotonic()
        self.dry_state = "absent"

    @property
    def is_broken(self) -> bool:
        """Whether it ended such that it would end so again."""
        ended = self.state in ("absent", "stopped") and self.status != RESTART
        return self.state == "failed" or (ended and self.seconds < SETTLED)

    def start(self, command: Sequence[str]) -> bool:
        """Starts a command in the folder of the code, on all workers of the job."""
        say(f"starting: {shlex.join(command)}")
        # The job writes its own number, as bash. While a process becomes setsid, nohup and bash, it
        # has no command line, and would be taken for stopped.
        line = f"echo $$ > ~/{self.name}.pid; cd kmax_tf && {shlex.join(command)}"
        line = shlex.quote(f"{line} >> ~/{self.name}.log 2>&1; echo $? > ~/{self.name}.exit")
        started = self.machine.run(
            f"{CLEAN.replace('JOB', self.name)}"
            f"echo {shlex.quote(self.run_dir)} > {self.name}.of\n"
            f"setsid nohup bash -c {line} < /dev/null > /dev/null 2>&1 &\n"
            f"for _ in $(seq 100); do [ -s {self.name}.pid ] && exit; sleep 0.1; done; exit 1",
            self.workers,
        )
        if started:
            self.state, self.seconds, self.dry_state = "running", 0, "finished"
        return started

    def follow(self) -> str:
        """Returns the new state, by the first worker, and prints what is new in its log.

        Raises Unreachable if the job of another run folder is running.
        """
        question = QUESTION.strip().replace("JOB", self.name).replace("RESTART", RESTART)
        question = question.replace("RUN_DIR", shlex.quote(self.run_dir))
        done = self.machine.gcloud.ask(*self.machine.ssh(question, "0"), dry=self.dry_state)
        if done.stderr:
            show(done.stderr.strip(), is_error=True)
        answer = done.stdout if done.returncode == 0 else ""
        state, *log = answer.splitlines() or ["unknown"]
        for line in filter(None, log):
            show(f"{self.name}: {line}")
            self.line, self.heard = line, time.monotonic()
        if other := re.fullmatch("of (.*)", state):
            raise Unreachable(
                f"{self.machine.name}: runs the job {self.name} of {other[1]}; choose another"
                " --name, or delete the machine first"
            )
        stopped = re.fullmatch(r"stopped (\d+) ?(\d*)", state)
        self.state = "stopped" if stopped else state
        self.seconds, self.status = (int(stopped[1]), stopped[2]) if stopped else (0, "")
        return self.state


class Progress:
    """What a job adds to its run folder between two stops.

    Args:
        job: The job.
        pattern: The files that it adds, below the run folder.
        failure: What is said of a job that stopped twice and added none between.
    """

    def __init__(self, job: Job, pattern: str, failure: str):
        self.job, self.pattern, self.failure = job, pattern, failure
        self.files: list[str] | None = None  # when they were listed last
        self.unlisted = 0  # stops in a row

    def check(self) -> None:
        """Looks for new files; call it once for each stop.

        Raises InputError if there are none, or if `UNLISTED` times in a row nobody can tell.
        """
        run_dir, before = self.job.run_dir, self.files
        remedy = "fix the cause and rerun the command"
        try:
            self.files = self.job.machine.gcloud.ls(os.path.join(run_dir, self.pattern))
        except InputError as error:
            self.unlisted += 1
            if self.unlisted == UNLISTED:
                raise InputError(f"{error}; {remedy}") from error
            say(str(error))
            return
        self.unlisted = 0
        if self.files == before:
            raise InputError(
                f"{run_dir}: {self.failure}, its log is above as {self.job.name}: ...; {remedy}"
            )
