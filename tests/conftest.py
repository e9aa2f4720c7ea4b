"""Shared data, and one thread: two test processes run beside each other."""

import signal

import numpy as np
import pytest
import torch
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_iris,
    load_wine,
)
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNet
from small_vae import low_rank_rows, small_vae

from sklearn_sigmavae import SigmaVAE

torch.set_num_threads(1)

_LOADERS = {
    "breast_cancer": load_breast_cancer,
    "diabetes": load_diabetes,
    "digits": load_digits,
    "iris": load_iris,
    "wine": load_wine,
}


def pytest_runtest_setup(item):
    """Skip tests of CUDA where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session", autouse=True)
def _heeds_ctrl_c():
    # Shells let their background jobs ignore it, and some tests press it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _read_only(X):
    # Tests share it: one that writes into it shall fail, not those after it.
    X.flags.writeable = False
    return X


@pytest.fixture(scope="session")
def load():
    """Function from a name, such as "wine" or "wine, standardised", to an array."""

    def load(name):
        name, _, standardised = name.partition(", ")
        X = _LOADERS[name](return_X_y=True)[0].astype(np.float64)
        return StandardScaler().fit_transform(X) if standardised else X

    return load


@pytest.fixture(scope="module")
def vae():
    """An estimator fitted to ``low_rank_rows()``, which tests must not refit."""
    return small_vae().fit(low_rank_rows())


@pytest.fixture(scope="session")
def digits(load):
    """Pixels of the handwritten digits in [0, 1]."""
    return _read_only(load("digits") / 16)


@pytest.fixture(scope="session")
def images(load):
    """The handwritten digits as images, with grey levels from 0 to 16."""
    return _read_only(load("digits").reshape(-1, 8, 8))


@pytest.fixture(scope="session")
def of_images(images):
    """An estimator fitted to the first 1000 of them, which tests must not refit."""
    return SigmaVAE(16, sigma=2.0, max_iter=5, random_state=0).fit(images[:1000])


@pytest.fixture
def no_training(monkeypatch):
    """Fail as soon as any training starts."""

    def fit_loop(*args, **kwargs):
        pytest.fail("training started")

    monkeypatch.setattr(NeuralNet, "fit_loop", fit_loop)


@pytest.fixture
def plt(monkeypatch):
    """Pyplot without a screen, whose figures are closed afterwards."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    yield pyplot
    pyplot.close("all")
