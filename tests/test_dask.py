"""Searches on a Dask cluster, and models applied to Dask arrays.

The cluster is one of two processes on this machine, with the sockets, the pickles and
the separate memory of one of many machines.
"""

import os

import joblib
import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV, cross_val_score
from small_vae import low_rank_rows, same_weights, small_vae, weights

from sklearn_sigmavae import BatchedGridSearchCV, sigma_path

pytest.importorskip("distributed")
pytest.importorskip("joblib", minversion="1.3", reason="joblib.parallel_config")
da = pytest.importorskip("dask.array")

X = low_rank_rows(110)
N_FEATURES = X.shape[1]

GRID = {"sigma": [0.1, 0.3, 1.0], "n_components": [1, 2]}

# The last chunk is a smaller one.
CHUNKS = (25, N_FEATURES)


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
    }


def metric(search, name):
    """Values of a metric, of shape (n_candidates, n_folds)."""
    results = search.cv_results_
    columns = [results[f"split{i}_test_{name}"] for i in range(search.n_splits_)]
    return np.column_stack(columns)


# Searches


@pytest.mark.parametrize("cls", [GridSearchCV, BatchedGridSearchCV])
def test_a_search_on_the_cluster_finds_what_one_process_finds(client, cls):
    params = {"cv": 3, "scoring": score_and_process, "refit": "score"}
    vae = small_vae(early_stopping=False)
    here = cls(vae, GRID, **params).fit(X)
    there = cls(vae, GRID, n_jobs=2, **params)
    with joblib.parallel_config(backend="dask"):
        there.fit(X)
    assert set(metric(here, "pid").flat) == {os.getpid()}
    workers = set(client.run(os.getpid).values())
    assert len(workers) == 2
    assert set(metric(there, "pid").flat) <= workers - {os.getpid()}
    np.testing.assert_allclose(metric(there, "score"), metric(here, "score"), rtol=1e-5)
    assert there.best_params_ == here.best_params_
    there.set_params(param_grid={"sigma": [1e-30, 0.3]}, error_score="raise")
    with (
        joblib.parallel_config(backend="dask"),
        pytest.raises(ValueError, match="The 'sigma' parameter of SigmaVAE"),
    ):
        there.fit(X)


def test_a_path_on_the_cluster_is_that_of_one_process(client):
    params = {"estimator": small_vae(), "cv": 3, "max_iter": 2}
    here = sigma_path(X, [1.0, 0.5, 0.25], **params)
    with joblib.parallel_config(backend="dask"):
        there = sigma_path(X, [1.0, 0.5, 0.25], n_jobs=2, **params)
    np.testing.assert_allclose(there.test_scores, here.test_scores, rtol=1e-5)
    np.testing.assert_allclose(there.kl, here.kl, rtol=1e-5)


@pytest.mark.parametrize("scatter", [False, True])
def test_rows_may_be_sent_ahead(client, scatter):
    search = GridSearchCV(small_vae(), {"sigma": [0.1, 0.3]}, cv=2, n_jobs=-1)
    expected = cross_val_score(small_vae(), X, cv=2)
    options = {"scatter": [X]} if scatter else {}
    with joblib.parallel_config(backend="dask", **options):
        search.fit(X)
    assert metric(search, "score")[1].tolist() == expected.tolist()


def test_a_model_that_was_fitted_on_the_cluster(client):
    fitted = client.submit(small_vae().fit, X, pure=False).result()
    expected = small_vae().fit(X)
    assert same_weights(weights(fitted), weights(expected))
    assert same_weights(
        weights(fitted.partial_fit(X)), weights(expected.partial_fit(X))
    )


# Arrays


def compute(array, scheduler):
    if isinstance(scheduler, str):
        return array.compute(scheduler=scheduler)
    return scheduler.compute(array).result()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-9)]
)
def test_methods_apply_to_the_blocks_of_a_dask_array(scheduler, dtype, tolerance):
    vae, rows = small_vae().fit(X), X.astype(dtype)
    lazy = da.from_array(rows, chunks=CHUNKS)
    blocks = lazy.chunks[0]
    codes = lazy.map_blocks(vae.transform, dtype=dtype, chunks=(blocks, (2,)))
    restored = codes.map_blocks(
        vae.inverse_transform, dtype=dtype, chunks=(blocks, (N_FEATURES,))
    )
    scores = lazy.map_blocks(vae.score_samples, dtype=np.float64, drop_axis=1)
    expected = vae.transform(rows)
    for array, result in (
        (codes, expected),
        (restored, vae.inverse_transform(expected)),
        (scores, vae.score_samples(rows)),
        (scores.mean(), vae.score(rows)),
    ):
        computed = compute(array, scheduler)
        assert array.shape == computed.shape == np.shape(result)
        assert computed.dtype == np.asarray(result).dtype
        np.testing.assert_allclose(computed, result, rtol=tolerance, atol=tolerance)
