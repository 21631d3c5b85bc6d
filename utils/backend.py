"""All that depends on Keras's backend, on the device, or on TensorFlow being there."""

import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import keras
import numpy as np
from keras import ops

PRECISIONS = ("auto", "float32", "mixed_bfloat16")


def backend() -> str:
    """Keras's backend: "tensorflow", "jax" or "torch"."""
    return keras.backend.backend()


def resolve_precision(precision: str) -> str:
    """The dtype policy for `precision`: "auto" takes bfloat16 only where the device computes it.

    Raises ValueError for a name not in PRECISIONS.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    return "mixed_bfloat16" if _computes_bfloat16() else "float32"


def _computes_bfloat16() -> bool:
    gpu = _gpu()
    if gpu is not None:
        return gpu["compute_capability"] >= (8, 0)
    # oneDNN, under TensorFlow and PyTorch, has bfloat16 kernels for these; XLA on CPU has none.
    return backend() != "jax" and bool({"avx512_bf16", "amx_bf16"} & set(_cpuinfo("flags").split()))


def _gpu() -> dict | None:
    """The name and compute capability of the backend's first NVIDIA GPU, None without one."""
    if backend() == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        if not gpus:
            return None
        details = tf.config.experimental.get_device_details(gpus[0])
        return {
            "name": details.get("device_name", "GPU"),
            "compute_capability": details.get("compute_capability", (0, 0)),
        }
    if backend() == "jax":
        import jax

        device = jax.devices()[0]
        if device.platform != "gpu":
            return None
        capability = tuple(int(part) for part in str(device.compute_capability).split("."))
        return {"name": device.device_kind, "compute_capability": capability}
    import torch

    if not torch.cuda.is_available():
        return None
    return {
        "name": torch.cuda.get_device_name(0),
        "compute_capability": torch.cuda.get_device_capability(0),
    }


def use_xla() -> bool:
    """Whether to compile steps with XLA: always under JAX; under TensorFlow on a GPU alone.

    On a CPU, XLA's convolutions are slower than the oneDNN kernels that TensorFlow calls otherwise.
    """
    return backend() == "jax" or (backend() == "tensorflow" and _gpu() is not None)


def scoring_batch() -> int:
    """Forward passes a batch while scoring: 576 on a GPU, 144 on a CPU, which is faster there."""
    return 144 if _gpu() is None else 576


def _cpuinfo(field: str) -> str:
    """The first value of a field of /proc/cpuinfo, empty where there is none."""
    if not os.path.exists("/proc/cpuinfo"):
        return ""
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return ""


def device_name() -> str:
    """The device that trains: a GPU's name, or the processor's, its cores and vector units."""
    gpu = _gpu()
    if gpu is not None:
        return gpu["name"]
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    native = {"amx_bf16", "avx512_bf16", "avx512f", "avx2"} & set(_cpuinfo("flags").split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores" + (f", {' '.join(sorted(native))}" if native else "")


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that numbers depend on."""
    names = ["keras", {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch"}[backend()]]
    names += ["numpy", "scipy", "scikit-learn"]
    return {"python": platform.python_version()} | {n: metadata.version(n) for n in names}


def commit() -> str:
    """The commit of this project that runs, with `+` where files differ from it; "" without git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head, changed = (
            subprocess.run([*git, *arguments], capture_output=True, text=True, check=True).stdout
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or files without their history
        return ""
    return head.strip() + "+" * bool(changed)


def peak_memory() -> int:
    """The largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@keras.saving.register_keras_serializable("geometric_transformations")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch normalisation, by TensorFlow's fused kernel where TensorFlow is the backend.

    Keras builds it from separate reductions and products there, in float32 whatever the policy. The
    fused kernel reads the policy's dtype and keeps statistics in float32: twice the training speed
    of the whole network in bfloat16 on a CPU, 1.3 times in float32 (`benchmarks/training_step.py`).
    It divides the batch variance that it averages by n - 1, not n.
    """

    def call(self, inputs, training=None, mask=None):
        if backend() != "tensorflow" or len(inputs.shape) != 4:
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        empty = tf.zeros((0,), "float32")
        training = bool(training and self.trainable)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma,
            offset=self.beta,
            mean=empty if training else self.moving_mean,
            variance=empty if training else self.moving_variance,
            epsilon=self.epsilon,
            is_training=training,
        )
        if training:
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))
        return outputs


def all_transformed(images, index_maps: np.ndarray):
    """Every image of a symbolic batch (n, h, w, c) under every map: (n * k, h, w, c), k fastest."""
    _, height, width, channels = images.shape
    flat = ops.reshape(images, (-1, height * width, channels))
    moved = ops.take(flat, ops.convert_to_tensor(index_maps.ravel()), axis=1)
    return ops.reshape(moved, (-1, height, width, channels))


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

    variables = getattr(function, "non_trainable_variables", [])

    def total(x):
        if not isinstance(function, keras.Model):
            return ops.sum(function(x, **arguments)), []
        weights = [variable.value for variable in function.trainable_variables]
        state = [variable.value for variable in variables]
        outputs, state = function.stateless_call(weights, state, x, **arguments)
        return ops.sum(outputs), state

    gradient, state = jax.grad(total, has_aux=True)(x)
    for variable, value in zip(variables, state, strict=True):
        variable.assign(value)
    return gradient
