"""Paths of noise scales: against the closed form, by hand, and on real data."""

import pickle
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from linear_gaussian import optimum, spectrum
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.datasets import load_digits, make_low_rank_matrix
from sklearn.model_selection import KFold, ShuffleSplit, check_cv
from small_vae import curved_rows, low_rank_rows, small_vae, weights

from sklearn_sigmavae import (
    GeneralizedNormalNoise,
    PowerLaw,
    SigmaPath,
    SigmaVAE,
    sigma_path,
)
from sklearn_sigmavae._training import initial
from sklearn_sigmavae._training.pca import PrincipalAxes

X = low_rank_rows()
SIGMAS = np.array([1.0, 0.5, 0.3])


def linear_vae(**params):
    """The model whose optimum is known."""
    return small_vae(hidden_layer_sizes=(), **params)


def synthetic_path(kl, sigmas, n_active=0, k=2):
    """A path of models of which is known how many components are in use."""
    nothing = np.zeros(len(kl))
    counts = np.broadcast_to(n_active, len(kl))
    return SigmaPath(
        sigmas=np.asarray(sigmas),
        estimators=[SimpleNamespace(n_active_components_=n) for n in counts],
        kl=np.asarray(kl),
        distortion=nothing,
        score=nothing,
        test_scores=None,
        eigenvalues=np.ones(k),
        total_variance=float(k),
        noise_variance=np.asarray(sigmas) ** 2,
    )


def same_arrays(a, b):
    """Whether two paths have the same numbers."""
    names = ["sigmas", "kl", "distortion", "score", "test_scores", "total_variance"]
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def splits_of(cv):
    """Training and test rows; of folds whose size differs by one a row is dropped."""
    splits = list(check_cv(cv).split(X))
    sizes = [len(train) for train, _ in splits]
    if max(sizes) > min(sizes) + 1:
        return splits
    return [(train[: min(sizes)], test) for train, test in splits]


# The linear model, whose path is known


@pytest.mark.parametrize(("beta", "max_iter"), [(1.0, 0), (1.0, 2), (0.5, 0), (3.0, 2)])
def test_the_linear_path_is_the_closed_form(beta, max_iter):
    # Components come into use on the way, one after another.
    rows = 10 + 3 * make_low_rank_matrix(200, 6, effective_rank=3, random_state=0)
    spread = np.sqrt(spectrum(rows))
    sigmas = np.geomspace(1.1 * spread[0], 0.7 * spread[4], 9) / np.sqrt(beta)
    vae = linear_vae(n_components=4, beta=beta)
    path = sigma_path(rows, sigmas, estimator=vae, max_iter=max_iter)
    exact = [optimum(rows, 4, sigma, beta) for sigma in sigmas]
    score, kl = np.transpose(exact)
    used = [(spread[:4] > np.sqrt(beta) * sigma).sum() for sigma in sigmas]
    assert used[0] == 0
    assert used[-1] == 4
    assert len(set(used)) > 3
    tau = beta * sigmas[:, None] ** 2
    is_used = (spread**2 > tau) & (np.arange(6) < 4)
    distortion = np.where(is_used, tau, spread**2).sum(axis=1)
    assert np.allclose(path.kl, kl, rtol=1e-4, atol=1e-3)
    assert np.allclose(path.score, score, rtol=1e-4, atol=1e-3)
    assert np.allclose(path.distortion, distortion, rtol=1e-3)
    assert np.allclose(path.linear_kl, kl, rtol=1e-4, atol=1e-5)
    assert np.allclose(path.eigenvalues, spread[:4] ** 2, rtol=1e-4)
    assert path.total_variance == pytest.approx(rows.var(axis=0).sum(), rel=1e-5)
    assert np.allclose(path.noise_variance, tau[:, 0])
    counts = [estimator.n_active_components_ for estimator in path.estimators]
    # A component at the edge has almost no KL.
    assert np.abs(np.subtract(counts, used)).max() <= 1
    assert (counts[0], counts[-1]) == (0, 4)


@pytest.mark.slow
def test_the_default_path_has_the_rate_of_fits_from_scratch():
    rows = load_digits().data
    vae = SigmaVAE(40, random_state=0)
    sigmas = np.geomspace(13.4, 1.56, 8)
    path = sigma_path(rows, sigmas, estimator=vae)
    for i in 4, 6, 7:
        fresh = clone(vae).set_params(sigma=sigmas[i]).fit(rows)
        kl = fresh.kl_divergence(rows[::4]).sum() / len(rows[::4])
        assert kl > 8
        assert_allclose(path.kl[i], kl, rtol=0.03)


def test_without_training_each_model_is_that_of_its_own_start():
    vae = small_vae(n_components=3)
    path = sigma_path(X, SIGMAS, estimator=vae, max_iter=0)
    for sigma, estimator, score in zip(
        SIGMAS, path.estimators, path.score, strict=True
    ):
        alone = clone(vae).set_params(sigma=sigma, max_iter=0).fit(X)
        assert np.allclose(estimator.transform(X), alone.transform(X), atol=1e-5)
        assert score == pytest.approx(alone.score(X), abs=1e-4)


def test_with_random_weights_each_model_starts_at_the_one_before():
    vae = linear_vae(init="random", learning_rate=1e-12)
    path = sigma_path(X, SIGMAS, estimator=vae, max_iter=1)
    first, *others = map(weights, path.estimators)
    for other in others:
        assert all(torch.allclose(first[k], other[k], atol=1e-6) for k in first)


# Scales


def test_default_sigmas_begin_where_everything_is_hidden():
    path = sigma_path(X, n_sigmas=5, eps=0.05, estimator=small_vae(), max_iter=0)
    largest = np.sqrt(spectrum(X)[0])
    halved = sigma_path(X, n_sigmas=2, estimator=small_vae(beta=4.0), max_iter=0)
    assert halved.sigmas[0] == pytest.approx(largest / 2, rel=1e-5)
    assert np.allclose(path.sigmas, np.geomspace(largest, 0.05 * largest, 5), rtol=1e-5)
    assert (np.diff(path.sigmas) < 0).all()
    assert path.linear_kl[0] == pytest.approx(0, abs=1e-6)
    assert path.kl[0] == pytest.approx(0, abs=1e-5)
    assert len(sigma_path(X, estimator=small_vae(), max_iter=0).sigmas) == 16


@pytest.mark.parametrize("noise", ["gaussian", "laplace", GeneralizedNormalNoise(3.0)])
def test_the_distortion_is_that_of_the_bound(noise):
    rows = curved_rows(60)
    vae = small_vae(n_components=3, noise=noise)
    path = sigma_path(rows, SIGMAS, estimator=vae, max_iter=2)
    model = path.estimators[0].noise_
    p = model.exponent
    constants = 4 * np.array([model.log_normalizer(sigma) for sigma in SIGMAS])
    likelihood = -path.distortion / (p * SIGMAS**p) - constants
    assert np.allclose(path.score, likelihood - path.kl, rtol=1e-6)
    # It is the error of reconstructions from draws of the posterior.
    rng = np.random.RandomState(0)
    for estimator, distortion in zip(path.estimators, path.distortion, strict=True):
        mean, std = estimator.posterior(np.repeat(rows, 400, axis=0))
        draws = estimator.inverse_transform(mean + std * rng.normal(size=mean.shape))
        error = np.abs(np.repeat(rows, 400, axis=0) - draws) ** p
        assert distortion == pytest.approx(error.sum(axis=1).mean(), rel=0.02)


# Models, and what they see


def test_the_models_are_fitted_estimators():
    # Neither its sigma nor its number of epochs counts, and it is left as it is.
    vae = small_vae(sigma="auto", max_iter=7)
    path = sigma_path(X, SIGMAS, estimator=vae, max_iter=2)
    assert vars(vae) == vars(small_vae(sigma="auto", max_iter=7))
    for sigma, estimator, score, kl in zip(
        SIGMAS, path.estimators, path.score, path.kl, strict=True
    ):
        assert type(estimator) is SigmaVAE
        assert estimator.sigma == estimator.sigma_ == sigma
        assert estimator.n_features_in_ == 5
        assert estimator.n_iter_ == 2
        assert estimator.inverse_transform(estimator.transform(X)).shape == X.shape
        bound = estimator.score_samples(X, refine=False).mean()
        assert bound == pytest.approx(score, rel=1e-6)
        assert estimator.kl_divergence(X).sum(axis=1).mean() == pytest.approx(kl)
        copy = pickle.loads(pickle.dumps(estimator))
        assert np.array_equal(copy.transform(X), estimator.transform(X))
        assert clone(estimator).fit(X).sigma_ == sigma
    assert len({id(estimator.module_) for estimator in path.estimators}) == 3


def test_without_an_estimator_there_is_the_default_one():
    path = sigma_path(X, (0.5, 1), max_iter=0)
    assert path.sigmas.tolist() == [1.0, 0.5]
    params = path.estimators[1].get_params()
    assert params == SigmaVAE(sigma=0.5, max_iter=0).get_params()


def test_a_path_is_reproducible():
    rows = curved_rows()
    vae = small_vae(early_stopping=False)
    one, two = (sigma_path(rows, SIGMAS, estimator=vae, cv=2) for _ in range(2))
    assert same_arrays(one, two)
    other = sigma_path(rows, SIGMAS, estimator=clone(vae).set_params(random_state=1))
    assert not np.array_equal(one.score, other.score)


def test_a_path_of_digits_is_nowhere_below_the_linear_model(load):
    rows = load("digits")[:400]
    sigmas = np.geomspace(8, 0.8, 6)
    vae = small_vae(n_components=8, hidden_layer_sizes=(32,), batch_size=64)
    path = sigma_path(rows[:300], sigmas, estimator=vae, X_val=rows[300:])
    start = sigma_path(rows[:300], sigmas, estimator=vae, X_val=rows[300:], max_iter=0)
    assert (path.score > start.score - 0.3).all()
    assert path.score[-1] > start.score[-1] + 5
    assert (np.diff(path.kl) > 0).all()
    assert (np.diff(path.distortion) < 0).all()


# Folds and held-out rows


ROWS = np.arange(len(X))
UNEQUAL = [(ROWS[:30], ROWS[30:]), (ROWS[20:], ROWS[:20]), (ROWS[30:], ROWS[:7])]


@pytest.mark.parametrize(
    "cv",
    [
        3,
        KFold(7),
        ShuffleSplit(2, test_size=0.3, random_state=0),
        UNEQUAL,
        [(ROWS % 2 == 0, ROWS % 2 == 1)],
    ],
    ids=["int", "differing by one", "shuffled", "unequal", "mask"],
)
def test_the_test_scores_are_those_of_the_linear_models_of_the_folds(cv):
    path = sigma_path(X, SIGMAS, estimator=linear_vae(), cv=cv, max_iter=0)
    splits = splits_of(cv)
    for j, sigma in enumerate(SIGMAS):
        for f, (train, test) in enumerate(splits):
            model = linear_vae(sigma=sigma, max_iter=0).fit(X[train])
            expected = model.score(X[test])
            assert path.test_scores[j, f] == pytest.approx(expected, abs=1e-3)
    assert path.test_scores.shape == (3, len(splits))


@pytest.mark.parametrize(
    "params",
    [{}, {"early_stopping": False}, {"noise": "laplace"}, {"network": "conv"}],
    ids=lambda params: "-".join(map(str, params.values())) or "default",
)
@pytest.mark.parametrize("cv", [3, UNEQUAL], ids=["equal", "unequal"])
def test_a_fold_has_the_path_of_its_rows(params, cv):
    rows, sigmas = curved_rows(60), [1.0, 0.4]
    if "network" in params:
        # Not stackable: its models train one by one.
        rows = np.tile(rows, 4).reshape(-1, 4, 4)
    vae = small_vae(**params)
    path = sigma_path(rows, sigmas, estimator=vae, cv=cv, max_iter=2)
    for f, (train, test) in enumerate(splits_of(cv)):
        own = sigma_path(rows[train], sigmas, estimator=vae, max_iter=2)
        by_hand = [
            estimator.score_samples(rows[test], refine=False).mean()
            for estimator in own.estimators
        ]
        assert np.allclose(path.test_scores[:, f], by_hand, rtol=2e-4, atol=2e-3)
    whole = sigma_path(rows, sigmas, estimator=vae, max_iter=2)
    assert np.allclose(path.score, whole.score, rtol=2e-4, atol=2e-3)
    assert np.allclose(path.kl, whole.kl, rtol=2e-3, atol=2e-3)


def test_processes_share_the_folds_of_one_path():
    given = {"n_sigmas": 3, "cv": 5, "max_iter": 2}
    alone, shared = (
        sigma_path(X, estimator=small_vae(), n_jobs=n_jobs, **given)
        for n_jobs in (None, 2)
    )
    np.testing.assert_allclose(shared.test_scores, alone.test_scores, atol=1e-3)
    np.testing.assert_allclose(shared.score, alone.score, atol=1e-3)


@pytest.mark.parametrize("cv", [None, 2])
def test_held_out_rows_of_the_caller_are_what_is_scored(cv):
    held_out = low_rank_rows(25, seed=3)
    path = sigma_path(X, SIGMAS, estimator=small_vae(), X_val=held_out, cv=cv)
    for estimator, score, kl in zip(path.estimators, path.score, path.kl, strict=True):
        assert estimator.score(held_out) == pytest.approx(score, rel=1e-6)
        expected = estimator.kl_divergence(held_out).sum(axis=1).mean()
        assert kl == pytest.approx(expected, rel=1e-5)
        assert "valid_loss" in estimator.history_[-1]
    assert (path.test_scores is None) == (cv is None)


def test_the_best_scale_is_the_one_of_the_best_score():
    alone = sigma_path(X, [1.0, 0.3, 0.1], estimator=small_vae(), max_iter=0)
    assert alone.test_scores is None
    assert alone.best_index == np.argmax(alone.score)
    folds = sigma_path(X, [1.0, 0.3, 0.1], estimator=small_vae(), cv=3, max_iter=0)
    assert folds.best_index == np.argmax(folds.test_scores.mean(axis=1))
    folds.test_scores[2] = 0.0
    assert folds.best_index == 2
    assert folds.best_sigma == 0.1
    assert isinstance(folds.best_sigma, float)
    assert folds.best_estimator is folds.estimators[2]


# Power laws


@pytest.mark.parametrize(("exponent", "prefactor"), [(1.0, 3.0), (0.37, 20.0)])
def test_a_power_law_is_recovered(exponent, prefactor):
    sigmas = np.geomspace(0.5, 0.01, 7)
    law = synthetic_path(prefactor * sigmas**-exponent, sigmas).power_law()
    assert law.exponent == pytest.approx(exponent)
    assert law.prefactor == pytest.approx(prefactor)
    assert law.r2 == pytest.approx(1)
    assert law.exponent_error == pytest.approx(0, abs=1e-6)
    assert law.log_prefactor_error == pytest.approx(0, abs=1e-6)
    assert np.array_equal(law.sigmas, sigmas)


def test_errors_of_a_power_law_are_those_of_a_regression():
    sigmas = np.geomspace(0.5, 0.01, 9)
    noise = np.random.RandomState(0).normal(size=9)
    kl = 3 * sigmas**-0.8 * np.exp(0.1 * noise)
    law = synthetic_path(kl, sigmas).power_law()
    # By the textbook.
    design = np.column_stack([np.ones(9), -np.log(sigmas)])
    coefficients, (squares,), *_ = np.linalg.lstsq(design, np.log(kl), rcond=None)
    errors = np.sqrt(squares / 7 * np.diag(np.linalg.inv(design.T @ design)))
    assert np.allclose([np.log(law.prefactor), law.exponent], coefficients)
    assert np.allclose([law.log_prefactor_error, law.exponent_error], errors)
    assert law.r2 == pytest.approx(np.corrcoef(np.log(sigmas), np.log(kl))[0, 1] ** 2)


def test_a_power_law_has_no_curvature():
    sigmas = np.geomspace(0.5, 0.01, 7)
    law = synthetic_path(20 * sigmas**-0.7, sigmas).power_law()
    assert law.curvature == pytest.approx(0, abs=1e-9)
    bent = 20 * sigmas**-0.7 * np.exp(0.05 * np.log(sigmas / 0.1) ** 2)
    law = synthetic_path(bent, sigmas).power_law()
    assert law.curvature == pytest.approx(0.05)
    assert law.curvature_error == pytest.approx(0, abs=1e-6)
    few = synthetic_path([5.0, 6.0, 8.0], [0.3, 0.2, 0.1]).power_law()
    assert np.isnan([few.curvature, few.curvature_error]).all()


def test_a_power_law_leaves_out_scales_that_hide_everything():
    sigmas = np.geomspace(8, 0.5, 5)
    path = synthetic_path([0.0, 2.5, 10.0, 20.0, 40.0], sigmas)
    law = path.power_law()
    assert np.array_equal(law.sigmas, sigmas[2:])
    assert law.exponent == pytest.approx(1)
    assert np.array_equal(path.power_law(min_kl=2.5).sigmas, sigmas[1:])


def test_a_power_law_leaves_out_scales_at_which_components_run_out():
    sigmas = np.geomspace(1.6, 0.1, 5)
    kl = [5.0, 10.0, 20.0, 30.0, 35.0]
    path = synthetic_path(kl, sigmas, n_active=[2, 4, 8, 9, 10], k=10)
    with pytest.warns(UserWarning, match=r"from 0\.2 down .* 80% of 10 components"):
        law = path.power_law()
    assert np.array_equal(law.sigmas, sigmas[:3])
    assert law.exponent == pytest.approx(1)
    assert np.array_equal(path.power_law(max_active=1.0).sigmas, sigmas)


def test_a_path_that_runs_out_of_components_says_so():
    scales = np.geomspace(1, 0.05, 20)
    rows = scales * np.random.RandomState(0).standard_normal((200, 20))
    vae = small_vae(n_components=6, hidden_layer_sizes=())
    path = sigma_path(rows, n_sigmas=12, eps=0.3, estimator=vae, max_iter=0)
    active = [model.n_active_components_ for model in path.estimators]
    assert np.array_equal(path.n_active_components, active)
    assert active[-1] == 6
    with pytest.warns(UserWarning, match="Raise n_components"):
        law = path.power_law(min_kl=0.2)
    assert (path.n_active_components[path.sigmas >= law.sigmas.min()] < 5).all()


@pytest.mark.parametrize(
    ("kl", "n_active"), [([0.0, 4.9, 5.0, 7.0], 0), ([5, 6], 0), ([5, 6, 7, 8], 2)]
)
def test_a_power_law_of_too_few_scales_is_refused(kl, n_active):
    path = synthetic_path(kl, np.geomspace(1, 0.1, len(kl)), n_active)
    with pytest.raises(ValueError, match=r"at least three scales .* This path has"):
        path.power_law()


@pytest.mark.parametrize(
    ("sigmas", "kl", "message"),
    [
        ([1, 2, 3], [1, 2], "inconsistent numbers of samples"),
        ([1, 2, 3], [1, 2, np.nan], "kl contains NaN"),
        ([1, 2, np.inf], [1, 2, 3], "sigmas contains infinity"),
        ([1, 2, 3], [1, 0, 2], "'kl' of a power law"),
        ([1, -2, 3], [1, 2, 3], "'sigmas' of a power law"),
        ([[1], [2], [3]], [1, 2, 3], "'sigmas' of a power law"),
        ([1, 2], [1, 2], "three different scales"),
        ([1, 2, 2, 2], [1, 2, 3, 4], "three different scales"),
        (["a", "b", "c"], [1, 2, 3], "could not convert"),
    ],
)
def test_a_curve_without_a_power_law_is_refused(sigmas, kl, message):
    with pytest.raises(ValueError, match=message):
        PowerLaw.of_curve(sigmas, kl)


def test_a_curve_of_any_kind_of_array_has_its_power_law():
    sigmas = np.array([4.0, 2.0, 1.0, 0.5])
    sigmas.flags.writeable = False
    kl = (8 / sigmas).astype(np.uint8)
    of_arrays = PowerLaw.of_curve(sigmas, kl)
    assert of_arrays.exponent == pytest.approx(1)
    of_series = PowerLaw.of_curve(pd.Series(sigmas), pd.Series(kl))
    assert of_series.exponent == of_arrays.exponent
    restored = pickle.loads(pickle.dumps(of_arrays))
    assert restored.exponent == of_arrays.exponent


@pytest.mark.parametrize("params", [{"min_kl": 0}, {"max_active": 1.5}])
def test_a_range_of_a_power_law_that_is_none_is_refused(params):
    path = synthetic_path([5.0, 6.0, 8.0], [0.3, 0.2, 0.1])
    (name,) = params
    with pytest.raises(ValueError, match=f"'{name}' parameter"):
        path.power_law(**params)


# Kinds of data


@pytest.mark.parametrize(
    "kind",
    [torch.tensor, np.ndarray.tolist, lambda X: pd.DataFrame(X, columns=list("abcde"))],
    ids=["tensor", "list", "frame"],
)
def test_tensors_lists_and_frames_are_rows_too(kind):
    rows, params = kind(X), {"estimator": small_vae(), "cv": 2, "max_iter": 1}
    with torch.inference_mode():
        path = sigma_path(rows, SIGMAS, **params)
    assert same_arrays(path, sigma_path(X, SIGMAS, **params))
    if isinstance(rows, pd.DataFrame):
        assert all(list(e.feature_names_in_) == list("abcde") for e in path.estimators)
        codes = path.best_estimator.set_output(transform="pandas").transform(rows)
        assert list(codes.columns) == ["sigmavae0", "sigmavae1"]
    path.best_estimator.partial_fit(rows)


@pytest.mark.parametrize(
    ("network", "dtype"), [("mlp", np.float64), ("conv", np.uint8)]
)
def test_images_have_paths(images, network, dtype):
    rows = images[:90].astype(dtype)
    vae = small_vae(network=network)
    path = sigma_path(rows, [6.0, 3.0], estimator=vae, cv=2, max_iter=1)
    assert path.test_scores.shape == (2, 2)
    variance = images[:90].var(axis=0).sum()
    assert path.total_variance == pytest.approx(variance, rel=1e-5)
    decoded = path.best_estimator.inverse_transform(np.zeros((3, 2)))
    assert decoded.shape == (3, 8, 8)


OTHERS = {"lr_schedule": "constant"}, {"precision": "bfloat16"}, {"n_components": 9}


@pytest.mark.parametrize(
    "params", [{"init": "random", "linear_path": False}, *OTHERS], ids=str
)
def test_other_parameters_have_paths(params):
    path = sigma_path(X, SIGMAS, estimator=small_vae(**params), cv=2, max_iter=1)
    for array in (path.kl, path.score, path.distortion, path.test_scores):
        assert np.isfinite(array).all()
    assert (path.distortion > 0).all()


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_a_bar_shows_all_epochs(capsys, network):
    rows = X if network == "mlp" else low_rank_rows(60, 16).reshape(-1, 4, 4)
    vae = small_vae(network=network)
    sigma_path(rows, SIGMAS, estimator=vae, cv=3, max_iter=2)
    assert capsys.readouterr() == ("", "")
    sigma_path(rows, SIGMAS, estimator=vae.set_params(verbose=1), cv=3, max_iter=2)
    # Three scales, four models, two epochs.
    assert "24/24" in capsys.readouterr().err


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_what_a_scale_needs_of_the_data_is_computed_once(monkeypatch, network):
    axes, placed = Mock(wraps=PrincipalAxes.of_data), Mock(wraps=initial.place_rows)
    monkeypatch.setattr(PrincipalAxes, "of_data", axes)
    monkeypatch.setattr(initial, "place_rows", placed)
    rows = X if network == "mlp" else low_rank_rows(60, 16).reshape(-1, 4, 4)
    sigma_path(rows, SIGMAS, estimator=small_vae(network=network), cv=2, max_iter=1)
    assert placed.call_count == 3
    # Once more for the default scales.
    assert axes.call_count <= 4


# What is refused, before there is any training


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"sigmas": [1.0, 0.0]}, "'sigmas' .* positive numbers"),
        ({"sigmas": [1.0, np.nan]}, "sigmas contains NaN"),
        ({"sigmas": [1.0, np.inf]}, "sigmas contains infinity"),
        ({"sigmas": ["1", "2"]}, "strings"),
        ({"sigmas": [[1.0, 2.0]]}, "'sigmas' .* one-dimensional"),
        ({"sigmas": []}, "0 sample"),
        ({"sigmas": 0.5}, "'sigmas' parameter of sigma_path must be"),
        ({"n_sigmas": 1}, "'n_sigmas' parameter"),
        ({"eps": 1.0}, "'eps' parameter"),
        ({"max_iter": -1}, "'max_iter' parameter"),
        ({"estimator": SigmaVAE}, "'estimator' parameter"),
        ({"estimator": small_vae(batch_size=0)}, "'batch_size' parameter"),
        ({"estimator": small_vae(noise="bernoulli")}, "no scale.* path of sigma"),
        ({"cv": 1}, "'cv' parameter"),
        ({"cv": "three"}, "'cv' parameter"),
        ({"cv": [([0], [1, 2])]}, "Split 0 of 'cv' has 1 training and 2 test rows"),
        ({"cv": [([0, 1], [])]}, "Split 0 of 'cv' has 2 training and 0 test rows"),
        ({"X": np.ones((20, 3))}, "X is constant.* Pass sigmas"),
        ({"X": 1e200 * X}, "variance of X, .* leaves the range of float64"),
        ({"X": X[:1]}, "1 sample"),
        ({"X": [[1.0, np.nan], [2.0, 3.0]]}, "NaN"),
        ({"X": X[0]}, "Expected 2D array"),
        ({"X_val": X[:, :3]}, "3 features"),
    ],
)
def test_what_is_not_valid_is_refused(given, match):
    with pytest.raises((ValueError, TypeError), match=match):
        sigma_path(**{"X": X, "estimator": small_vae(), **given})


def test_training_that_diverges_tells_where():
    vae = small_vae(optimizer="sgd", learning_rate=1e30, early_stopping=False)
    with pytest.raises(ValueError, match="The path ends at sigma=1: "):
        sigma_path(curved_rows(), SIGMAS, estimator=vae, cv=2)
    with pytest.raises(ValueError, match="out of the range of float32"):
        sigma_path(X, [1.0, 1e-30], estimator=small_vae(), max_iter=0)
