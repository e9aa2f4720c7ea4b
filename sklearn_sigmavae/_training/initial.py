"""The model that training starts from: new, or that of an earlier fit.

A new one starts at probabilistic PCA. With no nonlinear path, Gaussian noise of scale
sigma and the objective's beta, the optimum is known [1]_. With lambda_i the eigenvalues
of the covariance (divided by n), u_i its eigenvectors and tau = beta * sigma**2,
component i is in use if lambda_i > tau; then

    encoder mean      sqrt(lambda_i - tau) / lambda_i * u_i.(x - mean)
    encoder variance  tau / lambda_i
    decoder column    sqrt(lambda_i - tau) * u_i

and otherwise it stays at the prior.

.. [1] J. Lucas, G. Tucker, R. Grosse, M. Norouzi, "Don't Blame the ELBO! A Linear VAE
   Perspective on Posterior Collapse", arXiv:1911.02469, 2019.
"""

import math
import warnings
from copy import deepcopy
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA

from .._model.blocks import INITIAL, MIN_ROWS_PER_COMPONENT, row_blocks
from .._model.build import build_networks, class_name, resolve_network
from .._model.elbo import NegativeELBO
from .._model.layout import Layout
from .._model.settings import limited_threads, reproducible_weights, resolve_device
from .._model.units import Units
from .._model.vae import VAE, LinearTails
from .._validation import check_sigma
from ..noise import resolve_noise, resolve_power
from .data import Selection, place_rows

# A learned scale stays above this fraction of the data's global scale: where the model
# can fit every row the bound has no maximum.
MIN_LEARNED_SCALE = 1e-3

# Rows of this size, or one over it, are far from those of the first fit, whose size, in
# internal units, is one. Of few rows the size may be small by chance.
FAR = 30.0
FEW_ROWS = 10
FIRST_CHUNK = (
    "Start with a first chunk that is like all data: shuffled, of at least a few "
    "hundred rows, and not constant or quiet."
)


@dataclass(frozen=True, eq=False)
class PrincipalAxes:
    """Leading eigenpairs of the covariance of the data, in internal units.

    Eigenvalues (n_components,) decrease; axes (n_components, n_features) are
    orthonormal. There are ``n_axes`` in the data, and zeros follow. ``residual`` is the
    sum of all other eigenvalues.
    """

    eigenvalues: np.ndarray
    axes: np.ndarray
    n_axes: int
    residual: float

    @classmethod
    def of_data(cls, x, n_components, random_state):
        """Principal axes of an array."""
        n_axes = min(n_components, *x.shape)
        # With constant data it divides zero by zero, in a ratio that is not used here.
        with np.errstate(invalid="ignore"):
            pca = PCA(n_axes, random_state=random_state).fit(x)
        # scikit-learn divides by n - 1; the likelihood's optimum divides by n.
        n, missing = len(x), (0, n_components - n_axes)
        residual = pca.noise_variance_ * (min(x.shape) - n_axes) * (n - 1) / n
        eigenvalues = np.pad(pca.explained_variance_ * (n - 1) / n, missing)
        axes = np.pad(pca.components_, (missing, (0, 0)))
        return cls(eigenvalues, axes, n_axes, float(residual))

    def optimum(self, tau):
        """Encoder weight, encoder log-variance and decoder weight at the optimum."""
        eigenvalues = np.maximum(self.eigenvalues, np.finfo(np.float64).tiny)
        amplitude = np.sqrt(np.maximum(eigenvalues - tau, 0.0))
        encoder = (amplitude / eigenvalues)[:, None] * self.axes
        log_var = np.log(tau / np.maximum(eigenvalues, tau))
        return encoder, log_var, amplitude * self.axes.T

    def noise_variance_mle(self, n_features, ratio):
        """Maximum-likelihood noise variance of the linear model; 0 if unbounded.

        With tau = ratio * noise variance and all axes in use the distortion is
        ``n_axes * tau`` plus the residual, and at the maximum it equals
        ``n_features * noise variance``.
        """
        free = n_features - ratio * self.n_axes
        return self.residual / free if free > 0 else 0.0


def linear_tau(noise, scale, beta):
    """The tau of the linear optimum; for exponents other than 2 a good start.

    It respects the equivalence of beta and sigma, if the noise has an exponent.
    """
    return beta ** (2 / (noise.exponent or 2.0)) * noise.variance_factor * scale**2


def start_at_pca(vae, axes, noise, scale, beta, min_scale):
    """Put the closed form into the linear paths of a VAE; return the noise's scale.

    A scale of None stands for that of maximum likelihood, at least `min_scale`.
    """
    if scale is None:
        ratio = linear_tau(noise, 1.0, beta) / noise.variance_factor
        variance = axes.noise_variance_mle(vae.layout.n_features, ratio)
        scale = max(min_scale, np.sqrt(variance / noise.variance_factor))
    tau = linear_tau(noise, scale, beta)
    if not (axes.eigenvalues > tau).any():
        _warn_all_dead(axes.eigenvalues[0], tau, scale, beta, vae.units)
    with torch.no_grad():
        optimum = axes.optimum(tau)
        for parameter, value in zip(_linear_parameters(vae), optimum, strict=True):
            parameter.copy_(torch.from_numpy(value))
        vae.encoder.linear.bias.zero_()
        vae.decoder.linear.bias.zero_()
    vae.encoder.zero_network()
    vae.decoder.zero_network()
    return float(scale)


def move_along_pca(vae, axes, tau, new_tau):
    """Move the linear paths of a VAE by what the closed form moves between two tau."""
    old, new = axes.optimum(tau), axes.optimum(new_tau)
    with torch.no_grad():
        for parameter, a, b in zip(_linear_parameters(vae), old, new, strict=True):
            parameter.add_(torch.from_numpy(b - a).to(vae.device, torch.float32))


def _linear_parameters(vae):
    return vae.encoder.linear.weight, vae.encoder.log_var, vae.decoder.linear.weight


class Samples(NamedTuple):
    """Validated data of a fit: rows (n, n_features), held-out rows, names or None."""

    X: np.ndarray
    X_val: np.ndarray | None
    layout: Layout
    feature_names: np.ndarray | None


@dataclass(eq=False)
class InitialModel:
    """A model before training, and the rows to train it on.

    ``params`` is the estimator, for its parameters. ``selection`` and ``held_out``, or
    None, are parts of ``rows`` or rows of their own. ``axes`` are None unless the model
    starts at PCA. ``tails`` are completed after training. ``is_far`` says that the rows
    are far larger than those that fixed the units.
    """

    params: object
    samples: Samples
    seeds: tuple
    vae: VAE
    criterion: NegativeELBO
    rows: object
    selection: Selection
    held_out: Selection | None
    axes: PrincipalAxes | None = None
    tails: LinearTails | None = None
    is_far: bool = False


def draw_seeds(random_state):
    """Seeds of a fit: of its training, and of the choice of held-out rows."""
    return tuple(random_state.randint(2**31 - 1, size=2).tolist())


def initial_model(params, samples, seeds, schedule, like=None):
    """A new model.

    It shares the units and rows of ``like``, another one for the same samples and
    ratios of noise scales; with the same seeds also the axes, the random weights and
    the held-out rows.
    """
    noise, learns_scale = _resolve_noise(params, samples)
    if params.init == "pca" and not params.linear_path:
        raise ValueError(
            "init='pca' starts the linear path, which linear_path=False removes. Set "
            "init='random' or linear_path=True."
        )
    sigma, relative = relative_scales(params, samples)
    X, layout, k = samples.X, samples.layout, params.n_components
    if like is not None:
        units, rows = like.vae.units, like.rows
    else:
        units = Units.identity(layout.n_features)
        if noise.has_scale:
            units = Units.of_data(X, relative)
        rows = place_rows(X, units, resolve_device(params.device))
    twin = like if like is not None and like.seeds == seeds else None
    if twin is not None:
        networks = deepcopy(twin.vae.networks)
        selections = twin.selection, twin.held_out
    else:
        networks = make_networks(params, layout, seeds[0])
        selections = _select(params, samples, units, rows, seeds, schedule)
    scale = None if sigma is None else units.common_scale(sigma)
    vae = VAE(networks, units, layout, k).float()
    axes = tails = None
    if params.init == "pca" and noise.has_scale:
        axes = principal_axes(X, units, k, seeds[0]) if twin is None else twin.axes
        scale = start_at_pca(vae, axes, noise, scale, params.beta, MIN_LEARNED_SCALE)
        tails = _linear_tails(vae, axes)
    elif params.init == "pca":
        # Noise without a scale has no closed form: all but the mean stays random.
        mean = _rows_for_start(X, units, k, seeds[0]).mean(axis=0, dtype=np.float64)
        location = torch.from_numpy(noise.location_of_mean(mean))
        vae.decoder.linear.bias.data.copy_(location)
    elif learns_scale:
        scale = 1.0
    criterion = make_criterion(params, noise, scale, units)
    return InitialModel(
        params, samples, seeds, vae, criterion, rows, *selections, axes, tails
    )


def continued_model(params, samples, seeds, schedule, previous):
    """The model of an earlier fit, a copy, to train further."""
    noise, learns_scale = _resolve_noise(params, samples)
    changed = [
        name
        for name, value in structure(params).items()
        if value != previous.structure.get(name)
    ]
    if changed:
        raise ValueError(
            "A fit that continues from an earlier one (warm_start or partial_fit) "
            f"cannot change {', '.join(changed)}. Clone the estimator to start afresh."
        )
    vae, scale = deepcopy(previous.module), previous.scale
    units = vae.units
    if noise.has_scale and not learns_scale:
        sigma, _ = check_sigma(params.sigma, vae.layout, samples.feature_names)
        scale = units.common_scale(sigma)
        if scale is None:
            raise ValueError(
                "A fit that continues from an earlier one (warm_start or partial_fit) "
                "cannot change the ratios of sigma between features. Multiply all of "
                "sigma by one number, or clone the estimator to start afresh."
            )
    tails, vae.tails = vae.tails, None
    if tails is not None:
        _widen(tails, units, samples.X)
    is_far = _are_far(units, samples.X)
    rows = place_rows(samples.X, units, resolve_device(params.device))
    selections = _select(params, samples, units, rows, seeds, schedule)
    criterion = make_criterion(params, noise, scale, units)
    return InitialModel(
        params, samples, seeds, vae, criterion, rows, *selections, None, tails, is_far
    )


def _select(params, samples, units, rows, seeds, schedule):
    """Rows to train on, and rows to hold out or None."""
    if samples.X_val is not None:
        held_out = place_rows(samples.X_val, units, rows.device)
        return Selection(rows), Selection(held_out)
    if not schedule.early_stopping:
        return Selection(rows), None
    return Selection(rows).split(params.validation_fraction, seeds[1])


def make_criterion(params, noise, scale, units):
    """The loss of a model."""
    learns_scale = noise.has_scale and isinstance(params.sigma, str)
    min_scale = MIN_LEARNED_SCALE if learns_scale else None
    return NegativeELBO(noise, params.beta, scale, units.log_volume, min_scale)


def make_networks(params, layout, seed):
    """New networks with the weights of a seed."""
    recipe = resolve_network(
        params.network, params.hidden_layer_sizes, params.activation
    )
    with reproducible_weights(seed):
        return build_networks(recipe, layout, params.n_components, params.linear_path)


def relative_scales(params, samples):
    """Noise scales, None if they are learned or there are none, and their ratios."""
    ones = np.ones(samples.layout.n_features)
    if isinstance(params.sigma, str) or not resolve_noise(params.noise).has_scale:
        return None, ones
    return check_sigma(params.sigma, samples.layout, samples.feature_names)


@limited_threads(0, "cpu")
def principal_axes(X, units, n_components, seed):
    """Principal axes of rows in internal units."""
    x = _rows_for_start(X, units, n_components, seed)
    return PrincipalAxes.of_data(x, n_components, seed)


def structure(params):
    """Values, or types, of the parameters that a fit which continues cannot change."""
    names = {"n_components", "noise", "network", "hidden_layer_sizes", "activation"}
    names |= {"linear_path", "image_shape", "channels_first"}
    return {
        name: _comparable(value)
        for name, value in params.get_params(deep=True).items()
        if name.split("__")[0] in names
    } | (
        {"hidden_layer_sizes": tuple(np.ravel(params.hidden_layer_sizes).tolist())}
        if isinstance(params.network, str)
        else {"hidden_layer_sizes": None, "activation": None}
    )


def warn_of_small_chunk(n_rows):
    """Warn if a first chunk has too few rows to fix units and a start by."""
    if n_rows < FEW_ROWS:
        warnings.warn(
            f"The first chunk has {n_rows} rows, which fix the units of the networks "
            f"and where training starts. {FIRST_CHUNK}",
            stacklevel=4,
        )


def _resolve_noise(params, samples):
    """The noise model, a copy, and whether its scale is learned."""
    noise = clone(resolve_noise(params.noise))
    for rows in (samples.X, samples.X_val):
        if rows is not None:
            noise.check_data(rows)
    learns_scale = noise.has_scale and isinstance(params.sigma, str)
    if learns_scale:
        resolve_power(params.noise, "sigma='mle' cannot be found; set it to a number")
    return noise, learns_scale


def _comparable(value):
    """A parameter's value in a form that compares with ``==``; an object's type."""
    if value is None or isinstance(value, str | Real):
        return value
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(map(_comparable, value))
    return class_name(value)


def _rows_for_start(X, units, n_components, seed):
    """All rows in internal units and float64, or random ones if they are too many."""
    n_rows = max(INITIAL // X.shape[1], MIN_ROWS_PER_COMPONENT * n_components)
    if n_rows >= len(X):
        return units.to_internal(X).to(torch.float64).numpy()
    index = np.random.RandomState(seed).choice(len(X), n_rows, replace=False)
    # The error of the sample is larger than that of float32.
    return units.to_internal(X[index]).to(torch.float32).numpy()


def _linear_tails(vae, axes):
    """Tails of a model that starts at PCA, before training; None if it is linear."""
    if vae.encoder.network is None and vae.decoder.network is None:
        return None
    low, high = _edges(vae.units.low, vae.units.high)
    # The norms of the prior's draws hardly exceed their root mean square by more.
    limit = vae.n_components**0.5 + 3.0
    values = axes.axes.T, axes.eigenvalues, 0.0, low, high, limit
    return LinearTails(*(torch.tensor(v, dtype=torch.float32) for v in values))


def _edges(low, high):
    """A range, a little wider, so that no rounding puts what is in it beyond it."""
    margin = 1e-3 * (high - low)
    return low - margin, high + margin


def _widen(tails, units, X):
    """Widen the range of tails to that of other rows."""
    extremes = np.stack([X.min(axis=0), X.max(axis=0)]).astype(np.float64)
    low, high = map(
        torch.from_numpy, _edges(*((extremes - units.offset) / units.scale))
    )
    tails.low = torch.minimum(tails.low, low.to(tails.low))
    tails.high = torch.maximum(tails.high, high.to(tails.high))


def _are_far(units, X):
    """Whether rows are far larger than those that fixed the units; warns if far."""
    squares = sum(
        float(units.to_internal(X[block]).double().square().sum())
        for block in row_blocks(X.shape)
    )
    size = math.sqrt(squares / X.size)
    is_small = len(X) >= FEW_ROWS and size < 1 / FAR
    # A size may be infinite.
    if not (size > FAR or is_small):
        return False
    warnings.warn(
        f"These rows are far {'smaller' if is_small else 'larger'} than those of the "
        f"first chunk or fit, which fixed the units of the networks. {FIRST_CHUNK}",
        stacklevel=2,
    )
    return not is_small


def _warn_all_dead(eigenvalue, tau, scale, beta, units):
    # Inside, the mean variance of a feature is one unless all are constant.
    if eigenvalue < 1e-12:
        warnings.warn(
            "X is constant: no component has anything to encode.", stacklevel=2
        )
        return
    sigma, spread = map(units.mean_scale_to_data, (scale, np.sqrt(eigenvalue)))
    works = 0.5 * sigma * np.sqrt(eigenvalue / tau)
    warnings.warn(
        f"No component is in use at the start: sigma={sigma:.4g}, at beta={beta:g}, "
        "hides the data, whose largest standard deviation along any direction is "
        f"{spread:.4g} (for per-feature scales both are geometric means). A smaller "
        f"sigma, such as {works:.2g}, would see it.",
        stacklevel=2,
    )
