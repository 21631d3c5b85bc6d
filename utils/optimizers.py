"""Optimisers: Adam, SGD as PyTorch defines it, and Muon for convolutions."""

import keras
from keras import ops


def one_cycle(
    learning_rate: float, total_steps: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Linear warm-up from 1/25 of the rate over the first three tenths, then cosine to 0."""
    warmup = max(1, round(0.3 * total_steps))
    return keras.optimizers.schedules.CosineDecay(
        learning_rate / 25,
        decay_steps=max(1, total_steps - warmup),
        warmup_target=learning_rate,
        warmup_steps=warmup,
    )


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


class Muon(Adam):
    """Muon (Jordan et al., 2024) for the convolutions' kernels, and Adam for all other weights.

    A kernel (h, w, c_in, c_out) is taken as the matrix G of h w c_in rows and c_out columns. Its
    step is Nesterov's momentum of G with all singular values brought near 1, times
    0.2 learning_rate sqrt(max(rows, columns)), which has the size of an Adam step and so shares its
    learning rate (Liu et al., 2025). keras.optimizers.Muon leaves kernels of four axes to Adam.
    """

    momentum = 0.95

    def update_step(self, gradient, variable, learning_rate):
        """Update the variable and its momentum."""
        if len(variable.shape) != 4:
            super().update_step(gradient, variable, learning_rate)
            return
        gradient = ops.cast(gradient, variable.dtype)
        m = self._momentums[self._get_variable_index(variable)]
        self.assign(m, self.momentum * m + gradient)
        step = ops.reshape(gradient + self.momentum * m, (-1, variable.shape[-1]))
        step = orthogonalise(step) * (0.2 * max(step.shape) ** 0.5)
        step = ops.reshape(step, variable.shape)
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * step)


def orthogonalise(matrix):
    """A matrix (n, m) with the same singular vectors and singular values of about 0.7 to 1.2.

    Five Newton-Schulz iterations of Muon's quintic, which bring even a thousandth of the largest
    singular value there and need no decomposition.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else ops.transpose(matrix)
    x = x / (ops.norm(x) + 1e-7)
    for _ in range(5):
        square = ops.matmul(x, ops.transpose(x))
        square = -4.7750 * square + 2.0315 * ops.matmul(square, square)
        x = 3.4445 * x + ops.matmul(square, x)
    return x if wide else ops.transpose(x)
