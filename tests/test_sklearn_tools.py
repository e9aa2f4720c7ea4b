"""What scikit-learn does with an estimator: copies, frames, pipelines, searches."""

import copy
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import StandardScaler
from small_vae import (
    NOISE,
    DropoutNetwork,
    EpochRecorder,
    low_rank_rows,
    same_weights,
    small_vae,
    weights,
)

from sklearn_sigmavae import GeneralizedNormalNoise
from sklearn_sigmavae.networks import MLP

X = low_rank_rows()
N_SAMPLES, N_FEATURES = X.shape
FRAME = pd.DataFrame(X, columns=list("abcde"))
CODES = ["sigmavae0", "sigmavae1"]


# Copies


def _joblib_copy(estimator, path):
    joblib.dump(estimator, path / "vae.joblib")
    return joblib.load(path / "vae.joblib")


@pytest.mark.parametrize(
    "copy_of",
    [
        lambda estimator, path: copy.deepcopy(estimator),
        lambda estimator, path: pickle.loads(pickle.dumps(estimator)),
        _joblib_copy,
    ],
    ids=["deepcopy", "pickle", "joblib"],
)
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"sigma": "mle"},
        {"sigma": "auto"},
        {"network": DropoutNetwork(), "noise": "laplace"},
        {"callbacks": [EpochRecorder()], "optimizer": "sgd"},
    ],
    ids=["defaults", "mle", "auto", "dropout", "callbacks"],
)
def test_copies_are_the_same_model_and_independent(copy_of, params, tmp_path):
    vae = copy_of(small_vae(**params), tmp_path).fit(X)
    copied = copy_of(vae, tmp_path)
    assert copied.module_ is copied.net_.module_
    assert np.array_equal(copied.score_samples(X), vae.score_samples(X))
    assert np.array_equal(
        copied.sample(3, add_noise=True, random_state=0),
        vae.sample(3, add_noise=True, random_state=0),
    )
    assert copied.n_iter_ == vae.n_iter_
    assert np.array_equal(copied.sigma_, vae.sigma_)
    kept = weights(vae)
    # An optimizer without the parameters of the copy would leave it as it is.
    copied.partial_fit(X)
    assert not same_weights(weights(copied), kept)
    assert same_weights(weights(vae), kept)
    if "callbacks" not in params:  # which note what they have seen
        assert same_weights(weights(vae.partial_fit(X)), weights(copied))


def test_a_pickle_holds_weights_and_optimizer_but_no_data():
    vae = small_vae(hidden_layer_sizes=(128, 128)).fit(X)
    blob = pickle.dumps(vae)
    parameters = list(vae.module_.parameters())
    n_bytes = sum(4 * parameter.numel() for parameter in parameters)
    # The weights once, Adam's two moments, and the structure of some tens of objects.
    assert 3 * n_bytes < len(blob) < 3.2 * n_bytes + 60_000
    assert max(parameters, key=torch.numel).detach().numpy().tobytes() in blob
    internal = vae.module_.units.to_internal(X).numpy()
    for row in (*X, *internal):
        for dtype in (np.float32, np.float64):
            assert row.astype(dtype).tobytes() not in blob


# Frames


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_set_output_is_for_codes_alone(library, vae):
    container = pytest.importorskip(library)
    fitted = small_vae().set_output(transform=library)
    frame = fitted.fit_transform(X)
    assert isinstance(frame, container.DataFrame)
    assert list(frame.columns) == list(vae.get_feature_names_out()) == CODES
    assert np.array_equal(frame.to_numpy(), vae.transform(X))
    assert isinstance(fitted.posterior(X)[0], np.ndarray)
    assert isinstance(fitted.inverse_transform(frame.to_numpy()), np.ndarray)


def test_feature_names_are_compared(vae):
    assert not hasattr(vae, "feature_names_in_")
    fitted = small_vae().fit(FRAME)
    with pytest.raises(ValueError, match="feature names"):
        fitted.transform(FRAME[list("edcba")])
    with pytest.warns(UserWarning, match="valid feature names"):
        fitted.transform(X)


def test_html_repr_links_to_the_documentation(vae):
    page = "en/stable/generated/sklearn_sigmavae.SigmaVAE.html"
    for estimator in (small_vae(), vae):
        assert f"https://sklearn-sigmavae.readthedocs.io/{page}" in (
            estimator._repr_html_()
        )


# Pipelines and searches


def test_pipeline_scores_and_inverts():
    pipeline = make_pipeline(StandardScaler(), small_vae()).fit(X)
    scaled = StandardScaler().fit_transform(X)
    assert pipeline.score(X) == small_vae().fit(scaled).score(scaled)
    codes = pipeline.transform(X)
    assert codes.shape == (N_SAMPLES, 2)
    assert pipeline.inverse_transform(codes).shape == X.shape
    y = codes[:, 0] > 0
    assert make_pipeline(small_vae(), LogisticRegression()).fit(X, y).score(X, y) > 0.9


def test_column_transformer_and_feature_union():
    columns = ColumnTransformer(
        [("vae", small_vae(), ["a", "b", "c"]), ("rest", "passthrough", ["d", "e"])]
    ).set_output(transform="pandas")
    out = columns.fit_transform(FRAME)
    assert list(out.columns) == [*(f"vae__{c}" for c in CODES), "rest__d", "rest__e"]
    expected = small_vae().fit_transform(FRAME[["a", "b", "c"]])
    assert np.array_equal(out.to_numpy()[:, :2], expected)
    union = FeatureUnion([("a", small_vae()), ("b", small_vae(n_components=1))])
    assert union.fit_transform(X).shape == (N_SAMPLES, 3)


def test_parameters_of_parts_are_searchable():
    parts = {"noise": GeneralizedNormalNoise(), "network": MLP((8,))}
    # Otherwise all networks might stay at the same start.
    vae = small_vae(**parts, early_stopping=False)
    grid = {"noise__exponent": [1.0, 2.0], "network__hidden_layer_sizes": [(4,), (6,)]}
    search = GridSearchCV(vae, grid, cv=2, n_jobs=1).fit(X)
    assert len(set(search.cv_results_["mean_test_score"])) == 4
    best = search.best_estimator_
    assert best.noise_.exponent == search.best_params_["noise__exponent"]
    width = best.module_.encoder.network[0].out_features
    assert (width,) == search.best_params_["network__hidden_layer_sizes"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_components", np.int64(2)),
        ("max_iter", np.int64(3)),
        ("batch_size", np.int32(16)),
        ("hidden_layer_sizes", (np.int64(8),)),
        ("hidden_layer_sizes", np.array([8])),
        ("sigma", np.array(NOISE)),
        ("beta", np.float64(1.0)),
        ("linear_path", np.bool_(True)),
        ("random_state", np.int64(0)),
    ],
    ids=str,
)
def test_numpy_numbers_are_numbers(vae, name, value):
    # Searches draw their candidates from arrays.
    fitted = small_vae(**{name: value}).fit(X)
    assert same_weights(weights(fitted), weights(vae))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_the_modes_of_torch_around_a_fit_make_no_difference(method, context):
    expected = getattr(small_vae(), method)(X)
    with context():
        fitted = getattr(small_vae(), method)(X)
        codes = fitted.transform(X)
    assert same_weights(weights(fitted), weights(expected))
    assert np.array_equal(codes, expected.transform(X))
    fitted.partial_fit(X)
