import keras
import numpy as np
import pytest

from utils import backend


def test_precision_names():
    assert backend.resolve_precision("float32") == "float32"
    assert backend.resolve_precision("mixed_bfloat16") == "mixed_bfloat16"
    with pytest.raises(ValueError, match="'float16' is not one of auto, float32"):
        backend.resolve_precision("float16")


@pytest.mark.parametrize(
    "flags, gpu, expected",
    [
        ("fpu avx2 avx512f", None, "float32"),
        ("fpu avx2 avx512f avx512_bf16", None, "mixed_bfloat16"),
        ("fpu avx2", {"name": "A100", "compute_capability": (8, 0)}, "mixed_bfloat16"),
        ("fpu avx512_bf16", {"name": "V100", "compute_capability": (7, 0)}, "float32"),
    ],
)
def test_auto_takes_bfloat16_only_where_it_is_native(monkeypatch, flags, gpu, expected):
    monkeypatch.setattr(backend, "_cpuinfo", lambda field: flags)
    monkeypatch.setattr(backend, "_gpu", lambda: gpu)
    monkeypatch.setattr(backend, "backend", lambda: "tensorflow")
    assert backend.resolve_precision("auto") == expected


def test_batch_normalisation_equals_keras_own():
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, (16, 5, 5, 4)).astype("float32")
    ours, keras_own = (
        kind(momentum=0.9, epsilon=1e-5)
        for kind in (backend.BatchNormalization, keras.layers.BatchNormalization)
    )
    for layer in (ours, keras_own):
        layer.build(x.shape)
        layer.gamma.assign([1, 2, 3, 4])
        layer.beta.assign([0, -1, 1, 2])

    def both(training):
        return (
            keras.ops.convert_to_numpy(each(x, training=training)) for each in (ours, keras_own)
        )

    np.testing.assert_allclose(*both(training=True), atol=1e-4)
    # the averaged variance is over n - 1 in one and over n in the other
    np.testing.assert_allclose(ours.moving_variance, keras_own.moving_variance, rtol=2.0 / 400)
    np.testing.assert_allclose(ours.moving_mean, keras_own.moving_mean, rtol=1e-4)
    keras_own.moving_variance.assign(ours.moving_variance)
    np.testing.assert_allclose(*both(training=False), atol=1e-4)
    ours.trainable = False
    keras_own.trainable = False
    np.testing.assert_allclose(*both(training=True), atol=1e-4)


def test_the_machine_is_described():
    assert backend.device_name()
    assert backend.versions()["keras"] == keras.__version__
    assert 2**26 < backend.peak_memory() < 2**40
