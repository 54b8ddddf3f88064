"""The strategy of one replica among many, in a program that XLA compiles for all of them."""

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops
from tensorflow.python.distribute import one_device_strategy


class ReplicaStrategy(tf.distribute.Strategy):
    """Traces the program of one of many replicas, with the collective operations of XLA.

    Args:
        replicas: replicas of all processes together.
        process: number of this process; the first one writes.
        processes: number of processes, each with as many replicas.
    """

    def __init__(self, replicas: int, process: int = 0, processes: int = 1):
        super().__init__(_Replica(self, replicas, process, processes))

    def sum_of_processes(self, value: Any) -> Any:
        """Sums a number or array over the processes; each of them must call it."""
        return value


class _Replica(one_device_strategy.OneDeviceExtended):
    def __init__(self, strategy, replicas, process, processes):
        super().__init__(strategy, "/cpu:0")
        self.replicas, self.process, self.processes = replicas, process, processes

    @property
    def _num_replicas_in_sync(self):
        return self.replicas

    @property
    def should_checkpoint(self):
        return self.process == 0

    @property
    def should_save_summary(self):
        return self.process == 0

    def _distribute_datasets_from_function(self, dataset_fn, options):
        context = tf.distribute.InputContext(self.processes, self.process, self.replicas)
        return dataset_fn(context)

    def _call_for_each_replica(self, fn, args, kwargs):
        number = gen_xla_ops.xla_replica_id() if self.replicas > 1 else 0
        with tf.distribute.ReplicaContext(self._container_strategy(), number):
            return fn(*args, **kwargs)

    def _use_merge_call(self):
        return False  # replicas meet in `_replica_ctx_all_reduce`

    def _replica_ctx_all_reduce(self, reduce_op, value, options=None):
        if self.replicas == 1:
            return value
        mean = reduce_op == tf.distribute.ReduceOp.MEAN
        group = tf.constant(np.arange(self.replicas)[None], tf.int32)

        def reduce(x):
            x = gen_xla_ops.xla_all_reduce(x, group, reduce_op="Add", mode="CrossReplica")
            return x / self.replicas if mean else x

        return tf.nest.map_structure(reduce, value)
