"""The units that the networks work in."""

import numpy as np
import pytest

from sklearn_sigmavae._model.units import Units


def table(mean, spread, shape=(500, 4), dtype=np.float64):
    noise = np.random.RandomState(0).standard_normal(shape)
    return (mean + spread * noise * np.arange(1, shape[1] + 1)).astype(dtype)


@pytest.mark.parametrize("spread", [1e-30, 1e-3, 1.0, 1e30, 1e200, 1e-200])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_internal_data_is_centred_with_mean_variance_one(offset, spread):
    X = table(offset * spread, spread)
    units = Units.of_data(X, np.ones(4))
    x = units.to_internal(X).numpy()
    assert x.dtype == X.dtype
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-12)
    assert np.square(x).mean() == pytest.approx(1)
    # One scale for all: the features keep their ratios.
    np.testing.assert_allclose(x.std(axis=0) / x.std(axis=0)[0], [1, 2, 3, 4], rtol=0.1)
    np.testing.assert_allclose(units.to_data(x), X, rtol=1e-12, atol=1e-12 * spread)


@pytest.mark.parametrize("mean", [0.0, 1.0, 1e4, 3e7])
@pytest.mark.parametrize("spread", [1e-33, 1e-3, 1.0, 1e30])
def test_float32_is_as_exact_as_float64_rounded(mean, spread):
    X = table(mean * spread, spread, dtype=np.float32)
    units = Units.of_data(X, np.ones(4))
    exact = (X.astype(np.float64) - units.offset) / units.scale
    x = units.to_internal(X).numpy()
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, exact, rtol=1e-6, atol=1e-7)


def test_relative_scales_divide_features_and_enter_the_volume():
    X = table(2.0, 3.0)
    relative = np.array([0.5, 0.5, 1.0, 4.0])
    units = Units.of_data(X, relative)
    np.testing.assert_allclose(units.scale / units.scale[2], relative)
    assert np.square(units.to_internal(X).numpy()).mean() == pytest.approx(1)
    jacobian = units.to_data(np.eye(4)) - units.to_data(np.zeros((4, 4)))
    assert units.log_volume == pytest.approx(np.linalg.slogdet(jacobian)[1])


def test_blocks_cover_all_rows():
    X = table(0.0, 1.0, shape=(100_001, 3))
    units = Units.of_data(X, np.ones(3))
    expected = (X - X.mean(axis=0)) / units.scale
    np.testing.assert_allclose(units.to_internal(X).numpy(), expected, atol=1e-12)


def test_units_hold_no_tensors():
    # They would move with the weights where a model from another device is unpickled.
    X = table(100.0, 1.0, dtype=np.float32)
    units = Units.of_data(X, np.array([0.5, 1.0, 1.0, 2.0]))
    units.to_internal(X)
    held = [units.offset, units.scale, *units._float32_terms]
    assert all(isinstance(value, np.ndarray) for value in held)
