"""Internal units: the map between data, and noise scales, and what networks see."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from .blocks import row_blocks

# Noise scales in internal units below it, or above its inverse, leave the range of
# float32.
_MIN_SCALE = 1e-18


@dataclass(frozen=True, eq=False)
class Units:
    """Affine map, standardized = (data - offset) / scale, and principal axes.

    One scalar scales all features, since noise is isotropic and per-feature scales
    explode on rare features. Only noise scales that differ between features make the
    scale differ, such that the noise has one scale inside.

    Networks see coordinates along the axes, so that no weight belongs to a direction in
    which the data does not vary: no gradient would hold it. Where the density of the
    noise is the same in all directions, the model is made of coordinates altogether,
    and ``rotates`` is true: what lies outside of the axes is noise, and only its norm
    counts. Other noise is that of standardized features, and the module goes from
    features to coordinates and back.

    Attributes
    ----------
    offset, scale : ndarray of shape (n_features,), float64
        The map.
    low, high : ndarray of shape (n_features,), float64, or None
        Range of the training data, standardized.
    axes : ndarray of shape (n_features, n_axes), float64, or None
        Orthonormal columns; None stands for the features themselves.
    filter : ndarray of shape (n_axes,), float64, or None
        What the encoder multiplies coordinates by.
    rotates : bool
        Whether internal values are coordinates along the axes, or features.
    """

    offset: np.ndarray
    scale: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    axes: np.ndarray | None = None
    filter: np.ndarray | None = None
    rotates: bool = False

    @classmethod
    def identity(cls, n_features):
        """Units in which data stays as it is."""
        return cls(offset=np.zeros(n_features), scale=np.ones(n_features))

    @classmethod
    def of_data(cls, X, relative_scale):
        """Units, without axes, that center an array and scale its mean variance to one.

        Features are first divided by `relative_scale`, whose geometric mean is one.
        Missing entries, NaN, do not count.
        """
        low, high = X.min(axis=0), X.max(axis=0)
        has_gaps = bool(np.isnan(low).any())
        if has_gaps:
            low, high = np.fmin.reduce(X, axis=0), np.fmax.reduce(X, axis=0)
        low, high = low.astype(np.float64), high.astype(np.float64)
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
        total, squares, n_known = np.zeros(X.shape[1]), 0.0, len(X)
        if has_gaps:
            n_known = sum(
                (~np.isnan(X[block])).sum(axis=0) for block in row_blocks(X.shape)
            )
        for block in row_blocks(X.shape):
            deviation = (X[block] - middle) / divisor
            weighted = deviation
            if has_gaps:
                np.nan_to_num(deviation, copy=False)
                weighted = deviation * (len(X) / n_known)
            total += deviation.sum(axis=0)
            squares += np.vdot(weighted, deviation)
        mean = total / n_known
        variance = squares / X.size - np.square(mean).mean()
        offset, scale = middle + mean * divisor, divisor * np.sqrt(variance)
        return cls(offset, scale, (low - offset) / scale, (high - offset) / scale)

    def moved(self, mean):
        """Units whose offset is the data at standardized features."""
        return replace(
            self,
            offset=self.offset + mean * self.scale,
            low=self.low - mean,
            high=self.high - mean,
        )

    def along(self, axes, filter_, size, rotates):
        """Units with axes and a filter, and with values divided by a number more.

        The scale of the networks' inputs then does not depend on their number.
        """
        return Units(
            offset=self.offset,
            scale=self.scale * size,
            low=self.low / size,
            high=self.high / size,
            # As files hold them: the order decides how products are rounded.
            axes=np.ascontiguousarray(axes),
            filter=filter_,
            rotates=rotates,
        )

    @cached_property
    def log_volume(self):
        """float : Sum of log scales: log-density inside minus log-density of data."""
        return float(np.log(self.scale).sum())

    @property
    def mean_scale(self):
        """float : Geometric mean of the scales."""
        return float(np.exp(self.log_volume / self.scale.size))

    @property
    def data_scale(self):
        """float : Root mean variance of a feature of the training data, about."""
        return self.mean_scale * (self.n_seen / self.scale.size) ** 0.5

    @property
    def _unit(self):
        """The scales, or the one scale of all features."""
        return self.scale if np.ptp(self.scale) else self.scale[0]

    @property
    def n_internal(self):
        """int : Internal values of a row."""
        return self.axes.shape[1] if self.rotates else self.scale.size

    @property
    def n_seen(self):
        """int : Inputs of the networks: axes, or features."""
        return self.scale.size if self.axes is None else self.axes.shape[1]

    @property
    def n_outside(self):
        """int : Dimensions that internal values do not hold."""
        return self.scale.size - self.n_internal

    def scale_to_internal(self, scale, name):
        """Noise scales of data in internal units; broadcast over features."""
        with np.errstate(over="ignore", under="ignore", divide="ignore"):
            internal = np.asarray(scale / self._unit)
            worst = internal.flat[np.abs(np.log(internal)).argmax()]
        if not _MIN_SCALE <= worst <= 1 / _MIN_SCALE:
            raise ValueError(
                f"{name} is {worst:.2g} times the scale of the data, out of the range "
                "of float32. Are they in the same units?"
            )
        return internal

    def common_scale(self, sigma):
        """The one noise scale inside that `sigma` stands for; None for several."""
        name = f"The 'sigma' parameter of SigmaVAE, {sigma},"
        scale = self.scale_to_internal(np.ravel(sigma), name)
        is_one = np.allclose(scale, scale[0], rtol=1e-6, atol=0)
        return float(scale[0]) if is_one else None

    def scale_to_data(self, scale):
        """Noise scale in the units of data: a float, or an array if features differ."""
        return scale * self._unit

    def mean_scale_to_data(self, scale):
        """The same as one float: the geometric mean over features."""
        return float(scale * self.mean_scale)

    def to_internal(self, X):
        """Data (n_samples, n_features) to a tensor of the same dtype, or of float32."""
        return self.rotate(self.standardize(X))

    def standardize(self, X):
        """Data to standardized features, a tensor of the same dtype, or of float32.

        The result is as exact as arithmetic in float64 rounded at the end.
        """
        if X.dtype.kind == "u":
            X = X.astype(np.float32)
        x = as_tensor(X)
        standardize = self.float32_map("cpu")
        if X.dtype == np.float32 and standardize is not None:
            return standardize(x)
        x = (x - torch.from_numpy(self.offset)) / torch.from_numpy(self.scale)
        return x.to(torch.float64 if X.dtype == np.float64 else torch.float32)

    def axes_like(self, x):
        """The axes as a tensor, on the device and in the dtype of another."""
        axes = self._float32_axes if x.dtype == torch.float32 else self.axes
        return torch.from_numpy(axes).to(x)

    def coordinates(self, x):
        """What networks see of standardized features: coordinates, if it has axes."""
        return x if self.axes is None else x @ self.axes_like(x)

    def rotate(self, x):
        """Standardized features to internal values."""
        return self.coordinates(x) if self.rotates else x

    def rotate_back(self, x):
        """Internal values, a tensor or an array, to standardized features."""
        if not self.rotates:
            return x
        if torch.is_tensor(x):
            return x @ self.axes_like(x).mT
        return x @ (self._float32_axes if x.dtype == np.float32 else self.axes).T

    def split(self, x):
        """Standardized features to internal values, and squared norms (n,) of the rest.

        The rest is what rows have outside of the axes, which features hold, too.
        """
        if self.axes is None:
            return x, x.new_zeros(len(x))
        inside, axes = self.coordinates(x), self.axes_like(x)
        # Not a difference of squares, which loses digits.
        outside = (x - inside @ axes.mT).square().sum(-1)
        return inside if self.rotates else x, outside

    def to_data(self, x):
        """Standardized features to data, arrays in float64."""
        return x * self.scale + self.offset

    def float32_map(self, device):
        """Function from float32 data to standardized; None if it might overflow."""
        if self._float32_terms is None:
            return None
        high, low, inverse = (
            torch.from_numpy(term).to(device) if isinstance(term, np.ndarray) else term
            for term in self._float32_terms
        )

        def standardize(x):
            x = x - high
            if low is not None:
                x -= low
            x *= inverse
            return x

        return standardize

    @cached_property
    def _float32_axes(self):
        # Arrays, since tensors would move with the weights when a model is unpickled.
        return self.axes.astype(np.float32)

    @cached_property
    def _float32_terms(self):
        """Float32 arrays a, b, c with standardized = (data - a - b) * c, or None.

        The offset is a sum of two numbers, of which the first is subtracted without
        error wherever large numbers cancel; where they do not, b is None. A c common to
        all features is a number, which is faster.
        """
        extremes = np.concatenate([self.scale, np.abs(self.offset)])
        if self.scale.min() < 1e-30 or extremes.max() > 1e30:
            return None
        high = self.offset.astype(np.float32)
        low = None
        # Up to here the rounding of one number is of the order of the data's own.
        if np.abs(self.offset / self.scale).max() > 8:
            low = (self.offset - high).astype(np.float32)
        inverse = 1 / self._unit
        # Arrays, since tensors would move with the weights when a model is unpickled.
        return high, low, np.float32(inverse) if inverse.ndim else float(inverse)


def as_tensor(X):
    """Tensor on an array's memory; a copy of read-only arrays, of which torch warns."""
    return torch.from_numpy(X if X.flags.writeable else X.copy())
