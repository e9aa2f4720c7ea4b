"""Scales with labels: a Series, or the columns of a DataFrame, match by name."""

import copy
import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from small_vae import low_rank_rows, same_weights, small_vae, weights

from sklearn_sigmavae import BatchedGridSearchCV, SigmaVAE
from sklearn_sigmavae._validation import in_feature_order
from sklearn_sigmavae.metrics import denoising_scorer

NAMES = ["a", "b", "c", "d", "e"]
X = pd.DataFrame(low_rank_rows() * [1, 2, 4, 8, 16], columns=NAMES)
SCALES = pd.Series([0.3, 0.6, 1.2, 2.4, 4.8], index=NAMES)
SHUFFLED = SCALES[["d", "a", "e", "c", "b"]]

LABELLED = {
    "Series": SHUFFLED,
    "nullable": SHUFFLED.astype("Float64"),
    "one row": SHUFFLED.to_frame().T,
    "polars": pl.DataFrame({name: [value] for name, value in SHUFFLED.items()}),
}


@pytest.fixture(scope="module")
def expected():
    """A model with the scales in the order of the columns; not to be refitted."""
    return small_vae(sigma=SCALES.to_numpy()).fit(X)


@pytest.mark.parametrize("kind", LABELLED)
def test_sigma_goes_to_the_columns_by_name(expected, kind):
    vae = small_vae(sigma=LABELLED[kind])
    for model in (vae, clone(vae), copy.deepcopy(vae)):
        model.fit(X)
        assert isinstance(model.sigma_, np.ndarray)
        assert np.array_equal(model.sigma_, SCALES)
        assert model.score(X) == expected.score(X)
        assert same_weights(weights(model), weights(expected))
    # The parameter is what it was.
    assert vae.sigma is LABELLED[kind]


def test_names_of_other_data(expected):
    vae = small_vae(sigma=SHUFFLED).fit(pl.DataFrame(X.to_dict("list")))
    assert np.array_equal(vae.sigma_, expected.sigma_)
    # Without names in the data the order of the scales is that of the columns.
    vae = small_vae(sigma=SHUFFLED).fit(X.to_numpy())
    assert np.array_equal(vae.sigma_, SHUFFLED)


@pytest.mark.parametrize("numbers", [[3, 0, 4, 2, 1], [1, 2, 3, 4, 5]], ids=str)
def test_numbers_are_no_labels_to_match_by(numbers):
    """Whether they are numbers of columns, or names of such a frame, nobody knows."""
    rows = X.set_axis(numbers, axis=1)
    vae = small_vae(sigma=SHUFFLED.set_axis(numbers))
    for data in (rows, rows.to_numpy(), X):
        with pytest.raises(ValueError, match=r"labels.*an array in"):
            vae.fit(data)
    in_order = small_vae(sigma=SCALES.set_axis(range(5))).fit(X)
    assert np.array_equal(in_order.sigma_, SCALES)


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_names_count_where_training_goes_on(method):
    vaes = [small_vae(sigma=s, warm_start=True) for s in (SCALES.to_numpy(), SHUFFLED)]
    for vae in vaes:
        getattr(vae, method)(X)
        vae.set_params(sigma=vae.sigma * 0.5)
        getattr(vae, method)(X)
    assert np.array_equal(vaes[1].sigma_, SCALES * 0.5)
    assert same_weights(*map(weights, vaes))


@pytest.mark.parametrize("search", [BatchedGridSearchCV, GridSearchCV])
def test_candidates_may_have_names(search):
    scores = [
        search(small_vae(), {"sigma": [scales, scales * 2]}, cv=2)
        .fit(X)
        .cv_results_["mean_test_score"]
        for scales in (SCALES.to_numpy(), SHUFFLED)
    ]
    assert np.array_equal(*scores)


def test_candidates_whose_names_do_not_match_are_refused():
    grid = {"sigma": [SHUFFLED, SHUFFLED.rename({"a": "z"})]}
    with pytest.raises(ValueError, match=r"'sigma'.*lacks \['a'\].*are \['z'\]"):
        BatchedGridSearchCV(small_vae(), grid, cv=2, error_score=0.0).fit(X)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            ["d", "a", "e", "c", "z"],
            r"lacks \['b'\]; unknown or repeated are \['z'\]\.",
        ),
        (["d", "a", "e", "c"], r"lacks \['b'\]; .* are \[\]\."),
        (["d", "a", "e", "c", "b", "f"], r"lacks \[\]; .* are \['f'\]\."),
        (["d", "a", "e", "c", "c"], r"lacks \['b'\]; .* are \['c'\]\."),
        ([10, 11, 12, 13, 14], r"lacks \['a', 'b', .*are \[10, 11, "),
    ],
)
def test_names_that_do_not_match_are_refused(expected, labels, message):
    scales = pd.Series(1.0, index=labels)
    fitted = copy.deepcopy(expected).set_params(sigma=scales, warm_start=True)
    for vae in (small_vae(sigma=scales), fitted):
        with pytest.raises(ValueError, match=rf"'sigma' .*SigmaVAE.*{message}"):
            vae.fit(X)
    assert same_weights(weights(fitted), weights(expected))
    with pytest.raises(ValueError, match=rf"'noise_scale' .*{message}"):
        fitted.denoise(X, noise_scale=scales)


def test_names_that_repeat_do_not_give_an_order():
    # Of which only some versions of scikit-learn make a model.
    names = np.array(["a", "b", "a", "d", "e"], dtype=object)
    same = pd.Series(SCALES.to_numpy(), index=names)
    assert np.array_equal(in_feature_order(same, names, "'sigma'"), SCALES)
    # Not all of many names are listed.
    with pytest.raises(ValueError, match=r"lacks \['x0', .*'x5', \.\.\.\];"):
        in_feature_order(same, [f"x{i}" for i in range(30)], "'sigma'")
    with pytest.raises(ValueError, match=r"repeated are \['a'\]"):
        in_feature_order(same[::-1], names, "'sigma'")


def test_files_hold_the_order_of_the_columns(expected, tmp_path):
    vae = small_vae(sigma=SHUFFLED, warm_start=True).fit(X)
    vae.save(tmp_path / "vae")
    loaded = SigmaVAE.load(tmp_path / "vae", device="cpu")
    assert np.array_equal(loaded.sigma, SCALES)
    assert np.array_equal(loaded.sigma_, SCALES)
    assert loaded.score(X) == expected.score(X)
    # Training goes on as it does for an array.
    array = small_vae(sigma=SCALES.to_numpy(), warm_start=True).fit(X)
    array.save(tmp_path / "array")
    other = SigmaVAE.load(tmp_path / "array", device="cpu")
    assert same_weights(*(weights(model.fit(X)) for model in (loaded, other)))
    pickled = pickle.loads(pickle.dumps(vae))
    assert np.array_equal(pickled.fit(X).sigma_, SCALES)
    checkpointed = small_vae(sigma=SHUFFLED, checkpoint_dir=tmp_path / "fit").fit(X)
    assert same_weights(weights(checkpointed), weights(expected))


@pytest.mark.parametrize("kind", LABELLED)
@pytest.mark.parametrize("method", ["denoise", "posterior"])
def test_noise_scales_go_to_the_columns_by_name(expected, method, kind):
    by_name, by_position = (
        np.asarray(getattr(expected, method)(X, noise_scale=scale))
        for scale in (LABELLED[kind], SCALES.to_numpy())
    )
    assert np.array_equal(by_name, by_position)


def test_noise_scales_of_entries_go_by_name_too(expected):
    factors = np.random.default_rng(0).uniform(0.5, 2, X.shape)
    scales = pd.DataFrame(factors * SCALES.to_numpy(), columns=NAMES)
    by_position = expected.denoise(X, noise_scale=scales.to_numpy())
    shuffled = scales[SHUFFLED.index]
    assert np.array_equal(expected.denoise(X, noise_scale=shuffled), by_position)
    # One scale for each row has the name of no column.
    for label in ("scale", 7):
        rows = scales[["a"]].set_axis([label], axis=1)
        by_position = expected.denoise(X, noise_scale=rows.to_numpy())
        assert np.array_equal(expected.denoise(X, noise_scale=rows), by_position)


@pytest.mark.parametrize("kind", ["Series", "one row", "polars"])
def test_the_denoising_scorer_goes_by_name(expected, kind):
    by_name = denoising_scorer(LABELLED[kind])
    by_position = denoising_scorer(SCALES.to_numpy())
    assert by_name(expected, X) == by_position(expected, X)
    assert "2.4" in repr(by_name)
    with pytest.raises(ValueError, match=r"'noise_scale'.*lacks .'a'.*are .'z'"):
        denoising_scorer(SHUFFLED.rename({"a": "z"}))(expected, X)


@pytest.mark.parametrize(
    ("value", "got"), [(0.0, "0"), (-1.5, "-1.5"), (np.nan, "nan"), (None, "nan")]
)
def test_a_bad_scale_is_named_by_its_feature(expected, value, got):
    bad = SHUFFLED.astype("Float64")
    bad["c"] = value
    message = rf"'{{}}'.* must be positive and finite\. Got {got} for feature 'c'\."
    with pytest.raises(ValueError, match=message.format("sigma")):
        small_vae(sigma=bad).fit(X)
    with pytest.raises(ValueError, match=message.format("noise_scale")):
        expected.denoise(X, noise_scale=bad)


def test_a_bad_scale_without_names_is_named_by_its_index():
    scales = np.array([1.0, -1.0, 0.0])
    with pytest.raises(ValueError, match=r"Got -1 at index \(1,\)\."):
        small_vae(sigma=scales).fit(low_rank_rows(n_features=3))
    images = np.random.default_rng(0).random((9, 4, 4))
    scales = np.ones((4, 4))
    scales[2, 3] = np.inf
    with pytest.raises(ValueError, match=r"Got inf at index \(2, 3\)\."):
        small_vae(sigma=scales).fit(images)
