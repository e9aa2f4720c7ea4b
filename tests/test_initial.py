"""The start, against the closed form of probabilistic PCA."""

import numpy as np
import pytest
from linear_gaussian import log_likelihood, optimum, spectrum
from sklearn.decomposition import PCA, FactorAnalysis

from sklearn_sigmavae import GeneralizedNormalNoise, SigmaVAE, equivalent_beta

# Name of the data, components, and scales from one at which all components are in use
# to one at which few are.
CASES = [
    ("digits", 16, (0.5, 3.0, 8.0)),
    ("wine", 6, (0.5, 10.0)),
    ("wine, standardised", 6, (0.3, 1.1)),
    ("breast_cancer", 10, (1.0, 50.0)),
    ("breast_cancer, standardised", 15, (0.1, 0.3, 1.5)),
    ("diabetes", 5, (0.01, 0.05)),
    ("diabetes, standardised", 5, (0.5, 1.2)),
]


def linear(n_components, sigma, **params):
    """Estimator of a linear model, which stays at its start."""
    params = {"hidden_layer_sizes": (), "max_iter": 0, "device": "cpu"} | params
    return SigmaVAE(n_components, sigma=sigma, **params)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("beta", [1.0, 0.5, 2.0])
@pytest.mark.parametrize(("name", "k", "sigmas"), CASES)
def test_start_is_the_closed_form(load, name, k, sigmas, beta, dtype):
    # The exact answer is that of the numbers which the estimator sees.
    X = load(name).astype(dtype)
    exact = X.astype(np.float64)
    for sigma in sigmas:
        vae = linear(k, sigma, beta=beta).fit(X)
        score, kl = optimum(exact, k, sigma, beta)
        assert vae.score(X) == pytest.approx(score, abs=1e-3 + 1e-8 * abs(score))
        assert vae.kl_divergence(X).sum(axis=1).mean() == pytest.approx(kl, abs=1e-3)
        in_use = (spectrum(exact)[:k] > beta * sigma**2).sum()
        assert vae.n_active_components_ <= in_use


@pytest.mark.parametrize("recipe", [{}, {"hidden_layer_sizes": (8, 8)}])
@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
def test_networks_do_not_change_the_start(digits, recipe, noise):
    shared = {"sigma": 0.2, "noise": noise, "max_iter": 0, "random_state": 0}
    alone = SigmaVAE(16, hidden_layer_sizes=(), **shared).fit(digits)
    deep = SigmaVAE(16, **recipe, **shared).fit(digits)
    np.testing.assert_array_equal(alone.transform(digits), deep.transform(digits))
    assert alone.score(digits) == pytest.approx(deep.score(digits), rel=1e-12)


def test_scores_codes_and_posteriors_of_rows_are_exact(digits):
    k, variance = 6, 0.09
    vae = linear(k, 0.3).fit(digits)
    pca = PCA(k).fit(digits)
    eigenvalues = pca.explained_variance_ * (len(digits) - 1) / len(digits)
    loadings = pca.components_.T * np.sqrt(eigenvalues - variance)
    exact = log_likelihood(digits, pca.mean_, loadings, 0.3)
    np.testing.assert_allclose(vae.score_samples(digits), exact, atol=2e-3)
    mean, std = vae.posterior(digits)
    codes = pca.transform(digits) * np.sqrt(eigenvalues - variance) / eigenvalues
    np.testing.assert_allclose(mean, codes, atol=1e-5)
    np.testing.assert_allclose(
        std, np.broadcast_to(np.sqrt(variance / eigenvalues), std.shape), rtol=1e-5
    )


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0, 3.0])
def test_start_respects_the_equivalence_of_beta_and_sigma(digits, exponent):
    noise = GeneralizedNormalNoise(exponent)
    beta = equivalent_beta(0.1, 0.2, noise)
    one = linear(8, 0.1, noise=noise, beta=beta).fit(digits)
    other = linear(8, 0.2, noise=noise).fit(digits)
    np.testing.assert_allclose(
        one.transform(digits), other.transform(digits), atol=1e-6
    )


def test_per_feature_scales_against_factor_analysis(load):
    X = load("wine, standardised")
    # With the noise of factor analysis for sigma, the optimum is factor analysis.
    fa = FactorAnalysis(2, svd_method="lapack", tol=1e-9, max_iter=20_000).fit(X)
    sigma = np.sqrt(fa.noise_variance_)
    vae = linear(2, sigma).fit(X)
    assert vae.score(X) == pytest.approx(fa.score(X), abs=1e-3)
    np.testing.assert_array_equal(vae.sigma_, sigma)


def test_learned_sigma_starts_at_the_discarded_variance(digits):
    vae = linear(10, "mle").fit(digits)
    discarded = spectrum(digits)[10:].mean()
    assert vae.sigma_ == pytest.approx(np.sqrt(discarded), rel=2e-3)
    # PCA.score is the exact likelihood at nearly the same variance, that of n - 1.
    score = PCA(10).fit(digits).score(digits)
    assert vae.score(digits) == pytest.approx(score, abs=0.1)


def test_more_components_than_features_or_rows():
    X = np.random.RandomState(0).standard_normal((6, 4))
    vae = linear(9, 0.1).fit(X)
    mean, std = vae.posterior(X)
    assert mean.shape == (6, 9)
    assert vae.score(X) == pytest.approx(optimum(X, 4, 0.1)[0], abs=1e-3)
    np.testing.assert_array_equal(mean[:, 4:], 0)
    np.testing.assert_array_equal(std[:, 4:], 1)
    assert vae.n_active_components_ == 4


def test_bernoulli_starts_at_the_mean(digits):
    vae = SigmaVAE(3, noise="bernoulli", hidden_layer_sizes=(), max_iter=0).fit(digits)
    mean = digits.mean(axis=0).clip(1e-3, 1 - 1e-3)
    at_zero = vae.inverse_transform(np.zeros((1, 3)))[0]
    np.testing.assert_allclose(at_zero, mean, atol=1e-6)


@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_dead_start_warns_and_its_advice_works(digits, noise, beta):
    vae = SigmaVAE(8, sigma=5.0, beta=beta, noise=noise, max_iter=0)
    largest = np.sqrt(spectrum(digits)[0])
    with pytest.warns(
        UserWarning, match=rf"sigma=5, at beta={beta:g}, hides .* is {largest:.4g}"
    ) as caught:
        vae.fit(digits)
    assert vae.n_active_components_ == 0
    advice = str(caught[0].message).split("such as ")[1].split(",")[0]
    vae.set_params(sigma=float(advice)).fit(digits)
    assert vae.n_active_components_ > 0


@pytest.mark.parametrize(
    ("params", "beta", "atol"),
    [
        ({}, 1.0, 0.05),
        ({}, 2.0, 0.05),
        ({"init": "random", "learning_rate": 1e-2}, 1.0, 0.5),
    ],
    ids=str,
)
def test_training_ends_at_the_optimum(load, params, beta, atol):
    X = load("digits")[:600]
    params = {"max_iter": 100, "early_stopping": False, "random_state": 0} | params
    vae = linear(10, 5.0, beta=beta, **params).fit(X)
    assert vae.score(X) == pytest.approx(optimum(X, 10, 5.0, beta)[0], abs=atol)
