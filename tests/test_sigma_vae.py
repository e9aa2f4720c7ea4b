"""The estimator's contracts: what a scikit-learn user relies on."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from small_vae import (
    NOISE,
    curved_rows,
    low_rank_rows,
    same_weights,
    small_vae,
    weights,
)

from sklearn_sigmavae import BernoulliNoise, GeneralizedNormalNoise

X = low_rank_rows()
N_SAMPLES, N_FEATURES = X.shape
NOISES = ["gaussian", "laplace", "bernoulli", GeneralizedNormalNoise(exponent=3.0)]


# Shapes, dtypes, values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("noise", NOISES, ids=str)
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
    for add_noise in (False, True):
        drawn = vae.sample(7, add_noise=add_noise, random_state=0)
        assert drawn.shape == (7, N_FEATURES)
        assert np.isfinite(drawn).all()


def test_integers_are_data_like_any_other():
    integers = np.round(10 * X).astype(np.int64)
    vae = small_vae(sigma=3.0).fit(integers)
    expected = small_vae(sigma=3.0).fit(integers.astype(np.float64))
    assert vae.transform(integers).dtype == np.float64
    assert np.array_equal(vae.transform(integers), expected.transform(1.0 * integers))


def test_bernoulli_samples_are_zeros_and_ones_and_means_are_probabilities():
    binary = (X > 1).astype(float)
    vae = small_vae(noise="bernoulli").fit(binary)
    drawn = vae.sample(50, add_noise=True, random_state=0)
    assert set(np.unique(drawn)) == {0.0, 1.0}
    means = vae.sample(50, random_state=0)
    assert means.min() > 0
    assert means.max() < 1
    assert len(np.unique(means)) > 2
    assert vae.sigma_ is None
    assert isinstance(vae.noise_, BernoulliNoise)


def test_inference_agrees_with_itself(vae):
    mean, std = vae.posterior(X)
    assert np.array_equal(vae.transform(X), mean)
    assert (std > 0).all()
    expected = 0.5 * (mean**2 + std**2 - 1 - 2 * np.log(std))
    np.testing.assert_allclose(vae.kl_divergence(X), expected, atol=1e-12)
    assert vae.kl_divergence(X).min() >= 0
    assert vae.score(X) == vae.score_samples(X).mean()
    assert vae.n_active_components_ == (vae.kl_divergence(X).mean(0) > 0.01).sum() == 2


def test_fit_transform_is_fit_then_transform(vae):
    assert np.array_equal(small_vae().fit_transform(X), vae.transform(X))


def test_inverse_transform_reconstructs(vae):
    error = X - vae.inverse_transform(vae.transform(X))
    assert np.square(error).mean() < 0.1 * X.var(axis=0).mean()


@pytest.mark.parametrize(
    "method", ["transform", "score_samples", "kl_divergence", "inverse_transform"]
)
def test_rows_do_not_see_each_other(vae, method):
    rows = vae.transform(X) if method == "inverse_transform" else X
    infer = getattr(vae, method)
    alone = np.concatenate([infer(rows[i : i + 1]) for i in range(len(rows))])
    np.testing.assert_allclose(infer(rows), alone, rtol=0, atol=1e-12)
    np.testing.assert_allclose(infer(rows)[::-1], infer(rows[::-1]), atol=1e-12)


def test_score_is_deterministic(vae):
    first = vae.score_samples(X)
    torch.rand(3)
    assert np.array_equal(first, vae.score_samples(X))


def test_importance_weighted_score_is_tighter_and_one_sample_is_the_bound():
    rows = curved_rows()
    params = {"sigma": 0.1, "hidden_layer_sizes": (32,), "learning_rate": 1e-2}
    vae = small_vae(**params, max_iter=10).fit(rows)
    bound = vae.score_samples(rows)
    one = vae.score_samples(rows, n_importance_samples=1)
    np.testing.assert_allclose(one, bound, atol=1e-3)
    assert vae.score_samples(rows, n_importance_samples=32).mean() > bound.mean() + 0.01


@pytest.mark.parametrize(
    "variant",
    [
        lambda rows: np.asfortranarray(rows),
        lambda rows: np.repeat(rows, 2, axis=1)[:, ::2],
        lambda rows: rows[::-1].copy()[::-1],
        lambda rows: rows.tolist(),
        lambda rows: rows.astype(">f8"),
        lambda rows: np.frombuffer(rows.tobytes()).reshape(rows.shape),
    ],
    ids=["fortran", "strided", "reversed", "list", "big-endian", "read-only"],
)
def test_memory_layout_makes_no_difference(vae, variant):
    rows = variant(X)
    fitted = small_vae().fit(rows)
    assert same_weights(weights(fitted), weights(vae))
    assert np.array_equal(fitted.transform(rows), vae.transform(X))
    assert np.array_equal(fitted.score_samples(rows), vae.score_samples(X))


def test_data_frames_make_no_difference(vae):
    frame = pd.DataFrame(X, columns=list("abcde"))
    fitted = small_vae().fit(frame)
    assert list(fitted.feature_names_in_) == list("abcde")
    assert np.array_equal(fitted.transform(frame), vae.transform(X))
    assert np.array_equal(fitted.score_samples(frame), vae.score_samples(X))


def test_input_is_not_modified():
    rows = X.copy()
    vae = small_vae().fit(rows)
    codes = vae.transform(rows)
    kept = codes.copy()
    vae.inverse_transform(codes)
    vae.score(rows)
    assert np.array_equal(rows, X)
    assert np.array_equal(codes, kept)


# Sampling


def test_samples_are_reproducible(vae):
    for add_noise in (False, True):
        first, again, other = (
            vae.sample(5, add_noise=add_noise, random_state=seed) for seed in (0, 0, 1)
        )
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)


@pytest.mark.parametrize("noise", [n for n in NOISES if n != "bernoulli"], ids=str)
def test_added_noise_has_the_variance_of_the_noise(noise):
    vae = small_vae(noise=noise, sigma=[0.1, 0.2, 0.3, 0.4, 0.5]).fit(X)
    n_samples = 20_000
    clean, noisy = (
        vae.sample(n_samples, add_noise=add_noise, random_state=0)
        for add_noise in (False, True)
    )
    residual = noisy - clean
    p = vae.noise_.exponent
    factor = p ** (2 / p) * math.gamma(3 / p) / math.gamma(1 / p)
    expected = factor * np.square([0.1, 0.2, 0.3, 0.4, 0.5])
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
    {"max_iter": 5},
    {"max_iter": 5, "noise": "laplace"},
    {"max_iter": 5, "sigma": [0.1, 0.2, 0.3, 0.4, 0.5]},
    {"max_iter": 5, "init": "random"},
]


def _scaled(params, factor):
    sigma = factor * np.asarray(params.get("sigma", NOISE))
    return small_vae(**{**params, "sigma": sigma if sigma.ndim else float(sigma)})


@pytest.mark.parametrize("params", UNIT_PARAMS, ids=str)
@pytest.mark.parametrize("factor", [1e-3, 1e3, 1e-100, 1e100])
def test_units_do_not_matter(params, factor):
    vae = _scaled(params, 1.0).fit(X)
    scaled = _scaled(params, factor).fit(factor * X)
    np.testing.assert_allclose(
        scaled.transform(factor * X), vae.transform(X), atol=1e-3
    )
    shift = N_FEATURES * np.log(factor)
    np.testing.assert_allclose(
        scaled.score(factor * X) + shift, vae.score(X), atol=1e-3
    )
    np.testing.assert_allclose(np.ravel(scaled.sigma_), factor * np.ravel(vae.sigma_))
    np.testing.assert_allclose(
        scaled.sample(5, add_noise=True, random_state=0),
        factor * vae.sample(5, add_noise=True, random_state=0),
        atol=1e-3 * factor,
    )


@pytest.mark.parametrize("params", UNIT_PARAMS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("factor", [2.0**-10, 2.0**10])
def test_powers_of_two_change_nothing_at_all(params, dtype, factor):
    rows = X.astype(dtype)
    vae = _scaled(params, 1.0).fit(rows)
    scaled = _scaled(params, factor).fit(dtype(factor) * rows)
    codes = scaled.transform(dtype(factor) * rows)
    assert codes.dtype == dtype
    assert np.array_equal(codes, vae.transform(rows))


def test_small_spreads_far_from_zero_are_no_trouble():
    params = {"max_iter": 5}
    vae = small_vae(**params).fit(X)
    far = 1e4 + 1e-3 * X
    shifted = small_vae(**params, sigma=1e-3 * NOISE).fit(far)
    np.testing.assert_allclose(shifted.transform(far), vae.transform(X), atol=1e-3)
    score = shifted.score(far) + N_FEATURES * np.log(1e-3)
    np.testing.assert_allclose(score, vae.score(X), atol=1e-3)
    decoded = (shifted.inverse_transform(shifted.transform(far)) - 1e4) / 1e-3
    expected = vae.inverse_transform(vae.transform(X))
    np.testing.assert_allclose(decoded, expected, atol=1e-3)


def test_constant_columns_are_no_trouble():
    rows = np.column_stack([X, np.full(N_SAMPLES, 7.0), np.zeros(N_SAMPLES)])
    vae = small_vae().fit(rows)
    decoded = vae.inverse_transform(vae.transform(rows))
    assert np.abs(decoded[:, -2] - 7).max() < NOISE
    # Each constant column adds at most the density's maximum.
    added = vae.score(rows) - small_vae().fit(X).score(X)
    most = -np.log(NOISE * np.sqrt(2 * np.pi)) * 2
    assert most - 0.5 < added < most + 0.5


@pytest.mark.parametrize("value", [5.0, 0.1, 1 / 3, 1e-5])
@pytest.mark.parametrize("n_samples", [2, 7, 60, 101])
def test_constant_data_warns_and_stays_finite(value, n_samples):
    # The mean of equal numbers may differ from them by a rounding error.
    rows = np.full((n_samples, 3), value)
    with pytest.warns(UserWarning, match="constant"):
        vae = small_vae().fit(rows)
    assert np.isfinite(vae.score(rows))
    assert vae.n_active_components_ == 0
    np.testing.assert_allclose(
        vae.inverse_transform(vae.transform(rows)), rows, atol=0.1
    )


# Scales


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
        other.sigma_ = factor * vae.sigma_
        assert other.score(rows) < best - 0.01


def test_the_learned_scale_without_a_maximum_stops_at_a_floor():
    rows = np.repeat(X[:, :1], 3, axis=1)
    vae = small_vae(sigma="mle", n_components=1, hidden_layer_sizes=(), max_iter=1)
    with pytest.warns(ConvergenceWarning, match="sigma='mle'"):
        vae.fit(rows)
    np.testing.assert_allclose(vae.sigma_, 1e-3 * rows.std(), rtol=1e-6)


def test_scales_per_feature_are_scales_of_features():
    factors = np.array([1e-2, 0.1, 1.0, 10.0, 300.0])
    vae = small_vae().fit(X)
    scaled = small_vae(sigma=NOISE * factors).fit(X * factors)
    assert isinstance(scaled.sigma_, np.ndarray)
    np.testing.assert_array_equal(scaled.sigma_, NOISE * factors)
    np.testing.assert_allclose(
        scaled.transform(X * factors), vae.transform(X), atol=1e-3
    )
    shift = np.log(factors).sum()
    np.testing.assert_allclose(
        scaled.score(X * factors) + shift, vae.score(X), atol=1e-3
    )


def test_equal_scales_per_feature_are_one_scale():
    one, many = small_vae().fit(X), small_vae(sigma=[NOISE] * N_FEATURES).fit(X)
    np.testing.assert_allclose(many.transform(X), one.transform(X), atol=1e-4)
    np.testing.assert_allclose(many.score(X), one.score(X), atol=1e-4)
    assert isinstance(many.sigma_, np.ndarray)


# Devices


def test_devices_have_several_names(vae):
    for device in ("cpu", torch.device("cpu"), "cpu:0"):
        fitted = small_vae(device=device).fit(X)
        assert same_weights(weights(fitted), weights(vae))


def test_the_automatic_device_is_cuda_where_there_is_one():
    fitted = small_vae(device="auto").fit(X)
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert fitted.module_.device.type == expected
    assert isinstance(fitted.transform(X), np.ndarray)


@pytest.mark.parametrize("name", ["module_", "history_"])
def test_fitted_attributes_say_what_is_missing(name):
    model = small_vae()
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(model, name)
    assert not hasattr(model, name)
