"""From an estimator's parameters and an array to a trained net."""

from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass

import numpy as np

from ._batches import Selection, SelectionStack
from ._bound import NegativeBoundStack
from ._checkpoint import checkpoint_of
from ._device import explain_out_of_memory
from ._net import BoundNet, DivergenceError, KeepBest, ProgressBar
from ._outcome import conclude, some_of
from ._stack import StackNet, VAEStack
from ._start import FIRST_CHUNK, draw_seeds, prepare, structure
from ._threads import limited_threads
from ._validation import (
    check_callbacks,
    resolve_device,
    resolve_optimizer,
    sigma_in_feature_order,
)


@dataclass(frozen=True)
class Plan:
    """How long to train, and how.

    Attributes
    ----------
    epochs : int
        Number of epochs.
    schedule : {"one_cycle", "constant"}
        Schedule of the learning rate.
    early_stopping : bool
        Whether to keep the best held-out weights.
    reports : bool
        Whether to report what a user should know of the result.
    """

    epochs: int
    schedule: str
    early_stopping: bool
    reports: bool = True

    @classmethod
    def of_fit(cls, params):
        """What an estimator's ``fit`` does."""
        schedule = "constant" if params.warm_start else params.lr_schedule
        return cls(int(params.max_iter), schedule, params.early_stopping)


# One epoch on all rows: what ``partial_fit`` does.
ONE_EPOCH = Plan(1, "constant", early_stopping=False, reports=False)


def train_net(params, data, random_state, plan, previous=None):
    """Train a net on rows.

    Parameters
    ----------
    params, data, previous
        As for :func:`prepare`.
    random_state : numpy.random.RandomState
        Source of all randomness.
    plan : Plan
        How long to train, and how.

    Returns
    -------
    net : BoundNet
        Trained, with the learned scale of the noise, if any, in ``criterion_.scale``
        and what :func:`~sklearn_sigmavae._outcome.conclude` finds.
    """
    callbacks = _callbacks(params)
    with checkpoint_of(params, plan, data, random_state, previous) as checkpoint:
        seeds = draw_seeds(random_state) if checkpoint is None else checkpoint.seeds
        start = prepare(params, data, seeds, previous)
        return train_prepared(start, plan, callbacks, previous, checkpoint)


def train_prepared(start, plan, callbacks=(), previous=None, checkpoint=None):
    """Train a model; see :func:`train_net`."""
    params, vae, criterion = start.params, start.vae, start.criterion
    device = resolve_device(params.device)
    with (
        explain_out_of_memory(device, params.batch_size),
        _explain_failure(start),
        _threads_of_steps([start], device),
    ):
        callbacks = [*callbacks] if checkpoint is None else [*callbacks, checkpoint]
        net = make_net(params, vae, criterion, start.seed, plan, callbacks, device)
        if previous is not None:
            net.resume(previous)
        selection, held_out = start.select(plan, device)
        net.examine_start(some_of(selection) if held_out is None else held_out)
        if plan.epochs:
            net.train(selection, held_out, checkpoint)
        rows = start.data.rows(vae.units, device)
        if criterion.learns_scale:
            net.learn_scale(Selection(rows))
        conclude(net, start, plan, rows, held_out)
    return net


def train_stack(starts, plan, callbacks=()):
    """Train several models as one stack, each as :func:`train_net` would.

    Parameters
    ----------
    starts : list of Start
        Models of one architecture whose estimators' parameters differ in ``sigma``,
        ``beta`` and ``random_state`` alone (no model learns its scale, or all do), with
        equal numbers of rows.
    plan : Plan
        How long to train, and how.
    callbacks : sequence of skorch callbacks
        For the stack.

    Returns
    -------
    nets : list of BoundNet or Exception
        For each model its net, or why its training failed.

    Raises
    ------
    NotStackableError
        If the networks cannot be stacked.
    """
    params = starts[0].params
    device = resolve_device(params.device)
    vaes = [start.vae for start in starts]
    stack = VAEStack(vaes)
    criterion = NegativeBoundStack([start.criterion for start in starts])
    selections = [start.select(plan, device) for start in starts]
    # Members with the same rows in the same order share their batches.
    keys = [
        (id(pair), start.seed) for pair, start in zip(selections, starts, strict=True)
    ]
    firsts = [keys.index(key) for key in dict.fromkeys(keys)]
    members = [list(dict.fromkeys(keys)).index(key) for key in keys]
    seeds = tuple(starts[i].seed for i in firsts)

    def stacked(distinct):
        return SelectionStack(distinct, members)

    with (
        explain_out_of_memory(device, params.batch_size),
        _threads_of_steps(starts, device),
    ):
        net = make_net(
            params, stack, criterion, seeds, plan, list(callbacks), device, StackNet
        )
        selection = stacked([selections[i][0] for i in firsts])
        held_out = None
        if selections[0][1] is not None:
            held_out = stacked([selections[i][1] for i in firsts])
        shown = held_out
        if held_out is None:
            shown = stacked([some_of(selections[i][0]) for i in firsts])
        net.examine_start(shown)
        if plan.epochs:
            try:
                net.train(selection, held_out)
            except ValueError as error:  # all have diverged
                return [error] * len(starts)
        rows = [start.data.rows(start.vae.units, device) for start in starts]
        if criterion.learns_scale:
            net.learn_scale(stacked([Selection(rows[i]) for i in firsts]))
        stack.write_to(vaes)
        return [
            _member(net, i, start, plan, rows[i], selections[i][1], device)
            for i, start in enumerate(starts)
        ]


@contextmanager
def _explain_failure(start):
    """Context in which errors name what causes them: units, or batches of one row."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            raise ValueError(
                "The network has a batch normalization, which needs batches of 2 rows "
                f"or more. There are {len(start.data.X)} rows, and batch_size="
                f"{start.params.batch_size}. Pass more rows, or raise batch_size."
            ) from error
        if not isinstance(error, DivergenceError):
            raise
        if not start.is_far:
            raise
        raise DivergenceError(
            "Training diverged since its rows are far larger than those of the first "
            f"chunk or fit, which fixed the units of the networks. {FIRST_CHUNK}"
        ) from error


def _threads_of_steps(starts, device):
    """Context with the threads that training steps of these models deserve."""
    n_rows = min(starts[0].params.batch_size, len(starts[0].data.X))
    n_operations = sum(start.vae.n_operations for start in starts)
    return limited_threads(n_operations * n_rows, device)


def _member(net, i, start, plan, rows, held_out, device):
    """Net of a member of a trained stack, or why it failed."""
    if start.criterion.learns_scale:
        start.criterion.scale = float(net.criterion_.scale[i])
    member = make_net(
        start.params, start.vae, start.criterion, start.seed, plan, [], device
    )
    try:
        member.history_ = net.member_history(i)
        for name in ("start_loss_", "best_epoch_", "is_rising_"):
            value = np.broadcast_to(getattr(net, name), net.module_.n_members)
            setattr(member, name, value[i].item())
        conclude(member, start, plan, rows, held_out)
    except ValueError as error:
        return error
    return member


def make_net(params, vae, criterion, seed, plan, callbacks, device, net_class=BoundNet):
    """An initialised net.

    Parameters
    ----------
    params : SigmaVAE
        Its parameters are read.
    vae, criterion, seed, net_class
        What ``net_class`` is given.
    plan : Plan
        How long it is to train, and how.
    callbacks : list
        Those of the user and the progress bar.
    device : torch.device
        Where it is to train.
    """
    if plan.early_stopping:
        patience = params.n_iter_no_change if plan.schedule == "constant" else None
        callbacks = [*callbacks, KeepBest(patience, params.tol)]
    optimizer, optimizer_params = resolve_optimizer(params.optimizer, device)
    return net_class(
        vae,
        criterion,
        seed=seed,
        one_cycle=plan.schedule == "one_cycle",
        structure=structure(params),
        precision=params.precision,
        optimizer=optimizer,
        lr=params.learning_rate,
        max_epochs=plan.epochs,
        batch_size=int(params.batch_size),
        callbacks=callbacks,
        device=str(device),
        verbose=0,
        **{f"optimizer__{name}": value for name, value in optimizer_params.items()},
    ).initialize()


def _callbacks(params):
    # skorch initialises callbacks in place, so each fit has its own.
    callbacks = [_copied(callback) for callback in params.callbacks or []]
    check_callbacks(callbacks)
    if params.verbose:
        callbacks.append(ProgressBar())
    return callbacks


def _copied(callback):
    try:
        return deepcopy(callback)
    # Loggers hold open files and locks, which copies share.
    except TypeError:
        return copy(callback)


def sigma_in_use(net, sigma, feature_names=None):
    """Scale of the noise of a trained net, in the units of the data.

    Parameters
    ----------
    net : BoundNet
        The net.
    sigma : float, array-like or "mle"
        What it was asked to have.
    feature_names : ndarray of shape (n_features,) or None
        Names of the features, if the data has some.

    Returns
    -------
    sigma : float, ndarray or None
        An array if `sigma` is one; None for noise without a scale.
    """
    if net.criterion_.learns_scale:
        learned = net.scale * net.module_.units.scale
        return learned if np.ptp(learned) else float(learned[0])
    if not net.noise.has_scale:
        return None
    # A copy: changing the parameter must not change the fitted model.
    copied = sigma_in_feature_order(sigma, feature_names)
    return copied if copied.ndim else float(copied)
