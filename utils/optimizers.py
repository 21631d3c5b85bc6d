"""Optimisers: Adam, SGD as PyTorch defines it, and Muon for convolutions."""

import keras
from keras import ops

WARM_UP, START = 0.3, 1 / 25
"""Of one cycle: the share of steps in which the rate rises, and the share of its peak at first."""


def one_cycle(
    learning_rate: float, total_steps: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Linear warm-up from 1/25 of the rate over the first three tenths, then cosine to 0."""
    warmup = max(1, round(WARM_UP * total_steps))
    return keras.optimizers.schedules.CosineDecay(
        START * learning_rate,
        decay_steps=max(1, total_steps - warmup),
        warmup_target=learning_rate,
        warmup_steps=warmup,
    )


def step_schedule(
    learning_rate: float, total_steps: int, drops: tuple[float, ...], factor: float
) -> keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate, times factor from each of some shares of all steps on."""
    # Keras gives the earlier value up to and including a boundary, steps counting from 0.
    boundaries = [round(drop * total_steps) - 1 for drop in drops]
    values = [learning_rate * factor**i for i in range(len(drops) + 1)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)


class _OneReplica:
    """An optimiser whose gradients are not summed over replicas, since there is one.

    Keras sums them, on TensorFlow, by a custom gradient, which TensorFlow registers for good, and
    with it the graph of the training step: 15 to 25 MB that every fit would leave behind.
    """

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return list(grads_and_vars)


class Adam(_OneReplica, keras.optimizers.Adam):
    """keras.optimizers.Adam, which a process may use any number of times."""


class SGD(_OneReplica, keras.optimizers.SGD):
    """keras.optimizers.SGD with the learning rate outside the momentum, as in PyTorch.

    v <- momentum v + g; w <- w - learning_rate (g + momentum v) with Nesterov's momentum, else
    w <- w - learning_rate v. Keras keeps learning_rate v instead of v, so that steps just after a
    drop of the learning rate are still as large as before it. While the rate is constant, the two
    are the same.
    """

    def update_step(self, gradient, variable, learning_rate):
        """Update the variable and its v."""
        learning_rate = ops.cast(learning_rate, variable.dtype)
        gradient = ops.cast(gradient, variable.dtype)
        if self.momentum:
            v = self.momentums[self._get_variable_index(variable)]
            self.assign(v, self.momentum * v + gradient)
            gradient = gradient + self.momentum * v if self.nesterov else v
        self.assign_sub(variable, learning_rate * gradient)


class Muon(_OneReplica, keras.optimizers.Muon):
    """keras.optimizers.Muon for the convolutions' kernels, and Adam for all other weights.

    A kernel (h, w, c_in, c_out) is taken as the matrix G of h w c_in rows and c_out columns (Keras
    itself leaves it to Adam). Its step is Nesterov's momentum of G with all singular values brought
    near 1 (Jordan et al., 2024), times 0.2 learning_rate sqrt(max(rows, columns)), which has the
    size of an Adam step and so shares its learning rate (Liu et al., 2025).
    """

    def __init__(self, learning_rate):
        super().__init__(learning_rate, weight_decay=None, adam_weight_decay=None, rms_rate=None)

    def _should_use_adamw(self, variable):
        return len(variable.shape) != 4

    def zeropower_via_newtonschulz5(self, x, steps):
        """The orthogonalised kernel, at the size of an Adam step."""
        matrix = ops.reshape(x, (-1, x.shape[-1]))
        step = super().zeropower_via_newtonschulz5(matrix, steps)
        return ops.reshape(0.2 * max(matrix.shape) ** 0.5 * step, x.shape)
