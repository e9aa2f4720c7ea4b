"""From an estimator's parameters and an array to a trained net."""

import math
import warnings
from copy import copy, deepcopy
from numbers import Real

import numpy as np
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from ._batches import EvaluationBatches, Selection, place_rows
from ._bound import NegativeBound, kl_divergence
from ._device import explain_out_of_memory, matmul_precision
from ._module import VAE, Units, blocks
from ._net import BoundNet, KeepBest, ProgressBar, isolated_rng
from ._pca_init import start_at_pca
from ._validation import (
    check_callbacks,
    check_sigma,
    resolve_device,
    resolve_network,
    resolve_optimizer,
)
from .networks import build_networks
from .noise import resolve_noise

# A learned scale stays above this fraction of the data's global scale: where the model
# can fit every row the bound has no maximum.
MIN_LEARNED_SCALE = 1e-3

# Other scales, as a fraction of the data's, leave the range of float32.
MIN_SCALE = 1e-18

# Components with less KL than this, in nats, count as unused.
ACTIVE_KL = 0.01

# Rows, about, over which the KL of components is averaged after a fit.
ROWS_FOR_KL = 1000

# Of data with more numbers than this, the start sees random rows that have so many:
# 10,700 images of 28 x 28.
NUMBERS_FOR_START = 2**23

# But never fewer rows than this for each component.
ROWS_PER_COMPONENT = 8

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


def train_net(
    params,
    X,
    X_val,
    layout,
    *,
    previous,
    random_state,
    epochs,
    schedule,
    early_stopping,
):
    """Train a net on rows.

    Parameters
    ----------
    params : SigmaVAE
        Its parameters are read, its fitted attributes are not.
    X : ndarray of shape (n_samples, n_features)
        Training data.
    X_val : ndarray of shape (n_val_samples, n_features) or None
        Held-out data.
    layout : Layout
        What networks see of a row.
    previous : BoundNet or None
        Net to continue from; it is left as it is.
    random_state : numpy.random.RandomState
        Source of all randomness.
    epochs : int
        Number of epochs.
    schedule : {"one_cycle", "constant"}
        Schedule of the learning rate.
    early_stopping : bool
        Whether to keep the best held-out weights.

    Returns
    -------
    net : BoundNet
        Trained, with the learned scale of the noise, if any, in ``criterion_.scale``
        and the number of components in use in ``n_active_components_``.
    """
    noise = clone(resolve_noise(params.noise))
    device = resolve_device(params.device)
    for rows in (X, X_val):
        if rows is not None:
            noise.check_data(rows)
    learns_sigma = noise.has_scale and isinstance(params.sigma, str)
    seed, split_seed = random_state.randint(2**31 - 1, size=2).tolist()
    if previous is None:
        vae, scale = _start(params, X, layout, noise, learns_sigma, seed)
    else:
        vae, scale = _continue(params, previous, noise, learns_sigma)
    criterion = NegativeBound(
        noise,
        params.beta,
        scale,
        vae.units.log_volume,
        min_scale=MIN_LEARNED_SCALE if learns_sigma else None,
    )
    optimizer, optimizer_params = resolve_optimizer(params.optimizer, device)
    net = BoundNet(
        vae,
        criterion,
        seed=seed,
        one_cycle=schedule == "one_cycle",
        structure=_structure(params),
        precision=params.precision,
        optimizer=optimizer,
        lr=params.learning_rate,
        max_epochs=int(epochs),
        batch_size=int(params.batch_size),
        callbacks=_callbacks(params, schedule, early_stopping),
        device=str(device),
        verbose=0,
        **{f"optimizer__{name}": value for name, value in optimizer_params.items()},
    )
    with explain_out_of_memory(device, params.batch_size):
        net.initialize()
        if previous is not None:
            net.resume(previous)

        rows = place_rows(X, vae.units, device)
        if X_val is not None:
            selection = Selection(rows)
            held_out = Selection(place_rows(X_val, vae.units, device))
        elif early_stopping:
            selection, held_out = _split(rows, params.validation_fraction, split_seed)
        else:
            selection, held_out = Selection(rows), None
        if epochs:
            net.train(selection, held_out)
        vae.eval()
        with matmul_precision(device):
            if learns_sigma:
                _learn_sigma(net, Selection(rows))
            net.n_active_components_ = _count_active(vae, rows)
    return net


def _start(params, X, layout, noise, learns_sigma, seed):
    """Make a new module; return it and the scale of the noise in its units."""
    if params.init == "pca" and not params.linear_path:
        raise ValueError(
            "init='pca' starts the linear path, which linear_path=False removes. Set "
            "init='random' for the plain network, or linear_path=True."
        )
    recipe = resolve_network(
        params.network, params.hidden_layer_sizes, params.activation
    )
    n_features = X.shape[1]
    scale = None
    if not noise.has_scale:
        units = Units.identity(n_features)
    elif learns_sigma:
        units = Units.of_data(X, np.ones(n_features))
    else:
        sigma, relative = check_sigma(params.sigma, layout)
        units = Units.of_data(X, relative)
        with np.errstate(over="ignore", under="ignore"):
            scale = float((sigma / units.scale)[0])
        if not MIN_SCALE <= scale <= 1 / MIN_SCALE:
            raise ValueError(
                f"The 'sigma' parameter of SigmaVAE, {params.sigma}, is {scale:.2g} "
                "times the scale of the data, out of the range of float32. Are they in "
                "the same units?"
            )
    with isolated_rng.alone(seed):
        encoder, decoder, width, takes_float64 = build_networks(
            recipe, layout, params.n_components, params.linear_path
        )
    vae = VAE(
        encoder, decoder, units, layout, params.n_components, width, takes_float64
    ).float()
    if params.init == "pca":
        x = _rows_for_start(X, units, params.n_components, seed)
        scale = start_at_pca(vae, x, noise, scale, params.beta, MIN_LEARNED_SCALE, seed)
    elif learns_sigma:
        scale = 1.0
    return vae, scale


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


def _continue(params, previous, noise, learns_sigma):
    """Copy a net's module; return it and the scale of the noise in its units."""
    changed = [
        name
        for name, value in _structure(params).items()
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
        return vae, previous.criterion_.scale
    sigma, _ = check_sigma(params.sigma, vae.layout)
    scale = sigma / vae.units.scale
    if not np.allclose(scale, scale[0], rtol=1e-6, atol=0):
        raise ValueError(
            "A fit that continues from an earlier one (warm_start or partial_fit) "
            "cannot change the ratios of sigma between features. Multiply all of sigma "
            "by one number, or set warm_start=False to start afresh."
        )
    return vae, float(scale[0])


def _structure(params):
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
    if isinstance(value, str | Real):
        return value
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(map(_comparable, value))
    return type(value)


def _callbacks(params, schedule, early_stopping):
    # skorch initialises callbacks in place, so each fit has its own.
    callbacks = [_copied(callback) for callback in params.callbacks or []]
    check_callbacks(callbacks)
    if params.verbose:
        callbacks.append(ProgressBar())
    if early_stopping:
        patience = params.n_iter_no_change if schedule == "constant" else None
        callbacks.append(KeepBest(patience, params.tol))
    return callbacks


def _copied(callback):
    try:
        return deepcopy(callback)
    # Loggers hold open files and locks, which copies share.
    except TypeError:
        return copy(callback)


def _split(rows, validation_fraction, seed):
    """Random rows to train on, and the rest to hold out; at least one of each."""
    n_val = min(math.ceil(validation_fraction * len(rows)), len(rows) - 1)
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(rows)))
    return Selection(rows, order[n_val:]), Selection(rows, order[:n_val])


def _learn_sigma(net, selection):
    net.learn_scale(selection)
    if net.criterion_.scale < 1.01 * MIN_LEARNED_SCALE:
        warnings.warn(
            f"sigma='mle' reached its lower limit, {MIN_LEARNED_SCALE:g} of the data's "
            "scale: the likelihood grows without bound as sigma falls. Look for "
            "constant or duplicated columns, lower n_components, or give sigma a "
            "number.",
            ConvergenceWarning,
            stacklevel=2,
        )


def _count_active(vae, rows):
    step = max(1, len(rows) // ROWS_FOR_KL)
    some_rows = Selection(rows, torch.arange(0, len(rows), step))
    with torch.no_grad():
        batches = (x for x, _ in EvaluationBatches(some_rows, vae, 2))
        kl = torch.cat([kl_divergence(*vae.encode(x)) for x in batches]).mean(dim=0)
    if not all(tensor.isfinite().all() for tensor in (kl, *vae.parameters())):
        raise ValueError(
            "Training diverged: the weights are no longer finite. Lower learning_rate, "
            "or raise sigma or batch_size."
        )
    return int((kl > ACTIVE_KL).sum())
