"""The package's own callbacks: the best weights, and the progress bar."""

import math
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import torch
from skorch.callbacks import Callback


class StopTraining(Exception):
    """Raised by a callback, ends the training and keeps what it reached."""


class KeepBest(Callback):
    """Ends with the weights of the best held-out loss, the start's included.

    Each member of a stack has its own best and its own end, after ``patience`` epochs,
    None for never, without an improvement of ``tol`` nats. The training goes on until
    the last of them ends, and leaves the others as they are.
    """

    _STATE = ("best_loss", "best_scale", "best_epoch", "weights")
    _STATE += ("reference", "misses", "n_epochs")

    weights = None

    def __init__(self, patience, tol):
        self.patience, self.tol = patience, tol

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Take the start for the best, unless a checkpoint has brought a better."""
        if self.weights is not None:
            return
        loss = np.asarray(net.start_loss_)
        self.best_loss = np.where(np.isnan(loss), math.inf, loss)
        self.best_scale = np.asarray(net.criterion_.best_scale)
        self.reference = self.best_loss
        self.misses = self.n_epochs = self.best_epoch = np.zeros(loss.shape, dtype=int)
        self.weights = deepcopy(net.module_.state_dict())

    def on_epoch_end(self, net, **kwargs):
        """Keep the weights if they are the best, stop if none were for long."""
        loss, runs = np.asarray(net.history[-1, "valid_loss"]), self._runs
        self.n_epochs = self.n_epochs + runs
        improved = runs & (loss < self.best_loss)
        net.history.record("improved", improved if improved.ndim else bool(improved))
        self.best_loss = np.where(improved, loss, self.best_loss)
        scale = net.criterion_.best_scale
        self.best_scale = np.where(improved, scale, self.best_scale)
        if improved.any():
            self._keep(net.module_.state_dict(), improved)
            self.best_epoch = np.where(improved, self.n_epochs, self.best_epoch)
        counts = loss < self.reference - self.tol
        self.reference = np.where(counts, loss, self.reference)
        self.misses = np.where(runs & counts, 0, self.misses + 1)
        if not self._runs.any():
            raise StopTraining

    def on_train_end(self, net, **kwargs):
        """Restore the best weights."""
        net.module_.load_state_dict(self.weights)
        if net.criterion_.follows:
            net.criterion_.set_scale(torch.from_numpy(np.asarray(self.best_scale)))
        self.weights = None

    def state(self):
        """What to :meth:`resume` from."""
        return {name: getattr(self, name) for name in self._STATE}

    def resume(self, state):
        """Take up a state."""
        vars(self).update(state)

    @property
    def is_rising(self):
        """ndarray of bool : Whether the held-out loss was still falling at the end."""
        # With one cycle, which has no patience, every loss flattens.
        if self.patience is None or self.n_epochs.max() < 2:
            return np.zeros(self.misses.shape, dtype=bool)
        recent = self.n_epochs - self.best_epoch <= self.n_epochs // 10
        return self._runs & recent

    @property
    def any_has_ended(self):
        """bool : Whether a member of the stack has run out of patience."""
        return not self._runs.all()

    @property
    def _runs(self):
        if self.patience is None:
            return np.ones(self.misses.shape, dtype=bool)
        return self.misses < self.patience

    def _keep(self, state, improved):
        if improved.all():
            self.weights = deepcopy(state)
            return
        for name, value in state.items():
            members = torch.from_numpy(improved).to(value.device)
            self.weights[name][members] = value[members]


@contextmanager
def progress(total, verbose, description, unit="epoch"):
    """Context with a bar over epochs, or other units, or with None unless `verbose`."""
    if not verbose:
        yield None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=description, unit=unit) as bar:
        yield bar


class ProgressCallback(Callback):
    """Moves a bar by an epoch of each model, and may show the loss."""

    def __init__(self, bar, n_models=1, shows_loss=False):
        self.bar, self.n_models, self.shows_loss = bar, n_models, shows_loss

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Move it by the epochs that a checkpoint has brought."""
        self.bar.update(self.n_models * net.run.n_done)

    def on_epoch_end(self, net, **kwargs):
        """Move it."""
        if self.shows_loss:
            names = {"train_loss": "bound", "valid_loss": "held-out"}
            row = net.history[-1]
            shown = {v: f"{-row[k]:.3f}" for k, v in names.items() if k in row}
            self.bar.set_postfix(shown, refresh=False)
        self.bar.update(self.n_models)

    def __getstate__(self):
        # A bar cannot be pickled, and nobody watches a copy.
        return vars(self) | {"bar": None}
