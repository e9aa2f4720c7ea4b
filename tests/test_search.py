"""A batched search finds what scikit-learn's finds, candidate by candidate."""

import functools
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
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
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
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
from sklearn_sigmavae import _net as net_module
from sklearn_sigmavae import _search as search_module
from sklearn_sigmavae._training import train_stack

X = low_rank_rows()
CV = KFold(2, shuffle=True, random_state=0)
GRID = {"sigma": [0.1, 0.3, 1.0]}
GROUPS = np.repeat(np.arange(6), [5, 10, 15, 20, 7, 3])
IMAGES = low_rank_rows(40, 12, rank=3)

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

    def train(starts, *args):
        sizes.append(len(starts))
        return train_stack(starts, *args)

    monkeypatch.setattr(search_module, "train_stack", train)
    return sizes


@pytest.fixture
def no_training(monkeypatch):
    """Make any training an error of another type."""

    def train(self, *args):
        pytest.fail("training started")

    monkeypatch.setattr(net_module.BoundNet, "train", train)


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
    "numbers and mle": ({"sigma": ["mle", 0.2, 0.6, "mle"]}, [4, 4]),
    "scales per feature": (
        {"sigma": [0.3, np.linspace(0.1, 0.5, 5), [0.2, 0.2, 0.2, 0.2, 0.6]]},
        [6],
    ),
    "components": ({"n_components": [1, 3], "sigma": [0.2, 0.6]}, [4, 4]),
    "noise": (
        {"noise": ["gaussian", "laplace", GeneralizedNormalNoise(1.5)], **GRID},
        [6, 6, 6],
    ),
    "exponents": (
        {
            "noise": [GeneralizedNormalNoise()],
            "noise__exponent": [1.5, 3.0],
            "sigma": [0.2, 0.6],
        },
        [4, 4],
    ),
    "layers": ({"hidden_layer_sizes": [(), (4,), (4, 4), 4], "beta": [1, 2]}, [4] * 4),
    "epochs": ({"max_iter": [0, 2], "sigma": [0.2, 0.6]}, [4, 4]),
    "several grids": (
        [GRID, {"n_components": [1], "sigma": [0.3]}, {"beta": [0.5, 2.0]}],
        [6, 2, 4],
    ),
    "one candidate": ({"sigma": [0.3]}, [2]),
    "no parameter": ({}, [2]),
    "array": ({"sigma": np.array([0.2, 0.6]), "n_components": np.arange(1, 3)}, [4, 4]),
}


@pytest.mark.parametrize("name", OTHER_GRIDS)
def test_a_batched_search_scores_each_candidate(name, stacks):
    grid, sizes = OTHER_GRIDS[name]
    ours, other = both(moving_vae(), grid)
    assert_same_results(ours, other)
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
        {"sigma": "mle"},
        {"optimizer": "adamw", "activation": "tanh"},
        {"linear_path": False, "init": "random"},
        {"verbose": 0, "warm_start": True},
        {"precision": "tf32"},
    ],
    ids=str,
)
def test_estimators_with_other_parameters(params):
    grid = {"beta": [0.5, 2.0]} if "sigma" in params else GRID
    assert_same_results(*both(moving_vae(**params), grid))


def test_bernoulli_noise():
    rows = (X - X.min()) / np.ptp(X)
    vae = moving_vae(noise="bernoulli")
    assert_same_results(*both(vae, {"beta": [0.5, 1.0, 2.0]}, rows))


@pytest.mark.parametrize("random_state", [7, np.random.RandomState(7)], ids=type)
def test_random_states(random_state):
    vae = moving_vae(random_state=random_state)
    assert_same_results(*both(vae, GRID))


def test_no_random_state():
    search = BatchedGridSearchCV(moving_vae(random_state=None), GRID, cv=CV).fit(X)
    assert np.isfinite(split_scores(search)).all()
    same = BatchedGridSearchCV(
        moving_vae(random_state=None), {"sigma": [0.3, 0.3]}, cv=CV
    ).fit(X)
    first, second = split_scores(same)
    assert (first != second).all()


# Splits


@pytest.mark.parametrize(
    ("cv", "sizes"),
    [
        (3, [9]),
        (None, [15]),
        (KFold(7), [3 * 3, 3 * 4]),
        (ShuffleSplit(3, test_size=0.3, random_state=0), [9]),
        (TimeSeriesSplit(2), [3, 3]),
        ([(np.arange(40), np.arange(40, 60)), (np.arange(20, 60), [0, 1])], [6]),
        ([(list(range(30)), list(range(30, 60)))], [3]),
        ([(np.arange(60) < 40, np.arange(60) >= 40)], [3]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_splits(cv, sizes, stacks):
    assert_same_results(*both(moving_vae(), GRID, cv=cv))
    if not isinstance(cv, list) or len(cv) > 1 or isinstance(cv[0][0], list):
        assert sorted(stacks) == sorted(sizes)


def test_splits_that_are_made_as_they_are_asked_for():
    folds = list(CV.split(X))
    ours = BatchedGridSearchCV(moving_vae(), GRID, cv=iter(folds)).fit(X)
    assert_same_results(ours, GridSearchCV(moving_vae(), GRID, cv=folds).fit(X))


def test_groups():
    ours, other = both(
        moving_vae(), GRID, cv=GroupKFold(3), fit_params={"groups": GROUPS}
    )
    assert_same_results(ours, other)


def test_held_out_rows_go_to_every_fit():
    fit_params = {"X_val": low_rank_rows(20, seed=3)}
    vae = small_vae(max_iter=5)
    assert_same_results(*both(vae, GRID, fit_params=fit_params))


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
        {"scoring": metrics.elbo_scorer},
        {"scoring": metrics.reconstruction_scorer},
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
        {"refit": False},
        {"refit": last},
        {"scoring": several_scores, "refit": last},
        {"return_train_score": True},
    ],
    ids=lambda params: "-".join(map(str, params)),
)
def test_scores_and_what_is_chosen_by_them(params):
    assert_same_results(*both(moving_vae(), GRID, **params))


def test_scorers_see_the_targets():
    assert_same_results(
        *both(moving_vae(), GRID, y=X[:, 0], scoring=correlation_with_target)
    )


def failing_scorer(estimator, X, y=None):
    if estimator.sigma == 0.3:
        raise RuntimeError("no score")
    return estimator.score(X)


def test_a_scorer_that_fails():
    searches = []
    for cls in (BatchedGridSearchCV, GridSearchCV):
        search = cls(moving_vae(), GRID, cv=CV, scoring=failing_scorer)
        with (
            pytest.warns(UserWarning, match="no score"),
            pytest.warns(UserWarning, match="non-finite"),
        ):
            searches.append(search.fit(X))
        with pytest.raises(RuntimeError, match="no score"):
            search.set_params(error_score="raise").fit(X)
    assert_same_results(*searches)


# Data


def test_a_data_frame():
    frame = pd.DataFrame(X, columns=list("abcde"))
    ours, other = both(moving_vae(), GRID, frame)
    assert_same_results(ours, other)
    assert list(ours.feature_names_in_) == list("abcde")
    assert ours.n_features_in_ == 5
    frame.index = np.arange(60)[::-1] * 3
    assert_same_results(
        BatchedGridSearchCV(moving_vae(), GRID, cv=CV).fit(frame), other
    )


def test_feature_names_of_a_previous_fit_are_gone():
    frame = pd.DataFrame(X, columns=list("abcde"))
    search = BatchedGridSearchCV(moving_vae(), GRID, cv=CV).fit(frame).fit(X)
    assert not hasattr(search, "feature_names_in_")


ARRAYS = {
    "list": X.tolist(),
    "float32": X.astype(np.float32),
    "tensor": torch.from_numpy(X),
    "Fortran order": np.asfortranarray(X),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_other_types(name):
    rows = ARRAYS[name]
    ours = BatchedGridSearchCV(moving_vae(), GRID, cv=CV).fit(rows)
    other = np.asarray(rows) if name in ("list", "tensor") else rows
    assert_same_results(ours, GridSearchCV(moving_vae(), GRID, cv=CV).fit(other))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 2)], ids=str)
def test_images(shape, dtype):
    images = np.clip(128 + 20 * IMAGES, 0, 255).astype(dtype).reshape(-1, *shape)
    grid = {"sigma": [5.0, 20.0, np.full(shape, 10.0)]}
    ours, other = both(moving_vae(), grid, images)
    assert_same_results(ours, other, n_features=12)
    assert ours.inverse_transform(ours.transform(images)).shape == images.shape


# As an estimator


def test_a_search_is_an_estimator():
    search = BatchedGridSearchCV(moving_vae(), GRID, cv=CV)
    copied = clone(search)
    assert repr(copied.get_params()) == repr(search.get_params())
    assert copied.get_params()["estimator__sigma"] == 0.3
    assert copied.set_params(estimator__n_components=1).estimator.n_components == 1
    assert search.estimator.n_components == 2
    with pytest.raises(NotFittedError):
        search.transform(X)


def test_a_fitted_search_is_the_best_model():
    search = BatchedGridSearchCV(moving_vae(), GRID, cv=CV)
    assert search.fit(X) is search
    best = moving_vae(**search.best_params_).fit(X)
    codes = best.transform(X)
    for one in (search, pickle.loads(pickle.dumps(search))):
        assert np.array_equal(one.transform(X), codes)
        assert np.array_equal(
            one.inverse_transform(codes), best.inverse_transform(codes)
        )
        assert np.array_equal(one.score_samples(X), best.score_samples(X))
        assert one.score(X) == best.score(X)
    assert not hasattr(search.estimator, "net_")


def test_nested_cross_validation():
    scores = [
        cross_val_score(cls(moving_vae(), GRID, cv=2), X, cv=CV)
        for cls in (BatchedGridSearchCV, GridSearchCV)
    ]
    assert scores[0].tolist() == scores[1].tolist()


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


def test_two_processes_find_what_one_finds():
    grid = [{**GRID, "n_components": [1, 2]}, {"beta": [0.5]}]
    one, two = (
        BatchedGridSearchCV(moving_vae(), grid, cv=CV, n_jobs=n_jobs).fit(X)
        for n_jobs in (1, 2)
    )
    assert_same_results(one, two)


def test_little_memory(monkeypatch, stacks):
    expected = BatchedGridSearchCV(moving_vae(), GRID, cv=CV).fit(X)
    del stacks[:]
    monkeypatch.setattr(search_module, "STACK_BYTES_ON_CPU", 1)
    search = BatchedGridSearchCV(moving_vae(), GRID, cv=CV).fit(X)
    assert stacks == [1] * 6
    assert_same_results(search, expected)


@pytest.mark.parametrize("limit", [2, 1, 0])
def test_stacks_for_which_memory_is_too_short(monkeypatch, limit, capfd):
    calls = []

    def train(starts, *args):
        calls.append(len(starts))
        if len(starts) > limit:
            raise MemoryError("no memory")
        return train_stack(starts, *args)

    expected = BatchedGridSearchCV(moving_vae(), GRID, cv=CV).fit(X)
    monkeypatch.setattr(search_module, "train_stack", train)
    search = BatchedGridSearchCV(moving_vae(), GRID, cv=CV)
    if limit:
        assert_same_results(search.fit(X), expected)
        assert sum(size for size in calls if size <= limit) == 6
    else:
        with pytest.raises(ValueError, match=r"(?s)fits failed.*no memory"):
            search.fit(X)
    assert calls[:2] == [6, 3]


def test_the_bar_ends_where_it_should_when_memory_is_short(monkeypatch):
    def train(starts, *args):
        if len(starts) > 2:
            raise MemoryError("no memory")
        return train_stack(starts, *args)

    monkeypatch.setattr(search_module, "train_stack", train)
    bars = watched_bars(monkeypatch)
    BatchedGridSearchCV(moving_vae(), GRID, cv=CV, verbose=1, refit=False).fit(X)
    assert [(bar.total, bar.n) for bar in bars] == [(18, 18)]


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
    search = BatchedGridSearchCV(
        moving_vae(**params),
        {**GRID, "n_components": [1, 2]},
        cv=CV,
        n_jobs=n_jobs,
        verbose=1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search.fit(X)
    assert [(bar.total, bar.n) for bar in bars] == [(36, 36)]
    out, err = capfd.readouterr()
    assert out == ""
    lines = [line for line in err.replace("\r", "\n").split("\n") if line.strip()]
    assert all(line.startswith("BatchedGridSearchCV:") for line in lines)
    assert err.count("\n") == 1


def test_a_silent_search(capfd):
    BatchedGridSearchCV(moving_vae(), GRID, cv=CV).fit(X)
    assert capfd.readouterr() == ("", "")


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


def test_a_candidate_that_diverges_can_raise():
    search = BatchedGridSearchCV(
        moving_vae(**DIVERGING), {"sigma": [0.5, 1e-4]}, cv=CV, error_score="raise"
    )
    with pytest.raises(ValueError, match="Training diverged"):
        search.fit(X)
    assert not hasattr(search, "cv_results_")
    search.set_params(n_jobs=2)
    with pytest.raises(ValueError, match="Training diverged"):
        search.fit(X)


@pytest.mark.parametrize("scoring", [None, several_scores])
def test_all_candidates_diverge(scoring):
    search = BatchedGridSearchCV(
        moving_vae(**DIVERGING),
        {"sigma": [1e-5, 1e-4]},
        cv=CV,
        scoring=scoring,
        refit=scoring is None,
    )
    with pytest.raises(ValueError, match=r"(?s)All the 4 fits failed.*diverged"):
        search.fit(X)
    assert not hasattr(search, "cv_results_")


@pytest.mark.parametrize(
    "params",
    [
        # The rows are not in [0, 1].
        {"noise": ["bernoulli", "gaussian"]},
        {"sigma": [1e-30, 0.3]},
    ],
    ids=str,
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

TABLE = low_rank_rows(30, 16)


@pytest.mark.parametrize(
    ("params", "rows", "reason"),
    [
        ({"callbacks": [EpochRecorder()]}, X, "callbacks"),
        ({"optimizer": functools.partial(torch.optim.RMSprop)}, X, "optimizer"),
        ({"network": "conv"}, TABLE.reshape(-1, 4, 4), "Conv"),
        ({"network": DropoutNetwork()}, X, "Dropout"),
    ],
    ids=["callbacks", "optimizer", "conv", "dropout"],
)
def test_what_cannot_be_stacked_is_trained_one_by_one(params, rows, reason, stacks):
    vae, grid = moving_vae(**params), {"sigma": [0.3, 1.0], "n_components": [1, 2]}
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
    "estimator",
    [make_pipeline(StandardScaler(), SigmaVAE()), PCA(), SigmaVAE, None],
    ids=lambda estimator: type(estimator).__name__,
)
def test_other_estimators_are_refused(no_training, estimator):
    search = BatchedGridSearchCV(estimator, GRID)
    # scikit-learn refuses what has no fit.
    message = "GridSearchCV|'estimator' parameter"
    with pytest.raises(TypeError, match=message):
        search.fit(X)


def test_a_pipeline_is_told_what_to_use_instead(no_training):
    search = BatchedGridSearchCV(make_pipeline(SigmaVAE()), GRID)
    with pytest.raises(TypeError, match=r"sklearn\.model_selection\.GridSearchCV"):
        search.fit(X)


class SubVAE(SigmaVAE):
    """An estimator of a user."""


def test_a_class_derived_from_sigma_vae_is_one():
    vae = SubVAE(**moving_vae().get_params())
    search = BatchedGridSearchCV(vae, GRID, cv=CV).fit(X)
    assert type(search.best_estimator_) is SubVAE


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([], "no candidates"),
        ({"sigma": []}, "sigma"),
        ({"sigma": 0.3}, "sigma"),
        ({"sgima": [0.3]}, "sgima"),
        ({"noise__exponent": [1.5]}, "set_params"),
        ({"sigma": [0.3, -1.0]}, "sigma"),
        ({"sigma": [0.3, 0.0]}, "sigma"),
        ({"sigma": [0.3, np.nan]}, "sigma"),
        ({"sigma": [0.3, np.inf]}, "sigma"),
        ({"sigma": [0.3, "x"]}, "sigma"),
        ({"sigma": [0.3, None]}, "sigma"),
        ({"sigma": [0.3, np.ones(4)]}, r"sigma.*\(5,\)"),
        ({"sigma": [0.3, [0.3, 0.3, 0.3, 0.3, -1.0]]}, "sigma"),
        ({"beta": [1.0, 0.0]}, "beta"),
        ({"n_components": [2, 0]}, "n_components"),
        ({"n_components": [2, 2.5]}, "n_components"),
        ({"noise": ["gaussian", "poisson"]}, "noise"),
        ({"random_state": [0, "x"]}, "random_state"),
        ({"network": ["mlp", "conv"]}, "conv|image"),
        ({"hidden_layer_sizes": [(8,), (0,)]}, "hidden_layer_sizes"),
        ({"image_shape": [None, (2, 2)]}, "image_shape"),
        ({"device": ["cpu", "nowhere"]}, "device"),
    ],
    ids=str,
)
def test_bad_grids_are_refused(no_training, grid, message):
    search = BatchedGridSearchCV(moving_vae(), grid, cv=CV)
    with pytest.raises((ValueError, TypeError, AttributeError), match=message):
        search.fit(X)
    assert not hasattr(search, "cv_results_")


NAN = np.where(np.arange(5) == 2, np.nan, X)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (NAN, "NaN"),
        (X[:0], "0 sample|minimum|at least|Cannot have number of splits"),
        (X[:, 0], "2D|dimension"),
        (X[:, :0], "0 feature"),
        ([[1.0, 2.0], [3.0]], "one shape"),
        (None, "None|NoneType|iterable|scalar"),
    ],
    ids=["nan", "no rows", "one dimension", "no columns", "ragged", "None"],
)
def test_bad_data_is_refused(no_training, rows, message):
    search = BatchedGridSearchCV(moving_vae(), GRID, cv=CV)
    with pytest.raises((ValueError, TypeError), match=message):
        search.fit(rows)


@pytest.mark.parametrize(
    ("cv", "rows", "message"),
    [
        ([(np.arange(30), np.arange(30, 60)), ([0], [1, 2])], X, "Split 1.*1 training"),
        ([([0, 1, 2], [])], X, "0 test rows"),
        ([(np.arange(60) < 1, np.arange(60) >= 1)], X, "1 training"),
        (LeaveOneOut(), X[:2], "1 training"),
        (3, X[:2], "n_splits"),
        (1, X, "k-fold|n_splits"),
        ([], X, "split|fold|No fits"),
        ("five", X, "cv"),
    ],
    ids=[
        "one training row",
        "no test row",
        "mask",
        "leave one out",
        "more folds than rows",
        "one fold",
        "no split",
        "word",
    ],
)
def test_bad_splits_are_refused(no_training, cv, rows, message):
    search = BatchedGridSearchCV(moving_vae(), GRID, cv=cv)
    with pytest.raises(ValueError, match=message):
        search.fit(rows)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"scoring": {"a": mean_square_of_codes, "b": several_scores}}, "refit"),
        ({"scoring": ["no such score"]}, "no such score"),
        ({"error_score": "never"}, "error_score"),
        ({"n_jobs": 0}, "n_jobs"),
        ({"verbose": -1}, "verbose"),
    ],
    ids=lambda value: "-".join(value),
)
def test_bad_parameters_of_the_search_are_refused(no_training, params, message):
    search = BatchedGridSearchCV(moving_vae(), GRID, **params)
    with pytest.raises(ValueError, match=message):
        search.fit(X)


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
    assert isinstance(make_pipeline(search).transform(X), pd.DataFrame)


def test_a_pipeline_sets_the_output_of_its_search():
    pipe = make_pipeline(
        StandardScaler(), BatchedGridSearchCV(small_vae(), GRID, cv=CV)
    )
    pipe.set_output(transform="pandas").fit(X)
    assert isinstance(pipe.transform(X), pd.DataFrame)
    assert pipe.get_feature_names_out().tolist() == ["sigmavae0", "sigmavae1"]


@pytest.mark.parametrize("method", [*PASSED_ON, "set_output", "save"])
def test_nothing_is_passed_on_without_a_best_model(method):
    search = BatchedGridSearchCV(small_vae(), GRID, cv=CV)
    if method != "set_output":
        arguments = {"save": ["file"], "sample": []}.get(method, [X])
        with pytest.raises(NotFittedError, match="BatchedGridSearchCV"):
            getattr(search, method)(*arguments)
    if method != "set_output":
        searched = clone(search).set_params(refit=False).fit(X).set_params(refit=True)
        with pytest.raises(NotFittedError, match="BatchedGridSearchCV"):
            getattr(searched, method)(*arguments)
    search.set_params(refit=False)
    for one in (search, search.fit(X)):
        assert not hasattr(one, method)
        with pytest.raises(AttributeError, match=f"has no attribute '{method}'") as at:
            getattr(one, method)
        assert "refit=False" in str(at.value.__cause__)


def test_fit_transform_is_not_that_of_a_search():
    assert not hasattr(BatchedGridSearchCV(small_vae(), GRID), "fit_transform")
