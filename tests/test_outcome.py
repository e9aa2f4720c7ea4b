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
from small_vae import DropoutNetwork, curved_rows, low_rank_rows, small_vae

from sklearn_sigmavae import BatchedGridSearchCV, DivergenceError, SigmaVAE, sigma_path
from sklearn_sigmavae._module import bound_log_var

# Linear rows, on which networks can only overfit.
X = low_rank_rows(60)
KEPT = "No epoch improved on the start"


def fit_and_catch(vae, rows, **kwargs):
    """Texts of the warnings of a fit."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vae.fit(rows, **kwargs)
    return [str(warning.message) for warning in caught]


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
    assert fit_and_catch(vae, rows, X_val=held_out) == []
    losses = np.array(vae.history_[:, "valid_loss"])
    assert vae.best_epoch_ == 1 + losses.argmin()
    start = small_vae(sigma=0.1, hidden_layer_sizes=(32,), max_iter=0)
    start.fit(rows, X_val=held_out)
    # The held-out bound of an epoch takes fewer points than a score.
    assert vae.start_score_ == pytest.approx(start.score(held_out), abs=0.2)
    best = np.minimum.accumulate([-vae.start_score_, *losses])
    assert vae.history_[:, "improved"] == (losses < best[:-1]).tolist()


@pytest.mark.parametrize(
    "params",
    [{"max_iter": 0}, {"early_stopping": False}, {"hidden_layer_sizes": ()}],
    ids=str,
)
def test_where_nothing_could_be_gained_nothing_is_reported(params):
    params = {"learning_rate": 0.1, "max_iter": 5} | params
    vae = small_vae(**params)
    assert not any(KEPT in text for text in fit_and_catch(vae, X))
    if not params["max_iter"] or params.get("hidden_layer_sizes") == ():
        assert vae.best_epoch_ == 0
    else:
        assert vae.best_epoch_ == vae.n_iter_ == 5
    assert np.isfinite(vae.start_score_)


def test_a_start_that_is_not_linear_is_not_called_pca():
    vae = small_vae(init="random", learning_rate=1e-12, tol=0.0)
    vae.fit(X)
    vae.set_params(warm_start=True, learning_rate=10.0, max_iter=3)
    (text,) = [text for text in fit_and_catch(vae, X) if KEPT in text]
    assert "PCA" not in text


def test_a_search_reports_a_column_that_hides_the_others():
    rows = np.c_[curved_rows(60), 1e9 * low_rank_rows(60, 1, rank=1)]
    search = BatchedGridSearchCV(small_vae(), {"sigma": [0.1, 0.2]}, cv=2, refit=False)
    texts = fit_and_catch(search, rows)
    assert sum("Column 4 reaches" in text for text in texts) == 1
    assert not any("Residuals" in text for text in texts)


def test_a_search_gathers_what_its_fits_report():
    vae = small_vae(learning_rate=0.5, max_iter=4)
    search = BatchedGridSearchCV(vae, {"sigma": [0.3, 0.4]}, cv=3, refit=False)
    texts = fit_and_catch(search, X)
    (text,) = [text for text in texts if KEPT in text]
    n_kept = int(re.match(r"In (\d) of 6 fits: ", text)[1])
    assert 1 <= n_kept <= 6
    one_by_one = BatchedGridSearchCV(
        vae.set_params(network=DropoutNetwork()), {"sigma": [0.3]}, cv=2, refit=False
    )
    assert sum(KEPT in text for text in fit_and_catch(one_by_one, X)) <= 1


def test_a_constant_rate_that_ends_too_early_is_reported():
    params = {"sigma": 0.1, "hidden_layer_sizes": (32,)}
    vae = small_vae(lr_schedule="constant", max_iter=6, **params)
    with pytest.warns(ConvergenceWarning, match=r"still rising.*Increase max_iter"):
        vae.fit(curved_rows(200))
    vae.set_params(lr_schedule="one_cycle")
    assert fit_and_catch(vae, curved_rows(200)) == []


def test_a_constant_rate_whose_best_epoch_is_long_past_is_not_called_rising():
    vae = small_vae(
        sigma=0.1,
        lr_schedule="constant",
        max_iter=60,
        n_iter_no_change=100,
        learning_rate=5e-2,
    )
    texts = fit_and_catch(vae, curved_rows(60))
    assert vae.n_iter_ - vae.best_epoch_ > 6
    assert not any("still rising" in text for text in texts)


def test_an_end_below_the_start_is_reported():
    vae = small_vae(learning_rate=0.2, early_stopping=False, max_iter=10)
    with pytest.warns(ConvergenceWarning, match=r"below its start.*early_stopping"):
        vae.fit(low_rank_rows(400, 8, rank=3))


def test_a_finite_end_far_below_the_start_is_a_divergence():
    vae = small_vae(early_stopping=False).fit(X)
    before = vae.score(X)
    vae.set_params(learning_rate=5.0, max_iter=10, warm_start=True)
    with pytest.raises(DivergenceError, match=r"fell from .* to .*learning_rate"):
        vae.fit(X)
    assert vae.score(X) == before
    with pytest.raises(DivergenceError, match="diverged"):
        vae.partial_fit(np.tile(X, (20, 1)))
    assert vae.score(X) == before


# Sigma


@pytest.mark.parametrize(
    "sigma",
    [1e-3, [1e-3] * 5, pl.Series([1e-3] * 5), pd.Series([1e-3] * 5)],
    ids=["one", "each", "polars", "pandas"],
)
def test_a_sigma_far_below_the_residuals_is_reported(sigma):
    rows = low_rank_rows(200, rank=4)
    texts = fit_and_catch(small_vae(sigma=sigma, n_components=1), rows)
    (text,) = [text for text in texts if text.startswith("Residuals")]
    named = float(re.search(r"is about ([\d.e-]+);", text)[1])
    vae = small_vae(sigma=named, n_components=1)
    assert not any(t.startswith("Residuals") for t in fit_and_catch(vae, rows))
    assert vae.reconstruction_error_ / 2 < named < 2 * vae.reconstruction_error_


def test_bytes_at_the_default_sigma_are_reported():
    rows = np.random.default_rng(0).integers(0, 256, (200, 48)).astype(np.uint8)
    texts = fit_and_catch(SigmaVAE(4, max_iter=1, random_state=0), rows)
    assert any(text.startswith("Residuals of typical rows are") for text in texts)


@pytest.mark.parametrize("params", [{"sigma": "mle"}, {"noise": "bernoulli"}], ids=str)
def test_scales_that_are_learned_or_absent_are_not_judged(params):
    rows = (X.mean(axis=0) < X).astype(float)
    assert not any("Residuals" in t for t in fit_and_catch(small_vae(**params), rows))


@pytest.mark.parametrize("scale", [1e3, 1e7])
@pytest.mark.parametrize("amount", ["normal", "lognormal"])
def test_a_column_that_hides_the_others_is_named(scale, amount):
    rng = np.random.default_rng(0)
    large = getattr(rng, amount)(size=200)
    table = pd.DataFrame(curved_rows(200), columns=list("abcd"))
    table["amount"] = scale * large
    vae = small_vae(sigma=0.1, n_components=3)
    for rows, name in ((table, "'amount'"), (table.to_numpy(), "4")):
        texts = [t for t in fit_and_catch(vae, rows) if t.startswith("Column")]
        assert len(texts) == (scale == 1e7)
        for text in texts:
            assert text.startswith(f"Column {name} reaches")
            assert "StandardScaler" in text
            assert "one value per column" in text
    # The two ways out.
    scaled = StandardScaler().fit_transform(table)
    assert not any(t.startswith("Column") for t in fit_and_catch(vae, scaled))
    vae.set_params(sigma=0.1 * table.std().to_numpy())
    assert not any(t.startswith("Column") for t in fit_and_catch(vae, table))


# Far rows


def heavy_rows(seed=0, n=600):
    """Rows with one heavy-tailed factor, as prices and areas have."""
    rng = np.random.default_rng(seed)
    factors = np.c_[np.exp(2 * rng.normal(size=n)), rng.normal(size=(n, 5))]
    mixed = factors @ (np.eye(6) + 0.3 * np.random.default_rng(0).normal(size=(6, 6)))
    return (mixed - mixed.mean(axis=0)) / mixed.std(axis=0)


@pytest.fixture(scope="module")
def of_heavy_rows():
    """A trained model, and its start."""
    params = {"sigma": 0.1, "n_components": 6, "hidden_layer_sizes": (64, 64)}
    return [
        small_vae(**params, max_iter=n, batch_size=128).fit(heavy_rows())
        for n in (60, 0)
    ]


def test_log_variances_are_bounded_above_zero_only():
    torch = pytest.importorskip("torch")
    log_var = torch.tensor([-30.0, -1.0, 0.0, 1.0, 38.8], requires_grad=True)
    bounded = bound_log_var(log_var)
    expected = [-30.0, -1.0, 0.0, np.log(2.0), np.log(39.8)]
    np.testing.assert_allclose(bounded.detach(), expected, rtol=1e-6)
    bounded.sum().backward()
    slopes = [1.0, 1.0, 1.0, 1 / 2, 1 / 39.8]
    np.testing.assert_allclose(log_var.grad, slopes, rtol=1e-6)


@pytest.mark.parametrize("params", [{"sigma": "mle"}, {"warm_start": True}], ids=str)
def test_the_tails_are_those_of_the_sigma_in_use(params):
    """Also where it is learned, or another than training started with."""
    rows = heavy_rows()
    vae = small_vae(**{"sigma": 0.5, "n_components": 3, "max_iter": 20} | params)
    if "warm_start" in params:
        vae.fit(rows).set_params(sigma=0.2)
    vae.fit(rows)
    start = small_vae(sigma=vae.sigma_, n_components=3, max_iter=0).fit(rows)
    far = 1e5 * rows[:3]
    ratio = vae.score_samples(far) / start.score_samples(far)
    np.testing.assert_allclose(ratio, 1, atol=0.01)


@pytest.mark.parametrize("factor", [3, 10, 100, 1000])
def test_rows_far_from_the_training_data_score_as_the_linear_start_does(
    of_heavy_rows, factor
):
    vae, start = of_heavy_rows
    assert vae.score(heavy_rows()) > start.score(heavy_rows()) + 0.5
    rows = heavy_rows()
    far = factor * rows[np.argsort(np.square(rows).sum(axis=1))[-5:]]
    ratio = vae.score_samples(far) / start.score_samples(far)
    assert (ratio < 1.1).all()
    if factor == 1000:
        np.testing.assert_allclose(ratio, 1, atol=0.01)


def test_far_out_the_model_is_probabilistic_pca(of_heavy_rows):
    """Moved by the same vector, two far rows differ by what PCA makes of it."""
    vae, _ = of_heavy_rows
    rows = heavy_rows()
    pca = PCA(6).fit(rows)
    variances = pca.explained_variance_ * (len(rows) - 1) / len(rows)
    weight = pca.components_ * (np.sqrt(variances - 0.1**2) / variances)[:, None]
    far = 100 * np.eye(6) * rows.max()
    step = 10 * np.random.default_rng(0).uniform(0, 1, size=(6, 6)) * np.eye(6)
    found = np.abs(vae.transform(far + step) - vae.transform(far))
    np.testing.assert_allclose(found, np.abs(step @ weight.T), rtol=1e-3, atol=1e-5)


def test_rows_of_the_training_data_are_what_they_were(of_heavy_rows):
    vae, _ = of_heavy_rows
    rows = heavy_rows()
    codes, score = vae.transform(rows), vae.score_samples(rows)
    tails, vae.module_.tails = vae.module_.tails, None
    try:
        assert np.array_equal(codes, vae.transform(rows))
        np.testing.assert_allclose(vae.score_samples(rows), score, rtol=1e-9)
    finally:
        vae.module_.tails = tails


def test_chunks_widen_what_counts_as_near():
    rows = heavy_rows()
    order = np.argsort(np.abs(rows).max(axis=1))
    vae = small_vae(sigma=0.1, n_components=6)
    for chunk in np.array_split(rows[order], 4):
        vae.partial_fit(chunk)
    x = vae.module_.units.to_internal(rows)
    assert vae.module_.tails.split_rows(x)[1] is None


def test_a_path_has_tails_of_each_scale():
    rows = heavy_rows()
    vae = small_vae(n_components=6, hidden_layer_sizes=(16,))
    path = sigma_path(rows, [0.4, 0.1], estimator=vae, max_iter=1)
    for model, sigma in zip(path.estimators, path.sigmas, strict=True):
        start = small_vae(n_components=6, sigma=sigma, max_iter=0).fit(rows)
        far = 1e5 * rows[:3]
        ratio = model.score_samples(far) / start.score_samples(far)
        np.testing.assert_allclose(ratio, 1, atol=0.01)


# Chunks


def first_error(vae, chunk):
    """Text of the divergence that training on a chunk again and again ends with."""
    for _ in range(20):
        try:
            vae.partial_fit(chunk)
        except DivergenceError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("first", ["constant", "quiet", "tiny"])
def test_a_first_chunk_unlike_the_others_is_named(first):
    rows = 1e4 * low_rank_rows(400)
    chunk = rows[:2] if first == "tiny" else rows[:40] * 1e-9
    if first == "constant":
        chunk = np.ones((40, 5))
    elif first == "tiny":
        chunk = chunk.mean(axis=0) + 1e-6 * (chunk - chunk.mean(axis=0))
    vae = small_vae(sigma=1e3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no component sees anything
        vae.partial_fit(chunk)
    with pytest.warns(UserWarning, match=r"far larger.* first chunk.*shuffled"):
        error = first_error(vae, rows)
    # Of constant rows the unit is 1, with which training goes on.
    assert first == "constant" or "first chunk or fit, which fixed the units" in error


def test_ordinary_chunks_are_not_remarked_on():
    rows = heavy_rows()
    vae = small_vae(n_components=6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for chunk in np.array_split(rows, 6):
            vae.partial_fit(chunk)
    assert [str(warning.message) for warning in caught] == []


def test_a_first_chunk_that_is_loud_is_named():
    rows = low_rank_rows(100)
    vae = small_vae().partial_fit(1e4 * rows)
    with pytest.warns(UserWarning, match=r"far smaller.* first chunk"):
        vae.partial_fit(rows - rows.mean(axis=0) + 1e4 * rows.mean(axis=0))


def test_a_first_chunk_of_few_rows_is_named():
    with pytest.warns(
        UserWarning, match=r"first chunk has 2 rows.*few hundred"
    ) as found:
        vae = small_vae().partial_fit(X[:2])
    assert found[0].filename == __file__
    vae.partial_fit(X[:2])
