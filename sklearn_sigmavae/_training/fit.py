"""From an estimator's parameters and validated data to a fitted model."""

import math
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass

import torch

from .._errors import DivergenceError
from .._model.settings import explain_out_of_memory, limited_threads
from .callbacks import KeepBest, ProgressCallback, progress
from .checkpoint import checkpoint_of
from .data import Selection
from .initial import FIRST_CHUNK, continued_model, draw_seeds, initial_model
from .net import VAENet
from .optimizers import check_callbacks, resolve_optimizer
from .outcome import conclude

# Steps of a fit with ``max_iter="auto"``, and bounds of its epochs: few rows are soon
# overfitted, and many deserve to be seen several times.
STEPS, MIN_EPOCHS, MAX_EPOCHS = 5_000, 20, 200


def count_epochs(params, n_rows):
    """Epochs that an estimator's ``max_iter`` stands for."""
    if not isinstance(params.max_iter, str):
        return int(params.max_iter)
    n_epochs = math.ceil(STEPS * int(params.batch_size) / n_rows)
    return min(MAX_EPOCHS, max(MIN_EPOCHS, n_epochs))


@dataclass(frozen=True)
class TrainingSchedule:
    """How long to train, and how.

    With ``early_stopping`` the best held-out weights are kept; with ``reports`` the
    fitted model has remarks. ``is_chunk`` says that there will be other rows.
    """

    epochs: int
    one_cycle: bool
    early_stopping: bool
    reports: bool = True
    is_chunk: bool = False

    @classmethod
    def of_fit(cls, params, n_rows):
        """What an estimator's ``fit`` to some rows does."""
        one_cycle = params.lr_schedule == "one_cycle" and not params.warm_start
        return cls(count_epochs(params, n_rows), one_cycle, params.early_stopping)


# One epoch on all rows: what ``partial_fit`` does.
ONE_EPOCH = TrainingSchedule(
    1, one_cycle=False, early_stopping=False, reports=False, is_chunk=True
)


# Also under a caller's torch.no_grad() or torch.inference_mode(), and in forks.
@limited_threads(0, "cpu")
@torch.inference_mode(False)
@torch.enable_grad()
def fit_model(params, samples, random_state, schedule, previous):
    """Fit a model, a new one or that of an earlier fit; return a ``FittedModel``."""
    callbacks = _copied_callbacks(params)
    with (
        checkpoint_of(params, schedule, samples, random_state, previous) as checkpoint,
        progress(schedule.epochs, params.verbose, "SigmaVAE") as bar,
    ):
        seeds = draw_seeds(random_state) if checkpoint is None else checkpoint.seeds
        if previous is None:
            start = initial_model(params, samples, seeds, schedule)
        else:
            start = continued_model(params, samples, seeds, schedule, previous)
        if bar is not None:
            callbacks.append(ProgressCallback(bar, shows_loss=True))
        if checkpoint is not None:
            callbacks.append(checkpoint)
        return train(start, schedule, callbacks, previous, checkpoint)


def train(start, schedule, callbacks=(), previous=None, checkpoint=None):
    """Train an initial model; see :func:`fit_model`."""
    params, criterion = start.params, start.criterion
    device = start.rows.device
    with (
        explain_out_of_memory(device, params.batch_size),
        _explain_failure(start),
        threads_of_steps([start]),
    ):
        net = make_net(start, schedule, callbacks)
        if previous is not None:
            net.resume(previous.net or previous)
        net.train(start.selection, start.held_out, checkpoint)
        if criterion.learns_scale:
            net.learn_scale(Selection(start.rows))
        return conclude(net, start, schedule)


def threads_of_steps(starts):
    """Context with the threads that training steps of these models deserve."""
    first, n_operations = starts[0], sum(start.vae.n_operations for start in starts)
    n_rows = min(first.params.batch_size, len(first.samples.X))
    return limited_threads(n_operations * n_rows, first.rows.device)


def make_net(start, schedule, callbacks=(), net_class=VAENet, **replaced):
    """An initialized net; a stack replaces some of what is given to it."""
    params, callbacks = start.params, list(callbacks)
    if schedule.early_stopping:
        # Noise that falls improves nothing for long, and then much.
        is_patient = schedule.one_cycle or start.criterion.follows
        patience = None if is_patient else params.n_iter_no_change
        callbacks.append(KeepBest(patience, params.tol))
    device = start.rows.device
    optimizer, optimizer_params = resolve_optimizer(params.optimizer, device)
    settings = {
        "module": start.vae,
        "criterion": start.criterion,
        "seed": start.seeds[0],
        "one_cycle": schedule.one_cycle,
        "precision": params.precision,
        "optimizer": optimizer,
        "lr": params.learning_rate,
        "max_epochs": schedule.epochs,
        "batch_size": int(params.batch_size),
        "callbacks": callbacks,
        "device": str(device),
        "verbose": 0,
    }
    settings |= {f"optimizer__{name}": v for name, v in optimizer_params.items()}
    return net_class(**settings | replaced).initialize()


@contextmanager
def _explain_failure(start):
    """Context in which errors name what causes them: units, or batches of one row."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            raise ValueError(
                "The network has a batch normalization, which needs batches of 2 rows "
                f"or more. There are {len(start.samples.X)} rows, and batch_size="
                f"{start.params.batch_size}. Pass more rows, or raise batch_size."
            ) from error
        if not (start.is_far and isinstance(error, DivergenceError)):
            raise
        raise DivergenceError(
            "Training diverged since its rows are far larger than those of the first "
            f"chunk or fit, which fixed the units of the networks. {FIRST_CHUNK}"
        ) from error


def _copied_callbacks(params):
    """Copies of the user's callbacks, which skorch initializes in place."""
    callbacks = []
    for callback in params.callbacks or []:
        try:
            callbacks.append(deepcopy(callback))
        # Loggers hold open files and locks, which copies share.
        except TypeError:
            callbacks.append(copy(callback))
    check_callbacks(callbacks)
    return callbacks
