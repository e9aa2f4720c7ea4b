"""The bound against what it must be where it is known exactly."""

import numpy as np
import pytest
import torch
from linear_gaussian import log_likelihood
from scipy import stats
from torch.nn import functional as F

from sklearn_sigmavae import GeneralizedNormalNoise, SigmaVAE, equivalent_beta
from sklearn_sigmavae._bound import (
    N_POINTS,
    NegativeBound,
    bound_terms,
    importance_points,
    importance_weighted_bound,
    integration_points,
    kl_divergence,
)
from sklearn_sigmavae._layout import Layout
from sklearn_sigmavae._module import VAE, Units
from sklearn_sigmavae.networks import MLP, build_networks


@pytest.fixture
def vae():
    """Nonlinear module with random weights, in float64."""
    torch.manual_seed(0)
    layout = Layout((6,), (6,))
    encoder, decoder, *facts = build_networks(MLP((20,)), layout, 3, linear_path=True)
    return VAE(encoder, decoder, Units.identity(6), layout, 3, *facts).double()


@pytest.fixture
def x():
    return torch.tensor(np.random.RandomState(0).standard_normal((50, 6)))


@pytest.mark.parametrize("n_components", [1, 2, 3, 7, 16, 32, 40])
@pytest.mark.parametrize("n_points", [1, N_POINTS, 500])
def test_integration_points_integrate_quadratics(n_components, n_points):
    points = integration_points(n_components, n_points)
    assert n_points <= len(points) < n_points + 2 * n_components
    assert points.shape[1] == n_components
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


def test_kl_divergence_against_torch(vae, x):
    mean, log_var = vae.encode(x)
    posterior = torch.distributions.Normal(mean, torch.exp(0.5 * log_var))
    prior = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
    expected = torch.distributions.kl_divergence(posterior, prior)
    torch.testing.assert_close(kl_divergence(mean, log_var), expected)
    eps = torch.zeros(1, 1, 3, dtype=torch.float64)
    _, kl = bound_terms(vae, GeneralizedNormalNoise(), x, eps, 1.0)
    torch.testing.assert_close(kl, expected.sum(1))


def test_points_replace_many_draws(digits):
    vae = SigmaVAE(16, sigma=0.2, max_iter=10, random_state=0).fit(digits[:1400])
    rows = digits[1400:1500]
    module = vae.module_.double()
    x, scale = module.units.to_internal(rows), 0.2 / module.units.scale[0]
    random_state = np.random.RandomState(1)

    def score(eps):
        with torch.no_grad():
            log_likelihood, kl = bound_terms(module, vae.noise_, x, eps, scale)
        return (log_likelihood.mean(dim=0) - kl).mean().item() - module.units.log_volume

    draws = torch.tensor(random_state.standard_normal((20, 64, 1, 16)))
    scores = [score(eps) for eps in draws]
    error_of_mean = np.std(scores) / np.sqrt(len(scores))
    assert vae.score(rows) == pytest.approx(np.mean(scores), abs=3 * error_of_mean)
    # Far more draws, in opposite pairs, whose error is far smaller.
    half = torch.tensor(random_state.standard_normal((4000, 1, 16)))
    exact = score(torch.cat([half, -half]))
    assert vae.score(rows) == pytest.approx(exact, abs=0.05)
    assert abs(vae.score(rows) - exact) < np.std(scores) / 3


@pytest.mark.parametrize("shape", [(50, 3), (4, 50, 3)])
@pytest.mark.parametrize("exponent", [1.5, 2.0])
def test_loss_is_minus_the_bound(vae, x, exponent, shape):
    noise = GeneralizedNormalNoise(exponent)
    eps = torch.tensor(np.random.RandomState(2).standard_normal(shape))
    log_likelihood, kl = bound_terms(vae, noise, x, eps, 0.3)
    criterion = NegativeBound(noise, 2.5, 0.3, 7.0)
    loss, constant = criterion(vae, x, eps), criterion.constant(vae)
    expected = 2.5 * kl.mean() - log_likelihood.mean() + 7.0
    torch.testing.assert_close(loss + constant, expected)


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0, 3.0])
def test_equivalence_of_beta_and_sigma(vae, x, exponent):
    noise = GeneralizedNormalNoise(exponent)
    sigma_1, sigma_2 = 0.4, 0.9
    beta = equivalent_beta(sigma_1, sigma_2, noise)
    eps = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double()

    def loss_and_gradients(sigma, beta):
        vae.zero_grad()
        criterion = NegativeBound(noise, beta, sigma, 0.0)
        loss = criterion(vae, x, eps)
        loss.backward()
        return loss + criterion.constant(vae), [
            parameter.grad.clone() for parameter in vae.parameters()
        ]

    loss_1, gradients_1 = loss_and_gradients(sigma_1, beta)
    loss_2, gradients_2 = loss_and_gradients(sigma_2, 1.0)
    assert loss_1.item() != pytest.approx(beta * loss_2.item())  # the constant differs
    for gradient_1, gradient_2 in zip(gradients_1, gradients_2, strict=True):
        scale = beta * gradient_2.abs().max().item()
        torch.testing.assert_close(
            gradient_1, beta * gradient_2, rtol=1e-10, atol=1e-10 * scale
        )


def test_learned_scale_has_the_gradient_through_it(vae, x):
    noise = GeneralizedNormalNoise(1.5)
    eps = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double()
    criterion = NegativeBound(noise, 1.0, 1.0, 0.0, min_scale=1e-3).train()
    criterion.begin_epoch("cpu")
    ours = torch.autograd.grad(criterion(vae, x, eps), list(vae.parameters()))

    mean, log_var = vae.encode(x)
    location = vae.decode(mean + torch.exp(0.5 * log_var) * eps)
    scale = noise.mean_power(x, location).mean() ** (1 / 1.5)
    kl = kl_divergence(mean, log_var).sum(1)
    loss = (kl - noise.log_prob(x, location, scale)).mean()
    explicit = torch.autograd.grad(loss, list(vae.parameters()))
    torch.testing.assert_close(ours, explicit)
    criterion.end_epoch(50)
    assert criterion.scale == pytest.approx(scale.item())


def test_learned_scale_of_an_epoch_weighs_rows_equally(vae, x):
    criterion = NegativeBound(GeneralizedNormalNoise(), 1.0, 1.0, 0.0, min_scale=1e-3)
    eps = torch.zeros(50, 3, dtype=torch.float64)
    criterion.begin_epoch("cpu")
    for rows in (x[:40], x[40:]):
        criterion(vae, rows, eps[: len(rows)])
    criterion.end_epoch(50)
    in_parts = criterion.scale
    criterion.begin_epoch("cpu")
    criterion(vae, x, eps)
    criterion.end_epoch(50)
    assert in_parts == pytest.approx(criterion.scale)


def test_one_importance_sample_is_the_bound(digits):
    vae = SigmaVAE(3, sigma=0.2, max_iter=2, random_state=0).fit(digits[:300])
    np.testing.assert_array_equal(
        vae.score_samples(digits[:9], n_importance_samples=1),
        vae.score_samples(digits[:9]),
    )


def test_importance_weights_in_groups_of_one_are_the_bound(vae, x):
    noise = GeneralizedNormalNoise()
    half = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)).double()
    points = torch.cat([half, -half])
    with torch.no_grad():
        log_likelihood, kl = bound_terms(vae, noise, x, points.unsqueeze(1), 0.3)
        bound = importance_weighted_bound(vae, noise, x, points, 1, 0.3)
    torch.testing.assert_close(bound, log_likelihood.mean(dim=0) - kl, atol=0.3, rtol=0)


@pytest.mark.parametrize(("n_components", "n_samples"), [(1, 2), (3, 100), (16, 64)])
def test_importance_points_are_standard_normal(n_components, n_samples):
    points = importance_points(n_components, n_samples)
    assert points.shape[1] == n_components
    assert len(points) % n_samples == 0
    assert len(points) >= N_POINTS
    np.testing.assert_array_equal(points, importance_points(n_components, n_samples))
    many = importance_points(n_components, 4096)
    assert all(stats.kstest(column, "norm").pvalue > 0.01 for column in many.T)


@pytest.mark.parametrize("n_components", [2, 5])
def test_importance_weights_mend_a_wrong_encoder(digits, n_components):
    rows = digits[:50]
    vae, exact = linear_model_with_wrong_encoder(digits, n_components, rows)
    bound = vae.score_samples(rows)
    # Per component 0.125 for the mean and 0.083 for the width.
    off = n_components * (0.125 + 0.5 * (1.69 - 1 - np.log(1.69)))
    np.testing.assert_allclose(exact - bound, off, rtol=1e-3)
    np.testing.assert_allclose(
        vae.score_samples(rows, n_importance_samples=1), bound, atol=1e-9
    )
    tight = vae.score_samples(rows, n_importance_samples=4096)
    np.testing.assert_allclose(tight, exact, atol=0.01)
    looser = vae.score_samples(rows, n_importance_samples=8)
    assert bound.mean() < looser.mean() < exact.mean()


@pytest.mark.parametrize("n_components", [8, 10, 16])
def test_importance_weighted_score_averages_errors_out(digits, n_components):
    # Here the error of a row is up to 0.1 nats, as the variance of its weights says.
    vae, exact = linear_model_with_wrong_encoder(digits, n_components, digits[:200])
    score = vae.score_samples(digits[:200], n_importance_samples=4096).mean()
    assert score == pytest.approx(exact.mean(), abs=0.01)


def linear_model_with_wrong_encoder(X, n_components, rows):
    """Optimal linear model, its encoder's mean off by 0.5 and width by 1.3."""
    vae = SigmaVAE(n_components, sigma=0.3, hidden_layer_sizes=(), max_iter=0).fit(X)
    module = vae.module_
    loadings = module.decoder.linear.weight.detach().numpy() * module.units.scale[0]
    exact = log_likelihood(rows, module.units.offset, loadings, vae.sigma_)
    np.testing.assert_allclose(vae.score_samples(rows), exact, atol=1e-3)
    with torch.no_grad():
        std = torch.exp(0.5 * module.encoder.log_var)
        module.encoder.linear.bias += 0.5 * std
        module.encoder.log_var += 2 * np.log(1.3)
    return vae, exact


def test_score_changes_with_sigma_as_the_distortion_says(digits):
    vae = SigmaVAE(8, sigma=0.2, max_iter=2, random_state=0).fit(digits[:400])
    rows, step = digits[400:450], 1e-4

    def score(sigma):
        vae.sigma_ = sigma
        return vae.score(rows)

    slope = (score(0.2 * np.exp(step)) - score(0.2 * np.exp(-step))) / (2 * step)
    vae.sigma_ = 0.2
    module = vae.module_.double()
    x = module.units.to_internal(rows)
    points = torch.tensor(integration_points(8)).unsqueeze(1)
    with torch.no_grad():
        mean, log_var = module.encode(x)
        location = module.decode(mean + torch.exp(0.5 * log_var) * points)
        distortion = F.mse_loss(location, x.expand_as(location)) * 64
    distortion = distortion.item() * module.units.scale[0] ** 2
    assert slope == pytest.approx(distortion / 0.04 - 64, rel=1e-5)
