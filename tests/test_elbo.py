"""The bound against what it must be where it is known exactly."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from linear_gaussian import log_likelihood
from scipy import stats
from small_vae import low_rank_rows, small_vae

from sklearn_sigmavae import GeneralizedNormalNoise, SigmaVAE, equivalent_beta
from sklearn_sigmavae._model.elbo import (
    N_POINTS,
    NegativeELBO,
    elbo_terms,
    importance_points,
    integration_points,
)


@pytest.fixture(scope="module")
def module():
    """Nonlinear module with random weights, in float64."""
    vae = small_vae(n_components=3, hidden_layer_sizes=(20,), init="random", max_iter=0)
    return vae.fit(low_rank_rows(n_features=6)).module_.double()


def normal(*shape, seed=0):
    return torch.tensor(np.random.RandomState(seed).standard_normal(shape))


# Points


@pytest.mark.parametrize("n_components", [1, 2, 3, 7, 16, 32, 40])
@pytest.mark.parametrize("n_points", [1, N_POINTS, 500])
def test_integration_points_integrate_quadratics(n_components, n_points):
    points = integration_points(n_components, n_points)
    assert n_points <= len(points) < n_points + 2 * n_components
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-13)
    np.testing.assert_allclose(
        points.T @ points / len(points), np.eye(n_components), atol=1e-12
    )
    np.testing.assert_array_equal(points, integration_points(n_components, n_points))


def test_integration_points_have_chi_radii():
    points = integration_points(2, 4000)
    squared = np.sort(np.square(points).sum(axis=1))
    # The radius of a two-dimensional normal, squared and halved, is exponential.
    quantiles = -np.log1p(-(np.arange(len(points)) + 0.5) / len(points))
    np.testing.assert_allclose(squared[:-40] / 2, quantiles[:-40], atol=0.05)


@pytest.mark.parametrize(("n_components", "n_samples"), [(1, 2), (3, 100), (16, 64)])
def test_importance_points_are_standard_normal(n_components, n_samples):
    points = importance_points(n_components, n_samples)
    assert points.shape[1] == n_components
    assert len(points) % n_samples == 0
    assert len(points) >= N_POINTS
    np.testing.assert_array_equal(points, importance_points(n_components, n_samples))
    many = importance_points(n_components, 4096)
    assert all(stats.kstest(column, "norm").pvalue > 0.01 for column in many.T)


# The loss


@pytest.mark.parametrize("shape", [(50, 3), (4, 50, 3)])
@pytest.mark.parametrize("exponent", [1.5, 2.0])
def test_loss_is_minus_the_bound(module, exponent, shape):
    noise, x, eps = GeneralizedNormalNoise(exponent), normal(50, 6), normal(*shape)
    log_likelihood, kl = elbo_terms(module, noise, x, eps, 0.3)
    posterior = module.encode(x)
    mean, log_var = posterior.mean, posterior.log_var
    posterior = torch.distributions.Normal(mean, torch.exp(0.5 * log_var))
    prior = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
    exact = torch.distributions.kl_divergence(posterior, prior)
    torch.testing.assert_close(kl, exact.sum(1))
    criterion = NegativeELBO(noise, 2.5, 0.3, 7.0)
    loss = criterion(module, x, eps) + criterion.constant(module, 0.0)
    torch.testing.assert_close(loss, 2.5 * kl.mean() - log_likelihood.mean() + 7.0)


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0, 3.0])
def test_equivalence_of_beta_and_sigma(module, exponent):
    noise, x, eps = GeneralizedNormalNoise(exponent), normal(50, 6), normal(50, 3)

    def loss_and_gradients(sigma, beta):
        criterion = NegativeELBO(noise, beta, sigma, 0.0)
        loss = criterion(module, x, eps)
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        return loss.item() + criterion.constant(module, 0.0), gradients

    beta = equivalent_beta(0.4, 0.9, noise)
    loss, gradients = loss_and_gradients(0.4, beta)
    other_loss, other_gradients = loss_and_gradients(0.9, 1.0)
    assert loss != pytest.approx(beta * other_loss)  # the constants differ
    for gradient, other in zip(gradients, other_gradients, strict=True):
        atol = 1e-10 * beta * other.abs().max().item()
        torch.testing.assert_close(gradient, beta * other, rtol=1e-10, atol=atol)


def test_learned_scale_has_the_gradient_through_it(module):
    noise, x, eps = GeneralizedNormalNoise(1.5), normal(50, 6), normal(50, 3)
    parameters = list(module.parameters())
    dataset = SimpleNamespace(device="cpu", outside=0.0)
    criterion = NegativeELBO(noise, 1.0, 1.0, 0.0, min_scale=1e-3).train()
    criterion.begin_epoch(dataset)
    ours = torch.autograd.grad(criterion(module, x, eps), parameters)

    posterior = module.encode(x)
    z = posterior.mean + torch.exp(0.5 * posterior.log_var) * eps
    location = module.decode(z)
    scale = noise.mean_power(x, location).mean() ** (1 / 1.5)
    kl = module.prior.kl_divergence(posterior, z)
    loss = (kl - noise.log_prob(x, location, scale)).mean()
    torch.testing.assert_close(ours, torch.autograd.grad(loss, parameters))

    criterion.end_epoch(50)
    assert criterion.scale == pytest.approx(scale.item())
    # The scale of an epoch weighs rows equally, not batches.
    criterion.begin_epoch(dataset)
    for part in (slice(0, 40), slice(40, None)):
        criterion(module, x[part], eps[part])
    criterion.end_epoch(50)
    assert criterion.scale == pytest.approx(scale.item())


# The score


def test_points_replace_many_draws(digits):
    vae = SigmaVAE(16, sigma=0.2, max_iter=10, random_state=0).fit(digits[:1400])
    rows = digits[1400:1500]
    score = vae.score(rows)
    random_state = np.random.RandomState(1)
    mean, std = vae.posterior(rows)
    kl = vae.kl_divergence(rows).sum(axis=1).mean()
    constant = 64 * np.log(0.2 * np.sqrt(2 * np.pi)) + kl

    def bound(eps):
        decoded = vae.inverse_transform((mean + std * eps).reshape(-1, 16))
        errors = np.square(decoded.reshape(-1, *rows.shape) - rows).sum(axis=(1, 2))
        return -errors.mean() / len(rows) / (2 * 0.2**2) - constant

    bounds = [bound(random_state.standard_normal((64, 1, 16))) for _ in range(20)]
    error_of_mean = np.std(bounds) / np.sqrt(len(bounds))
    assert score == pytest.approx(np.mean(bounds), abs=3 * error_of_mean)
    # Far more draws, in opposite pairs, whose error is far smaller.
    half = random_state.standard_normal((1000, 1, 16))
    exact = bound(np.concatenate([half, -half]))
    assert score == pytest.approx(exact, abs=0.05)
    assert abs(score - exact) < np.std(bounds) / 3


def linear_model_with_wrong_encoder(X, n_components, rows):
    """Optimal linear model, its encoder's mean off by 0.5 and width by 1.3."""
    vae = SigmaVAE(n_components, sigma=0.3, hidden_layer_sizes=(), max_iter=0).fit(X)
    mean_row = vae.inverse_transform(np.zeros((1, n_components)))[0]
    loadings = (vae.inverse_transform(np.eye(n_components)) - mean_row).T
    exact = log_likelihood(rows, mean_row, loadings, 0.3)
    np.testing.assert_allclose(vae.score_samples(rows), exact, atol=1e-3)
    encoder = vae.module_.encoder
    with torch.no_grad():
        encoder.linear.bias += 0.5 * torch.exp(0.5 * encoder.log_var)
        encoder.log_var += 2 * np.log(1.3)
    return vae, exact


@pytest.mark.parametrize("n_components", [2, 5, 10])
def test_importance_weights_mend_a_wrong_encoder(digits, n_components):
    rows = digits[:50]
    vae, exact = linear_model_with_wrong_encoder(digits, n_components, rows)
    bound = vae.score_samples(rows)
    # Per component 0.125 for the mean and 0.083 for the width.
    off = n_components * (0.125 + 0.5 * (1.69 - 1 - np.log(1.69)))
    np.testing.assert_allclose(exact - bound, off, rtol=1e-3)
    one = vae.score_samples(rows, n_importance_samples=1)
    np.testing.assert_array_equal(one, bound)
    tight = vae.score_samples(rows, n_importance_samples=4096)
    # The error of a row grows with the components, and averages out over rows.
    np.testing.assert_allclose(tight, exact, atol=0.01 if n_components < 10 else 0.1)
    assert tight.mean() == pytest.approx(exact.mean(), abs=0.01)
    looser = vae.score_samples(rows, n_importance_samples=8)
    assert bound.mean() < looser.mean() < exact.mean()
