"""Priors of codes: each is a density, and a linear model with one is known exactly."""

import copy
import pickle

import numpy as np
import pytest
import torch
from linear_gaussian import spectrum
from scipy import stats
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, KFold
from small_vae import (
    EpochRecorder,
    FactsOfRows,
    Unchanged,
    callback_of,
    low_rank_rows,
    same_weights,
    small_vae,
    weights,
)

from sklearn_sigmavae import (
    BatchedGridSearchCV,
    GeneralizedNormalNoise,
    MixturePrior,
    ModelFileError,
    NormalPrior,
    Prior,
    SigmaVAE,
    _files,
    equivalent_beta,
    sigma_path,
)
from sklearn_sigmavae._denoise import linear_posterior, observe
from sklearn_sigmavae._model.elbo import NegativeELBO, elbo_terms
from sklearn_sigmavae._model.prior import build_prior
from sklearn_sigmavae._training.pca import PrincipalAxes
from sklearn_sigmavae._training.stack import stack_priors
from sklearn_sigmavae.priors import ALIASES, resolve_prior


class LogisticPrior(Prior):
    """A density with heavier tails, written as a user would write it."""

    def __init__(self, scale=0.55):
        self.scale = scale

    def parameters(self, n_components):
        return {"log_scale": torch.full((n_components,), np.log(self.scale))}

    def log_prob(self, z, log_scale):
        t = z * torch.exp(-log_scale)
        softplus = torch.nn.functional.softplus
        return (-softplus(t) - softplus(-t) - log_scale).sum(-1)

    def sample(self, n_samples, n_components, random_state, log_scale):
        shape = n_samples, n_components
        return random_state.logistic(size=shape) * np.exp(log_scale)


# The contract below holds for every prior; a new one is added here.
PRIORS = [
    *ALIASES.values(),
    MixturePrior(1),
    MixturePrior(4),
    LogisticPrior(),
]

X = low_rank_rows()
CV = KFold(2, shuffle=True, random_state=0)


def clustered_rows(n_samples=200, n_features=5, *, k=2, noise=0.3, seed=0):
    """Rows in three clusters of a subspace, far from each other."""
    rng = np.random.RandomState(seed)
    axes = np.linalg.qr(rng.standard_normal((n_features, k)))[0]
    angles = 2 * np.pi * np.arange(3) / 3
    centers = np.zeros((3, k))
    centers[:, :2] = 6 * np.column_stack([np.cos(angles), np.sin(angles)])
    codes = centers[rng.randint(3, size=n_samples)]
    codes = codes + 0.7 * rng.standard_normal(codes.shape)
    return 1 + codes @ axes.T + noise * rng.standard_normal((n_samples, n_features))


def test_rows_without_clusters_start_at_one_normal_distribution():
    random_state = np.random.RandomState(0)
    cloud, prior = random_state.standard_normal((60, 6)), MixturePrior(3)
    assert prior.fit_codes(cloud, random_state) is None
    # So few rows of three clusters are enough to see them.
    clusters = clustered_rows(60, 6, k=6)
    weights, means, covariances = prior.fit_codes(clusters, random_state)
    assert weights.sum() == pytest.approx(1)
    assert means.shape == (3, 6)
    assert (np.linalg.eigvalsh(covariances) > 0).all()


def test_the_mixture_is_fitted_to_all_rows_at_last():
    random_state = np.random.RandomState(0)
    codes = clustered_rows(300, 3, k=3)
    weights, means, _ = MixturePrior(2).fit_codes(codes, random_state)
    # Of maximum likelihood the means are those of the rows.
    np.testing.assert_allclose(weights @ means, codes.mean(axis=0), atol=1e-6)


def start_of(prior="normal", rows=X, **params):
    """Estimator at its start."""
    return small_vae(**{"prior": prior, "max_iter": 0} | params).fit(rows)


def linear_start(prior, rows, **params):
    """A linear model at its start."""
    return start_of(prior, rows, hidden_layer_sizes=(), **params)


def moving_vae(**params):
    """Estimator that always leaves its start."""
    return small_vae(**{"early_stopping": False, "learning_rate": 1e-2} | params)


def values_of(prior, k, seed=None):
    """Parameters in float64: those it starts with, or others around them."""
    values = {name: v.double() for name, v in prior.parameters(k).items()}
    if seed is None:
        return values
    generator = torch.Generator().manual_seed(seed)
    return {
        name: v + 0.3 * torch.randn(v.shape, generator=generator, dtype=v.dtype)
        for name, v in values.items()
    }


def as_arrays(values):
    return {name: v.numpy() for name, v in values.items()}


def normal(*shape, seed=0):
    return torch.tensor(np.random.RandomState(seed).standard_normal(shape))


def components_of(vae):
    """Weights, means and covariances of a mixture of codes."""
    log_weights, means, precisions = vae.module_.prior.gaussians(
        vae.module_.n_components
    )
    return log_weights.exp().numpy(), means.numpy(), np.linalg.inv(precisions.numpy())


def linear_map_of(vae):
    """Matrix and offset of a linear decoder, in the units of the data."""
    k = vae.module_.n_components
    offset = vae.inverse_transform(np.zeros((1, k)))[0]
    return (vae.inverse_transform(np.eye(k)) - offset).T, offset


def law_of_rows(vae, sigma=None):
    """Weights, means and covariances of the rows of a linear model, noise included."""
    weights_, means, covariances = components_of(vae)
    matrix, offset = linear_map_of(vae)
    sigma = vae.sigma_ if sigma is None else sigma
    noise = np.eye(len(offset)) * np.square(sigma)
    return weights_, means @ matrix.T + offset, matrix @ covariances @ matrix.T + noise


def log_joint(rows, weights_, means, covariances):
    """Log-probabilities (K, n) of rows and components."""
    parts = zip(weights_, means, covariances, strict=True)
    each = [
        np.log(weight) + stats.multivariate_normal(mean, covariance).logpdf(rows)
        for weight, mean, covariance in parts
    ]
    return np.array(each)


def log_likelihood(rows, weights_, means, covariances):
    return logsumexp(log_joint(rows, weights_, means, covariances), axis=0)


def moments(weights_, means, covariances):
    """Mean and covariance of a mixture."""
    mean = weights_ @ means
    around = means - mean
    between = np.einsum("j,ja,jb->ab", weights_, around, around)
    return mean, np.einsum("j,jab->ab", weights_, covariances) + between


def assert_moments(drawn, mean, covariance):
    """Means and covariances are within four and a half of their standard errors."""
    n_rows, around = len(drawn), drawn - mean
    squares = np.square(around)
    spread = np.sqrt(squares.mean(axis=0) / n_rows)
    assert (np.abs(around.mean(axis=0)) < 4.5 * spread).all()
    found = around.T @ around / n_rows
    spread = np.sqrt((squares.T @ squares / n_rows - found**2) / n_rows)
    assert (np.abs(found - covariance) < 4.5 * spread).all()


# The contract

SEEDS = pytest.mark.parametrize("seed", [None, 0, 1])
ALL = pytest.mark.parametrize("prior", PRIORS, ids=repr)


def grid_of(k):
    """Codes, and what each stands for in an integral."""
    axis = torch.linspace(-14, 14, 4001 if k == 1 else 281, dtype=torch.float64)
    return torch.cartesian_prod(*[axis] * k).reshape(-1, k), (axis[1] - axis[0]) ** k


@ALL
@SEEDS
@pytest.mark.parametrize("k", [1, 2])
def test_samples_follow_a_density_that_integrates_to_one(prior, k, seed):
    values = values_of(prior, k, seed)
    z, volume = grid_of(k)
    density = (prior.log_prob(z, **values).exp() * volume).numpy()
    assert density.sum() == pytest.approx(1, abs=1e-4)
    mean = density @ z.numpy()
    around = z.numpy() - mean
    covariance = np.einsum("n,na,nb->ab", density, around, around)
    drawn = prior.sample(20_000, k, np.random.RandomState(0), **as_arrays(values))
    assert drawn.shape == (20_000, k)
    assert_moments(drawn, mean, covariance)
    if k == 1:
        edges = z[:, 0].numpy()
        shares = np.cumsum(density) - 0.5 * density
        law = stats.kstest(drawn[:, 0], lambda x: np.interp(x, edges, shares))
        assert law.pvalue > 0.01


@ALL
@SEEDS
def test_log_density_sums_over_the_last_dimension(prior, seed):
    values, z = values_of(prior, 3, seed), normal(4, 5, 3)
    found = prior.log_prob(z, **values)
    assert found.shape == (4, 5)
    for i, j in np.ndindex(4, 5):
        torch.testing.assert_close(found[i, j], prior.log_prob(z[i, j], **values))
    torch.testing.assert_close(found[2], prior.log_prob(z[2], **values))
    in_float32 = {name: value.float() for name, value in values.items()}
    rounded = prior.log_prob(z.float(), **in_float32)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), found, rtol=1e-4, atol=1e-4)


@ALL
def test_gradients_of_codes_and_of_all_parameters_are_those_of_the_density(prior):
    values = values_of(prior, 2, seed=0)
    names, numbers = list(values), [v.requires_grad_() for v in values.values()]

    def log_prob(z, *numbers):
        return prior.log_prob(z, **dict(zip(names, numbers, strict=True)))

    z = normal(5, 2).requires_grad_()
    assert torch.autograd.gradcheck(log_prob, (z, *numbers))
    gradients = torch.autograd.grad(log_prob(z, *numbers).sum(), [z, *numbers])
    # Weights that sum to one have no gradient if there is one of them.
    is_single = getattr(prior, "n_components", None) == 1
    for name, gradient in zip(["z", *names], gradients, strict=True):
        assert gradient.any() or (name == "log_weights" and is_single)


@ALL
def test_stacks_of_parameters_are_one_by_one(prior):
    members = [build_prior(prior, values_of(prior, 2, seed)) for seed in range(3)]
    stack = stack_priors(members, 2)
    for shape in [(3, 6, 2), (3, 4, 6, 2)]:
        z = normal(*shape).float()
        found = stack.log_prob(z)
        assert found.shape == shape[:-1]
        for i, member in enumerate(members):
            torch.testing.assert_close(found[i], member.log_prob(z[i]))


@ALL
def test_priors_are_estimators(prior):
    assert repr(clone(prior)) == repr(prior)
    assert clone(prior).get_params() == prior.get_params()
    assert resolve_prior(prior) is prior
    pickled = pickle.loads(pickle.dumps(prior))
    z, values = normal(4, 2), values_of(prior, 2)
    assert torch.equal(pickled.log_prob(z, **values), prior.log_prob(z, **values))
    names = {f"prior__{name}" for name in prior.get_params()}
    assert names <= SigmaVAE(prior=prior).get_params().keys()
    # What training starts with is the same each time, and near the standard normal.
    again = values_of(prior, 2)
    assert all(torch.equal(again[name], value) for name, value in values.items())
    drawn = prior.sample(5000, 2, np.random.RandomState(0), **as_arrays(values))
    np.testing.assert_allclose(drawn.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(np.cov(drawn.T), np.eye(2), atol=0.1)


@ALL
def test_fits_leave_the_prior_as_it_was(prior):
    before = copy.deepcopy(vars(prior))
    vae = small_vae(prior=prior).fit(X)
    assert vae.prior is prior
    assert vars(prior) == before
    assert same_weights(weights(clone(vae).fit(X)), weights(vae))


def test_a_fitted_model_keeps_the_prior_that_it_was_fitted_with(tmp_path):
    vae = small_vae(prior=MixturePrior(3)).fit(X)
    vae.set_params(prior__n_components=9)
    vae.save(tmp_path / "model")
    loaded = SigmaVAE.load(tmp_path / "model", device="cpu")
    assert loaded.module_.prior.recipe.n_components == 3
    assert loaded.prior.n_components == 9
    np.testing.assert_array_equal(loaded.score_samples(X), vae.score_samples(X))


def test_the_logistic_prior_of_these_tests_is_scipys():
    prior, z = LogisticPrior(0.7), normal(20, 3)
    expected = stats.logistic.logpdf(z, scale=0.7).sum(axis=1)
    found = prior.log_prob(z, **values_of(prior, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# Mixtures


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("n_gaussians", [1, 4])
def test_a_mixture_agrees_with_scipy_and_scikit_learn(k, n_gaussians):
    prior = MixturePrior(n_gaussians)
    values, z = values_of(prior, k, seed=2), 2 * normal(50, k)
    log_weights, means, precisions = (
        part.numpy() for part in prior.gaussians(**values)
    )
    assert np.exp(log_weights).sum() == pytest.approx(1)
    law = np.exp(log_weights), means, np.linalg.inv(precisions)
    found = prior.log_prob(z, **values).numpy()
    expected = log_likelihood(z.numpy(), *law).ravel()
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    theirs = GaussianMixture(n_gaussians)
    theirs.weights_, theirs.means_, theirs.covariances_ = law
    theirs.precisions_cholesky_ = np.linalg.cholesky(precisions)
    np.testing.assert_allclose(found, theirs.score_samples(z.numpy()), rtol=1e-10)
    drawn = prior.sample(20_000, k, np.random.RandomState(0), **as_arrays(values))
    assert_moments(drawn, *moments(*law))


def random_mixture(k, n_gaussians=3, seed=0):
    """Weights, means and covariances."""
    rng = np.random.RandomState(seed)
    factors = rng.standard_normal((n_gaussians, k, k)) + 2 * np.eye(k)
    weights_ = rng.dirichlet(np.full(n_gaussians, 3.0))
    return weights_, rng.standard_normal((n_gaussians, k)), factors @ factors.mT


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_start_has_given_weights_means_and_covariances(k):
    prior, fitted = MixturePrior(3), random_mixture(k)
    gain, variance = np.linspace(0.2, 0.9, k), np.linspace(0.5, 0.1, k)
    scaled = fitted[2] * gain[:, None] * gain + np.diag(variance)
    for arguments, covariances in [
        ((np.ones(k), np.zeros(k)), fitted[2]),
        ((gain, variance), scaled),
    ]:
        start = prior.start(fitted, *arguments)
        wanted = {name: v.shape for name, v in prior.parameters(k).items()}
        assert {name: v.shape for name, v in start.items()} == wanted
        values = {name: v.double() for name, v in start.items()}
        log_weights, means, precisions = prior.gaussians(**values)
        np.testing.assert_allclose(log_weights.exp(), fitted[0], rtol=1e-5)
        np.testing.assert_allclose(means, arguments[0] * fitted[1], rtol=1e-5)
        found = np.linalg.inv(precisions)
        np.testing.assert_allclose(found, covariances, rtol=1e-4, atol=1e-4)


def test_its_first_parameters_have_the_moments_of_the_standard_normal():
    for n_gaussians in (2, 10, 50):
        prior = MixturePrior(n_gaussians)
        log_weights, means, precisions = prior.gaussians(**values_of(prior, 3))
        mean, covariance = moments(
            log_weights.exp().numpy(), means.numpy(), np.linalg.inv(precisions)
        )
        np.testing.assert_allclose(mean, 0, atol=1e-6)
        np.testing.assert_allclose(np.diag(covariance), 1, atol=1e-6)
        # Gaussians that are all the same would stay the same.
        assert np.ptp(means.numpy(), axis=0).min() > 0.1


def test_one_gaussian_is_the_standard_normal():
    z, prior = normal(50, 3), MixturePrior(1)
    found = prior.log_prob(z, **values_of(prior, 3))
    torch.testing.assert_close(found, NormalPrior().log_prob(z))
    np.testing.assert_allclose(found, stats.norm.logpdf(z).sum(axis=1))


# The start


@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
@pytest.mark.parametrize(
    "sigma", [0.3, "mle", "auto", np.linspace(0.2, 0.4, 5)], ids=str
)
def test_with_one_gaussian_the_model_is_that_of_the_normal_prior(noise, sigma):
    one = start_of(MixturePrior(1), noise=noise, sigma=sigma)
    other = start_of(noise=noise, sigma=sigma)
    assert one.score(X) == pytest.approx(other.score(X), abs=1e-5)
    np.testing.assert_allclose(one.transform(X), other.transform(X), atol=1e-5)
    for n in (None, 8):
        np.testing.assert_allclose(
            one.score_samples(X, n_importance_samples=n),
            other.score_samples(X, n_importance_samples=n),
            atol=1e-5,
        )
    np.testing.assert_allclose(
        one.kl_divergence(X), other.kl_divergence(X).sum(axis=1), atol=1e-5
    )


@pytest.mark.parametrize("tau", [0.01, 0.3, 5.0])
def test_codes_and_their_uncertainty_have_the_covariance_of_the_standard_normal(tau):
    # Of five features seven components see five axes, and some of these are hidden.
    k, rows = 7, X - X.mean(axis=0)
    axes = PrincipalAxes.of_data(rows, 5)
    gain, _, variance = axes.optimal_codes(k, tau)
    n_used = (axes.eigenvalues > tau).sum()
    assert (gain > 0).tolist() == [i < n_used for i in range(k)]
    coordinates = np.zeros((len(rows), k))
    coordinates[:, :5] = rows @ axes.axes / axes.unit
    covariance = coordinates.T @ coordinates / len(rows)
    fitted = np.ones(1), np.zeros((1, k)), covariance[None]
    prior = MixturePrior(1)
    start = prior.start(fitted, gain * axes.unit, variance)
    standard = prior.parameters(k)
    for name, value in start.items():
        torch.testing.assert_close(value, standard[name], rtol=0, atol=1e-6)


def test_hidden_components_start_at_the_standard_normal():
    vae = linear_start(MixturePrior(3), clustered_rows(), n_components=4, sigma=1.0)
    _, means, covariances = components_of(vae)
    assert vae.n_active_components_ == 2
    np.testing.assert_allclose(means[:, 2:], 0, atol=1e-6)
    for covariance in covariances:
        np.testing.assert_allclose(covariance[2:, 2:], np.eye(2), atol=1e-6)
        np.testing.assert_allclose(covariance[2:, :2], 0, atol=1e-6)


def test_models_with_other_sigma_start_at_one_mixture():
    # What a start makes of it is known: codes are coordinates times a gain, and have
    # the variance of the posterior on top.
    rows, found = clustered_rows(), []
    eigenvalues = spectrum(rows)[:2]
    for sigma in (0.3, 2.0):
        vae = linear_start(MixturePrior(3), rows, sigma=sigma)
        weights_, means, covariances = components_of(vae)
        gain = np.sqrt(eigenvalues - sigma**2) / eigenvalues
        covariances = covariances - np.diag(sigma**2 / eigenvalues)
        found.append((weights_, means / gain, covariances / gain / gain[:, None]))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_the_start_finds_clusters():
    rows = clustered_rows()
    vae = linear_start(MixturePrior(3), rows)
    weights_, means, covariances = components_of(vae)
    codes = vae.transform(rows)
    nearest = np.argmin(np.square(codes[:, None] - means).sum(axis=2), axis=1)
    shares = np.bincount(nearest, minlength=3) / len(rows)
    # The fit leaves out a tenth of the rows, and a fifth of the others for a choice.
    np.testing.assert_allclose(weights_, shares, atol=0.05)
    for j in range(3):
        of_cluster = codes[nearest == j]
        np.testing.assert_allclose(of_cluster.mean(axis=0), means[j], atol=0.06)
        _, std = vae.posterior(rows)
        spread = np.cov(of_cluster.T) + np.diag(np.square(std[0]))
        np.testing.assert_allclose(covariances[j], spread, atol=0.03)


# The linear model, exactly


@pytest.mark.parametrize(
    ("k", "n_features", "n_scored", "sigma"),
    [
        (2, 5, 100, 0.3),
        (2, 5, 100, np.linspace(0.2, 0.4, 5)),
        (8, 12, 60, 0.3),
        (40, 60, 12, 0.3),
    ],
    ids=["2", "2, sigma per feature", "8", "40"],
)
def test_a_linear_model_is_a_mixture_of_normal_distributions(
    k, n_features, n_scored, sigma
):
    X = clustered_rows(200, n_features, k=k)
    vae = linear_start(MixturePrior(3), X, n_components=k, sigma=sigma)
    law, rows = law_of_rows(vae), clustered_rows(n_scored, n_features, k=k, seed=0)
    exact = log_likelihood(rows, *law)
    tight = vae.score_samples(rows, n_importance_samples=4096)
    assert tight.mean() == pytest.approx(exact.mean(), abs=0.02)
    np.testing.assert_allclose(tight, exact, atol=0.1)
    bound = vae.score_samples(rows)
    # Below the truth but for the error of the points.
    assert (bound - exact).max() < 0.07
    assert bound.mean() < exact.mean()
    if k < 40:
        # Clusters are not one normal distribution, if there are rows enough to see it.
        other = linear_start("normal", X, n_components=k, sigma=sigma)
        assert exact.mean() > other.score(rows) + 0.5
    drawn = vae.sample(20_000, add_noise=True, random_state=0)
    assert_moments(drawn, *moments(*law))


@pytest.mark.parametrize(
    ("prior", "margin"), [(MixturePrior(2), 7), (LogisticPrior(), 12)], ids=repr
)
def test_the_density_of_a_trained_model_integrates_to_one(prior, margin):
    X = clustered_rows(120, 2)
    vae = moving_vae(prior=prior, sigma=0.5, max_iter=5).fit(X)
    assert np.abs(vae.transform(X) - start_of(prior, X).transform(X)).max() > 0.01
    # Of what is this smooth a sum over a grid is the integral.
    step = 0.6
    edges = zip(X.min(axis=0) - margin, X.max(axis=0) + margin, strict=True)
    axes = [np.arange(low, high, step) for low, high in edges]
    grid = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    tight = np.exp(vae.score_samples(grid, n_importance_samples=256)) * step**2
    assert tight.sum() == pytest.approx(1, abs=0.01)
    bound = np.exp(vae.score_samples(grid)) * step**2
    assert 0.5 < bound.sum() < 1.01


# The bound


@pytest.fixture(scope="module", params=[MixturePrior(3), LogisticPrior()], ids=repr)
def module(request):
    """Nonlinear module with random weights and some prior, in float64."""
    params = {"n_components": 3, "hidden_layer_sizes": (20,), "init": "random"}
    vae = start_of(request.param, low_rank_rows(n_features=6), **params)
    return vae.module_.double()


@pytest.mark.parametrize("shape", [(50, 3), (4, 50, 3)])
def test_loss_is_minus_the_bound(module, shape):
    noise, x, eps = GeneralizedNormalNoise(2.0), normal(50, 6), normal(*shape)
    points = eps if eps.ndim == 3 else eps[None]
    log_likelihood, kl = elbo_terms(module, noise, x, points, 0.3)
    posterior = module.encode(x)
    law = torch.distributions.Normal(posterior.mean, posterior.std)
    prior, values = module.prior.recipe, module.prior.named_values()
    log_prior = prior.log_prob(law.mean + law.stddev * points, **values)
    torch.testing.assert_close(kl, -law.entropy().sum(1) - log_prior)
    criterion = NegativeELBO(noise, 2.5, 0.3)
    loss = criterion.in_nats(module, criterion(module, x, eps).detach(), FactsOfRows(x))
    expected = 2.5 * kl.mean() - log_likelihood.mean() + 7.0
    assert loss == pytest.approx(expected.item())


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_equivalence_of_beta_and_sigma(module, exponent):
    noise, x, eps = GeneralizedNormalNoise(exponent), normal(50, 6), normal(50, 3)

    def gradients(sigma, beta):
        loss = NegativeELBO(noise, beta, sigma)(module, x, eps)
        names = [name for name, _ in module.named_parameters()]
        found = torch.autograd.grad(loss, list(module.parameters()))
        return dict(zip(names, found, strict=True))

    beta = equivalent_beta(0.4, 0.9, noise)
    one, other = gradients(0.4, beta), gradients(0.9, 1.0)
    assert sum(name.startswith("prior.") for name in one) == len(
        module.prior.named_values()
    )
    for name, gradient in one.items():
        scaled = beta * other[name]
        assert scaled.any()
        atol = 1e-10 * scaled.abs().max().item()
        torch.testing.assert_close(gradient, scaled, rtol=1e-10, atol=atol, msg=name)


def hermite_points(k, n=40):
    """Points and weights of an expectation over the standard normal."""
    x, w = np.polynomial.hermite_e.hermegauss(n)
    points = np.stack(np.meshgrid(*[x] * k), axis=-1).reshape(-1, k)
    factors = np.stack(np.meshgrid(*[w / w.sum()] * k), axis=-1)
    return points, factors.reshape(-1, k).prod(axis=1)


def test_kl_divergence_is_an_expectation_over_the_posterior():
    X = clustered_rows(100)
    vae = moving_vae(prior=MixturePrior(3), max_iter=5).fit(X)
    kl = vae.kl_divergence(X)
    assert kl.shape == (100,)
    assert vae.kl_divergence(X.astype(np.float32)).dtype == np.float32
    mean, std = vae.posterior(X)
    law = components_of(vae)

    def difference(eps):
        z = mean + std * eps
        q = stats.norm.logpdf(z, mean, std).sum(axis=-1)
        return q - log_likelihood(z, *law)

    points, factors = hermite_points(2)
    exact = factors @ difference(points[:, None])
    np.testing.assert_allclose(kl, exact, atol=5e-3)
    assert kl.mean() == pytest.approx(exact.mean(), abs=1e-3)
    # And by draws, of each row its own.
    drawn = difference(np.random.RandomState(0).standard_normal((1000, 100, 2)))
    error = drawn.std(axis=0) / np.sqrt(1000)
    assert (np.abs(drawn.mean(axis=0) - kl) < 4 * error + 5e-3).all()


@pytest.mark.parametrize("prior", ["normal", NormalPrior()], ids=repr)
def test_kl_divergence_of_the_normal_prior_splits_into_components(prior):
    vae = small_vae(prior=prior).fit(X)
    mean, std = vae.posterior(X)
    exact = 0.5 * (mean**2 + std**2 - 1 - 2 * np.log(std))
    np.testing.assert_allclose(vae.kl_divergence(X), exact, rtol=1e-6, atol=1e-9)


# Refinement


def posteriors_of_components(vae, rows, known, sigma):
    """Log-probabilities (K, n), means and precisions of codes, by component and row.

    Each component is a linear model with Gaussian noise, whose posterior is known.
    """
    weights_, means, covariances = components_of(vae)
    matrix, offset = linear_map_of(vae)
    joint = np.empty((len(weights_), len(rows)))
    found = np.empty((*joint.shape, means.shape[1]))
    precisions = np.empty_like(found)
    for j, i in np.ndindex(joint.shape):
        part, seen = matrix[known[i]], known[i]
        residual = rows[i, seen] - offset[seen] - part @ means[j]
        noise = np.eye(seen.sum()) * sigma**2
        covariance = part @ covariances[j] @ part.T + noise
        pull = covariances[j] @ part.T @ np.linalg.inv(covariance)
        found[j, i] = means[j] + pull @ residual
        law = stats.multivariate_normal(cov=covariance)
        joint[j, i] = np.log(weights_[j]) + law.logpdf(residual)
        total = np.linalg.inv(covariances[j]) + part.T @ part / sigma**2
        precisions[j, i] = np.diag(total)
    return joint, found, precisions


@pytest.mark.parametrize("missing", [0.0, 0.4])
@pytest.mark.parametrize("sigma", [0.5, 1.5])
def test_noisy_rows_have_the_posterior_of_their_most_likely_component(sigma, missing):
    X, rng = clustered_rows(60), np.random.RandomState(1)
    vae = linear_start(MixturePrior(3), X)
    known = rng.rand(*X.shape) >= missing
    known[:, 0] = True
    rows = X + sigma * rng.standard_normal(X.shape)
    joint, means, precisions = posteriors_of_components(vae, rows, known, sigma)
    found, std = vae.posterior(np.where(known, rows, np.nan), noise_scale=sigma)
    best, each = joint.argmax(axis=0), np.arange(len(X))
    # Elsewhere the posterior has more than one mode.
    is_sure = np.exp(joint.max(axis=0) - logsumexp(joint, axis=0)) > 0.999
    assert is_sure.mean() > 0.3
    expected = means[best, each][is_sure]
    np.testing.assert_allclose(found[is_sure], expected, atol=0.02)
    # The best width, with the others held, is that of the precision's diagonal.
    width = 1 / np.sqrt(precisions[best, each][is_sure])
    np.testing.assert_allclose(std[is_sure], width, rtol=0.02)


def test_the_most_likely_component_takes_account_of_the_weights():
    X, sigma = clustered_rows(60), 4.0
    vae = linear_start(MixturePrior(3), X)
    with torch.no_grad():
        vae.module_.prior.log_weights += torch.tensor([4.0, 0.0, -4.0])
    rows = X + sigma * np.random.RandomState(1).standard_normal(X.shape)
    known = np.ones_like(rows, dtype=bool)
    joint, means, precisions = posteriors_of_components(vae, rows, known, sigma)
    best, each = joint.argmax(axis=0), np.arange(len(X))
    weights_, *_ = components_of(vae)
    likeliest = (joint - np.log(weights_)[:, None]).argmax(axis=0)
    assert (best != likeliest).sum() > 10
    module, observed = observe(vae._model, rows, sigma, None, None)
    found = linear_posterior(module, observed)
    np.testing.assert_allclose(found.mean, means[best, each], atol=1e-4)
    width = -np.log(precisions[best, each])
    np.testing.assert_allclose(found.log_var, width, atol=1e-4)


@pytest.mark.parametrize("hidden_layer_sizes", [(), (8,)], ids=str)
def test_clusters_help_to_denoise(hidden_layer_sizes):
    X = clustered_rows(120)
    noisy = X + 2.0 * np.random.RandomState(1).standard_normal(X.shape)
    errors = []
    for prior in (MixturePrior(3), "normal"):
        params = {"hidden_layer_sizes": hidden_layer_sizes}
        vae = small_vae(prior=prior, **params).fit(X)
        errors.append(np.square(vae.denoise(noisy, noise_scale=2.0) - X).mean())
        assert vae.estimate_noise_scale(noisy) == pytest.approx(2.0, rel=0.2)
    assert errors[0] < 0.6 * errors[1]


def test_rows_are_refined_under_a_custom_prior():
    X = clustered_rows(60)
    noisy = X + 2.0 * np.random.RandomState(1).standard_normal(X.shape)
    noisy[::3, 1] = np.nan
    vae = small_vae(prior=LogisticPrior()).fit(X)
    restored = vae.denoise(noisy, noise_scale=2.0)
    assert np.square(restored - X).mean() < 0.6 * np.nanmean(np.square(noisy - X))


# Stacks and paths


def assert_same_search(vae, grid, rows=X):
    searches = [
        search(vae, grid, cv=CV).fit(rows)
        for search in (BatchedGridSearchCV, GridSearchCV)
    ]
    ours, others = (
        [search.cv_results_[f"split{i}_test_score"] for i in range(2)]
        for search in searches
    )
    np.testing.assert_allclose(ours, others, rtol=0, atol=1e-5)
    assert searches[0].best_params_ == searches[1].best_params_
    assert len(np.unique(ours)) == np.size(ours)


@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
def test_a_batched_search_finds_what_scikit_learns_finds(noise):
    vae = moving_vae(prior=MixturePrior(), noise=noise, learning_rate=2e-3, max_iter=2)
    grid = {"sigma": [0.2, 1.0], "prior__n_components": [1, 3]}
    assert_same_search(vae, grid, clustered_rows(80))


def test_a_custom_prior_is_searched_over():
    grid = {"sigma": [0.2, 0.5], "prior__scale": [0.3, 0.55]}
    assert_same_search(moving_vae(prior=LogisticPrior(), max_iter=1), grid)
    grid = {"prior": ["normal", "mixture", LogisticPrior()]}
    assert_same_search(moving_vae(max_iter=1), grid)


@pytest.mark.parametrize("prior", ["mixture", LogisticPrior()], ids=repr)
def test_along_a_path_the_divergence_grows(prior):
    rows = clustered_rows(80)
    path = sigma_path(
        rows, n_sigmas=5, eps=0.05, estimator=small_vae(prior=prior), max_iter=1, cv=2
    )
    assert (np.diff(path.sigmas) < 0).all()
    assert (np.diff(path.kl) > 0).all()
    assert np.isfinite(path.test_scores).all()
    assert path.kl[0] < 0.1
    kl = path.estimators[-1].kl_divergence(rows).mean()
    assert path.kl[-1] == pytest.approx(kl, rel=1e-4)


def test_without_training_each_model_of_a_path_is_that_of_its_own_start():
    rows, vae = clustered_rows(80), small_vae(prior=MixturePrior(3), max_iter=0)
    sigmas = [4.0, 1.0, 0.3]
    path = sigma_path(rows, sigmas, estimator=vae, max_iter=0)
    # All models of a path have the seed that it draws, and so the same held-out rows.
    vae.set_params(random_state=np.random.RandomState(0).randint(2**31 - 1))
    for sigma, estimator in zip(sigmas, path.estimators, strict=True):
        alone = clone(vae).set_params(sigma=sigma).fit(rows)
        assert estimator.score(rows) == pytest.approx(alone.score(rows), abs=1e-4)
        ours, others = components_of(estimator), components_of(alone)
        for a, b in zip(ours, others, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


# Files


def behaviour(vae):
    return [
        vae.transform(X),
        vae.score_samples(X),
        vae.score_samples(X, n_importance_samples=5),
        vae.kl_divergence(X),
        vae.sample(5, add_noise=True, random_state=0),
        vae.denoise(X[:5], noise_scale=1.0, max_iter=3),
    ]


def assert_same_model(a, b):
    for ours, others in zip(behaviour(a), behaviour(b), strict=True):
        np.testing.assert_array_equal(ours, others)
    assert repr(a.module_.prior.recipe) == repr(b.module_.prior.recipe)


SAVED = {
    "normal": ("normal", {}),
    "mixture": ("mixture", {}),
    "object": (MixturePrior(3), {}),
    "one": (MixturePrior(1), {}),
    "custom": (LogisticPrior(0.7), {"prior": LogisticPrior(0.7)}),
}


@pytest.mark.parametrize(("prior", "custom"), SAVED.values(), ids=SAVED)
def test_a_loaded_model_is_the_saved_one(prior, custom, tmp_path):
    path = tmp_path / "model.safetensors"
    vae = moving_vae(prior=prior).fit(X)
    vae.save(path)
    loaded = SigmaVAE.load(path, device="cpu", **custom)
    state = vae.__getstate__()
    restored = SigmaVAE()
    restored.__setstate__(state)
    copies = [copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))]
    for same in (loaded, restored, *copies):
        assert_same_model(same, vae)
        assert same.prior == prior or repr(same.prior) == repr(prior)
    assert same_weights(weights(clone(loaded).fit(X)), weights(vae))
    before = weights(loaded)
    loaded.partial_fit(X)
    moved = {name for name, v in weights(loaded).items() if not v.equal(before[name])}
    idle = {"log_weights"} if repr(prior) == "MixturePrior(n_components=1)" else set()
    assert {
        f"prior.{name}" for name in vae.module_.prior.named_values().keys() - idle
    } <= moved


def test_a_custom_prior_is_passed_to_load(tmp_path):
    path = tmp_path / "model.safetensors"
    small_vae(prior=LogisticPrior()).fit(X).save(path)
    with pytest.raises(
        ModelFileError, match=r"prior is custom.*LogisticPrior.*prior=\.\.\."
    ):
        SigmaVAE.load(path)
    for prior in ("normal", LogisticPrior):
        with pytest.raises(ValueError, match=r"'prior' parameter of SigmaVAE\.load"):
            SigmaVAE.load(path, prior=prior)

    class OtherPrior(LogisticPrior):
        pass

    with pytest.warns(UserWarning, match="with a prior of the class .*LogisticPrior"):
        SigmaVAE.load(path, prior=OtherPrior())
    small_vae(prior=MixturePrior(2)).fit(X).save(path)
    with pytest.raises(ModelFileError, match="without prior="):
        SigmaVAE.load(path, prior=LogisticPrior())


@pytest.mark.parametrize(
    ("n_components", "message"),
    [
        *[(n, "'n_components' of MixturePrior") for n in (0, -1, 2.5, "3", None, True)],
        *[(n, "weights are not those") for n in (1, 2)],
        *[(n, "more components than parameters") for n in (9, 10**9)],
    ],
    ids=str,
)
def test_a_file_whose_prior_lies_is_refused(n_components, message, tmp_path):
    path = tmp_path / "model.safetensors"
    small_vae(prior=MixturePrior(3)).fit(X).save(path)
    header, arrays = _files.read_model(path)
    header["prior"]["params"]["n_components"] = n_components
    _files.write_model(path, header, arrays)
    with pytest.raises(ModelFileError, match=message):
        SigmaVAE.load(path)


def test_a_file_whose_prior_has_other_parameters_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    small_vae(prior=MixturePrior(3)).fit(X).save(path)
    header, arrays = _files.read_model(path)
    means = arrays["module.prior.means"]
    for spoilt in (
        {name: a for name, a in arrays.items() if name != "module.prior.means"},
        arrays | {"module.prior.more": means},
        arrays | {"module.prior.means": means.astype(np.float64)},
        arrays | {"module.prior.means": means.T.copy()},
        arrays | {"module.prior.means": np.full_like(means, np.nan)},
    ):
        _files.write_model(path, header, spoilt)
        with pytest.raises(ModelFileError, match=r"weights|not finite"):
            SigmaVAE.load(path)
    header["prior"] = {"class": "NormalPrior", "params": {}}
    _files.write_model(path, header, arrays)
    with pytest.raises(ModelFileError, match="weights"):
        SigmaVAE.load(path)


# Errors


FEW = {"prior": MixturePrior(200)}
INVALID = {
    "zero": ({"prior": MixturePrior(0)}, X, "'n_components' of MixturePrior .* >= 1"),
    "float": ({"prior": MixturePrior(2.0)}, X, "'n_components' of MixturePrior"),
    "bool": ({"prior": MixturePrior(True)}, X, "'n_components' of MixturePrior"),
    "rows": (FEW, X, "n_components=200 .* are 54, not .*n_components=54"),
    "all rows": (FEW | {"early_stopping": False}, X, "There are 60, .*n_components=60"),
    "duplicates": (
        {"prior": MixturePrior(4)},
        np.repeat(X[:3], 20, axis=0),
        r"There are 3, .* prior=MixturePrior\(n_components=3\) or prior='normal'",
    ),
    "default": ({"prior": "mixture"}, X[:10], "n_components=10 .* There are 9,"),
    "class": ({"prior": MixturePrior}, X, "'prior' parameter of SigmaVAE .* instance"),
    "name": ({"prior": "uniform"}, X, "'prior' parameter of SigmaVAE .*'mixture'"),
    "none": ({"prior": None}, X, "'prior' parameter of SigmaVAE"),
}


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(("params", "rows", "message"), INVALID.values(), ids=INVALID)
def test_what_cannot_be_fitted_raises_before_training(params, rows, message, vae):
    for estimator in (small_vae(), copy.deepcopy(vae)):
        with (
            Unchanged(estimator.set_params(**params)),
            pytest.raises(ValueError, match=message),
        ):
            estimator.fit(rows)


@pytest.mark.parametrize("scale", [0.1, 1.0, 300.0])
def test_the_mixture_starts_well_whatever_the_scale_of_a_column(scale):
    random_state = np.random.RandomState(0)
    normals = []
    for sign in (-1, 1):
        covariance = np.diag([0.1 * scale**2, 1.0, 1.0])
        covariance[1, 2] = covariance[2, 1] = 0.9 * sign
        normals.append(stats.multivariate_normal([2 * sign * scale, 0, 0], covariance))
    rows = np.concatenate([each.rvs(600, random_state) for each in normals])
    random_state.shuffle(rows)
    params = {"sigma": 0.03 * min(1.0, scale), "max_iter": 0, "early_stopping": False}
    vae = small_vae(n_components=3, prior=MixturePrior(2), **params).fit(rows[:800])
    densities = [each.logpdf(rows[800:]) for each in normals]
    truth = logsumexp(densities, axis=0, b=1 / 2).mean()
    assert abs(vae.score(rows[800:]) - truth) < 0.05


def test_autocast_does_not_round_the_density():
    recipe = MixturePrior(3)
    prior = build_prior(recipe, recipe.parameters(4))
    # Narrow components, far from the origin.
    prior.log_scale.data += 5.0
    prior.means.data += 2.0
    z = prior.means.detach() + 0.01
    expected = prior.log_prob(z)
    with torch.autocast("cpu", torch.bfloat16):
        found = prior.log_prob(z)
    torch.testing.assert_close(found, expected)


def test_as_many_gaussians_as_rows_can_be_fitted():
    rows = np.repeat(X[:4], 15, axis=0)
    vae = small_vae(prior=MixturePrior(4)).fit(rows)
    assert np.isfinite(vae.score_samples(X)).all()


def raises(self, z, log_scale):
    raise RuntimeError("no such density")


def unnormalized(self, z, log_scale):
    return LogisticPrior.log_prob(self, z, log_scale) + 0.1


SPOILT = {
    "no sum": (
        "log_prob",
        lambda self, z, log_scale: -(z**2),
        "must be",
    ),
    "sums over all": (
        "log_prob",
        lambda self, z, log_scale: -(z**2).sum(),
        r"log_prob of codes of shape \(4, 5, 3\) must be \(4, 5\), not \(\)",
    ),
    "not normalized": ("log_prob", unnormalized, "normalized.* integrates to 1.11"),
    "nan": (
        "log_prob",
        lambda self, z, log_scale: z.sum(-1) * float("nan"),
        "normalized.* integrates to nan",
    ),
    "raises": ("log_prob", raises, "failed on codes .* RuntimeError: no such density"),
    "other name": (
        "log_prob",
        lambda self, z, scale: -(z**2).sum(-1),
        "failed on codes .* TypeError.*log_scale",
    ),
    "sample": (
        "sample",
        lambda self, n, k, random_state, log_scale: np.zeros(n),
        r"sample must return arrays of shape \(n_samples, 3\), not \[\(1,\), \(4,\)",
    ),
    "as many samples": (
        "sample",
        lambda self, n, k, random_state, log_scale: np.zeros((1, k)),
        r"sample must return arrays of shape",
    ),
    "tensors": (
        "sample",
        lambda self, n, k, random_state, log_scale: torch.zeros(n, k),
        "sample must return arrays",
    ),
    "one size": (
        "parameters",
        lambda self, k: {"log_scale": torch.full((2,), -0.6)},
        r"failed on codes of shape \(4, 5, 3\)",
    ),
    "parameters": ("parameters", lambda self, k: None, "failed on codes"),
    "arrays": ("parameters", lambda self, k: {"log_scale": np.zeros(k)}, "failed on"),
}


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("name", ["training", "constant", "recipe"])
def test_parameters_need_names_of_their_own(name):
    class Renamed(LogisticPrior):
        def parameters(self, n_components):
            return {name: super().parameters(n_components)["log_scale"]}

        def log_prob(self, z, **values):
            return super().log_prob(z, values[name])

        def sample(self, n_samples, n_components, random_state, **values):
            return super().sample(n_samples, n_components, random_state, values[name])

    with pytest.raises(ValueError, match=f"Renamed.parameters .* '{name}'.* rename"):
        small_vae(prior=Renamed()).fit(X)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(("method", "function", "message"), SPOILT.values(), ids=SPOILT)
def test_a_prior_that_does_not_fit_raises_before_training(
    method, function, message, vae
):
    prior = type("Spoilt", (LogisticPrior,), {method: function})()
    for estimator in (small_vae(), copy.deepcopy(vae)):
        with (
            Unchanged(estimator.set_params(prior=prior)),
            pytest.raises(ValueError, match=f"Spoilt.*{message}"),
        ):
            estimator.fit(X)
        with (
            Unchanged(estimator),
            pytest.raises(ValueError, match=r"Spoilt|cannot change prior"),
        ):
            estimator.partial_fit(X)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("normal", "mixture", "prior"),
        ("mixture", "normal", "prior"),
        (MixturePrior(2), MixturePrior(3), "prior__n_components"),
        (MixturePrior(2), LogisticPrior(), "prior"),
        (LogisticPrior(0.5), LogisticPrior(0.6), "prior__scale"),
    ],
    ids=str,
)
def test_a_fit_that_continues_cannot_change_the_prior(before, after, message):
    vae = small_vae(prior=before).fit(X)
    vae.set_params(prior=after, warm_start=True)
    for call in (vae.fit, vae.partial_fit):
        with (
            Unchanged(vae),
            pytest.raises(ValueError, match=f"cannot change .*{message}.* Clone"),
        ):
            call(X)
    vae.set_params(prior=clone(before) if isinstance(before, Prior) else before)
    assert vae.fit(X).partial_fit(X).n_iter_ == 7


# All that a model can be

DIGITS = {"network": "conv", "batch_size": 64, "max_iter": 1, "sigma": 3.0}
KINDS = {
    "table": {},
    "mle": {"sigma": "mle"},
    "laplace": {"noise": "laplace"},
    "sigma per feature": {"sigma": np.linspace(0.2, 0.4, 5)},
    "bernoulli": {"noise": "bernoulli"},
    "random": {"init": "random"},
    "no linear path": {"init": "random", "linear_path": False},
    "linear": {"hidden_layer_sizes": ()},
    "sgd": {"optimizer": "sgd", "learning_rate": 1e-3},
    "one component": {"n_components": 1},
    "more components than features": {"n_components": 7},
    "bfloat16": {"precision": "bfloat16"},
    "images": DIGITS,
    "beta": {"beta": 2.0},
}


CASES = [(kind, MixturePrior(3)) for kind in KINDS]
CASES += [(kind, LogisticPrior()) for kind in ("table", "mle", "bernoulli", "random")]


@pytest.mark.parametrize(("kind", "prior"), CASES, ids=str)
def test_the_prior_is_trained_in_every_kind_of_model(kind, prior, images):
    params = KINDS[kind] | {"prior": prior}
    rows = X
    if kind == "images":
        rows = images[:100]
    elif kind == "bernoulli":
        rows = (X > 1).astype(float)
    vae = moving_vae(**params, callbacks=[EpochRecorder()]).fit(rows)
    start = clone(vae).set_params(max_iter=0).fit(rows)
    before, after = start.module_.prior.named_values(), vae.module_.prior.named_values()
    assert before.keys() == after.keys()
    for name, value in after.items():
        # There is nothing to mix in one component.
        is_idle = name == "mixing" and vae.n_components == 1
        assert value.equal(before[name]) == is_idle
    for n in (None, 4):
        assert np.isfinite(vae.score_samples(rows, n_importance_samples=n)).all()
    assert vae.kl_divergence(rows).shape == (len(rows),)
    assert np.isfinite(vae.sample(5, add_noise=True, random_state=0)).all()
    assert all(rate > 0 for rate in callback_of(vae, EpochRecorder).learning_rates)
    # One epoch more, at a constant rate.
    partial = weights(vae.partial_fit(rows))
    assert all(value.isfinite().all() for value in partial.values())


def test_the_prior_has_the_learning_rate_of_the_networks():
    fits = [
        moving_vae(prior=MixturePrior(3), learning_rate=rate, max_iter=1).fit(X)
        for rate in (1e-12, 1e-2)
    ]
    start = weights(start_of(MixturePrior(3), early_stopping=False))
    still, moved = (weights(vae) for vae in fits)
    for name, value in start.items():
        if name.startswith("prior."):
            torch.testing.assert_close(still[name], value, rtol=0, atol=1e-9)
            # Adam's steps are about as long as its rate.
            assert 1e-3 < (moved[name] - value).abs().max() < 0.1


@pytest.mark.parametrize("prior", ["mixture", LogisticPrior()], ids=repr)
@pytest.mark.parametrize("max_iter", [0, 2])
def test_where_sigma_hides_everything_the_prior_is_the_standard_one(prior, max_iter):
    with pytest.warns(UserWarning, match="No component is in use at the start"):
        vae = moving_vae(prior=prior, sigma=100.0, max_iter=max_iter).fit(X)
    assert vae.n_active_components_ == 0
    if max_iter:
        assert np.isfinite(vae.score_samples(X)).all()
        return
    # Of a model that knows nothing of the codes the tight bound is the density.
    expected = stats.norm.logpdf(X, X.mean(axis=0), 100.0).sum(axis=1)
    tight = vae.score_samples(X, n_importance_samples=4096)
    np.testing.assert_allclose(tight, expected, atol=0.02)
    recipe = vae.module_.prior.recipe
    for name, value in recipe.parameters(2).items():
        assert torch.equal(vae.module_.prior.named_values()[name], value)


def test_training_moves_a_mixture_towards_its_codes():
    # From parameters that are not fitted, as a random start has them.
    X = clustered_rows(100)
    params = {"init": "random", "max_iter": 20, "hidden_layer_sizes": ()}
    scores = [
        moving_vae(prior=prior, **params).fit(X).score(X)
        for prior in ("normal", MixturePrior(3))
    ]
    assert scores[1] > scores[0] + 0.3


@pytest.mark.parametrize(
    "values",
    [
        lambda k: torch.full((k,), -0.6, dtype=torch.float64),
        lambda k: torch.tensor(-0.6).expand(k),
        lambda k: torch.zeros(k, dtype=torch.int64),
    ],
    ids=["float64", "expanded", "integers"],
)
def test_parameters_of_any_type_are_trained_in_float32(values, tmp_path):
    class TypedPrior(LogisticPrior):
        def parameters(self, n_components):
            return {"log_scale": values(n_components)}

    prior = TypedPrior()
    vae = small_vae(prior=prior).fit(X)
    assert vae.module_.prior.log_scale.dtype == torch.float32
    vae.save(tmp_path / "model.safetensors")
    same = SigmaVAE.load(tmp_path / "model.safetensors", prior=prior)
    np.testing.assert_array_equal(same.score_samples(X), vae.score_samples(X))


def test_priors_that_vmap_cannot_run_are_searched_one_by_one():
    class BranchingPrior(LogisticPrior):
        def log_prob(self, z, log_scale):
            if log_scale.max() > 3:
                log_scale = log_scale.clamp_max(3)
            return super().log_prob(z, log_scale)

    grid = {"sigma": [0.3, 0.6]}
    search = BatchedGridSearchCV(small_vae(prior=BranchingPrior()), grid, cv=2)
    with pytest.warns(UserWarning, match="vmap cannot run its prior"):
        search.fit(X)
    together = BatchedGridSearchCV(small_vae(prior=LogisticPrior()), grid, cv=2).fit(X)
    scores = (each.cv_results_["mean_test_score"] for each in (search, together))
    np.testing.assert_allclose(*scores, rtol=1e-5)
