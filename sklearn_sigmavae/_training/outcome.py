"""The outcome of training: whether it diverged, what it gained, what to report."""

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from .._errors import DivergenceError, divergence_error
from .._model.blocks import INITIAL
from .._model.elbo import linear_tau
from .._model.fitted import FittedModel
from .._model.settings import matmul_precision
from .._validation import as_scales
from .data import EvaluationBatches, Selection
from .initial import structure
from .linear import MIN_LEARNED_SCALE


def conclude(net, start, schedule):
    """``FittedModel`` of a trained net; ``DivergenceError`` if it has diverged."""
    vae, criterion, params = net.module_.eval(), net.criterion_, start.params
    lowest = criterion.falling.lowest if criterion.follows else criterion.min_scale
    if lowest is not None and criterion.scale < 1.01 * lowest:
        warnings.warn(
            f"sigma='{params.sigma}' reached its lower limit, {MIN_LEARNED_SCALE:g} "
            "of the data's scale: the likelihood grows without bound as sigma falls. "
            "Look for constant or duplicated columns, lower n_components, or give "
            "sigma a number.",
            ConvergenceWarning,
            stacklevel=2,
        )
    rows, held_out = Selection(start.rows), start.held_out
    some, end_loss = rows.some(), None
    with matmul_precision(net.device):
        if schedule.epochs:
            end_loss = _end_loss(net, some, held_out, schedule)
        n_active = _count_active(vae, some)
        shown = some if held_out is None else held_out.some()
        residuals, error = _residuals(vae, criterion.noise, shown)
        if start.tails is not None:
            tails = start.tails.to(net.device)
            tau = linear_tau(criterion.noise, criterion.scale, params.beta)
            tails.noise_variance = torch.full_like(tails.limit, tau)
            tails.limit = _largest_code(vae, rows, tails.limit)
            vae.tails = tails
    tau = criterion.noise_variance
    if tau is not None and vae.completion is not None:
        vae.completion = vae.completion.at(tau)
    # Rows without gaps are coordinates from now on.
    vae.set_rotates(criterion.noise.is_rotation_invariant)
    sigma = _sigma_in_use(criterion, params, vae.units, start.samples.feature_names)
    scale = criterion.scale
    if criterion.learns_scale or criterion.follows:
        # As a file would have it, to the last digit.
        scale = vae.units.common_scale(sigma)
    residual = float(np.median(residuals))
    remarks = _remarks(net, start, schedule, end_loss, n_active, residual)
    return FittedModel(
        module=vae,
        noise=criterion.noise,
        scale=scale,
        sigma=sigma,
        beta=float(params.beta),
        structure=structure(params),
        history=net.history,
        n_iter=len(net.history),
        n_active_components=n_active,
        reconstruction_error=error,
        start_score=-float(net.start_loss_),
        best_epoch=net.best_epoch_,
        remarks=tuple(remarks) if schedule.reports else (),
        net=net,
    )


def _sigma_in_use(criterion, params, units, feature_names):
    """Scale of the noise in the units of the data; None for noise without one."""
    if isinstance(params.sigma, str) and criterion.noise.has_scale:
        learned = units.scale_to_data(criterion.scale)
        return learned if np.ndim(learned) else float(learned)
    if not criterion.noise.has_scale:
        return None
    # A copy: changing the parameter must not change the fitted model.
    sigma = as_scales(params.sigma, feature_names, "sigma")
    return sigma if sigma.ndim else float(sigma)


def _end_loss(net, some, held_out, schedule):
    """Loss at the end, or None if the best weights were kept; raises if diverged."""
    # The losses of epochs do not include the effect of the last step.
    loss = net.validation_loss(some)
    if not np.isfinite(loss):
        raise divergence_error(len(net.history), net.lr)
    if schedule.early_stopping:
        return None
    if held_out is not None:
        loss = net.validation_loss(held_out)
    # Ten times the start's size, or ten nats for each feature, is no fluctuation.
    unit = max(abs(net.start_loss_), net.module_.layout.n_features)
    if loss > net.start_loss_ + 10 * unit:
        raise DivergenceError(
            f"Training diverged: the bound fell from {-net.start_loss_:.6g} to "
            f"{-loss:.6g} nats per row. Lower learning_rate (now {net.lr:g}), raise "
            "sigma or batch_size, or set early_stopping=True."
        )
    return loss


class Remark(NamedTuple):
    """A warning about a fit; ``of_sigma`` if it is about the choice of sigma."""

    category: type
    text: str
    of_sigma: bool = False


def _remarks(net, start, schedule, end_loss, n_active, residual):
    """Remarks on a fit; `residual` is the typical one, in internal units."""
    params, criterion, units = start.params, net.criterion_, net.module_.units
    has_scale = criterion.noise.has_scale
    # A start at PCA has warned of a sigma that hides all of the data.
    if not n_active and schedule.epochs and start.axes is None:
        remedy = "Lower beta, or train for more epochs."
        if has_scale:
            remedy = "Lower sigma, or start at PCA (init='pca', with linear_path=True)."
        yield Remark(
            UserWarning,
            "No component is in use: all rows have the same code, and are decoded to "
            f"the same row. {remedy}",
            of_sigma=has_scale,
        )
    networks = net.module_.encoder, net.module_.decoder
    # A linear model has nothing to gain.
    can_gain = any(getattr(each, "network", each) is not None for each in networks)
    if schedule.early_stopping and schedule.epochs and not net.best_epoch_ and can_gain:
        pca, given = (
            "the linear model, PCA at this sigma",
            "the weights that it began with",
        )
        if not net.module_.prior.factorizes:
            pca = "the linear model with this prior"
        origin = given if start.axes is None else pca
        yield Remark(
            ConvergenceWarning,
            "No epoch improved on the start of the training, which is kept: on the "
            f"held-out rows the networks gain nothing over {origin}. Try more rows, "
            "smaller hidden_layer_sizes, weight decay (optimizer='adamw') or another "
            "sigma.",
        )
    if net.is_rising_ and not params.warm_start:
        yield Remark(
            ConvergenceWarning,
            "The held-out bound was still rising when max_iter was reached. Increase "
            "max_iter, or set lr_schedule='one_cycle', which ends at a learning rate "
            "of zero.",
        )
    if end_loss is not None and end_loss > net.start_loss_ + 1:
        yield Remark(
            ConvergenceWarning,
            "Training ended below its start (start_score_). Lower learning_rate, or "
            "set early_stopping=True, which keeps the best weights.",
        )
    if criterion.scale is None or criterion.learns_scale or criterion.follows:
        return
    deviation = criterion.scale * math.sqrt(criterion.noise.variance_factor)
    if residual > 10 * deviation:
        sigma = units.mean_scale_to_data(criterion.scale)
        yield Remark(
            UserWarning,
            f"Residuals of typical rows are {residual / deviation:.2g} times as large "
            f"as the noise of sigma={sigma:.3g}, so the score is that of the misfit. A "
            f"sigma near the residuals is about {sigma * residual / deviation:.2g}; "
            "more components, or more epochs, would make them smaller.",
            of_sigma=True,
        )
    if units.low is None:
        return
    reach = np.maximum(-units.low, units.high)
    widest = int(reach.argmax())
    # In float32 such numbers are rounded to about a tenth of sigma.
    if len(reach) > 1 and reach[widest] > 2**20 * deviation:
        names = start.samples.feature_names
        name = widest if names is None else repr(names[widest])
        yield Remark(
            UserWarning,
            f"Column {name} reaches {reach[widest] / deviation:.2g} times sigma from "
            "its mean, more than float32 resolves: the networks see little else. Put a "
            "StandardScaler before SigmaVAE, or give sigma one value per column.",
        )


def gather_remarks(remarks, n_fits):
    """Issue one warning for each kind of remark, less those that a search answers."""
    kinds = {}
    for remark in remarks:
        # Their numbers may differ.
        kinds.setdefault(tuple(remark.text.split()[:3]), []).append(remark)
    for found in kinds.values():
        category, text, of_sigma = found[0]
        if not of_sigma:
            text = f"In {len(found)} of {n_fits} fits: {text}"
            # Past fit and scikit-learn's wrapper of it.
            warnings.warn(text, category, stacklevel=4)


@torch.no_grad()
def _posteriors(vae, selection):
    """Rows, their posteriors, and points to evaluate these at, batch by batch."""
    batches = EvaluationBatches(selection, vae)
    for x, eps in batches:
        yield x, vae.encode(x), eps


def _count_active(vae, selection):
    """Components whose posterior means vary; KL divergences need not split."""
    found = [posterior.stack() for _, posterior, _ in _posteriors(vae, selection)]
    mean, log_var = torch.cat(found).unbind(1)
    spread, width = mean.var(dim=0, correction=0), log_var.exp().mean(dim=0)
    ratio = spread / (spread + width)
    if not all(tensor.isfinite().all() for tensor in (ratio, *vae.parameters())):
        raise DivergenceError(
            "Training diverged: the weights are no longer finite. Lower learning_rate, "
            "or raise sigma or batch_size."
        )
    # The optimal linear model has a KL divergence of 0.01 nats there.
    return int((ratio > 0.02).sum())


@torch.no_grad()
def _residuals(vae, noise, selection):
    """Root mean square errors of rows, standardized, and of all, in data's units."""
    of_rows, squares, units = [], [], vae.units
    relative = units.scale / units.mean_scale
    X, index = selection.rows.X, selection.index.cpu()
    for _, posterior, eps in _posteriors(vae, selection):
        here, index = index[: len(posterior.mean)], index[len(posterior.mean) :]
        location = vae.decode(posterior.points(eps)).cpu().numpy()
        # What internal values do not hold is an error too.
        x = units.standardize(X[here.numpy()]).numpy()
        error = units.rotate_back(noise.mean(location)) - x
        # Without rows of which nothing is known.
        error = error[:, ~np.isnan(x).all(axis=1)]
        if not error.size:
            continue
        of_rows.append(np.sqrt(np.nanmean(np.square(error), axis=(0, 2))))
        squares.append(np.nanmean(np.square(error * relative), axis=2))
    if not of_rows:
        return np.zeros(1), 0.0
    error = units.mean_scale * np.sqrt(np.concatenate(squares, axis=1).mean())
    return np.concatenate(of_rows), float(error)


def _largest_code(vae, selection, limit):
    """Norm up to which codes are not far, no less than `limit`."""
    n_numbers = len(selection) * vae.layout.n_features
    some = selection.every(math.ceil(n_numbers / INITIAL))
    for _, posterior, _ in _posteriors(vae, some):
        norm = (posterior.mean.square() + posterior.log_var.exp()).sum(dim=1).sqrt()
        # The norm of a draw varies with a standard deviation below 0.71, the prior's.
        limit = torch.maximum(limit, norm.max() + 2.0)
    return limit
