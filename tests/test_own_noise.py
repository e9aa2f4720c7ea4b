"""A noise model of a user's own, through all that an estimator does."""

import numpy as np
import pytest
from scipy import stats
from small_vae import low_rank_rows, small_vae
from student_noise import StudentNoise

from sklearn_sigmavae import (
    BatchedGridSearchCV,
    SigmaVAE,
    equivalent_beta,
    sigma_path,
)


@pytest.fixture(scope="module", name="X")
def rows():
    return low_rank_rows()


@pytest.fixture(scope="module")
def model(X):
    return small_vae(noise=StudentNoise()).fit(X)


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
    params = {"max_iter": 40, "early_stopping": False}
    trained = small_vae(noise=StudentNoise(), **params).fit(X)
    assert trained.score(X) > start.score(X)
    assert model.n_active_components_ == 2


def test_samples_have_its_variance(X, model):
    clean = model.sample(20_000, random_state=0)
    noisy = model.sample(20_000, add_noise=True, random_state=0)
    expected = model.sigma_**2 * StudentNoise().variance_factor
    assert (noisy - clean).var() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("shape", ["number", "features", "rows", "entries"])
def test_noisy_rows_are_refined(X, model, shape):
    scale = {
        "number": 0.5,
        "features": np.full(5, 0.5),
        "rows": np.full((60, 1), 0.5),
        "entries": np.full((60, 5), 0.5),
    }[shape]
    Y = X + 0.5 * np.random.default_rng(0).standard_t(4, size=X.shape)
    expected = model.denoise(Y, noise_scale=0.5)
    np.testing.assert_allclose(
        model.denoise(Y, noise_scale=scale), expected, rtol=1e-3, atol=1e-3
    )
    assert np.square(expected - X).mean() < np.square(Y - X).mean()


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
def test_what_needs_a_power_says_so(model, X, call):
    with pytest.raises(ValueError, match="no power of its scale"):
        call(model, X)
