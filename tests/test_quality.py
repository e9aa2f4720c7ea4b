"""What a fit with default settings is worth, on real data."""

import os

import numpy as np
import pytest
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_iris,
    load_wine,
)
from sklearn.impute import KNNImputer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from sklearn_sigmavae import SigmaVAE

TABLES = [
    (load, sigma)
    for load in (load_wine, load_breast_cancer, load_diabetes, load_iris)
    for sigma in (0.3, 0.6)
] + [(load_digits, 0.2)]

# How much better than probabilistic PCA it must be, in nats.
GAINS = {(load_breast_cancer, 0.3): 0.5, (load_digits, 0.2): 3.0}


def gain_over_pca(load, sigma, seed):
    X = load(return_X_y=True)[0]
    X = X / 16 if load is load_digits else StandardScaler().fit_transform(X)
    X_train, X_test = train_test_split(X, random_state=seed)
    k = min(16, X.shape[1] // 2)
    pca = SigmaVAE(k, sigma=sigma, hidden_layer_sizes=(), max_iter=0).fit(X_train)
    vae = SigmaVAE(k, sigma=sigma, random_state=seed).fit(X_train)
    return vae.score(X_test) - pca.score(X_test)


@pytest.mark.parametrize(("load", "sigma"), GAINS)
def test_better_than_pca_at_the_same_sigma(load, sigma):
    assert gain_over_pca(load, sigma, seed=0) > GAINS[load, sigma]


@pytest.mark.slow
@pytest.mark.parametrize(("load", "sigma"), TABLES)
def test_never_worse_than_pca_at_the_same_sigma(load, sigma):
    gains = [gain_over_pca(load, sigma, seed) for seed in range(5)]
    print(load.__name__, sigma, np.round(gains, 3), round(np.mean(gains), 3))
    assert np.mean(gains) > GAINS.get((load, sigma), -0.01)


@pytest.mark.slow
@pytest.mark.skipif("MNIST_DIR" not in os.environ, reason="MNIST_DIR is not set")
def test_mnist():
    from _data import load_mnist

    X_train, _, X_test, _ = load_mnist()
    X_train, X_test = (
        rows.astype(np.float32) / 255 for rows in (X_train[:20_000], X_test[:2000])
    )
    vae = SigmaVAE(
        32,
        sigma=0.2,
        hidden_layer_sizes=(512, 512),
        max_iter=20,
        early_stopping=False,
        random_state=0,
    ).fit(X_train)
    assert vae.score(X_test) > 398


def test_gaps_of_digits_are_filled_better_than_by_imputers():
    X = load_digits().data
    train, test = train_test_split(X, random_state=0)
    gaps = np.random.RandomState(0).random_sample(test.shape) < 0.3
    Y = np.where(gaps, np.nan, test)
    vae = SigmaVAE(16, sigma=2.0, random_state=0).fit(train)
    errors = [
        np.square(filled - test)[gaps].mean()
        for filled in (vae.denoise(Y), KNNImputer().fit(train).transform(Y))
    ]
    assert errors[0] < 0.95 * errors[1]


@pytest.mark.slow
@pytest.mark.skipif("MNIST_DIR" not in os.environ, reason="MNIST_DIR is not set")
def test_a_model_of_clean_mnist_denoises_better_than_the_best_linear_filter():
    from _data import load_mnist

    X, _, clean, _ = load_mnist()
    X, clean = (rows.astype(np.float32) / 255 for rows in (X, clean))
    vae = SigmaVAE(
        32,
        sigma=0.3,
        hidden_layer_sizes=(512, 512),
        max_iter=15,
        early_stopping=False,
        random_state=0,
    ).fit(X)
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
