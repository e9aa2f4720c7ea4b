"""The estimator's contracts: what a scikit-learn user relies on."""

import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback
from small_vae import (
    NOISE,
    DropoutNetwork,
    EpochRecorder,
    callback_of,
    curved_rows,
    low_rank_rows,
    same_weights,
    small_vae,
    weights,
)

from sklearn_sigmavae import BernoulliNoise, GeneralizedNormalNoise
from sklearn_sigmavae.networks import MLP

X = low_rank_rows()
N_SAMPLES, N_FEATURES = X.shape
NOISES = ["gaussian", "laplace", "bernoulli", GeneralizedNormalNoise(exponent=3.0)]


@pytest.fixture(scope="module")
def vae():
    """A fitted estimator, which tests must not refit."""
    return small_vae().fit(X)


# Shapes, dtypes, values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_outputs_have_the_shape_and_dtype_of_the_input(noise, dtype):
    data = ((X > 1) if noise == "bernoulli" else X).astype(dtype)
    vae = small_vae(noise=noise)
    assert vae.fit(data) is vae
    mean, std = vae.posterior(data)
    for codes in (vae.transform(data), vae.kl_divergence(data), mean, std):
        assert codes.shape == (N_SAMPLES, 2)
        assert codes.dtype == dtype
        assert np.isfinite(codes).all()
    decoded = vae.inverse_transform(mean)
    assert decoded.shape == (N_SAMPLES, N_FEATURES)
    assert decoded.dtype == dtype
    assert vae.fit_transform(data).dtype == dtype
    scores = vae.score_samples(data)
    assert scores.shape == (N_SAMPLES,)
    assert scores.dtype == np.float64
    assert isinstance(vae.score(data), float)
    for add_noise in (False, True):
        drawn = vae.sample(7, add_noise=add_noise, random_state=0)
        assert drawn.shape == (7, N_FEATURES)
        assert np.isfinite(drawn).all()


def test_integers_are_data_like_any_other():
    integers = np.round(10 * X).astype(np.int64)
    vae = small_vae(sigma=3.0).fit(integers)
    expected = small_vae(sigma=3.0).fit(integers.astype(np.float64))
    assert vae.transform(integers).dtype == np.float64
    assert np.array_equal(vae.transform(integers), expected.transform(1.0 * integers))


def test_bernoulli_samples_are_zeros_and_ones_and_means_are_probabilities():
    binary = (X > 1).astype(float)
    vae = small_vae(noise="bernoulli").fit(binary)
    drawn = vae.sample(50, add_noise=True, random_state=0)
    assert set(np.unique(drawn)) == {0.0, 1.0}
    means = vae.sample(50, random_state=0)
    assert means.min() > 0
    assert means.max() < 1
    assert len(np.unique(means)) > 2
    assert vae.sigma_ is None
    assert isinstance(vae.noise_, BernoulliNoise)


def test_inference_agrees_with_itself(vae):
    mean, std = vae.posterior(X)
    assert np.array_equal(vae.transform(X), mean)
    assert (std > 0).all()
    expected = 0.5 * (mean**2 + std**2 - 1 - 2 * np.log(std))
    np.testing.assert_allclose(vae.kl_divergence(X), expected, atol=1e-12)
    assert vae.kl_divergence(X).min() >= 0
    assert vae.score(X) == vae.score_samples(X).mean()
    assert vae.n_active_components_ == (vae.kl_divergence(X).mean(0) > 0.01).sum() == 2


def test_fit_transform_is_fit_then_transform(vae):
    assert np.array_equal(small_vae().fit_transform(X), vae.transform(X))


def test_inverse_transform_reconstructs(vae):
    error = X - vae.inverse_transform(vae.transform(X))
    assert np.square(error).mean() < 0.1 * X.var(axis=0).mean()


@pytest.mark.parametrize(
    "method", ["transform", "score_samples", "kl_divergence", "inverse_transform"]
)
def test_rows_do_not_see_each_other(vae, method):
    rows = vae.transform(X) if method == "inverse_transform" else X
    infer = getattr(vae, method)
    alone = np.concatenate([infer(rows[i : i + 1]) for i in range(len(rows))])
    np.testing.assert_allclose(infer(rows), alone, rtol=0, atol=1e-12)
    np.testing.assert_allclose(infer(rows)[::-1], infer(rows[::-1]), atol=1e-12)


def test_score_is_deterministic(vae):
    first = vae.score_samples(X)
    torch.rand(3)
    assert np.array_equal(first, vae.score_samples(X))


def test_importance_weighted_score_is_tighter_and_one_sample_is_the_bound():
    rows = curved_rows()
    params = {"sigma": 0.1, "hidden_layer_sizes": (32,), "learning_rate": 1e-2}
    vae = small_vae(**params, max_iter=10).fit(rows)
    bound = vae.score_samples(rows)
    one = vae.score_samples(rows, n_importance_samples=1)
    np.testing.assert_allclose(one, bound, atol=1e-3)
    assert vae.score_samples(rows, n_importance_samples=32).mean() > bound.mean() + 0.01


@pytest.mark.parametrize(
    "variant",
    [
        lambda rows: np.asfortranarray(rows),
        lambda rows: np.repeat(rows, 2, axis=1)[:, ::2],
        lambda rows: rows[::-1].copy()[::-1],
        lambda rows: rows.tolist(),
        lambda rows: rows.astype(">f8"),
        lambda rows: np.frombuffer(rows.tobytes()).reshape(rows.shape),
    ],
    ids=["fortran", "strided", "reversed", "list", "big-endian", "read-only"],
)
def test_memory_layout_makes_no_difference(vae, variant):
    rows = variant(X)
    fitted = small_vae().fit(rows)
    assert same_weights(weights(fitted), weights(vae))
    assert np.array_equal(fitted.transform(rows), vae.transform(X))
    assert np.array_equal(fitted.score_samples(rows), vae.score_samples(X))


def test_data_frames_make_no_difference(vae):
    frame = pd.DataFrame(X, columns=list("abcde"))
    fitted = small_vae().fit(frame)
    assert list(fitted.feature_names_in_) == list("abcde")
    assert np.array_equal(fitted.transform(frame), vae.transform(X))
    assert np.array_equal(fitted.score_samples(frame), vae.score_samples(X))


def test_input_is_not_modified():
    rows = X.copy()
    vae = small_vae().fit(rows)
    codes = vae.transform(rows)
    kept = codes.copy()
    vae.inverse_transform(codes)
    vae.score(rows)
    assert np.array_equal(rows, X)
    assert np.array_equal(codes, kept)


# Sampling


def test_samples_are_reproducible(vae):
    for add_noise in (False, True):
        first, again, other = (
            vae.sample(5, add_noise=add_noise, random_state=seed) for seed in (0, 0, 1)
        )
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)


@pytest.mark.parametrize("noise", [n for n in NOISES if n != "bernoulli"], ids=str)
def test_added_noise_has_the_variance_of_the_noise(noise):
    vae = small_vae(noise=noise, sigma=[0.1, 0.2, 0.3, 0.4, 0.5]).fit(X)
    n_samples = 20_000
    clean, noisy = (
        vae.sample(n_samples, add_noise=add_noise, random_state=0)
        for add_noise in (False, True)
    )
    residual = noisy - clean
    p = vae.noise_.exponent
    factor = p ** (2 / p) * math.gamma(3 / p) / math.gamma(1 / p)
    expected = factor * np.square([0.1, 0.2, 0.3, 0.4, 0.5])
    # A variance estimate is off by sqrt((kurtosis - 1) / n), 1.6 % for the Laplace.
    np.testing.assert_allclose(residual.var(axis=0), expected, rtol=0.07)
    bound = 5 * np.sqrt(expected / n_samples)
    assert (np.abs(residual.mean(axis=0)) < bound).all()


def test_samples_look_like_the_data():
    rows = low_rank_rows(400)
    vae = small_vae(hidden_layer_sizes=(), max_iter=0).fit(rows)
    drawn = vae.sample(20_000, add_noise=True, random_state=0)
    np.testing.assert_allclose(drawn.mean(axis=0), rows.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(rows.T), atol=0.15)


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


def test_fit_after_partial_fit_starts_afresh(vae):
    again = small_vae().partial_fit(X).partial_fit(X)
    again.fit(X)
    assert again.n_iter_ == 3
    assert same_weights(weights(again), weights(vae))


def test_fit_without_warm_start_starts_afresh(vae):
    again = small_vae().fit(X[:, :3]).fit(X)
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
    mean, _ = vae.posterior(X)
    # At these weights the score falls with sigma as the density's constant says.
    noise = vae.sample(4000, add_noise=True, random_state=0) - vae.sample(
        4000, random_state=0
    )
    np.testing.assert_allclose(noise.std(), 1.0, rtol=0.05)
    assert np.isfinite(mean).all()


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
                parameter.data.mul_(3)


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
    np.testing.assert_allclose(-vae.score(held_out), losses[2], rtol=0.02)
    vae.set_params(early_stopping=False).fit(rows, X_val=held_out)
    assert vae.history_[:, "valid_loss"] == losses
    assert same_weights(weights(vae), callback_of(vae, EpochRecorder).weights[-1])


def test_the_start_is_kept_where_training_makes_it_worse():
    rows, held_out = X[:40], X[40:]
    params = {"learning_rate": 1.0, "lr_schedule": "constant", "max_iter": 10}
    start = small_vae(max_iter=0).fit(rows)
    kept = small_vae(**params).fit(rows, X_val=held_out)
    assert kept.score(held_out) >= start.score(held_out) - 0.05
    ruined = small_vae(**params, early_stopping=False).fit(rows)
    assert ruined.score(held_out) < start.score(held_out) - 1


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
    other = small_vae(**{**params, "random_state": 1}).fit(X)
    assert not same_weights(weights(first), weights(other))


def test_inference_leaves_global_random_states(vae):
    torch_state = torch.random.get_rng_state()
    numpy_state = _numpy_state()
    vae.transform(X)
    vae.score(X)
    vae.sample(3, random_state=0)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert np.array_equal(_numpy_state(), numpy_state)


def test_a_random_state_instance_moves_on():
    random_state = np.random.RandomState(0)
    first, second = (small_vae(random_state=random_state).fit(X) for _ in range(2))
    assert not same_weights(weights(first), weights(second))
    again = small_vae(random_state=np.random.RandomState(0)).fit(X)
    assert same_weights(weights(first), weights(again))


def test_a_failed_fit_leaves_the_global_random_state():
    state = torch.random.get_rng_state()
    with pytest.raises(ValueError, match="learning_rate"):
        small_vae(learning_rate=1e20, optimizer="sgd", early_stopping=False).fit(X)
    assert torch.equal(torch.random.get_rng_state(), state)


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


# Copies


def _joblib_copy(estimator, path):
    joblib.dump(estimator, path / "vae.joblib")
    return joblib.load(path / "vae.joblib")


@pytest.mark.parametrize(
    "copy_of",
    [
        lambda estimator, path: copy.deepcopy(estimator),
        lambda estimator, path: pickle.loads(pickle.dumps(estimator)),
        _joblib_copy,
    ],
    ids=["deepcopy", "pickle", "joblib"],
)
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"sigma": "mle"},
        {"network": DropoutNetwork(), "noise": "laplace"},
        {"callbacks": [EpochRecorder()], "optimizer": "sgd"},
    ],
    ids=["defaults", "mle", "dropout", "callbacks"],
)
def test_copies_are_the_same_model_and_independent(copy_of, params, tmp_path):
    vae = small_vae(**params).fit(X)
    copied = copy_of(vae, tmp_path)
    assert copied.module_ is copied.net_.module_
    assert copied.module_ is not vae.module_
    assert np.array_equal(copied.transform(X), vae.transform(X))
    assert np.array_equal(copied.score_samples(X), vae.score_samples(X))
    assert np.array_equal(
        copied.sample(3, add_noise=True, random_state=0),
        vae.sample(3, add_noise=True, random_state=0),
    )
    assert copied.n_iter_ == vae.n_iter_
    assert np.array_equal(copied.sigma_, vae.sigma_)
    kept = vae.transform(X)
    # Optimizers that lost their parameters would leave the weights as they are.
    copied.partial_fit(X)
    assert not np.array_equal(copied.transform(X), kept)
    assert np.array_equal(vae.transform(X), kept)


def test_a_copy_trains_on_as_the_original_does():
    vae = small_vae(random_state=0).partial_fit(X)
    copied = pickle.loads(pickle.dumps(vae))
    assert same_weights(weights(vae.partial_fit(X)), weights(copied.partial_fit(X)))


def test_an_unfitted_estimator_pickles():
    vae = pickle.loads(pickle.dumps(small_vae(callbacks=[EpochRecorder()])))
    assert vae.fit(X).n_iter_ == 3


def test_clone_is_unfitted_and_fits_the_same(vae):
    cloned = clone(vae)
    assert not hasattr(cloned, "net_")
    assert not hasattr(cloned, "n_features_in_")
    assert same_weights(weights(cloned.fit(X)), weights(vae))


def test_a_pickle_holds_weights_and_optimizer_but_no_data():
    vae = small_vae(hidden_layer_sizes=(128, 128)).fit(X)
    blob = pickle.dumps(vae)
    parameters = list(vae.module_.parameters())
    n_bytes = sum(4 * parameter.numel() for parameter in parameters)
    # The weights once, Adam's two moments, and the structure of some tens of objects.
    assert 3 * n_bytes < len(blob) < 3.2 * n_bytes + 60_000
    assert max(parameters, key=torch.numel).detach().numpy().tobytes() in blob
    internal = vae.module_.units.to_internal(X).numpy()
    for rows in (X, internal):
        for row in rows:
            for dtype in (np.float32, np.float64):
                assert row.astype(dtype).tobytes() not in blob


# The rest of scikit-learn


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_set_output(library, vae):
    container = pytest.importorskip(library)
    fitted = small_vae().set_output(transform=library)
    frame = fitted.fit_transform(X)
    assert isinstance(frame, container.DataFrame)
    assert list(frame.columns) == ["sigmavae0", "sigmavae1"]
    assert np.array_equal(frame.to_numpy(), vae.transform(X))
    assert isinstance(fitted.posterior(X)[0], np.ndarray)
    assert fitted.inverse_transform(frame.to_numpy()).shape == X.shape


def test_polars_frames_are_data(vae):
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(X, schema=list("abcde"))
    fitted = small_vae().fit(frame)
    assert list(fitted.feature_names_in_) == list("abcde")
    assert np.array_equal(fitted.transform(frame), vae.transform(X))


def test_feature_names(vae):
    assert list(vae.get_feature_names_out()) == ["sigmavae0", "sigmavae1"]
    assert not hasattr(vae, "feature_names_in_")
    frame = pd.DataFrame(X, columns=list("abcde"))
    fitted = small_vae().fit(frame)
    with pytest.raises(ValueError, match="feature names"):
        fitted.transform(frame[list("edcba")])
    with pytest.warns(UserWarning, match="valid feature names"):
        fitted.transform(X)


def test_html_repr_links_to_the_documentation(vae):
    page = "en/stable/generated/sklearn_sigmavae.SigmaVAE.html"
    for estimator in (small_vae(), vae):
        assert f"https://sklearn-sigmavae.readthedocs.io/{page}" in (
            estimator._repr_html_()
        )
    assert "SigmaVAE" in make_pipeline(StandardScaler(), vae)._repr_html_()


def test_repr_shows_what_is_not_default():
    assert repr(small_vae(sigma=0.25)).startswith("SigmaVAE(")
    assert "sigma=0.25" in repr(small_vae(sigma=0.25))


def test_pipeline_scores_and_inverts():
    pipeline = make_pipeline(StandardScaler(), small_vae()).fit(X)
    scaled = StandardScaler().fit_transform(X)
    assert pipeline.score(X) == small_vae().fit(scaled).score(scaled)
    codes = pipeline.transform(X)
    assert codes.shape == (N_SAMPLES, 2)
    assert pipeline.inverse_transform(codes).shape == X.shape
    y = codes[:, 0] > 0
    assert make_pipeline(small_vae(), LogisticRegression()).fit(X, y).score(X, y) > 0.9


def test_column_transformer_and_feature_union():
    frame = pd.DataFrame(X, columns=list("abcde"))
    columns = ColumnTransformer(
        [("vae", small_vae(), ["a", "b", "c"]), ("rest", "passthrough", ["d", "e"])]
    ).set_output(transform="pandas")
    out = columns.fit_transform(frame)
    codes = ["vae__sigmavae0", "vae__sigmavae1"]
    assert list(out.columns) == [*codes, "rest__d", "rest__e"]
    expected = small_vae().fit_transform(frame[["a", "b", "c"]])
    assert np.array_equal(out.to_numpy()[:, :2], expected)
    union = FeatureUnion([("a", small_vae()), ("b", small_vae(n_components=1))])
    assert union.fit_transform(X).shape == (N_SAMPLES, 3)


def test_grid_search_finds_the_noise_of_the_data():
    sigmas = [0.03, NOISE, 3.0]
    rows = low_rank_rows(120)
    search = GridSearchCV(small_vae(), {"sigma": sigmas}, cv=3, n_jobs=2)
    search.fit(rows)
    assert search.best_params_ == {"sigma": NOISE}
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.score(rows) == search.best_estimator_.score(rows)


def test_parameters_of_parts_are_searchable():
    parts = {"noise": GeneralizedNormalNoise(), "network": MLP((8,))}
    # Otherwise all networks might stay at the same start.
    vae = small_vae(**parts, early_stopping=False)
    grid = {"noise__exponent": [1.0, 2.0], "network__hidden_layer_sizes": [(4,), (6,)]}
    search = GridSearchCV(vae, grid, cv=2, n_jobs=1).fit(X)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert len(set(search.cv_results_["mean_test_score"])) == 4
    best = search.best_estimator_
    assert best.noise_.exponent == search.best_params_["noise__exponent"]
    width = best.module_.encoder.network[0].out_features
    assert (width,) == search.best_params_["network__hidden_layer_sizes"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_components", np.int64(2)),
        ("max_iter", np.int64(3)),
        ("batch_size", np.int32(16)),
        ("hidden_layer_sizes", (np.int64(8),)),
        ("hidden_layer_sizes", np.array([8])),
        ("sigma", np.array(NOISE)),
        ("beta", np.float64(1.0)),
        ("linear_path", np.bool_(True)),
        ("random_state", np.int64(0)),
    ],
    ids=str,
)
def test_numpy_numbers_are_numbers(vae, name, value):
    # Searches draw their candidates from arrays.
    fitted = small_vae(**{name: value}).fit(X)
    assert same_weights(weights(fitted), weights(vae))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_the_modes_of_torch_around_a_fit_make_no_difference(method, context):
    expected = getattr(small_vae(), method)(X)
    with context():
        fitted = getattr(small_vae(), method)(X)
        codes = fitted.transform(X)
    assert same_weights(weights(fitted), weights(expected))
    assert np.array_equal(codes, expected.transform(X))
    fitted.partial_fit(X)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_default_dtype_of_torch_makes_no_difference(vae, dtype):
    expected = small_vae().fit(X.astype(dtype))
    torch.set_default_dtype(torch.float64)
    try:
        fitted = small_vae().fit(X.astype(dtype))
        codes = fitted.transform(X.astype(dtype))
    finally:
        torch.set_default_dtype(torch.float32)
    assert codes.dtype == dtype
    np.testing.assert_allclose(
        codes, expected.transform(X.astype(dtype)), rtol=0, atol=1e-4
    )


def test_refitting_forgets_earlier_calls_of_partial_fit():
    again = small_vae().partial_fit(X).partial_fit(X).fit(X).partial_fit(X)
    assert same_weights(weights(again), weights(small_vae().fit(X).partial_fit(X)))


# Units


UNIT_PARAMS = [
    {"max_iter": 5},
    {"max_iter": 5, "noise": "laplace"},
    {"max_iter": 5, "sigma": [0.1, 0.2, 0.3, 0.4, 0.5]},
    {"max_iter": 5, "init": "random"},
]


def _scaled(params, factor):
    sigma = factor * np.asarray(params.get("sigma", NOISE))
    return small_vae(**{**params, "sigma": sigma if sigma.ndim else float(sigma)})


@pytest.mark.parametrize("params", UNIT_PARAMS, ids=str)
@pytest.mark.parametrize("factor", [1e-3, 1e3, 1e-100, 1e100])
def test_units_do_not_matter(params, factor):
    vae = _scaled(params, 1.0).fit(X)
    scaled = _scaled(params, factor).fit(factor * X)
    np.testing.assert_allclose(
        scaled.transform(factor * X), vae.transform(X), atol=1e-3
    )
    shift = N_FEATURES * np.log(factor)
    np.testing.assert_allclose(
        scaled.score(factor * X) + shift, vae.score(X), atol=1e-3
    )
    np.testing.assert_allclose(np.ravel(scaled.sigma_), factor * np.ravel(vae.sigma_))
    np.testing.assert_allclose(
        scaled.sample(5, add_noise=True, random_state=0),
        factor * vae.sample(5, add_noise=True, random_state=0),
        atol=1e-3 * factor,
    )


@pytest.mark.parametrize("params", UNIT_PARAMS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("factor", [2.0**-10, 2.0**10])
def test_powers_of_two_change_nothing_at_all(params, dtype, factor):
    rows = X.astype(dtype)
    vae = _scaled(params, 1.0).fit(rows)
    scaled = _scaled(params, factor).fit(dtype(factor) * rows)
    codes = scaled.transform(dtype(factor) * rows)
    assert codes.dtype == dtype
    assert np.array_equal(codes, vae.transform(rows))


def test_small_spreads_far_from_zero_are_no_trouble():
    params = {"max_iter": 5}
    vae = small_vae(**params).fit(X)
    far = 1e4 + 1e-3 * X
    shifted = small_vae(**params, sigma=1e-3 * NOISE).fit(far)
    np.testing.assert_allclose(shifted.transform(far), vae.transform(X), atol=1e-3)
    score = shifted.score(far) + N_FEATURES * np.log(1e-3)
    np.testing.assert_allclose(score, vae.score(X), atol=1e-3)
    decoded = (shifted.inverse_transform(shifted.transform(far)) - 1e4) / 1e-3
    expected = vae.inverse_transform(vae.transform(X))
    np.testing.assert_allclose(decoded, expected, atol=1e-3)


def test_constant_columns_are_no_trouble():
    rows = np.column_stack([X, np.full(N_SAMPLES, 7.0), np.zeros(N_SAMPLES)])
    vae = small_vae().fit(rows)
    decoded = vae.inverse_transform(vae.transform(rows))
    assert np.abs(decoded[:, -2] - 7).max() < NOISE
    # Each constant column adds at most the density's maximum.
    added = vae.score(rows) - small_vae().fit(X).score(X)
    most = -np.log(NOISE * np.sqrt(2 * np.pi)) * 2
    assert most - 0.5 < added < most + 0.5


@pytest.mark.parametrize("value", [5.0, 0.1, 1 / 3, 1e-5])
@pytest.mark.parametrize("n_samples", [2, 7, 60, 101])
def test_constant_data_warns_and_stays_finite(value, n_samples):
    # The mean of equal numbers may differ from them by a rounding error.
    rows = np.full((n_samples, 3), value)
    with pytest.warns(UserWarning, match="constant"):
        vae = small_vae().fit(rows)
    assert np.isfinite(vae.score(rows))
    assert vae.n_active_components_ == 0
    np.testing.assert_allclose(
        vae.inverse_transform(vae.transform(rows)), rows, atol=0.1
    )


# Scales


def test_the_learned_scale_is_that_of_the_noise():
    rows = low_rank_rows(400, 10, noise=0.5)
    params = {"sigma": "mle", "hidden_layer_sizes": (), "batch_size": 100}
    vae = small_vae(**params, max_iter=20).fit(rows)
    assert isinstance(vae.sigma_, float)
    np.testing.assert_allclose(vae.sigma_, 0.5, rtol=0.05)
    scaled = small_vae(**params, max_iter=20).fit(1e3 * rows)
    np.testing.assert_allclose(scaled.sigma_, 1e3 * vae.sigma_, rtol=1e-4)
    # Its score is a maximum over the scale at these weights.
    best = vae.score(rows)
    for factor in (0.9, 1.1):
        other = copy.deepcopy(vae)
        other.sigma_ = factor * vae.sigma_
        assert other.score(rows) < best - 0.01


def test_the_learned_scale_without_a_maximum_stops_at_a_floor():
    rows = np.repeat(X[:, :1], 3, axis=1)
    vae = small_vae(sigma="mle", n_components=1, hidden_layer_sizes=(), max_iter=1)
    with pytest.warns(ConvergenceWarning, match="sigma='mle'"):
        vae.fit(rows)
    np.testing.assert_allclose(vae.sigma_, 1e-3 * rows.std(), rtol=1e-6)


def test_scales_per_feature_are_scales_of_features():
    factors = np.array([1e-2, 0.1, 1.0, 10.0, 300.0])
    vae = small_vae().fit(X)
    scaled = small_vae(sigma=NOISE * factors).fit(X * factors)
    assert isinstance(scaled.sigma_, np.ndarray)
    np.testing.assert_array_equal(scaled.sigma_, NOISE * factors)
    np.testing.assert_allclose(
        scaled.transform(X * factors), vae.transform(X), atol=1e-3
    )
    shift = np.log(factors).sum()
    np.testing.assert_allclose(
        scaled.score(X * factors) + shift, vae.score(X), atol=1e-3
    )


def test_equal_scales_per_feature_are_one_scale():
    one, many = small_vae().fit(X), small_vae(sigma=[NOISE] * N_FEATURES).fit(X)
    np.testing.assert_allclose(many.transform(X), one.transform(X), atol=1e-4)
    np.testing.assert_allclose(many.score(X), one.score(X), atol=1e-4)
    assert isinstance(many.sigma_, np.ndarray)


# Devices


def test_devices_have_several_names(vae):
    for device in ("cpu", torch.device("cpu"), "cpu:0"):
        fitted = small_vae(device=device).fit(X)
        assert same_weights(weights(fitted), weights(vae))


def test_the_automatic_device_is_cuda_where_there_is_one():
    fitted = small_vae(device="auto").fit(X)
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert fitted.module_.device.type == expected
    assert isinstance(fitted.transform(X), np.ndarray)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_fits_like_the_cpu():
    rows = low_rank_rows(400)
    fitted = {
        device: small_vae(device=device, max_iter=20).fit(rows)
        for device in ("cpu", "cuda")
    }
    on_cuda = fitted["cuda"]
    assert on_cuda.module_.device.type == "cuda"
    assert abs(on_cuda.score(rows) - fitted["cpu"].score(rows)) < 0.3
    copied = pickle.loads(pickle.dumps(on_cuda))
    np.testing.assert_allclose(copied.transform(rows), on_cuda.transform(rows))
    cuda_state = torch.cuda.get_rng_state()
    again = small_vae(device="cuda", max_iter=20).fit(rows)
    assert torch.equal(torch.cuda.get_rng_state(), cuda_state)
    np.testing.assert_allclose(again.score(rows), on_cuda.score(rows), atol=0.1)
    copied.partial_fit(rows)
    # A model fitted on CUDA goes on training on the CPU.
    assert (
        copied.set_params(device="cpu").partial_fit(rows).module_.device.type == "cpu"
    )
