"""X_val in other units than X: a warning, a way out, and no false alarm."""

import warnings

import numpy as np
import pytest
import sklearn
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from small_vae import same_weights, small_vae, weights

from sklearn_sigmavae import BatchedGridSearchCV
from sklearn_sigmavae._validation import warn_if_far

FAR = r"X_val lies far outside of X.*set_fit_request.*transform_input"


@pytest.fixture
def wine(load):
    return train_test_split(load("wine"), random_state=0)


def is_far(X, X_val):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_far(X, X_val)
    return bool(caught)


def pipeline():
    return Pipeline([("scale", StandardScaler()), ("vae", small_vae(sigma=0.5))])


def test_rows_that_miss_the_scaler_are_named_before_training(wine, no_training):
    X, X_val = wine
    with pytest.raises(UserWarning, match=FAR):
        pipeline().fit(X, vae__X_val=X_val)


def test_the_warning_points_to_the_call_and_searches_warn_too(wine):
    X, X_val = wine
    X = StandardScaler().fit_transform(X)
    with pytest.warns(UserWarning, match=FAR) as caught:
        small_vae(max_iter=0).fit(X, X_val=X_val)
    assert caught[0].filename == __file__
    search = BatchedGridSearchCV(small_vae(max_iter=1), {"sigma": [0.5, 1.0]}, cv=2)
    with pytest.warns(UserWarning, match=FAR):
        search.fit(X, X_val=X_val)


def test_a_pipeline_transforms_held_out_rows_if_asked_to(wine):
    X, X_val = wine
    scaler = StandardScaler().fit(X)
    expected = small_vae(sigma=0.5)
    expected.fit(scaler.transform(X), X_val=scaler.transform(X_val))
    with sklearn.config_context(enable_metadata_routing=True):
        pipe = pipeline().set_params(transform_input=["X_val"])
        pipe["vae"].set_fit_request(X_val=True)
        pipe.fit(X, X_val=X_val)
    assert same_weights(weights(pipe["vae"]), weights(expected))
    assert pipe["vae"].history_[:, "valid_loss"] == expected.history_[:, "valid_loss"]


@pytest.mark.parametrize("name", ["wine", "digits", "breast_cancer", "diabetes"])
@pytest.mark.parametrize("scaled", [False, True])
def test_ordinary_rows_are_not_far(load, name, scaled):
    X = load(f"{name}, standardised" if scaled else name)
    for seed in range(20):
        assert not is_far(*train_test_split(X, test_size=0.1, random_state=seed))
    # Nor are those that are left of data in an order, or a few.
    for n in (3, 10, len(X) // 3):
        assert not is_far(X[:-n], X[-n:])
        assert not is_far(X[n:], X[:n])


@pytest.mark.parametrize("name", ["wine", "digits", "breast_cancer", "shifted"])
def test_rows_in_other_units_or_places_are_far(load, name):
    if name == "shifted":
        X = np.random.default_rng(0).standard_normal((100, 3))
        X_val = X[:20] + 100
    else:
        X, X_val = train_test_split(load(name), random_state=0)
        X = X / 16 if name == "digits" else StandardScaler().fit_transform(X)
    with pytest.warns(UserWarning, match=FAR):
        warn_if_far(X, X_val)


@pytest.mark.parametrize("n_rows", [2, 10, 40, 400])
@pytest.mark.parametrize("n_held_out", [1, 3, 20])
def test_heavy_tails_are_not_far(n_rows, n_held_out):
    rng = np.random.default_rng(0)
    size = n_rows + n_held_out, 4
    for _ in range(200):
        for X in (
            rng.lognormal(sigma=2, size=size),
            rng.standard_t(1.5, size=size),
            (rng.random(size) < 0.05) * rng.lognormal(sigma=2, size=size),
        ):
            assert not is_far(X[:n_rows], X[n_rows:])


def test_other_extremes_are_not_far():
    X = np.random.default_rng(0).standard_normal((50, 3))
    assert not is_far(np.ones((50, 3)), X)
    assert not is_far(1e300 * X, 1e300 * X[:9])
    assert not is_far((X > 0).astype(np.uint8), (X > 0).astype(np.uint8))
    large = np.repeat(X, 1000, axis=0)
    assert not is_far(large, large[:20_000])
