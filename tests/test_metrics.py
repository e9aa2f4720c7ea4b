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
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from small_vae import NOISE, low_rank_rows, small_vae

from sklearn_sigmavae import (
    BatchedGridSearchCV,
    GeneralizedNormalNoise,
    SigmaVAEImputer,
)
from sklearn_sigmavae.metrics import (
    denoising_scorer,
    elbo_scorer,
    importance_weighted_scorer,
    imputation_scorer,
    reconstruction_scorer,
)

X = low_rank_rows()
SCORERS = {
    "elbo": elbo_scorer,
    "reconstruction": reconstruction_scorer,
    "denoising": denoising_scorer(0.5),
    "importance": importance_weighted_scorer(10),
    "imputation": imputation_scorer(),
}
each_scorer = pytest.mark.parametrize("scorer", SCORERS.values(), ids=SCORERS)


def _noise(like, scale=1.0, exponent=2.0, seed=0):
    """Noise as the scorer draws it."""
    model, rng = GeneralizedNormalNoise(exponent), np.random.RandomState(seed)
    return model.sample(np.zeros(like.shape), scale, rng)


def _error(estimator, noisy, clean):
    """Score of noisy rows, to a relative error of 1e-5."""
    restored = estimator.inverse_transform(estimator.transform(noisy))
    error = (np.asarray(restored) - np.asarray(clean, dtype=float)) ** 2
    return pytest.approx(-np.mean(error), rel=1e-5, abs=1e-20)


@pytest.fixture(scope="module")
def pipeline():
    """A scaler and an estimator, fitted; tests must not refit them."""
    return make_pipeline(StandardScaler(), small_vae()).fit(X)


def test_elbo_is_the_score_and_reconstruction_minus_the_error(vae, pipeline):
    for estimator in (vae, pipeline, PCA(2).fit(X)):
        assert elbo_scorer(estimator, X) == pytest.approx(estimator.score(X))
        assert reconstruction_scorer(estimator, X) == _error(estimator, X, X)


def test_importance_weighted_is_the_mean_of_score_samples(vae):
    for n in (1, 7):
        expected = vae.score_samples(X, n_importance_samples=n).mean()
        assert importance_weighted_scorer(n)(vae, X) == expected
    assert importance_weighted_scorer(1)(vae, X) == pytest.approx(elbo_scorer(vae, X))


@pytest.mark.parametrize("exponent", [2, 1, 1.5])
def test_denoising_adds_noise_of_any_model_with_a_scale(exponent, vae, pipeline):
    names = {2: "gaussian", 1: "laplace"}
    noise = names.get(exponent, GeneralizedNormalNoise(exponent))
    scorer = denoising_scorer(0.5, noise=noise, random_state=3)
    for estimator in (vae, pipeline):
        expected = _error(estimator, X + _noise(X, 0.5, exponent, seed=3), X)
        assert scorer(estimator, X) == expected
    if exponent == 1.5:
        # A search over the exponent of the same object must not change the scorer.
        noise.exponent = 4
        assert scorer(estimator, X) == expected


def test_denoising_gives_each_feature_its_scale(vae):
    scale = np.array([0.1, 0.2, 0.3, 0.4, 2.0])
    scorer = denoising_scorer(scale)
    expected = _error(vae, X + _noise(X, scale), X)
    assert scorer(vae, X) == expected
    assert denoising_scorer(list(scale))(vae, X) == scorer(vae, X)
    scale[:] = 1
    assert scorer(vae, X) == expected


@pytest.mark.parametrize("scale", [0.2, 1.0])
def test_denoising_in_the_linear_model_is_the_closed_form(scale):
    sigma, k = NOISE, 2
    params = {"sigma": sigma, "max_iter": 0, "early_stopping": False}
    vae = small_vae(n_components=k, hidden_layer_sizes=(), **params).fit(X)
    mean, n_features = X.mean(axis=0), X.shape[1]
    eigenvalues, axes = np.linalg.eigh(np.cov(X.T, ddof=0))
    eigenvalues, axes = eigenvalues[-k:], axes[:, -k:]
    shrink = np.diag(1 - sigma**2 / eigenvalues)
    decode_encode = axes @ shrink @ axes.T
    residual = (X - mean + _noise(X, scale)) @ decode_encode - (X - mean)
    score = denoising_scorer(scale)(vae, X)
    assert score == pytest.approx(-np.mean(residual**2), rel=1e-5)
    # And its mean over the noise: bias of the clean rows, and variance.
    bias = ((X - mean) @ (decode_encode - np.eye(n_features))).ravel()
    expected = bias @ bias / X.size + scale**2 * np.sum(shrink**2) / n_features
    scores = [denoising_scorer(scale, random_state=i)(vae, X) for i in range(50)]
    error = np.std(scores) / np.sqrt(len(scores))
    assert error > 0
    assert abs(np.mean(scores) + expected) < 4 * error


class Zeros:
    """Fills gaps with zeros, and keeps the last rows it saw."""

    def transform(self, X):
        self.seen = X
        return np.nan_to_num(X)


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.9])
def test_imputation_hides_a_share_of_the_known_entries(fraction):
    rows = low_rank_rows(2000)
    rows[np.random.default_rng(0).random(rows.shape) < 0.2] = np.nan
    known, imputer = ~np.isnan(rows), Zeros()
    score = imputation_scorer(fraction)(imputer, rows)
    left = ~np.isnan(imputer.seen)
    np.testing.assert_array_equal(imputer.seen[left], rows[left])
    hidden = known & ~left
    assert score == pytest.approx(-np.square(rows[hidden]).mean())
    assert (left.any(axis=1) == known.any(axis=1)).all()
    # Rows that would lose all keep one.
    n_known = known.sum(axis=1)
    expected = (fraction * n_known - fraction**n_known).sum() / n_known.sum()
    assert hidden.sum() / known.sum() == pytest.approx(expected, abs=0.02)
    other = Zeros()
    imputation_scorer(fraction, random_state=1)(other, rows)
    assert (np.isnan(other.seen) != np.isnan(imputer.seen)).any()


def test_imputation_scores_what_is_filled_in():
    # In other units, so that a score in those of the last step would be another.
    whole = 9 * X
    rows = np.where(np.random.default_rng(0).random(X.shape) < 0.1, np.nan, whole)
    zeros, scorer = Zeros(), imputation_scorer(0.3)
    scorer(zeros, rows)
    gaps = zeros.seen
    hidden = np.isnan(gaps) & ~np.isnan(rows)
    vae, scaler = small_vae(sigma=2.0).fit(whole), StandardScaler().fit(whole)
    of_vae = vae.denoise(gaps, noise_scale=None)
    scaled = small_vae().fit(scaler.transform(whole))
    of_scaled = scaled.denoise(scaler.transform(gaps), noise_scale=None)
    of_means = SimpleImputer().fit(whole).transform(gaps)
    for estimator, filled in (
        (vae, of_vae),
        (make_pipeline(vae), of_vae),
        (SigmaVAEImputer(clone(vae)).fit(whole), of_vae),
        (make_pipeline(scaler, scaled), scaler.inverse_transform(of_scaled)),
        (SimpleImputer().fit(whole), of_means),
        (make_pipeline(StandardScaler(), SimpleImputer()).fit(whole), of_means),
        (KNNImputer().fit(whole), KNNImputer().fit(whole).transform(gaps)),
    ):
        expected = -np.square(filled - rows)[hidden].mean()
        assert scorer(estimator, rows) == pytest.approx(expected, rel=1e-4)


def test_imputation_chooses_the_noise_scale_and_the_number_of_components():
    rows = low_rank_rows(200, 8)
    vae = small_vae(hidden_layer_sizes=(), max_iter=0)
    grid = {"sigma": [NOISE, 3.0], "n_components": [1, 2]}
    best = {"sigma": NOISE, "n_components": 2}
    for search in (GridSearchCV, BatchedGridSearchCV):
        found = search(vae, grid, scoring=imputation_scorer(), cv=2).fit(rows)
        assert found.best_params_ == best
        score = imputation_scorer()(found.best_estimator_, rows)
        assert found.score(rows) == score


def test_imputers_that_change_columns_leave_gaps_or_lack_methods_are_refused(vae):
    scorer, rows = imputation_scorer(), X.copy()
    rows[:, 2] = np.nan
    wide = KNNImputer(add_indicator=True, keep_empty_features=True)
    for imputer, message in (
        (KNNImputer().fit(rows), r"shape \(60, 4\) for X of shape \(60, 5\). Imputers"),
        (wide.fit(rows), r"shape \(60, 6\) for X of shape \(60, 5\)"),
        (StandardScaler().fit(X), "left some of the hidden entries missing"),
    ):
        with pytest.raises(ValueError, match=message):
            scorer(imputer, rows)
    for estimator, message in (
        (LogisticRegression(), "LogisticRegression, which lacks transform"),
        (make_pipeline(KNNImputer(), StandardScaler()), "must have inverse_transform"),
        (make_pipeline(KNNImputer(), small_vae()), "must have inverse_transform"),
    ):
        with pytest.raises(TypeError, match=message):
            scorer(estimator.fit(X, X[:, 0] > 1), X)
    for nothing in (X[:, :1], np.full((3, 5), np.nan), X[:1]):
        with pytest.raises(ValueError, match="no entry to hide, since one known entry"):
            imputation_scorer(1e-9)(vae, nothing)
    with pytest.raises(ValueError, match="infinity"):
        scorer(vae, np.where(X > 2, np.inf, X))


@each_scorer
def test_calls_repeat_ignore_y_and_leave_the_data_alone(scorer, vae, pipeline):
    rows = X.copy()
    rows.flags.writeable = False
    for estimator in (vae, pipeline):
        score = scorer(estimator, rows)
        assert type(score) is float
        assert scorer(estimator, rows, np.arange(len(rows))) == score
        assert scorer(estimator, rows.tolist(), y=None) == score


@each_scorer
def test_pipelines_may_be_nested(scorer, vae, pipeline):
    assert scorer(make_pipeline(vae), X) == scorer(vae, X)
    deep = make_pipeline("passthrough", pipeline)
    assert scorer(deep, X) == pytest.approx(scorer(pipeline, X))
    if scorer in (elbo_scorer, SCORERS["importance"]):
        # The density is that of the last step.
        scaler, vae = pipeline
        assert scorer(pipeline, X) == scorer(vae, scaler.transform(X))


def test_selected_columns_come_back():
    pipeline = make_pipeline(SelectKBest(k=4), small_vae()).fit(X, X[:, 0] > 1)
    assert reconstruction_scorer(pipeline, X) == _error(pipeline, X, X)


@each_scorer
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_keep_their_names(scorer, library, vae):
    # A missing name is a warning, which is an error here.
    frames = pytest.importorskip(library)
    frame = frames.DataFrame(dict(zip("abcde", X.T, strict=True)))
    for fitted in (
        small_vae().fit(frame),
        small_vae().set_output(transform="pandas").fit(frame),
    ):
        assert list(fitted.feature_names_in_) == list("abcde")
        assert scorer(fitted, frame) == pytest.approx(scorer(vae, X))


def test_frames_are_searched_with_their_index():
    frame = pd.DataFrame(X, columns=list("abcde"), index=np.arange(len(X)) + 100)
    scores, plain = (
        cross_val_score(small_vae(), rows, scoring=denoising_scorer(0.5), cv=2)
        for rows in (frame, X)
    )
    np.testing.assert_allclose(scores, plain)


class Recorder(FunctionTransformer):
    """Returns its data, and keeps the last it saw."""

    def transform(self, X):
        self.seen = X
        return super().transform(X)


@pytest.mark.parametrize(
    ("dtype", "seen"),
    [("f8", "f8"), ("f4", "f4"), ("u1", "f4"), ("i8", "f8")],
)
@pytest.mark.parametrize("shape", [(5,), (8, 8), (8, 8, 3)], ids=str)
def test_types_and_shapes_of_data(dtype, seen, shape):
    rows = np.random.RandomState(0).uniform(0, 255, (40, *shape)).astype(dtype)
    vae = small_vae(sigma=20.0).fit(rows)
    recorder = Recorder()
    pipeline = make_pipeline(recorder, vae)
    assert reconstruction_scorer(vae, rows) == _error(vae, rows, rows)
    score = denoising_scorer(30)(pipeline, rows)
    assert (recorder.seen.dtype, recorder.seen.shape) == (np.dtype(seen), rows.shape)
    noisy = rows + _noise(rows, 30)
    np.testing.assert_allclose(recorder.seen, noisy, rtol=1e-5, atol=1e-4)
    assert score == _error(vae, noisy.astype(seen), rows)
    weighted = importance_weighted_scorer(2)(vae, rows)
    assert weighted == pytest.approx(vae.score(rows), rel=0.1)


def test_scales_have_the_shape_of_a_sample_or_of_its_features():
    images = np.random.RandomState(0).standard_normal((40, 4, 6))
    scale = np.linspace(0.1, 2, 24).reshape(4, 6)
    vae = small_vae(sigma=0.5).fit(images)
    score = denoising_scorer(scale)(vae, images)
    assert score == _error(vae, images + _noise(images, scale), images)
    assert denoising_scorer(scale.ravel())(vae, images) == score
    with pytest.raises(ValueError, match=r"\(4, 6\) for this X. Got shape \(6, 4\)"):
        denoising_scorer(scale.T)(vae, images)


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


def test_processes_score_several_scores_as_one_does_one():
    pipeline = make_pipeline(StandardScaler(), small_vae())
    scores = cross_validate(pipeline, X, scoring=SCORERS, cv=2, n_jobs=2)
    for name, scorer in SCORERS.items():
        alone = cross_val_score(pipeline, X, scoring=scorer, cv=2)
        np.testing.assert_allclose(scores[f"test_{name}"], alone)


def test_denoising_chooses_a_sigma_that_grows_with_the_noise():
    # Of eight components, six are noise, which a large enough sigma removes.
    rows = low_rank_rows(200, 8, noise=0.05)
    vae = small_vae(n_components=8, hidden_layer_sizes=(), max_iter=0)
    search = GridSearchCV(vae, {"sigma": [0.01, 0.05, 0.5, 1.0]}, cv=2)
    for scorer, chosen in (
        (reconstruction_scorer, [0.01]),
        (denoising_scorer(0.06), [0.05]),
        (denoising_scorer(1.5), [0.5, 1.0]),
    ):
        search.set_params(scoring=scorer).fit(rows)
        assert search.best_params_["sigma"] in chosen


@each_scorer
def test_copies_score_the_same(scorer, vae):
    for copied in (copy.deepcopy(scorer), pickle.loads(pickle.dumps(scorer))):
        assert copied(vae, X) == scorer(vae, X)


def test_searches_that_hold_them_can_be_cloned_and_shown():
    search = GridSearchCV(small_vae(), {}, scoring=denoising_scorer(np.full(5, 0.5)))
    assert "scoring=denoising_scorer([0.5, 0.5" in repr(clone(search))
    assert "denoising_scorer" in search._repr_html_()


def test_repr_is_the_call():
    assert repr(denoising_scorer(2, noise="laplace", random_state=np.int64(3))) == (
        "denoising_scorer(2.0, noise='laplace', random_state=3)"
    )
    scorer = denoising_scorer([0.5, 1], noise=GeneralizedNormalNoise(1.5))
    for text in ("([0.5, 1.0], ", "noise=GeneralizedNormalNoise(exponent=1.5), "):
        assert text in repr(scorer)
    many = repr(denoising_scorer(np.ones((28, 28))))
    assert len(many) < 160
    assert "\n" not in many
    text = "imputation_scorer(0.3, random_state=2)"
    assert repr(imputation_scorer(0.3, random_state=2)) == text
    assert repr(importance_weighted_scorer()) == "importance_weighted_scorer(100)"


@pytest.mark.parametrize(
    "noise_scale",
    [0, -1.0, np.inf, np.nan, None, "mle", [], [1, 0], [1, np.nan], [[1], [2, 3]]],
    ids=str,
)
def test_bad_noise_scales_are_refused(noise_scale):
    with pytest.raises(ValueError, match=r"'noise_scale'.* must be.* positive"):
        denoising_scorer(noise_scale)


def test_bad_parameters_are_refused():
    for noise, message in (
        ("bernoulli", "'bernoulli', has no scale; use"),
        (GeneralizedNormalNoise(0.5), "exponent"),
        ("gauss", "'noise' parameter of denoising_scorer"),
    ):
        with pytest.raises(ValueError, match=message):
            denoising_scorer(1.0, noise=noise)
    for random_state in (None, -1, 0.5, np.random.RandomState(0)):
        with pytest.raises(ValueError, match="'random_state' parameter of denoising"):
            denoising_scorer(1.0, random_state=random_state)
        with pytest.raises(ValueError, match="'random_state' parameter of imputation"):
            imputation_scorer(random_state=random_state)
    for fraction in (0, 1, 1.5, None):
        with pytest.raises(ValueError, match="'missing_fraction' parameter of"):
            imputation_scorer(fraction)
    for n in (0, 2.5, "10", None):
        with pytest.raises(ValueError, match="'n_importance_samples' parameter of imp"):
            importance_weighted_scorer(n)


def test_other_estimators_are_refused(vae):
    for estimator in (PCA(2).fit(X), make_pipeline(StandardScaler(), PCA(2)).fit(X)):
        with pytest.raises(TypeError, match="n_importance_samples"):
            importance_weighted_scorer()(estimator, X)
    for estimator in (LogisticRegression(), make_pipeline(vae, LogisticRegression())):
        for scorer in (elbo_scorer, importance_weighted_scorer()):
            with pytest.raises(TypeError, match="lacks score_samples"):
                scorer(estimator, X)
    no_way_back = make_pipeline(FeatureUnion([("a", StandardScaler())]), vae)
    for scorer in (reconstruction_scorer, denoising_scorer(1.0)):
        for estimator in (KMeans(2), no_way_back):
            with pytest.raises(TypeError, match=r", which lacks inverse_transform"):
                scorer(estimator, X)
        with pytest.raises(TypeError, match="lacks transform and inverse_transform"):
            scorer(LogisticRegression(), X)


def test_a_step_that_does_not_restore_the_shape_is_refused():
    # Its inverse is the identity.
    first_image = FunctionTransformer(lambda X: X.reshape(-1, 2, 2))
    rows = low_rank_rows(n_features=4)
    pipeline = make_pipeline(first_image, small_vae()).fit(rows)
    assert np.isfinite(elbo_scorer(pipeline, rows))
    with pytest.raises(ValueError, match=r"\(60, 2, 2\) for X of shape \(60, 4\)"):
        reconstruction_scorer(pipeline, rows)


@each_scorer
def test_unfitted_estimators_are_refused(scorer):
    with pytest.raises(NotFittedError):
        scorer(small_vae(), X)


@pytest.mark.parametrize("scorer", [reconstruction_scorer, denoising_scorer(1.0)])
def test_bad_data_is_refused(scorer, vae):
    with pytest.raises(ValueError, match="Input X contains NaN"):
        scorer(vae, np.where(X > 2, np.nan, X))
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
