"""The bound against what it must be where it is known exactly."""

import math

import numpy as np
import pytest
import torch
from linear_gaussian import log_likelihood
from scipy import stats
from small_vae import FactsOfRows, low_rank_rows, small_vae

from sklearn_sigmavae import GeneralizedNormalNoise, SigmaVAE, equivalent_beta
from sklearn_sigmavae._model.elbo import (
    FallingNoise,
    NegativeELBO,
    elbo_terms,
)
from sklearn_sigmavae._model.points import (
    N_POINTS,
    importance_points,
    integration_points,
    quadrature,
)
from sklearn_sigmavae.noise import resolve_noise


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


@pytest.mark.parametrize("n_components", [1, 2, 3, 7, 16, 32, 40])
@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
def test_quadrature_has_the_moments_of_the_normal(n_components, noise):
    k = n_components
    points, weights = quadrature(k, resolve_noise(noise))
    points, weights = points.numpy()[:, 0], weights.numpy()
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(weights @ points, 0, atol=1e-13)
    covariance = (weights[:, None] * points).T @ points
    np.testing.assert_allclose(covariance, np.eye(k), atol=1e-12)
    # The radius, too, unless it has to be negative.
    squares = np.square(points).sum(axis=1)
    if noise == "gaussian" or k > 2:
        assert weights @ squares**2 == pytest.approx(k * (k + 2))
    # There is a kink in the center of other noise.
    assert noise == "gaussian" or np.ptp(weights) == 0


@pytest.mark.parametrize(("n_components", "n_samples"), [(1, 2), (3, 100), (16, 64)])
def test_importance_points_are_standard_normal(n_components, n_samples):
    points = importance_points(n_components, n_samples)
    assert points.shape[1] == n_components
    assert len(points) % n_samples == 0
    assert len(points) >= 64
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
    torch.testing.assert_close(kl, exact.sum(1)[None])
    criterion = NegativeELBO(noise, 2.5, 0.3)
    loss = criterion.in_nats(module, criterion(module, x, eps).detach(), FactsOfRows(x))
    expected = 2.5 * kl.mean() - log_likelihood.mean() + 7.0
    assert loss == pytest.approx(expected.item())


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0, 3.0])
def test_equivalence_of_beta_and_sigma(module, exponent):
    noise, x, eps = GeneralizedNormalNoise(exponent), normal(50, 6), normal(50, 3)

    def loss_and_gradients(sigma, beta):
        criterion = NegativeELBO(noise, beta, sigma)
        loss = criterion(module, x, eps)
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        return criterion.in_nats(module, loss.detach(), FactsOfRows(x)), gradients

    beta = equivalent_beta(0.4, 0.9, noise)
    loss, gradients = loss_and_gradients(0.4, beta)
    other_loss, other_gradients = loss_and_gradients(0.9, 1.0)
    assert loss != pytest.approx(beta * other_loss)  # the constants differ
    for gradient, other in zip(gradients, other_gradients, strict=True):
        atol = 1e-10 * beta * other.abs().max().item()
        torch.testing.assert_close(gradient, beta * other, rtol=1e-10, atol=atol)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_annealing_is_more_noise(module, exponent):
    noise, x, eps = GeneralizedNormalNoise(exponent), normal(50, 6), normal(50, 3)
    parameters = list(module.parameters())

    def gradients(criterion):
        return torch.autograd.grad(criterion(module, x, eps), parameters)

    factor = 5.0**exponent
    criterion = NegativeELBO(noise, 1.5, 0.2, first_factor=factor)
    noisier = NegativeELBO(noise, 1.5, 1.0)
    criterion.anneal(0.0, factor)
    for ours, other in zip(gradients(criterion), gradients(noisier), strict=True):
        atol = 1e-10 * ours.abs().max().item()
        torch.testing.assert_close(ours, factor * other, rtol=1e-10, atol=atol)
    # Held-out rows see the noise of the model.
    plain = NegativeELBO(noise, 1.5, 0.2).eval()
    criterion.eval()
    assert criterion(module, x, eps).equal(plain(module, x, eps))
    rows = FactsOfRows(x)
    assert criterion.in_nats(module, 0.0, rows) == plain.in_nats(module, 0.0, rows)


def test_annealed_loss_has_its_constant(module):
    noise, x, eps = GeneralizedNormalNoise(2.0), normal(50, 6), normal(50, 3)
    log_likelihood, kl = elbo_terms(module, noise, x, eps, 0.3)
    criterion = NegativeELBO(noise, 2.5, 0.3, first_factor=16.0)
    for progress, factor in (0.0, 16.0), (0.3, 4.0), (0.6, 1.0), (0.99, 1.0):
        criterion.anneal(progress, 100.0)
        assert criterion.kl_factor == pytest.approx(factor)
        loss = criterion.in_nats(
            module, criterion(module, x, eps).detach(), FactsOfRows(x)
        )
        expected = 2.5 * factor * kl.mean() - log_likelihood.mean() + 7.0
        assert loss == pytest.approx(expected.item())


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_noise_that_follows_has_the_loss_of_its_scale(module, exponent):
    noise, x, eps = GeneralizedNormalNoise(exponent), normal(50, 6), normal(4, 50, 3)
    parameters, rows = list(module.parameters()), FactsOfRows(x, 0.7)

    def loss_and_gradients(criterion):
        loss = criterion(module, x, eps)
        gradients = torch.autograd.grad(loss, parameters)
        return criterion.in_nats(module, loss.detach(), rows), gradients

    falling = FallingNoise(0.9, 1e-3, 1.0)
    criterion = NegativeELBO(noise, 1.0, 0.2, falling=falling)
    criterion.anneal(0.0, 1.0)
    loss, gradients = loss_and_gradients(criterion)
    expected, others = loss_and_gradients(NegativeELBO(noise, 1.0, 0.9))
    assert loss == pytest.approx(expected)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-10)
    # Held-out rows have the loss of the scale that is best for them.
    criterion.eval()
    criterion.begin_epoch(rows)
    with torch.no_grad():
        best = criterion.in_nats(module, criterion(module, x, eps), rows)
    for factor in (0.99, 1.0, 1.01):
        fixed = NegativeELBO(noise, 1.0, factor * falling.best).eval()
        other, _ = loss_and_gradients(fixed)
        if factor == 1.0:
            assert best == pytest.approx(other, abs=1e-5)
        else:
            assert best < other


def test_learned_scale_has_the_gradient_through_it(module):
    noise, x, eps = GeneralizedNormalNoise(1.5), normal(50, 6), normal(50, 3)
    parameters = list(module.parameters())
    dataset = FactsOfRows(x)
    criterion = NegativeELBO(noise, 1.0, 1.0, min_scale=1e-3).train()
    criterion.begin_epoch(dataset)
    ours = torch.autograd.grad(criterion(module, x, eps), parameters)

    posterior = module.encode(x)
    z = posterior.mean + torch.exp(0.5 * posterior.log_var) * eps
    location = module.decode(z)
    scale = noise.mean_power(x, location).mean() ** (1 / 1.5)
    kl = module.prior.kl_divergence(posterior, z)
    loss = (kl - noise.log_prob(x, location, scale)).mean()
    torch.testing.assert_close(ours, torch.autograd.grad(loss, parameters))

    criterion.end_epoch(dataset)
    assert criterion.scale == pytest.approx(scale.item())
    # The scale of an epoch weighs rows equally, not batches.
    criterion.begin_epoch(dataset)
    for part in (slice(0, 40), slice(40, None)):
        criterion(module, x[part], eps[part])
    criterion.end_epoch(dataset)
    assert criterion.scale == pytest.approx(scale.item())


# The score


@pytest.mark.parametrize("prior", ["normal", "mixture"])
@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
def test_refined_scores_are_nearer_to_the_log_likelihood(prior, noise):
    random_state = np.random.RandomState(0)
    angle = random_state.uniform(-2, 2, 300)
    X = np.column_stack([np.sin(angle), np.cos(angle)])
    params = {"prior": prior, "noise": noise, "hidden_layer_sizes": (20,)}
    vae = small_vae(n_components=1, sigma=0.1, **params)
    vae.fit(X)
    # Rows that the encoder has not seen the like of.
    rows = X[:100] + 0.2 * random_state.standard_normal((100, 2))
    z = torch.linspace(-12, 12, 40_001, dtype=torch.float64)[:, None]
    module, units = vae.module_.double(), vae.module_.units
    with torch.no_grad():
        x = units.rotate(units.standardize(rows).double())
        density = module.prior.log_prob(z) + math.log(24 / 40_000)
        likelihood = vae.noise_.log_prob(x[:, None], module.decode(z), vae._model.scale)
        exact = (likelihood + density).logsumexp(1).numpy() - units.log_volume
    plain, refined = (vae.score_samples(rows, refine=each) for each in (False, True))
    weighted = vae.score_samples(rows, n_importance_samples=1000)
    assert (refined >= plain).all()
    assert refined.mean() > plain.mean() + 0.02
    assert (refined < exact + 0.05).all()
    np.testing.assert_allclose(weighted.mean(), exact.mean(), atol=0.05)


@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
def test_linear_models_have_nothing_to_refine(beta):
    X = low_rank_rows()
    vae = small_vae(beta=beta, hidden_layer_sizes=(), max_iter=0).fit(X)
    scores = vae.score_samples(X)
    np.testing.assert_array_equal(scores, vae.score_samples(X, refine=False))


def test_refinement_knows_the_beta_of_the_training(tmp_path):
    vae = small_vae(beta=3.0).fit(low_rank_rows())
    rows = low_rank_rows() + 1
    scores = vae.score_samples(rows)
    vae.set_params(beta=1.0)
    np.testing.assert_array_equal(vae.score_samples(rows), scores)
    vae.save(tmp_path / "vae")
    loaded = SigmaVAE.load(tmp_path / "vae")
    assert loaded.beta == 1.0
    np.testing.assert_allclose(loaded.score_samples(rows), scores, rtol=1e-12)


def test_points_replace_many_draws(digits):
    vae = SigmaVAE(16, sigma=0.2, max_iter=10, random_state=0).fit(digits[:1400])
    rows = digits[1400:1500]
    score = vae.score_samples(rows, refine=False).mean()
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
def test_refinement_and_importance_weights_mend_a_wrong_encoder(digits, n_components):
    rows = digits[:50]
    vae, exact = linear_model_with_wrong_encoder(digits, n_components, rows)
    bound = vae.score_samples(rows, refine=False)
    # Per component 0.125 for the mean and 0.083 for the width.
    of_width = n_components * 0.5 * (1.69 - 1 - np.log(1.69))
    off = 0.125 * n_components + of_width
    np.testing.assert_allclose(exact - bound, off, rtol=1e-3)
    refined = vae.score_samples(rows)
    np.testing.assert_allclose(exact - refined, of_width, atol=0.02)
    params = {"n_importance_samples": 1, "refine": False}
    np.testing.assert_array_equal(vae.score_samples(rows, **params), bound)
    params["n_importance_samples"] = 4096
    tight = vae.score_samples(rows, **params)
    # The error of a row grows with the components, and averages out over rows.
    np.testing.assert_allclose(tight, exact, atol=0.01 if n_components < 10 else 0.1)
    assert tight.mean() == pytest.approx(exact.mean(), abs=0.01)
    looser = vae.score_samples(rows, n_importance_samples=8, refine=False)
    assert bound.mean() < looser.mean() < exact.mean()
