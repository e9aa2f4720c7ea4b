"""What a training has come to: whether it diverged, what it gained, what to report."""

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from ._batches import EvaluationBatches, Selection
from ._bound import kl_divergence
from ._device import matmul_precision
from ._net import DivergenceError, divergence_error
from ._pca_init import noise_variance
from ._start import MIN_LEARNED_SCALE, NUMBERS_FOR_START

# Components with less KL than this, in nats, count as unused.
ACTIVE_KL = 0.01

# Rows, about, over which KL and errors of reconstruction are averaged after a fit.
ROWS_TO_EXAMINE = 1000

# A finite loss counts as diverged if it has risen by this many times its size at the
# start, or this many nats for each feature.
_DIVERGED = 10

# Residuals this many times the noise's standard deviation decide the score.
_LARGE_RESIDUAL = 10

# Columns that reach this many times sigma from their mean: in float32 such numbers are
# rounded to about a tenth of sigma.
_LARGE_COLUMN = 2**20

# By how much the norm of a draw from a posterior may exceed its root mean square: its
# standard deviation is below 0.71, that of the prior.
_NORM_MARGIN = 2.0

_KEPT_START = (
    "No epoch improved on the start of the training, which is kept: best_epoch_ is 0. "
    "On the held-out rows the networks gain nothing over {}. More rows, a smaller "
    "network (hidden_layer_sizes), weight decay (optimizer='adamw') or another sigma "
    "may help."
)

_WORSE = (
    "Training ended below its start (start_score_). Lower learning_rate, or set "
    "early_stopping=True, which keeps the best weights."
)

_STILL_RISING = (
    "The held-out bound was still rising when max_iter was reached. Increase max_iter, "
    "or set lr_schedule='one_cycle', which ends at a learning rate of zero."
)


def some_of(selection):
    """About a thousand evenly chosen rows of a selection."""
    step = max(1, len(selection) // ROWS_TO_EXAMINE)
    return Selection(selection.rows, selection.index[::step])


def conclude(net, start, plan, rows, held_out):
    """Examine a net, and put what is found among its attributes.

    Parameters
    ----------
    net : BoundNet
        The net, with the loss of its start in ``start_loss_`` and the best epoch in
        ``best_epoch_``.
    start : Start
        What it was made from.
    plan : Plan
        How it was trained.
    rows : ResidentRows, IntegerRows or HostRows
        All rows.
    held_out : Selection or None
        Held-out rows.

    Raises
    ------
    DivergenceError
        If the training has diverged.
    """
    vae, criterion = net.module_.eval(), net.criterion_
    if criterion.learns_scale:
        _warn_of_least_scale(criterion.scale)
    some = some_of(Selection(rows))
    with matmul_precision(net.device):
        if plan.epochs:
            _check_end(net, some, held_out, plan)
        net.start_score_ = -float(net.start_loss_)
        net.n_active_components_ = _count_active(vae, some)
        shown = some if held_out is None else some_of(held_out)
        residuals, error = _residuals(vae, criterion.noise, shown)
        net.reconstruction_error_ = error
        if start.tails is not None:
            tails = start.tails.to(net.device)
            tau = noise_variance(criterion.noise, criterion.scale, start.params.beta)
            tails.noise_variance = torch.full_like(tails.limit, tau)
            tails.limit = _largest_code(vae, Selection(rows), tails.limit)
            vae.tails = tails
    net.remarks_ = []
    if plan.reports:
        net.remarks_ = [*_remarks(net, start, plan, float(np.median(residuals)))]


def _check_end(net, some, held_out, plan):
    """Raise ``DivergenceError`` if the weights are of no use."""
    # No epoch has seen what its last step did.
    loss = net.validation_loss(some)
    if not np.isfinite(loss):
        raise divergence_error(len(net.history), net.lr)
    if plan.early_stopping:
        return
    if held_out is not None:
        loss = net.validation_loss(held_out)
    net.end_loss_ = loss
    unit = max(abs(net.start_loss_), net.module_.layout.n_features)
    if loss > net.start_loss_ + _DIVERGED * unit:
        raise DivergenceError(
            f"Training diverged: the bound fell from {-net.start_loss_:.6g} to "
            f"{-loss:.6g} nats per row. Lower learning_rate (now {net.lr:g}), raise "
            "sigma or batch_size, or set early_stopping=True, which keeps the best "
            "weights."
        )


class Remark(NamedTuple):
    """What a user should know of a fit that has not failed.

    Attributes
    ----------
    category : type
        Category of the warning.
    text : str
        Its text.
    of_sigma : bool
        Whether it is about the choice of sigma, which a search over sigma makes.
    """

    category: type
    text: str
    of_sigma: bool = False


def _remarks(net, start, plan, residual):
    """Remarks on a fit; `residual` is the typical one, in internal units."""
    params, criterion, vae = start.params, net.criterion_, net.module_
    if plan.early_stopping and plan.epochs and not net.best_epoch_ and start.can_gain:
        yield Remark(ConvergenceWarning, _KEPT_START.format(start.origin))
    if net.is_rising_ and not params.warm_start:
        yield Remark(ConvergenceWarning, _STILL_RISING)
    if plan.epochs and not plan.early_stopping and net.end_loss_ > net.start_loss_ + 1:
        yield Remark(ConvergenceWarning, _WORSE)
    if criterion.scale is None or criterion.learns_scale:
        return
    deviation = criterion.scale * math.sqrt(criterion.noise.variance_factor)
    if residual > _LARGE_RESIDUAL * deviation:
        sigma = criterion.scale * vae.units.mean_scale
        yield Remark(
            UserWarning,
            f"Residuals of typical rows are {residual / deviation:.2g} times as large "
            f"as the noise that sigma={sigma:.3g} stands for, so that the score is "
            "that of the misfit. A sigma near the residuals is about "
            f"{sigma * residual / deviation:.2g}; more components, or more epochs, "
            "would make them smaller.",
            of_sigma=True,
        )
    if vae.units.low is None:
        return
    reach = np.maximum(-vae.units.low, vae.units.high)
    widest = int(reach.argmax())
    if len(reach) > 1 and reach[widest] > _LARGE_COLUMN * deviation:
        names = getattr(params, "feature_names_in_", None)
        name = widest if names is None else repr(names[widest])
        yield Remark(
            UserWarning,
            f"Column {name} reaches {reach[widest] / deviation:.2g} times sigma from "
            "its mean, more than training in float32 resolves: the networks see little "
            "of the other columns. Put a StandardScaler before SigmaVAE, or give sigma "
            "one value per column.",
        )


def gather_remarks(remarks, n_fits):
    """Issue one warning for each kind of remark that fits of a search have in common.

    A grid of sigma is there to find the one that suits the residuals, so that what is
    said of one sigma is left out.
    """
    kinds = {}
    for remark in remarks:
        # They may differ in numbers.
        kinds.setdefault(tuple(remark.text.split()[:3]), []).append(remark)
    for found in kinds.values():
        category, text, of_sigma = found[0]
        if not of_sigma:
            text = f"In {len(found)} of {n_fits} fits: {text}"
            # Past fit and scikit-learn's wrapper of it.
            warnings.warn(text, category, stacklevel=4)


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


def _residuals(vae, noise, selection):
    """Root mean squares of what draws of the posterior miss.

    Returns
    -------
    of_rows : ndarray of shape (n,)
        Over features, in internal units.
    error : float
        Over rows and features, in the data's units.
    """
    unit = vae.units.mean_scale
    relative, of_rows, squares = vae.units.scale / unit, [], []
    with torch.no_grad():
        for x, eps in EvaluationBatches(selection, vae, 2):
            mean, log_var = vae.encode(x)
            location = vae.decode(mean + torch.exp(0.5 * log_var) * eps)
            error = noise.mean(location.cpu().numpy()) - x.cpu().numpy()
            of_rows.append(np.sqrt(np.square(error).mean(axis=(0, 2))))
            squares.append(np.square(error * relative).mean(axis=2))
    error = unit * np.sqrt(np.concatenate(squares, axis=1).mean())
    return np.concatenate(of_rows), float(error)


def _largest_code(vae, selection, limit):
    """Norm up to which codes are not far, `limit` at least."""
    step = math.ceil(len(selection) * vae.layout.n_features / NUMBERS_FOR_START)
    selection = Selection(selection.rows, selection.index[::step])
    with torch.no_grad():
        for x, _ in EvaluationBatches(selection, vae, 2):
            mean, log_var = vae.encode(x)
            norm = (mean.square() + log_var.exp()).sum(dim=1).sqrt()
            limit = torch.maximum(limit, norm.max() + _NORM_MARGIN)
    return limit
