"""Runs `python -m kmax_tf.commands VERB`, where `kmax` is not on the path."""

from kmax_tf.commands import main

if __name__ == "__main__":
    main()
