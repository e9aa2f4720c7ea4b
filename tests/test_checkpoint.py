"""Fits that are killed and started again end as if nothing had happened."""

import errno
import os
import signal
import time
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback, LRScheduler
from small_vae import (
    DropoutNetwork,
    EpochRecorder,
    Raiser,
    callback_of,
    low_rank_rows,
    same_weights,
    small_vae,
    weights,
)

from sklearn_sigmavae import (
    BatchedGridSearchCV,
    DivergenceError,
    ModelFileError,
    SigmaVAE,
    _checkpoint,
)

X = low_rank_rows()


class Stop(Exception):
    """Ends a fit from within."""


class EpochCounter(Callback):
    """Counts the epochs of this run."""

    def on_train_begin(self, net, **kwargs):
        self.n = 0

    def on_epoch_end(self, net, **kwargs):
        self.n += 1


@pytest.fixture(autouse=True)
def _always(monkeypatch):
    # So that small fits write after each epoch.
    monkeypatch.setattr(_checkpoint, "_COST", np.inf)


@pytest.fixture
def folder(tmp_path):
    """Where checkpoints go; it does not exist yet."""
    return tmp_path / "runs" / "one"


def interrupted(folder, epoch, X=X, **params):
    """An estimator whose fit has ended in an error."""
    callbacks = [Raiser(Stop(), epoch)]
    vae = small_vae(**{"max_iter": 10, **params}, checkpoint_dir=folder)
    with pytest.raises(Stop):
        vae.set_params(callbacks=callbacks).fit(X)
    return vae.set_params(callbacks=[EpochCounter()])


def rows_of(history):
    skipped = "dur", "batches"
    return [
        {name: value for name, value in row.items() if name not in skipped}
        for row in history
    ]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"sigma": "mle"},
        {"noise": "laplace", "early_stopping": False},
        {"lr_schedule": "constant", "n_iter_no_change": 7, "tol": 1e9},
        {"optimizer": "sgd", "learning_rate": 1e-3},
        {"optimizer": torch.optim.RAdam},
        {"optimizer": "adamw", "precision": "bfloat16"},
        {"network": DropoutNetwork()},
        {"init": "random", "linear_path": False},
        {"hidden_layer_sizes": ()},
    ],
    ids=str,
)
def test_a_fit_that_goes_on_ends_with_the_same_weights(folder, params):
    whole = small_vae(**{"max_iter": 10, **params}).fit(X)
    vae = interrupted(folder, 6, **params)
    assert len(list(folder.iterdir())) == 1
    # What others draw in between does not matter.
    torch.rand(3)
    vae.fit(X)
    assert callback_of(vae, EpochCounter).n == whole.n_iter_ - 5
    assert same_weights(weights(vae), weights(whole))
    assert rows_of(vae.history_) == rows_of(whole.history_)
    assert vae.sigma_ == whole.sigma_
    assert vae.n_active_components_ == whole.n_active_components_
    assert not list(folder.iterdir())


def test_a_fit_may_be_interrupted_often(folder):
    whole = small_vae(max_iter=10).fit(X)
    for epoch in (2, 3, 7, 10):
        vae = interrupted(folder, epoch)
    assert same_weights(weights(vae.fit(X)), weights(whole))


def test_a_fit_with_rows_to_hold_out_goes_on(folder):
    params = {"max_iter": 10, "checkpoint_dir": folder}
    whole = small_vae(max_iter=10).fit(X, X_val=X[:9])
    vae = small_vae(**params, callbacks=[Raiser(Stop(), 5)])
    with pytest.raises(Stop):
        vae.fit(X, X_val=X[:9])
    # Without them it is another fit.
    other = small_vae(**params, callbacks=[EpochCounter()]).fit(X)
    assert callback_of(other, EpochCounter).n == 10
    vae.set_params(callbacks=None).fit(X, X_val=X[:9])
    assert same_weights(weights(vae), weights(whole))


def test_a_continued_fit_goes_on(folder):
    whole = small_vae(max_iter=10, warm_start=True).fit(X)
    vae = small_vae(max_iter=10, warm_start=True).fit(X)
    whole.fit(X)
    vae.set_params(checkpoint_dir=folder, callbacks=[Raiser(Stop(), 16)])
    for _ in range(2):
        with pytest.raises(Stop):
            vae.fit(X)
    vae.set_params(callbacks=None).fit(X)
    assert vae.n_iter_ == 20
    assert same_weights(weights(vae), weights(whole))
    assert rows_of(vae.history_) == rows_of(whole.history_)


def test_without_a_seed_a_fit_goes_on_with_the_seeds_it_had(folder):
    vae = interrupted(folder, 6, random_state=None)
    vae.fit(X)
    assert callback_of(vae, EpochCounter).n == 5
    again = small_vae(random_state=None, max_iter=10, checkpoint_dir=folder)
    again.fit(X)
    assert not same_weights(weights(vae), weights(again))


def test_the_state_of_a_random_state_tells_fits_apart(folder):
    whole = small_vae(max_iter=10, random_state=np.random.RandomState(3)).fit(X)
    interrupted(folder, 6, random_state=np.random.RandomState(3))
    vae = small_vae(
        max_iter=10,
        random_state=np.random.RandomState(3),
        checkpoint_dir=folder,
        callbacks=[EpochCounter()],
    ).fit(X)
    assert callback_of(vae, EpochCounter).n == 5
    assert same_weights(weights(vae), weights(whole))


@pytest.mark.parametrize(
    "change",
    [
        {"sigma": 0.31},
        {"beta": 2.0},
        {"learning_rate": 1e-3},
        {"max_iter": 11},
        {"hidden_layer_sizes": (9,)},
        {"random_state": 1},
        {"network": DropoutNetwork()},
        {"validation_fraction": 0.2},
    ],
    ids=str,
)
def test_other_parameters_are_another_fit(folder, change):
    vae = interrupted(folder, 6).set_params(**change)
    expected = small_vae(**{"max_iter": 10, **change}).fit(X)
    assert same_weights(weights(vae.fit(X)), weights(expected))
    assert callback_of(vae, EpochCounter).n == vae.n_iter_
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("value", [X + 1e-12, X[:-1], X[::-1], X.astype(np.float32)])
def test_other_data_is_another_fit(folder, value):
    vae = interrupted(folder, 6).fit(value)
    assert callback_of(vae, EpochCounter).n == 10


def test_another_shape_of_images_is_another_fit(folder):
    images = low_rank_rows(n_features=12)
    interrupted(folder, 6, images.reshape(-1, 3, 4))
    vae = small_vae(max_iter=10, checkpoint_dir=folder, callbacks=[EpochCounter()])
    vae.fit(images.reshape(-1, 4, 3))
    assert callback_of(vae, EpochCounter).n == 10


def test_schedules_of_skorch_go_on(folder):
    params = {"lr_schedule": "constant", "max_iter": 10}
    schedule = LRScheduler("StepLR", step_size=2, gamma=0.5)
    whole = small_vae(**params, callbacks=[schedule]).fit(X)
    vae = small_vae(**params, checkpoint_dir=folder)
    vae.set_params(callbacks=[schedule, Raiser(Stop(), 6)])
    with pytest.raises(Stop):
        vae.fit(X)
    vae.set_params(callbacks=[schedule]).fit(X)
    assert same_weights(weights(vae), weights(whole))


def test_the_same_fit_at_the_same_time_has_no_checkpoint(folder):
    others = []

    class Meet(Callback):
        """Fits again while the first fit is under way."""

        def on_epoch_end(self, net, **kwargs):
            if net.history[-1, "epoch"] == 5:
                with pytest.warns(UserWarning, match="Another fit with the same"):
                    others.append(small_vae(**params, checkpoint_dir=folder).fit(X))

    params = {"max_iter": 10, "random_state": None}
    vae = small_vae(**params, checkpoint_dir=folder, callbacks=[Meet()]).fit(X)
    assert not same_weights(weights(vae), weights(others[0]))
    assert not list(folder.iterdir())


def test_where_files_are_not_locked_fits_go_on(folder, monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(_checkpoint.fcntl, "flock", flock)
    interrupted(folder, 6)
    vae = interrupted(folder, 8).fit(X)
    assert callback_of(vae, EpochCounter).n == 3
    assert not list(folder.iterdir())


def test_a_fit_that_diverges_leaves_no_checkpoint(folder):
    class Spoil(Callback):
        def on_epoch_end(self, net, **kwargs):
            if net.history[-1, "epoch"] == 4:
                for parameter in net.module_.parameters():
                    parameter.data.fill_(np.nan)

    vae = small_vae(max_iter=10, checkpoint_dir=folder, early_stopping=False)
    vae.set_params(callbacks=[Spoil()])
    with pytest.raises(DivergenceError, match="diverged"):
        vae.fit(X)
    assert not list(folder.iterdir())


def test_a_relative_folder_stays_where_it_was(tmp_path, monkeypatch):
    class Move(Callback):
        def on_epoch_end(self, net, **kwargs):
            os.chdir(tmp_path / "other")

    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    vae = small_vae(max_iter=6, checkpoint_dir="runs")
    with pytest.raises(Stop):
        vae.set_params(callbacks=[Move(), Raiser(Stop(), 5)]).fit(X)
    assert len(list((tmp_path / "runs").iterdir())) == 1


class Keeps:
    """A recipe with modules of its own, which no two copies have alike."""

    def __init__(self):
        self.modules = torch.nn.Linear(5, 4), torch.nn.Linear(2, 5)

    def encoder(self, input_shape, n_components):
        return self.modules[0]

    def decoder(self, n_components, output_shape):
        return self.modules[1]


def test_recipes_that_cannot_be_compared_are_refused(folder):
    vae = small_vae(network=Keeps(), checkpoint_dir=folder)
    with pytest.raises(ValueError, match="a copy of one differs"):
        vae.fit(X)


def test_what_changes_no_weights_is_the_same_fit(folder):
    vae = interrupted(folder, 6)
    vae.set_params(verbose=1, callbacks=[EpochRecorder(), EpochCounter()])
    vae.set_params(checkpoint_dir=str(folder)).fit(np.asfortranarray(X))
    assert callback_of(vae, EpochCounter).n == 5


def test_the_progress_bar_goes_on(folder, capsys):
    interrupted(folder, 6).set_params(verbose=1).fit(X)
    assert "10/10" in capsys.readouterr().err


def test_checkpoints_cost_little_time(folder, monkeypatch):
    monkeypatch.setattr(_checkpoint, "_COST", 0.0)
    interrupted(folder, 6)
    (path,) = folder.iterdir()
    header, _ = _checkpoint.read_model(path)
    # The first of all, and then none before it has been earned.
    assert header["n_done"] == 1


def test_searches_share_a_folder(folder):
    grid = {"sigma": [0.2, 0.3]}
    vae = small_vae(max_iter=4)
    expected = BatchedGridSearchCV(vae, grid, cv=2).fit(X)
    vae = small_vae(max_iter=4, checkpoint_dir=folder)
    with pytest.warns(UserWarning, match="checkpoints are of one model"):
        found = BatchedGridSearchCV(vae, grid, cv=2).fit(X)
    assert found.best_params_ == expected.best_params_
    assert not list(folder.iterdir())


def test_partial_fits_and_single_epochs_write_nothing(folder):
    small_vae(checkpoint_dir=folder, max_iter=1).fit(X).partial_fit(X)
    assert not folder.exists()


def test_folders_that_cannot_be_written_to_are_told_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    vae = small_vae().fit(X)
    before = weights(vae)
    for folder in (tmp_path / "file", tmp_path / "file" / "folder"):
        vae.set_params(checkpoint_dir=folder, callbacks=[Raiser(Stop())])
        with pytest.raises(OSError, match="file"):
            vae.fit(X)
    assert same_weights(weights(vae), before)
    with pytest.raises(ValueError, match="'checkpoint_dir' parameter"):
        small_vae(checkpoint_dir=3).fit(X)


def test_parameters_that_cannot_be_compared_are_refused(folder):
    def optimizer(parameters, lr):
        return torch.optim.Adam(parameters, lr)

    vae = small_vae(optimizer=optimizer, checkpoint_dir=folder)
    with pytest.raises(ValueError, match=r"'checkpoint_dir' .* pickled"):
        vae.fit(X)


def test_a_full_disk_ends_no_training(folder, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_checkpoint, "write_model", full)
    vae = small_vae(checkpoint_dir=folder, max_iter=6)
    with pytest.warns(UserWarning, match=r"could not be written.*No space") as caught:
        vae.fit(X)
    assert sum("could not be written" in str(w.message) for w in caught) == 1
    assert same_weights(weights(vae), weights(small_vae(max_iter=6).fit(X)))


@pytest.mark.parametrize("how", ["truncate", "lie"])
def test_damaged_checkpoints_are_told(folder, how):
    vae = interrupted(folder, 6)
    (path,) = folder.iterdir()
    if how == "truncate":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        header, arrays = _checkpoint.read_model(path)
        del arrays["keeper.misses"]
        _checkpoint.write_model(path, header, arrays)
    with pytest.raises(ModelFileError, match="checkpoint of a SigmaVAE"):
        vae.fit(X)
    assert not hasattr(vae, "net_")
    path.unlink()
    vae.fit(X)


def test_a_checkpoint_is_no_model_and_a_model_no_checkpoint(folder, tmp_path):
    vae = interrupted(folder, 6)
    (path,) = folder.iterdir()
    with pytest.raises(ModelFileError, match="lacks 'format'"):
        SigmaVAE.load(path)
    small_vae().fit(X).save(path)
    with pytest.raises(ModelFileError, match="lacks 'checkpoint'"):
        vae.fit(X)


def test_optimizers_with_a_state_that_no_file_holds_are_told(folder):
    class Odd(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter]["odd"] = object()

    vae = small_vae(optimizer=_Named(Odd), checkpoint_dir=folder)
    with pytest.raises(TypeError, match=r"'checkpoint_dir' .* odd="):
        vae.fit(X)


class _Named:
    """A picklable way to an optimizer of a local class."""

    def __init__(self, cls):
        self.cls = cls

    def __reduce__(self):
        return _Named, (None,)

    def __call__(self, parameters, lr):
        return self.cls(parameters, lr=lr)


# Real kills


def _fit(folder, epoch):
    """Fit, and wait in an epoch to be killed."""
    torch.set_num_threads(1)

    class Wait(Callback):
        def on_epoch_end(self, net, **kwargs):
            if net.history[-1, "epoch"] == epoch:
                (folder / "waits").touch()
                time.sleep(600)

    _checkpoint._COST = np.inf
    small_vae(max_iter=10, checkpoint_dir=folder, callbacks=[Wait()]).fit(X)


@pytest.mark.parametrize("epoch", [6])
def test_a_killed_fit_goes_on_with_the_same_weights(folder, epoch):
    folder.mkdir(parents=True)
    process = get_context("spawn").Process(target=_fit, args=(folder, epoch))
    process.start()
    while not (folder / "waits").exists() and process.is_alive():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (folder / "waits").unlink()
    # The checkpoint, and the claim to it, which has ended with the process.
    assert len(list(folder.iterdir())) == 2
    vae = small_vae(max_iter=10, checkpoint_dir=folder, callbacks=[EpochCounter()]).fit(
        X
    )
    assert callback_of(vae, EpochCounter).n == 10 - epoch + 1
    assert same_weights(weights(vae), weights(small_vae(max_iter=10).fit(X)))
