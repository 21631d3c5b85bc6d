"""Muon against its definition with an SVD, and its place beside Adam."""

import gc

import keras
import numpy as np
import pytest

from utils.batches import batches
from utils.optimizers import SGD, Adam, Muon


def random_kernels(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def apply_steps(optimizer, kernels, gradients):
    variables = [keras.Variable(kernel) for kernel in kernels]
    for step in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in step], variables)
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def test_a_kernels_step_keeps_singular_vectors_and_levels_singular_values():
    for shape in ((40, 12), (12, 40), (16, 16)):
        rng = np.random.default_rng(1)
        u, _ = np.linalg.qr(rng.normal(size=(shape[0], min(shape))))
        v, _ = np.linalg.qr(rng.normal(size=(shape[1], min(shape))))
        singular_values = np.geomspace(1e-2, 1, min(shape))
        matrix = (u * singular_values @ v.T).astype(np.float32)
        kernel = keras.ops.convert_to_tensor(matrix.reshape(1, 1, *shape))
        step = keras.ops.convert_to_numpy(Muon(1e-3).zeropower_via_newtonschulz5(kernel, 5))
        found = u.T @ step[0, 0] @ v / (0.2 * np.sqrt(max(shape)))
        assert np.abs(found - np.diag(np.diag(found))).max() < 1e-3
        assert np.diag(found).min() > 0.6 and np.diag(found).max() < 1.25


def test_a_kernel_moves_by_the_orthogonalised_momentum_of_its_matrix():
    (kernel,) = random_kernels(2, (3, 3, 5, 7))
    gradients = random_kernels(3, *[kernel.shape] * 3)
    (moved,) = apply_steps(Muon(0.01), [kernel], [[g] for g in gradients])
    expected, m = kernel.reshape(45, 7).astype(np.float64), 0.0
    for gradient in gradients:
        g = gradient.reshape(45, 7).astype(np.float64)
        m = 0.95 * m + g
        u, _, vt = np.linalg.svd(g + 0.95 * m, full_matrices=False)
        step = 0.01 * 0.2 * np.sqrt(45) * (u @ vt)
        expected -= step
    difference = moved.reshape(45, 7) - expected
    # the iteration's singular values are within a third of the SVD's 1, on either side
    assert np.linalg.norm(difference) < 0.35 * np.linalg.norm(expected - kernel.reshape(45, 7))
    cosine = np.sum((moved - kernel).reshape(45, 7) * (expected - kernel.reshape(45, 7)))
    cosine /= np.linalg.norm(moved - kernel) * np.linalg.norm(expected - kernel.reshape(45, 7))
    assert cosine > 0.97


def test_other_weights_are_left_to_adam():
    weights = random_kernels(4, (6, 3), (3,))
    gradients = [random_kernels(seed, (6, 3), (3,)) for seed in (5, 6, 7)]
    ours = apply_steps(Muon(0.01), weights, gradients)
    adam = apply_steps(keras.optimizers.Adam(0.01), weights, gradients)
    for a, b in zip(ours, adam, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_step_has_the_size_of_adams():
    """RMS 0.2 times the learning rate, whatever the kernel's shape and the gradient's scale."""
    for shape, scale in (((3, 3, 16, 32), 1e-4), ((1, 1, 64, 32), 1.0), ((3, 3, 4, 128), 1e3)):
        (kernel,) = random_kernels(8, shape)
        (gradient,) = random_kernels(9, shape)
        (moved,) = apply_steps(Muon(0.01), [kernel], [[scale * gradient]])
        rms = np.sqrt(np.mean((moved - kernel) ** 2))
        assert 0.6 < rms / (0.2 * 0.01) < 1.2, shape


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's registry")
@pytest.mark.parametrize("create", [Adam, Muon, SGD])
def test_a_fit_leaves_no_graph_behind(create):
    def fit():
        layers = [keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3), keras.layers.Flatten()]
        model = keras.Sequential([*layers, keras.layers.Dense(1)])
        model.compile(create(0.01), "mse")
        x = batches(2, lambda i: (np.zeros((2, 4, 4, 1), "f4"), np.zeros((2, 1), "f4")))
        model.fit(x, verbose=0, shuffle=False)

    def graphs():
        gc.collect()
        return sum(type(each).__name__ == "FuncGraph" for each in gc.get_objects())

    fit()
    before = graphs()
    fit()
    assert graphs() == before
