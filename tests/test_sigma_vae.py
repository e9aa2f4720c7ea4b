"""The estimator's contracts: what a scikit-learn user relies on."""

import copy
import math

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from small_vae import (
    NOISE,
    low_rank_rows,
    same_weights,
    small_vae,
    weights,
)

from sklearn_sigmavae import BernoulliNoise, GeneralizedNormalNoise

X = low_rank_rows()
N_SAMPLES, N_FEATURES = X.shape
NOISES = ["gaussian", "laplace", GeneralizedNormalNoise(exponent=3.0)]


# Shapes, dtypes, values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("noise", [*NOISES, "bernoulli"], ids=str)
def test_outputs_have_the_shape_and_dtype_of_the_input(noise, dtype):
    data = ((X > 1) if noise == "bernoulli" else X).astype(dtype)
    vae = small_vae(noise=noise)
    assert vae.fit(data) is vae
    mean, std = vae.posterior(data)
    for codes in (vae.transform(data), vae.kl_divergence(data), mean, std):
        assert codes.shape == (N_SAMPLES, 2)
        assert codes.dtype == dtype
        assert np.isfinite(codes).all()
    decoded = vae.inverse_transform(mean)
    assert decoded.shape == (N_SAMPLES, N_FEATURES)
    assert decoded.dtype == dtype
    assert vae.fit_transform(data).dtype == dtype
    scores = vae.score_samples(data)
    assert scores.shape == (N_SAMPLES,)
    assert scores.dtype == np.float64
    assert isinstance(vae.score(data), float)


def test_bernoulli_samples_are_zeros_and_ones_and_means_are_probabilities():
    vae = small_vae(noise="bernoulli").fit((X > 1).astype(float))
    drawn = vae.sample(50, add_noise=True, random_state=0)
    assert set(np.unique(drawn)) == {0.0, 1.0}
    means = vae.sample(50, random_state=0)
    assert 0 < means.min() < means.max() < 1
    assert len(np.unique(means)) > 2
    assert vae.sigma_ is None
    assert isinstance(vae.noise_, BernoulliNoise)


def test_inference_agrees_with_itself(vae):
    mean, std = vae.posterior(X)
    assert np.array_equal(vae.transform(X), mean)
    assert np.array_equal(small_vae().fit_transform(X), mean)
    assert (std > 0).all()
    expected = 0.5 * (mean**2 + std**2 - 1 - 2 * np.log(std))
    np.testing.assert_allclose(vae.kl_divergence(X), expected, atol=1e-12)
    assert vae.score(X) == vae.score_samples(X).mean()
    assert vae.n_active_components_ == (vae.kl_divergence(X).mean(0) > 0.01).sum() == 2
    error = X - vae.inverse_transform(mean)
    assert np.square(error).mean() < 0.1 * X.var(axis=0).mean()


@pytest.mark.parametrize(
    "method", ["transform", "score_samples", "kl_divergence", "inverse_transform"]
)
def test_rows_do_not_see_each_other(vae, method):
    rows = vae.transform(X) if method == "inverse_transform" else X
    infer = getattr(vae, method)
    alone = np.concatenate([infer(rows[i : i + 1]) for i in range(len(rows))])
    np.testing.assert_allclose(infer(rows), alone, rtol=0, atol=1e-12)


FORMS = {
    "Fortran": np.asfortranarray(X),
    "strided": np.repeat(X, 2, axis=1)[:, ::2],
    "reversed": X[::-1].copy()[::-1],
    "list": X.tolist(),
    "objects": X.astype(object),
    "big-endian": X.astype(">f8"),
    "read-only": np.frombuffer(X.tobytes()).reshape(X.shape),
    "pandas": pd.DataFrame(X, columns=list("abcde")),
    "polars": pl.DataFrame(X, schema=list("abcde")),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_the_data_makes_no_difference(vae, form):
    rows = FORMS[form]
    fitted = small_vae().fit(rows)
    assert same_weights(weights(fitted), weights(vae))
    assert np.array_equal(fitted.transform(rows), vae.transform(X))
    assert np.array_equal(fitted.score_samples(rows), vae.score_samples(X))
    names = list("abcde") if hasattr(rows, "columns") else None
    assert names is None or list(fitted.feature_names_in_) == names


# Sampling


@pytest.mark.parametrize("add_noise", [False, True])
def test_samples_are_reproducible(vae, add_noise):
    first, again, other = (
        vae.sample(5, add_noise=add_noise, random_state=seed) for seed in (0, 0, 1)
    )
    assert first.shape == (5, N_FEATURES)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_added_noise_has_the_variance_of_the_noise(noise):
    sigma, n_samples = [0.1, 0.2, 0.3, 0.4, 0.5], 20_000
    vae = small_vae(noise=noise, sigma=sigma).fit(X)
    clean, noisy = (
        vae.sample(n_samples, add_noise=add_noise, random_state=0)
        for add_noise in (False, True)
    )
    residual = noisy - clean
    p = vae.noise_.exponent
    factor = p ** (2 / p) * math.gamma(3 / p) / math.gamma(1 / p)
    expected = factor * np.square(sigma)
    # A variance estimate is off by sqrt((kurtosis - 1) / n), 1.6 % for the Laplace.
    np.testing.assert_allclose(residual.var(axis=0), expected, rtol=0.07)
    bound = 5 * np.sqrt(expected / n_samples)
    assert (np.abs(residual.mean(axis=0)) < bound).all()


def test_samples_look_like_the_data():
    rows = low_rank_rows(400)
    vae = small_vae(hidden_layer_sizes=(), max_iter=0).fit(rows)
    drawn = vae.sample(20_000, add_noise=True, random_state=0)
    np.testing.assert_allclose(drawn.mean(axis=0), rows.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(rows.T), atol=0.15)


# Units

UNIT_PARAMS = [
    {},
    {"noise": "laplace"},
    {"sigma": [0.1, 0.2, 0.3, 0.4, 0.5]},
    {"init": "random"},
]


def assert_equivalent(scaled, vae, factor, offset=0.0):
    """Compare a fit to ``offset + factor * X`` with one to X."""
    rows = offset + factor * X
    codes = vae.transform(X)
    np.testing.assert_allclose(scaled.transform(rows), codes, atol=1e-3)
    shift = np.log(np.broadcast_to(factor, N_FEATURES)).sum()
    np.testing.assert_allclose(scaled.score(rows) + shift, vae.score(X), atol=1e-3)
    decoded = (scaled.inverse_transform(codes) - offset) / factor
    np.testing.assert_allclose(decoded, vae.inverse_transform(codes), atol=1e-3)
    drawn, expected = (
        v.sample(5, add_noise=True, random_state=0) for v in (scaled, vae)
    )
    np.testing.assert_allclose((drawn - offset) / factor, expected, atol=1e-3)


@pytest.mark.parametrize("params", UNIT_PARAMS, ids=str)
@pytest.mark.parametrize("factor", [1e-3, 1e-100, 1e100, 2.0**10])
def test_units_do_not_matter(params, factor):
    vae = small_vae(**params, max_iter=5).fit(X)
    sigma = factor * np.asarray(params.get("sigma", NOISE))
    scaled = clone(vae).set_params(sigma=sigma).fit(factor * X)
    assert_equivalent(scaled, vae, factor)
    np.testing.assert_allclose(np.ravel(scaled.sigma_), factor * np.ravel(vae.sigma_))
    if factor == 2.0**10:
        # Powers of two change no bit, in float32 either.
        assert np.array_equal(scaled.transform(factor * X), vae.transform(X))
        for model, unit in ((scaled, factor), (vae, 1.0)):
            model.fit(np.float32(unit) * X.astype(np.float32))
        assert same_weights(weights(scaled), weights(vae))


def test_small_spreads_far_from_zero_are_no_trouble(vae):
    shifted = small_vae(sigma=1e-3 * NOISE).fit(1e4 + 1e-3 * X)
    assert_equivalent(shifted, vae, 1e-3, offset=1e4)


def test_scales_per_feature_are_scales_of_features(vae):
    factors = np.array([1e-2, 0.1, 1.0, 10.0, 300.0])
    scaled = small_vae(sigma=NOISE * factors).fit(X * factors)
    np.testing.assert_array_equal(scaled.sigma_, NOISE * factors)
    assert_equivalent(scaled, vae, factors)
    equal = small_vae(sigma=[NOISE] * N_FEATURES).fit(X)
    assert isinstance(equal.sigma_, np.ndarray)
    assert_equivalent(equal, vae, 1.0)


def test_constant_columns_are_no_trouble(vae):
    rows = np.column_stack([X, np.full(N_SAMPLES, 7.0), np.zeros(N_SAMPLES)])
    of_more = small_vae().fit(rows)
    decoded = of_more.inverse_transform(of_more.transform(rows))
    assert np.abs(decoded[:, -2] - 7).max() < NOISE
    # Each constant column adds at most the density's maximum.
    most = -np.log(NOISE * np.sqrt(2 * np.pi)) * 2
    assert of_more.score(rows) - vae.score(X) == pytest.approx(most, abs=0.5)


@pytest.mark.parametrize("value", [5.0, 0.1, 1 / 3, 1e-5])
@pytest.mark.parametrize("n_samples", [2, 7, 60, 101])
def test_constant_data_warns_and_stays_finite(value, n_samples):
    # The mean of equal numbers may differ from them by a rounding error.
    rows = np.full((n_samples, 3), value)
    with pytest.warns(UserWarning, match="constant"):
        vae = small_vae().fit(rows)
    assert np.isfinite(vae.score(rows))
    assert vae.n_active_components_ == 0
    restored = vae.inverse_transform(vae.transform(rows))
    np.testing.assert_allclose(restored, rows, atol=0.1)


# Learned scales


def test_the_learned_scale_is_that_of_the_noise():
    rows = low_rank_rows(400, 10, noise=0.5)
    params = {"sigma": "mle", "hidden_layer_sizes": (), "batch_size": 100}
    vae = small_vae(**params, max_iter=20).fit(rows)
    assert isinstance(vae.sigma_, float)
    np.testing.assert_allclose(vae.sigma_, 0.5, rtol=0.05)
    scaled = small_vae(**params, max_iter=20).fit(1e3 * rows)
    np.testing.assert_allclose(scaled.sigma_, 1e3 * vae.sigma_, rtol=1e-4)
    # Its score is a maximum over the scale at these weights.
    best = vae.score(rows)
    for factor in (0.9, 1.1):
        other = copy.deepcopy(vae)
        other._model.scale *= factor
        assert other.score(rows) < best - 0.01


def test_the_learned_scale_without_a_maximum_stops_at_a_floor():
    rows = np.repeat(X[:, :1], 3, axis=1)
    vae = small_vae(sigma="mle", n_components=1, hidden_layer_sizes=(), max_iter=1)
    with pytest.warns(ConvergenceWarning, match="sigma='mle'"):
        vae.fit(rows)
    np.testing.assert_allclose(vae.sigma_, 1e-3 * rows.std(), rtol=1e-6)


# Attributes


def test_devices_have_several_names(vae):
    for device in ("cpu", torch.device("cpu"), "cpu:0"):
        assert same_weights(weights(small_vae(device=device).fit(X)), weights(vae))
    automatic = small_vae(device="auto").fit(X)
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert automatic.module_.device.type == expected
    assert isinstance(automatic.transform(X), np.ndarray)


@pytest.mark.parametrize("name", ["module_", "history_"])
def test_fitted_attributes_are_missing_before_a_fit(name):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(small_vae(), name)
    assert not hasattr(small_vae(), name)
