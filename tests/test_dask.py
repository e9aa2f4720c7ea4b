"""Searches on a Dask cluster, and models applied to Dask arrays.

The cluster is one of two processes on this machine, with the sockets, the pickles and
the separate memory of one of many machines.
"""

import os

import joblib
import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV, cross_val_score
from small_vae import low_rank_rows, same_weights, small_vae, weights

from sklearn_sigmavae import BatchedGridSearchCV, GeneralizedNormalNoise, sigma_path

pytest.importorskip("distributed")
pytest.importorskip("joblib", minversion="1.3", reason="joblib.parallel_config")
da = pytest.importorskip("dask.array")

X = low_rank_rows(110)
N_FEATURES = X.shape[1]

# The last chunk is a smaller one.
CHUNKS = (25, N_FEATURES)

GRID = [
    {"sigma": [0.1, 0.3, 1.0], "n_components": [1, 2]},
    {"noise": ["laplace", GeneralizedNormalNoise(1.5)]},
]


@pytest.fixture(scope="module")
def client():
    """Client of a cluster of two processes with one thread each."""
    from distributed import Client, LocalCluster

    # Port 0 is any that is free: a second cluster would warn of the default one, even
    # without a dashboard.
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(params=["threads", "cluster"])
def scheduler(request):
    """What computes Dask arrays: threads of this process, or the cluster."""
    if request.param == "threads":
        return "threads"
    return request.getfixturevalue("client")


def score_and_process(estimator, X, y=None):
    """Metrics of a fit and of the process that it ran in."""
    return {
        "score": estimator.score(X),
        "pid": os.getpid(),
        "threads": torch.get_num_threads(),
    }


def metric(search, name):
    """Values of a metric, of shape (n_candidates, n_folds)."""
    results = search.cv_results_
    columns = [results[f"split{i}_test_{name}"] for i in range(search.n_splits_)]
    return np.column_stack(columns)


# Searches


def test_a_search_on_the_cluster_finds_what_one_process_finds(client):
    vae = small_vae(early_stopping=False)
    one, many = (
        GridSearchCV(
            vae, GRID, cv=2, n_jobs=n_jobs, scoring=score_and_process, refit="score"
        )
        for n_jobs in (1, -1)
    )
    one.fit(X)
    with joblib.parallel_config(backend="dask"):
        many.fit(X)
    assert set(metric(one, "pid").flat) == {os.getpid()}
    workers = set(client.run(os.getpid).values())
    assert len(workers) == 2
    assert set(metric(many, "pid").flat) == workers
    assert os.getpid() not in workers
    assert set(metric(many, "threads").flat) == {1}
    assert np.array_equal(metric(one, "score"), metric(many, "score"))
    assert one.best_index_ == many.best_index_
    assert same_weights(weights(one.best_estimator_), weights(many.best_estimator_))


def test_stacks_on_the_cluster_find_what_they_find_here(client):
    grid = {"sigma": [0.1, 0.3, 1.0], "n_components": [1, 2]}
    here = BatchedGridSearchCV(small_vae(), grid).fit(X)
    there = BatchedGridSearchCV(
        small_vae(), grid, scoring=score_and_process, refit="score", n_jobs=2
    )
    with joblib.parallel_config(backend="dask"):
        there.fit(X)
    assert os.getpid() not in metric(there, "pid")
    np.testing.assert_allclose(
        there.cv_results_["mean_test_score"],
        here.cv_results_["mean_test_score"],
        rtol=1e-5,
    )
    assert there.best_params_ == here.best_params_


def test_a_path_on_the_cluster_is_that_of_one_process(client):
    params = {"estimator": small_vae(), "cv": 3, "max_iter": 2}
    here = sigma_path(X, [1.0, 0.5, 0.25], **params)
    with joblib.parallel_config(backend="dask"):
        there = sigma_path(X, [1.0, 0.5, 0.25], n_jobs=2, **params)
    np.testing.assert_allclose(there.test_scores, here.test_scores, rtol=1e-5)
    np.testing.assert_allclose(there.kl, here.kl, rtol=1e-5)


def test_a_search_within_a_search_on_the_cluster(client):
    search = GridSearchCV(small_vae(), {"sigma": [0.1, 0.3]}, cv=2)
    expected = cross_val_score(search, X, cv=2)
    with joblib.parallel_config(backend="dask"):
        scores = cross_val_score(search.set_params(n_jobs=-1), X, cv=2, n_jobs=-1)
    assert np.array_equal(scores, expected)


@pytest.mark.parametrize("scatter", [False, True])
def test_rows_may_be_sent_ahead(client, scatter):
    search = GridSearchCV(small_vae(), {"sigma": [0.1, 0.3]}, cv=2, n_jobs=-1)
    expected = cross_val_score(small_vae(), X, cv=2)
    options = {"scatter": [X]} if scatter else {}
    with joblib.parallel_config(backend="dask", **options):
        search.fit(X)
    assert metric(search, "score")[1].tolist() == expected.tolist()


def test_a_fit_that_fails_on_the_cluster_raises_here(client):
    grid = {"sigma": [-1.0, 0.3]}
    search = GridSearchCV(small_vae(), grid, cv=2, n_jobs=-1, error_score="raise")
    with (
        joblib.parallel_config(backend="dask"),
        pytest.raises(ValueError, match="The 'sigma' parameter of SigmaVAE"),
    ):
        search.fit(X)


def test_a_model_that_was_fitted_on_the_cluster(client):
    fitted = client.submit(small_vae().fit, X, pure=False).result()
    expected = small_vae().fit(X)
    assert same_weights(weights(fitted), weights(expected))
    assert same_weights(
        weights(fitted.partial_fit(X)), weights(expected.partial_fit(X))
    )


# Arrays


@pytest.fixture(scope="module")
def vae():
    return small_vae().fit(X)


def compute(array, scheduler):
    if isinstance(scheduler, str):
        return array.compute(scheduler=scheduler)
    return scheduler.compute(array).result()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-9)]
)
def test_codes_of_a_dask_array(vae, scheduler, dtype, tolerance):
    rows = X.astype(dtype)
    k = vae.n_components
    lazy = da.from_array(rows, chunks=CHUNKS)
    codes = lazy.map_blocks(vae.transform, dtype=dtype, chunks=(lazy.chunks[0], (k,)))
    assert codes.shape == (len(rows), k)
    computed = compute(codes, scheduler)
    assert computed.dtype == dtype
    expected = vae.transform(rows)
    np.testing.assert_allclose(computed, expected, rtol=tolerance, atol=tolerance)

    restored = codes.map_blocks(
        vae.inverse_transform, dtype=dtype, chunks=(lazy.chunks[0], (N_FEATURES,))
    )
    computed = compute(restored, scheduler)
    assert computed.dtype == dtype
    assert computed.shape == rows.shape
    expected = vae.inverse_transform(expected)
    np.testing.assert_allclose(computed, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-9)]
)
def test_scores_of_a_dask_array(vae, scheduler, dtype, tolerance):
    rows = X.astype(dtype)
    lazy = da.from_array(rows, chunks=CHUNKS)
    scores = lazy.map_blocks(vae.score_samples, dtype=np.float64, drop_axis=1)
    assert scores.shape == (len(rows),)
    computed = compute(scores, scheduler)
    assert computed.dtype == np.float64
    np.testing.assert_allclose(computed, vae.score_samples(rows), rtol=tolerance)
    mean = compute(scores.mean(), scheduler)
    assert mean == pytest.approx(vae.score(rows), rel=tolerance)
