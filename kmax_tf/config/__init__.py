"""The configuration: gin files and bindings become the parts of an experiment."""

from kmax_tf.config.loading import binding, bindings, load, resolved, sources

__all__ = ["binding", "bindings", "load", "resolved", "sources"]
