"""Scorers: what they compute, on what data, and that searches can use them."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    RandomizedSearchCV,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from small_vae import NOISE, low_rank_rows, small_vae

from sklearn_sigmavae import GeneralizedNormalNoise
from sklearn_sigmavae.metrics import (
    denoising_scorer,
    elbo_scorer,
    importance_weighted_scorer,
    reconstruction_scorer,
)

X = low_rank_rows()
N_FEATURES = X.shape[1]
SCORERS = {
    "elbo": elbo_scorer,
    "reconstruction": reconstruction_scorer,
    "denoising": denoising_scorer(0.5),
    "importance": importance_weighted_scorer(10),
}
each_scorer = pytest.mark.parametrize("scorer", SCORERS.values(), ids=SCORERS)


def _gaussian(like, scale=1.0, seed=0):
    """Noise as the scorer draws it."""
    random_state = np.random.RandomState(seed)
    return GeneralizedNormalNoise().sample(np.zeros(like.shape), scale, random_state)


def _error(estimator, noisy, clean):
    restored = estimator.inverse_transform(estimator.transform(noisy))
    return -np.mean((np.asarray(restored) - np.asarray(clean, dtype=float)) ** 2)


@pytest.fixture(scope="module")
def pipeline():
    """A scaler and an estimator, fitted; tests must not refit them."""
    return make_pipeline(StandardScaler(), small_vae()).fit(X)


# What they compute


def test_elbo_is_the_score(vae, pipeline):
    assert elbo_scorer(vae, X) == vae.score(X)
    assert elbo_scorer(pipeline, X) == pipeline.score(X)
    pca = PCA(2).fit(X)
    assert elbo_scorer(pca, X) == pytest.approx(pca.score(X))


def test_reconstruction_is_minus_the_error(vae, pipeline):
    for estimator in (vae, pipeline, PCA(2).fit(X)):
        expected = _error(estimator, X, X)
        assert reconstruction_scorer(estimator, X) == pytest.approx(expected)
    assert reconstruction_scorer(PCA().fit(X), X) == pytest.approx(0, abs=1e-20)


def test_importance_weighted_is_the_mean_of_score_samples(vae):
    for n in (1, 7):
        expected = vae.score_samples(X, n_importance_samples=n).mean()
        assert importance_weighted_scorer(n)(vae, X) == expected
    assert importance_weighted_scorer(1)(vae, X) == pytest.approx(elbo_scorer(vae, X))


def test_more_importance_samples_do_not_lower_the_bound():
    # An encoder far from its optimum leaves a gap to close.
    vae = small_vae(init="random", max_iter=10).fit(X)
    bounds = [importance_weighted_scorer(n)(vae, X) for n in (1, 10, 100, 1000)]
    assert (np.diff(bounds) > -0.01).all()
    assert bounds[-1] > bounds[0] + 0.1


def test_denoising_adds_the_noise_that_it_says(vae, pipeline):
    for estimator in (vae, pipeline):
        expected = _error(estimator, X + _gaussian(X, 0.5), X)
        assert denoising_scorer(0.5)(estimator, X) == pytest.approx(expected)


def test_denoising_draws_from_any_noise_model_with_a_scale(vae):
    laplace, other = GeneralizedNormalNoise(1), GeneralizedNormalNoise(1.5)
    for noise, model in (("laplace", laplace), (other, other)):
        scorer = denoising_scorer(0.5, noise=noise, random_state=3)
        noisy = model.sample(X, 0.5, np.random.RandomState(3))
        expected = pytest.approx(_error(vae, noisy, X))
        assert scorer(vae, X) == expected
    # A search over the exponent of the same object must not change the scorer.
    other.exponent = 4
    assert scorer(vae, X) == expected


def test_denoising_gives_each_feature_its_scale(vae):
    scale = np.array([0.1, 0.2, 0.3, 0.4, 2.0])
    scorer = denoising_scorer(scale)
    expected = _error(vae, X + _gaussian(X, scale), X)
    assert scorer(vae, X) == pytest.approx(expected)
    assert denoising_scorer(list(scale))(vae, X) == scorer(vae, X)
    scale[:] = 1
    assert scorer(vae, X) == pytest.approx(expected)


@pytest.mark.parametrize("scale", [0.2, 1.0])
def test_denoising_in_the_linear_model_is_the_closed_form(scale):
    sigma, k = NOISE, 2
    params = {"sigma": sigma, "max_iter": 0, "early_stopping": False}
    vae = small_vae(n_components=k, hidden_layer_sizes=(), **params).fit(X)
    mean = X.mean(axis=0)
    eigenvalues, axes = np.linalg.eigh(np.cov(X.T, ddof=0))
    eigenvalues, axes = eigenvalues[-k:], axes[:, -k:]
    shrink = np.diag(1 - sigma**2 / eigenvalues)
    decode_encode = axes @ shrink @ axes.T
    residual = (X - mean + _gaussian(X, scale)) @ decode_encode - (X - mean)
    score = denoising_scorer(scale)(vae, X)
    assert score == pytest.approx(-np.mean(residual**2), rel=1e-5)
    # And its mean over the noise: bias of the clean rows, and variance.
    bias = ((X - mean) @ (decode_encode - np.eye(N_FEATURES))).ravel()
    expected = bias @ bias / X.size + scale**2 * np.sum(shrink**2) / N_FEATURES
    scores = [denoising_scorer(scale, random_state=i)(vae, X) for i in range(50)]
    error = np.std(scores) / np.sqrt(len(scores))
    assert abs(np.mean(scores) + expected) < 4 * error


def test_denoising_without_much_noise_is_reconstruction(vae):
    expected = reconstruction_scorer(vae, X)
    assert denoising_scorer(1e-9)(vae, X) == pytest.approx(expected, rel=1e-6)
    assert denoising_scorer(1.0)(vae, X) < expected


@each_scorer
def test_calls_repeat_ignore_y_and_leave_the_data_alone(scorer, vae, pipeline):
    rows = X.copy()
    rows.flags.writeable = False
    for estimator in (vae, pipeline):
        score = scorer(estimator, rows)
        assert type(score) is float
        assert scorer(estimator, rows, np.arange(len(rows))) == score
        assert scorer(estimator, rows, y=None) == score
    assert np.array_equal(rows, X)


def test_the_seed_makes_the_noise(vae):
    scores = {denoising_scorer(0.5, random_state=i)(vae, X) for i in range(3)}
    assert len(scores) == 3


# Pipelines


@each_scorer
def test_a_pipeline_of_one_step_and_one_in_another_are_the_estimator(scorer, vae):
    assert scorer(make_pipeline(vae), X) == scorer(vae, X)
    assert scorer(make_pipeline("passthrough", make_pipeline(vae)), X) == (
        pytest.approx(scorer(vae, X))
    )


def test_a_pipeline_is_its_steps(pipeline):
    scaler, vae = pipeline
    scaled = scaler.transform(X)
    assert elbo_scorer(pipeline, X) == elbo_scorer(vae, scaled)
    weighted = importance_weighted_scorer(10)
    assert weighted(pipeline, X) == weighted(vae, scaled)
    noisy = scaler.transform(X + _gaussian(X, 0.5))
    for scorer, rows in (
        (reconstruction_scorer, scaled),
        (denoising_scorer(0.5), noisy),
    ):
        restored = scaler.inverse_transform(vae.inverse_transform(vae.transform(rows)))
        assert scorer(pipeline, X) == pytest.approx(-np.mean((restored - X) ** 2))


def test_deep_pipelines_score_as_shallow_ones(pipeline):
    deep = make_pipeline("passthrough", pipeline)
    for scorer in SCORERS.values():
        assert scorer(deep, X) == pytest.approx(scorer(pipeline, X))


def test_selected_columns_come_back():
    pipeline = make_pipeline(SelectKBest(k=4), small_vae()).fit(X, X[:, 0] > 1)
    restored = pipeline.inverse_transform(pipeline.transform(X))
    expected = -np.mean((restored - X) ** 2)
    assert reconstruction_scorer(pipeline, X) == pytest.approx(expected)


# Data


@each_scorer
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_keep_their_names(scorer, library, vae):
    # A missing name is a warning, which is an error here.
    frames = pytest.importorskip(library)
    frame = frames.DataFrame(dict(zip("abcde", X.T, strict=True)))
    kept = frame.to_numpy().copy()
    for fitted in (
        small_vae().fit(frame),
        small_vae().set_output(transform="pandas").fit(frame),
    ):
        assert list(fitted.feature_names_in_) == list("abcde")
        assert scorer(fitted, frame) == pytest.approx(scorer(vae, X))
    assert np.array_equal(frame.to_numpy(), kept)


def test_frames_are_searched_with_their_index(vae):
    frame = pd.DataFrame(X, columns=list("abcde"), index=np.arange(len(X)) + 100)
    scores = cross_val_score(small_vae(), frame, scoring=denoising_scorer(0.5), cv=2)
    plain = cross_val_score(small_vae(), X, scoring=denoising_scorer(0.5), cv=2)
    np.testing.assert_allclose(scores, plain)


@each_scorer
def test_lists_are_data(scorer, vae):
    assert scorer(vae, X.tolist()) == scorer(vae, X)


class Recorder(FunctionTransformer):
    """Hands its data on and keeps the last it saw."""

    def transform(self, X):
        self.seen = X
        return super().transform(X)


@pytest.mark.parametrize(
    ("dtype", "seen"),
    [
        (np.float64, np.float64),
        (np.float32, np.float32),
        (np.uint8, np.float32),
        (np.int64, np.float64),
    ],
)
@pytest.mark.parametrize(
    "shape", [(5,), (8, 8), (8, 8, 3)], ids=["rows", "images", "colour"]
)
def test_types_and_shapes_of_data(dtype, seen, shape):
    rows = np.random.RandomState(0).uniform(0, 255, (40, *shape)).astype(dtype)
    vae = small_vae(sigma=20.0).fit(rows)
    recorder = Recorder()
    pipeline = make_pipeline(recorder, vae)
    assert reconstruction_scorer(vae, rows) == pytest.approx(
        _error(vae, rows, rows), rel=1e-5
    )
    score = denoising_scorer(30)(pipeline, rows)
    assert recorder.seen.dtype == seen
    assert recorder.seen.shape == rows.shape
    noise = _gaussian(rows, 30)
    np.testing.assert_allclose(recorder.seen, rows + noise, rtol=1e-5, atol=1e-4)
    assert score == pytest.approx(_error(vae, (rows + noise).astype(seen), rows))
    weighted = importance_weighted_scorer(2)(vae, rows)
    assert weighted == pytest.approx(vae.score(rows), rel=0.1)


def test_scales_have_the_shape_of_a_sample_or_of_its_features():
    images = np.random.RandomState(0).standard_normal((40, 4, 6))
    scale = np.linspace(0.1, 2, 24).reshape(4, 6)
    vae = small_vae(sigma=0.5).fit(images)
    score = denoising_scorer(scale)(vae, images)
    expected = _error(vae, images + _gaussian(images, scale), images)
    assert score == pytest.approx(expected)
    assert denoising_scorer(scale.ravel())(vae, images) == score
    flat = small_vae(sigma=0.5, image_shape=(4, 6)).fit(images.reshape(40, 24))
    assert denoising_scorer(scale.ravel())(flat, images.reshape(40, 24)) == (
        pytest.approx(score)
    )
    with pytest.raises(ValueError, match=r"shape \(24,\) or \(4, 6\) for this X"):
        denoising_scorer(scale.T)(vae, images)


# Searches


@each_scorer
@pytest.mark.parametrize("y", [None, np.arange(len(X)) % 2], ids=["no y", "y"])
def test_searches_use_them(scorer, y):
    search = GridSearchCV(
        small_vae(), {"sigma": [0.1, NOISE]}, scoring=scorer, cv=2, n_jobs=1
    ).fit(X, y)
    scores = search.cv_results_["mean_test_score"]
    assert len(set(scores)) == 2
    assert search.best_score_ == max(scores)
    assert search.score(X) == scorer(search.best_estimator_, X)
    pipeline = make_pipeline(StandardScaler(), small_vae())
    assert np.isfinite(cross_val_score(pipeline, X, y, scoring=scorer, cv=2)).all()


def test_searches_with_several_scores():
    search = RandomizedSearchCV(
        make_pipeline(StandardScaler(), small_vae()),
        {"sigmavae__sigma": [0.1, 0.3, 0.5]},
        n_iter=2,
        scoring=SCORERS,
        refit="elbo",
        cv=2,
        random_state=0,
    ).fit(X)
    for name, scorer in SCORERS.items():
        assert np.isfinite(search.cv_results_[f"mean_test_{name}"]).all()
        alone = cross_val_score(
            clone(search.best_estimator_), X, scoring=scorer, cv=2
        ).mean()
        best = search.cv_results_[f"mean_test_{name}"][search.best_index_]
        assert best == pytest.approx(alone)


def test_processes_score_the_same():
    args = {"scoring": SCORERS, "cv": 2}
    alone = cross_validate(small_vae(), X, **args, n_jobs=1)
    beside = cross_validate(small_vae(), X, **args, n_jobs=2)
    for name in SCORERS:
        np.testing.assert_allclose(beside[f"test_{name}"], alone[f"test_{name}"])


def test_denoising_chooses_a_sigma_that_grows_with_the_noise():
    # Components beyond the two of the data, for which sigma must say they are noise.
    rows = low_rank_rows(200, 8, noise=0.05)
    vae = small_vae(n_components=8, hidden_layer_sizes=(), max_iter=0)
    chosen = []
    for scale in (0.06, 1.5):
        search = GridSearchCV(
            vae,
            {"sigma": [0.01, 0.05, 0.5, 1.0]},
            scoring=denoising_scorer(scale),
            cv=2,
        ).fit(rows)
        chosen.append(search.best_params_["sigma"])
    assert chosen[0] == 0.05
    assert chosen[1] >= 0.5
    search.set_params(scoring=reconstruction_scorer).fit(rows)
    assert search.best_params_["sigma"] == 0.01


# Objects


@each_scorer
@pytest.mark.parametrize(
    "copy_of",
    [copy.deepcopy, lambda scorer: pickle.loads(pickle.dumps(scorer))],
    ids=["deepcopy", "pickle"],
)
def test_copies_score_the_same(scorer, copy_of, vae):
    copied = copy_of(scorer)
    assert copied(vae, X) == scorer(vae, X)
    if not hasattr(scorer, "__name__"):
        assert repr(copied) == repr(scorer)


def test_searches_that_hold_them_can_be_cloned_and_shown():
    search = GridSearchCV(small_vae(), {}, scoring=denoising_scorer(np.full(5, 0.5)))
    assert "scoring=denoising_scorer([0.5, 0.5" in repr(clone(search))
    assert "denoising_scorer" in search._repr_html_()


def test_repr_is_the_call():
    assert repr(denoising_scorer(2, noise="laplace", random_state=np.int64(3))) == (
        "denoising_scorer(2.0, noise='laplace', random_state=3)"
    )
    scorer = denoising_scorer([0.5, 1], noise=GeneralizedNormalNoise(1.5))
    for text in ("([0.5, 1. ], ", "noise=GeneralizedNormalNoise(exponent=1.5), "):
        assert text in repr(scorer)
    many = repr(denoising_scorer(np.ones((28, 28))))
    assert len(many) < 160
    assert "\n" not in many
    assert repr(importance_weighted_scorer()) == "importance_weighted_scorer(100)"


# Errors


@pytest.mark.parametrize(
    "noise_scale",
    [0, -1.0, np.inf, np.nan, None, "mle", [], [1, 0], [1, np.nan], [[1], [2, 3]]],
    ids=str,
)
def test_bad_noise_scales_are_refused(noise_scale):
    with pytest.raises(ValueError, match=r"'noise_scale'.* must be a positive, finite"):
        denoising_scorer(noise_scale)


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match="'bernoulli', has no scale; use"):
        denoising_scorer(1.0, noise="bernoulli")
    with pytest.raises(ValueError, match="exponent"):
        denoising_scorer(1.0, noise=GeneralizedNormalNoise(0.5))
    with pytest.raises(ValueError, match="'noise' parameter of denoising_scorer"):
        denoising_scorer(1.0, noise="gauss")
    for random_state in (None, -1, 0.5, np.random.RandomState(0)):
        with pytest.raises(ValueError, match="'random_state' parameter of denoising"):
            denoising_scorer(1.0, random_state=random_state)
    for n in (0, -3, 2.5, "10", None):
        with pytest.raises(ValueError, match="'n_importance_samples' parameter of imp"):
            importance_weighted_scorer(n)


def test_scales_of_other_features_are_refused(vae):
    with pytest.raises(ValueError, match=r"shape \(5,\) for this X. Got shape \(4,\)"):
        denoising_scorer(np.ones(4))(vae, X)


def test_other_estimators_are_refused(vae):
    weighted = importance_weighted_scorer()
    with pytest.raises(TypeError, match=r"Got PCA instead\."):
        weighted(PCA(2).fit(X), X)
    ends = make_pipeline(StandardScaler(), PCA(2)).fit(X)
    with pytest.raises(TypeError, match="Got Pipeline instead, which ends in PCA"):
        weighted(ends, X)
    with pytest.raises(
        TypeError, match="LogisticRegression, which lacks score_samples"
    ):
        elbo_scorer(LogisticRegression(), X)
    with pytest.raises(TypeError, match=r"elbo_scorer needs .* lacks score_samples"):
        elbo_scorer(make_pipeline(vae, LogisticRegression()), X)
    no_way_back = make_pipeline(FeatureUnion([("a", StandardScaler())]), vae)
    for scorer in (reconstruction_scorer, denoising_scorer(1.0)):
        with pytest.raises(TypeError, match="KMeans, which lacks inverse_transform"):
            scorer(KMeans(2), X)
        with pytest.raises(TypeError, match="Pipeline, which lacks inverse_transform"):
            scorer(no_way_back, X)
        with pytest.raises(TypeError, match="lacks transform and inverse_transform"):
            scorer(LogisticRegression(), X)


def test_a_step_that_does_not_restore_the_shape_is_refused():
    # Its inverse is the identity.
    first_image = FunctionTransformer(lambda X: X.reshape(-1, 2, 2))
    rows = low_rank_rows(n_features=4)
    pipeline = make_pipeline(first_image, small_vae()).fit(rows)
    assert np.isfinite(elbo_scorer(pipeline, rows))
    with pytest.raises(ValueError, match=r"Got \(60, 2, 2\) for X of shape \(60, 4\)"):
        reconstruction_scorer(pipeline, rows)


@each_scorer
def test_unfitted_estimators_are_refused(scorer):
    with pytest.raises(NotFittedError):
        scorer(small_vae(), X)


@pytest.mark.parametrize("scorer", [reconstruction_scorer, denoising_scorer(1.0)])
def test_data_without_numbers_is_refused(scorer, vae):
    rows = X.copy()
    rows[0, 0] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        scorer(vae, rows)
    with pytest.raises(ValueError, match="could not convert string to float"):
        scorer(vae, pd.DataFrame({"a": ["x", "y"]}))
    with pytest.raises(ValueError, match="samples of one shape"):
        scorer(vae, [[1, 2], [3]])


def test_bernoulli_models_refuse_noisy_data():
    ones = (X > 1).astype(float)
    vae = small_vae(noise="bernoulli").fit(ones)
    assert reconstruction_scorer(vae, ones) < 0
    with pytest.raises(ValueError, match=r"needs data in \[0, 1\]"):
        denoising_scorer(0.5)(vae, ones)
