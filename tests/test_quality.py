"""What a fit with default settings is worth, on real data."""

import os

import numpy as np
import pytest
from sklearn.impute import KNNImputer
from sklearn.model_selection import train_test_split

from sklearn_sigmavae import SigmaVAE

TABLES = [
    (f"{name}, standardised", sigma)
    for name in ("wine", "breast_cancer", "diabetes", "iris")
    for sigma in (0.3, 0.6)
] + [("digits", 3.2)]

# How much better than probabilistic PCA it must be, in nats.
GAINS = {("breast_cancer, standardised", 0.3): 0.5, ("digits", 3.2): 3.0}

needs_mnist = pytest.mark.skipif(
    "MNIST_DIR" not in os.environ, reason="MNIST_DIR is not set"
)


def gain_over_pca(X, sigma, seed):
    X_train, X_test = train_test_split(X, random_state=seed)
    k = min(16, X.shape[1] // 2)
    pca = SigmaVAE(k, sigma=sigma, hidden_layer_sizes=(), max_iter=0).fit(X_train)
    vae = SigmaVAE(k, sigma=sigma, random_state=seed).fit(X_train)
    return vae.score(X_test) - pca.score(X_test)


@pytest.mark.parametrize(("name", "sigma"), GAINS)
def test_better_than_pca_at_the_same_sigma(load, name, sigma):
    assert gain_over_pca(load(name), sigma, seed=0) > GAINS[name, sigma]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sigma"), TABLES)
def test_never_worse_than_pca_at_the_same_sigma(load, name, sigma):
    gains = [gain_over_pca(load(name), sigma, seed) for seed in range(5)]
    print(name, sigma, np.round(gains, 3), round(np.mean(gains), 3))
    assert np.mean(gains) > GAINS.get((name, sigma), -0.01)


def test_gaps_of_digits_are_filled_better_than_by_imputers(load):
    train, test = train_test_split(load("digits"), random_state=0)
    gaps = np.random.RandomState(0).random_sample(test.shape) < 0.3
    Y = np.where(gaps, np.nan, test)
    vae = SigmaVAE(16, sigma=2.0, max_iter=50, random_state=0).fit(train)
    errors = [
        np.square(filled - test)[gaps].mean()
        for filled in (vae.denoise(Y), KNNImputer().fit(train).transform(Y))
    ]
    assert errors[0] < 0.95 * errors[1]


@pytest.fixture(scope="module")
def mnist():
    """Pixels of training and test images in [0, 1]."""
    from _data import load_mnist

    X, _, X_test, _ = load_mnist()
    return [rows.astype(np.float32) / 255 for rows in (X, X_test)]


def model_of_mnist(X, sigma, max_iter):
    params = {"hidden_layer_sizes": (512, 512), "early_stopping": False}
    vae = SigmaVAE(32, sigma=sigma, max_iter=max_iter, random_state=0, **params)
    return vae.fit(X)


@pytest.mark.slow
@needs_mnist
def test_score_of_mnist(mnist):
    X, X_test = mnist
    assert model_of_mnist(X[:20_000], 0.2, 20).score(X_test[:2000]) > 398


@pytest.mark.slow
@needs_mnist
def test_a_model_of_clean_mnist_denoises_better_than_the_best_linear_filter(mnist):
    X, clean = mnist
    vae = model_of_mnist(X, 0.3, 15)
    noise = np.random.RandomState(0).standard_normal(clean.shape).astype(np.float32)
    mean, covariance = X.mean(axis=0), np.cov(X.T, bias=True)
    # The parts of the Wiener filter's error that are allowed.
    for scale, part in {0.25: 1.0, 0.5: 0.68, 1.0: 0.76, 1.5: 0.9}.items():
        Y = clean + scale * noise
        weights = np.linalg.solve(covariance + scale**2 * np.eye(784), covariance)
        of_filter = np.square(mean + (Y - mean) @ weights - clean).mean()
        restored = vae.denoise(Y, noise_scale=scale, max_iter=60)
        error = np.square(restored - clean).mean()
        print(scale, error, of_filter, error / of_filter)
        assert error < part * of_filter
