"""Principal coordinates: exact densities, and no weight where there is no data."""

import warnings

import numpy as np
import pytest
import torch
from linear_gaussian import log_likelihood, spectrum
from sklearn.model_selection import GridSearchCV, KFold
from small_vae import RecipeOfSample, low_rank_rows, small_vae

from sklearn_sigmavae import (
    BatchedGridSearchCV,
    GeneralizedNormalNoise,
    SigmaVAE,
    sigma_path,
)
from sklearn_sigmavae._model.blocks import infer
from sklearn_sigmavae._model.bound import RowBound
from sklearn_sigmavae._training import pca
from sklearn_sigmavae._training.data import (
    HostRows,
    IntegerRows,
    ResidentRows,
    place_rows,
)
from sklearn_sigmavae.noise import resolve_noise

CPU = torch.device("cpu")


def rows_with_quiet_directions(n_samples=200, n_features=30, *, quiet=0.05, seed=0):
    """Three loud directions, and all others with little variance."""
    return low_rank_rows(n_samples, n_features, rank=3, noise=quiet, seed=seed)


X = rows_with_quiet_directions()
IMAGES = X.reshape(-1, 6, 5)
# Sigma at which most directions are quiet.
SIGMA = 0.5


@pytest.fixture
def rng():
    """Draws of a test's own, which are not those of the data."""
    return np.random.RandomState(1)


def wide_vae(**params):
    return small_vae(**{"sigma": SIGMA, "n_components": 4, "max_iter": 5} | params)


def units_of(vae):
    return vae.module_.units


def test_coordinates_are_those_of_the_loud_directions():
    vae = wide_vae().fit(X)
    units = units_of(vae)
    eigenvalues = spectrum(X)
    n_loud = (eigenvalues > 0.15 * SIGMA**2).sum()
    assert units.axes.shape == (30, max(n_loud, 4))
    np.testing.assert_allclose(units.axes.T @ units.axes, np.eye(4), atol=1e-12)
    coordinates = units.to_internal(X).numpy()
    # Uncorrelated, the loud ones first, of a mean variance of one.
    covariance = coordinates.T @ coordinates / len(X)
    np.testing.assert_allclose(
        covariance, np.diag(eigenvalues[:4]) / eigenvalues[:4].mean(), atol=1e-9
    )
    # Less noise, more of them; a learned scale may fall, and sees even more.
    assert units_of(wide_vae(sigma=0.05).fit(X)).n_seen == 30
    assert units_of(wide_vae(sigma="mle").fit(X)).n_seen == 30


def test_internal_values_hold_all_but_the_norm_of_the_rest():
    units = units_of(wide_vae().fit(X))
    x = units.standardize(X)
    inside, outside = units.split(x)
    np.testing.assert_allclose(
        inside.square().sum(dim=1) + outside, x.square().sum(dim=1)
    )
    back = units.rotate_back(inside)
    np.testing.assert_allclose((x - back).square().sum(dim=1), outside)
    np.testing.assert_allclose(units.rotate(back), inside, atol=1e-12)
    assert units.n_outside == 26


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_rows_outside_have_the_density_of_the_multivariate_normal(dtype, scale, rng):
    k = 2
    vae = wide_vae(n_components=k, hidden_layer_sizes=()).fit(X)
    exact = X.astype(np.float64)
    eigenvalues, axes = np.linalg.eigh(np.cov(exact.T, bias=True))
    amplitudes = np.sqrt(eigenvalues[-k:] - SIGMA**2)
    vae = wide_vae(n_components=k, hidden_layer_sizes=(), max_iter=0).fit(X)
    assert units_of(vae).n_outside > 0
    # In all directions, far beyond the training data.
    rows = (exact + scale * rng.standard_normal(X.shape)).astype(dtype)
    expected = log_likelihood(
        rows.astype(np.float64), exact.mean(axis=0), axes[:, -k:] * amplitudes, SIGMA
    )
    # Rounding: of the linear path's weights, which are float32, of what a row and its
    # code have in the subspace, and of its entries.
    inside = (rows - exact.mean(axis=0)) @ axes[:, -k:]
    in_subspace = (inside**2 / eigenvalues[-k:]).sum(axis=1)
    of_entries = 1e-6 if dtype == np.float32 else 1e-11
    tolerance = 1e-6 + 2.0**-24 * in_subspace + of_entries * np.abs(expected)
    assert (np.abs(vae.score_samples(rows) - expected) < tolerance).all()


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"network": "conv"},
        {"sigma": "mle"},
        {"sigma": "auto"},
        {"sigma": np.linspace(0.4, 0.6, 30)},
    ],
    ids=str,
)
@pytest.mark.parametrize("n_importance_samples", [None, 5])
def test_the_bound_is_that_of_all_features(params, n_importance_samples, rng):
    data = IMAGES if "network" in params else X
    vae = wide_vae(**params).fit(data)
    rows = (data + rng.standard_normal(data.shape)).reshape(len(data), -1)
    on_features = vae.module_.on_features()
    assert on_features.units.n_internal == 30
    bound = RowBound(vae.noise_, vae._model.scale, 4, n_importance_samples)
    found = infer(on_features, bound, rows) - units_of(vae).log_volume
    score = vae.score_samples(
        rows.reshape(data.shape), n_importance_samples=n_importance_samples
    )
    # The axes of modules are in float32.
    # Their rounding counts the more, the less noise there is.
    is_auto = isinstance(vae.sigma, str) and vae.sigma == "auto"
    np.testing.assert_allclose(found, score, rtol=2e-5 if is_auto else 1e-5)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"hidden_layer_sizes": ()},
        {"network": "conv"},
        {"network": RecipeOfSample()},
        {"noise": "laplace"},
        {"noise": "laplace", "network": "conv"},
    ],
    ids=str,
)
def test_codes_do_not_see_what_is_outside(params, rng):
    data = IMAGES if params.get("network") == "conv" else X
    vae = wide_vae(**params).fit(data)
    axes = units_of(vae).axes
    assert axes.shape[1] < 30
    noise = rng.standard_normal((len(X), 30))
    outside = (noise - noise @ axes @ axes.T).reshape(data.shape)
    np.testing.assert_allclose(
        vae.transform(data + outside), vae.transform(data), atol=1e-5
    )
    # Nor does anything decoded go there.
    decoded = vae.inverse_transform(rng.standard_normal((9, 4))).reshape(9, -1)
    decoded -= X.mean(axis=0)
    np.testing.assert_allclose(decoded @ axes @ axes.T, decoded, atol=1e-5)


def test_the_encoder_reads_noise_that_it_has_never_seen():
    rng = np.random.RandomState(0)
    angle = rng.uniform(0, 2 * np.pi, 1500)
    loadings = np.linalg.qr(rng.standard_normal((100, 2)))[0]
    clean = 4 * np.column_stack([np.cos(angle), np.sin(angle)]) @ loadings.T
    noisy = clean + 0.8 * rng.standard_normal(clean.shape)

    def error(**params):
        vae = SigmaVAE(4, sigma=0.3, max_iter=30, random_state=0, **params)
        vae.fit(clean + 0.01 * rng.standard_normal(clean.shape))
        return np.square(vae.inverse_transform(vae.transform(noisy)) - clean).mean()

    # Noise in all of the 100 directions, of which the data has two.
    everywhere = 0.8**2
    assert error() < 0.03 * everywhere
    assert error() < 0.5 * error(init="random")


def test_random_starts_see_all_features():
    for params in ({}, {"linear_path": False}):
        vae = wide_vae(init="random", **params).fit(X)
        assert units_of(vae).axes is None
        assert units_of(vae).n_internal == 30


def test_custom_recipes_see_samples():
    recipe = RecipeOfSample()
    wide_vae(network=recipe).fit(X)
    assert set(recipe.shapes) == {(30,)}


# Learned scales


def test_a_learned_scale_counts_what_is_outside(rng):
    # In directions of no account lie three thousandths of the variance that is left.
    quiet = 0.0025 * rng.standard_normal((900, 400))
    data = np.hstack([low_rank_rows(900, 12), quiet])
    vae = small_vae(sigma="mle", hidden_layer_sizes=(), max_iter=0).fit(data)
    assert units_of(vae).n_outside == 400
    expected = np.sqrt(spectrum(data)[2:].mean())
    assert vae.sigma_ == pytest.approx(expected, rel=3e-4)
    for batches in ({"batch_size": 37}, {"early_stopping": False}):
        vae = small_vae(sigma="mle", max_iter=30, **batches).fit(data)
        residual = data - vae.inverse_transform(vae.transform(data))
        # Draws of the posterior add to it.
        assert 1.0 < vae.sigma_ / np.sqrt(np.square(residual).mean()) < 1.5
        loss = vae.history_[-1, "train_loss"]
        assert -loss == pytest.approx(vae.score(data), abs=1.5)


def test_errors_and_losses_count_what_is_outside(rng):
    params = {"early_stopping": False, "n_components": 1, "hidden_layer_sizes": ()}
    vae = wide_vae(max_iter=1, learning_rate=1e-9, **params).fit(X)
    # The linear model's distortion: tau for each component in use, and the rest.
    expected = np.sqrt((SIGMA**2 + spectrum(X)[1:].sum()) / 30)
    assert vae.reconstruction_error_ == pytest.approx(expected, rel=1e-2)
    assert vae.start_score_ == pytest.approx(vae.score(X), abs=0.1)
    assert -vae.history_[-1, "train_loss"] == pytest.approx(vae.score(X), abs=0.2)
    held_out = X[:50] + rng.standard_normal((50, 30))
    vae.set_params(early_stopping=True).fit(X, X_val=held_out)
    assert vae.start_score_ == pytest.approx(vae.score(held_out), rel=1e-3)
    # Scales per feature: the error is still in the units of the data.
    sigma = np.linspace(0.4, 0.6, 30)
    vae = wide_vae(max_iter=0, sigma=sigma, **params).fit(X)
    mean, std = vae.posterior(X)
    draws = [vae.inverse_transform(mean + sign * std) - X for sign in (1, -1)]
    expected = np.sqrt(np.square(draws).mean())
    assert vae.reconstruction_error_ == pytest.approx(expected, rel=0.05)


# Rows


def test_integers_are_converted_where_that_takes_less_memory():
    scaled = 255 * (X - X.min()) / np.ptp(X)
    rows = scaled.astype(np.uint8)
    unit = 255 / np.ptp(X)
    for sigma, kind in ((SIGMA, ResidentRows), (0.01, HostRows)):
        units = units_of(wide_vae(sigma=sigma * unit).fit(rows))
        placed = place_rows(rows, units, CPU)
        assert type(placed) is kind
        index = torch.tensor([3, 0])
        expected = units.to_internal(rows[[3, 0]].astype(float))
        np.testing.assert_allclose(placed[index], expected, atol=1e-5)


@pytest.mark.parametrize("kind", [ResidentRows, IntegerRows, HostRows])
@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
def test_all_kinds_of_rows_have_the_same_coordinates(kind, noise):
    rows = (255 * (X - X.min()) / np.ptp(X)).astype(np.uint8)
    wide = units_of(wide_vae(sigma=0.5, noise=noise).fit(rows))
    placed = kind(rows, wide, CPU)
    narrow = units_of(wide_vae(sigma=40.0, noise=noise).fit(rows))
    assert narrow.n_seen < wide.n_seen
    for units, found in ((wide, placed), (narrow, placed.in_units(narrow))):
        x = units.standardize(rows.astype(float))
        inside, outside = units.split(x)
        seen = units.coordinates(x)
        np.testing.assert_allclose(found[torch.arange(200)], inside, atol=1e-5)
        survey = found.survey
        np.testing.assert_allclose(survey.outside, outside, atol=1e-5)
        n = units.n_seen
        np.testing.assert_allclose(survey.low[:n], seen.amin(dim=0), atol=1e-5)
        np.testing.assert_allclose(survey.high[:n], seen.amax(dim=0), atol=1e-5)


# Several models


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"noise": "laplace"},
        {"network": RecipeOfSample()},
        {"early_stopping": False, "optimizer": "adamw"},
    ],
    ids=str,
)
def test_members_of_a_stack_with_other_axes_train_as_they_would_alone(params):
    vae = wide_vae(**params)
    grid = {"sigma": [0.1, 0.2, 1.0], "random_state": [0, 1]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = GridSearchCV(vae, grid, cv=2).fit(X).cv_results_
        stack = BatchedGridSearchCV(vae, grid, cv=2).fit(X).cv_results_
    for name in ("split0_test_score", "split1_test_score"):
        np.testing.assert_allclose(stack[name], alone[name], atol=1e-3)


def test_models_of_a_path_see_more_and_more():
    path = sigma_path(X, [2.0, 0.5, 0.2, 0.05], estimator=wide_vae(), cv=2)
    n_seen = [units_of(vae).n_seen for vae in path.estimators]
    assert n_seen == sorted(n_seen)
    assert n_seen[0] == 4
    assert n_seen[-1] == 30
    # The linear start, at least, moves along exactly.
    linear = wide_vae(hidden_layer_sizes=(), max_iter=0)
    path = sigma_path(X, [2.0, 0.5, 0.2, 0.05], estimator=linear, max_iter=0)
    for vae, sigma in zip(path.estimators, path.sigmas, strict=True):
        expected = linear.set_params(sigma=sigma).fit(X).score(X)
        assert vae.score(X) == pytest.approx(expected, abs=1e-3)


def test_learned_scales_in_a_stack_count_what_is_outside_of_each(rng):
    quiet = np.geomspace(1, 1e-3, 64)
    data = rng.standard_normal((300, 64)) * quiet
    vae = small_vae(sigma="mle", early_stopping=False)
    grid = {"beta": [0.1, 10.0]}
    stack = BatchedGridSearchCV(vae, grid, cv=KFold(2)).fit(data).cv_results_
    alone = GridSearchCV(vae, grid, cv=KFold(2)).fit(data).cv_results_
    for name in ("split0_test_score", "split1_test_score"):
        np.testing.assert_allclose(stack[name], alone[name], rtol=1e-4)
    # A larger beta may come with a smaller tau, of which the bound has no maximum.
    data = rng.standard_normal((300, 4)) * np.sqrt([10, 1, 1, 1e-4])
    vae = small_vae(n_components=1, sigma="mle")
    stack = BatchedGridSearchCV(vae, {"beta": [1.0, 5.0]}, cv=KFold(2)).fit(data)
    assert np.isfinite(stack.cv_results_["mean_test_score"]).all()


# Large and wide data


@pytest.mark.filterwarnings("ignore:No component is in use")
def test_axes_of_some_rows_are_as_good_as_those_of_all(monkeypatch, tmp_path, rng):
    data = rows_with_quiet_directions(2000).astype(np.float32)
    monkeypatch.setattr(pca, "INITIAL", 30 * 500)
    vae = wide_vae().fit(data)
    assert units_of(vae).n_outside
    vae.save(tmp_path / "model.safetensors")
    loaded = SigmaVAE.load(tmp_path / "model.safetensors")
    assert np.array_equal(loaded.score_samples(data), vae.score_samples(data))
    # Unless those do not show where the data varies.
    monkeypatch.setattr(pca, "INITIAL", 30 * 33)
    data = 0.01 * rng.standard_normal((2000, 30)).astype(np.float32)
    data[::40] += 3 * rng.standard_normal((50, 30)).astype(np.float32)
    vae = wide_vae(sigma=0.1).fit(data)
    assert units_of(vae).axes is None


def test_wide_data_has_coordinates_if_few_count(rng):
    data = low_rank_rows(80, 1200, rank=3, noise=0.01)
    assert units_of(wide_vae().fit(data)).n_seen == 4
    # Of many axes not all are looked for, and then networks see features.
    data = rng.standard_normal((400, 1200))
    assert units_of(wide_vae(sigma=0.05, n_components=2).fit(data)).axes is None


# Fits that continue


def test_a_first_chunk_with_few_rows_keeps_all_directions():
    assert units_of(wide_vae().partial_fit(X[:59])).axes is None
    vae = wide_vae().partial_fit(X[:60])
    axes = units_of(vae).axes
    assert axes.shape[1] < 30
    # They stay, whatever comes.
    vae.partial_fit(X[60:])
    assert units_of(vae).axes is axes or np.array_equal(units_of(vae).axes, axes)
    vae.set_params(warm_start=True, sigma=0.1).fit(X)
    assert np.array_equal(units_of(vae).axes, axes)


@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
def test_rows_that_vary_outside_of_the_first_are_reported(noise, rng):
    vae = wide_vae(noise=noise).partial_fit(X)
    rows = X + 2 * SIGMA * rng.standard_normal(X.shape)
    with pytest.warns(UserWarning, match=r"directions .*first chunk .*shuffled"):
        vae.partial_fit(rows)


def test_a_loaded_model_sees_the_same_axes(tmp_path):
    for params in ({}, {"noise": "laplace"}, {"network": RecipeOfSample()}):
        vae = wide_vae(**params).fit(X)
        vae.save(tmp_path / "model.safetensors")
        network = params.get("network")
        loaded = SigmaVAE.load(tmp_path / "model.safetensors", network=network)
        assert np.array_equal(units_of(loaded).axes, units_of(vae).axes)
        assert np.array_equal(loaded.score_samples(X), vae.score_samples(X))
        loaded.partial_fit(X)
        assert np.array_equal(units_of(loaded).axes, units_of(vae).axes)


# Noisy rows


@pytest.mark.parametrize("params", [{}, {"network": "conv"}, {"sigma": "mle"}], ids=str)
def test_refinement_in_coordinates_is_that_of_features(params, monkeypatch, rng):
    data = IMAGES if "network" in params else X
    vae = wide_vae(**params).fit(data)
    rows = data[:40] + rng.standard_normal(data[:40].shape)
    found = vae.posterior(rows, noise_scale=1.0), vae.estimate_noise_scale(rows)
    monkeypatch.setattr(GeneralizedNormalNoise, "is_rotation_invariant", False)
    expected = vae.posterior(rows, noise_scale=1.0), vae.estimate_noise_scale(rows)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-3)
    assert found[1] == pytest.approx(expected[1], rel=1e-3)


def test_gaps_and_scales_of_entries_go_through_the_axes(rng):
    vae = wide_vae(hidden_layer_sizes=(), max_iter=0, n_components=2).fit(X)
    assert units_of(vae).n_outside
    rows = X[:20] + rng.standard_normal((20, 30))
    scale = rng.uniform(0.5, 1.5, rows.shape)
    rows[rng.uniform(size=rows.shape) < 0.2] = np.nan
    mean, std = vae.posterior(rows, noise_scale=scale)
    # The exact posterior of each row, from what was observed of it.
    start = vae.inverse_transform(np.zeros((1, 2)))[0]
    loadings = (vae.inverse_transform(np.eye(2)) - start).T
    for row, sigmas, found, width in zip(rows, scale, mean, std, strict=True):
        known = ~np.isnan(row)
        weighted = loadings[known] / sigmas[known, None] ** 2
        precision = np.eye(2) + weighted.T @ loadings[known]
        expected = np.linalg.solve(precision, weighted.T @ (row - start)[known])
        np.testing.assert_allclose(found, expected, atol=2e-2)
        np.testing.assert_allclose(width, np.diag(precision) ** -0.5, rtol=0.03)


# Noise models


def test_noise_that_is_not_the_same_in_all_directions_may_not_say_so():
    class Robust(GeneralizedNormalNoise):
        """Not Gaussian beyond one scale, though its exponent is 2."""

        def energy(self, x, location, scale):
            return torch.nn.functional.huber_loss(
                *torch.broadcast_tensors(x / scale, location / scale), reduction="none"
            ).sum(-1)

    assert not Robust().is_rotation_invariant
    vae = wide_vae(noise=Robust()).fit(X)
    assert not units_of(vae).rotates

    class Wrong(Robust):
        exponent, is_rotation_invariant = 1.0, True

        def energy(self, x, location, scale):
            return ((x - location).abs() / scale).sum(-1)

    with pytest.raises(ValueError, match="is_rotation_invariant must be false"):
        wide_vae(noise=Wrong()).fit(X)
    assert resolve_noise("gaussian").is_rotation_invariant
    assert not resolve_noise("laplace").is_rotation_invariant
