"""From an estimator's parameters and an array to a model that is ready to train."""

import math
import warnings
from copy import deepcopy
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from sklearn.base import clone

from ._batches import Selection, place_rows
from ._bound import NegativeBound
from ._module import VAE, LinearTails, Units, blocks
from ._pca_init import PrincipalAxes, start_at_mean, start_at_pca
from ._rng import isolated_rng
from ._validation import check_sigma, resolve_network
from .networks import build_networks, class_name, known_recipe
from .noise import resolve_noise, resolve_power

# A learned scale stays above this fraction of the data's global scale: where the model
# can fit every row the bound has no maximum.
MIN_LEARNED_SCALE = 1e-3

# Other scales, as a fraction of the data's, leave the range of float32.
MIN_SCALE = 1e-18

# Of data with more numbers than this, the start sees random rows that have so many:
# 10,700 images of 28 x 28.
NUMBERS_FOR_START = 2**23

# But never fewer rows than this for each component.
ROWS_PER_COMPONENT = 8

# How far beyond their root mean square, sqrt(k), the norms of the prior's draws reach.
BULK_OF_PRIOR = 3.0

# Rows of this size, or one over it, are far from those of the first fit, whose size, in
# internal units, is one. Of few rows the size may be small by chance.
FAR = 30.0
FEW_ROWS = 10
FIRST_CHUNK = (
    "Start with a first chunk that is like all data: shuffled, of at least a few "
    "hundred rows, and not constant or quiet."
)

# The parameters that training which continues from an earlier fit cannot change.
STRUCTURE = (
    "n_components",
    "noise",
    "network",
    "hidden_layer_sizes",
    "activation",
    "linear_path",
    "image_shape",
    "channels_first",
)


class TrainingData:
    """Rows of a fit, or of several on the same rows, and what these share.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Training data.
    X_val : ndarray of shape (n_val_samples, n_features) or None
        Held-out data.
    layout : Layout
        What networks see of a row.
    feature_names : ndarray of shape (n_features,) or None
        Names of the features, if the data has some.

    Attributes
    ----------
    is_shared : bool
        Whether there are several fits, whose networks are of one architecture.
    """

    is_shared = False

    def __init__(self, X, X_val, layout, feature_names=None):
        self.X = X
        self.X_val = X_val
        self.layout = layout
        self.feature_names = feature_names
        self._shared = {}

    def units(self, relative):
        """Internal units, where features are first divided by `relative`."""
        return self._once(
            ("units", relative.tobytes()), lambda: Units.of_data(self.X, relative)
        )

    def identity(self):
        """Units in which the data stays as it is."""
        return self._once(("units",), lambda: Units.identity(self.X.shape[1]))

    def axes(self, units, n_components, seed):
        """Principal axes in internal units."""

        def compute():
            x = _rows_for_start(self.X, units, n_components, seed)
            return PrincipalAxes.of_data(x, n_components, seed)

        return self._once(("axes", id(units), n_components, seed), compute)

    def mean(self, units, n_components, seed):
        """Mean in internal units."""
        x = _rows_for_start(self.X, units, n_components, seed)
        return x.mean(axis=0, dtype=np.float64)

    def networks(self, params, seed):
        """New networks."""

        def compute():
            return make_networks(params, self.layout, seed)

        # To copy them is faster than to try them out again.
        return (
            deepcopy(self._once(("networks", seed), compute))
            if self.is_shared
            else compute()
        )

    def rows(self, units, device):
        """All training rows, where training gets at them best."""
        return self._once(
            ("rows", id(units), device), lambda: place_rows(self.X, units, device)
        )

    def select(self, units, device, held_out_fraction, seed):
        """Rows to train on, and rows to hold out or None.

        Parameters
        ----------
        units : Units
            Internal units.
        device : torch.device
            Where the rows are wanted.
        held_out_fraction : float or None
            Fraction of the rows to hold out; None for none, unless there are others.
        seed : int
            Seed of the split.
        """

        def compute():
            rows = self.rows(units, device)
            if self.X_val is not None:
                return Selection(rows), Selection(place_rows(self.X_val, units, device))
            if held_out_fraction is None:
                return Selection(rows), None
            return _split(rows, held_out_fraction, seed)

        key = "selections", id(units), device, held_out_fraction, seed
        return self._once(key, compute)

    def _once(self, key, compute):
        if key not in self._shared:
            self._shared[key] = compute()
        return self._shared[key]


@dataclass(eq=False)
class Start:
    """A model before training.

    Attributes
    ----------
    params : SigmaVAE
        The estimator, for its parameters.
    data : TrainingData
        What to train on.
    vae : VAE
        The module.
    criterion : NegativeBound
        The loss.
    seed, split_seed : int
        Seeds of the training and of the choice of held-out rows.
    tails : LinearTails or None
        What is to carry the trained model on, as far as it is known.
    origin : str
        What the start is, in words.
    is_far : bool
        Whether the rows are far larger than those that fixed the units.
    """

    params: object
    data: TrainingData
    vae: VAE
    criterion: NegativeBound
    seed: int
    split_seed: int
    tails: LinearTails | None = None
    origin: str = "the weights that it began with"
    is_far: bool = False

    @property
    def can_gain(self):
        """bool : Whether there is anything that the linear optimum has not."""
        paths = self.vae.encoder, self.vae.decoder
        return any(getattr(path, "network", path) is not None for path in paths)

    def select(self, plan, device):
        """Rows to train on, and rows to hold out or None."""
        fraction = self.params.validation_fraction if plan.early_stopping else None
        return self.data.select(self.vae.units, device, fraction, self.split_seed)


def draw_seeds(random_state):
    """Seeds of a fit: of its training, and of the choice of held-out rows."""
    return tuple(random_state.randint(2**31 - 1, size=2).tolist())


def prepare(params, data, seeds, previous=None):
    """Make a model that is ready to be trained.

    Parameters
    ----------
    params : SigmaVAE
        Its parameters are read, its fitted attributes are not.
    data : TrainingData
        What to train on.
    seeds : tuple of int
        From :func:`draw_seeds`.
    previous : BoundNet, LoadedModel or None
        What to continue from; it is left as it is.

    Returns
    -------
    start : Start
    """
    noise = clone(resolve_noise(params.noise))
    for rows in (data.X, data.X_val):
        if rows is not None:
            noise.check_data(rows)
    learns_sigma = noise.has_scale and isinstance(params.sigma, str)
    if learns_sigma:
        resolve_power(params.noise, "sigma='mle' cannot be found; set it to a number")
    seed, split_seed = seeds
    known = {}
    if previous is not None:
        names = data.feature_names
        vae, scale = _continue(params, previous, noise, learns_sigma, names)
        tails, vae.tails = _widened(vae.tails, vae.units, data.X), None
        known["is_far"] = _is_far(vae.units, data.X)
    else:
        vae, scale = _start(params, data, noise, learns_sigma, seed)
        tails = None
        if params.init == "pca" and noise.has_scale:
            tails = linear_tails(vae, data.axes(vae.units, vae.n_components, seed))
            known["origin"] = "the linear model, PCA at this sigma"
    criterion = NegativeBound(
        noise,
        params.beta,
        scale,
        vae.units.log_volume,
        min_scale=MIN_LEARNED_SCALE if learns_sigma else None,
    )
    return Start(params, data, vae, criterion, seed, split_seed, tails, **known)


def linear_tails(vae, axes):
    """Tails of a model that started at PCA, as far as they are known before training.

    None if the model is linear itself.
    """
    if vae.encoder.network is None and vae.decoder.network is None:
        return None
    found, n_axes = np.zeros((vae.n_components, vae.layout.n_features)), len(axes.axes)
    variances = np.zeros(vae.n_components)
    found[:n_axes], variances[:n_axes] = axes.axes, axes.eigenvalues
    return LinearTails(
        torch.tensor(found.T, dtype=torch.float32),
        torch.tensor(variances, dtype=torch.float32),
        torch.tensor(0.0, dtype=torch.float32),
        *_edges(vae.units.low, vae.units.high),
        torch.tensor(vae.n_components**0.5 + BULK_OF_PRIOR, dtype=torch.float32),
    )


def warn_of_small_chunk(n_rows):
    """Warn if a first chunk has too few rows to fix units and a start by."""
    if n_rows < FEW_ROWS:
        warnings.warn(
            f"The first chunk has {n_rows} rows, which fix the units of the networks "
            f"and where training starts. {FIRST_CHUNK}",
            stacklevel=4,
        )


def _is_far(units, X):
    """Whether rows are far larger, in internal units, than those that fixed these."""
    squares = sum(
        float(units.to_internal(X[block]).double().square().sum())
        for block in blocks(X)
    )
    size = math.sqrt(squares / X.size)
    is_small = len(X) >= FEW_ROWS and size < 1 / FAR
    # A size may be infinite.
    if not (size > FAR or is_small):
        return False
    warnings.warn(
        f"These rows are far {'smaller' if is_small else 'larger'} than those of the "
        "first chunk or fit, which fixed the units of the networks. "
        f"{FIRST_CHUNK}",
        stacklevel=2,
    )
    return not is_small


def _edges(low, high):
    """A range, a little wider, so that no rounding puts what is in it beyond it."""
    margin = 1e-3 * (high - low)
    return (
        torch.as_tensor(edge, dtype=torch.float32)
        for edge in (low - margin, high + margin)
    )


def _widened(tails, units, X):
    """Tails with a range that takes in other rows."""
    if tails is None:
        return None
    extremes = np.stack([X.min(axis=0), X.max(axis=0)]).astype(np.float64)
    low, high = _edges(*((extremes - units.offset) / units.scale))
    tails.low = torch.minimum(tails.low, low.to(tails.low.device))
    tails.high = torch.maximum(tails.high, high.to(tails.high.device))
    return tails


def _start(params, data, noise, learns_sigma, seed):
    """Make a new module; return it and the scale of the noise in its units."""
    if params.init == "pca" and not params.linear_path:
        raise ValueError(
            "init='pca' starts the linear path, which linear_path=False removes. Set "
            "init='random' for the plain network, or linear_path=True."
        )
    layout, k = data.layout, params.n_components
    scale = None
    if not noise.has_scale:
        units = data.identity()
    elif learns_sigma:
        units = data.units(np.ones(layout.n_features))
    else:
        sigma, relative = check_sigma(params.sigma, layout, data.feature_names)
        units = data.units(relative)
        scale = internal_scale(sigma, units)
    encoder, decoder, width, takes_float64 = data.networks(params, seed)
    recipe = known_recipe(_recipe(params))
    vae = VAE(encoder, decoder, units, layout, k, width, takes_float64, recipe).float()
    if params.init == "pca" and noise.has_scale:
        axes = data.axes(units, k, seed)
        scale = start_at_pca(vae, axes, noise, scale, params.beta, MIN_LEARNED_SCALE)
    elif params.init == "pca":
        start_at_mean(vae, noise, data.mean(units, k, seed))
    elif learns_sigma:
        scale = 1.0
    return vae, scale


def make_networks(params, layout, seed):
    """New networks; see :func:`~sklearn_sigmavae.networks.build_networks`."""
    recipe = _recipe(params)
    with isolated_rng.alone(seed):
        return build_networks(recipe, layout, params.n_components, params.linear_path)


def _recipe(params):
    return resolve_network(params.network, params.hidden_layer_sizes, params.activation)


def internal_scale(sigma, units):
    """Scale of the noise in internal units.

    Raises
    ------
    ValueError
        If it leaves the range of float32.
    """
    with np.errstate(over="ignore", under="ignore"):
        scale = float((sigma / units.scale)[0])
    check_scale_in_range(f"The 'sigma' parameter of SigmaVAE, {sigma},", scale)
    return scale


def check_scale_in_range(name, scale):
    """Raise ``ValueError`` if a scale, in internal units, leaves the range of float32.

    Parameters
    ----------
    name : str
        What the scale is, for the message.
    scale : float or ndarray
    """
    with np.errstate(divide="ignore"):
        worst = np.ravel(scale)[np.abs(np.log(scale)).argmax()]
    if not MIN_SCALE <= worst <= 1 / MIN_SCALE:
        raise ValueError(
            f"{name} is {worst:.2g} times the scale of the data, out of the range of "
            "float32. Are they in the same units?"
        )


def _rows_for_start(X, units, n_components, seed):
    """All rows in internal units and float64, or random ones if they are too many."""
    n_rows = max(NUMBERS_FOR_START // X.shape[1], ROWS_PER_COMPONENT * n_components)
    if n_rows >= len(X):
        return units.to_internal(X).to(torch.float64).numpy()
    index = np.random.RandomState(seed).choice(len(X), n_rows, replace=False)
    # Chance is coarser than float32.
    x = np.empty((n_rows, X.shape[1]), dtype=np.float32)
    for block in blocks(x):
        x[block] = units.to_internal(X[index[block]])
    return x


def _continue(params, previous, noise, learns_sigma, feature_names):
    """Copy a net's module; return it and the scale of the noise in its units."""
    changed = [
        name
        for name, value in structure(params).items()
        if value != previous.structure.get(name)
    ]
    if changed:
        raise ValueError(
            "A fit that continues from an earlier one (warm_start or partial_fit) "
            f"cannot change {', '.join(changed)}. Set warm_start=False and call fit, "
            "or clone the estimator, to start afresh."
        )
    vae = deepcopy(previous.module_)
    if not noise.has_scale or learns_sigma:
        return vae, previous.scale
    sigma, _ = check_sigma(params.sigma, vae.layout, feature_names)
    scale = sigma / vae.units.scale
    if not np.allclose(scale, scale[0], rtol=1e-6, atol=0):
        raise ValueError(
            "A fit that continues from an earlier one (warm_start or partial_fit) "
            "cannot change the ratios of sigma between features. Multiply all of sigma "
            "by one number, or set warm_start=False to start afresh."
        )
    return vae, float(scale[0])


def structure(params):
    """Values, or types, of the parameters that shape the model."""
    return {
        name: _comparable(value)
        for name, value in params.get_params(deep=True).items()
        if name.split("__")[0] in STRUCTURE
    } | (
        {"hidden_layer_sizes": tuple(np.ravel(params.hidden_layer_sizes).tolist())}
        if isinstance(params.network, str)
        else {"hidden_layer_sizes": None, "activation": None}
    )


def _comparable(value):
    """A parameter's value in a form that compares with ``==``; an object's type."""
    if value is None or isinstance(value, str | Real):
        return value
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(map(_comparable, value))
    return class_name(value)


def _split(rows, validation_fraction, seed):
    """Random rows to train on, and the rest to hold out; at least one of each."""
    n_val = min(math.ceil(validation_fraction * len(rows)), len(rows) - 1)
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(rows)))
    return Selection(rows, order[n_val:]), Selection(rows, order[:n_val])
