"""Runs `kmax study` in a clone."""

from kmax_tf.commands import run

if __name__ == "__main__":
    run("study")
