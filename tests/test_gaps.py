"""Rows with gaps: the exact linear model, every kind of fit, what stays the same."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from linear_gaussian import log_likelihood, optimum
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import EpochScoring
from small_vae import (
    EpochRecorder,
    Raiser,
    Unchanged,
    low_rank_rows,
    same_weights,
    small_vae,
    weights,
)

from sklearn_sigmavae import (
    BatchedGridSearchCV,
    MixturePrior,
    SigmaVAE,
    SigmaVAEImputer,
    sigma_path,
)
from sklearn_sigmavae._model.elbo import NegativeELBO
from sklearn_sigmavae._model.gaps import known_energy, log_likelihood_of_rows
from sklearn_sigmavae._training import em
from sklearn_sigmavae._training.em import _NARROW, fit_incomplete
from sklearn_sigmavae._training.fit import TrainingSchedule
from sklearn_sigmavae._training.stack import fit_stack
from sklearn_sigmavae.networks import MLP
from sklearn_sigmavae.noise import ALIASES, GeneralizedNormalNoise

X = low_rank_rows(200, 6, rank=3)
GAPS = np.random.RandomState(1).rand(*X.shape) < 0.3
GAPS[:20] = False
GAPS[20] = True  # a row without any entry
INCOMPLETE = np.where(GAPS, np.nan, X)
SIGMA = 0.4

LINEAR = {"hidden_layer_sizes": (), "max_iter": 0, "sigma": SIGMA}


def linear_model(vae):
    """Mean and loadings of a model without hidden layers, in the units of the data."""
    module = vae.module_
    weight = module.decoder.linear.weight.detach().double().numpy()
    bias = module.decoder.linear.bias.detach().double().numpy()
    axes, scale = module.units.axes, module.units.scale
    return module.units.to_data(axes @ bias), scale[:, None] * (axes @ weight)


def exact(rows, mean, loadings, sigma):
    """Log-likelihood of each row's entries, and what a factorized posterior loses."""
    found, gap = [], []
    for row in rows:
        known = ~np.isnan(row)
        W = loadings[known]
        precision = W.T @ W + sigma**2 * np.eye(W.shape[1])
        log_det = np.linalg.slogdet(precision)[1]
        gap.append(0.5 * (np.log(np.diag(precision)).sum() - log_det))
        value = 0.0
        if known.any():
            (value,) = log_likelihood(row[known][None], mean[known], W, sigma)
        found.append(value)
    return np.array(found), np.array(gap)


# The linear model


@pytest.mark.parametrize("n_components", [1, 3, 6, 9])
@pytest.mark.parametrize("refine", [True, False])
def test_the_score_of_the_linear_model_is_exact(n_components, refine):
    vae = small_vae(n_components=n_components, **LINEAR).fit(INCOMPLETE)
    found, gap = exact(INCOMPLETE, *linear_model(vae), SIGMA)
    score = vae.score_samples(INCOMPLETE, refine=refine)
    np.testing.assert_allclose(score, found - gap, atol=2e-6)
    assert n_components == 1 or gap.max() > 0.1
    # Without gaps nothing is lost.
    found, gap = exact(X, *linear_model(vae), SIGMA)
    np.testing.assert_allclose(gap, 0, atol=1e-6)
    np.testing.assert_allclose(vae.score_samples(X, refine=refine), found, atol=2e-6)


def test_where_components_do_not_meet_the_score_is_the_log_likelihood():
    # Two groups of columns, with a component each; rows are all pairs of their rows, so
    # that the groups are independent, gaps included.
    groups = [low_rank_rows(14, 3, rank=1, seed=seed) for seed in (0, 1)]
    for group, seed in zip(groups, (2, 3), strict=True):
        group[np.random.RandomState(seed).rand(*group.shape) < 0.3] = np.nan
    rows = np.array([np.hstack(pair) for pair in product(*groups)])
    vae = small_vae(n_components=2, **LINEAR).fit(rows)
    found, gap = exact(rows, *linear_model(vae), SIGMA)
    assert gap.max() < 1e-6
    assert vae.n_active_components_ == 2
    np.testing.assert_allclose(vae.score_samples(rows), found, atol=2e-6)


def test_amortized_posteriors_of_the_linear_model_are_exact():
    vae = small_vae(n_components=3, **LINEAR).fit(INCOMPLETE)
    mean, std = vae.posterior(INCOMPLETE, refine=False)
    center, loadings = linear_model(vae)
    for row, m, s in zip(INCOMPLETE, mean, std, strict=True):
        known = ~np.isnan(row)
        W = loadings[known]
        precision = W.T @ W + SIGMA**2 * np.eye(3)
        expected = np.linalg.solve(precision, W.T @ (row - center)[known])
        np.testing.assert_allclose(m, expected, atol=2e-6)
        np.testing.assert_allclose(s, SIGMA / np.sqrt(np.diag(precision)), rtol=2e-6)
    np.testing.assert_array_equal(mean, vae.transform(INCOMPLETE))


def test_per_feature_scales_are_those_of_their_entries():
    sigma = np.array([0.3, 0.4, 0.5, 0.3, 0.4, 0.6])
    vae = small_vae(n_components=3, **{**LINEAR, "sigma": sigma}).fit(INCOMPLETE)
    mean, loadings = linear_model(vae)
    found, gap = exact(
        (INCOMPLETE - mean) / sigma, 0 * mean, loadings / sigma[:, None], 1
    )
    found -= (~np.isnan(INCOMPLETE)) @ np.log(sigma)
    np.testing.assert_allclose(vae.score_samples(INCOMPLETE), found - gap, atol=5e-6)


@pytest.mark.parametrize("n_features", [6, _NARROW + 12])
@pytest.mark.parametrize("learns", [False, True])
def test_the_likelihood_never_falls(n_features, learns):
    rows = low_rank_rows(150, n_features, rank=4)
    rows[np.random.RandomState(0).rand(*rows.shape) < 0.4] = np.nan

    def tau_of(axes):
        return axes.noise_variance_mle(3, 1.0) if learns else 0.2

    axes, mean, path = fit_incomplete(rows, 3, tau_of)
    assert (np.diff(path) > -1e-9).all()
    assert len(path) > 3
    # The last is the likelihood of what is returned.
    tau = tau_of(axes)
    loadings = axes.axes * np.sqrt(np.maximum(axes.eigenvalues - tau, 0))
    found, _ = exact(rows, mean, loadings, math.sqrt(tau))
    assert path[-1] == pytest.approx(found.mean(), rel=1e-9)


def test_without_gaps_the_start_is_the_closed_form():
    axes, mean, path = fit_incomplete(X, 3, lambda axes: SIGMA**2)
    centered = X - X.mean(axis=0)
    eigenvalues = np.linalg.eigvalsh(centered.T @ centered / len(X))[::-1]
    np.testing.assert_allclose(mean, X.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(axes.eigenvalues, eigenvalues[:3], rtol=1e-10)
    score, _ = optimum(X, 3, SIGMA)
    assert path[-1] == pytest.approx(score, abs=1e-8)


def test_means_are_not_those_of_the_known_entries():
    # The second column is missing where the first is great, with which it rises.
    rng = np.random.RandomState(0)
    z = rng.standard_normal(2000)
    rows = z[:, None] + 0.1 * rng.standard_normal((2000, 2))
    rows[z > 0, 1] = np.nan
    assert np.nanmean(rows[:, 1]) < -0.7
    vae = small_vae(n_components=1, **{**LINEAR, "sigma": 0.1}).fit(rows)
    mean, _ = linear_model(vae)
    assert abs(mean[1]) < 0.1


# Every kind of fit


class Custom(MLP):
    """A recipe that files cannot name."""


KINDS = {
    "default": {},
    "mixture": {"prior": MixturePrior(2)},
    "laplace": {"noise": "laplace"},
    "exponent": {"noise": GeneralizedNormalNoise(1.5), "prior": "mixture"},
    "auto": {"sigma": "auto"},
    "auto, mixture": {"sigma": "auto", "prior": MixturePrior(2)},
    "mle": {"sigma": "mle"},
    "per feature": {"sigma": [0.3, 0.4, 0.5, 0.3, 0.4, 0.5]},
    "random": {"init": "random"},
    "plain": {"init": "random", "linear_path": False},
    "custom": {"network": Custom((8,))},
    "no early stopping": {"early_stopping": False},
    "beta": {"beta": 2.0},
    "few components": {"n_components": 1},
    "many components": {"n_components": 9},
    "bfloat16": {"precision": "bfloat16"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_fit_takes_gaps(kind):
    params = {"n_components": 3, "sigma": SIGMA, "max_iter": 25, "learning_rate": 5e-3}
    vae = small_vae(**{**params, **KINDS[kind]}).fit(INCOMPLETE)
    # It has learned to fill: the mean of the columns errs by a standard deviation.
    filled = vae.denoise(INCOMPLETE, noise_scale=None)
    error = np.sqrt(np.mean((filled - X)[GAPS] ** 2))
    assert error < (0.95 if vae.init == "random" else 0.8) * X.std()
    assert vae.score(INCOMPLETE) > vae.start_score_ - 1e-3 or vae.init == "pca"
    score = vae.score_samples(INCOMPLETE)
    assert np.isfinite(score).all()
    # Of a row without any entry nothing is known, and nothing is to be explained.
    # Points integrate over a prior that is not normal with an error.
    assert -0.5 < score[20] <= (1e-6 if vae.module_.prior.factorizes else 1e-2)
    assert np.isfinite(vae.kl_divergence(INCOMPLETE)).all()
    assert np.isfinite(vae.estimate_noise_scale(INCOMPLETE))
    # Rows are not seen beside others.
    for method in ("transform", "score_samples", "kl_divergence"):
        both = getattr(vae, method)(INCOMPLETE)
        for rows in (slice(0, 20), slice(20, 21), slice(30, 50, 3)):
            alone = getattr(vae, method)(INCOMPLETE[rows])
            np.testing.assert_allclose(both[rows], alone, rtol=1e-7, atol=1e-10)


def test_bernoulli_noise_takes_gaps():
    rows = (X.mean() < X).astype(float)
    rows[GAPS] = np.nan
    vae = small_vae(sigma=1.0, noise="bernoulli", max_iter=20).fit(rows)
    assert -6 * math.log(2) < vae.score(rows) < 0
    assert np.isfinite(vae.transform(rows)).all()
    filled = vae.denoise(rows)
    assert ((filled > 0) & (filled < 1)).all()
    with pytest.raises(ValueError, match=r"data in \[0, 1\]"):
        vae.fit(np.where(GAPS, np.nan, X))


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_images_may_miss_pixels(network, digits):
    images = digits[:120].reshape(-1, 8, 8).copy()
    images[np.random.RandomState(0).rand(*images.shape) < 0.3] = np.nan
    vae = small_vae(network=network, sigma=0.2, max_iter=2).fit(images)
    assert np.isfinite(vae.score_samples(images)).all()
    assert vae.denoise(images, noise_scale=None).shape == images.shape


@pytest.mark.parametrize(
    "convert",
    [
        pd.DataFrame,
        lambda rows: pd.DataFrame(rows).astype("Float64"),
        lambda rows: pd.DataFrame(rows).astype(object).mask(np.isnan(rows), None),
        lambda rows: np.ma.masked_invalid(rows),
        lambda rows: np.ma.masked_array(np.nan_to_num(rows, nan=7.0), np.isnan(rows)),
        lambda rows: rows.tolist(),
        torch.from_numpy,
        np.asfortranarray,
    ],
    ids=[
        "frame",
        "NA",
        "objects",
        "masked",
        "masked numbers",
        "list",
        "torch",
        "order",
    ],
)
def test_gaps_of_every_kind_are_the_same(convert):
    expected = small_vae(n_components=3).fit(INCOMPLETE)
    rows = convert(INCOMPLETE)
    vae = small_vae(n_components=3).fit(rows)
    assert same_weights(weights(vae), weights(expected))
    np.testing.assert_array_equal(
        vae.score_samples(rows), expected.score_samples(INCOMPLETE)
    )


def test_rows_in_files_and_in_float32_take_gaps(tmp_path):
    rows = INCOMPLETE.astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    params = {"n_components": 3, "sigma": "auto", "max_iter": 8}
    inside, outside = (small_vae(**params).fit(each) for each in (rows, mapped))
    assert same_weights(weights(inside), weights(outside))
    assert inside.transform(rows).dtype == np.float32
    np.testing.assert_allclose(
        inside.score_samples(rows), inside.score_samples(INCOMPLETE), rtol=1e-3
    )


def test_held_out_rows_may_have_gaps():
    vae = small_vae(n_components=3, sigma=SIGMA, hidden_layer_sizes=(), max_iter=0)
    vae.fit(X, X_val=INCOMPLETE)
    assert vae.start_score_ == pytest.approx(vae.score(INCOMPLETE), abs=0.1)
    # Their gaps change nothing for training rows, but for rounding.
    plain = small_vae(n_components=3, sigma=SIGMA, early_stopping=False)
    with_gaps = small_vae(n_components=3, sigma=SIGMA, early_stopping=False)
    plain.fit(X, X_val=X)
    with_gaps.fit(X, X_val=INCOMPLETE)
    np.testing.assert_allclose(plain.score(X), with_gaps.score(X), atol=1e-3)


def test_training_goes_on_with_gaps_and_without():
    vae = small_vae(n_components=3, sigma=SIGMA).fit(X)
    for rows in (INCOMPLETE, X, INCOMPLETE[:20], INCOMPLETE):
        vae.partial_fit(rows)
    assert np.isfinite(vae.score(INCOMPLETE))
    vae.set_params(warm_start=True).fit(INCOMPLETE)
    assert np.isfinite(vae.score(INCOMPLETE))
    first = small_vae(n_components=3, sigma=SIGMA).partial_fit(INCOMPLETE)
    assert np.isfinite(first.partial_fit(X).score(INCOMPLETE))


def test_a_learned_scale_is_that_of_the_known_entries():
    # The linear model's likelihood is greatest where these have their variance.
    params = {"hidden_layer_sizes": (), "sigma": "mle", "max_iter": 0}
    vae = small_vae(n_components=3, **params).fit(INCOMPLETE)
    mean, loadings = linear_model(vae)
    total, n_known = 0.0, 0
    for row in INCOMPLETE:
        known = ~np.isnan(row)
        W = loadings[known]
        precision = W.T @ W + vae.sigma_**2 * np.eye(3)
        code = np.linalg.solve(precision, W.T @ (row - mean)[known])
        variance = vae.sigma_**2 / np.diag(precision)
        total += np.square((row - mean)[known] - W @ code).sum()
        total += (np.square(W) @ variance).sum()
        n_known += known.sum()
    assert vae.sigma_ == pytest.approx(math.sqrt(total / n_known), rel=0.02)


def test_completions_follow_a_scale_that_falls():
    vae = small_vae(n_components=3, sigma="auto", max_iter=30).fit(INCOMPLETE)
    completion, units = vae.module_.completion, vae.module_.units
    tau = (vae.sigma_ / units.mean_scale) ** 2
    assert completion.noise_variance == pytest.approx(tau, rel=0.3)


# What stays the same


def test_what_is_missing_does_not_count():
    noise, generator = GeneralizedNormalNoise(1.5), torch.Generator().manual_seed(0)
    x, location = torch.randn(2, 9, 4, generator=generator, dtype=torch.float64)
    known = (torch.rand(9, 4, generator=generator) < 0.5).double()
    expected = torch.stack(
        [
            noise.energy(a[w], b[w], 0.3)
            for a, b, w in zip(x, location, known.bool(), strict=True)
        ]
    )
    torch.testing.assert_close(known_energy(noise, x, location, 0.3, known), expected)
    packed = torch.cat([x, known, torch.zeros(9, 2)], dim=1)
    log_prob = log_likelihood_of_rows(noise, packed, location, 0.3)
    constant = known.sum(1) * noise.log_normalizer(0.3)
    torch.testing.assert_close(log_prob, -expected - constant)


@pytest.mark.parametrize("noise", ALIASES)
@pytest.mark.parametrize("n_points", [(), (4,)])
def test_rows_without_gaps_have_the_same_loss(noise, n_points):
    rows = (X.mean() < X).astype(float) if noise == "bernoulli" else X
    params = {"n_components": 3, "noise": noise, "sigma": SIGMA}
    vae = small_vae(**params).fit(rows).module_.on_features()
    x = vae.units.standardize(rows).float()
    packed = vae.completion.complete(x)
    eps = torch.randn(*n_points, len(x), 3, generator=torch.Generator().manual_seed(0))
    criterion = NegativeELBO(ALIASES[noise], 1.0, 0.3)
    torch.testing.assert_close(criterion(vae, packed, eps), criterion(vae, x, eps))


@pytest.mark.parametrize("sigma", [[0.2, 0.4, 0.4], ["auto", "auto"], ["mle", "mle"]])
def test_members_of_a_stack_train_as_alone(sigma):
    params = {"n_components": 3, "max_iter": 4, "optimizer": "sgd"}
    params["learning_rate"] = 1e-3
    members = [
        small_vae(**params, sigma=each, random_state=i) for i, each in enumerate(sigma)
    ]
    # One of the folds has no gaps.
    rows = [INCOMPLETE, INCOMPLETE[::-1].copy(), X][: len(members)]
    samples = [vae._check_samples(x) for vae, x in zip(members, rows, strict=True)]
    schedule = TrainingSchedule.of_fit(members[0], len(X))
    models = fit_stack(members, samples, schedule)
    for vae, x, model in zip(members, rows, models, strict=True):
        alone = vae.fit(x)._model
        assert model.scale == pytest.approx(alone.scale, rel=1e-3)
        expected = alone.module.state_dict()
        for name, value in model.module.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


def test_searches_take_gaps():
    grid = {"sigma": [0.3, 3.0]}
    vae = small_vae(n_components=3)
    ours = BatchedGridSearchCV(vae, grid, cv=2).fit(INCOMPLETE)
    theirs = GridSearchCV(vae, grid, cv=2).fit(INCOMPLETE)
    assert ours.best_params_ == theirs.best_params_ == {"sigma": 0.3}
    np.testing.assert_allclose(
        ours.cv_results_["mean_test_score"],
        theirs.cv_results_["mean_test_score"],
        atol=0.05,
    )


def test_files_hold_what_completes_rows(tmp_path):
    for i, params in enumerate(
        [{}, {"init": "random"}, {"sigma": "auto"}, {"noise": "laplace"}]
    ):
        vae = small_vae(**{"n_components": 3, "sigma": SIGMA, **params}).fit(INCOMPLETE)
        vae.save(tmp_path / f"{i}")
        loaded = SigmaVAE.load(tmp_path / f"{i}", device="cpu")
        for method in ("score_samples", "transform", "kl_divergence"):
            np.testing.assert_array_equal(
                getattr(loaded, method)(INCOMPLETE), getattr(vae, method)(INCOMPLETE)
            )
        loaded.partial_fit(INCOMPLETE)


@pytest.mark.parametrize("sigma", [SIGMA, "auto", "mle"])
def test_killed_fits_go_on(sigma, tmp_path, monkeypatch):
    monkeypatch.setattr("sklearn_sigmavae._training.checkpoint._COST", np.inf)
    params = {"n_components": 3, "sigma": sigma, "max_iter": 12}
    whole = small_vae(**params).fit(INCOMPLETE)
    vae = small_vae(**params, checkpoint_dir=tmp_path)
    vae.set_params(callbacks=[Raiser(ZeroDivisionError(), 7)])
    with pytest.raises(ZeroDivisionError):
        vae.fit(INCOMPLETE)
    vae.set_params(callbacks=[EpochRecorder()]).fit(INCOMPLETE)
    assert same_weights(weights(vae), weights(whole))
    assert vae.sigma_ == whole.sigma_


def test_callbacks_see_rows_without_gaps():
    vae = small_vae(n_components=3, sigma=SIGMA)
    scoring = EpochScoring("neg_mean_squared_error", name="error")
    vae.set_params(callbacks=[scoring]).fit(INCOMPLETE)
    assert vae.history_[-1, "error"] < 0


# Bad input, and little of it


def test_columns_without_entries_are_refused(no_training):
    rows = INCOMPLETE.copy()
    rows[:, 3] = np.nan
    vae = small_vae()
    with (
        Unchanged(vae),
        pytest.raises(ValueError, match="Column 3 of X has no entries"),
    ):
        vae.fit(rows)
    frame = pd.DataFrame(rows, columns=list("abcdef"))
    with pytest.raises(ValueError, match="Column 'd' of X has no entries"):
        vae.fit(frame)
    with pytest.raises(ValueError, match="Column 0 of X has no entries"):
        vae.fit(np.full((9, 3), np.nan))


def test_columns_with_few_entries_are_taken():
    rows = INCOMPLETE.copy()
    rows[1:, 3] = np.nan  # seen once
    rows[:, 4] = np.where(np.isnan(rows[:, 4]), np.nan, 2.5)  # constant
    vae = small_vae(n_components=3, sigma=SIGMA).fit(rows)
    assert np.isfinite(vae.score(rows))
    filled = vae.denoise(rows, noise_scale=None)
    assert abs(filled[:, 3] - rows[0, 3]).max() < 5
    assert abs(filled[:, 4] - 2.5).max() < 2


def test_rows_without_entries_have_the_prior():
    vae = small_vae(n_components=3, sigma=SIGMA, max_iter=20).fit(INCOMPLETE)
    nothing = np.full((3, 6), np.nan)
    mean, std = vae.posterior(nothing)
    np.testing.assert_allclose(mean, 0, atol=0.2)
    np.testing.assert_allclose(std, 1, atol=0.2)
    draws = vae._draw(np.repeat(nothing[:1], 2000, 0), np.random.RandomState(0))
    np.testing.assert_allclose(draws.mean(axis=0), X.mean(axis=0), atol=0.4)


def test_held_out_rows_need_entries(no_training):
    nothing = np.full((60, 6), np.nan)
    with pytest.raises(ValueError, match="held out to find the best epoch have no"):
        small_vae(sigma="auto").fit(np.vstack([X[:3], nothing]))
    with pytest.raises(ValueError, match="X_val has no entries"):
        small_vae().fit(X, X_val=nothing)


@pytest.mark.filterwarnings("ignore:Column . reaches|Residuals of typical rows")
def test_small_noise_and_many_components_are_taken():
    for sigma in (1e-8, 1e-10):
        vae = small_vae(n_components=6, sigma=sigma, max_iter=0).fit(INCOMPLETE)
        assert np.isfinite(vae.transform(INCOMPLETE)).all()


def test_each_column_takes_part_in_the_start(monkeypatch):
    # Known in odd rows alone, and in one row alone.
    monkeypatch.setattr(em, "_OPERATIONS", 0)
    rows = low_rank_rows(200, 6, rank=2, noise=0.1)
    rows[::2, 0] = np.nan
    rows[1:, 3] = np.nan
    found = em._some_rows(rows, 20)
    assert 20 <= len(found) < 30
    assert (~np.isnan(found)).any(axis=0).all()
    axes, *_ = em.incomplete_axes(rows, 2, lambda axes: 1e9, lambda axes: 0.01)
    assert np.linalg.norm(axes.axes[0, :2]) > 0.1


def test_complete_rows_do_not_depend_on_others():
    vae = small_vae(n_components=3, sigma=0.2, max_iter=9).fit(X)
    both = vae.posterior(np.vstack([X[:9], INCOMPLETE[-9:]]))
    for mean, alone in zip(both, vae.posterior(X[:9]), strict=True):
        np.testing.assert_array_equal(mean[:9], alone)


def test_paths_have_a_way_out():
    with pytest.raises(
        ValueError, match=r"sigma_path takes no rows with gaps.*Batched"
    ):
        sigma_path(INCOMPLETE, estimator=small_vae())


def test_what_a_new_user_types():
    y = X[:, 0] > 1
    vae = small_vae(n_components=3)
    model = make_pipeline(
        SigmaVAEImputer(make_pipeline(StandardScaler(), vae)), LogisticRegression()
    )
    assert model.fit(INCOMPLETE, y).score(INCOMPLETE, y) > 0.7
