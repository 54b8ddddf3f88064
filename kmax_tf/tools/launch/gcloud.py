"""Runs the commands of Google's command line, or prints them in a dry run."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
import time

from kmax_tf.errors import InputError

POLL = float(os.environ.get("KMAX_POLL_SECONDS", "30"))  # between two looks at a machine
SSH_FAILED = 255  # exit status where ssh cannot connect, or loses the connection
TRIES = 10  # machines refuse ssh in their first minutes
PATIENCE = 20  # looks in a row that a machine may leave unanswered


def show(text: str, *, is_error: bool = False) -> None:
    """Prints text; a terminal that is gone must not stop a deletion, or a training."""
    with contextlib.suppress(OSError, UnicodeError):
        print(text, file=sys.stderr if is_error else sys.stdout, flush=True)


def say(text: str) -> None:
    """Prints a line with the time of day."""
    show(f"[{time.strftime('%T')}] {text}")


def reason(done: subprocess.CompletedProcess) -> str:
    """Returns what gcloud says of a command that failed, as one line."""
    return " ".join(done.stderr.split())


class Gcloud:
    """The command line for one zone of a project."""

    def __init__(self, zone: str, project: str, dry_run: bool):
        self.place = [f"--zone={zone}", f"--project={project}", "--quiet"]
        self.dry_run = dry_run

    def call(self, *words: str, times: int = 1) -> bool:
        """Runs a command with its output shown, and returns whether it succeeded.

        Args:
            words: The command.
            times: How often it is tried at most; `TRIES` times where ssh itself fails.
        """
        if self.dry_run:
            show(shlex.join(words))
            return True
        tried = 0
        while status := subprocess.run(words).returncode:
            tried += 1
            if tried >= (TRIES if status == SSH_FAILED else times):
                return False
            say(f"retry in {POLL:g} s")
            time.sleep(POLL)
        return True

    def ask(self, *words: str, dry: str) -> subprocess.CompletedProcess:
        """Runs a command and returns its output as text; a dry run takes `dry` for it."""
        if self.dry_run:
            show(shlex.join(words))
            return subprocess.CompletedProcess(words, 0, dry, "")
        # A log may be cut within a letter.
        return subprocess.run(words, capture_output=True, encoding="utf-8", errors="replace")

    def ls(self, pattern: str) -> list[str]:
        """Returns the paths on gs:// that match a pattern.

        Raises InputError with the reason of gcloud if they cannot be listed.
        """
        done = self.ask("gcloud", "storage", "ls", pattern, dry=pattern)
        if done.returncode and not re.search("matched no|not found", done.stderr, re.IGNORECASE):
            raise InputError(f"{pattern}: cannot be listed: {reason(done)}")
        return done.stdout.splitlines()

    def wait(self) -> None:
        """Waits until a machine is worth another look."""
        if not self.dry_run:
            time.sleep(POLL)
