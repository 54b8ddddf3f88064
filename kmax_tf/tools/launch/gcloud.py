"""Runs the commands of Google's command line, or prints them in a dry run."""

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable

POLL = float(os.environ.get("KMAX_POLL_SECONDS", "30"))  # between two looks at a machine
PATIENCE = 20  # looks in a row that a machine may leave unanswered


def show(text: str, *, is_error: bool = False) -> None:
    """Prints text; a terminal that is gone must not stop a deletion, or a training."""
    with contextlib.suppress(OSError, UnicodeError):
        print(text, file=sys.stderr if is_error else sys.stdout, flush=True)


def say(text: str) -> None:
    """Prints a line with the time of day."""
    show(f"[{time.strftime('%T')}] {text}")


def retry(times: int, command: Callable[[], bool]) -> bool:
    """Repeats a command that fails: machines refuse ssh in their first minutes."""
    for _ in range(times - 1):
        if command():
            return True
        say(f"again in {POLL:g} s")
        time.sleep(POLL)
    return command()


class Gcloud:
    """The command line for one zone of a project."""

    def __init__(self, zone: str, project: str, dry_run: bool):
        self.place = [f"--zone={zone}", f"--project={project}", "--quiet"]
        self.dry_run = dry_run

    def call(self, *words: str) -> bool:
        """Runs a command with its output shown, and returns whether it succeeded."""
        if self.dry_run:
            show(shlex.join(words))
            return True
        return subprocess.run(words).returncode == 0

    def ask(self, *words: str, dry: str) -> subprocess.CompletedProcess:
        """Runs a command and returns its output as text; a dry run takes `dry` for it."""
        if self.dry_run:
            show(shlex.join(words))
            return subprocess.CompletedProcess(words, 0, dry, "")
        # A log may be cut within a letter.
        return subprocess.run(words, capture_output=True, encoding="utf-8", errors="replace")

    def wait(self) -> None:
        """Waits until a machine is worth another look."""
        if not self.dry_run:
            time.sleep(POLL)
