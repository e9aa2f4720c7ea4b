"""Torch's default type is the user's: results are the same bits whatever it is."""

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from small_vae import (
    BatchNormNetwork,
    DropoutNetwork,
    low_rank_rows,
    same_weights,
    small_vae,
    weights,
)

from sklearn_sigmavae import BatchedGridSearchCV, SigmaVAE, sigma_path
from sklearn_sigmavae.metrics import denoising_scorer, importance_weighted_scorer

X = low_rank_rows()
BINARY = (X > 1).astype(np.float64)
GAPS = np.where(np.random.default_rng(0).random(X.shape) < 0.2, np.nan, X)


@pytest.fixture
def in_float64():
    """Make float64 the default type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    # Nothing has changed it.
    assert torch.get_default_dtype() == torch.float64
    torch.set_default_dtype(before)


def _both(compute):
    """Results under float32 and under float64, whose fixture is in use."""
    torch.set_default_dtype(torch.float32)
    try:
        expected = compute()
    finally:
        torch.set_default_dtype(torch.float64)
    return expected, compute()


MODELS = {
    "defaults": {},
    "linear": {"hidden_layer_sizes": ()},
    "per feature": {"sigma": [0.2, 0.3, 0.4, 0.3, 0.2]},
    "mle": {"sigma": "mle", "noise": "laplace"},
    "random": {"init": "random", "linear_path": False},
    "dropout": {"network": DropoutNetwork(), "lr_schedule": "constant"},
    "batch norm": {"network": BatchNormNetwork(), "optimizer": "sgd"},
}


@pytest.mark.parametrize("params", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_training(in_float64, method, params):
    a, b = _both(lambda: getattr(small_vae(**params), method)(X))
    assert same_weights(weights(a), weights(b))
    assert np.array_equal(a.sigma_, b.sigma_)
    assert a.reconstruction_error_ == b.reconstruction_error_
    # And on from there.
    assert same_weights(weights(a.partial_fit(X)), weights(b.partial_fit(X)))


METHODS = {
    "restore": lambda vae, X: vae.inverse_transform(vae.transform(X)),
    "score": lambda vae, X: vae.score(X),
    "importance": lambda vae, X: vae.score_samples(X, n_importance_samples=8),
    "kl_divergence": lambda vae, X: vae.kl_divergence(X),
    "refined": lambda vae, X: vae.posterior(X, refine=True),
    "sample": lambda vae, X: vae.sample(5, add_noise=True, random_state=0),
}
OF_NOISE = {
    "noisy": lambda vae, X: vae.posterior(X, noise_scale=0.5),
    "denoise": lambda vae, X: vae.denoise(X),
    "denoise, per entry": lambda vae, X: vae.denoise(X, noise_scale=np.ones(X.shape)),
    "denoise, laplace": lambda vae, X: vae.denoise(X, noise="laplace"),
    "fill": lambda vae, X: vae.denoise(GAPS.astype(X.dtype)),
    "estimate": lambda vae, X: vae.estimate_noise_scale(X),
    "scorer": lambda vae, X: denoising_scorer(0.5)(vae, X),
    "weighted": lambda vae, X: importance_weighted_scorer(8)(vae, X),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "method"),
    [
        *itertools.product(["defaults", "per feature"], METHODS | OF_NOISE),
        *itertools.product(["mle", "batch norm"], ["refined", "denoise", "estimate"]),
        *itertools.product(["bernoulli"], METHODS),
    ],
)
def test_inference(in_float64, fitted, name, method, dtype):
    function = (METHODS | OF_NOISE)[method]
    rows = (BINARY if name == "bernoulli" else X).astype(dtype)
    expected, got = _both(lambda: function(fitted(name), rows))
    assert np.array_equal(expected, got)
    assert np.asarray(got).dtype == np.asarray(expected).dtype


@pytest.fixture(scope="module")
def fitted():
    """Function from the name of a model to it, fitted once."""

    @cache
    def fitted(name):
        if name == "bernoulli":
            return small_vae(noise="bernoulli").fit(BINARY)
        return small_vae(**MODELS[name]).fit(X)

    return fitted


@pytest.mark.parametrize("sigmas", [[0.2, 0.5], ["mle"]], ids=str)
def test_searches(in_float64, sigmas):
    grid = {"sigma": sigmas, "beta": [1.0, 2.0]}
    a, b = _both(lambda: BatchedGridSearchCV(small_vae(), grid, cv=2).fit(X))
    name = "mean_test_score"
    assert np.array_equal(a.cv_results_[name], b.cv_results_[name])


def test_paths(in_float64):
    params = {"n_sigmas": 3, "estimator": small_vae(), "max_iter": 1, "cv": 2}
    a, b = _both(lambda: sigma_path(X, **params))
    assert np.array_equal(a.test_scores, b.test_scores)
    assert np.array_equal(a.kl, b.kl)


@pytest.mark.parametrize("network", ["mlp", DropoutNetwork()], ids=str)
def test_files(in_float64, tmp_path, network):
    small_vae(network=network).fit(X).save(tmp_path / "vae")
    own = {} if network == "mlp" else {"network": network}
    a, b = _both(lambda: SigmaVAE.load(tmp_path / "vae", device="cpu", **own))
    assert same_weights(weights(a), weights(b))
    assert np.array_equal(a.denoise(X), b.denoise(X))


def test_checkpoints(in_float64, tmp_path):
    a, b = _both(lambda: small_vae(checkpoint_dir=tmp_path).fit(X))
    assert same_weights(weights(a), weights(b))
