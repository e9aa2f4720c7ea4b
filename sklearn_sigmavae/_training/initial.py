"""The model that training starts from: new, at PCA, or that of an earlier fit."""

import math
import warnings
from copy import deepcopy
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import clone

from .._model.blocks import row_blocks
from .._model.build import build_networks, class_name, resolve_network
from .._model.elbo import FallingNoise, NegativeELBO, linear_tau
from .._model.layout import Layout
from .._model.prior import build_prior
from .._model.settings import reproducible_weights, resolve_device
from .._model.units import Units
from .._model.vae import VAE, LinearTails
from .._validation import check_sigma, check_support
from ..noise import resolve_noise, resolve_power
from ..priors import resolve_prior
from .data import Selection, place_rows
from .linear import (
    HIDDEN_BELOW,
    LARGEST_SCALE,
    MIN_LEARNED_SCALE,
    completion_for,
    is_auto,
    largest_noise,
    level_seen,
    linear_start,
)
from .pca import (
    PrincipalAxes,
    fit_prior,
    linear_tails,
    rows_for_start,
    start_at_pca,
    start_prior,
    widen,
)

# Noise that follows held-out rows begins with that of the linear model if this is
# larger, but not with more than this fraction of the largest standard deviation, or
# there is little left to learn from.
_MOST_HIDDEN = 0.5

# A chunk with fewer rows does not show which directions the data has: all are kept.
MIN_ROWS_PER_FEATURE = 2

# Rows of this size, or one over it, are far from those of the first fit, whose size, in
# internal units, is one. Of few rows the size may be small by chance.
FAR = 30.0
FEW_ROWS = 10
FIRST_CHUNK = (
    "Start with a first chunk that is like all data: shuffled, of at least a few "
    "hundred rows, and not constant or quiet."
)


class Samples(NamedTuple):
    """Validated data of a fit: rows (n, n_features), held-out rows, names or None.

    ``has_gaps`` says that rows, of this or of a fit beside it, may have NaN.
    """

    X: np.ndarray
    X_val: np.ndarray | None
    layout: Layout
    feature_names: np.ndarray | None
    has_gaps: bool = False


@dataclass(eq=False)
class InitialModel:
    """A model before training, and the rows to train it on.

    ``params`` is the estimator, for its parameters. ``selection`` and ``held_out``, or
    None, are parts of ``rows`` or rows of their own. ``tails`` are completed after
    training. ``is_far`` says that the rows are far larger than those that fixed the
    units. What others may share: ``units`` without axes, ``axes`` in these, None unless
    the model starts at PCA, the ``size`` that coordinates are divided by, and
    ``fitted_codes``, what the prior knows of the codes.
    """

    params: object
    samples: Samples
    seeds: tuple
    vae: VAE
    criterion: NegativeELBO
    rows: object
    selection: Selection
    held_out: Selection | None
    tails: LinearTails | None = None
    is_far: bool = False
    units: Units | None = None
    axes: PrincipalAxes | None = None
    size: float = 1.0
    fitted_codes: object = None

    def on(self, rows):
        """The two selections, of other rows for the same data."""
        held_out = self.held_out
        if held_out is not None:
            is_part = held_out.rows is self.rows
            units, completion = rows.units, rows.completion
            others = rows if is_part else held_out.rows.in_units(units, completion)
            held_out = held_out.of(others)
        return self.selection.of(rows), held_out


def copy_weights(source, target):
    """Put the weights of a VAE into one that sees more axes; zero for these."""
    weights = source.state_dict()
    for name, value in target.state_dict().items():
        value.zero_()
        value[tuple(map(slice, weights[name].shape))] = weights[name]


def draw_seeds(random_state):
    """Seeds of a fit: of its training, and of the choice of held-out rows."""
    return tuple(random_state.randint(2**31 - 1, size=2).tolist())


def initial_model(params, samples, seeds, schedule, like=None, on_path=False):
    """A new model.

    It shares the units, axes and rows of ``like``, another one for the same samples and
    ratios of noise scales, whose noise hides no more; with the same seeds also the
    held-out rows. ``on_path`` says that weights go from one to the other, so that both
    need to see rows alike.
    """
    noise, learns_scale = _resolve_noise(params, samples)
    check_auto(params)
    if is_auto(params) and learns_scale and schedule.is_chunk:
        raise ValueError(
            "sigma='auto' is chosen by all of the data, and partial_fit sees a part of "
            "it. Call fit first, whose sigma_ partial_fit keeps, or pass sigma as a "
            "number."
        )
    if params.init == "pca" and not params.linear_path:
        raise ValueError(
            "init='pca' starts the linear path, which linear_path=False removes. Set "
            "init='random' or linear_path=True."
        )
    sigma, relative = relative_scales(params, samples)
    X, layout, k = samples.X, samples.layout, params.n_components
    if like is not None:
        units = like.units
    elif noise.has_scale:
        units = Units.of_data(X, relative)
    else:
        units = Units.identity(layout.n_features)
    scale = None if sigma is None else units.common_scale(sigma)
    standard, size, axes, tau, tails = units, 1.0, None, None, None
    linear, starts_at_pca = None, params.init == "pca" and noise.has_scale
    if starts_at_pca or (samples.has_gaps and noise.has_scale):
        linear = linear_start(params, samples, units, noise, scale, like)
        units = standard = linear.units
    if starts_at_pca:
        axes, is_complete, scale = linear.axes, linear.is_complete, linear.scale
        tau = linear_tau(noise, scale, params.beta)
        is_short = len(X) < MIN_ROWS_PER_FEATURE * X.shape[1]
        if is_complete and not (schedule.is_chunk and is_short):
            n_axes = axes.count(level_seen(params, tau, units), k)
            if on_path:
                size, filter_ = like.size, like.vae.units.filter[:n_axes]
            else:
                size, filter_ = axes.size(n_axes), axes.filter(n_axes, tau)
            rotates = noise.is_rotation_invariant and not samples.has_gaps
            units = units.along(axes.axes[:, :n_axes], filter_, size, rotates)
            # From a given sigma as a file would have it, to the last digit.
            scale = scale / size if sigma is None else units.common_scale(sigma)
            tau = linear_tau(noise, scale, params.beta)
    elif learns_scale:
        scale = largest_noise(units) if is_auto(params) else 1.0
    completion = completion_for(params, X, units, linear, size)
    of_rows = completion if samples.has_gaps else None
    if like is not None:
        rows = like.rows.in_units(units, of_rows)
    else:
        device = resolve_device(params.device)
        rows = place_rows(X, units, device, of_rows)
        level = None if tau is None else level_seen(params, tau, units)
        if units.axes is not None and _varies_outside(rows, level):
            # The axes are of some of the rows, and those are not like all.
            scale, size, units = scale * size, 1.0, standard
            tau = linear_tau(noise, scale, params.beta)
            completion = completion_for(params, X, units, linear, size)
            of_rows = completion if samples.has_gaps else None
            rows = place_rows(X, units, device, of_rows)
    selections = _select(params, samples, rows, seeds, schedule, like)
    is_twin = like is not None and like.seeds == seeds
    if is_twin and like.vae.units.n_seen == units.n_seen:
        networks = deepcopy(like.vae.networks)
    else:
        networks = make_networks(params, layout, seeds[0], units.axes)
    recipe, fitted_codes = clone(resolve_prior(params.prior)), None
    prior = build_prior(recipe, recipe.parameters(k))
    vae = VAE(networks, prior, units, layout, k).float()
    vae.completion = completion
    if axes is not None:
        inside = axes.divided_by(size)
        if not inside.eigenvalues[0] > tau:
            _warn_all_dead(inside.eigenvalues[0], tau, scale, params.beta, units)
        start_at_pca(vae, inside, tau)
        tails = linear_tails(vae, inside, rows)
        if is_twin:
            fitted_codes = like.fitted_codes
        else:
            fitted_codes = fit_prior(vae, inside, tau, selections[0], seeds[0])
        start_prior(vae, inside, tau, fitted_codes)
    elif params.init == "pca":
        # Noise without a scale has no closed form: all but the mean stays random.
        mean = rows_for_start(X, units, k)
        mean = np.nanmean(mean, axis=0, dtype=np.float64)
        location = torch.from_numpy(noise.location_of_mean(mean))
        vae.decoder.linear.bias.data.copy_(location)
    criterion = make_criterion(params, noise, scale, units)
    if axes is not None and criterion.follows:
        largest = math.sqrt(inside.eigenvalues[0] / noise.variance_factor)
        smaller = max(largest_noise(units), _MOST_HIDDEN * largest)
        criterion.falling.first = min(criterion.falling.first, smaller)
    if axes is not None and tails is None:
        # The linear model starts at its optimum.
        criterion.first_factor = 1.0
        if criterion.follows:
            criterion.falling.first = scale
    return InitialModel(
        params,
        samples,
        seeds,
        vae,
        criterion,
        rows,
        *selections,
        tails=tails,
        units=standard,
        axes=axes,
        size=size,
        fitted_codes=fitted_codes,
    )


def check_auto(params):
    """Raise if sigma is to be chosen, and other parameters do not go with that."""
    if not (is_auto(params) and resolve_noise(params.noise).has_scale):
        return
    if not params.early_stopping:
        raise ValueError(
            "sigma='auto' is chosen together with the best held-out epoch, which "
            "early_stopping=False does not look for. Set early_stopping=True, or pass "
            "sigma as a number."
        )
    if params.beta != 1:
        raise ValueError(
            f"sigma='auto' needs beta=1. Got beta={params.beta:g}, which makes a model "
            "that of another sigma (see equivalent_beta). Set beta=1, or pass sigma as "
            "a number."
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
    vae.set_rotates(noise.is_rotation_invariant and not samples.has_gaps)
    units = vae.units
    # A scale that is to be chosen is that of the model.
    is_chosen = learns_scale and is_auto(params)
    check_auto(params)
    if noise.has_scale and not learns_scale:
        sigma, _ = check_sigma(params.sigma, vae.layout, samples.feature_names)
        scale = units.common_scale(sigma)
        if scale is None:
            raise ValueError(
                "A fit that continues from an earlier one (warm_start or partial_fit) "
                "cannot change the ratios of sigma between features. Multiply all of "
                "sigma by one number, or clone the estimator to start afresh."
            )
    completion = vae.completion if samples.has_gaps else None
    rows = place_rows(samples.X, units, resolve_device(params.device), completion)
    tails, vae.tails = vae.tails, None
    if tails is not None:
        widen(tails, rows)
    is_far = _are_far(units, samples.X)
    selections = _select(params, samples, rows, seeds, schedule)
    if vae.units.axes is not None and not is_far:
        tau = linear_tau(noise, scale, params.beta)
        level = HIDDEN_BELOW * tau if is_chosen else level_seen(params, tau, units)
        if _varies_outside(rows, level):
            warnings.warn(
                "These rows vary, by more than the noise allows, in directions that "
                "the networks do not see: the first chunk or fit did not vary in them, "
                "or its sigma hid them. The model takes what is there for noise. Clone "
                f"the estimator to start afresh. {FIRST_CHUNK}",
                stacklevel=2,
            )
    if is_chosen:
        criterion = NegativeELBO(noise, params.beta, scale)
    else:
        criterion = make_criterion(params, noise, scale, units)
    return InitialModel(
        params, samples, seeds, vae, criterion, rows, *selections, tails, is_far
    )


def _select(params, samples, rows, seeds, schedule, like=None):
    """Rows to train on, and rows to hold out or None."""
    if like is not None and like.seeds == seeds:
        return like.on(rows)
    if samples.X_val is not None:
        if like is None:
            arguments = rows.units, rows.device, rows.completion
            held_out = place_rows(samples.X_val, *arguments)
        else:
            held_out = like.held_out.rows.in_units(rows.units, rows.completion)
        return Selection(rows), Selection(held_out)
    if not schedule.early_stopping:
        return Selection(rows), None
    training, held_out = Selection(rows).split(params.validation_fraction, seeds[1])
    if not held_out.n_observed:
        raise ValueError(
            "The rows that are held out to find the best epoch have no entries: all "
            "are missing. Drop rows without entries, pass X_val, or set "
            "early_stopping=False."
        )
    return training, held_out


def make_criterion(params, noise, scale, units):
    """The loss of a model."""
    learns_scale = noise.has_scale and isinstance(params.sigma, str)
    min_scale, factor, falling = None, 1.0, None
    lowest = MIN_LEARNED_SCALE * units.data_scale / units.mean_scale
    if learns_scale and is_auto(params):
        first = max(largest_noise(units), scale)
        falling = FallingNoise(first, lowest, units.mean_scale)
    elif learns_scale:
        min_scale = lowest
    elif noise.has_scale:
        tau = linear_tau(noise, scale, params.beta)
        ratio = min(params.sigma_annealing, max(1.0, LARGEST_SCALE / math.sqrt(tau)))
        factor = ratio ** (noise.exponent or 2.0)
    return NegativeELBO(noise, params.beta, scale, min_scale, factor, falling)


def make_networks(params, layout, seed, axes):
    """New networks with the weights of a seed, that see coordinates along axes."""
    recipe = resolve_network(
        params.network, params.hidden_layer_sizes, params.activation
    )
    with reproducible_weights(seed):
        return build_networks(
            recipe, layout, params.n_components, params.linear_path, axes
        )


def relative_scales(params, samples):
    """Noise scales, None if they are learned or there are none, and their ratios."""
    ones = np.ones(samples.layout.n_features)
    if isinstance(params.sigma, str) or not resolve_noise(params.noise).has_scale:
        return None, ones
    return check_sigma(params.sigma, samples.layout, samples.feature_names)


def structure(params):
    """Values, or types, of the parameters that a fit which continues cannot change."""
    names = {"n_components", "noise", "network", "hidden_layer_sizes", "activation"}
    names |= {"linear_path", "image_shape", "channels_first", "prior"}
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
            check_support(noise, rows)
    learns_scale = noise.has_scale and isinstance(params.sigma, str)
    if learns_scale:
        without = f"sigma='{params.sigma}' cannot be found; set it to a number"
        resolve_power(params.noise, without)
    return noise, learns_scale


def _comparable(value):
    """A parameter's value in a form that compares with ``==``; an object's type."""
    if value is None or isinstance(value, str | Real):
        return value
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(map(_comparable, value))
    return class_name(value)


def _varies_outside(rows, level):
    """Whether rows vary outside of the axes by more than the axes' choice allows."""
    n_outside = rows.X.shape[1] - rows.units.n_seen
    allowed = level * n_outside
    # Rounding is not variation.
    return rows.survey.outside.mean() > 2 * allowed + 1e-9


def _are_far(units, X):
    """Whether rows are far larger than those that fixed the units; warns if far."""
    squares = sum(
        float(units.standardize(X[block]).double().square().nansum())
        for block in row_blocks(X.shape)
    )
    size = math.sqrt(squares / (len(X) * units.n_seen))
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
    # Inside, the mean variance of a feature is about one unless all are constant.
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
