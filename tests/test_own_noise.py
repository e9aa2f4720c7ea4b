"""A custom noise model, through all that an estimator does."""

import numpy as np
import pytest
import torch
from scipy import stats
from small_vae import low_rank_rows, small_vae
from student_noise import StudentNoise

from sklearn_sigmavae import (
    BatchedGridSearchCV,
    GeneralizedNormalNoise,
    NoiseModel,
    SigmaVAE,
    equivalent_beta,
    sigma_path,
)


@pytest.fixture(scope="module", name="X")
def rows():
    return low_rank_rows()


@pytest.fixture(scope="module")
def model(X):
    params = {"max_iter": 40, "early_stopping": False}
    return small_vae(noise=StudentNoise(), **params).fit(X)


def test_the_score_is_that_of_the_density(X):
    # At such a scale all components stay at the prior, and the model is one density
    # around the mean of the data.
    sigma = 100.0
    with pytest.warns(UserWarning, match="sigma"):
        model = small_vae(noise=StudentNoise(3.0), sigma=sigma, max_iter=0).fit(X)
    expected = stats.t.logpdf(X, 3.0, X.mean(axis=0), sigma).sum(axis=1)
    np.testing.assert_allclose(model.score_samples(X), expected, rtol=1e-6)


def test_it_starts_at_pca_and_learns(X, model):
    start = small_vae(noise=StudentNoise(), max_iter=0).fit(X)
    random = small_vae(noise=StudentNoise(), max_iter=0, init="random").fit(X)
    assert start.score(X) > random.score(X) + 1
    assert model.score(X) > start.score(X)
    assert model.n_active_components_ == 2


def test_samples_have_its_variance(model):
    clean = model.sample(20_000, random_state=0)
    noisy = model.sample(20_000, add_noise=True, random_state=0)
    expected = model.sigma_**2 * StudentNoise().variance_factor
    assert (noisy - clean).var() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("shape", [(5,), (60, 1), (60, 5)], ids=str)
def test_noisy_rows_are_refined_each_at_its_scale(X, model, shape):
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.2, 1.0, shape)
    Y = X + scale * rng.standard_t(4, size=X.shape)
    restored = model.denoise(Y, noise_scale=scale)
    assert np.square(restored - X).mean() < np.square(Y - X).mean()
    of_rows = np.broadcast_to(scale, X.shape)
    for i in (0, 7, 59):
        alone = model.denoise(Y[[i]], noise_scale=of_rows[[i]])
        np.testing.assert_allclose(restored[[i]], alone, rtol=1e-3, atol=1e-3)


def test_missing_entries_do_not_count(X, model):
    Y = X.copy()
    Y[:, 2] = np.nan
    first = model.denoise(Y, noise_scale=0.3)
    assert np.isfinite(first).all()
    assert np.square(first - X)[:, 2].mean() < X[:, 2].var()


def test_the_start_is_that_of_gaussian_noise_of_its_variance(X):
    noise = StudentNoise()
    factor = np.sqrt(4.0 * noise.variance_factor)  # beta is 4
    start = small_vae(noise=noise, beta=4.0, sigma=0.1, max_iter=0).fit(X)
    gaussian = small_vae(sigma=0.1 * factor, max_iter=0).fit(X)
    np.testing.assert_allclose(start.transform(X), gaussian.transform(X), rtol=1e-4)


class CubicNoise(NoiseModel):
    """A density with an exponent, written as a user would write it."""

    exponent = 3.0

    def energy(self, x, location, scale):
        return (((x - location) / scale).abs() ** 3).sum(-1) / 3

    def log_normalizer(self, scale):
        return GeneralizedNormalNoise(3.0).log_normalizer(scale)

    def sample(self, location, scale, random_state):
        return GeneralizedNormalNoise(3.0).sample(location, scale, random_state)


def test_with_an_exponent_its_scale_is_found(X):
    own, same = (
        small_vae(noise=noise, sigma="mle", init="random").fit(X)
        for noise in (CubicNoise(), GeneralizedNormalNoise(3.0))
    )
    assert own.sigma_ == pytest.approx(same.sigma_, rel=1e-4)
    assert own.estimate_noise_scale(X) >= 0
    assert equivalent_beta(1.0, 2.0, noise=CubicNoise()) == 8


SPOILT = {
    "no sum": ("energy", lambda self, x, y, s: (x - y) / s, "energy must sum"),
    "scale after sum": (
        "energy",
        lambda self, x, y, s: (x - y).abs().sum(-1) / s,
        "failed on x of shape",
    ),
    "mean": (
        "energy",
        lambda self, x, y, s: ((x - y) / s).abs().mean(-1),
        "must be a sum over entries",
    ),
    "features": (
        "energy",
        lambda self, x, y, s: (x - y * torch.ones(4)).sum(-1) / s,
        "failed .* RuntimeError",
    ),
    "sample": ("sample", lambda self, y, s, r: y[0], "sample must return"),
    "tensor": ("log_normalizer", lambda self, s: s.log(), "failed"),
}


@pytest.mark.parametrize(("method", "function", "message"), SPOILT.values(), ids=SPOILT)
def test_a_model_that_does_not_fit_raises_before_training(method, function, message, X):
    noise = type("Spoilt", (StudentNoise,), {method: function})()
    with pytest.raises(ValueError, match=f"Spoilt.*{message}"):
        small_vae(noise=noise).fit(X)


def test_its_parameters_are_searched(X):
    search = BatchedGridSearchCV(
        small_vae(noise=StudentNoise()),
        {"noise__degrees": [3.0, 10.0], "sigma": [0.2, 0.4]},
        cv=2,
    ).fit(X)
    assert set(search.best_params_) == {"noise__degrees", "sigma"}
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_it_is_passed_to_load(model, X, tmp_path):
    model.save(tmp_path / "student")
    same = SigmaVAE.load(tmp_path / "student", noise=StudentNoise())
    np.testing.assert_array_equal(same.score_samples(X), model.score_samples(X))
    for noise in ("gaussian", StudentNoise):
        with pytest.raises(ValueError, match=r"'noise' parameter of SigmaVAE\.load"):
            SigmaVAE.load(tmp_path / "student", noise=noise)


def test_its_own_parameters_are_checked(X):
    with pytest.raises(ValueError, match="'degrees' of StudentNoise"):
        small_vae(noise=StudentNoise(1.0)).fit(X)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, X: small_vae(noise=StudentNoise(), sigma="mle").fit(X),
        lambda model, X: model.denoise(X),
        lambda model, X: model.posterior(X, noise_scale="estimate"),
        lambda model, X: model.estimate_noise_scale(X),
        lambda model, X: equivalent_beta(1.0, 2.0, noise=StudentNoise()),
        lambda model, X: sigma_path(X, estimator=small_vae(noise=StudentNoise())),
    ],
    ids=["mle", "denoise", "posterior", "estimate", "equivalent_beta", "sigma_path"],
)
def test_what_needs_a_power_raises(model, X, call):
    with pytest.raises(ValueError, match="has no exponent"):
        call(model, X)
