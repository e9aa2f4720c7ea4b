"""The training loop: history, callbacks, interruptions, optimizers, schedules."""

import copy
import functools
import math
import os
import pickle
import signal
import threading

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import (
    BatchScoring,
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    GradientNormClipping,
    LRScheduler,
)
from small_vae import (
    BatchNormNetwork,
    DropoutNetwork,
    EpochRecorder,
    Raiser,
    callback_of,
    curved_rows,
    low_rank_rows,
    same_weights,
    small_vae,
    weights,
)

X = low_rank_rows()
N_TRAIN, N_VAL, BATCH_SIZE = 54, 6, 16


# History


def test_history_has_a_row_for_each_epoch():
    vae = small_vae(max_iter=4).fit(X)
    assert vae.n_iter_ == len(vae.history_) == 4
    assert vae.history_[:, "epoch"] == [1, 2, 3, 4]
    losses = vae.history_[:, ("train_loss", "valid_loss")]
    assert np.isfinite(losses).all()
    assert len({loss for row in losses for loss in row}) == 8
    assert vae.history_ is vae.net_.history
    without = small_vae(early_stopping=False).fit(X).history_[-1]
    assert "train_loss" in without
    assert "valid_loss" not in without


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"sigma": [0.1, 0.2, 0.3, 0.4, 0.5]},
        {"noise": "laplace"},
        {"sigma": "mle"},
    ],
    ids=str,
)
@pytest.mark.parametrize("factor", [1.0, 1e-3])
def test_losses_are_minus_the_bound_in_the_units_of_the_data(
    monkeypatch, params, factor
):
    # As many for each held-out row as it takes to compare with an exact bound.
    monkeypatch.setattr("sklearn_sigmavae._training.net.VALIDATION_POINTS", 2**11)
    rows, held_out = low_rank_rows(600)[:400], low_rank_rows(600)[400:]
    sigma = params.get("sigma", 0.3)
    if not isinstance(sigma, str):
        params = {**params, "sigma": (factor * np.asarray(sigma)).tolist()}
    vae = small_vae(
        **{**params, "hidden_layer_sizes": (), "early_stopping": False},
        max_iter=10,
        batch_size=100,
    )
    vae.fit(factor * rows, X_val=factor * held_out)
    last = vae.history_[-1]
    np.testing.assert_allclose(last["train_loss"], -vae.score(factor * rows), atol=0.15)
    np.testing.assert_allclose(
        last["valid_loss"], -vae.score(factor * held_out), atol=0.05
    )


@pytest.mark.parametrize(
    "params",
    [
        {"beta": 3.0},
        {"sigma": "mle"},
        {"sigma": "auto"},
        {"noise": "laplace"},
        {"sigma_annealing": 1.0, "prior": "mixture"},
        # It sees batches, as others do that score.
        pytest.param(
            {"callbacks": [EpochScoring("neg_mean_squared_error")]}, id="scoring"
        ),
    ],
    ids=str,
)
def test_the_history_has_the_terms_of_the_losses(params):
    held_out = low_rank_rows(20, seed=1)
    vae = small_vae(**{"beta": 1.0, "max_iter": 5, **params}).fit(X, X_val=held_out)
    rows = vae.history_[:, ("valid_loss", "valid_reconstruction", "valid_kl")]
    loss, reconstruction, kl = np.transpose(rows)
    np.testing.assert_allclose(loss, reconstruction + vae.beta * kl, rtol=1e-9)
    # Annealed noise, higher than that of the model, is more weight to the divergence.
    rows = vae.history_[:, ("train_loss", "train_reconstruction", "train_kl")]
    loss, reconstruction, kl = np.transpose(rows)
    excess = (loss - reconstruction) / (vae.beta * kl)
    assert (excess > 1 - 1e-9).all()
    assert excess[-1] == pytest.approx(1.0)


def test_the_divergence_of_held_out_rows_is_that_of_the_model():
    # Within the range of the training rows, beyond which fitted models are linear.
    held_out = 0.9 * X[:20] + 0.1 * X.mean(axis=0)
    vae = small_vae(early_stopping=False, max_iter=5).fit(X, X_val=held_out)
    kl = vae.kl_divergence(held_out).sum(axis=1).mean()
    assert vae.history_[-1, "valid_kl"] == pytest.approx(kl, rel=1e-5)
    # At a vanishing rate that of the training rows, too.
    vae = small_vae(early_stopping=False, max_iter=1, learning_rate=1e-12).fit(X)
    kl = vae.kl_divergence(X).sum(axis=1).mean()
    assert vae.history_[-1, "train_kl"] == pytest.approx(kl, rel=1e-5)


def test_the_loss_weighs_the_divergence_by_beta():
    # At a vanishing rate the loss is that of the start.
    vae = small_vae(learning_rate=1e-12, early_stopping=False, batch_size=60)
    vae.set_params(hidden_layer_sizes=(), beta=3.0, max_iter=1)
    vae.fit(X, X_val=np.repeat(X, 20, axis=0))
    kl = vae.kl_divergence(X).sum(axis=1).mean()
    expected = -vae.score(X) + 2.0 * kl
    np.testing.assert_allclose(vae.history_[-1, "valid_loss"], expected, atol=0.1)


# Callbacks


class _Recorder(Callback):
    """Records the calls of its hooks."""

    def initialize(self):
        self.calls = []
        return self


class _EpochHooks(_Recorder):
    def on_train_begin(self, net, **kwargs):
        self.calls.append("train_begin")

    def on_epoch_begin(self, net, **kwargs):
        self.calls.append("epoch_begin")

    def on_epoch_end(self, net, **kwargs):
        self.calls.append("epoch_end")

    def on_train_end(self, net, **kwargs):
        self.calls.append("train_end")


class _BatchBegin(_Recorder):
    def on_batch_begin(self, net, batch=None, training=None, **kwargs):
        self.calls.append((training, len(batch[0])))


class _BatchEnd(_Recorder):
    def initialize(self):
        self.losses = []
        return super().initialize()

    def on_batch_end(self, net, batch, training, loss=None, y_pred=None, **kwargs):
        assert len(y_pred) == len(batch[0])
        self.calls.append((training, len(batch[0])))
        self.losses.append((len(batch[0]), float(loss)))


class _GradComputed(_Recorder):
    def on_grad_computed(self, net, named_parameters, batch, training=None, **kwargs):
        assert [p.grad.norm() for _, p in named_parameters if p.grad is not None]
        self.calls.append((training, len(batch[0])))


def test_epoch_callbacks_are_called_once_an_epoch():
    vae = small_vae(max_iter=4, callbacks=[_EpochHooks()]).fit(X)
    epochs = ["epoch_begin", "epoch_end"] * 4
    calls = callback_of(vae, _EpochHooks).calls
    assert calls == ["train_begin", *epochs, "train_end"]


@pytest.mark.parametrize("cls", [_BatchBegin, _BatchEnd, _GradComputed])
@pytest.mark.parametrize(
    "params", [{}, {"network": DropoutNetwork()}, {"network": BatchNormNetwork()}]
)
def test_batch_callbacks_see_each_batch_and_change_nothing(cls, params):
    rows, held_out = X[:N_TRAIN], X[N_TRAIN:]
    plain = small_vae(**params, early_stopping=False).fit(rows, X_val=held_out)
    vae = clone(plain).set_params(callbacks=[cls()]).fit(rows, X_val=held_out)
    assert same_weights(weights(vae), weights(plain))
    np.testing.assert_allclose(
        vae.history_[:, ("train_loss", "valid_loss", "train_kl", "valid_kl")],
        plain.history_[:, ("train_loss", "valid_loss", "train_kl", "valid_kl")],
        rtol=1e-6,
    )
    sizes = [BATCH_SIZE] * (N_TRAIN // BATCH_SIZE) + [N_TRAIN % BATCH_SIZE]
    epoch = [(True, size) for size in sizes]
    if cls is not _GradComputed:
        epoch.append((False, N_VAL))
    assert callback_of(vae, cls).calls == 3 * epoch
    if cls is _BatchEnd:
        # Those of the batches average to that of the epoch.
        sizes, losses = np.transpose(callback_of(vae, cls).losses[: len(epoch) - 1])
        mean = np.average(losses, weights=sizes)
        np.testing.assert_allclose(vae.history_[0, "train_loss"], mean, rtol=1e-6)


def test_callbacks_may_be_named_or_classes():
    vae = small_vae(callbacks=[("mine", EpochRecorder()), _EpochHooks]).fit(X)
    assert len(dict(vae.net_.callbacks_)["mine"].weights) == 3
    assert callback_of(vae, _EpochHooks).calls.count("epoch_end") == 3


def test_the_callbacks_of_the_user_are_not_modified():
    recorder = EpochRecorder()
    vae = small_vae(callbacks=[recorder]).fit(X)
    assert vars(recorder) == {}
    assert vae.callbacks[0] is recorder
    assert callback_of(vae, EpochRecorder) is not recorder
    first = callback_of(vae, EpochRecorder)
    vae.fit(X)
    assert callback_of(vae, EpochRecorder) is not first
    assert len(first.weights) == len(callback_of(vae, EpochRecorder).weights) == 3


def test_early_stopping_of_skorch_stops():
    stopper = EarlyStopping(monitor="train_loss", patience=2, threshold=1e9)
    vae = small_vae(max_iter=30, callbacks=[stopper]).fit(X)
    # Its threshold is relative, so that no epoch is an improvement.
    assert 2 <= vae.n_iter_ <= 3
    assert np.isfinite(vae.score(X))


def _score_of_held_out(net, X, y=None):
    return float(len(X)) + len(net.history)


def test_epoch_scoring_records_a_column():
    scoring = EpochScoring(_score_of_held_out, name="mine", use_caching=False)
    vae = small_vae(callbacks=[scoring]).fit(X)
    assert vae.history_[:, "mine"] == [N_VAL + 1.0, N_VAL + 2.0, N_VAL + 3.0]


def _error_of(vae, rows):
    """Mean squared error of reconstructions, in internal units."""
    restored = vae.inverse_transform(vae.transform(rows))
    return np.square((restored - rows) / vae.module_.units.scale).mean()


@pytest.mark.parametrize("cls", [EpochScoring, BatchScoring])
@pytest.mark.parametrize("use_caching", [True, False])
@pytest.mark.parametrize("on_train", [True, False])
@pytest.mark.parametrize("noise", ["laplace", "bernoulli"])
def test_scoring_callbacks_score_reconstructions(cls, use_caching, on_train, noise):
    scoring = cls(
        "neg_mean_squared_error",
        lower_is_better=False,
        on_train=on_train,
        use_caching=use_caching,
    )
    data = X if noise == "laplace" else (X > 1).astype(float)
    rows, held_out = data[:N_TRAIN], data[N_TRAIN:]
    # At this rate nothing moves, and reconstructions are those of every step.
    params = {"learning_rate": 1e-9, "early_stopping": False, "noise": noise}
    vae = small_vae(**params, callbacks=[scoring]).fit(rows, X_val=held_out)
    expected = -_error_of(vae, rows if on_train else held_out)
    np.testing.assert_allclose(
        vae.history_[:, "neg_mean_squared_error"], expected, rtol=1e-4
    )
    # And by itself.
    internal = vae.module_.units.to_internal(rows).numpy()
    restored = vae.module_.units.to_data(vae.net_.predict(internal))
    np.testing.assert_allclose(
        restored, vae.inverse_transform(vae.transform(rows)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("use_caching", [True, False])
@pytest.mark.parametrize("cls", [EpochScoring, BatchScoring])
@pytest.mark.parametrize(
    "params",
    [{"network": DropoutNetwork()}, {"network": BatchNormNetwork()}, {"sigma": "mle"}],
    ids=["dropout", "batch norm", "mle"],
)
def test_scoring_callbacks_change_nothing(cls, use_caching, params):
    scoring = [
        (name, cls("r2", on_train=name == "train", use_caching=use_caching, name=name))
        for name in ("train", "held_out")
    ]
    plain = small_vae(**params).fit(X)
    vae = clone(plain).set_params(callbacks=scoring).fit(X)
    assert same_weights(weights(vae), weights(plain))
    assert vae.sigma_ == plain.sigma_
    scores = np.array(vae.history_[:, ("train", "held_out")])
    assert np.isfinite(scores).all()
    assert (scores <= 1).all()


def test_scoring_callbacks_without_held_out_rows_score_nothing():
    scoring = EpochScoring("neg_mean_squared_error")
    vae = small_vae(early_stopping=False, callbacks=[scoring]).fit(X)
    assert "neg_mean_squared_error" not in vae.history_[-1]


def test_checkpoint_saves_the_best_held_out_weights(tmp_path):
    checkpoint = Checkpoint(
        monitor="valid_loss_best",
        f_params=str(tmp_path / "params.pt"),
        f_optimizer=str(tmp_path / "optimizer.pt"),
        f_criterion=None,
        f_history=str(tmp_path / "history.json"),
    )
    vae = small_vae(
        callbacks=[checkpoint],
        init="random",
        learning_rate=1e-2,
        lr_schedule="constant",
    )
    vae.fit(X)
    saved = torch.load(tmp_path / "params.pt")
    assert same_weights(saved, weights(vae))
    assert (tmp_path / "history.json").exists()
    assert (tmp_path / "optimizer.pt").exists()


def test_gradients_can_be_clipped():
    params = {"optimizer": "sgd", "learning_rate": 1e-3, "early_stopping": False}
    plain = small_vae(**params, max_iter=1, lr_schedule="constant").fit(X)
    start = small_vae(**params, max_iter=0).fit(X)
    clipped = clone(plain).set_params(callbacks=[GradientNormClipping(1e-3)]).fit(X)

    def distance(vae):
        pairs = zip(weights(vae).values(), weights(start).values(), strict=True)
        return math.sqrt(sum((a - b).square().sum().item() for a, b in pairs))

    n_steps = math.ceil(len(X) / BATCH_SIZE)
    assert 0 < distance(clipped) <= n_steps * 1e-3 * 1e-3 * 1.5
    assert distance(plain) > 10 * distance(clipped)


def test_learning_rate_schedules_of_skorch_work():
    schedule = LRScheduler(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    params = {"lr_schedule": "constant", "learning_rate": 1e-3}
    vae = small_vae(**params, callbacks=[schedule, EpochRecorder()]).fit(X)
    rates = callback_of(vae, EpochRecorder).learning_rates
    np.testing.assert_allclose(rates, [5e-4, 2.5e-4, 1.25e-4])


@pytest.mark.parametrize("hook", ["on_epoch_begin", "on_batch_end"])
def test_the_error_of_a_callback_propagates_and_keeps_the_previous_fit(hook):
    def fail(self, net, **kwargs):
        raise ZeroDivisionError("broken")

    broken = type("Broken", (Callback,), {hook: fail})()
    vae = small_vae().fit(X)
    net, before = vae.net_, weights(vae)
    vae.set_params(callbacks=[broken])
    state = torch.random.get_rng_state()
    with pytest.raises(ZeroDivisionError, match="broken"):
        vae.fit(X)
    assert vae.net_ is net
    assert same_weights(weights(vae), before)
    assert torch.equal(torch.random.get_rng_state(), state)
    unfitted = small_vae(callbacks=[broken])
    with pytest.raises(ZeroDivisionError, match="broken"):
        unfitted.fit(X)
    assert not hasattr(unfitted, "n_features_in_")


# Interruptions


def test_a_callback_stops_training_as_skorch_has_it():
    params = {"early_stopping": False, "lr_schedule": "constant"}
    stopped = small_vae(
        **params, max_iter=9, callbacks=[Raiser(KeyboardInterrupt(), epoch=2)]
    ).fit(X)
    assert stopped.n_iter_ == 2
    expected = small_vae(**params, max_iter=2).fit(X)
    assert same_weights(weights(stopped), weights(expected))


def test_the_last_epoch_of_a_stopped_training_can_be_the_best():
    # Each epoch is better than the one before.
    params = {
        "init": "random",
        "learning_rate": 1e-2,
        "lr_schedule": "constant",
        "hidden_layer_sizes": (32,),
    }
    rows = curved_rows()
    expected = small_vae(**params, max_iter=2).fit(rows)
    losses = expected.history_[:, "valid_loss"]
    assert losses[1] < losses[0]
    stop = Raiser(KeyboardInterrupt(), epoch=2)
    stopped = small_vae(**params, max_iter=9, callbacks=[stop]).fit(rows)
    assert stopped.n_iter_ == 2
    assert same_weights(weights(stopped), weights(expected))


def _stops_in(hook):
    """Callback that raises KeyboardInterrupt from one hook."""

    def stop(self, net, **kwargs):
        raise KeyboardInterrupt

    return type("Stop", (Callback,), {hook: stop})()


@pytest.mark.parametrize("early_stopping", [True, False])
@pytest.mark.parametrize(
    "hook",
    [
        "on_train_begin",
        "on_epoch_begin",
        "on_batch_end",
        "on_epoch_end",
        "on_train_end",
    ],
)
def test_a_callback_may_stop_from_any_hook(hook, early_stopping):
    vae = small_vae(callbacks=[_stops_in(hook)], early_stopping=early_stopping).fit(X)
    assert np.isfinite(vae.score(X))
    again = copy.deepcopy(vae)
    assert np.array_equal(again.transform(X), vae.transform(X))


class _StopInEpoch(Callback):
    """Raises KeyboardInterrupt in the middle of an epoch."""

    def __init__(self, epoch, batch):
        self.epoch = epoch
        self.batch = batch

    def on_batch_end(self, net, **kwargs):
        n_batches = len(net.history[-1, "batches"])
        if len(net.history) == self.epoch and n_batches == self.batch:
            raise KeyboardInterrupt


def test_a_learned_scale_is_that_of_the_end_wherever_training_stopped():
    rows = low_rank_rows(400, 10)
    vae = small_vae(
        sigma="mle",
        init="random",
        learning_rate=1e-2,
        lr_schedule="constant",
        early_stopping=False,
        max_iter=50,
        callbacks=[_StopInEpoch(2, batch=20)],
    )
    vae.fit(rows)
    assert vae.n_iter_ == 2
    # Of the encoder's posteriors, which the training knows.
    best = vae.score_samples(rows, refine=False).mean()
    for factor in (0.97, 1.03):
        other = copy.deepcopy(vae).set_params(warm_start=True, max_iter=0)
        other.set_params(sigma=factor * vae.sigma_, callbacks=None).fit(rows)
        assert other.score_samples(rows, refine=False).mean() < best


class _Sigint(Callback):
    """Presses Ctrl-C at the end of the second epoch."""

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == 2:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("fitted", [True, False])
def test_ctrl_c_propagates_and_keeps_the_previous_fit(fitted):
    vae = small_vae()
    if fitted:
        vae.fit(X)
        net, before = vae.net_, weights(vae)
    vae.set_params(callbacks=[_Sigint()], max_iter=50)
    handler = signal.getsignal(signal.SIGINT)
    state = torch.random.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        vae.fit(X)
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.equal(torch.random.get_rng_state(), state)
    if fitted:
        assert vae.net_ is net
        assert vae.n_iter_ == 3
        assert same_weights(weights(vae), before)
    else:
        assert not hasattr(vae, "n_features_in_")
    vae.set_params(callbacks=None, max_iter=1).fit(X)
    assert vae.n_iter_ == 1


def test_ctrl_c_at_any_time_propagates():
    vae = small_vae().fit(X)
    before = weights(vae)
    vae.set_params(max_iter=1_000_000)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            vae.fit(X)
    finally:
        timer.cancel()
        timer.join()
    assert same_weights(weights(vae), before)


def test_ctrl_c_ends_a_grid_search():
    search = GridSearchCV(
        small_vae(callbacks=[_Sigint()], max_iter=50), {"sigma": [0.1, 0.3]}, cv=2
    )
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        search.fit(X)
    assert signal.getsignal(signal.SIGINT) is handler
    assert not hasattr(search, "best_estimator_")


@pytest.mark.parametrize("handler", [lambda *args: None, signal.SIG_IGN])
def test_a_ctrl_c_that_the_user_handles_ends_nothing(handler):
    previous = signal.signal(signal.SIGINT, handler)
    try:
        vae = small_vae(callbacks=[_Sigint()]).fit(X)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, previous)
    assert vae.n_iter_ == 3


# Progress


def test_the_progress_bar_shows_the_bound(capsys):
    vae = small_vae(verbose=1).fit(X)
    captured = capsys.readouterr()
    assert captured.out == ""
    row = vae.history_[-1]
    assert f"bound={-row['train_loss']:.3f}" in captured.err
    assert f"held-out={-row['valid_loss']:.3f}" in captured.err
    assert "3/3" in captured.err
    pickle.dumps(vae)


def test_the_progress_bar_is_closed_after_a_failure(capsys):
    vae = small_vae(verbose=1, callbacks=[Raiser(ZeroDivisionError())])
    with pytest.raises(ZeroDivisionError):
        vae.fit(X)
    small_vae(verbose=1, early_stopping=False).fit(X)
    assert "held-out" not in capsys.readouterr().err.rsplit("\n", 2)[-2]


# Schedules and optimizers


def test_one_cycle_warms_up_and_falls_to_zero():
    vae = small_vae(max_iter=20, learning_rate=1e-3, callbacks=[EpochRecorder()])
    rates = np.array(callback_of(vae.fit(X), EpochRecorder).learning_rates)
    assert rates[0] < 0.2e-3
    assert 0.9e-3 < rates.max() <= 1e-3
    peak = int(rates.argmax())
    assert 3 <= peak <= 9
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert (np.diff(rates[peak:]) < 0).all()
    assert rates[-1] < 1e-3 / 1000


@pytest.mark.parametrize("method", ["constant", "warm start", "partial_fit"])
def test_constant_rates_are_those_of_now(method):
    vae = small_vae(callbacks=[EpochRecorder()]).fit(X)
    vae.set_params(learning_rate=5e-4)
    if method == "partial_fit":
        vae.partial_fit(X)
    elif method == "constant":
        vae.set_params(lr_schedule="constant").fit(X)
    else:
        vae.set_params(warm_start=True).fit(X)
    rates = callback_of(vae, EpochRecorder).learning_rates
    assert set(rates) == {5e-4}


def test_momentum_goes_on_too():
    params = {"optimizer": "adam", "learning_rate": 1e-3}
    vae = small_vae(**params).partial_fit(X)
    vae.partial_fit(X)
    steps = {int(s["step"]) for s in vae.net_.optimizer_.state.values()}
    assert steps == {2 * math.ceil(len(X) / BATCH_SIZE)}
    assert vae.set_params(optimizer="sgd").partial_fit(X).n_iter_ == 3


@pytest.mark.parametrize(
    ("optimizer", "cls"),
    [
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("sgd", torch.optim.SGD),
        (torch.optim.RMSprop, torch.optim.RMSprop),
        (functools.partial(torch.optim.SGD, momentum=0.9), torch.optim.SGD),
        (lambda params, lr: torch.optim.NAdam(params, lr=lr), torch.optim.NAdam),
    ],
    ids=["adam", "adamw", "sgd", "RMSprop", "partial", "lambda"],
)
def test_optimizers_train(optimizer, cls):
    rows = curved_rows()
    vae = small_vae(
        optimizer=optimizer, learning_rate=1e-3, init="random", early_stopping=False
    )
    start = clone(vae).set_params(max_iter=0).fit(rows)
    vae.fit(rows)
    assert type(vae.net_.optimizer_) is cls
    assert vae.score(rows) > start.score(rows) + 0.3
    vae.partial_fit(rows)
    assert vae.n_iter_ == 4


def test_batch_normalisation_of_one_row_is_explained():
    vae = small_vae(network=BatchNormNetwork()).fit(X)
    with pytest.raises(
        ValueError, match=r"2 rows or more\. There are 1 rows.*Pass more"
    ):
        vae.partial_fit(X[:1])
