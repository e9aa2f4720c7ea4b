"""The imputer: closed forms, the contract of scikit-learn's imputers, bad input."""

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.feature_selection import VarianceThreshold
from sklearn.impute import KNNImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import MinMaxScaler, Normalizer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from small_vae import NOISE, Raiser, low_rank_rows, small_vae
from test_sklearn_checks import MORE_CHECKS

from sklearn_sigmavae import SigmaVAE, SigmaVAEImputer
from sklearn_sigmavae.metrics import imputation_scorer

pytestmark = [
    # Data of scikit-learn's checks is often constant or small beside sigma.
    pytest.mark.filterwarnings("ignore:No component is in use at the start"),
    pytest.mark.filterwarnings("ignore:X is constant"),
    pytest.mark.filterwarnings("ignore:.*SCIPY_ARRAY_API is not set"),
]

X = low_rank_rows()
GAPS = np.random.default_rng(0).random(X.shape) < 0.2
GAPS[:3] = False
GAPS[3] = True
INCOMPLETE = np.where(GAPS, np.nan, X)
NAMES = list("abcde")

# Probabilistic PCA, whose conditional distributions are known.
LINEAR = {"hidden_layer_sizes": (), "max_iter": 0, "early_stopping": False}


def small_imputer(**params):
    """An imputer that is fitted in a few milliseconds."""
    return SigmaVAEImputer(small_vae(n_components=3, max_iter=2), **params)


@pytest.fixture(scope="module")
def imputer():
    """An imputer fitted to rows with gaps, which tests must not refit."""
    return small_imputer().fit(INCOMPLETE)


def ppca_covariance(rows, n_components, sigma):
    """Covariance of rows in probabilistic PCA, fitted to them."""
    n_features = rows.shape[1]
    eigenvalues, axes = np.linalg.eigh(np.cov(rows.T, ddof=0))
    variances = np.full(n_features, sigma**2)
    variances[-n_components:] = eigenvalues[-n_components:].clip(sigma**2)
    return axes * variances @ axes.T


def conditional(row, mean, covariance):
    """Mean and covariance of the missing entries of a row that is Gaussian."""
    missing = np.isnan(row)
    of_known = covariance[np.ix_(~missing, ~missing)]
    to_known = covariance[np.ix_(missing, ~missing)]
    weights = np.linalg.solve(of_known, to_known.T).T
    rest = covariance[np.ix_(missing, missing)] - weights @ to_known.T
    return mean[missing] + weights @ (row - mean)[~missing], rest


# scikit-learn's own checks


@parametrize_with_checks(
    [
        SigmaVAEImputer(make_pipeline(StandardScaler(), small_vae(max_iter=1))),
        SigmaVAEImputer(
            small_vae(max_iter=1),
            missing_values=-1,
            add_indicator=True,
            keep_empty_features=True,
            sample_posterior=True,
        ),
    ]
)
def test_check_estimator(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([SigmaVAEImputer()])
def test_check_estimator_with_all_epochs(estimator, check):
    check(estimator)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
@pytest.mark.filterwarnings("ignore:X has feature names, but")
@pytest.mark.parametrize("check", MORE_CHECKS, ids=lambda check: check.__name__)
def test_more_checks(check):
    check("SigmaVAEImputer", small_imputer())


# What gaps are filled with


@pytest.mark.parametrize(
    "scaler", ["passthrough", StandardScaler(), MinMaxScaler()], ids=str
)
@pytest.mark.parametrize("n_components", [1, 3])
def test_gaps_get_the_conditional_mean_of_the_linear_model(scaler, n_components):
    unit = np.array([1, 10, 0.1, 1, 1])
    vae = small_vae(n_components=n_components, sigma=0.1, **LINEAR)
    imputer = SigmaVAEImputer(make_pipeline(scaler, vae)).fit(X * unit)
    filled = imputer.transform(INCOMPLETE * unit)

    steps = imputer.estimator_[:-1]
    rows, expected = (steps.transform(each * unit) for each in (X, INCOMPLETE))
    model = rows.mean(axis=0), ppca_covariance(rows, n_components, 0.1)
    for row in expected:
        row[np.isnan(row)], _ = conditional(row, *model)
    expected = steps.inverse_transform(expected)
    np.testing.assert_allclose(filled / unit, expected / unit, atol=1e-4)


def test_draws_have_the_conditional_distribution_of_the_linear_model():
    vae = small_vae(n_components=1, **LINEAR)
    imputer = SigmaVAEImputer(vae, sample_posterior=True, random_state=0).fit(X)
    row = np.where([True, False, True, False, True], np.nan, X[5])
    n_draws = 20_000
    draws = imputer.transform(np.tile(row, (n_draws, 1)))[:, np.isnan(row)]
    mean, rest = conditional(row, X.mean(axis=0), ppca_covariance(X, 1, NOISE))
    error = np.sqrt(np.diag(rest) / n_draws)
    assert (abs(draws.mean(axis=0) - mean) < 4 * error).all()
    np.testing.assert_allclose(np.cov(draws.T), rest, atol=0.04 * rest.max())


def test_known_entries_stay_and_missing_ones_get_better_than_the_mean(imputer):
    before = INCOMPLETE.copy()
    filled = imputer.transform(INCOMPLETE)
    np.testing.assert_array_equal(INCOMPLETE, before)
    np.testing.assert_array_equal(filled[~GAPS], X[~GAPS])
    of_means = np.broadcast_to(np.nanmean(INCOMPLETE, axis=0), X.shape)
    errors = [np.square(rows - X)[GAPS].mean() for rows in (filled, of_means)]
    assert errors[0] < 0.6 * errors[1]


def test_rows_do_not_depend_on_each_other(imputer):
    filled = imputer.transform(INCOMPLETE)
    one_by_one = [imputer.transform(row[np.newaxis])[0] for row in INCOMPLETE]
    np.testing.assert_allclose(one_by_one, filled, atol=1e-3)


def test_only_rows_with_gaps_are_computed(imputer, monkeypatch):
    sizes, expect = [], SigmaVAE._expect

    def counted(self, rows):
        sizes.append(len(rows))
        return expect(self, rows)

    monkeypatch.setattr(SigmaVAE, "_expect", counted)
    imputer.transform(INCOMPLETE)
    assert sizes == [GAPS.any(axis=1).sum()]
    np.testing.assert_array_equal(imputer.transform(X), X)
    assert len(sizes) == 1


def test_a_row_without_any_entry_gets_the_mean_of_the_model():
    imputer = SigmaVAEImputer(small_vae(**LINEAR)).fit(X)
    filled = imputer.transform(np.full((2, 5), np.nan))
    np.testing.assert_allclose(filled, [X.mean(axis=0)] * 2, atol=1e-5)


def test_columns_that_were_complete_may_have_gaps_later():
    imputer = small_imputer(add_indicator=True).fit(X)
    filled = imputer.transform(INCOMPLETE)
    assert filled.shape == X.shape
    assert np.isfinite(filled).all()


# Draws


def test_draws_are_those_of_the_seed():
    imputer = small_imputer(sample_posterior=True, random_state=0).fit(INCOMPLETE)
    state = torch.get_rng_state()
    first = imputer.transform(INCOMPLETE)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(imputer.transform(INCOMPLETE), first)
    np.testing.assert_array_equal(first[~GAPS], X[~GAPS])
    imputer.set_params(random_state=1)
    assert (imputer.transform(INCOMPLETE) != first)[GAPS].all()
    imputer.set_params(random_state=np.random.RandomState(0))
    np.testing.assert_array_equal(imputer.transform(INCOMPLETE), first)
    assert (imputer.transform(INCOMPLETE) != first)[GAPS].all()


def test_the_mean_of_draws_is_about_what_is_filled_in(imputer):
    drawing = clone(imputer).set_params(sample_posterior=True).fit(INCOMPLETE)
    draws = [
        drawing.set_params(random_state=i).transform(INCOMPLETE) for i in range(20)
    ]
    off = np.mean(draws, axis=0) - imputer.transform(INCOMPLETE)
    error = np.std(draws, axis=0, ddof=1) / np.sqrt(len(draws))
    assert np.square(off[GAPS] / error[GAPS]).mean() < 2


def test_a_vae_without_a_seed_takes_that_of_the_imputer():
    unseeded, seeded = small_vae(random_state=None), small_vae(random_state=7)
    for vae, expected in ((unseeded, 3), (seeded, 7)):
        for estimator in (vae, make_pipeline(vae), make_pipeline(make_pipeline(vae))):
            imputer = SigmaVAEImputer(estimator, random_state=3).fit(INCOMPLETE)
            fitted = imputer.estimator_
            while not isinstance(fitted, SigmaVAE):
                fitted = fitted[-1]
            assert fitted.random_state == expected
            fills = (
                imputer.transform(INCOMPLETE),
                clone(imputer).fit_transform(INCOMPLETE),
            )
            np.testing.assert_array_equal(*fills)
    assert unseeded.random_state is None


# Columns, containers and types, as of scikit-learn's imputers


@pytest.mark.parametrize("keep_empty_features", [False, True])
@pytest.mark.parametrize("add_indicator", [False, True])
@pytest.mark.parametrize("container", [np.array, pd.DataFrame, pl.DataFrame])
def test_columns_are_those_of_other_imputers(
    keep_empty_features, add_indicator, container
):
    rows = INCOMPLETE.copy()
    rows[:, 1] = np.nan
    rows[:, 4] = X[:, 4]
    new = X.copy()
    new[:5, :4] = np.nan
    if container is not np.array:
        rows, new = (container(dict(zip(NAMES, x.T, strict=True))) for x in (rows, new))
    params = {"keep_empty_features": keep_empty_features}
    params["add_indicator"] = add_indicator
    imputer, other = small_imputer(**params), KNNImputer(**params)
    assert imputer.fit_transform(rows).shape == other.fit_transform(rows).shape
    filled, expected = imputer.transform(new), other.transform(new)
    is_known = np.isfinite(np.asarray(new))
    is_known = is_known if keep_empty_features else is_known[:, [0, 2, 3, 4]]
    n_columns = is_known.shape[1]
    for of_filled, of_expected in (
        (filled[:, :n_columns][is_known], expected[:, :n_columns][is_known]),
        (filled[:, n_columns:], expected[:, n_columns:]),
    ):
        np.testing.assert_array_equal(of_filled, of_expected)
    assert np.isfinite(filled).all()
    if keep_empty_features:
        np.testing.assert_array_equal(filled[:, 1], 0)
    kept = [0, 1, 2, 3, 4] if keep_empty_features else [0, 2, 3, 4]
    names = NAMES if container is not np.array else [f"x{i}" for i in range(5)]
    expected = [names[i] for i in kept]
    if add_indicator:
        expected += [f"missingindicator_{names[i]}" for i in range(4)]
    assert imputer.get_feature_names_out().tolist() == expected


def test_frames_come_back_with_their_index_and_names():
    frame = pd.DataFrame(INCOMPLETE, columns=NAMES, index=np.arange(len(X)) + 100)
    imputer = small_imputer().set_output(transform="pandas")
    filled = imputer.fit_transform(frame)
    assert list(filled.columns) == NAMES
    assert filled.index.equals(frame.index)
    np.testing.assert_array_equal(filled, small_imputer().fit_transform(INCOMPLETE))


def test_the_configured_container_is_no_matter_of_the_steps():
    # Frames inside would have names that the model was not fitted to, and warn.
    imputer = SigmaVAEImputer(make_pipeline(StandardScaler(), small_vae()))
    expected = imputer.fit(INCOMPLETE).transform(INCOMPLETE)
    for container, frame in (("pandas", pd.DataFrame), ("polars", pl.DataFrame)):
        with config_context(transform_output=container):
            filled = imputer.transform(INCOMPLETE)
        assert isinstance(filled, frame)
        np.testing.assert_array_equal(filled, expected)


INTEGERS = np.round(10 * X).astype(np.int64)


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.float32])
def test_numbers_may_stand_for_gaps(dtype):
    rows = np.where(GAPS, -99, INTEGERS).astype(dtype)
    vae = small_vae(sigma=3.0)
    imputer = SigmaVAEImputer(vae, missing_values=-99, add_indicator=True)
    filled = imputer.fit_transform(rows)
    expected_dtype = np.float32 if dtype == np.float32 else np.float64
    assert filled.dtype == expected_dtype
    plain = np.where(GAPS, np.nan, INTEGERS).astype(expected_dtype)
    expected = SigmaVAEImputer(vae, add_indicator=True).fit_transform(plain)
    np.testing.assert_array_equal(filled, expected)
    with pytest.raises(ValueError, match="contains NaN"):
        imputer.transform(plain)


@pytest.mark.parametrize("dtype", ["Int64", object])
def test_null_is_missing(dtype):
    table = pd.DataFrame(INTEGERS).astype(dtype).mask(GAPS, pd.NA)
    table.columns = NAMES
    imputer = SigmaVAEImputer(small_vae(sigma=3.0))
    expected = imputer.fit_transform(np.where(GAPS, np.nan, INTEGERS))
    np.testing.assert_array_equal(imputer.fit_transform(table), expected)
    lists = table.astype(object).mask(GAPS, None).to_dict(orient="list")
    frame = pl.DataFrame(lists, strict=False)
    np.testing.assert_array_equal(imputer.fit_transform(frame), expected)


def test_float32_stays_and_known_entries_with_it(imputer):
    for params in ({}, {"sample_posterior": True, "random_state": 0}):
        fitted = small_imputer(**params).fit(INCOMPLETE.astype(np.float32))
        filled = fitted.transform(INCOMPLETE.astype(np.float32))
        assert filled.dtype == np.float32
        known = X.astype(np.float32)[~GAPS]
        np.testing.assert_array_equal(filled[~GAPS], known)
    read_only = INCOMPLETE.copy()
    read_only.flags.writeable = False
    expected = imputer.transform(INCOMPLETE)
    for rows in (read_only, INCOMPLETE.tolist(), torch.tensor(INCOMPLETE)):
        np.testing.assert_array_equal(imputer.transform(rows), expected)


def test_copies_fill_in_the_same(imputer):
    expected = imputer.transform(INCOMPLETE)
    copied = pickle.loads(pickle.dumps(imputer))
    np.testing.assert_array_equal(copied.transform(INCOMPLETE), expected)
    refitted = clone(imputer).fit(INCOMPLETE)
    np.testing.assert_array_equal(refitted.transform(INCOMPLETE), expected)


# With the rest of scikit-learn


def test_classifiers_of_a_pipeline_need_no_complete_rows():
    y = X[:, 0] > 1
    model = make_pipeline(small_imputer(add_indicator=True), LogisticRegression())
    assert cross_val_score(model, INCOMPLETE, y, cv=3).mean() > 0.7


def test_searches_choose_the_noise_scale():
    grid = {"estimator__sigma": [0.3, 3.0]}
    search = GridSearchCV(small_imputer(), grid, scoring=imputation_scorer(), cv=3)
    assert search.fit(INCOMPLETE).best_params_ == {"estimator__sigma": 0.3}


def test_the_default_takes_columns_in_any_units():
    unit = 10.0 ** np.arange(-4, 6, 2)
    imputer = SigmaVAEImputer(random_state=0)
    assert "estimator=None" not in repr(SigmaVAEImputer(small_vae()))
    filled = imputer.fit_transform(INCOMPLETE * unit) / unit
    assert imputer.estimator is None
    scaler, vae = imputer.estimator_
    assert isinstance(scaler, StandardScaler)
    assert (vae.sigma, vae.random_state) == ("auto", 0)
    of_means = np.broadcast_to(np.nanmean(INCOMPLETE, axis=0), X.shape)
    errors = [np.square(rows - X)[GAPS].mean() for rows in (filled, of_means)]
    assert errors[0] < 0.6 * errors[1]


# Little data, and bad data


def test_columns_with_one_entry_or_one_value_get_it():
    rows = INCOMPLETE.copy()
    rows[:, 1] = np.nan
    rows[7, 1] = 5.0
    rows[:, 2] = np.where(GAPS[:, 2], np.nan, -3.0)
    imputer = SigmaVAEImputer(make_pipeline(StandardScaler(), small_vae()))
    filled = imputer.fit_transform(rows)
    np.testing.assert_allclose(filled[:, 1], 5.0, atol=0.2)
    np.testing.assert_allclose(filled[:, 2], -3.0, atol=0.2)


def test_one_column_gets_its_mean():
    column = np.where(GAPS[:, 1], np.nan, X[:, 1])[:, np.newaxis]
    filled = SigmaVAEImputer(small_vae(**LINEAR)).fit_transform(column)
    expected = np.nanmean(column)
    np.testing.assert_allclose(filled[GAPS[:, 1]], expected, atol=1e-3)


@pytest.mark.parametrize("keep_empty_features", [False, True])
def test_data_without_any_entry_is_refused(no_training, keep_empty_features):
    imputer = small_imputer(keep_empty_features=keep_empty_features)
    with pytest.raises(ValueError, match="no entry to learn from: all are missing"):
        imputer.fit(np.full((5, 3), np.nan))


def test_infinity_is_refused_in_rows_with_gaps(imputer, no_training):
    for value in (np.inf, -np.inf):
        rows = INCOMPLETE.copy()
        rows[4, 2] = value
        for method in (small_imputer().fit, imputer.transform):
            with pytest.raises(ValueError, match="Input X contains infinity"):
                method(rows)


def test_tables_of_another_width_or_with_other_names_are_refused(imputer):
    with pytest.raises(NotFittedError):
        small_imputer().transform(INCOMPLETE)
    with pytest.raises(ValueError, match="X has 4 features, but SigmaVAEImputer"):
        imputer.transform(INCOMPLETE[:, :4])
    fitted = small_imputer().fit(pd.DataFrame(INCOMPLETE, columns=NAMES))
    with pytest.raises(ValueError, match="feature names should match"):
        fitted.transform(pd.DataFrame(INCOMPLETE, columns=NAMES[::-1]))


@pytest.mark.parametrize(
    ("estimator", "match"),
    [
        (PCA(2), "must be an instance of .*SigmaVAE'.* Got PCA"),
        (SigmaVAE, "must be an instance of .*SigmaVAE'"),
        ("vae", "must be an instance of .*SigmaVAE'"),
        (make_pipeline(StandardScaler(), PCA(2)), "last step is PCA"),
        (make_pipeline(StandardScaler(), "passthrough"), "last step is str"),
        (make_pipeline(PCA(2), small_vae()), "'pca' takes no NaN"),
        (make_pipeline(Normalizer(), small_vae()), "'normalizer' has no inverse"),
        (make_pipeline(VarianceThreshold(), small_vae()), "'variancethreshold' drops"),
        (make_pipeline(FeatureUnion([]), small_vae()), "'featureunion' has no inve"),
        (
            make_pipeline(make_pipeline(StandardScaler(), PCA(2), small_vae())),
            "'pca' takes no NaN",
        ),
    ],
    ids=str,
)
def test_other_estimators_are_refused_before_training(no_training, estimator, match):
    with pytest.raises(TypeError, match=match):
        SigmaVAEImputer(estimator).fit(X)


@pytest.mark.parametrize(
    "params",
    [
        {"missing_values": None},
        {"missing_values": "?"},
        {"missing_values": pd.NA},
        {"sample_posterior": "yes"},
        {"random_state": "seed"},
    ],
    ids=str,
)
def test_bad_parameters_are_refused(no_training, params):
    (name,) = params
    with pytest.raises(ValueError, match=f"'{name}' parameter of SigmaVAEImputer"):
        small_imputer(**params).fit(X)


def test_bad_parameters_of_the_model_are_refused(no_training):
    with pytest.raises(ValueError, match="'sigma' parameter of SigmaVAE must be"):
        SigmaVAEImputer(small_vae(sigma=-1)).fit(INCOMPLETE)


def test_a_fit_that_fails_changes_nothing():
    imputer = small_imputer().fit(INCOMPLETE)
    expected = imputer.transform(INCOMPLETE)
    before = vars(imputer).copy()
    imputer.estimator.set_params(callbacks=[Raiser(RuntimeError("no"))])
    with pytest.raises(RuntimeError, match="no"):
        imputer.fit(X[:, :3])
    assert vars(imputer) == before
    np.testing.assert_array_equal(imputer.transform(INCOMPLETE), expected)
