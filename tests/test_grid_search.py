"""A batched search finds what scikit-learn's finds, candidate by candidate."""

import functools
import pickle
import threading
import warnings

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import FitFailedWarning, NotFittedError
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneOut,
    ShuffleSplit,
    TimeSeriesSplit,
)
from sklearn.pipeline import make_pipeline
from small_vae import (
    DropoutNetwork,
    EpochRecorder,
    low_rank_rows,
    same_weights,
    small_vae,
    weights,
)

from sklearn_sigmavae import (
    BatchedGridSearchCV,
    GeneralizedNormalNoise,
    SigmaVAE,
    metrics,
)
from sklearn_sigmavae._selection import grid_search as search_module
from sklearn_sigmavae._selection.jobs import THREAD_NAME
from sklearn_sigmavae._training import stack as stack_module
from sklearn_sigmavae._training.stack import fit_stack

X = low_rank_rows()
CV = KFold(2, shuffle=True, random_state=0)
GRID = {"sigma": [0.1, 0.3, 1.0]}
ONE_BY_ONE = "trained one by one"


def moving_vae(**params):
    """Estimator that always leaves its start, so that scores tell fits apart."""
    return small_vae(**{"early_stopping": False, **params})


def split_scores(search, kind="test_score"):
    """Scores of shape (n_candidates, n_folds)."""
    results = search.cv_results_
    columns = [results[f"split{i}_{kind}"] for i in range(search.n_splits_)]
    return np.column_stack(columns)


def assert_same_results(a, b, n_features=X.shape[1]):
    """All that two searches found is the same, but for times."""
    ours, others = a.cv_results_, b.cv_results_
    assert list(ours) == list(others)
    assert repr(ours["params"]) == repr(others["params"])
    for name, column in ours.items():
        other = others[name]
        if name.startswith("rank_"):
            assert np.array_equal(column, other), name
        elif name.startswith("param_"):
            assert repr(column) == repr(other)
        elif "score" in name and not name.endswith("score_time"):
            np.testing.assert_allclose(
                column, other, rtol=0, atol=1e-3 * n_features, err_msg=name
            )
    assert (ours["mean_fit_time"] > 0).all()
    fitted = {name for name in vars(a) if name.endswith("_")}
    assert fitted == {name for name in vars(b) if name.endswith("_")}
    assert a.n_splits_ == b.n_splits_
    assert a.multimetric_ == b.multimetric_
    assert repr(a.scorer_) == repr(b.scorer_)
    if "best_index_" in fitted:
        assert a.best_index_ == b.best_index_
        assert repr(a.best_params_) == repr(b.best_params_)
    if "best_score_" in fitted:
        assert a.best_score_ == pytest.approx(b.best_score_, abs=1e-3 * n_features)
    if "best_estimator_" in fitted:
        # It is fitted in the one and the same way.
        ours, others = a.best_estimator_, b.best_estimator_
        assert same_weights(weights(ours), weights(others))
        assert ours.get_params().keys() == others.get_params().keys()


def both(vae, grid, rows=X, y=None, fit_params=None, **params):
    """The batched search and scikit-learn's, fitted."""
    params = {"cv": CV, **params}
    fit_params = fit_params or {}
    return (
        BatchedGridSearchCV(vae, grid, **params).fit(rows, y, **fit_params),
        GridSearchCV(vae, grid, **params).fit(rows, y, **fit_params),
    )


@pytest.fixture
def stacks(monkeypatch):
    """Sizes of the stacks that are trained."""
    sizes = []

    def train(estimators, *args):
        sizes.append(len(estimators))
        return fit_stack(estimators, *args)

    monkeypatch.setattr(search_module, "fit_stack", train)
    return sizes


# Grids

OTHER_GRIDS = {
    "sigma": (GRID, [6]),
    "all that a stack may differ in": (
        {"sigma": [0.2, 0.6], "beta": [0.5, 2.0], "random_state": [0, 1]},
        [16],
    ),
    "random states": (
        {"random_state": [np.random.RandomState(5), 5], "sigma": [0.2, 0.6]},
        [8],
    ),
    "numbers and mle": ({"sigma": ["mle", 0.2, 0.6]}, [2, 4]),
    "scales per feature": (
        {"sigma": [0.3, np.linspace(0.1, 0.5, 5), [0.2, 0.2, 0.2, 0.2, 0.6]]},
        [6],
    ),
    "noise": ({"noise": ["laplace", GeneralizedNormalNoise(1.5)], **GRID}, [6, 6]),
    "exponents": (
        {"noise": [GeneralizedNormalNoise()], "noise__exponent": [1.5, 3.0], **GRID},
        [6, 6],
    ),
    "layers": ({"hidden_layer_sizes": [(), (4, 4), 4], "beta": [1, 2]}, [4] * 3),
    "several grids": (
        [GRID, {"n_components": [1], "sigma": [0.3]}, {"beta": [0.5, 2.0]}],
        [6, 2, 4],
    ),
    "no parameter": ({}, [2]),
    "arrays": ({"sigma": np.array([0.2, 0.6]), "max_iter": np.arange(2)}, [4, 4]),
}


@pytest.mark.parametrize("name", OTHER_GRIDS)
def test_a_batched_search_scores_each_candidate(name, stacks):
    grid, sizes = OTHER_GRIDS[name]
    assert_same_results(*both(moving_vae(), grid))
    assert sorted(stacks) == sorted(sizes)


@pytest.mark.parametrize(
    "params",
    [
        {"early_stopping": True, "max_iter": 6},
        {
            "early_stopping": True,
            "lr_schedule": "constant",
            "n_iter_no_change": 1,
            "max_iter": 8,
            "learning_rate": 3e-2,
            "init": "random",
        },
        {"optimizer": "adamw", "activation": "tanh"},
        {"linear_path": False, "init": "random"},
        {"warm_start": True, "precision": "tf32"},
        {"random_state": np.random.RandomState(7)},
        {"noise": "bernoulli"},
    ],
    ids=lambda params: ", ".join(params),
)
def test_estimators_with_other_parameters(params):
    grid, rows = GRID, X
    if "noise" in params:
        grid, rows = {"beta": [0.5, 1.0, 2.0]}, (X - X.min()) / np.ptp(X)
    assert_same_results(*both(moving_vae(**params), grid, rows))


TWICE = {"sigma": [0.3, 0.3]}


def test_no_random_state():
    search = BatchedGridSearchCV(moving_vae(random_state=None), GRID, cv=CV).fit(X)
    assert np.isfinite(split_scores(search)).all()
    first, second = split_scores(search.set_params(param_grid=TWICE).fit(X))
    assert (first != second).all()


# Splits

INDEX = np.arange(60)
FOLDS = list(CV.split(X))


@pytest.mark.parametrize(
    ("cv", "sizes"),
    [
        (None, [15]),
        (KFold(7), [3 * 3, 3 * 4]),
        (ShuffleSplit(3, test_size=0.3, random_state=0), [9]),
        (TimeSeriesSplit(2), [3, 3]),
        ([(INDEX[:40], INDEX[40:]), (INDEX[20:], [0, 1])], [6]),
        ([(list(range(30)), list(range(30, 60)))], [3]),
        ([(INDEX < 40, INDEX >= 40)], [3]),
    ],
    ids=["default", "unequal", "shuffled", "growing", "arrays", "lists", "masks"],
)
def test_splits(cv, sizes, stacks):
    assert_same_results(*both(moving_vae(), GRID, cv=cv))
    assert sorted(stacks) == sizes


def test_an_iterator_of_splits():
    ours = BatchedGridSearchCV(moving_vae(), GRID, cv=iter(FOLDS)).fit(X)
    assert_same_results(ours, GridSearchCV(moving_vae(), GRID, cv=FOLDS).fit(X))


@pytest.mark.parametrize(
    ("cv", "fit_params"),
    [
        (GroupKFold(3), {"groups": np.repeat(np.arange(6), [5, 10, 15, 20, 7, 3])}),
        (CV, {"X_val": low_rank_rows(20, seed=3)}),
    ],
    ids=["groups", "held-out rows"],
)
def test_parameters_of_fit(cv, fit_params):
    vae = small_vae(max_iter=5)
    assert_same_results(*both(vae, GRID, cv=cv, fit_params=fit_params))


# Scores


def mean_square_of_codes(estimator, X, y=None):
    return float(np.square(estimator.transform(X)).mean())


def several_scores(estimator, X, y=None):
    return {"bound": estimator.score(X), "codes": mean_square_of_codes(estimator, X)}


def correlation_with_target(estimator, X, y):
    return float(np.corrcoef(estimator.transform(X)[:, 0], y)[0, 1] ** 2)


def last(results):
    return len(results["params"]) - 1


@pytest.mark.parametrize(
    "params",
    [
        {"scoring": mean_square_of_codes},
        {"scoring": correlation_with_target},
        {"scoring": metrics.denoising_scorer(0.3)},
        {"scoring": metrics.importance_weighted_scorer(8)},
        {
            "scoring": {
                "bound": metrics.elbo_scorer,
                "error": metrics.reconstruction_scorer,
            },
            "refit": "error",
        },
        {"scoring": several_scores, "refit": "codes", "return_train_score": True},
        {"scoring": several_scores, "refit": False},
        {"scoring": {"a": mean_square_of_codes}, "refit": False},
        {"scoring": several_scores, "refit": last},
        {"return_train_score": True},
    ],
    ids=lambda params: "-".join(map(str, params)),
)
def test_scores_and_what_is_chosen_by_them(params):
    assert_same_results(*both(moving_vae(), GRID, y=X[:, 0], **params))


def failing_scorer(estimator, X, y=None):
    if estimator.sigma == 0.3:
        raise RuntimeError("no score")
    return estimator.score(X)


def test_a_scorer_that_fails():
    params = {"cv": CV, "scoring": failing_scorer}
    with (
        pytest.warns(UserWarning, match="no score"),
        pytest.warns(UserWarning, match="non-finite"),
    ):
        ours, other = both(moving_vae(), GRID, **params)
    assert_same_results(ours, other)
    with pytest.raises(RuntimeError, match="no score"):
        ours.set_params(error_score="raise").fit(X)


# Data


def test_a_data_frame():
    frame = pd.DataFrame(X, columns=list("abcde"), index=np.arange(60)[::-1] * 3)
    ours, other = both(moving_vae(), GRID, frame)
    assert_same_results(ours, other)
    assert list(ours.feature_names_in_) == list("abcde")
    assert ours.n_features_in_ == 5
    assert not hasattr(ours.fit(X), "feature_names_in_")


@pytest.mark.parametrize(
    "rows",
    [X.tolist(), torch.from_numpy(X), X.astype(np.float32), np.asfortranarray(X)],
    ids=["list", "tensor", "float32", "Fortran order"],
)
def test_arrays_of_other_types(rows):
    ours = BatchedGridSearchCV(moving_vae(), GRID, cv=CV).fit(rows)
    other = GridSearchCV(moving_vae(), GRID, cv=CV).fit(np.asarray(rows))
    assert_same_results(ours, other)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 2)], ids=str)
def test_images(shape, dtype):
    rows = low_rank_rows(40, 12, rank=3)
    images = np.clip(128 + 20 * rows, 0, 255).astype(dtype).reshape(-1, *shape)
    grid = {"sigma": [5.0, 20.0, np.full(shape, 10.0)]}
    ours, other = both(moving_vae(), grid, images)
    assert_same_results(ours, other, n_features=12)
    assert ours.inverse_transform(ours.transform(images)).shape == images.shape


# As an estimator


class SubVAE(SigmaVAE):
    """An estimator of a user."""


def test_a_search_is_an_estimator():
    search = BatchedGridSearchCV(SubVAE(**moving_vae().get_params()), GRID, cv=CV)
    copied = clone(search)
    assert repr(copied.get_params()) == repr(search.get_params())
    assert copied.set_params(estimator__n_components=1).estimator.n_components == 1
    assert search.estimator.n_components == 2
    assert not hasattr(search, "fit_transform")
    with pytest.raises(NotFittedError):
        search.transform(X)
    assert type(search.fit(X).best_estimator_) is SubVAE


def test_a_fitted_search_is_the_best_model():
    search = BatchedGridSearchCV(moving_vae(), GRID, cv=CV)
    assert search.fit(X) is search
    best = moving_vae(**search.best_params_).fit(X)
    codes = best.transform(X)
    for one in (search, pickle.loads(pickle.dumps(search))):
        assert np.array_equal(one.transform(X), codes)
        for name, rows in (("inverse_transform", codes), ("score_samples", X)):
            assert np.array_equal(getattr(one, name)(rows), getattr(best, name)(rows))
        assert one.score(X) == best.score(X)
    assert not hasattr(search.estimator, "net_")


def test_the_estimator_and_the_grid_stay_as_they_are():
    random_state, noise = np.random.RandomState(0), GeneralizedNormalNoise()
    vae = moving_vae(random_state=random_state)
    grid = {"noise": [noise], "noise__exponent": [1.5], "sigma": [0.2, 0.6]}
    before, state = repr(vae), random_state.get_state()[1].copy()
    BatchedGridSearchCV(vae, grid, cv=CV).fit(X)
    assert repr(vae) == before
    assert noise.exponent == 2.0
    assert np.array_equal(random_state.get_state()[1], state)
    assert not hasattr(vae, "net_")
    assert not hasattr(vae, "n_features_in_")


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_search_under_no_grad(context):
    with context():
        ours = BatchedGridSearchCV(moving_vae(), GRID, cv=CV).fit(X)
    assert_same_results(ours, GridSearchCV(moving_vae(), GRID, cv=CV).fit(X))


# Processes, memory and progress


@pytest.fixture
def two_threads(monkeypatch):
    """Threads of the process, for however little work; names of those that trained."""
    names, fit = [], search_module.fit_stack

    def noted(*args):
        names.append(threading.current_thread().name)
        return fit(*args)

    monkeypatch.setattr(search_module, "fit_stack", noted)
    monkeypatch.setattr(search_module, "OPERATIONS_PER_THREAD", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield names
    torch.set_num_threads(before)


def pool_threads():
    """Names of the threads that a search has left behind."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if THREAD_NAME in name]


def test_threads_find_what_one_finds(two_threads):
    alone = BatchedGridSearchCV(moving_vae(), GRID, cv=CV, n_jobs=1).fit(X)
    assert two_threads == ["MainThread"]
    two_threads.clear()
    shared = BatchedGridSearchCV(moving_vae(), GRID, cv=CV).fit(X)
    assert len(two_threads) == 2
    assert all(THREAD_NAME in name for name in two_threads)
    assert_same_results(shared, alone)
    np.testing.assert_allclose(split_scores(shared), split_scores(alone), atol=1e-5)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    "params",
    [
        {"scoring": metrics.reconstruction_scorer},
        {"n_jobs": 1},
        {"estimator": moving_vae(network=DropoutNetwork())},
    ],
    ids=["scoring", "n_jobs", "one by one"],
)
@pytest.mark.filterwarnings("ignore:Some candidates cannot")
def test_threads_are_not_used(two_threads, params):
    search = BatchedGridSearchCV(moving_vae(), GRID, cv=CV)
    search.set_params(**params).fit(X)
    assert all(THREAD_NAME not in name for name in two_threads)


def test_threads_are_not_used_for_little_work(two_threads, monkeypatch):
    monkeypatch.setattr(search_module, "OPERATIONS_PER_THREAD", 1e12)
    BatchedGridSearchCV(moving_vae(), GRID, cv=CV).fit(X)
    assert two_threads == ["MainThread"]


def test_an_error_in_a_thread_ends_the_search(two_threads):
    vae = moving_vae(learning_rate=1e30, max_iter=4)
    search = BatchedGridSearchCV(vae, GRID, cv=CV, error_score="raise")
    with pytest.raises(ValueError, match="diverged"):
        search.fit(X)
    assert not hasattr(search, "cv_results_")
    assert not pool_threads()


def test_an_interrupt_ends_the_threads(two_threads, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("sklearn_sigmavae._selection.jobs.as_completed", interrupt)
    search = BatchedGridSearchCV(moving_vae(max_iter=10**6), GRID, cv=CV)
    with pytest.raises(KeyboardInterrupt):
        search.fit(X)
    # Threads end with their epoch, and not with their training.
    assert not pool_threads()


def test_settings_of_the_caller_hold_in_threads(two_threads, monkeypatch):
    found, fit = [], search_module.fit_stack

    def noted(*args):
        found.append(sklearn.get_config()["working_memory"])
        return fit(*args)

    monkeypatch.setattr(search_module, "fit_stack", noted)
    with sklearn.config_context(working_memory=7):
        BatchedGridSearchCV(moving_vae(), GRID, cv=CV).fit(X)
    assert found == [7, 7]


def test_two_processes_find_what_one_finds():
    grid = [{**GRID, "n_components": [1, 2]}, {"beta": [0.5]}]
    one, two = (
        BatchedGridSearchCV(moving_vae(), grid, cv=CV, n_jobs=n_jobs).fit(X)
        for n_jobs in (1, 2)
    )
    assert_same_results(one, two)


def test_stacks_are_cut_to_the_memory_that_they_may_take(monkeypatch, stacks):
    expected = BatchedGridSearchCV(moving_vae(), GRID, cv=CV).fit(X)
    del stacks[:]
    monkeypatch.setattr(stack_module, "STACKED", 1)
    search = BatchedGridSearchCV(moving_vae(), GRID, cv=CV).fit(X)
    assert stacks == [1] * 6
    assert_same_results(search, expected)


@pytest.mark.parametrize("limit", [2, 1, 0])
def test_stacks_for_which_memory_is_too_short(monkeypatch, limit):
    calls = []

    def train(estimators, *args):
        calls.append(len(estimators))
        if len(estimators) > limit:
            raise MemoryError("no memory")
        return fit_stack(estimators, *args)

    # Random states that are objects are drawn from once, however often a stack is cut.
    vae = moving_vae(random_state=np.random.RandomState(0))
    expected = BatchedGridSearchCV(vae, GRID, cv=CV).fit(X)
    monkeypatch.setattr(search_module, "fit_stack", train)
    bars = watched_bars(monkeypatch)
    search = BatchedGridSearchCV(vae, GRID, cv=CV, verbose=1)
    if limit:
        assert_same_results(search.fit(X), expected)
        assert sum(size for size in calls if size <= limit) == 6
        assert [(bar.total, bar.n) for bar in bars] == [(18, 18)]
    else:
        with pytest.raises(ValueError, match=r"(?s)fits failed.*no memory"):
            search.fit(X)
    assert calls[:2] == [6, 3]


def watched_bars(monkeypatch):
    """List that gets each bar of tqdm that is opened."""
    from tqdm import auto

    bars = []

    class Watched(auto.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    monkeypatch.setattr(auto, "tqdm", Watched)
    return bars


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize(
    "params", [{}, {"callbacks": [EpochRecorder()]}], ids=["", "callbacks"]
)
def test_one_bar_for_the_whole_search(monkeypatch, capfd, n_jobs, params):
    bars = watched_bars(monkeypatch)
    grid = {**GRID, "n_components": [1, 2]}
    search = BatchedGridSearchCV(moving_vae(**params), grid, cv=CV, n_jobs=n_jobs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search.set_params(verbose=0).fit(X)
        assert capfd.readouterr() == ("", "")
        search.set_params(verbose=1).fit(X)
    assert [(bar.total, bar.n) for bar in bars] == [(36, 36)]
    out, err = capfd.readouterr()
    assert out == ""
    lines = [line for line in err.replace("\r", "\n").split("\n") if line.strip()]
    assert all(line.startswith("BatchedGridSearchCV:") for line in lines)
    assert err.count("\n") == 1


# Candidates that fail

DIVERGING = {"optimizer": "sgd", "learning_rate": 1e-2}


@pytest.mark.parametrize("error_score", [np.nan, -100.0])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"return_train_score": True},
        {
            "scoring": {"a": metrics.elbo_scorer, "b": mean_square_of_codes},
            "refit": "a",
        },
        {"scoring": several_scores, "refit": "bound"},
    ],
    ids=lambda params: "-".join(params),
)
def test_a_candidate_that_diverges_has_no_score(params, error_score):
    vae = moving_vae(**DIVERGING)
    params = {**params, "cv": CV, "error_score": error_score}
    searches = []
    for cls in (BatchedGridSearchCV, GridSearchCV):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            search = cls(vae, {"sigma": [1e-4, 0.5, 1.0]}, **params).fit(X)
        searches.append(search)
        (failed,) = (w for w in caught if w.category is FitFailedWarning)
        assert "2 fits failed out of a total of 6" in str(failed.message)
        assert "Training diverged" in str(failed.message)
        if not np.isnan(error_score):
            assert len(caught) == 1
    assert_same_results(*searches)
    without = BatchedGridSearchCV(vae, {"sigma": [0.5, 1.0]}, **params).fit(X)
    for name, column in without.cv_results_.items():
        if name.startswith("split"):
            assert searches[0].cv_results_[name][1:].tolist() == column.tolist()


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_candidate_that_diverges_can_raise(n_jobs):
    search = BatchedGridSearchCV(moving_vae(**DIVERGING), {"sigma": [0.5, 1e-4]}, cv=CV)
    search.set_params(error_score="raise", n_jobs=n_jobs)
    with pytest.raises(ValueError, match="Training diverged"):
        search.fit(X)
    assert not hasattr(search, "cv_results_")


@pytest.mark.parametrize("scoring", [None, several_scores])
def test_all_candidates_diverge(scoring):
    search = BatchedGridSearchCV(moving_vae(**DIVERGING), {"sigma": [1e-5, 1e-4]})
    search.set_params(cv=CV, scoring=scoring, refit=scoring is None)
    with pytest.raises(ValueError, match=r"(?s)All the 4 fits failed.*diverged"):
        search.fit(X)
    assert not hasattr(search, "cv_results_")


# Bernoulli noise needs rows in [0, 1].
@pytest.mark.parametrize(
    "params", [{"noise": ["bernoulli", "gaussian"]}, {"sigma": [1e-30, 0.3]}], ids=str
)
def test_a_candidate_that_cannot_start(params):
    searches = []
    for cls in (BatchedGridSearchCV, GridSearchCV):
        search = cls(moving_vae(), params, cv=CV)
        with (
            pytest.warns(UserWarning, match="non-finite"),
            pytest.warns(FitFailedWarning, match="2 fits failed"),
        ):
            searches.append(search.fit(X))
    assert_same_results(*searches)


def test_a_failed_search_stays_what_it_was():
    search = BatchedGridSearchCV(moving_vae(**DIVERGING), {"sigma": [0.5, 1.0]}, cv=CV)
    before = dict(vars(search.fit(X)))
    for bad in ({"sigma": [1e-4]}, {"sigma": [-1.0]}, {"sigma": []}, {"nothing": [1]}):
        search.set_params(param_grid=bad)
        with pytest.raises((ValueError, AttributeError)):
            search.fit(X)
        after = {**vars(search), "param_grid": before["param_grid"]}
        assert after.keys() == before.keys()
        assert all(after[name] is before[name] for name in before)
    assert search.transform(X).shape == (60, 2)


# What is trained one by one


@pytest.mark.parametrize(
    ("params", "rows", "reason"),
    [
        ({"callbacks": [EpochRecorder()]}, X, "callbacks"),
        ({"optimizer": functools.partial(torch.optim.RMSprop)}, X, "optimizer"),
        ({"network": "conv"}, low_rank_rows(30, 16).reshape(-1, 4, 4), "Conv"),
        ({"network": DropoutNetwork()}, X, "Dropout"),
    ],
    ids=["callbacks", "optimizer", "conv", "dropout"],
)
def test_what_cannot_be_stacked_is_trained_one_by_one(params, rows, reason, stacks):
    grid = {"sigma": [0.3, 1.0], "n_components": [1, 2]}
    vae = moving_vae(**params)
    search = BatchedGridSearchCV(vae, grid, cv=CV)
    with pytest.warns(UserWarning, match=f"{reason}.*") as caught:
        search.fit(rows)
    assert len(caught) == 1
    assert ONE_BY_ONE in str(caught[0].message)
    assert caught[0].filename == __file__
    assert not stacks
    expected = GridSearchCV(vae, grid, cv=CV).fit(rows)
    assert np.array_equal(split_scores(search), split_scores(expected))
    assert_same_results(search, expected)


def test_what_can_be_stacked_still_is(stacks):
    grid = [GRID, {"optimizer": [torch.optim.RMSprop], **GRID}]
    with pytest.warns(UserWarning, match=ONE_BY_ONE):
        search = BatchedGridSearchCV(moving_vae(), grid, cv=CV).fit(X)
    assert stacks == [6]
    assert_same_results(search, GridSearchCV(moving_vae(), grid, cv=CV).fit(X))


# Bad input, before any training


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (make_pipeline(SigmaVAE()), r"got Pipeline.* sklearn\.model_selection\.Grid"),
        (PCA(), "must be a SigmaVAE, got PCA"),
        # scikit-learn refuses what has no fit.
        (SigmaVAE, "'estimator' parameter"),
        (None, "'estimator' parameter"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_estimators_are_refused(no_training, estimator, message):
    with pytest.raises(TypeError, match=message):
        BatchedGridSearchCV(estimator, GRID).fit(X)


BAD_GRIDS = [
    ([], "no candidates"),
    ({"sigma": []}, "sigma"),
    ({"sigma": 0.3}, "sigma"),
    ({"sgima": [0.3]}, "sgima"),
    ({"noise__exponent": [1.5]}, "set_params"),
    ({"sigma": [0.3, np.nan]}, "sigma"),
    ({"sigma": [0.3, "x"]}, "sigma"),
    ({"sigma": [0.3, np.ones(4)]}, r"sigma.*\(5,\)"),
    ({"sigma": [0.3, [0.3, 0.3, 0.3, 0.3, -1.0]]}, "sigma"),
    ({"n_components": [2, 2.5]}, "n_components"),
    ({"network": ["mlp", "conv"]}, "conv|image"),
    ({"hidden_layer_sizes": [(8,), (0,)]}, "hidden_layer_sizes"),
    ({"image_shape": [None, (2, 2)]}, "image_shape"),
    ({"device": ["cpu", "nowhere"]}, "device"),
]
BAD_ROWS = [
    (np.where(np.arange(5) == 2, np.nan, X), "Column 2 of X has no entries"),
    (X[:0], "0 sample|minimum|at least|Cannot have number of splits"),
    (X[:, 0], "2D|dimension"),
    (X[:, :0], "0 feature"),
    ([[1.0, 2.0], [3.0]], "one shape"),
    (None, "None|NoneType|iterable|scalar"),
]
BAD_SPLITS = [
    ([(INDEX[:30], INDEX[30:]), ([0], [1, 2])], "Split 1.*1 training"),
    ([([0, 1, 2], [])], "0 test rows"),
    ([(INDEX < 1, INDEX >= 1)], "1 training"),
    (61, "n_splits"),
    (1, "k-fold|n_splits"),
    ([], "split|fold|No fits"),
    ("five", "cv"),
]
BAD_PARAMETERS = [
    ({"scoring": {"a": mean_square_of_codes, "b": several_scores}}, "refit"),
    ({"scoring": ["no such score"]}, "no such score"),
    ({"error_score": "never"}, "error_score"),
    ({"n_jobs": 0}, "n_jobs"),
    ({"verbose": -1}, "verbose"),
]


@pytest.mark.parametrize(
    ("params", "rows", "message"),
    [
        *(({"param_grid": grid}, X, message) for grid, message in BAD_GRIDS),
        *(({}, rows, message) for rows, message in BAD_ROWS),
        *(({"cv": cv}, X, message) for cv, message in BAD_SPLITS),
        ({"cv": LeaveOneOut()}, X[:2], "1 training"),
        *((params, X, message) for params, message in BAD_PARAMETERS),
    ],
)
def test_bad_input_is_refused(no_training, params, rows, message):
    search = BatchedGridSearchCV(moving_vae(), GRID).set_params(**params)
    with pytest.raises((ValueError, TypeError, AttributeError), match=message):
        search.fit(rows)
    assert not hasattr(search, "cv_results_")


@pytest.mark.parametrize("name", ["continues", "minimum", "sigma"])
def test_parameters_that_fit_does_not_have_are_refused(name):
    searches = (
        cls(moving_vae(), GRID, cv=CV, refit=False, error_score="raise")
        for cls in (GridSearchCV, BatchedGridSearchCV)
    )
    for search in searches:
        with pytest.raises(TypeError, match=f"unexpected.*{name}"):
            search.fit(X, **{name: 2})


# What it passes on of its best model

GAPS = np.where(np.random.default_rng(0).random(X.shape) < 0.2, np.nan, X)
PASSED_ON = {
    "denoise": lambda one: one.denoise(GAPS, noise_scale=0.5),
    "posterior": lambda one: one.posterior(GAPS, noise_scale=0.5),
    "sample": lambda one: one.sample(3, add_noise=True, random_state=0),
    "get_feature_names_out": lambda one: one.get_feature_names_out(),
}


@pytest.fixture(scope="module")
def found():
    """A search that tests must not refit."""
    return BatchedGridSearchCV(small_vae(), GRID, cv=CV).fit(X)


@pytest.mark.parametrize("method", PASSED_ON)
def test_methods_of_the_best_model_are_passed_on(found, method):
    call = PASSED_ON[method]
    assert np.array_equal(call(found), call(found.best_estimator_))


def test_the_best_model_is_saved(found, tmp_path):
    found.save(tmp_path / "best")
    best = SigmaVAE.load(tmp_path / "best", device="cpu")
    assert best.sigma_ == found.best_params_["sigma"]
    assert np.array_equal(best.transform(X), found.transform(X))


@pytest.mark.parametrize("before", [True, False])
def test_set_output_is_passed_on(before):
    search = BatchedGridSearchCV(small_vae(), GRID, cv=CV)
    scoring = metrics.denoising_scorer(0.5)
    search.set_params(scoring=scoring)
    expected = clone(search).fit(X)
    for _ in range(2):
        if before:
            assert search.set_output(transform="pandas") is search
        search.fit(X)
        if not before:
            assert search.set_output(transform="pandas") is search
        codes = search.transform(X)
        assert isinstance(codes, pd.DataFrame)
        assert codes.columns.tolist() == search.get_feature_names_out().tolist()
        assert np.array_equal(codes, expected.transform(X))
        # It has not changed what the search finds.
        assert np.array_equal(split_scores(search), split_scores(expected))
    pipe = make_pipeline(clone(search)).set_output(transform="pandas").fit(X)
    assert isinstance(pipe.transform(X), pd.DataFrame)
    assert pipe.get_feature_names_out().tolist() == ["sigmavae0", "sigmavae1"]


@pytest.mark.parametrize("method", [*PASSED_ON, "set_output", "save"])
def test_nothing_is_passed_on_without_a_best_model(method):
    search = BatchedGridSearchCV(small_vae(), {"sigma": [0.3]}, cv=CV)
    if method != "set_output":
        arguments = {"save": ["file"], "sample": []}.get(method, [X])
        searched = clone(search).set_params(refit=False).fit(X).set_params(refit=True)
        for one in (search, searched):
            with pytest.raises(NotFittedError, match="BatchedGridSearchCV"):
                getattr(one, method)(*arguments)
    search.set_params(refit=False)
    for one in (search, search.fit(X)):
        assert not hasattr(one, method)
        with pytest.raises(AttributeError, match=f"has no attribute '{method}'") as at:
            getattr(one, method)
        assert "refit=False" in str(at.value.__cause__)
