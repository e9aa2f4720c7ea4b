"""Rows with gaps: what networks see of them, and the entries that count.

A missing entry is one whose noise is infinite: it is left out of the sum over features.
Networks see rows that are completed by the linear model, probabilistic PCA, whose
encoder is then exact, too: at a completed row it returns the posterior mean given the
entries that are known, and of the log-variances it is known what to add.

Rows with gaps are tensors of ``2 * n_features + n_components`` columns, so that they
are gathered, sliced and moved as rows without gaps are: features, completed; ones where
these are known and zeros elsewhere; and what is added to log-variances.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

# Numbers in a block of rows that are completed.
_COMPLETED = 2**20

# The noise variance of the linear model, relative to the largest along an axis, at
# least: with less the posterior of a row with many gaps has no inverse in float64.
_MIN_NOISE = 1e-10

# Completions follow a scale of the noise that changes in steps of this factor.
_STEP = 1.3


def unpack(x, n_features):
    """Features of rows, and of rows with gaps what is known and what is added."""
    if x.shape[-1] == n_features:
        return x, None, None
    sizes = n_features, n_features, x.shape[-1] - 2 * n_features
    return x.split(sizes, dim=-1)


def known_energy(noise, x, location, scale, known):
    """Energy (...) of the entries that are known, all if that is None.

    See :meth:`NoiseModel.energy`.
    """
    if known is None:
        return noise.energy(x, location, scale)
    if torch.is_tensor(scale):
        scale = scale.unsqueeze(-1)
    energy = noise.energy(x.unsqueeze(-1), location.unsqueeze(-1), scale)
    return (energy * known).sum(-1)


def energy_of_rows(noise, x, location, scale):
    """Energy of rows, with or without gaps, at locations (..., n, n_features)."""
    x, known, _ = unpack(x, location.shape[-1])
    return known_energy(noise, x, location, scale, known)


def log_likelihood_of_rows(noise, x, location, scale):
    """Log-density of what is known of rows; see :meth:`NoiseModel.log_prob`."""
    _, known, _ = unpack(x, location.shape[-1])
    if known is None:
        return noise.log_prob(x, location, scale)
    constant = known.sum(-1) * noise.log_normalizer(scale)
    return -energy_of_rows(noise, x, location, scale) - constant


@dataclass(frozen=True, eq=False)
class Completion:
    """The linear model by which rows are completed, in standardized features.

    Attributes
    ----------
    mean : ndarray of shape (n_features,)
        What a row without any entry is completed by.
    axes, variances : ndarray of shape (n_features, k) and (k,)
        Orthonormal axes of the codes, and the variances along them.
    noise_variance : float
        That of the linear model, its tau.
    n_components : int
        Number of codes of the networks.
    corrects : bool
        Whether the codes of the networks started as those of the linear model, so that
        their log-variances can be corrected.
    """

    mean: np.ndarray
    axes: np.ndarray
    variances: np.ndarray
    noise_variance: float
    n_components: int
    corrects: bool

    @classmethod
    def by_mean(cls, mean, n_components):
        """Completion by one number for each feature."""
        axes = np.zeros((len(mean), 0))
        return cls(mean, axes, np.zeros(0), 1.0, n_components, False)

    @cached_property
    def _loadings(self):
        """Loadings of codes (n_features, k), and the noise variance."""
        return linear_loadings(self.axes, self.variances, self.noise_variance)

    @property
    def width(self):
        """int : Columns of rows with gaps."""
        return 2 * len(self.mean) + self.n_components

    def at(self, noise_variance):
        """The same for another noise variance, rounded to a geometric grid."""
        if not len(self.variances):
            return self
        exponent = round(np.log(noise_variance) / np.log(_STEP**2))
        rounded = _STEP ** (2 * exponent)
        if np.isclose(rounded, self.noise_variance, rtol=1e-9):
            return self
        return replace(self, noise_variance=rounded)

    def complete(self, x):
        """Standardized rows, NaN where nothing is known, as rows with gaps.

        Rows without NaN are not changed.
        """
        known = ~x.isnan()
        rows = torch.zeros((len(x), self.width), dtype=x.dtype)
        features, is_known, shift = unpack(rows, x.shape[1])
        features.copy_(x)
        is_known.copy_(known)
        index = (~known.all(1)).nonzero().squeeze(1)
        step = max(1, _COMPLETED // max(1, self.axes.size))
        for some in index.split(step):
            completed, added = self._of_block(x[some].double(), known[some])
            features[some] = completed.to(x.dtype)
            if self.corrects:
                shift[some, : added.shape[1]] = added.to(x.dtype)
        return rows

    def _of_block(self, x, known):
        mean, (loadings, tau) = torch.from_numpy(self.mean), self._loadings
        centered = torch.where(known, x - mean, 0.0)
        precision = known_precision(loadings, tau, known)
        pull = (centered @ loadings).unsqueeze(-1)
        codes = torch.cholesky_solve(pull, torch.linalg.cholesky(precision)).squeeze(-1)
        completed = torch.where(known, x, codes @ loadings.mT + mean)
        complete = loadings.square().sum(0) + tau
        diagonal = torch.diagonal(precision, dim1=1, dim2=2)
        return completed, complete.log() - diagonal.log()


def linear_loadings(axes, variances, noise_variance):
    """Loadings of codes (n_features, k), and a noise variance that is not too small."""
    tiny = np.finfo(np.float64).tiny
    tau = max(noise_variance, _MIN_NOISE * variances.max(initial=0.0), tiny)
    amplitudes = np.sqrt(np.maximum(variances - tau, 0.0))
    return torch.from_numpy(amplitudes * axes), tau


def known_precision(loadings, tau, known):
    """Posterior precisions (n, k, k) of codes, times tau, given what is known."""
    precision = (loadings.mT * known.unsqueeze(1)) @ loadings
    torch.diagonal(precision, dim1=1, dim2=2).add_(tau)
    return precision
