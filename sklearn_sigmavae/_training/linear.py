"""The linear model that training starts from, and that completes rows with gaps."""

import math
from typing import NamedTuple

import numpy as np

from .._model.elbo import ANNEALED, SLOW_FALL, linear_tau
from .._model.gaps import Completion
from .._model.units import Units
from ..noise import resolve_noise
from .em import incomplete_axes
from .pca import PrincipalAxes, principal_axes, rows_for_start

# A learned scale stays above this fraction of the data's global scale: where the model
# can fit every row the bound has no maximum.
MIN_LEARNED_SCALE = 1e-3

# Networks see the axes along which the variance exceeds this fraction of tau; a smaller
# one if the scale is learned, since it may fall far below that of the linear model.
HIDDEN_BELOW, HIDDEN_BELOW_LEARNED = 0.15, 0.01

# The largest noise that training starts with, relative to the data's scale. More would
# hide what the linear model has found.
LARGEST_SCALE = 0.4


class LinearStart(NamedTuple):
    """The linear model that training starts from, in units without axes.

    ``is_complete`` says that the axes are all those that networks should see.
    """

    units: Units
    axes: PrincipalAxes
    is_complete: bool
    scale: float
    tau: float


def linear_start(params, samples, units, noise, scale, like):
    """The ``LinearStart`` of a fit with its scale of the noise, None to find one."""

    def scale_of_start(axes):
        if scale is not None:
            return scale
        ratio = linear_tau(noise, 1.0, params.beta) / noise.variance_factor
        variance = axes.noise_variance_mle(params.n_components, ratio)
        if is_auto(params) and not variance:
            # The largest at which the linear model is that of any smaller one.
            n_used = min(params.n_components, len(axes.eigenvalues))
            variance = 0.98 * float(axes.eigenvalues[n_used - 1])
        lowest = MIN_LEARNED_SCALE * units.data_scale / units.mean_scale
        return max(lowest, float(np.sqrt(variance / noise.variance_factor)))

    def tau_of(axes):
        return linear_tau(noise, scale_of_start(axes), params.beta)

    def level(axes):
        return level_seen(params, tau_of(axes), units)

    k = params.n_components
    if samples.has_gaps:
        x = rows_for_start(samples.X, units, k)
        axes, mean, tau, is_complete = incomplete_axes(x, k, level, tau_of)
        units = units.moved(mean)
        found = math.sqrt(tau / linear_tau(noise, 1.0, params.beta))
        return LinearStart(units, axes, is_complete, scale or found, tau)
    if like is not None:
        axes, is_complete = like.axes, like.vae.units.axes is not None
    else:
        x = rows_for_start(samples.X, units, k)
        axes, is_complete = principal_axes(x, k, level)
    return LinearStart(units, axes, is_complete, scale_of_start(axes), tau_of(axes))


def completion_for(params, X, units, linear, size):
    """What completes rows, in units with values divided by a size."""
    k = params.n_components
    if linear is None:
        mean = np.zeros(X.shape[1])
        if not resolve_noise(params.noise).has_scale:
            rows = rows_for_start(X, units, k)
            mean = np.nanmean(rows, axis=0, dtype=np.float64)
        return Completion.by_mean(mean, k)
    axes = linear.axes.divided_by(size)
    return Completion(
        mean=np.zeros(len(axes.axes)),
        axes=np.ascontiguousarray(axes.axes[:, :k]),
        variances=axes.eigenvalues[:k],
        noise_variance=linear.tau / size**2,
        n_components=k,
        corrects=params.init == "pca",
    )


def level_seen(params, tau, units):
    """Variance of the axes that networks see at least, in these units."""
    if is_auto(params):
        # Noise ends there if it falls slowly, or well below the linear model's.
        end = largest_noise(units) * SLOW_FALL ** (-1 / ANNEALED)
        return min(HIDDEN_BELOW * end**2, HIDDEN_BELOW_LEARNED * tau)
    is_learned = isinstance(params.sigma, str)
    return (HIDDEN_BELOW_LEARNED if is_learned else HIDDEN_BELOW) * tau


def largest_noise(units):
    """The largest noise that training starts with, in internal units."""
    return LARGEST_SCALE * units.data_scale / units.mean_scale


def is_auto(params):
    """Whether sigma is to be chosen by held-out rows."""
    return isinstance(params.sigma, str) and params.sigma == "auto"
