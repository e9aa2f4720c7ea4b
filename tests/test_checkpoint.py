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
    rows_of,
    same_weights,
    small_vae,
    weights,
)

from sklearn_sigmavae import (
    BatchedGridSearchCV,
    DivergenceError,
    ModelFileError,
    SigmaVAE,
    _files,
)
from sklearn_sigmavae._training import checkpoint as _checkpoint

X = low_rank_rows()


class Stop(Exception):
    """Ends a fit from within."""


class EpochCounter(Callback):
    """Counts the epochs of this run."""

    def on_train_begin(self, net, **kwargs):
        self.n = 0

    def on_epoch_end(self, net, **kwargs):
        self.n += 1


class AtEpoch(Callback):
    """Calls a function with the net at the end of an epoch, counted from 1."""

    def __init__(self, epoch, function):
        self.epoch, self.function = epoch, function

    def on_epoch_end(self, net, **kwargs):
        if net.history[-1, "epoch"] == self.epoch:
            self.function(net)


@pytest.fixture(autouse=True)
def _always(monkeypatch):
    # So that small fits write after each epoch.
    monkeypatch.setattr(_checkpoint, "_COST", np.inf)


@pytest.fixture
def folder(tmp_path):
    """Where checkpoints go; it does not exist yet."""
    return tmp_path / "runs" / "one"


def interrupted(folder, epoch, X=X, callbacks=(), fit_params=None, **params):
    """An estimator whose fit has ended in an error, ready to fit again."""
    vae = small_vae(**{"max_iter": 10, **params}, checkpoint_dir=folder)
    with pytest.raises(Stop):
        vae.set_params(callbacks=[*callbacks, Raiser(Stop(), epoch)]).fit(
            X, **(fit_params or {})
        )
    return vae.set_params(callbacks=[*callbacks, EpochCounter()])


def n_epochs(vae):
    """Epochs that the last fit has trained itself."""
    return callback_of(vae, EpochCounter).n


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"sigma": 0.02},
        {"sigma": "mle"},
        {"sigma": "auto"},
        {"noise": "laplace", "early_stopping": False},
        {"lr_schedule": "constant", "n_iter_no_change": 7, "tol": 1e9},
        {
            "lr_schedule": "constant",
            "callbacks": [LRScheduler("StepLR", step_size=2, gamma=0.5)],
        },
        {"optimizer": "sgd", "learning_rate": 1e-3},
        {"optimizer": torch.optim.RAdam},
        {"optimizer": "adamw", "precision": "bfloat16"},
        {"network": DropoutNetwork()},
        {"init": "random", "linear_path": False},
        {"hidden_layer_sizes": ()},
    ],
    # No reprs, of which some hold an address that differs between processes.
    ids=lambda params: ", ".join(params),
)
def test_a_fit_that_goes_on_ends_with_the_same_weights(folder, params):
    whole = small_vae(**{"max_iter": 10, **params}).fit(X)
    vae = interrupted(folder, 6, **params)
    assert len(list(folder.iterdir())) == 1
    # What others draw in between does not matter.
    torch.rand(3)
    vae.fit(X)
    assert n_epochs(vae) == whole.n_iter_ - 5
    assert same_weights(weights(vae), weights(whole))
    assert rows_of(vae.history_) == rows_of(whole.history_)
    assert vae.sigma_ == whole.sigma_
    assert vae.n_active_components_ == whole.n_active_components_
    assert not list(folder.iterdir())


def test_a_fit_with_rows_to_hold_out_goes_on(folder):
    whole = small_vae(max_iter=10).fit(X, X_val=X[:9])
    # It may be interrupted often.
    for epoch in (2, 3, 5):
        vae = interrupted(folder, epoch, fit_params={"X_val": X[:9]})
    # Without them it is another fit.
    assert n_epochs(vae.fit(X)) == 10
    assert n_epochs(vae.fit(X, X_val=X[:9])) == 6
    assert same_weights(weights(vae), weights(whole))


def test_a_continued_fit_goes_on(folder):
    whole = small_vae(max_iter=10, warm_start=True).fit(X)
    vae = small_vae(max_iter=10, warm_start=True).fit(X)
    whole.fit(X)
    vae.set_params(checkpoint_dir=folder, callbacks=[Raiser(Stop(), 16)])
    for _ in range(2):
        with pytest.raises(Stop):
            vae.fit(X)
    vae.set_params(callbacks=[EpochCounter()]).fit(X)
    assert vae.n_iter_ == 20
    assert n_epochs(vae) == 5
    assert same_weights(weights(vae), weights(whole))
    assert rows_of(vae.history_) == rows_of(whole.history_)


@pytest.mark.parametrize("seed", [None, 3])
def test_a_fit_without_a_seed_or_with_a_random_state_goes_on(folder, seed):
    def random_state():
        return seed and np.random.RandomState(seed)

    whole = small_vae(max_iter=10, random_state=random_state()).fit(X)
    vae = interrupted(folder, 6, random_state=random_state())
    vae.set_params(random_state=random_state()).fit(X)
    assert n_epochs(vae) == 5
    assert same_weights(weights(vae), weights(whole)) == (seed is not None)


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
    assert n_epochs(vae) == vae.n_iter_
    assert len(list(folder.iterdir())) == 1


IMAGES = low_rank_rows(n_features=12).reshape(-1, 3, 4)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (X, X + 1e-12),
        (X, X[:-1]),
        (X, X[::-1]),
        (X, X.astype(np.float32)),
        (IMAGES, IMAGES.reshape(-1, 4, 3)),
    ],
)
def test_other_data_is_another_fit(folder, one, other):
    assert n_epochs(interrupted(folder, 6, one).fit(other)) == 10


def test_what_changes_no_weights_is_the_same_fit(folder, capsys):
    vae = interrupted(folder, 6)
    vae.set_params(verbose=1, callbacks=[EpochRecorder(), EpochCounter()])
    vae.set_params(checkpoint_dir=str(folder)).fit(np.asfortranarray(X))
    assert n_epochs(vae) == 5
    # The progress bar goes on too.
    assert "10/10" in capsys.readouterr().err


def test_the_same_fit_at_the_same_time_has_no_checkpoint(folder):
    others, params = [], {"max_iter": 10, "random_state": None}

    def fit_again(net):
        with pytest.warns(UserWarning, match="Another fit with the same"):
            others.append(small_vae(**params, checkpoint_dir=folder).fit(X))

    vae = small_vae(**params, checkpoint_dir=folder)
    vae.set_params(callbacks=[AtEpoch(5, fit_again)]).fit(X)
    assert not same_weights(weights(vae), weights(others[0]))
    assert not list(folder.iterdir())


def test_where_files_are_not_locked_fits_go_on(folder, monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(_checkpoint.fcntl, "flock", flock)
    interrupted(folder, 6)
    assert n_epochs(interrupted(folder, 8).fit(X)) == 3
    assert not list(folder.iterdir())


def test_a_fit_that_diverges_leaves_no_checkpoint(folder):
    def spoil(net):
        for parameter in net.module_.parameters():
            parameter.data.fill_(np.nan)

    vae = small_vae(max_iter=10, checkpoint_dir=folder, early_stopping=False)
    with pytest.raises(DivergenceError, match="diverged"):
        vae.set_params(callbacks=[AtEpoch(4, spoil)]).fit(X)
    assert not list(folder.iterdir())


def test_a_relative_folder_stays_where_it_was(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    move = AtEpoch(2, lambda net: os.chdir(tmp_path / "other"))
    interrupted("runs", 5, callbacks=[move])
    assert len(list((tmp_path / "runs").iterdir())) == 1


class Keeps:
    """A recipe with modules of its own, which no two copies have alike."""

    def __init__(self):
        self.modules = torch.nn.Linear(5, 4), torch.nn.Linear(2, 5)

    def encoder(self, input_shape, n_components):
        return self.modules[0]

    def decoder(self, n_components, output_shape):
        return self.modules[1]


@pytest.mark.parametrize(
    "params",
    [
        {"network": Keeps()},
        {"optimizer": lambda parameters, lr: torch.optim.Adam(parameters, lr)},
    ],
)
def test_parameters_that_cannot_be_compared_are_refused(folder, params):
    vae = small_vae(**params, checkpoint_dir=folder)
    with pytest.raises(ValueError, match=r"'checkpoint_dir' .* pickled and compared"):
        vae.fit(X)


def test_checkpoints_cost_little_time(folder, monkeypatch):
    monkeypatch.setattr(_checkpoint, "_COST", 0.0)
    interrupted(folder, 6)
    header, _ = _files.read_model(next(folder.iterdir()))
    # The first of all, and then none before it has been earned.
    assert header["n_done"] == 1


def test_searches_share_a_folder(folder):
    grid, vae = {"sigma": [0.2, 0.3]}, small_vae(max_iter=4)
    expected = BatchedGridSearchCV(vae, grid, cv=2).fit(X)
    vae.set_params(checkpoint_dir=folder)
    with pytest.warns(UserWarning, match="checkpoints are of one model"):
        found = BatchedGridSearchCV(vae, grid, cv=2).fit(X)
    assert found.best_params_ == expected.best_params_
    assert not list(folder.iterdir())


def test_partial_fits_and_single_epochs_write_nothing(folder):
    small_vae(checkpoint_dir=folder, max_iter=1).fit(X).partial_fit(X)
    assert not folder.exists()


def test_folders_that_cannot_be_written_to_are_reported_before_training(tmp_path):
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


def test_a_full_disk_ends_no_training(folder, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_files, "write_model", full)
    vae = small_vae(checkpoint_dir=folder, max_iter=6)
    with pytest.warns(UserWarning, match=r"could not be written.*No space") as caught:
        vae.fit(X)
    assert sum("could not be written" in str(w.message) for w in caught) == 1
    assert same_weights(weights(vae), weights(small_vae(max_iter=6).fit(X)))


@pytest.mark.parametrize(
    "damage",
    [
        lambda header, arrays: arrays.pop("checkpoint.keeper.misses"),
        lambda header, arrays: header.update(checkpoint=1),
        lambda header, arrays: header.update(seeds=["1", 2]),
        lambda header, arrays: header.update(n_done=-1),
        # A fused step would read and write beyond them.
        lambda header, arrays: arrays.update(
            {"checkpoint.optimizer.0.exp_avg": np.zeros(1, dtype=np.float32)}
        ),
    ],
    ids=["missing array", "version", "seeds", "epochs", "moments"],
)
def test_damaged_checkpoints_are_reported(folder, damage):
    vae = interrupted(folder, 6)
    (path,) = folder.iterdir()
    header, arrays = _files.read_model(path)
    damage(header, arrays)
    _files.write_model(path, header, arrays)
    with pytest.raises(ModelFileError, match=f"{path.name}.*checkpoint of a SigmaVAE"):
        vae.fit(X)
    assert not hasattr(vae, "net_")
    path.unlink()
    vae.fit(X)


def test_a_checkpoint_is_no_model_and_a_model_no_checkpoint(folder):
    vae = interrupted(folder, 6)
    (path,) = folder.iterdir()
    with pytest.raises(ModelFileError, match="'format'"):
        SigmaVAE.load(path)
    small_vae().fit(X).save(path)
    with pytest.raises(ModelFileError, match="'checkpoint'"):
        vae.fit(X)


# Real kills


def _fit(folder, epoch):
    """Fit, and wait in an epoch to be killed."""
    torch.set_num_threads(1)

    def wait(net):
        (folder / "waits").touch()
        time.sleep(600)

    _checkpoint._COST = np.inf
    vae = small_vae(max_iter=10, checkpoint_dir=folder)
    vae.set_params(callbacks=[AtEpoch(epoch, wait)]).fit(X)


def test_a_killed_fit_goes_on_with_the_same_weights(folder):
    folder.mkdir(parents=True)
    process = get_context("spawn").Process(target=_fit, args=(folder, 6))
    process.start()
    while not (folder / "waits").exists() and process.is_alive():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (folder / "waits").unlink()
    # The checkpoint, and the lock, which has ended with the process.
    assert len(list(folder.iterdir())) == 2
    vae = small_vae(max_iter=10, checkpoint_dir=folder, callbacks=[EpochCounter()])
    assert n_epochs(vae.fit(X)) == 5
    assert same_weights(weights(vae), weights(small_vae(max_iter=10).fit(X)))
