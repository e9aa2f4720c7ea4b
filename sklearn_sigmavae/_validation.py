"""What scales, recipes, optimizers and devices must look like."""

from numbers import Integral

import numpy as np
import torch
from skorch.callbacks import Callback

from ._net import OPTIMIZERS
from .networks import MLP


def check_sigma(sigma, n_features):
    """Noise scales, and how those of the features relate.

    Parameters
    ----------
    sigma : float or array-like of shape (n_features,)
        Scale of the noise in the units of the data.
    n_features : int
        Number of features of the data.

    Returns
    -------
    sigma : float or ndarray of shape (n_features,)
        The scales, checked.
    relative : ndarray of shape (n_features,)
        Scales divided by their geometric mean.
    """
    try:
        sigma = np.asarray(sigma, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "The 'sigma' parameter of SigmaVAE must be a positive number, one per "
            f"feature, or 'mle'. Got {sigma!r} instead."
        ) from error
    if sigma.ndim and sigma.shape != (n_features,):
        raise ValueError(
            "The 'sigma' parameter of SigmaVAE must have one scale per feature, shape "
            f"({n_features},) for this X. Got shape {sigma.shape} instead."
        )
    if not (np.isfinite(sigma).all() and (sigma > 0).all()):
        raise ValueError(
            "The 'sigma' parameter of SigmaVAE must be positive and finite. Got "
            f"{sigma} instead."
        )
    if not sigma.ndim:
        return float(sigma), np.ones(n_features)
    # Divided by a power of two first, so that one in the units changes no bit.
    mantissa = sigma / 2.0 ** np.floor(np.log2(sigma[0]))
    return sigma, mantissa / np.exp(np.log(mantissa).mean())


def resolve_network(network, hidden_layer_sizes, activation):
    """Recipe that a ``network`` parameter stands for."""
    if isinstance(network, type):
        raise TypeError(
            "The 'network' parameter of SigmaVAE must be an instance of a recipe, not "
            f"a class. Got {network.__name__}; did you mean {network.__name__}()?"
        )
    if network != "mlp":
        return network
    if isinstance(hidden_layer_sizes, Integral):
        hidden_layer_sizes = (hidden_layer_sizes,)
    sizes = tuple(hidden_layer_sizes)
    if not all(isinstance(size, Integral) and size >= 1 for size in sizes):
        raise ValueError(
            "The 'hidden_layer_sizes' parameter of SigmaVAE must hold integers >= 1. "
            f"Got {hidden_layer_sizes!r} instead."
        )
    return MLP(sizes, activation)


def resolve_optimizer(optimizer, device):
    """Optimizer class and keyword arguments that an ``optimizer`` stands for."""
    if not isinstance(optimizer, str):
        if optimizer is torch.optim.LBFGS:
            raise ValueError(
                "The 'optimizer' parameter of SigmaVAE must be of first order. Got "
                "torch.optim.LBFGS, which evaluates the loss many times a step."
            )
        return optimizer, {}
    cls, kwargs = OPTIMIZERS[optimizer]
    fused = device.type in ("cpu", "cuda")
    return cls, {**kwargs, "fused": fused}


def resolve_device(device):
    """Device that a ``device`` parameter stands for, tried out.

    Raises
    ------
    ValueError
        If torch does not know the device or cannot compute on it.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
        torch.zeros(1, device=resolved).item()
    # torch raises a different type for each way in which a device is not there.
    except Exception as error:
        raise ValueError(
            "The 'device' parameter of SigmaVAE must be 'auto' or a device that torch "
            f"can use here, such as 'cpu'. Got {device!r} instead: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return resolved


def check_callbacks(callbacks):
    """Raise ``TypeError`` unless all are skorch callbacks, perhaps named."""
    for item in callbacks:
        callback = item[1] if isinstance(item, tuple) and len(item) == 2 else item
        cls = callback if isinstance(callback, type) else type(callback)
        if not issubclass(cls, Callback):
            raise TypeError(
                "The 'callbacks' parameter of SigmaVAE must hold skorch callbacks, or "
                f"pairs of a name and one. Got {item!r} instead."
            )
