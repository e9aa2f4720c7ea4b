"""What a fit reports of itself: gains, no gains, divergence, scales that do not fit."""

import re
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler
from small_vae import DropoutNetwork, Unchanged, curved_rows, low_rank_rows, small_vae

from sklearn_sigmavae import BatchedGridSearchCV, DivergenceError, sigma_path

# Linear rows, on which networks can only overfit.
X = low_rank_rows(60)
KEPT = "No epoch improved on the start"


def warnings_of(call, *args, **kwargs):
    """Texts of the warnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*args, **kwargs)
    return [str(warning.message) for warning in caught]


def mentions(text, call, *args, **kwargs):
    """Whether a call warns with a text."""
    return any(text in message for message in warnings_of(call, *args, **kwargs))


# Training that gains nothing


@pytest.mark.parametrize("lr_schedule", ["one_cycle", "constant"])
def test_a_start_that_is_kept_is_reported(lr_schedule):
    vae = small_vae(lr_schedule=lr_schedule, learning_rate=0.5, max_iter=20)
    with pytest.warns(ConvergenceWarning, match=KEPT) as caught:
        vae.fit(X)
    (message,) = {str(w.message) for w in caught}
    for way_out in ("PCA", "hidden_layer_sizes", "adamw", "sigma"):
        assert way_out in message
    assert vae.best_epoch_ == 0
    assert not any(vae.history_[:, "improved"])
    start = small_vae(max_iter=0).fit(X)
    assert np.array_equal(vae.score_samples(X), start.score_samples(X))
    assert vae.start_score_ == start.start_score_


def test_a_gain_is_among_the_attributes_and_marked_in_the_history():
    rows, held_out = curved_rows(200), curved_rows(200, seed=1)
    vae = small_vae(sigma=0.1, hidden_layer_sizes=(32,), max_iter=30)
    assert warnings_of(vae.fit, rows, X_val=held_out) == []
    losses = np.array(vae.history_[:, "valid_loss"])
    assert vae.best_epoch_ == 1 + losses.argmin()
    start = small_vae(sigma=0.1, hidden_layer_sizes=(32,), max_iter=0)
    start.fit(rows, X_val=held_out)
    # The held-out bound of an epoch takes fewer points than a score.
    assert vae.start_score_ == pytest.approx(start.score(held_out), abs=0.2)
    best = np.minimum.accumulate([-vae.start_score_, *losses])
    assert vae.history_[:, "improved"] == (losses < best[:-1]).tolist()


def test_a_model_that_has_learnt_nothing_is_reported():
    slow = {"max_iter": 100, "learning_rate": 2e-2, "early_stopping": False}
    collapsed = small_vae(sigma=30.0, init="random", **slow)
    nothing = "No component is in use: all rows have the same code"
    assert mentions(nothing, collapsed.fit, X)
    assert collapsed.n_active_components_ == 0
    assert np.ptp(collapsed.inverse_transform(collapsed.transform(X)), axis=0).max() < 1
    assert not mentions(nothing, small_vae(init="random", max_iter=20).fit, X)
    # A start at PCA knows before.
    texts = warnings_of(small_vae(sigma=30.0).fit, X)
    assert sum("No component is in use" in text for text in texts) == 1


@pytest.mark.parametrize(
    ("params", "best_epoch"),
    [
        ({"max_iter": 0}, 0),
        ({"early_stopping": False}, 5),
        ({"hidden_layer_sizes": ()}, 0),
    ],
    ids=str,
)
def test_where_nothing_could_be_gained_nothing_is_reported(params, best_epoch):
    vae = small_vae(**{"learning_rate": 0.1, "max_iter": 5} | params)
    assert not mentions(KEPT, vae.fit, X)
    assert vae.best_epoch_ == best_epoch
    assert np.isfinite(vae.start_score_)


def test_a_start_that_is_not_linear_is_not_called_pca():
    vae = small_vae(init="random", learning_rate=1e-12, tol=0.0)
    vae.fit(X)
    vae.set_params(warm_start=True, learning_rate=10.0, max_iter=3)
    (text,) = [text for text in warnings_of(vae.fit, X) if KEPT in text]
    assert "PCA" not in text


def test_a_search_gathers_what_its_fits_report():
    vae = small_vae(learning_rate=0.5, max_iter=4)
    search = BatchedGridSearchCV(vae, {"sigma": [0.3, 0.4]}, cv=3, refit=False)
    (text,) = [text for text in warnings_of(search.fit, X) if KEPT in text]
    n_kept = int(re.match(r"In (\d) of 6 fits: ", text)[1])
    assert 1 <= n_kept <= 6
    vae.set_params(network=DropoutNetwork())  # whose fits are not batched
    assert sum(KEPT in text for text in warnings_of(search.fit, X)) <= 1
    search.set_params(estimator=small_vae(), param_grid={"sigma": [0.1, 0.2]})
    rows = np.c_[curved_rows(60), 1e9 * low_rank_rows(60, 1, rank=1)]
    texts = warnings_of(search.fit, rows)
    assert sum("Column 4 reaches" in text for text in texts) == 1
    assert not any("Residuals" in text for text in texts)


def test_a_constant_rate_that_ends_too_early_is_reported():
    rows = curved_rows(200)
    vae = small_vae(
        sigma=0.1, hidden_layer_sizes=(32,), lr_schedule="constant", max_iter=6
    )
    with pytest.warns(ConvergenceWarning, match=r"still rising.*Increase max_iter"):
        vae.fit(rows)
    # Not so where the best epoch is long past, or the rate falls.
    vae.set_params(max_iter=60, n_iter_no_change=100, learning_rate=0.1)
    assert not mentions("still rising", vae.fit, curved_rows(60))
    assert vae.n_iter_ - vae.best_epoch_ > 6
    vae.set_params(lr_schedule="one_cycle", max_iter=6, learning_rate=2e-3)
    assert warnings_of(vae.fit, rows) == []


def test_an_end_below_the_start_is_reported():
    params = {"lr_schedule": "constant", "learning_rate": 0.15, "max_iter": 10}
    vae = small_vae(early_stopping=False, **params)
    with pytest.warns(ConvergenceWarning, match=r"below its start.*early_stopping"):
        vae.fit(low_rank_rows(400, 8, rank=3))


def test_a_finite_end_far_below_the_start_is_a_divergence():
    vae = small_vae(early_stopping=False).fit(X)
    vae.set_params(learning_rate=5.0, max_iter=10, warm_start=True)
    with Unchanged(vae):
        with pytest.raises(DivergenceError, match=r"fell from .* to .*learning_rate"):
            vae.fit(X)
        with pytest.raises(DivergenceError, match="diverged"):
            vae.partial_fit(np.tile(X, (20, 1)))


# Sigma


@pytest.mark.parametrize(
    "sigma",
    [1e-3, [1e-3] * 5, pl.Series([1e-3] * 5), pd.Series([1e-3] * 5)],
    ids=["one", "each", "polars", "pandas"],
)
def test_a_sigma_far_below_the_residuals_is_reported(sigma):
    rows = low_rank_rows(200, rank=4)
    texts = warnings_of(small_vae(sigma=sigma, n_components=1).fit, rows)
    (text,) = [text for text in texts if text.startswith("Residuals")]
    named = float(re.search(r"is about ([\d.e-]+);", text)[1])
    vae = small_vae(sigma=named, n_components=1)
    assert not mentions("Residuals", vae.fit, rows)
    assert vae.reconstruction_error_ / 2 < named < 2 * vae.reconstruction_error_
    # Scales that are learned, or absent, are not judged.
    binary = (rows > rows.mean(axis=0)).astype(float)
    for params in ({"sigma": "mle"}, {"sigma": "auto"}, {"noise": "bernoulli"}):
        assert not mentions("Residuals", small_vae(**params).fit, binary)


@pytest.mark.parametrize("scale", [1e3, 1e7])
@pytest.mark.parametrize("amount", ["normal", "lognormal"])
def test_a_column_that_hides_the_others_is_named(scale, amount):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(curved_rows(200), columns=list("abcd"))
    table["amount"] = scale * getattr(rng, amount)(size=200)
    vae = small_vae(sigma=0.1, n_components=3)
    for rows, name in ((table, "'amount'"), (table.to_numpy(), "4")):
        texts = [t for t in warnings_of(vae.fit, rows) if t.startswith("Column")]
        assert len(texts) == (scale == 1e7)
        for text in texts:
            assert text.startswith(f"Column {name} reaches")
            assert "StandardScaler" in text
            assert "one value per column" in text
    # The two ways out.
    assert not mentions("Column", vae.fit, StandardScaler().fit_transform(table))
    vae.set_params(sigma=0.1 * table.std().to_numpy())
    assert not mentions("Column", vae.fit, table)


# Far rows


def heavy_rows(n=600):
    """Rows with one heavy-tailed factor, as prices and areas have."""
    rng = np.random.default_rng(0)
    factors = np.c_[np.exp(2 * rng.normal(size=n)), rng.normal(size=(n, 5))]
    mixed = factors @ (np.eye(6) + 0.3 * np.random.default_rng(0).normal(size=(6, 6)))
    return (mixed - mixed.mean(axis=0)) / mixed.std(axis=0)


HEAVY = heavy_rows()


@pytest.fixture(scope="module")
def of_heavy_rows():
    """A trained model, and its start."""
    params = {"sigma": 0.1, "n_components": 6, "hidden_layer_sizes": (64, 64)}
    return [small_vae(**params, batch_size=128, max_iter=n).fit(HEAVY) for n in (60, 0)]


def test_the_tails_are_those_of_the_sigma_in_use():
    # Also where it is learned, or another than training started with.
    learned = small_vae(sigma="mle", n_components=3).fit(HEAVY)
    vae = small_vae(sigma=0.2, n_components=3, warm_start=True)
    warm = vae.fit(HEAVY).set_params(sigma=0.5).fit(HEAVY)
    path = sigma_path(HEAVY, [0.4, 0.1], estimator=vae, max_iter=1)
    far = 1e5 * HEAVY[:3]
    for model in (learned, warm, *path.estimators):
        start = small_vae(sigma=model.sigma_, n_components=3, max_iter=0).fit(HEAVY)
        ratio = model.score_samples(far) / start.score_samples(far)
        np.testing.assert_allclose(ratio, 1, atol=0.01)


@pytest.mark.parametrize("factor", [3, 10, 100, 1000])
def test_rows_far_from_the_training_data_score_as_the_linear_start_does(
    of_heavy_rows, factor
):
    vae, start = of_heavy_rows
    assert vae.score(HEAVY) > start.score(HEAVY) + 0.5
    far = factor * HEAVY[np.argsort(np.square(HEAVY).sum(axis=1))[-5:]]
    ratio = vae.score_samples(far) / start.score_samples(far)
    assert (ratio < 1.1).all()
    if factor == 1000:
        np.testing.assert_allclose(ratio, 1, atol=0.01)


def test_far_out_the_model_is_probabilistic_pca(of_heavy_rows):
    # Moved by the same vector, two far rows differ by what PCA makes of it.
    vae, _ = of_heavy_rows
    pca = PCA(6).fit(HEAVY)
    variances = pca.explained_variance_ * (len(HEAVY) - 1) / len(HEAVY)
    weight = pca.components_ * (np.sqrt(variances - 0.1**2) / variances)[:, None]
    far = 100 * np.eye(6) * HEAVY.max()
    step = 10 * np.random.default_rng(0).uniform(0, 1, size=(6, 6)) * np.eye(6)
    found = np.abs(vae.transform(far + step) - vae.transform(far))
    np.testing.assert_allclose(found, np.abs(step @ weight.T), rtol=1e-3, atol=1e-5)


def test_tails_do_not_touch_rows_of_the_training_data(of_heavy_rows):
    vae, _ = of_heavy_rows
    codes, score = vae.transform(HEAVY), vae.score_samples(HEAVY)
    tails, vae.module_.tails = vae.module_.tails, None
    try:
        assert np.array_equal(codes, vae.transform(HEAVY))
        np.testing.assert_allclose(vae.score_samples(HEAVY), score, rtol=1e-9)
    finally:
        vae.module_.tails = tails


def test_chunks_widen_what_counts_as_near():
    order = np.argsort(np.abs(HEAVY).max(axis=1))
    vae = small_vae(sigma=0.1, n_components=6)
    for chunk in np.array_split(HEAVY[order], 4):
        vae.partial_fit(chunk)
    codes = vae.transform(HEAVY)
    vae.module_.tails = None
    assert np.array_equal(codes, vae.transform(HEAVY))


# Chunks


def first_error(vae, chunk):
    """Text of the divergence that training on a chunk again and again ends with."""
    for _ in range(10):
        try:
            vae.partial_fit(chunk)
        except DivergenceError as error:
            return str(error)
    return ""


ROWS = 1e4 * low_rank_rows(400)
TWO = ROWS[:2] - ROWS[:2].mean(axis=0)
FIRST_CHUNKS = {
    "constant": np.ones((40, 5)),
    "quiet": 1e-9 * ROWS[:40],
    "two rows": ROWS[:2].mean(axis=0) + 1e-6 * TWO,
}


@pytest.mark.filterwarnings("ignore:X is constant", "ignore:No component is in use")
@pytest.mark.filterwarnings("ignore:The first chunk has 2 rows")
@pytest.mark.parametrize("first", FIRST_CHUNKS)
def test_a_first_chunk_unlike_the_others_is_named(first):
    vae = small_vae(sigma=1e3).partial_fit(FIRST_CHUNKS[first])
    with pytest.warns(UserWarning, match=r"far larger.* first chunk.*shuffled"):
        error = first_error(vae, ROWS)
    # Of the others the unit is 1, or so few directions count that training goes on.
    assert first != "two rows" or "first chunk or fit, which fixed the units" in error


def test_a_first_chunk_that_is_loud_or_small_is_named():
    vae = small_vae().partial_fit(1e4 * X)
    with pytest.warns(UserWarning, match=r"far smaller.* first chunk"):
        vae.partial_fit(X - X.mean(axis=0) + 1e4 * X.mean(axis=0))
    few = "first chunk has 2 rows.*few hundred"
    with pytest.warns(UserWarning, match=few) as found:
        vae = small_vae().partial_fit(X[:2])
    assert found[0].filename == __file__
    vae.partial_fit(X[:2])


def test_ordinary_chunks_are_not_remarked_on():
    vae = small_vae(n_components=6)
    for chunk in np.array_split(HEAVY, 6):
        assert warnings_of(vae.partial_fit, chunk) == []
