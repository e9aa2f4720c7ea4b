"""Inference on noisy and incomplete rows: the closed form, the bound, the contract."""

import numpy as np
import pytest
import torch
from linear_gaussian import log_likelihood
from sklearn.base import clone
from small_vae import (
    NOISE,
    BatchNormNetwork,
    Unchanged,
    curved_rows,
    low_rank_rows,
    small_vae,
)

from sklearn_sigmavae import GeneralizedNormalNoise
from sklearn_sigmavae._model.points import quadrature

X = low_rank_rows(300, 6)
CURVE = curved_rows(400)
NORMAL = np.random.RandomState(1).standard_normal(X.shape)
NORMAL_OF_CURVE = np.random.RandomState(2).standard_normal(CURVE.shape)


@pytest.fixture(scope="module")
def linear():
    """A linear model, whose posteriors are known."""
    return small_vae(n_components=3, hidden_layer_sizes=()).fit(X)


@pytest.fixture(scope="module")
def curved():
    """A model of rows near a curve, well trained."""
    params = {"hidden_layer_sizes": (32, 32), "learning_rate": 5e-3}
    return small_vae(sigma=0.1, batch_size=50, max_iter=150, **params).fit(CURVE)


def holes(Y, fraction=0.3, seed=0):
    """A copy with missing entries, and where they are."""
    mask = np.random.RandomState(seed).random_sample(Y.shape) < fraction
    return np.where(mask, np.nan, Y), mask


def decoder_of(vae):
    """Mean and loadings of the decoder of a linear model."""
    mean_row = vae.inverse_transform(np.zeros((1, vae.n_components)))[0]
    return mean_row, vae.inverse_transform(np.eye(vae.n_components)) - mean_row


def closed_form(vae, Y, scale):
    """Optimal posterior of a linear model, and the rows that its means decode to."""
    mean_row, loadings = decoder_of(vae)
    precision = np.where(np.isnan(Y), 0, np.broadcast_to(scale, Y.shape) ** -2.0)
    pull = (np.nan_to_num(Y - mean_row) * precision) @ loadings.T
    identity = np.eye(vae.n_components)
    of_codes = identity + np.einsum("id,nd,jd->nij", loadings, precision, loadings)
    mean = np.linalg.solve(of_codes, pull[..., None])[..., 0]
    std = np.diagonal(of_codes, axis1=1, axis2=2) ** -0.5
    return mean, std, mean_row + mean @ loadings


def elbo(vae, Y, mean, std, scale):
    """Variational bound of each row at a posterior, under Gaussian noise."""
    points, weights = quadrature(mean.shape[1])
    # In the reflection that the encoder's code selects.
    eps = points.numpy() * np.where(vae.transform(Y) < 0, -1, 1)
    z = (mean + std * eps).reshape(-1, mean.shape[1])
    location = vae.inverse_transform(z).reshape(len(points), *Y.shape)
    log_prob = -0.5 * ((Y - location) / scale) ** 2 - np.log(scale)
    log_prob -= 0.5 * np.log(2 * np.pi)
    kl = 0.5 * (mean**2 + std**2 - 1 - 2 * np.log(std)).sum(axis=1)
    return weights.numpy() @ log_prob.sum(axis=2) - kl


# Linear models, whose posteriors are known


@pytest.mark.parametrize(
    "scale",
    [
        *(factor * NOISE for factor in (0.3, 1.0, 10.0)),
        np.linspace(0.1, 3, 6),
        np.linspace(0.1, 3, 300)[:, None],
        np.random.RandomState(4).uniform(0.1, 3, X.shape),
    ],
    ids=["less", "sigma", "more", "features", "rows", "entries"],
)
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("sigma", [NOISE, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]], ids=str)
def test_linear_models_are_refined_to_the_closed_form(scale, missing, sigma):
    vae = small_vae(n_components=3, hidden_layer_sizes=(), sigma=sigma).fit(X)
    Y = X + scale * NORMAL
    if missing:
        Y, _ = holes(Y)
    mean, std, restored = closed_form(vae, Y, scale)
    got_mean, got_std = vae.posterior(Y, noise_scale=scale)
    np.testing.assert_allclose(got_mean, mean, atol=5e-5)
    np.testing.assert_allclose(got_std, std, rtol=5e-5)
    got = vae.denoise(Y, noise_scale=scale)
    np.testing.assert_allclose(got, restored, rtol=1e-4, atol=1e-4)


def test_the_posterior_of_incomplete_rows_needs_no_noise_scale_and_no_steps(linear):
    Y, mask = holes(X)
    mean, std, restored = closed_form(linear, Y, NOISE)
    for max_iter in (0, 60):
        got_mean, got_std = linear.posterior(Y, max_iter=max_iter)
        np.testing.assert_allclose(got_mean, mean, atol=1e-5)
        np.testing.assert_allclose(got_std, std, rtol=1e-5)
    of_means = np.broadcast_to(X.mean(axis=0), X.shape)[mask]
    error = np.square(restored[mask] - X[mask]).mean()
    assert error < 0.7 * np.square(of_means - X[mask]).mean()


@pytest.mark.parametrize("scale", [0.1, 0.3, 1.0, 5.0])
def test_the_estimated_noise_scale_has_the_highest_likelihood(linear, scale):
    # The same subspace as that of X: the loadings are drawn first.
    clean = low_rank_rows(2000, 6, noise=0)
    Y = clean + scale * np.random.RandomState(3).standard_normal(clean.shape)
    mean_row, loadings = decoder_of(linear)
    # The estimate takes up to 512 rows.
    rows = Y[np.linspace(0, 1999, 512).astype(int)]
    grid = np.geomspace(0.02, 10, 1000)
    scores = [log_likelihood(rows, mean_row, loadings.T, s).sum() for s in grid]
    best = grid[np.argmax(scores)]
    error = linear.reconstruction_error_
    expected = np.sqrt(max(best**2 - error**2, 0))
    tolerance = 0.03 * best**2 / max(expected, 0.1)
    assert linear.estimate_noise_scale(Y) == pytest.approx(expected, abs=tolerance)


# Other models


def test_no_row_of_clean_data_has_a_lower_bound(curved):
    before, after = (
        elbo(curved, CURVE, *curved.posterior(CURVE, refine=refine), 0.1)
        for refine in (False, True)
    )
    # The bound of these tests is the score.
    scores = curved.score_samples(CURVE, refine=False)
    np.testing.assert_allclose(before, scores, rtol=1e-6, atol=1e-6)
    assert (after >= before - 1e-9 * np.abs(before)).all()
    assert after.mean() > before.mean()


@pytest.mark.parametrize(("scale", "factor"), [(0.1, 0.7), (0.3, 0.7), (0.6, 0.97)])
def test_refinement_raises_the_bound_and_lowers_the_error(curved, scale, factor):
    Y = CURVE + scale * NORMAL_OF_CURVE
    error = np.square(curved.denoise(Y, noise_scale=scale) - CURVE).mean()
    of_encoder = curved.inverse_transform(curved.transform(Y))
    assert error < factor * np.square(of_encoder - CURVE).mean()
    before, few, many = (
        elbo(curved, Y, *posterior, scale)
        for posterior in (
            curved.posterior(Y),
            curved.posterior(Y, noise_scale=scale),
            curved.posterior(Y, noise_scale=scale, max_iter=400),
        )
    )
    assert (few >= before - 1e-9).all()
    assert few.mean() > before.mean() + 0.1
    assert many.mean() > few.mean() - 0.02


def test_heavy_tails_need_a_noise_model_that_has_them(curved):
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


def test_a_row_without_any_entry_has_the_prior(linear, curved):
    for vae, rows in ((linear, X), (curved, CURVE)):
        Y = rows[:3].copy()
        Y[1] = np.nan
        mean, std = vae.posterior(Y)
        np.testing.assert_allclose(mean[1], 0, atol=0.05)
        np.testing.assert_allclose(std[1], 1, atol=0.05)
    nothing = np.full((3, 4), np.nan)
    with pytest.raises(ValueError, match="all are missing"):
        curved.denoise(nothing)
    assert np.isfinite(curved.denoise(nothing, noise_scale=1.0)).all()


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
    with Unchanged(vae):
        restored = vae.denoise(Y)
        mean, std = vae.posterior(Y, noise_scale=1.0)
    assert restored.shape == X.shape
    assert np.isfinite(restored).all()
    assert np.isfinite(mean).all()
    assert (std > 0).all()
    assert all(p.grad is None for p in vae.module_.parameters())


@pytest.mark.parametrize("shape", [(2, 2), (4, 1), (1, 4)])
def test_scales_may_have_the_shape_of_an_image(shape):
    sigma = np.array([0.1, 0.2, 0.3, 0.4])
    flat = small_vae(sigma=sigma).fit(CURVE)
    vae = small_vae(sigma=sigma.reshape(shape)).fit(CURVE.reshape(-1, *shape))
    Y, _ = holes(CURVE)
    images = Y.reshape(-1, *shape)
    for of_rows, of_images in ((None, None), (sigma, sigma.reshape(shape))):
        restored = vae.denoise(images, noise_scale=of_images)
        assert restored.shape == images.shape
        expected = flat.denoise(Y, noise_scale=of_rows)
        np.testing.assert_array_equal(restored.reshape(Y.shape), expected)


def test_bernoulli_models_fill_gaps_and_have_no_scale():
    binary = (X > 1).astype(float)
    vae = small_vae(noise="bernoulli").fit(binary)
    Y, mask = holes(binary, 0.2)
    filled = vae.denoise(Y, noise_scale=None)
    assert 0 <= filled.min() < filled.max() <= 1
    assert np.square(filled - binary)[mask].mean() < 0.25
    np.testing.assert_array_equal(vae.denoise(Y), filled)
    estimated = vae.posterior(Y, noise_scale="estimate")
    np.testing.assert_array_equal(estimated, vae.posterior(Y))
    assert vae.denoise(binary, noise_scale=None).shape == binary.shape
    # Where nothing is missing there is nothing to do without a scale.
    for call in (
        lambda: vae.denoise(binary),
        lambda: vae.estimate_noise_scale(binary),
        lambda: vae.denoise(Y, noise_scale=1.0),
        lambda: vae.denoise(Y, noise="gaussian"),
    ):
        with pytest.raises(ValueError, match=r"BernoulliNoise\(\).* no scale"):
            call()


# The contract


def test_rows_do_not_depend_on_each_other(curved):
    Y, _ = holes(CURVE + 0.3 * NORMAL_OF_CURVE)
    whole = curved.denoise(Y, noise_scale=0.3)
    order = np.random.RandomState(0).permutation(len(Y))
    shuffled = curved.denoise(Y[order], noise_scale=0.3)
    np.testing.assert_allclose(shuffled, whole[order], atol=1e-3)
    blocks = [curved.denoise(Y[i : i + 7], noise_scale=0.3) for i in range(0, 35, 7)]
    np.testing.assert_allclose(np.concatenate(blocks), whole[:35], atol=1e-3)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_calls_are_deterministic_also_where_gradients_are_off(curved, context):
    state = torch.get_rng_state()
    expected = curved.denoise(CURVE)
    assert torch.equal(torch.get_rng_state(), state)
    with context():
        np.testing.assert_array_equal(curved.denoise(CURVE), expected)


@pytest.mark.parametrize("unit", [1024.0, 2.0**600, 2.0**-600])
def test_units_do_not_matter(unit):
    Y = CURVE + 0.5 * NORMAL_OF_CURVE
    vae = small_vae(sigma=0.1).fit(CURVE)
    scaled = small_vae(sigma=0.1 * unit).fit(unit * CURVE)
    noise_scale = vae.estimate_noise_scale(Y)
    assert scaled.estimate_noise_scale(unit * Y) == pytest.approx(unit * noise_scale)
    for given in ("estimate", 0.5):
        expected = vae.denoise(Y, noise_scale=given)
        given = given if given == "estimate" else given * unit
        restored = scaled.denoise(unit * Y, noise_scale=given) / unit
        np.testing.assert_allclose(restored, expected, atol=1e-6)


def test_the_form_of_the_arrays_makes_no_difference(curved):
    Y, _ = holes(CURVE)
    scale = np.full(4, 0.3)
    expected = curved.denoise(Y.copy(), noise_scale=scale.copy())
    for array in (Y, scale):
        array.flags.writeable = False
    for rows, noise_scale in (
        (Y, scale),
        (np.asfortranarray(Y), scale),
        (Y[::-1].copy()[::-1], scale[::-1]),
        (Y.tolist(), scale.tolist()),
        (torch.tensor(Y), 0.3),
    ):
        restored = curved.denoise(rows, noise_scale=noise_scale)
        np.testing.assert_allclose(restored, expected, atol=1e-6)


def test_the_dtype_is_kept_and_integers_and_one_row_will_do():
    pixels = (40 * X + 100).clip(0, 255).astype(np.uint8)
    vae = small_vae(sigma=12.0).fit(pixels)
    assert vae.denoise(pixels, noise_scale=3).dtype == np.float32
    assert vae.denoise(pixels[:1]).shape == (1, 6)
    assert vae.posterior(pixels[:1], noise_scale=3.0)[1].shape == (1, 2)
    for dtype in (np.float32, np.float64):
        Y = pixels[:9].astype(dtype)
        assert vae.denoise(Y).dtype == vae.denoise(Y, noise_scale=3).dtype == dtype
        for part in (*vae.posterior(Y, noise_scale=3), *vae.posterior(Y, refine=True)):
            assert part.dtype == dtype


def test_a_progress_bar_is_shown_if_asked_for(curved, capsys):
    curved.denoise(CURVE, noise_scale=0.3)
    assert "SigmaVAE" not in capsys.readouterr().err
    loud = clone(curved).set_params(verbose=1, max_iter=1).fit(CURVE)
    capsys.readouterr()
    loud.denoise(CURVE, noise_scale=0.3)
    assert "100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"noise_scale": 0.0}, "positive and finite"),
        ({"noise_scale": np.inf}, "positive and finite"),
        ({"noise_scale": [1, 2]}, r"\(4,\).*\(2,\)"),
        ({"noise_scale": np.ones((4, 1))}, r"\(4, 1\)"),
        ({"noise_scale": "guess"}, "'noise_scale' must be"),
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
def test_bad_arguments_are_refused(curved, method, given, match):
    with Unchanged(curved), pytest.raises(ValueError, match=match):
        getattr(curved, method)(CURVE, **given)


def test_posteriors_without_refinement_take_no_noise(curved):
    mean, _ = curved.posterior(CURVE, refine=False)
    np.testing.assert_array_equal(mean, curved.transform(CURVE))
    for given in ({"noise_scale": 1.0}, {"noise": "laplace"}):
        with pytest.raises(ValueError, match="refine=False takes the posterior"):
            curved.posterior(CURVE, refine=False, **given)
    rows = holes(CURVE)[0]
    mean, _ = curved.posterior(rows, refine=False)
    np.testing.assert_array_equal(mean, curved.transform(rows))


def test_far_entries_are_restored_or_refused(curved):
    far = CURVE.copy()
    far[:2, 0] = 1e6, -1e12
    assert np.isfinite(curved.denoise(far, noise_scale=0.1)).all()
    assert np.isfinite(curved.denoise(far)).all()
    for value, scale in ((1e200, 1.0), (1e30, "estimate"), (1e6, 1e-12)):
        far[0, 0] = value
        for method in (curved.denoise, curved.posterior):
            with pytest.raises(ValueError, match="too far from the training data"):
                method(far, noise_scale=scale)


@pytest.mark.parametrize("early_stopping", [False, True])
def test_the_reconstruction_error_is_that_of_draws_from_the_posterior(early_stopping):
    vae = small_vae(hidden_layer_sizes=(), early_stopping=early_stopping)
    vae.fit(low_rank_rows(4000, 6))
    # A linear model leaves a mean square of sigma^2 in each direction.
    assert vae.reconstruction_error_ == pytest.approx(NOISE, rel=0.05)
