"""From an estimator's parameters and an array to a trained net."""

import warnings
from copy import copy, deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from ._batches import EvaluationBatches, Selection, SelectionStack
from ._bound import NegativeBoundStack, kl_divergence
from ._checkpoint import checkpoint_of
from ._device import explain_out_of_memory, matmul_precision
from ._net import BoundNet, DivergenceError, KeepBest, ProgressBar, divergence_error
from ._stack import StackNet, VAEStack
from ._start import MIN_LEARNED_SCALE, draw_seeds, prepare, structure
from ._validation import (
    check_callbacks,
    resolve_device,
    resolve_optimizer,
    sigma_in_feature_order,
)

# Components with less KL than this, in nats, count as unused.
ACTIVE_KL = 0.01

# Rows, about, over which KL and errors of reconstruction are averaged after a fit.
ROWS_TO_EXAMINE = 1000


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
    """

    epochs: int
    schedule: str
    early_stopping: bool

    @classmethod
    def of_fit(cls, params):
        """What an estimator's ``fit`` does."""
        schedule = "constant" if params.warm_start else params.lr_schedule
        return cls(int(params.max_iter), schedule, params.early_stopping)


# One epoch on all rows: what ``partial_fit`` does.
ONE_EPOCH = Plan(1, "constant", early_stopping=False)


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
        the number of components in use in ``n_active_components_`` and the error of
        reconstructions in ``reconstruction_error_``.
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
    with explain_out_of_memory(device, params.batch_size):
        callbacks = [*callbacks] if checkpoint is None else [*callbacks, checkpoint]
        net = make_net(params, vae, criterion, start.seed, plan, callbacks, device)
        if previous is not None:
            net.resume(previous)
        selection, held_out = start.select(plan, device)
        if plan.epochs:
            net.train(selection, held_out, checkpoint)
        rows = start.data.rows(vae.units, device)
        if criterion.learns_scale:
            net.learn_scale(Selection(rows))
        _conclude(net, rows, held_out)
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

    with explain_out_of_memory(device, params.batch_size):
        net = make_net(
            params, stack, criterion, seeds, plan, list(callbacks), device, StackNet
        )
        selection = stacked([selections[i][0] for i in firsts])
        held_out = None
        if selections[0][1] is not None:
            held_out = stacked([selections[i][1] for i in firsts])
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


def _member(net, i, start, plan, rows, held_out, device):
    """Net of a member of a trained stack, or why it failed."""
    if start.criterion.learns_scale:
        start.criterion.scale = float(net.criterion_.scale[i])
    member = make_net(
        start.params, start.vae, start.criterion, start.seed, plan, [], device
    )
    try:
        member.history_ = net.member_history(i)
        _conclude(member, rows, held_out)
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


def _conclude(net, rows, held_out):
    vae, noise = net.module_.eval(), net.criterion_.noise
    if net.criterion_.learns_scale:
        _warn_of_least_scale(net.criterion_.scale)
    some = _some_of(Selection(rows))
    with matmul_precision(net.device):
        # No epoch has seen what its last step did.
        if net.max_epochs and not np.isfinite(net.validation_loss(some)):
            raise divergence_error(len(net.history), net.lr)
        net.n_active_components_ = _count_active(vae, some)
        shown = some if held_out is None else _some_of(held_out)
        net.reconstruction_error_ = _reconstruction_error(vae, noise, shown)


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


def _warn_of_least_scale(scale):
    if scale < 1.01 * MIN_LEARNED_SCALE:
        warnings.warn(
            f"sigma='mle' reached its lower limit, {MIN_LEARNED_SCALE:g} of the data's "
            "scale: the likelihood grows without bound as sigma falls. Look for "
            "constant or duplicated columns, lower n_components, or give sigma a "
            "number.",
            ConvergenceWarning,
            stacklevel=2,
        )


def _some_of(selection):
    """About a thousand evenly chosen rows of a selection."""
    step = max(1, len(selection) // ROWS_TO_EXAMINE)
    return Selection(selection.rows, selection.index[::step])


def _reconstruction_error(vae, noise, selection):
    """Root mean squared error of reconstructions from draws, in the data's units."""
    unit = vae.units.mean_scale
    squares = []
    with torch.no_grad():
        for x, eps in EvaluationBatches(selection, vae, 2):
            mean, log_var = vae.encode(x)
            location = vae.decode(mean + torch.exp(0.5 * log_var) * eps)
            error = noise.mean(location.cpu().numpy()) - x.cpu().numpy()
            squares.append(np.square(error * (vae.units.scale / unit)).mean(axis=2))
    return float(unit * np.sqrt(np.concatenate(squares, axis=1).mean()))


def _count_active(vae, selection):
    with torch.no_grad():
        batches = (x for x, _ in EvaluationBatches(selection, vae, 2))
        kl = torch.cat([kl_divergence(*vae.encode(x)) for x in batches]).mean(dim=0)
    if not all(tensor.isfinite().all() for tensor in (kl, *vae.parameters())):
        raise DivergenceError(
            "Training diverged: the weights are no longer finite. Lower learning_rate, "
            "or raise sigma or batch_size."
        )
    return int((kl > ACTIVE_KL).sum())


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
