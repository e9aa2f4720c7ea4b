"""sigma="auto": the scale that held-out rows choose while the model trains."""

import copy
import math

import numpy as np
import pytest
from linear_gaussian import log_likelihood, spectrum
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, EpochScoring
from small_vae import (
    EpochRecorder,
    Unchanged,
    callback_of,
    curved_rows,
    low_rank_rows,
    same_weights,
    small_vae,
    weights,
)
from student_noise import StudentNoise

from sklearn_sigmavae import (
    BatchedGridSearchCV,
    GeneralizedNormalNoise,
    SigmaVAE,
    sigma_path,
)
from sklearn_sigmavae._model.elbo import ANNEALED, SLOW_FALL, FallingNoise
from sklearn_sigmavae.priors import MixturePrior

X, X_VAL = low_rank_rows(600)[:400], low_rank_rows(600)[400:]


def auto_vae(**params):
    return small_vae(**{"sigma": "auto", "max_iter": 20, "batch_size": 40, **params})


# The start is exact


def test_it_starts_at_the_likeliest_ppca():
    vae = auto_vae(n_components=2, max_iter=0).fit(X, X_val=X)
    # The closed form of Tipping and Bishop, with the covariance divided by n; held-out
    # losses are means over a few draws for each row.
    noise = math.sqrt(spectrum(X)[2:].mean())
    assert vae.sigma_ == pytest.approx(noise, rel=0.02)
    eigenvalues, axes = np.linalg.eigh(np.cov(X.T, bias=True))
    loadings = axes[:, -2:] * np.sqrt(eigenvalues[-2:] - noise**2)
    expected = log_likelihood(X, X.mean(axis=0), loadings, noise)
    np.testing.assert_allclose(vae.score_samples(X), expected, atol=0.2)
    assert vae.score(X) == pytest.approx(expected.mean(), abs=0.01)
    assert vae.start_score_ == pytest.approx(expected.mean(), abs=0.1)


@pytest.mark.parametrize("n_components", [5, 8])
def test_with_a_component_for_each_feature_it_starts_at_the_normal(n_components):
    vae = auto_vae(n_components=n_components, max_iter=0).fit(X, X_val=X)
    covariance = np.cov(X.T, bias=True)
    expected = -0.5 * (5 * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + 5)
    assert vae.score(X) == pytest.approx(expected, abs=1e-3)
    # No larger scale is as good; no smaller one is better.
    assert vae.sigma_ == pytest.approx(math.sqrt(spectrum(X)[-1]), rel=0.04)


# What is chosen


CASES = {
    "defaults": {},
    "laplace": {"noise": "laplace"},
    "exponent": {"noise": GeneralizedNormalNoise(1.5)},
    "mixture": {"prior": MixturePrior(3)},
    "at random": {"init": "random"},
    "linear": {"hidden_layer_sizes": ()},
    "constant rate": {"lr_schedule": "constant"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_scale_is_the_best_for_the_held_out_rows(case):
    vae = auto_vae(**CASES[case]).fit(X, X_val=X_VAL)
    loss = vae.history_[:, "valid_loss"]
    best = vae.best_epoch_
    if best:
        assert loss[best - 1] == min(loss)
        assert vae.history_[best - 1, "sigma"] == pytest.approx(vae.sigma_)
    smallest = -vae.start_score_ if not best else loss[best - 1]
    # The loss of held-out rows as fits at a given sigma have it, and its slope.
    fixed = copy.deepcopy(vae)
    criterion = fixed.net_.criterion_
    scale, criterion.falling = criterion.scale, None
    held_out = fixed.net_.get_dataset(vae.module_.units.to_internal(X_VAL).numpy())

    def loss_at(factor):
        criterion.scale = scale * factor
        # Rows of a net are in internal units.
        return fixed.net_.validation_loss(held_out) + vae.module_.units.log_volume

    # These rows have no part outside of the axes, which the loss below leaves out.
    assert vae.module_.units.n_outside == 0
    assert loss_at(1.0) == pytest.approx(smallest, abs=1e-4)
    assert loss_at(1.05) > loss_at(1.0)
    assert loss_at(0.95) > loss_at(1.0)
    slope = (loss_at(1.001) - loss_at(0.999)) / 0.002
    assert abs(slope) < 0.02


def test_what_is_outside_of_the_axes_counts():
    rng = np.random.RandomState(0)
    wide = rng.standard_normal((500, 3)) @ rng.standard_normal((3, 40))
    wide += 0.3 * rng.standard_normal(wide.shape)
    # Loud enough that most directions are noise to the networks.
    wide *= np.linspace(0.2, 2, 40)
    vae = auto_vae(n_components=3).fit(wide[:400], X_val=wide[400:])
    other = small_vae(n_components=3, sigma=vae.sigma_, max_iter=0)
    other = other.fit(wide[:400], X_val=wide[400:])
    assert vae.score(wide[400:]) > other.score(wide[400:]) - 0.1
    best = vae.score_samples(wide[400:], refine=False).mean()
    for factor in (0.9, 1.1):
        changed = copy.deepcopy(vae)
        changed._model.scale *= factor
        assert changed.score_samples(wide[400:], refine=False).mean() < best


@pytest.mark.parametrize(("noise", "sigmas"), [(0.05, [0.1, 0.15]), (0.2, [0.15, 0.2])])
def test_it_is_about_as_good_as_the_best_of_a_grid(noise, sigmas):
    rows, new = curved_rows(900, noise=noise), curved_rows(500, noise=noise, seed=1)
    params = {"hidden_layer_sizes": (32, 32), "max_iter": 60, "learning_rate": 2e-2}
    params |= {"batch_size": 64}
    vae = auto_vae(**params).fit(rows)
    assert noise < vae.sigma_ < 1.6 * noise
    fits = [small_vae(**params, sigma=sigma).fit(rows) for sigma in sigmas]
    assert vae.score(new) > max(fit.score(new) for fit in fits) - 0.3


def test_it_is_no_worse_than_its_start():
    # Of pure noise there is nothing to learn.
    rows = np.random.RandomState(0).standard_normal((300, 6))
    vae = auto_vae().fit(rows[:200], X_val=rows[200:])
    loss = [-vae.start_score_, *vae.history_[:, "valid_loss"]]
    assert loss[vae.best_epoch_] == min(loss)


def test_units_do_not_matter():
    vae = auto_vae().fit(X)
    for factor in (2.0**-20, 2.0**10):
        scaled = auto_vae().fit(factor * X)
        assert scaled.sigma_ == factor * vae.sigma_
        assert (scaled.transform(factor * X) == vae.transform(X)).all()
    moved = auto_vae().fit(1e3 * X - 7)
    assert moved.sigma_ == pytest.approx(1e3 * vae.sigma_, rel=1e-2)


def test_fits_of_one_seed_are_equal():
    fits = [auto_vae().fit(X) for _ in range(2)]
    assert same_weights(*map(weights, fits))
    assert fits[0].sigma_ == fits[1].sigma_


def test_constant_data_and_copies_of_a_column_reach_the_lower_limit():
    vae = auto_vae(n_components=1, hidden_layer_sizes=())
    limit = r"sigma='auto' reached its lower limit"
    with (
        pytest.warns(UserWarning, match="X is constant"),
        pytest.warns(ConvergenceWarning, match=limit),
    ):
        vae.fit(np.ones((50, 3)))
    assert np.isfinite(vae.score(np.ones((50, 3))))
    rows = np.repeat(X[:, :1], 3, axis=1)
    with pytest.warns(ConvergenceWarning, match=limit):
        vae.fit(rows)
    assert vae.sigma_ == pytest.approx(1e-3 * rows.std(), rel=0.01)


# How the noise falls


class Noise(Callback):
    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self.scales = []

    def on_epoch_end(self, net, **kwargs):
        falling = net.criterion_.falling
        self.scales.append((falling.scale, falling.best))


def test_noise_falls_slowly_and_no_further_than_held_out_rows():
    vae = auto_vae(callbacks=[Noise()], sigma_annealing=1.0).fit(X, X_val=X_VAL)
    scales, best = np.array(callback_of(vae, Noise).scales).T
    assert scales[0] == pytest.approx(0.4)
    assert (np.diff(scales) <= 0).all()
    slowest = SLOW_FALL ** (-1 / (ANNEALED * 20))
    assert (scales[1:16] / scales[:15] > slowest - 1e-9).all()
    fractions = 1 - 0.1 * np.arange(20) / 20
    assert (
        scales[1:] > np.minimum(scales[:-1], fractions[1:] * best[:-1]) - 1e-9
    ).all()
    # They meet: the end is a fraction of what the rows have.
    assert scales[-1] < best[-1]


def test_losses_that_are_not_finite_do_not_let_it_fall():
    falling = FallingNoise(0.4, 1e-3, 1.0)
    falling.step(0.0)
    assert falling.scale == 0.4
    for energy in (math.nan, math.inf):
        assert not np.isfinite(falling.move(1.0, energy, 0.3, 5, 2.0))
    falling.step(ANNEALED)
    assert falling.scale == 0.4
    loss = falling.move(1.0, 0.0, 0.3, 5, 2.0)
    assert falling.best == 1e-3
    assert loss == pytest.approx(1 + 5 * math.log(1e-3 / 0.3))


@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
def test_callbacks_that_see_batches_change_nothing(noise):
    callbacks = [EpochRecorder(), EpochScoring("neg_mean_squared_error")]
    watched = auto_vae(callbacks=callbacks, noise=noise).fit(X)
    alone = auto_vae(noise=noise).fit(X)
    for name in ("train_loss", "valid_loss", "train_kl", "valid_kl", "sigma"):
        found = [vae.history_[:, name] for vae in (watched, alone)]
        np.testing.assert_allclose(*found, rtol=1e-4)
    assert watched.sigma_ == pytest.approx(alone.sigma_)
    assert max(watched.history_[:, "neg_mean_squared_error"]) < 0


def test_noise_arrives_however_far_it_has_to_fall():
    falling = FallingNoise(0.4, 1e-3, 1.0, best=1e-2)
    for progress in np.linspace(0, 1, 101)[:-1]:
        before = falling.scale
        falling.step(progress)
        # No faster than it must.
        assert before is None or falling.scale > 0.93 * before
        if progress >= 0.8:
            assert falling.scale == pytest.approx(1e-2 * (1 - 0.1 * progress))
    # Residuals may go on falling.
    falling.best = 5e-3
    falling.step(1.0)
    assert falling.scale == pytest.approx(0.9 * 5e-3)


@pytest.mark.parametrize("params", [{"lr_schedule": "constant"}, {"warm_start": True}])
def test_patience_does_not_end_the_fall(params):
    # On a line, which the start knows, with a little curve to it.
    t = np.linspace(-2, 2, 400)[:, np.newaxis]
    rng = np.random.RandomState(0)
    rows = np.hstack([t, 0.1 * t**2, 0.1 * np.sin(3 * t)])
    rows += 0.01 * rng.standard_normal(rows.shape)
    params = {"n_components": 1, "n_iter_no_change": 2, "max_iter": 60, **params}
    vae = auto_vae(**params, hidden_layer_sizes=(32,), learning_rate=1e-2).fit(rows)
    assert vae.n_iter_ == 60
    assert vae.best_epoch_ > 40
    assert vae.sigma_ < 0.05


# With the rest


def test_training_continues_at_the_scale_that_was_found():
    vae = auto_vae(warm_start=True).fit(X)
    sigma = vae.sigma_
    vae.partial_fit(X_VAL)
    assert vae.sigma_ == sigma
    vae.fit(X)
    assert vae.sigma_ == sigma
    # As it does at a number.
    number = auto_vae(warm_start=True).fit(X)
    number.set_params(sigma=sigma)
    number.partial_fit(X_VAL).fit(X)
    np.testing.assert_allclose(number.transform(X), vae.transform(X), atol=1e-5)


def test_searches_do_not_mix_it_with_numbers():
    vae = small_vae(max_iter=4)
    grid = {"sigma": ["auto", 0.2, "mle", 0.4]}
    found = [
        search(vae, grid, cv=2).fit(X) for search in (GridSearchCV, BatchedGridSearchCV)
    ]
    scores = [each.cv_results_["mean_test_score"] for each in found]
    np.testing.assert_allclose(*scores, atol=1e-5)
    assert found[0].best_params_ == found[1].best_params_


def test_searches_refuse_what_it_cannot_do_before_any_training():
    search = BatchedGridSearchCV(auto_vae(), {"beta": [1.0, 2.0]}, cv=2)
    with pytest.raises(ValueError, match="sigma='auto' needs beta=1"):
        search.fit(X)


def test_folds_and_seeds_form_a_stack():
    vae = auto_vae(max_iter=4)
    grid = {"random_state": [0, 1]}
    found = [
        search(vae, grid, cv=2).fit(X) for search in (GridSearchCV, BatchedGridSearchCV)
    ]
    scores = [each.cv_results_["mean_test_score"] for each in found]
    np.testing.assert_allclose(*scores, atol=1e-4)
    assert found[0].best_estimator_.sigma_ == found[1].best_estimator_.sigma_


def test_a_path_and_bernoulli_noise_have_no_use_for_it():
    path = sigma_path(X, [0.4, 0.2], estimator=auto_vae(), max_iter=2)
    assert [vae.sigma_ for vae in path.estimators] == [0.4, 0.2]
    vae = auto_vae(noise="bernoulli").fit((X.mean(axis=0) < X).astype(float))
    assert vae.sigma_ is None


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"early_stopping": False}, r"sigma='auto' .* early_stopping=False .* Set"),
        ({"beta": 2.0}, r"sigma='auto' needs beta=1\. Got beta=2"),
        (
            {"noise": StudentNoise()},
            r"sigma='auto' cannot be found; set it to a number",
        ),
        ({"sigma": "best"}, r"The 'sigma' parameter of SigmaVAE"),
    ],
    ids=str,
)
def test_what_it_cannot_do_is_an_error(params, message):
    vae = auto_vae().fit(X)
    vae.set_params(**params)
    with Unchanged(vae), pytest.raises(ValueError, match=message):
        vae.fit(X)


def test_a_first_chunk_does_not_choose():
    vae = auto_vae()
    with pytest.raises(ValueError, match=r"Call fit first, whose sigma_ partial_fit"):
        vae.partial_fit(X)
    assert not hasattr(vae, "sigma_")
    assert vae.fit(X).partial_fit(X).sigma_ == auto_vae().fit(X).sigma_


# With as many components as rows the start fits them all.
@pytest.mark.filterwarnings("ignore:sigma='auto' reached its lower limit")
@pytest.mark.parametrize("n_rows", [2, 3, 11])
def test_few_rows(n_rows):
    vae = SigmaVAE(2, sigma="auto", max_iter=3, random_state=0)
    vae.fit(X[:n_rows])
    assert vae.sigma_ > 0
    assert np.isfinite(vae.score(X))
