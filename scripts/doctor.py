"""Runs `kmax doctor` in a clone."""

import sys

try:
    from kmax_tf.commands import run
except ModuleNotFoundError as missing:
    sys.exit(f"error: no package {missing.name} in {sys.executable}; run scripts/setup_venv")

if __name__ == "__main__":
    run("doctor")
