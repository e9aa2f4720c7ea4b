"""The units that the networks work in."""

import numpy as np
import pytest
import torch

from sklearn_sigmavae._module import Units


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


def test_large_offsets_are_no_trouble():
    small = table(0.0, 1e-3)
    X = 1e4 + small
    x = Units.of_data(X, np.ones(4)).to_internal(X).numpy()
    expected = Units.of_data(X - 1e4, np.ones(4)).to_internal(X - 1e4).numpy()
    np.testing.assert_allclose(x, expected, atol=1e-9)


@pytest.mark.parametrize("mean", [0.0, 1.0, 1e4, 3e7])
@pytest.mark.parametrize("spread", [1e-33, 1e-3, 1.0, 1e30])
def test_float32_is_as_exact_as_float64_rounded(mean, spread):
    X = table(mean * spread, spread, dtype=np.float32)
    units = Units.of_data(X, np.ones(4))
    exact = (X.astype(np.float64) - units.offset) / units.scale
    x = units.to_internal(X).numpy()
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, exact, rtol=1e-6, atol=1e-7)


def test_relative_scales_divide_features_first():
    X = table(2.0, 1.0)
    relative = np.array([0.5, 0.5, 1.0, 4.0])
    units = Units.of_data(X, relative)
    np.testing.assert_allclose(units.scale / units.scale[2], relative)
    assert np.square(units.to_internal(X).numpy()).mean() == pytest.approx(1)


def test_log_volume_is_the_log_determinant_of_the_map():
    X = table(2.0, 3.0)
    units = Units.of_data(X, np.array([0.5, 1.0, 1.0, 2.0]))
    assert units.log_volume == pytest.approx(np.log(units.scale).sum())
    jacobian = units.to_data(np.eye(4)) - units.to_data(np.zeros((4, 4)))
    assert units.log_volume == pytest.approx(np.linalg.slogdet(jacobian)[1])


def test_blocks_cover_all_rows():
    X = table(0.0, 1.0, shape=(100_001, 3))
    units = Units.of_data(X, np.ones(3))
    np.testing.assert_allclose(
        units.to_internal(X).numpy(), (X - units.offset) / units.scale
    )
    np.testing.assert_allclose(units.offset, X.mean(axis=0))


def test_constant_data_has_a_scale_of_one():
    X = np.full((5, 3), 0.1)
    units = Units.of_data(X, np.ones(3))
    np.testing.assert_array_equal(units.scale, 1)
    np.testing.assert_allclose(units.to_internal(X), torch.zeros(5, 3), atol=1e-15)


def test_infinite_spread_is_an_error():
    with pytest.raises(ValueError, match="spread of X is not finite"):
        Units.of_data(np.array([[1.7e308], [-1.7e308], [-1.7e308]]), np.ones(1))


def test_units_hold_no_tensors():
    # They would move with the weights where a model from another device is unpickled.
    X = table(100.0, 1.0, dtype=np.float32)
    units = Units.of_data(X, np.array([0.5, 1.0, 1.0, 2.0]))
    units.to_internal(X)
    terms = [units.offset, units.scale, *units._float32_terms]
    assert len(terms) == 5
    assert all(isinstance(term, np.ndarray) for term in terms)
