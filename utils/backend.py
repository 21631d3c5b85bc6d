"""What depends on Keras's backend: its defaults, and gradients by inputs and by weights."""

import contextlib

import keras
from keras import ops


def backend() -> str:
    """Keras's backend: "tensorflow", "jax" or "torch"."""
    return keras.backend.backend()


@contextlib.contextmanager
def keras_defaults():
    """Within it, or in a function that it decorates, Keras's own defaults are in force.

    float32 and channels_last, whatever ~/.keras/keras.json or the program has set; layers keep what
    was in force when they were made.
    """
    config = keras.config
    before = config.floatx(), config.dtype_policy(), config.image_data_format()
    _configure("float32", "float32", "channels_last")
    try:
        yield
    finally:
        _configure(*before)


def _configure(floatx, policy, data_format):
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)
    keras.config.set_image_data_format(data_format)


def input_gradient(function, x, **arguments):
    """The gradient of the sum of function(x, **arguments) by x: differentiable, fit for compiling.

    x: a tensor or a list of them; the gradient is the like. function: a Keras model, or any
    function of tensors, which on JAX must not assign to variables.
    """
    if backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            total = ops.sum(function(x, **arguments))
        return tape.gradient(total, x)
    if backend() == "torch":
        import torch

        differentiable = torch.is_grad_enabled()

        def leaf(t):
            return t if differentiable and t.requires_grad else t.detach().requires_grad_()

        with torch.enable_grad():
            x = keras.tree.map_structure(leaf, x)
            total = ops.sum(function(x, **arguments))
            inputs = keras.tree.flatten(x)
            gradients = torch.autograd.grad(total, inputs, create_graph=differentiable)
        return keras.tree.pack_sequence_as(x, gradients)
    import jax

    if not isinstance(function, keras.Model):
        return jax.grad(lambda x: ops.sum(function(x, **arguments)))(x)
    trained, others = function.trainable_variables, function.non_trainable_variables
    weights, state = ([each.value for each in group] for group in (trained, others))

    def total(x):
        outputs, new_state = function.stateless_call(weights, state, x, **arguments)
        return ops.sum(outputs), new_state

    gradient, new_state = jax.grad(total, has_aux=True)(x)
    for variable, value in zip(others, new_state, strict=True):
        variable.assign(value)
    return gradient


def loss_and_gradients(model: keras.Model, loss, variables: list):
    """loss() and its gradients by some of the model's variables, which a step is to train.

    loss may use and assign to any variable of the model.
    """
    if backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = loss()
        return value, tape.gradient(value, variables)
    if backend() == "torch":
        import torch

        value = loss()
        return value.detach(), torch.autograd.grad(value, [each.value for each in variables])
    import jax

    known = {id(each) for each in variables}
    others = [each for each in model.variables if id(each) not in known]

    def stateless_loss(values, other_values):
        mapping = zip([*variables, *others], [*values, *other_values], strict=True)
        with keras.StatelessScope(mapping) as scope:
            value = loss()
        return value, [scope.get_current_value(each) for each in others]

    values, other_values = ([each.value for each in group] for group in (variables, others))
    (value, other_values), gradients = jax.value_and_grad(stateless_loss, has_aux=True)(
        values, other_values
    )
    for variable, new in zip(others, other_values, strict=True):
        variable.assign(new)
    return value, gradients


def stateless_step(model: keras.Model, step, state: tuple, *arguments):
    """What `train_step` of Keras's JAX trainer is to return: step's result, and the new state.

    state: the values of the model's trainable and other variables, of its optimiser's and metrics'.
    step: a function of the arguments, which assigns to these variables.
    """
    groups = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    flat = [pair for pairs in map(zip, groups, state) for pair in pairs]
    with keras.StatelessScope(flat) as scope:
        logs = step(*arguments)
    return logs, tuple([scope.get_current_value(each) for each in group] for group in groups)
