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
