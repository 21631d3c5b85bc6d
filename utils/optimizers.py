"""Stochastic gradient descent as PyTorch defines it."""

import keras
from keras import ops


class SGD(keras.optimizers.SGD):
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
