"""Inference on noisy and incomplete rows: the closed form, the bound, the contract."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from small_vae import (
    NOISE,
    BatchNormNetwork,
    curved_rows,
    low_rank_rows,
    same_weights,
    small_vae,
    weights,
)

from sklearn_sigmavae import GeneralizedNormalNoise, SigmaVAE
from sklearn_sigmavae._bound import bound_terms, integration_points

X = low_rank_rows(300, 6)
CURVE = curved_rows(400)
RNG = np.random.RandomState(1)
NORMAL = RNG.standard_normal(X.shape)


@pytest.fixture(scope="module")
def linear():
    """A linear model, whose posteriors are known."""
    return small_vae(n_components=3, hidden_layer_sizes=()).fit(X)


@pytest.fixture(scope="module")
def curved():
    """A model of rows near a curve, well trained."""
    vae = small_vae(sigma=0.1, hidden_layer_sizes=(32, 32), max_iter=150)
    return vae.fit(CURVE)


def holes(Y, fraction=0.3, seed=0):
    """A copy with missing entries, and where they are."""
    mask = np.random.RandomState(seed).random_sample(Y.shape) < fraction
    return np.where(mask, np.nan, Y), mask


def closed_form(vae, Y, scale):
    """Mean and standard deviation of the optimal posterior of a linear model."""
    k = vae.n_components
    mean_row = vae.inverse_transform(np.zeros((1, k)))[0]
    loadings = vae.inverse_transform(np.eye(k)) - mean_row
    precision = np.where(np.isnan(Y), 0, np.broadcast_to(scale, Y.shape) ** -2.0)
    pull = (np.nan_to_num(Y - mean_row) * precision) @ loadings.T
    of_codes = np.eye(k) + np.einsum("id,nd,jd->nij", loadings, precision, loadings)
    mean = np.linalg.solve(of_codes, pull[..., None])[..., 0]
    std = np.diagonal(of_codes, axis1=1, axis2=2) ** -0.5
    return mean, std, mean_row + mean @ loadings


def bounds(vae, Y, mean, std, scale):
    """Bound of each row at a posterior, in float64, less its constant."""
    units, module = vae.module_.units, vae.module_
    eps = integration_points(mean.shape[1])[:, None]
    z = (mean + std * eps).reshape(-1, mean.shape[1])
    location = vae.inverse_transform(z).reshape(len(eps), *Y.shape)
    assert module.takes_float64
    assert units.scale.size == Y.shape[1]
    energy = 0.5 * np.nansum(((Y - location) / scale) ** 2, axis=2).mean(axis=0)
    kl = 0.5 * (mean**2 + std**2 - 1 - 2 * np.log(std)).sum(axis=1)
    return -energy - kl


# Linear models, whose posteriors are known


@pytest.mark.parametrize("factor", [0.1, 0.3, 1.0, 3.0, 10.0])
def test_linear_models_denoise_exactly(linear, factor):
    scale = factor * NOISE
    Y = X + scale * NORMAL
    mean, std, restored = closed_form(linear, Y, scale)
    got = linear.denoise(Y, noise_scale=scale)
    error = np.linalg.norm(got - restored) / np.linalg.norm(restored - X.mean(axis=0))
    assert error < 1e-5  # 1e-3 is what is promised
    got_mean, got_std = linear.posterior(Y, noise_scale=scale)
    np.testing.assert_allclose(got_mean, mean, atol=1e-5)
    np.testing.assert_allclose(got_std, std, rtol=1e-5)


@pytest.mark.parametrize(
    "scale",
    [
        np.linspace(0.1, 3, 6),
        np.linspace(0.1, 3, 300)[:, None],
        RNG.uniform(0.1, 3, X.shape),
    ],
    ids=["features", "rows", "entries"],
)
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("sigma", [NOISE, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]])
def test_scales_may_differ(scale, missing, sigma):
    vae = small_vae(n_components=3, hidden_layer_sizes=(), sigma=sigma).fit(X)
    Y = X + scale * NORMAL
    if missing:
        Y, _ = holes(Y)
    mean, std, restored = closed_form(vae, Y, scale)
    got_mean, got_std = vae.posterior(Y, noise_scale=scale)
    np.testing.assert_allclose(got_mean, mean, atol=1e-4)
    np.testing.assert_allclose(got_std, std, rtol=1e-4)
    np.testing.assert_allclose(
        vae.denoise(Y, noise_scale=scale), restored, rtol=1e-4, atol=1e-4
    )


def test_what_is_missing_is_left_out(linear):
    Y, mask = holes(X)
    mean, std, restored = closed_form(linear, Y, NOISE)
    got_mean, got_std = linear.posterior(Y)
    np.testing.assert_allclose(got_mean, mean, atol=1e-5)
    np.testing.assert_allclose(got_std, std, rtol=1e-5)
    # What stands where nothing is known does not matter.
    np.testing.assert_allclose(
        linear.denoise(Y, noise_scale=NOISE), restored, atol=1e-5
    )
    of_means = np.broadcast_to(X.mean(axis=0), X.shape)[mask]
    error = np.square(restored[mask] - X[mask]).mean()
    assert error < 0.7 * np.square(of_means - X[mask]).mean()


@pytest.mark.parametrize("scale", [0.1, 0.3, 1.0, 5.0])
def test_the_scale_of_the_noise_is_found(linear, scale):
    X_new = low_rank_rows(2000, 6, noise=0)
    # The same subspace: the loadings are drawn first.
    Y = X_new + scale * np.random.RandomState(3).standard_normal(X_new.shape)
    k, d = 3, 6
    mean_row = linear.inverse_transform(np.zeros((1, k)))[0]
    loadings = linear.inverse_transform(np.eye(k)) - mean_row
    rows = np.linspace(0, 1999, 512).astype(int)
    covariance = np.cov((Y[rows] - mean_row).T, bias=True)
    covariance += np.outer(*2 * [Y[rows].mean(axis=0) - mean_row])

    def log_likelihood(s):
        model = loadings.T @ loadings + s**2 * np.eye(d)
        trace = np.trace(np.linalg.solve(model, covariance))
        return -0.5 * (np.linalg.slogdet(model)[1] + trace)

    grid = np.geomspace(0.02, 10, 2000)
    best = grid[np.argmax([log_likelihood(s) for s in grid])]
    error = linear.reconstruction_error_
    expected = np.sqrt(max(best**2 - error**2, 0))
    tolerance = 0.03 * best**2 / max(expected, 0.1)
    assert linear.estimate_noise_scale(Y) == pytest.approx(expected, abs=tolerance)


# Other models


def test_no_row_of_clean_data_has_a_lower_bound(curved):
    amortised = curved.posterior(CURVE)
    refined = curved.posterior(CURVE, refine=True)
    before, after = (
        bounds(curved, CURVE, *posterior, 0.1) for posterior in (amortised, refined)
    )
    assert (after >= before - 1e-9 * np.abs(before)).all()
    assert after.mean() > before.mean()


def test_bounds_here_are_those_of_the_score(curved):
    # So that the test above compares what it says.
    x = curved.module_.units.to_internal(CURVE).float()
    eps = torch.as_tensor(integration_points(2)).float().unsqueeze(1)
    scale = curved._internal_scale
    with torch.no_grad():
        energy, kl = bound_terms(curved.module_, curved.noise_, x, eps, scale)
    constant = CURVE.shape[1] * curved.noise_.log_normalizer(scale)
    expected = energy.mean(dim=0) + constant - kl
    got = bounds(curved, CURVE, *curved.posterior(CURVE), 0.1)
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("scale", "factor"), [(0.1, 0.7), (0.3, 0.7), (0.6, 0.97)])
def test_refinement_raises_the_bound_and_the_error_falls(curved, scale, factor):
    noise = np.random.RandomState(2).standard_normal(CURVE.shape)
    Y = CURVE + scale * noise
    amortised = curved.transform(Y)
    restored = curved.denoise(Y, noise_scale=scale)
    error = np.square(restored - CURVE).mean()
    by_encoder = np.square(curved.inverse_transform(amortised) - CURVE).mean()
    assert error < factor * by_encoder
    refined = curved.posterior(Y, noise_scale=scale)
    gain = bounds(curved, Y, *refined, scale) - bounds(
        curved, Y, *curved.posterior(Y), scale
    )
    assert (gain >= -1e-9).all()
    assert gain.mean() > 0.1


def test_more_steps_do_not_make_it_worse(curved):
    Y = CURVE + 0.3 * np.random.RandomState(2).standard_normal(CURVE.shape)
    few, many = (
        bounds(curved, Y, *curved.posterior(Y, noise_scale=0.3, max_iter=n), 0.3).mean()
        for n in (40, 400)
    )
    assert many > few - 0.02


def test_without_steps_the_start_remains(linear):
    Y = X + NORMAL
    mean, _, _ = closed_form(linear, Y, 1.0)
    got, _ = linear.posterior(Y, noise_scale=1.0, max_iter=0)
    np.testing.assert_allclose(got, mean, atol=1e-5)


def test_heavy_tails_are_told_to_the_noise_model(curved):
    random_state = np.random.RandomState(2)
    Y = CURVE + random_state.laplace(scale=0.3, size=CURVE.shape)
    outliers = random_state.random_sample(CURVE.shape) < 0.05
    Y[outliers] += random_state.choice([-8.0, 8.0], outliers.sum())
    errors = [
        np.square(curved.denoise(Y, noise_scale=0.3, noise=noise) - CURVE).mean()
        for noise in ("gaussian", "laplace", GeneralizedNormalNoise(1.0))
    ]
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] == errors[1]


def test_incomplete_rows_of_a_curve_are_filled(curved):
    Y, mask = holes(CURVE, 0.25)
    filled = curved.denoise(Y, noise_scale=0.1)
    assert np.isfinite(filled).all()
    # One gap may leave two places on the curve.
    error = np.square(filled - CURVE)[mask].mean()
    assert error < 0.8 * CURVE.var(axis=0).mean()


def test_a_row_without_any_entry_has_the_prior(linear, curved):
    for vae, rows in ((linear, X), (curved, CURVE)):
        Y = rows[:3].copy()
        Y[1] = np.nan
        mean, std = vae.posterior(Y)
        np.testing.assert_allclose(mean[1], 0, atol=0.05)
        np.testing.assert_allclose(std[1], 1, atol=0.05)


@pytest.mark.parametrize(
    "params",
    [
        {"noise": "laplace"},
        {"noise": GeneralizedNormalNoise(3.0)},
        {"linear_path": False, "init": "random"},
        {"network": BatchNormNetwork(), "batch_size": 20},
        {"sigma": "mle"},
        {"beta": 4.0},
    ],
    ids=str,
)
def test_other_models_are_refined_too(params):
    vae = small_vae(**params).fit(X)
    Y, _ = holes(X + NORMAL)
    before = weights(vae)
    restored = vae.denoise(Y)
    assert restored.shape == X.shape
    assert np.isfinite(restored).all()
    mean, std = vae.posterior(Y, noise_scale=1.0)
    assert np.isfinite(mean).all()
    assert (std > 0).all()
    assert same_weights(before, weights(vae))
    assert all(p.grad is None for p in vae.module_.parameters())


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_images_keep_their_shape(load, network):
    images = load("digits")[:200].reshape(-1, 8, 8).astype(np.float32)
    vae = small_vae(network=network, sigma=2.0).fit(images)
    Y = images.copy()
    Y[:, 2:4, 3] = np.nan
    restored = vae.denoise(Y, noise_scale=np.full((8, 8), 2.0))
    assert restored.shape == images.shape
    assert restored.dtype == np.float32
    flat = vae.denoise(Y, noise_scale=np.full(64, 2.0))
    np.testing.assert_array_equal(restored, flat)


def test_bernoulli_models_fill_gaps_and_know_no_scale():
    binary = (X > 1).astype(float)
    vae = small_vae(noise="bernoulli").fit(binary)
    Y, mask = holes(binary, 0.2)
    filled = vae.denoise(Y, noise_scale=None)
    assert (filled >= 0).all()
    assert (filled <= 1).all()
    assert np.square(filled - binary)[mask].mean() < 0.25
    np.testing.assert_array_equal(vae.denoise(Y), filled)
    estimated = vae.posterior(Y, noise_scale="estimate")
    np.testing.assert_array_equal(estimated, vae.posterior(Y))
    # Where nothing is missing there is nothing to do without a scale.
    match = r"BernoulliNoise\(\), has no scale.*noise_scale=None"
    for call in (vae.denoise, vae.estimate_noise_scale):
        with pytest.raises(ValueError, match=match):
            call(binary)
    for given in ({"noise_scale": 1.0}, {"noise": "gaussian"}):
        with pytest.raises(ValueError, match=match):
            vae.denoise(Y, **given)
    assert vae.denoise(binary, noise_scale=None).shape == binary.shape


# The contract


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_is_kept(curved, dtype):
    Y = CURVE.astype(dtype)
    for got in (
        curved.denoise(Y),
        curved.denoise(Y, noise_scale=0.2),
        *curved.posterior(Y, noise_scale=0.2),
        *curved.posterior(Y, refine=True),
    ):
        assert got.dtype == dtype


def test_rows_do_not_depend_on_each_other(curved):
    Y, _ = holes(CURVE + 0.3 * np.random.RandomState(2).standard_normal(CURVE.shape))
    whole = curved.denoise(Y, noise_scale=0.3)
    order = np.random.RandomState(0).permutation(len(Y))
    shuffled = curved.denoise(Y[order], noise_scale=0.3)
    np.testing.assert_allclose(shuffled, whole[order], atol=1e-3)
    some = np.concatenate(
        [curved.denoise(Y[i : i + 7], noise_scale=0.3) for i in range(0, 70, 7)]
    )
    np.testing.assert_allclose(some, whole[:70], atol=1e-3)


def test_calls_are_deterministic_and_leave_the_random_state_alone(curved):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = curved.denoise(CURVE)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(curved.denoise(CURVE), first)


def test_units_do_not_matter():
    vae = small_vae().fit(X)
    other = small_vae(sigma=1024 * NOISE).fit(1024 * X)
    Y = X + NORMAL
    np.testing.assert_array_equal(
        1024 * vae.denoise(Y, noise_scale=1.0),
        other.denoise(1024 * Y, noise_scale=1024),
    )
    assert other.estimate_noise_scale(1024 * Y) == pytest.approx(
        1024 * vae.estimate_noise_scale(Y), rel=1e-6
    )


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(curved, context):
    expected = curved.denoise(CURVE, noise_scale=0.3)
    with context():
        np.testing.assert_array_equal(curved.denoise(CURVE, noise_scale=0.3), expected)


def test_arrays_of_callers_are_left_alone(curved):
    Y, _ = holes(CURVE)
    scale = np.full(4, 0.3)
    for array in (Y, scale):
        array.flags.writeable = False
    before = Y.copy()
    expected = curved.denoise(before, noise_scale=scale.copy())
    forms = (
        (Y, scale),
        (np.asfortranarray(Y), scale),
        (Y[::-1][::-1], scale[::-1][::-1]),
        (Y.tolist(), scale.tolist()),
        (torch.from_numpy(before.copy()), 0.3),
    )
    for rows, of_noise in forms:
        np.testing.assert_allclose(
            curved.denoise(rows, noise_scale=of_noise), expected, atol=1e-6
        )
    np.testing.assert_array_equal(Y, before)


def test_integers_and_one_row_will_do():
    pixels = (40 * X + 100).clip(0, 255).astype(np.uint8)
    vae = small_vae(sigma=12.0).fit(pixels)
    assert vae.denoise(pixels, noise_scale=3).dtype == np.float32
    assert vae.denoise(pixels[:1]).shape == (1, 6)
    assert vae.posterior(pixels[:1], noise_scale=3.0)[1].shape == (1, 2)


def test_noise_far_out_is_no_trouble(curved):
    Y = CURVE.copy()
    Y[0] = 1e6
    Y[1] = -1e12
    assert np.isfinite(curved.denoise(Y, noise_scale=0.1)).all()
    assert np.isfinite(curved.denoise(Y)).all()


def test_a_bar_is_shown_if_asked_for(curved, capsys):
    curved.denoise(CURVE, noise_scale=0.3)
    assert "SigmaVAE" not in capsys.readouterr().err
    loud = clone(curved).set_params(verbose=1, max_iter=1).fit(CURVE)
    capsys.readouterr()
    loud.denoise(CURVE, noise_scale=0.3)
    assert "100%" in capsys.readouterr().err


def test_the_posterior_is_refined_only_where_it_must(curved):
    plain = curved.posterior(CURVE)
    np.testing.assert_array_equal(plain[0], curved.transform(CURVE))
    np.testing.assert_array_equal(curved.posterior(CURVE, refine=False)[1], plain[1])


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"noise_scale": 0.0}, "positive and finite"),
        ({"noise_scale": -1}, "positive and finite"),
        ({"noise_scale": np.inf}, "positive and finite"),
        ({"noise_scale": [1, 2]}, r"each feature, row or entry.*\(4,\).*shape \(2,\)"),
        ({"noise_scale": np.ones((4, 1))}, r"shape \(4, 1\)"),
        ({"noise_scale": "guess"}, "'estimate'"),
        ({"noise_scale": [1, None, 2, 3]}, "'noise_scale' must be"),
        ({"noise_scale": True}, "'noise_scale' must be"),
        ({"noise_scale": [[1, 2], [3]]}, "'noise_scale' must be"),
        ({"noise_scale": 1e-20}, "noise_scale is .* out of the range of float32"),
        ({"noise_scale": [1, 1, 1e20, 1]}, "noise_scale is .* out of the range"),
        ({"noise_scale": 1.0, "noise": "bernoulli"}, "noise model with a scale.*Bern"),
        ({"noise_scale": 1.0, "noise": "cauchy"}, "'noise' parameter"),
        ({"noise_scale": None, "noise": "laplace"}, "needs 'noise_scale'"),
        ({"noise_scale": 1.0, "max_iter": -1}, "'max_iter' parameter"),
        ({"noise_scale": 1.0, "tol": -1.0}, "'tol' parameter"),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["posterior", "denoise"])
def test_what_is_not_valid_is_refused(curved, method, given, match):
    with pytest.raises(ValueError, match=match):
        getattr(curved, method)(CURVE, **given)


@pytest.mark.parametrize(
    "given",
    [
        {"noise_scale": 1.0},
        {"noise_scale": 1.0, "noise": "laplace"},
        {"noise": "laplace"},
    ],
    ids=str,
)
def test_noise_must_be_refined(curved, given):
    with pytest.raises(ValueError, match="refine=False takes the posterior"):
        curved.posterior(CURVE, refine=False, **given)


def test_missing_entries_must_be_refined(curved):
    Y, _ = holes(CURVE)
    with pytest.raises(ValueError, match="NaN"):
        curved.posterior(Y, refine=False)
    for method in (curved.transform, curved.score, curved.kl_divergence):
        with pytest.raises(ValueError, match="NaN"):
            method(Y)


@pytest.mark.parametrize("method", ["posterior", "denoise", "estimate_noise_scale"])
def test_bad_rows_are_refused(curved, method):
    call = getattr(curved, method)
    infinite = CURVE.copy()
    infinite[3, 1] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        call(infinite)
    with pytest.raises(ValueError, match="3 features"):
        call(CURVE[:, :3])
    with pytest.raises(ValueError, match="SigmaVAE instance is not fitted"):
        getattr(SigmaVAE(), method)(CURVE)


def test_entries_out_of_range_are_refused(curved):
    for value, scale in ((1e200, 1.0), (1e30, 1.0), (1e30, "estimate"), (1e6, 1e-12)):
        far = CURVE.copy()
        far[0, 0] = value
        for method in (curved.denoise, curved.posterior):
            with pytest.raises(ValueError, match="too far from the training data"):
                method(far, noise_scale=scale)
    nothing = np.full((3, 4), np.nan)
    with pytest.raises(ValueError, match="all are missing"):
        curved.denoise(nothing)
    assert np.isfinite(curved.denoise(nothing, noise_scale=1.0)).all()


def test_a_call_that_fails_changes_nothing(curved):
    before = vars(curved).copy()
    with pytest.raises(ValueError, match="positive"):
        curved.denoise(CURVE, noise_scale=-1)
    assert vars(curved) == before


@pytest.mark.parametrize("early_stopping", [False, True])
def test_the_error_of_reconstruction_is_that_of_draws(early_stopping):
    vae = small_vae(hidden_layer_sizes=(), early_stopping=early_stopping)
    vae.fit(low_rank_rows(4000, 6))
    # Of the linear model each direction keeps sigma squared in mean.
    assert vae.reconstruction_error_ == pytest.approx(NOISE, rel=0.05)


def test_gaps_of_digits_are_filled_better_than_by_the_mean(load):
    digits = load("digits")
    vae = SigmaVAE(16, sigma=2.0, max_iter=20, random_state=0).fit(digits[:1200])
    rest = digits[1200:]
    Y, mask = holes(rest)
    filled = vae.denoise(Y)
    error = np.sqrt(np.square(filled - rest)[mask].mean())
    of_means = digits[:1200].mean(axis=0) - rest
    assert error < 0.6 * np.sqrt(np.square(of_means)[mask].mean())


def test_the_scale_is_estimated_in_any_units():
    X = curved_rows()
    Y = X + 0.5 * np.random.RandomState(0).standard_normal(X.shape)
    one = small_vae(sigma=0.1).fit(X)
    for unit in (2.0**600, 2.0**-600):
        other = small_vae(sigma=0.1 * unit).fit(X * unit)
        expected = unit * one.estimate_noise_scale(Y)
        assert other.estimate_noise_scale(Y * unit) == pytest.approx(expected)
        restored = other.denoise(Y * unit) / unit
        np.testing.assert_allclose(restored, one.denoise(Y), atol=1e-6)
