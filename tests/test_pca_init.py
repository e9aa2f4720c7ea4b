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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("beta", [1.0, 0.5, 2.0])
@pytest.mark.parametrize(("name", "k", "sigmas"), CASES)
def test_start_is_the_closed_form(load, name, k, sigmas, beta, dtype):
    # The exact answer is that of the numbers which the estimator sees.
    X = load(name).astype(dtype)
    for sigma in sigmas:
        vae = SigmaVAE(
            k, sigma=sigma, beta=beta, hidden_layer_sizes=(), max_iter=0, device="cpu"
        ).fit(X)
        score, kl = optimum(X.astype(np.float64), k, sigma, beta)
        tolerance = 1e-3 + 1e-8 * abs(score)
        assert vae.score(X) == pytest.approx(score, abs=tolerance)
        assert vae.kl_divergence(X).sum(axis=1).mean() == pytest.approx(kl, abs=1e-3)
        in_use = (spectrum(X.astype(np.float64))[:k] > beta * sigma**2).sum()
        assert vae.n_active_components_ <= in_use


@pytest.mark.parametrize("recipe", [{}, {"hidden_layer_sizes": (8, 8)}])
@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
def test_networks_do_not_change_the_start(digits, recipe, noise):
    shared = {"sigma": 0.2, "noise": noise, "max_iter": 0, "random_state": 0}
    linear = SigmaVAE(16, hidden_layer_sizes=(), **shared).fit(digits)
    deep = SigmaVAE(16, **recipe, **shared).fit(digits)
    np.testing.assert_array_equal(linear.transform(digits), deep.transform(digits))
    assert linear.score(digits) == deep.score(digits)


def test_score_is_the_log_likelihood_row_by_row(digits):
    vae = SigmaVAE(10, sigma=0.3, hidden_layer_sizes=(), max_iter=0).fit(digits)
    pca = PCA(10).fit(digits)
    eigenvalues = pca.explained_variance_ * (len(digits) - 1) / len(digits)
    loadings = pca.components_.T * np.sqrt(eigenvalues - 0.09)
    exact = log_likelihood(digits, pca.mean_, loadings, 0.3)
    np.testing.assert_allclose(vae.score_samples(digits), exact, atol=2e-3)


def test_codes_are_scaled_principal_components(digits):
    vae = SigmaVAE(4, sigma=0.3, hidden_layer_sizes=(), max_iter=0).fit(digits)
    pca = PCA(4).fit(digits)
    eigenvalues = pca.explained_variance_ * (len(digits) - 1) / len(digits)
    expected = pca.transform(digits) * np.sqrt(eigenvalues - 0.09) / eigenvalues
    np.testing.assert_allclose(vae.transform(digits), expected, atol=1e-5)


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0, 3.0])
def test_start_respects_the_equivalence(digits, exponent):
    noise = GeneralizedNormalNoise(exponent)
    beta = equivalent_beta(0.1, 0.2, noise)
    shared = {"noise": noise, "max_iter": 0, "hidden_layer_sizes": ()}
    one = SigmaVAE(8, sigma=0.1, beta=beta, **shared).fit(digits)
    other = SigmaVAE(8, sigma=0.2, **shared).fit(digits)
    np.testing.assert_allclose(
        one.transform(digits), other.transform(digits), atol=1e-6
    )


def test_per_feature_scales_against_factor_analysis(load):
    X = load("wine, standardised")
    # An array sigma with unit noise inside: X / sigma has probabilistic PCA as optimum,
    # and at factor analysis' own noise that is factor analysis.
    fa = FactorAnalysis(2, svd_method="lapack", tol=1e-9, max_iter=20_000).fit(X)
    sigma = np.sqrt(fa.noise_variance_)
    vae = SigmaVAE(2, sigma=sigma, hidden_layer_sizes=(), max_iter=0).fit(X)
    assert vae.score(X) == pytest.approx(fa.score(X), abs=1e-3)
    np.testing.assert_array_equal(vae.sigma_, sigma)


def test_learned_sigma_starts_at_the_discarded_variance(digits):
    vae = SigmaVAE(10, sigma="mle", hidden_layer_sizes=(), max_iter=0).fit(digits)
    discarded = spectrum(digits)[10:].mean()
    assert vae.sigma_ == pytest.approx(np.sqrt(discarded), rel=2e-3)
    # PCA.score uses the variance of n - 1, and is the exact likelihood.
    assert vae.score(digits) == pytest.approx(
        PCA(10).fit(digits).score(digits), abs=0.1
    )


def test_more_components_than_features_or_rows():
    X = np.random.RandomState(0).standard_normal((6, 4))
    vae = SigmaVAE(9, sigma=0.1, hidden_layer_sizes=(), max_iter=0).fit(X)
    assert vae.transform(X).shape == (6, 9)
    assert vae.score(X) == pytest.approx(optimum(X, 4, 0.1)[0], abs=1e-3)
    mean, std = vae.posterior(X)
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


def test_constant_data_warns():
    X = np.full((20, 3), 7.0)
    with pytest.warns(UserWarning, match="X is constant"):
        vae = SigmaVAE(2, sigma=0.5, max_iter=1).fit(X)
    np.testing.assert_allclose(vae.inverse_transform(vae.transform(X)), X, atol=0.1)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_training_stays_at_the_optimum(load, beta):
    X = load("digits")
    vae = SigmaVAE(
        10,
        sigma=5.0,
        beta=beta,
        hidden_layer_sizes=(),
        early_stopping=False,
        random_state=0,
    ).fit(X)
    assert vae.score(X) == pytest.approx(optimum(X, 10, 5.0, beta)[0], abs=0.05)


def test_training_reaches_the_optimum_from_random_weights(load):
    X = load("digits")
    vae = SigmaVAE(
        10,
        sigma=5.0,
        hidden_layer_sizes=(),
        init="random",
        early_stopping=False,
        max_iter=300,
        random_state=0,
    ).fit(X)
    assert vae.score(X) == pytest.approx(optimum(X, 10, 5.0)[0], abs=0.5)


def test_the_whole_posterior_is_exact(digits):
    vae = SigmaVAE(6, sigma=0.3, hidden_layer_sizes=(), max_iter=0).fit(digits)
    module = vae.module_
    loadings = (
        module.decoder.linear.weight.detach().double().numpy() * module.units.scale[0]
    )
    precision = np.eye(6) + loadings.T @ loadings / 0.09
    exact = np.linalg.solve(
        precision, loadings.T @ (digits - module.units.offset).T / 0.09
    )
    mean, std = vae.posterior(digits)
    np.testing.assert_allclose(mean, exact.T, atol=1e-5)
    np.testing.assert_allclose(
        std, np.broadcast_to(np.sqrt(1 / np.diag(precision)), std.shape), rtol=1e-5
    )


@pytest.mark.parametrize("sigma", [0.1, 0.2, 0.4])
def test_derivatives_along_sigma(digits, sigma):
    def linear(sigma):
        return SigmaVAE(16, sigma=sigma, hidden_layer_sizes=(), max_iter=0).fit(digits)

    def kl(model):
        return model.kl_divergence(digits).sum(axis=1).mean()

    step = 1e-3
    below, model, above = (linear(sigma * np.exp(d)) for d in (-step, 0.0, step))
    # The local exponent of the KL is the number of components in use, divided by it.
    exponent = -(np.log(kl(above)) - np.log(kl(below))) / (2 * step)
    n_used = (spectrum(digits)[:16] > sigma**2).sum()
    assert exponent == pytest.approx(n_used / kl(model), rel=1e-3)
    # Along the optima the score has the derivative that it has at fixed weights.
    eigenvalues = spectrum(digits)
    distortion = n_used * sigma**2 + eigenvalues[n_used:].sum()
    derivative = (above.score(digits) - below.score(digits)) / (2 * step)
    expected = distortion / sigma**2 - digits.shape[1]
    assert derivative == pytest.approx(expected, rel=1e-3, abs=1e-2)
