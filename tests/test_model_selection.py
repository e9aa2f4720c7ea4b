"""scikit-learn's searches and cross-validation, in one process and in several."""

import os

import joblib
import numpy as np
import pytest
import torch
from scipy.stats import loguniform, uniform
from sklearn.base import clone
from sklearn.exceptions import FitFailedWarning
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    KFold,
    ParameterGrid,
    RandomizedSearchCV,
    cross_val_score,
    cross_validate,
    learning_curve,
)
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from small_vae import NOISE, low_rank_rows, same_weights, small_vae, weights
from threadpoolctl import threadpool_info

from sklearn_sigmavae import GeneralizedNormalNoise

X = low_rank_rows()
CV = KFold(2, shuffle=True, random_state=0)

GRIDS = {
    "sigma": {"sigma": [0.1, NOISE, 1.0]},
    "beta": {"beta": [0.5, 1.0, 2.0]},
    "noise": {"noise": ["gaussian", "laplace", GeneralizedNormalNoise(1.5)]},
    "noise__exponent": {
        "noise": [GeneralizedNormalNoise()],
        "noise__exponent": [1.0, 1.5, 3.0],
    },
    "n_components": {"n_components": [1, 2, 4]},
}


def moving_vae(**params):
    """Estimator that always leaves its start, so that scores tell fits apart."""
    return small_vae(early_stopping=False, **params)


def scores_by_hand(estimator, params, rows=X, cv=CV):
    """Score of each fold, of fits without scikit-learn's help."""
    scores = []
    for train, test in cv.split(rows):
        # Parts are cloned, as a search does: they must not be shared between fits.
        given = {name: clone(value, safe=False) for name, value in params.items()}
        fitted = clone(estimator).set_params(**given).fit(rows[train])
        scores.append(fitted.score(rows[test]))
    return scores


def split_scores(search, name="score"):
    """Scores of shape (n_candidates, n_folds)."""
    results = search.cv_results_
    columns = [results[f"split{i}_test_{name}"] for i in range(search.n_splits_)]
    return np.column_stack(columns)


def one_thread_each():
    """Context in which workers have one thread, as the tests' own process has."""
    # joblib.parallel_config is not in the oldest version.
    return joblib.parallel_backend("loky", inner_max_num_threads=1)


def score_and_process(estimator, X, y=None):
    """Metrics of a fit and of the process that it ran in."""
    pools = {pool["user_api"]: pool["num_threads"] for pool in threadpool_info()}
    return {
        "score": estimator.score(X),
        "pid": os.getpid(),
        "torch_threads": torch.get_num_threads(),
        "blas_threads": pools.get("blas", 1),
        "openmp_threads": pools.get("openmp", 1),
    }


# What a search does, beside fits by hand


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_search_scores_each_candidate(name):
    search = GridSearchCV(moving_vae(), GRIDS[name], cv=CV).fit(X)
    grid = ParameterGrid(GRIDS[name])
    expected = [scores_by_hand(moving_vae(), params) for params in grid]
    assert np.array_equal(split_scores(search), expected)
    assert len(np.unique(expected)) == 6
    best = np.argmax(np.mean(expected, axis=1))
    assert search.best_index_ == best
    assert search.best_score_ == pytest.approx(np.mean(expected[best]), rel=1e-12)


def test_a_randomized_search_scores_each_candidate():
    distributions = {"noise": [GeneralizedNormalNoise()], "sigma": loguniform(0.1, 1.0)}
    distributions["noise__exponent"] = uniform(1, 2)
    search = RandomizedSearchCV(
        moving_vae(), distributions, n_iter=3, cv=CV, random_state=0
    ).fit(X)
    expected = [
        scores_by_hand(moving_vae(), params) for params in search.cv_results_["params"]
    ]
    assert np.array_equal(split_scores(search), expected)


@pytest.mark.parametrize("name", ["sigma", "noise"])
def test_a_halving_search_over_epochs(name):
    resources = {"resource": "max_iter", "min_resources": 2, "max_resources": 6}
    search = HalvingGridSearchCV(
        moving_vae(), GRIDS[name], **resources, factor=3, cv=CV
    ).fit(X)
    assert search.n_resources_ == [2, 6]
    assert search.n_candidates_ == [3, 1]
    results = search.cv_results_
    for params, epochs, got in zip(
        results["params"], results["n_resources"], split_scores(search), strict=True
    ):
        # scikit-learn adds the resource to the parameters.
        assert params["max_iter"] == epochs
        assert got.tolist() == scores_by_hand(moving_vae(), params)
    first = results["mean_test_score"][:3]
    survivor = {**results["params"][np.argmax(first)], "max_iter": 6}
    assert str(results["params"][3]) == str(survivor)
    assert search.best_estimator_.n_iter_ == 6


@pytest.mark.parametrize("incremental", [False, True])
def test_learning_curve(incremental):
    params = {"cv": CV, "exploit_incremental_learning": incremental}
    sizes, _, test = learning_curve(
        small_vae(), X, None, train_sizes=[10, 30], **params
    )
    assert sizes.tolist() == [10, 30]
    few, many = test.mean(axis=1)
    assert few < many


# In a pipeline, and in one another


def test_a_search_in_a_pipeline():
    rows = 50 * X
    pipeline = Pipeline([("scale", StandardScaler()), ("vae", moving_vae())])
    search = GridSearchCV(pipeline, {"vae__sigma": [0.05, 0.2]}, cv=CV).fit(rows)
    expected = [
        scores_by_hand(pipeline, params, rows)
        for params in search.cv_results_["params"]
    ]
    assert np.array_equal(split_scores(search), expected)
    assert search.inverse_transform(search.transform(rows)).shape == rows.shape


def test_a_search_over_codes_for_a_classifier(tmp_path):
    y = X[:, 0] > X[:, 0].mean()
    pipeline = Pipeline(
        [("vae", small_vae()), ("classify", LogisticRegression())],
        memory=str(tmp_path),
    )
    grid = {"vae__n_components": [1, 2], "classify__C": [0.1, 1.0]}
    cached = GridSearchCV(pipeline, grid, cv=2).fit(X, y)
    plain = GridSearchCV(pipeline.set_params(memory=None), grid, cv=2).fit(X, y)
    assert np.array_equal(split_scores(cached), split_scores(plain))
    assert np.array_equal(cached.predict_proba(X), plain.predict_proba(X))
    assert cached.score(X, y) > 0.8


def test_nested_cross_validation():
    inner = GridSearchCV(moving_vae(), GRIDS["sigma"], cv=2)
    expected = scores_by_hand(inner, {})
    assert cross_val_score(inner, X, cv=CV).tolist() == expected
    # In a worker the inner search runs in threads.
    inner.set_params(n_jobs=2)
    with one_thread_each():
        assert cross_val_score(inner, X, cv=CV, n_jobs=2).tolist() == expected


# Several processes


def test_models_come_back_from_other_processes():
    one, two = (
        cross_validate(moving_vae(), X, cv=CV, n_jobs=n_jobs, return_estimator=True)
        for n_jobs in (1, 2)
    )
    assert np.array_equal(one["test_score"], two["test_score"])
    for a, b, (train, _) in zip(
        one["estimator"], two["estimator"], CV.split(X), strict=True
    ):
        assert same_weights(weights(a), weights(b))
        a, b = a.partial_fit(X[train]), b.partial_fit(X[train])
        assert same_weights(weights(a), weights(b))


@pytest.mark.parametrize("random_state", [0, np.random.RandomState(0)], ids=type)
def test_two_processes_find_what_one_finds(random_state):
    vae = moving_vae(random_state=random_state)
    params = {"scoring": score_and_process, "cv": CV, "refit": "score"}
    one, two = (
        GridSearchCV(vae, list(GRIDS.values()), n_jobs=n_jobs, **params)
        for n_jobs in (1, 2)
    )
    one.fit(X)
    with one_thread_each():
        two.fit(X)
    assert set(split_scores(one, "pid").flat) == {os.getpid()}
    assert os.getpid() not in split_scores(two, "pid")
    assert set(split_scores(two, "torch_threads").flat) == {1}
    assert np.array_equal(split_scores(one), split_scores(two))
    assert one.best_index_ == two.best_index_
    assert same_weights(weights(one.best_estimator_), weights(two.best_estimator_))


def test_threads_and_processes_share_the_cores(monkeypatch):
    for library in ("OMP", "MKL", "OPENBLAS"):
        monkeypatch.delenv(f"{library}_NUM_THREADS", raising=False)
    n_jobs = 2
    params = {"scoring": score_and_process, "cv": 2, "refit": False}
    search = GridSearchCV(small_vae(), {"max_iter": range(6)}, n_jobs=n_jobs, **params)
    search.fit(X)
    assert os.getpid() not in split_scores(search, "pid")
    threads = [
        split_scores(search, f"{library}_threads").max()
        for library in ("torch", "blas", "openmp")
    ]
    assert n_jobs * max(threads) <= max(joblib.cpu_count(), n_jobs)


# What is chosen


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("noise", [0.1, NOISE])
def test_the_scale_that_is_nearest_to_the_noise_is_chosen(noise, seed):
    sigmas = noise * np.array([0.4, 0.65, 0.95, 1.4, 2.0])
    search = GridSearchCV(small_vae(), {"sigma": sigmas}, cv=CV)
    search.fit(low_rank_rows(120, noise=noise, seed=seed))
    nearest = sigmas[np.argmin(abs(sigmas - noise))]
    assert search.best_params_["sigma"] == nearest


# Candidates that fail

FAILING = {
    "sigma": {"sigma": [-1.0, NOISE]},
    "exponent": {"noise": [GeneralizedNormalNoise(0.5), "laplace"]},
    # The rows are not in [0, 1].
    "bernoulli": {"noise": ["bernoulli", "gaussian"]},
    "diverged": {"learning_rate": [1e30, 1e-3], "optimizer": ["sgd"]},
}


@pytest.mark.parametrize("reason", FAILING)
def test_a_candidate_that_fails_has_no_score(reason):
    # Which processes the fits run in matters to none of the reasons.
    n_jobs = 2 if reason == "diverged" else 1
    search = GridSearchCV(moving_vae(), FAILING[reason], cv=CV, n_jobs=n_jobs)
    with (
        one_thread_each(),
        pytest.warns(UserWarning, match="test scores are non-finite"),
        pytest.warns(FitFailedWarning, match=f"(?is)2 fits failed.*{reason}"),
    ):
        search.fit(X)
    failed, scored = split_scores(search)
    assert np.isnan(failed).all()
    params = search.cv_results_["params"][1]
    assert scored.tolist() == scores_by_hand(moving_vae(), params)
    assert search.best_index_ == 1
    assert search.transform(X).shape == (len(X), 2)
    search = clone(search).set_params(error_score="raise")
    with one_thread_each(), pytest.raises(ValueError, match=f"(?is){reason}"):
        search.fit(X)
    assert not hasattr(search, "best_estimator_")
