"""Scores of features, and the outlier detector that thresholds those of rows."""

import pickle

import numpy as np
import pandas as pd
import pytest
from linear_gaussian import spectrum
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.feature_selection import VarianceThreshold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from small_vae import NOISE, Raiser, curved_rows, low_rank_rows, small_vae

from sklearn_sigmavae import BernoulliNoise, SigmaVAE, SigmaVAEOutlierDetector

pytestmark = [
    # Data of scikit-learn's checks is often constant or small beside sigma.
    pytest.mark.filterwarnings("ignore:No component is in use at the start"),
    pytest.mark.filterwarnings("ignore:X is constant"),
    pytest.mark.filterwarnings("ignore:.*SCIPY_ARRAY_API is not set"),
]

X = low_rank_rows()
GAPS = np.random.default_rng(0).random(X.shape) < 0.2
LINEAR = {"hidden_layer_sizes": (), "max_iter": 0, "early_stopping": False}


def small_detector(**params):
    return SigmaVAEOutlierDetector(small_vae(), **params)


def divergence(vae, X):
    kl = vae.kl_divergence(X)
    return kl.sum(axis=1) if kl.ndim == 2 else kl


# Scores of features


@pytest.mark.parametrize("has_gaps", [False, True])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"noise": "laplace"},
        {"noise": BernoulliNoise()},
        {"sigma": [0.1, 0.2, 0.3, 0.4, 0.5]},
        {"sigma": "mle"},
        {"prior": "mixture"},
        {"init": "random"},
        {"linear_path": False, "init": "random", "beta": 2.0},
        {"n_components": 7},
    ],
    ids=str,
)
def test_they_add_up_to_the_scores_of_rows(params, has_gaps):
    rows = (
        np.clip(X / 9, 0, 1)
        if "noise" in params and params["noise"] != "laplace"
        else X
    )
    rows = np.where(GAPS, np.nan, rows) if has_gaps else rows
    vae = small_vae(**params).fit(rows)
    scores = vae.score_features(rows, refine=False)
    assert scores.shape == rows.shape
    assert scores.dtype == np.float64
    expected = vae.score_samples(rows, refine=False) + divergence(vae, rows)
    assert_allclose(scores.sum(axis=1), expected, rtol=0, atol=1e-10)
    assert (scores[np.isnan(rows)] == 0).all()


def test_refined_scores_differ_from_those_of_rows_by_a_divergence():
    rows = curved_rows()
    vae = small_vae(n_components=2, sigma=0.1, max_iter=20).fit(rows)
    far = rows + np.random.RandomState(0).standard_normal(rows.shape)
    # The refined mean is not the encoder's.
    assert (vae.score_samples(far) > vae.score_samples(far, refine=False) + 1).any()
    kl = vae.score_features(far).sum(axis=1) - vae.score_samples(far)
    assert (kl > 0).all()
    gain = vae.score_features(far).sum(axis=1) - vae.score_features(
        far, refine=False
    ).sum(axis=1)
    assert gain.max() > 1


def test_those_of_the_linear_model_are_exact():
    sigma = 0.3
    vae = small_vae(sigma=sigma, **LINEAR).fit(X)
    mean = X.mean(axis=0)
    axes = np.linalg.eigh(np.cov(X.T, bias=True))[1][:, ::-1][:, :2]
    variances = spectrum(X)[:2]
    # The posterior mean restores (1 - tau / lambda) of a row along each axis, with a
    # variance of tau (1 - tau / lambda).
    kept = 1 - sigma**2 / variances
    residual = X - mean - (X - mean) @ axes * kept @ axes.T
    spread = sigma**2 * np.square(axes) @ kept
    expected = -0.5 * (
        np.log(2 * np.pi * sigma**2) + (np.square(residual) + spread) / sigma**2
    )
    assert_allclose(vae.score_features(X), expected, atol=1e-4)


def test_images_have_scores_of_pixels(digits):
    images = 16 * digits[:50].reshape(-1, 8, 8)
    vae = small_vae(sigma=2.0, network="conv", max_iter=1).fit(images)
    scores = vae.score_features(images, refine=False)
    assert scores.shape == images.shape
    expected = vae.score_samples(images, refine=False) + divergence(vae, images)
    assert_allclose(scores.sum(axis=(1, 2)), expected)


def test_bytes_and_float32_are_scored_as_float64(digits):
    rows = 16 * digits[:50]
    vae = small_vae(sigma=2.0).fit(rows)
    expected = vae.score_features(rows)
    for dtype in (np.uint8, np.float32):
        assert_allclose(vae.score_features(rows.astype(dtype)), expected, atol=1e-3)


def test_the_entry_that_is_wrong_has_the_lowest():
    rows = low_rank_rows(100, 8)
    vae = small_vae().fit(rows)
    columns = np.random.RandomState(1).randint(8, size=100)
    rows[np.arange(100), columns] += 8 * NOISE
    assert (vae.score_features(rows).argmin(axis=1) == columns).mean() > 0.9


def test_features_are_not_scored_before_fit():
    with pytest.raises(NotFittedError, match="not fitted yet"):
        small_vae().score_features(X)


# The detector


@parametrize_with_checks(
    [
        SigmaVAEOutlierDetector(make_pipeline(StandardScaler(), small_vae(max_iter=1))),
        SigmaVAEOutlierDetector(small_vae(max_iter=1), contamination=0.1),
    ]
)
def test_check_estimator(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([SigmaVAEOutlierDetector()])
def test_check_estimator_with_all_epochs(estimator, check):
    check(estimator)


@pytest.mark.parametrize("contamination", [0.01, 0.1, 0.5])
def test_contamination_is_the_share_of_outliers(contamination):
    rows = low_rank_rows(400)
    detector = small_detector(contamination=contamination).fit(rows)
    outliers = detector.predict(rows) == -1
    assert outliers.mean() == pytest.approx(contamination, abs=1 / 400)
    # They are the least likely.
    scores = detector.score_samples(rows)
    assert scores[outliers].max() < scores[~outliers].min()
    assert_array_equal(detector.decision_function(rows), scores - detector.offset_)


def test_auto_is_the_fence_of_tukey():
    rows = np.concatenate([low_rank_rows(200), low_rank_rows(10) + 20])
    detector = small_detector().fit(rows)
    scores = detector.score_samples(rows)
    lower, upper = np.percentile(scores, [25, 75])
    assert detector.offset_ == pytest.approx(lower - 1.5 * (upper - lower))
    far = np.random.RandomState(0).standard_normal((20, 5)) * 9
    assert (detector.predict(far) == -1).all()
    assert (detector.predict(low_rank_rows(200, seed=0)) == -1).mean() < 0.05


@pytest.mark.parametrize(
    "estimator",
    [small_vae(), make_pipeline(StandardScaler(), "passthrough", small_vae())],
)
def test_rows_are_scored_by_the_model(estimator):
    detector = SigmaVAEOutlierDetector(estimator, random_state=1).fit(X)
    model = clone(estimator).fit(X)
    assert_array_equal(detector.score_samples(X), model.score_samples(X))
    *steps, vae = model if hasattr(model, "steps") else [model]
    rows = StandardScaler().fit_transform(X) if steps else X
    assert_array_equal(detector.score_features(X), vae.score_features(rows))


def test_columns_may_be_dropped():
    rows = np.insert(X, 2, 7.0, axis=1)
    model = make_pipeline(VarianceThreshold(), small_vae())
    detector = SigmaVAEOutlierDetector(model).fit(rows)
    assert detector.n_features_in_ == 6
    assert detector.score_features(rows).shape == X.shape


def test_nested_pipelines_are_models():
    model = make_pipeline(make_pipeline(StandardScaler(), small_vae()))
    detector = SigmaVAEOutlierDetector(model).fit(X)
    assert detector.score_features(X).shape == X.shape


def test_frames_images_and_gaps_are_taken(digits):
    frame = pd.DataFrame(X, columns=list("abcde"))
    detector = SigmaVAEOutlierDetector(small_vae()).fit(frame)
    assert detector.feature_names_in_.tolist() == list("abcde")
    assert not hasattr(small_detector().fit(X), "feature_names_in_")
    with pytest.raises(ValueError, match="feature names should match"):
        detector.predict(frame[list("edcba")])
    incomplete = np.where(GAPS, np.nan, X)
    assert np.isfinite(small_detector().fit(incomplete).score_samples(incomplete)).all()
    images = 16 * digits[:60].reshape(-1, 8, 8)
    detector = SigmaVAEOutlierDetector(small_vae(sigma=2.0)).fit(images)
    assert detector.score_features(images).shape == images.shape


def test_the_seed_is_that_of_the_model():
    rows = curved_rows()
    model = small_vae(random_state=None, init="random")
    one, two, other = (
        SigmaVAEOutlierDetector(model, random_state=seed).fit(rows).score_samples(rows)
        for seed in (0, 0, 1)
    )
    assert_array_equal(one, two)
    assert (one != other).any()
    assert model.random_state is None


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"estimator": IsolationForest()}, ValueError, "'estimator' parameter"),
        (
            {"estimator": make_pipeline(StandardScaler(), IsolationForest())},
            TypeError,
            "of SigmaVAEOutlierDetector must be a SigmaVAE or a pipeline that ends in",
        ),
        ({"contamination": 0.0}, ValueError, "'contamination' parameter"),
        ({"contamination": 0.6}, ValueError, "'contamination' parameter"),
        ({"contamination": "tukey"}, ValueError, "'contamination' parameter"),
    ],
)
def test_wrong_parameters_are_named(params, error, message):
    with pytest.raises(error, match=message):
        small_detector().set_params(**params).fit(X)


def test_a_failed_fit_changes_nothing():
    detector = small_detector().fit(X)
    before = detector.predict(X), detector.offset_
    failing = small_vae(callbacks=[Raiser(RuntimeError("stop"))])
    detector.set_params(estimator=failing)
    with pytest.raises(RuntimeError, match="stop"):
        detector.fit(X[:30])
    assert_array_equal(detector.predict(X), before[0])
    assert detector.offset_ == before[1]
    with pytest.raises(NotFittedError):
        small_detector().predict(X)
    assert not hasattr(small_detector(), "n_features_in_")


def test_pickles_predict_the_same():
    detector = small_detector().fit(X)
    restored = pickle.loads(pickle.dumps(detector))
    assert_array_equal(restored.predict(X), detector.predict(X))


def test_what_a_new_user_types():
    table, _ = load_breast_cancer(return_X_y=True, as_frame=True)
    table.loc[9, "mean area"] *= 3
    detector = SigmaVAEOutlierDetector(random_state=0)
    detector.set_params(
        estimator=make_pipeline(StandardScaler(), SigmaVAE(sigma="auto", max_iter=10))
    )
    assert detector.fit_predict(table)[9] == -1
    reasons = pd.DataFrame(detector.score_features(table), columns=table.columns)
    assert reasons.loc[9].idxmin() == "mean area"
