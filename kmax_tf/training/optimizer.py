"""AdamW with the official parameter groups (decay on kernels, a slower encoder), its schedule."""

from collections.abc import Sequence

import tensorflow as tf
import tf_keras

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7


class WarmupPolynomial(tf_keras.optimizers.schedules.LearningRateSchedule):
    """Linear from 0 over `warmup_steps`, then base * (1 - step / steps) ** 0.9.

    The decay counts from step 0, so it has begun when the warm-up ends (official code).
    """

    def __init__(self, base: float, warmup_steps: int, steps: int):
        self.base, self.warmup_steps, self.steps = base, warmup_steps, steps

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """step: integer scalar, from 0; returns the rate, float32 scalar."""
        step = tf.cast(step, tf.float32)
        warm = self.base * step / max(self.warmup_steps, 1)
        decayed = self.base * tf.maximum(1 - step / self.steps, 0.0) ** 0.9
        return tf.where(step < self.warmup_steps, warm, decayed)

    def get_config(self) -> dict:
        return {"base": self.base, "warmup_steps": self.warmup_steps, "steps": self.steps}


class AdamW(tf_keras.optimizers.Optimizer):
    """Adam with decoupled weight decay on kernels, and a lower learning rate for the encoder.

    Args:
        steps: length of the schedule.
        learning_rate: the rate at the end of the warm-up.
        warmup_steps: length of the warm-up.
        weight_decay: factor of the learning rate, for every variable whose name ends in "kernel".
        encoder_multiplier: factor of the pixel encoder's learning rate, and so of its decay.
    """

    def __init__(
        self,
        steps: int,
        learning_rate: float = 5e-4,
        warmup_steps: int = 5000,
        weight_decay: float = 0.05,
        encoder_multiplier: float = 0.1,
    ):
        # The base class has a decay of its own: its default, 0, costs as much as any other.
        super().__init__(name="AdamW", weight_decay=None, jit_compile=False)
        self.schedule = WarmupPolynomial(learning_rate, warmup_steps, steps)
        self._learning_rate = self._build_learning_rate(self.schedule)
        self.decay, self.encoder_multiplier = weight_decay, encoder_multiplier

    def build_for(self, model: tf_keras.Model) -> None:
        """Creates the moments of the model's trainable variables."""
        encoder = {v.ref() for v in model.pixel_encoder.trainable_variables}
        self._trained = variables = model.trainable_variables
        super().build(variables)
        self._multipliers = [
            self.encoder_multiplier if v.ref() in encoder else 1.0 for v in variables
        ]
        self._decays = [self.decay if v.name.endswith("kernel:0") else 0.0 for v in variables]
        self._first, self._second = (
            [self.add_variable_from_reference(v, name) for v in variables] for name in ("m", "v")
        )

    @property
    def moments(self) -> list[tf.Variable]:
        """The first moment of each trained variable, then the second."""
        return self._first + self._second

    def apply(self, gradients: Sequence[tf.Tensor], finite: tf.Tensor) -> None:
        """Takes one step with the gradients of `model.trainable_variables`, summed over replicas.

        Each gradient has its variable's shape. If `finite` (bool scalar) is false, weights and
        moments do not change.
        """
        step = tf.cast(self.iterations + 1, tf.float32)
        enabled = tf.cast(finite, tf.float32)
        self._scalars = dict(
            beta1_power=BETA_1**step,
            beta2_power=BETA_2**step,
            beta1=tf.where(finite, BETA_1, 1.0),
            beta2=tf.where(finite, BETA_2, 1.0),
            epsilon=EPSILON,
        )
        # The schedule itself: the variable `learning_rate` still holds the last step's rate.
        rate = self.schedule(self.iterations) * enabled
        self._rates = {m: rate * m for m in set(self._multipliers)}
        gradients = [tf.where(finite, g, tf.zeros_like(g)) for g in gradients]
        self.apply_gradients(
            zip(gradients, self._trained, strict=True), skip_gradients_aggregation=True
        )

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Decays, then applies Adam with epsilon added to the uncorrected root."""
        i = self._index_dict[self._var_key(variable)]
        rate = self._rates[self._multipliers[i]]
        if self._decays[i]:
            variable.assign_sub(variable * (rate * self._decays[i]))
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._first[i].handle,
            v=self._second[i].handle,
            lr=rate,
            grad=gradient,
            **self._scalars,
        )


def clip(gradients: Sequence[tf.Tensor], clip_norm: float) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Scales gradients to a global norm of at most `clip_norm`; also returns their old norm."""
    norm = tf.linalg.global_norm(gradients)
    scale = tf.minimum(1.0, clip_norm / norm)
    return [g * scale for g in gradients], norm
