"""The torch module: encode, decode, and the internal units it works in."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

from ._threads import count_operations

# Means of features, in internal units, up to which one float32 number may stand for
# them: its rounding is then of the order of the data's own.
_SMALL_SHIFT = 8

# Rows are converted in blocks of about this many numbers, which stay in cache.
_BLOCK = 2**17


@dataclass(frozen=True, eq=False)
class Units:
    """Affine map between data and the units that the networks see.

    One scalar scales all features, since noise is isotropic and per-feature scales
    explode on rare features; only per-feature noise scales make the scale differ, such
    that the noise has the same scale in every feature inside.

    Attributes
    ----------
    offset, scale : ndarray of shape (n_features,), float64
        Internal value = (data - offset) / scale.
    low, high : ndarray of shape (n_features,), float64, or None
        Range of the data that the units are those of, in internal units.
    """

    offset: np.ndarray
    scale: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    @property
    def log_volume(self):
        """float : Sum of log scales: log-density inside minus log-density of data."""
        return float(np.log(self.scale).sum())

    @property
    def mean_scale(self):
        """float : Geometric mean of the scales."""
        return float(np.exp(self.log_volume / self.scale.size))

    @classmethod
    def identity(cls, n_features):
        """Units in which data stays as it is."""
        return cls(offset=np.zeros(n_features), scale=np.ones(n_features))

    @classmethod
    def of_data(cls, X, relative_scale):
        """Units that centre an array and scale it to a mean variance of one.

        Parameters
        ----------
        X : ndarray of shape (n_samples, n_features)
            Training data.
        relative_scale : ndarray of shape (n_features,)
            Features are divided by it first; its geometric mean is one.

        Returns
        -------
        units : Units

        Raises
        ------
        ValueError
            If the spread of the data is not finite in float64.
        """
        low, high = X.min(axis=0).astype(np.float64), X.max(axis=0).astype(np.float64)
        with np.errstate(over="ignore"):
            divisor = relative_scale * ((high - low) / relative_scale).max()
        if not np.isfinite(divisor).all():
            raise ValueError(
                "The spread of X is not finite in float64: its values are too large. "
                "Rescale X before fitting."
            )
        if not divisor.all():
            nothing = np.zeros_like(low)
            return cls(low, np.array(relative_scale), nothing, nothing)
        # Seen from the middle of the range, in units of the range, no sum loses digits,
        # overflows or underflows.
        middle = low + 0.5 * (high - low)
        total, squares = np.zeros(X.shape[1]), 0.0
        for block in blocks(X):
            deviation = (X[block] - middle) / divisor
            total += deviation.sum(axis=0)
            squares += np.vdot(deviation, deviation)
        mean = total / len(X)
        variance = squares / X.size - np.square(mean).mean()
        offset, scale = middle + mean * divisor, divisor * np.sqrt(variance)
        return cls(offset, scale, (low - offset) / scale, (high - offset) / scale)

    def to_internal(self, X):
        """Data to a tensor in internal units, of the same dtype.

        The result is as exact as arithmetic in float64 rounded at the end.

        Parameters
        ----------
        X : ndarray of shape (n_samples, n_features)
            float32 or float64, or unsigned integers, which become float32.

        Returns
        -------
        x : torch.Tensor of shape (n_samples, n_features)
        """
        if X.dtype.kind == "u":
            X = X.astype(np.float32)
        x = as_tensor(X)
        to_internal = self.float32_map("cpu")
        if X.dtype == np.float32 and to_internal is not None:
            return to_internal(x)
        x = (x - torch.from_numpy(self.offset)) / torch.from_numpy(self.scale)
        return x.to(torch.float64 if X.dtype == np.float64 else torch.float32)

    def float32_map(self, device):
        """Function from data to internal units, for tensors in float32 on a device.

        It is None if the range of float32 is too small for the units.
        """
        if self._float32_terms is None:
            return None
        high, low, inverse = (
            torch.from_numpy(term).to(device) if isinstance(term, np.ndarray) else term
            for term in self._float32_terms
        )

        def to_internal(x):
            x = x - high
            if low is not None:
                x -= low
            x *= inverse
            return x

        return to_internal

    @cached_property
    def _float32_terms(self):
        """Float32 arrays a, b, c with internal value = (data - a - b) * c, or None.

        The offset is a sum of two numbers, of which the first is subtracted without
        error wherever large numbers cancel; where they do not, b is None. A c common to
        all features is a number, which is faster. None if the range of float32 is too
        small for the scales.
        """
        extremes = np.concatenate([self.scale, np.abs(self.offset)])
        if self.scale.min() < 1e-30 or extremes.max() > 1e30:
            return None
        high = self.offset.astype(np.float32)
        low = None
        if np.abs(self.offset / self.scale).max() > _SMALL_SHIFT:
            low = (self.offset - high).astype(np.float32)
        if np.ptp(self.scale) == 0:
            inverse = float(1 / self.scale[0])
        else:
            inverse = (1 / self.scale).astype(np.float32)
        # Arrays, since tensors would move with the weights where a model is unpickled.
        return high, low, inverse

    def to_data(self, x):
        """Internal units to data, in float64.

        Parameters
        ----------
        x : ndarray of shape (n_samples, n_features)

        Returns
        -------
        X : ndarray of shape (n_samples, n_features), float64
        """
        return x * self.scale + self.offset


def as_tensor(X):
    """Tensor on the memory of an array, unless torch could not leave it unwritten."""
    # Torch warns of read-only arrays.
    return torch.from_numpy(X if X.flags.writeable else X.copy())


def blocks(X):
    """Slices that cut an array of rows into blocks that stay in cache."""
    step = max(1, _BLOCK // X.shape[1])
    return (slice(start, start + step) for start in range(0, len(X), step))


def bound_log_var(log_var):
    """Log-variances that hardly exceed those of the prior.

    No posterior of a linear model is wider than the prior, but an encoder that
    extrapolates to an outlier would make it so by many orders of magnitude. Up to 0,
    the prior's, values stay as they are; above it they grow like a logarithm.
    """
    # The gradient of the first term at 0 is one and that of the second zero, so that
    # components without use, which are at 0, train as if there were no bound.
    return log_var.clamp_max(0.0) + log_var.relu().log1p()


class LinearTails(nn.Module):
    """What carries a model on, linearly, beyond where its training data was.

    Networks know nothing of what is out there, and one far row would decide a mean
    score. They see a far row moved to the edge of the range of the training data, and a
    far code shortened to the norm of those of the training data. How far it was moved
    goes through the optimal linear model, so that far out the model is probabilistic
    PCA.

    Parameters
    ----------
    axes : torch.Tensor of shape (n_features, n_components)
        Principal axes of the training data; zero where there are fewer.
    variances : torch.Tensor of shape (n_components,)
        Variances along them, in internal units.
    noise_variance : torch.Tensor of shape ()
        The tau of the linear model.
    low, high : torch.Tensor of shape (n_features,)
        Range of the training data, in internal units.
    limit : torch.Tensor of shape ()
        Norm of the codes up to which they are not far.
    """

    def __init__(self, axes, variances, noise_variance, low, high, limit):
        super().__init__()
        # They move with the module, but training neither saves nor restores them.
        self.register_buffer("axes", axes, persistent=False)
        self.register_buffer("variances", variances, persistent=False)
        self.register_buffer("noise_variance", noise_variance, persistent=False)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        self.register_buffer("limit", limit, persistent=False)

    @property
    def _amplitudes(self):
        """Sizes of the columns of the linear decoder."""
        return (self.variances - self.noise_variance).clamp_min(0.0).sqrt()

    def split_rows(self, x):
        """Rows moved to the edge, and what that takes from their codes, or None."""
        inside = x.clamp(self.low, self.high)
        if torch.equal(inside, x):
            return x, None
        # Of unused components the amplitude is zero, and so may be the variance.
        tiny = torch.finfo(self.variances.dtype).tiny
        gain = self._amplitudes / self.variances.clamp_min(tiny)
        return inside, (x - inside) @ self.axes * gain

    def split_codes(self, z):
        """Codes shortened, and what that takes from their locations, or None."""
        factor = (self.limit / z.norm(dim=-1, keepdim=True)).clamp_max(1.0)
        if (factor == 1).all():
            return z, None
        inside = factor * z
        return inside, (z - inside) * self._amplitudes @ self.axes.mT


class VAE(nn.Module):
    """Encoder and decoder with the units they work in.

    Parameters
    ----------
    encoder, decoder : torch.nn.Module
        From rows of shape (n, n_features) to (n, 2 * n_components), and from codes to
        rows, as :func:`~sklearn_sigmavae.networks.build_networks` makes them.
    units : Units
        Map between data and the networks' units.
    layout : Layout
        Shape of samples outside.
    n_components : int
        Dimension of the codes.
    width : int
        Most numbers that a layer makes of one row or code.
    takes_float64 : bool
        Whether encoder and decoder can be cast to float64.
    recipe : object or str
        What made the networks: one of this package's recipes, or the name of another's
        class.

    Attributes
    ----------
    tails : LinearTails or None
        What carries the model on beyond the training data, once it is trained.
    n_stack_dims : int
        Leading dimensions of all tensors that tell the members of a stack apart: none
        here, see :class:`~sklearn_sigmavae._stack.VAEStack`.
    """

    n_stack_dims = 0

    def __init__(
        self,
        encoder,
        decoder,
        units,
        layout,
        n_components,
        width,
        takes_float64,
        recipe=None,
    ):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.units = units
        self.layout = layout
        self.n_components = n_components
        self.width = width
        self.takes_float64 = takes_float64
        self.recipe = recipe
        self.tails = None

    def encode(self, x):
        """Mean and log-variance of q(z|x), each of shape (n, n_components)."""
        moved = None
        if self.tails is not None:
            x, moved = self.tails.split_rows(x)
        # Of the dtype of x, also where autocast computes in another.
        mean, log_var = self.encoder(x).to(x.dtype).chunk(2, dim=-1)
        return mean if moved is None else mean + moved, bound_log_var(log_var)

    def decode(self, z):
        """Locations for codes of shape (..., n_components), any leading dimensions."""
        moved = None
        if self.tails is not None:
            z, moved = self.tails.split_codes(z)
        location = self.decoder(z if z.ndim == 2 else z.flatten(0, -2)).to(z.dtype)
        location = location.reshape(*z.shape[:-1], *location.shape[1:])
        return location if moved is None else location + moved

    def forward(self, x):
        """Mean of q(z|x)."""
        return self.encode(x)[0]

    @cached_property
    def n_operations(self):
        """float : Floating-point operations for one row, about."""
        return count_operations(self)

    @property
    def device(self):
        """torch.device : Where the parameters live."""
        return next(self.parameters()).device
