"""Fitting: what starts, continues, stops and repeats a training."""

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from skorch.callbacks import Callback
from small_vae import (
    DropoutNetwork,
    EpochRecorder,
    callback_of,
    curved_rows,
    low_rank_rows,
    same_weights,
    small_vae,
    weights,
)

from sklearn_sigmavae import DivergenceError, GeneralizedNormalNoise
from sklearn_sigmavae.networks import MLP

X = low_rank_rows()
N_SAMPLES, N_FEATURES = X.shape


# Fitting


def test_no_epochs_keep_the_start():
    vae = small_vae(max_iter=0).fit(X)
    assert vae.n_iter_ == 0
    assert len(vae.history_) == 0
    linear = small_vae(max_iter=0, hidden_layer_sizes=()).fit(X)
    np.testing.assert_allclose(vae.score(X), linear.score(X), atol=1e-6)
    assert vae.score(X) > small_vae(max_iter=0, init="random").fit(X).score(X) + 1


def test_more_components_than_features():
    vae = small_vae(n_components=N_FEATURES + 3).fit(X)
    codes = vae.transform(X)
    assert codes.shape == (N_SAMPLES, N_FEATURES + 3)
    assert vae.n_active_components_ < N_FEATURES + 3
    assert vae.score(X) > small_vae(n_components=1).fit(X).score(X)


def test_training_improves_on_the_start():
    rows = curved_rows()
    params = {"sigma": 0.1, "hidden_layer_sizes": (32,), "learning_rate": 1e-2}
    start = small_vae(**params, max_iter=0).fit(rows)
    assert (
        small_vae(**params, max_iter=20).fit(rows).score(rows) > start.score(rows) + 1
    )


def first_factor(X=X, **params):
    params = {"max_iter": 1, "hidden_layer_sizes": (8,), **params}
    return small_vae(**params).fit(X).net_.criterion_.first_factor


def test_annealing_starts_below_the_scale_of_the_data():
    rows = np.random.RandomState(0).standard_normal((200, 5))
    for sigma, ratio in (0.5, 1.0), (0.1, 4.0), (0.02, 10.0):
        assert first_factor(rows, sigma=sigma) == pytest.approx(ratio**2, rel=0.3)
        scaled = first_factor(100 * rows, sigma=100 * sigma)
        assert scaled == pytest.approx(first_factor(rows, sigma=sigma))
        laplace = first_factor(rows, sigma=sigma, noise="laplace")
        assert 1 <= laplace <= ratio
        # The same training, whichever of the two numbers makes the noise.
        assert first_factor(rows, sigma=10 * sigma, beta=0.01) == pytest.approx(
            first_factor(rows, sigma=sigma)
        )
    assert first_factor(rows, sigma=0.02, sigma_annealing=2.0) == pytest.approx(4.0)
    assert first_factor(rows, sigma=0.02, sigma_annealing=1.0) == 1.0
    assert first_factor(rows, sigma="mle") == 1.0
    # It starts at its optimum.
    assert first_factor(rows, sigma=0.02, hidden_layer_sizes=()) == 1.0


def test_annealing_ends_before_the_training_does():
    seen = []

    class Watcher(Callback):
        def on_epoch_end(self, net, **kwargs):
            seen.append(net.criterion_.kl_factor)

    params = {"sigma": 0.02, "max_iter": 10, "hidden_layer_sizes": (8,)}
    small_vae(**params, learning_rate=0.1, callbacks=[Watcher()]).fit(X)
    assert (np.diff(seen[:7]) < 0).all()
    assert seen[6:] == [1.0] * 4
    # Weights that move little in all could not follow.
    seen.clear()
    small_vae(**params, learning_rate=1e-3, callbacks=[Watcher()]).fit(X)
    assert 1 < seen[0] < 1.1


@pytest.mark.parametrize("params", [{"lr_schedule": "constant"}, {"warm_start": True}])
def test_constant_rates_do_not_anneal(params):
    params = {"sigma": 0.02, **params}
    fits = [small_vae(**params, sigma_annealing=ratio).fit(X) for ratio in (1.0, 10.0)]
    assert same_weights(*map(weights, fits))


def test_partial_fit_improves_and_its_history_goes_on():
    rows = curved_rows()
    vae = small_vae(sigma=0.1, hidden_layer_sizes=(32,), learning_rate=1e-2)
    assert vae.partial_fit(rows) is vae
    assert vae.n_iter_ == len(vae.history_) == 1
    first = vae.score(rows)
    units = vae.module_.units
    for size in (7, 120, 1, 33) * 5:
        vae.partial_fit(rows[:size])
    assert vae.n_iter_ == len(vae.history_) == 21
    assert [row["epoch"] for row in vae.history_] == list(range(1, 22))
    assert vae.score(rows) > first + 0.5
    assert np.array_equal(vae.module_.units.offset, units.offset)
    assert np.array_equal(vae.module_.units.scale, units.scale)


def test_partial_fit_draws_new_noise_in_each_call():
    # At a vanishing rate the weights stay, so the losses differ by the draws alone.
    vae = small_vae(learning_rate=1e-12)
    losses = {vae.partial_fit(X).history_[-1, "train_loss"] for _ in range(3)}
    assert len(losses) == 3


def test_partial_fit_is_reproducible():
    fitted = [small_vae() for _ in range(2)]
    for vae in fitted:
        vae.partial_fit(X[:30]).partial_fit(X[30:])
    assert same_weights(*map(weights, fitted))


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_fit_starts_afresh(vae, method):
    again = small_vae()
    getattr(again, method)(X[:, :3])
    again.fit(X)
    assert again.n_features_in_ == N_FEATURES
    assert again.n_iter_ == 3
    assert same_weights(weights(again), weights(vae))


def test_warm_start_goes_on_from_the_last_weights():
    vae = small_vae(warm_start=True).fit(X)
    before = weights(vae)
    vae.set_params(max_iter=0).fit(X)
    assert same_weights(weights(vae), before)
    assert vae.n_iter_ == 3
    vae.set_params(max_iter=2, early_stopping=False).fit(X)
    assert vae.n_iter_ == len(vae.history_) == 5
    assert not same_weights(weights(vae), before)


def test_warm_start_takes_another_sigma():
    vae = small_vae(warm_start=True).fit(X)
    before = weights(vae)
    vae.set_params(sigma=1.0, max_iter=0).fit(X)
    assert vae.sigma_ == 1.0
    assert same_weights(weights(vae), before)
    draws = [vae.sample(4000, add_noise=add, random_state=0) for add in (True, False)]
    np.testing.assert_allclose(np.subtract(*draws).std(), 1.0, rtol=0.05)


def test_warm_start_takes_a_multiple_of_an_array_of_sigma():
    sigma = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    vae = small_vae(warm_start=True, sigma=sigma).fit(X)
    vae.set_params(sigma=3 * sigma).fit(X)
    np.testing.assert_array_equal(vae.sigma_, 3 * sigma)
    vae.set_params(sigma=sigma[::-1])
    with pytest.raises(ValueError, match="ratios of sigma"):
        vae.fit(X)
    np.testing.assert_array_equal(vae.sigma_, 3 * sigma)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("n_components", 2, 3),
        ("n_components", np.int64(2), np.int64(3)),
        ("hidden_layer_sizes", (8,), (9,)),
        ("hidden_layer_sizes", [8], [9]),
        ("hidden_layer_sizes", np.array([8]), np.array([9])),
        ("activation", "silu", "tanh"),
        ("noise", "gaussian", "laplace"),
        ("noise", GeneralizedNormalNoise(2.0), GeneralizedNormalNoise(3.0)),
        ("linear_path", True, False),
        ("network", MLP((8,)), DropoutNetwork()),
        ("network", MLP((8,)), MLP((9,))),
        ("network", MLP([8]), MLP([9])),
    ],
    ids=lambda value: str(value).replace("\n", ""),
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_what_shapes_the_model_cannot_change_in_between(method, name, before, after):
    vae = small_vae(warm_start=True, **{name: before}).fit(X)
    codes = vae.transform(X)
    vae.set_params(**{name: after})
    with pytest.raises(ValueError, match=name):
        getattr(vae, method)(X)
    assert np.array_equal(vae.transform(X), codes)
    vae.set_params(warm_start=False, init="random").fit(X)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("n_components", 2, np.int64(2)),
        ("hidden_layer_sizes", (8,), [8]),
        ("hidden_layer_sizes", (8,), 8),
        ("noise", GeneralizedNormalNoise(2.0), GeneralizedNormalNoise(2.0)),
        ("network", MLP((8,)), MLP((8,))),
    ],
    ids=str,
)
def test_other_spellings_of_the_same_model_are_no_change(name, before, after):
    vae = small_vae(warm_start=True, **{name: before}).fit(X)
    vae.set_params(**{name: after}).fit(X)
    assert vae.n_iter_ == 6


def test_rows_held_out_by_the_user_replace_the_split():
    held_out = low_rank_rows(17, seed=1)
    vae = small_vae(callbacks=[EpochRecorder()]).fit(X, X_val=held_out)
    assert callback_of(vae, EpochRecorder).sizes == [(N_SAMPLES, 17)] * 3
    vae.fit(X)
    assert callback_of(vae, EpochRecorder).sizes == [(N_SAMPLES - 6, 6)] * 3
    vae.set_params(validation_fraction=0.5).fit(X)
    assert callback_of(vae, EpochRecorder).sizes == [(30, 30)] * 3
    vae.set_params(early_stopping=False).fit(X)
    assert callback_of(vae, EpochRecorder).sizes == [(N_SAMPLES, None)] * 3


class _Spoiler(Callback):
    """Spoils the weights before the fourth epoch."""

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 4:
            for parameter in net.module_.parameters():
                parameter.data.mul_(2)


def test_held_out_rows_decide_which_epoch_is_kept():
    rows, held_out = curved_rows(40), curved_rows(40, seed=1)
    vae = small_vae(
        sigma=0.1,
        init="random",
        hidden_layer_sizes=(32,),
        learning_rate=1e-2,
        lr_schedule="constant",
        max_iter=5,
        callbacks=[EpochRecorder(), _Spoiler()],
    )
    vae.fit(rows, X_val=held_out)
    losses = vae.history_[:, "valid_loss"]
    assert np.argmin(losses) == 2
    assert same_weights(weights(vae), callback_of(vae, EpochRecorder).weights[2])
    score = vae.score_samples(held_out, refine=False).mean()
    np.testing.assert_allclose(-score, losses[2], rtol=0.02)
    with pytest.warns(ConvergenceWarning, match="ended below its start"):
        vae.set_params(early_stopping=False).fit(rows, X_val=held_out)
    assert vae.history_[:, "valid_loss"] == losses
    assert same_weights(weights(vae), callback_of(vae, EpochRecorder).weights[-1])


def test_the_start_is_kept_where_training_makes_it_worse():
    rows, held_out = X[:40], X[40:]
    params = {"learning_rate": 1.0, "lr_schedule": "constant", "max_iter": 10}
    start = small_vae(max_iter=0).fit(rows)
    kept = small_vae(**params).fit(rows, X_val=held_out)
    assert kept.score(held_out) >= start.score(held_out) - 0.05
    assert kept.best_epoch_ == 0
    with pytest.raises(DivergenceError, match=r"the bound fell from -\d.* to -\d"):
        small_vae(**params, early_stopping=False).fit(rows)


def test_a_constant_rate_stops_without_improvement_and_one_cycle_does_not():
    params = {"learning_rate": 1e-12, "n_iter_no_change": 3, "max_iter": 8}
    assert small_vae(lr_schedule="constant", **params).fit(X).n_iter_ == 3
    assert small_vae(lr_schedule="one_cycle", **params).fit(X).n_iter_ == 8
    vae = small_vae(lr_schedule="constant", early_stopping=False, **params).fit(X)
    assert vae.n_iter_ == 8


def test_improvements_below_tol_do_not_count():
    rows = curved_rows()
    params = {
        "sigma": 0.1,
        "hidden_layer_sizes": (32,),
        "learning_rate": 1e-2,
        "lr_schedule": "constant",
        "n_iter_no_change": 3,
    }
    vae = small_vae(tol=1e3, max_iter=8, **params).fit(rows)
    assert vae.n_iter_ == 3
    start = small_vae(**params, max_iter=0).fit(rows)
    assert vae.score(rows) > start.score(rows) + 1
    with pytest.warns(ConvergenceWarning, match="still rising when max_iter"):
        assert small_vae(tol=0.0, max_iter=8, **params).fit(rows).n_iter_ == 8


def test_fit_does_not_change_parameters():
    sigma = [0.1, 0.2, 0.3, 0.4, 0.5]
    recorder, network = EpochRecorder(), MLP([8])
    vae = small_vae(sigma=sigma, network=network, callbacks=[recorder])
    before = vae.get_params()
    vae.fit(X)
    after = vae.get_params()
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert sigma == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert network.hidden_layer_sizes == [8]
    assert not hasattr(recorder, "weights")


def test_parameters_set_after_fit_do_not_change_the_fitted_model():
    sigma = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    noise = GeneralizedNormalNoise(2.0)
    vae = small_vae(sigma=sigma, noise=noise).fit(X)
    score, codes = vae.score(X), vae.transform(X)
    vae.set_params(sigma=9.0, n_components=4, noise__exponent=1.0, beta=7.0)
    vae.set_params(hidden_layer_sizes=(3, 3))
    sigma *= 2
    assert vae.score(X) == score
    assert np.array_equal(vae.transform(X), codes)
    assert vae.inverse_transform(codes).shape == X.shape


# Randomness


def _numpy_state():
    _, keys, position, *_ = np.random.mtrand._rand.get_state()
    return [*keys, position]


@pytest.mark.parametrize(
    "params", [{}, {"network": DropoutNetwork()}, {"init": "random"}], ids=str
)
def test_fits_are_reproducible_and_leave_global_random_states(params):
    torch_state = torch.random.get_rng_state()
    numpy_state = _numpy_state()
    first = small_vae(**params).fit(X)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert np.array_equal(_numpy_state(), numpy_state)
    torch.rand(5)
    again = small_vae(**params).fit(X)
    assert same_weights(weights(first), weights(again))
    torch_state = torch.random.get_rng_state()
    again.transform(X)
    again.score(X)
    again.sample(3, random_state=0)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert np.array_equal(_numpy_state(), numpy_state)
    other = small_vae(**{**params, "random_state": 1}).fit(X)
    assert not same_weights(weights(first), weights(other))


def test_a_random_state_instance_moves_on():
    random_state = np.random.RandomState(0)
    first, second = (small_vae(random_state=random_state).fit(X) for _ in range(2))
    assert not same_weights(weights(first), weights(second))
    again = small_vae(random_state=np.random.RandomState(0)).fit(X)
    assert same_weights(weights(first), weights(again))


def test_fits_in_threads_are_those_of_one_thread():
    def fit(seed):
        return weights(small_vae(random_state=seed, max_iter=8).fit(X))

    seeds = range(6)
    sequential = [fit(seed) for seed in seeds]
    state = torch.random.get_rng_state()
    with ThreadPoolExecutor(2) as pool:
        concurrent = list(pool.map(fit, seeds))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(map(same_weights, sequential, concurrent))


def test_a_continued_fit_takes_the_new_settings_of_the_optimizer():
    def settings(vae):
        return vae.net_.optimizer_.param_groups[0]["weight_decay"]

    vae = small_vae(optimizer=partial(torch.optim.Adam, weight_decay=0.1)).fit(X)
    assert settings(vae) == 0.1
    vae.set_params(optimizer=partial(torch.optim.Adam, weight_decay=0.7))
    steps = vae.partial_fit(X).net_.optimizer_.state_dict()["state"][0]["step"]
    assert settings(vae) == 0.7
    assert steps > len(X) / vae.batch_size


def test_a_failed_partial_fit_draws_nothing():
    vae = small_vae().partial_fit(X)
    other = copy.deepcopy(vae)
    state = torch.random.get_rng_state()
    with pytest.raises(ValueError, match="diverged"):
        vae.set_params(learning_rate=1e30, optimizer="sgd").partial_fit(X)
    assert torch.equal(torch.random.get_rng_state(), state)
    vae.set_params(learning_rate=other.learning_rate, optimizer="adam").partial_fit(X)
    assert same_weights(weights(vae), weights(other.partial_fit(X)))


def test_optimizers_that_need_a_closure_are_refused():
    with pytest.raises(ValueError, match="LBFGS"):
        small_vae(optimizer=torch.optim.LBFGS).fit(X)
