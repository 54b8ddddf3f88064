"""Runs `kmax doctor` in a clone."""

import sys

if __name__ == "__main__":
    try:
        from kmax_tf.commands import run

        run("doctor")
    except ModuleNotFoundError as missing:
        sys.exit(f"error: no package {missing.name} in {sys.executable}; run scripts/setup_venv")
