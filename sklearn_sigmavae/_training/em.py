"""The linear model of rows with gaps: probabilistic PCA by EM.

Of rows with gaps the optimum of ``pca`` has no closed form, but what maximizes the
expected likelihood of the completed rows does: it is that of ``pca``, for the
covariance

    S = mean of E[(x - mean)(x - mean)'], given what is known of each row,

so that each step of EM takes the leading eigenvectors of S [1]_. The codes are
integrated out; in steps that complete them too, as in [1]_, convergence is slower.

.. [1] M. E. Tipping, C. M. Bishop, "Probabilistic Principal Component Analysis",
   Journal of the Royal Statistical Society B 61(3), 1999.
"""

import math

import numpy as np
import torch

from .._model.gaps import Completion, known_precision, linear_loadings
from .pca import PrincipalAxes, orthonormal, principal_axes

# Steps, and the gain in nats per row that is worth one.
_STEPS, _MIN_STEPS, _TOLERANCE = 50, 5, 1e-3

# Operations of a step, about, and numbers that are kept, which decide how many rows
# take part; the least rows for each component.
_OPERATIONS, _KEPT, _MIN_ROWS = 2**31, 2**25, 4

# Numbers in a block of rows.
_BLOCK = 2**20

# Maximum number of features for which all eigenvectors of S are computed. Beyond it
# they are sought in the span of the old axes and S times these, which contains the old
# optimum, so that the likelihood does not fall.
_NARROW = 128


class Expectation:
    """Completed rows, and moments of these, given a linear model.

    ``x`` are centered rows with zeros where nothing is ``known``.
    """

    def __init__(self, x, known, mean, axes, tau):
        self.known = known
        linear = axes.axes, axes.eigenvalues, tau
        self.loadings, self.tau = linear_loadings(*linear)
        (n, d), k = x.shape, self.loadings.shape[1]
        self.step = max(1, _BLOCK // (d * k))
        # Of each row the inverse root of the precision of its codes, times tau.
        self.roots = torch.empty(n, k, k, dtype=torch.float64)
        self.completed, self.log_likelihood = torch.empty_like(x), 0.0
        for part in self._blocks():
            self._complete(x[part] - known[part] * mean, part)
        self.shift = self.completed.mean(0)
        self.completed -= self.shift
        n_unknown = len(x) - known.sum(0)
        # Of the noise in what is missing.
        self.noise = self.tau * n_unknown / n

    def _blocks(self):
        n = len(self.known)
        return (slice(start, start + self.step) for start in range(0, n, self.step))

    def _complete(self, x, part):
        known, W = self.known[part], self.loadings
        precision = known_precision(W, self.tau, known)
        root = torch.linalg.cholesky(precision)
        eye = torch.eye(W.shape[1], dtype=torch.float64)
        inverse = torch.linalg.solve_triangular(root, eye, upper=False)
        pull = (inverse @ (x @ W).unsqueeze(-1)).squeeze(-1)
        codes = (inverse.mT @ pull.unsqueeze(-1)).squeeze(-1)
        self.roots[part] = inverse.mT
        self.completed[part] = torch.where(known, x, codes @ W.mT)
        n_known = int(known.sum())
        log_det = 2 * torch.diagonal(root, dim1=1, dim2=2).log().sum()
        log_det += (n_known - root.shape[0] * root.shape[1]) * math.log(self.tau)
        squares = (x.square().sum() - pull.square().sum()) / self.tau
        self.log_likelihood -= 0.5 * float(
            n_known * math.log(2 * math.pi) + log_det + squares
        )

    def covariance_times(self, basis):
        """S times a basis (n_features, p), or S."""
        n = len(self.known)
        total = _gram_times(self.completed.mT, basis)
        for part in self._blocks():
            # Columns whose products are the covariances of what is missing.
            columns = (~self.known[part]).unsqueeze(-1) * (
                self.loadings @ self.roots[part]
            )
            columns = columns.transpose(0, 1).flatten(1)
            total += self.tau * _gram_times(columns, basis)
        of_noise = self.noise.diag() if basis is None else self.noise[:, None] * basis
        return total / n + of_noise

    @property
    def total_variance(self):
        """float : Trace of S."""
        squares = self.completed.square().sum()
        for part in self._blocks():
            columns = self.loadings @ self.roots[part]
            squares += self.tau * (columns.square().sum(-1)[~self.known[part]]).sum()
        return float(squares / len(self.known) + self.noise.sum())


def _gram_times(columns, basis):
    """Products of columns with themselves, times a basis or not."""
    return columns @ (columns.mT if basis is None else columns.mT @ basis)


def fit_incomplete(x, k, tau_of, n_steps=_STEPS):
    """Principal axes of the codes, mean, and log-likelihoods of rows with NaN.

    ``tau_of`` gives the noise variance that goes with axes. The log-likelihoods, one
    for each step, are means over rows.
    """
    x = torch.from_numpy(x).double()
    known = ~x.isnan()
    mean = x.nan_to_num().sum(0) / known.sum(0).clamp_min(1)
    x = torch.where(known, x, 0.0)
    axes = _first_axes(x - known * mean, known, k)
    path = []
    while True:
        found = Expectation(x, known, mean, axes, tau_of(axes))
        path.append(found.log_likelihood / len(x))
        if len(path) > n_steps or (len(path) > 1 and path[-1] - path[-2] < _TOLERANCE):
            return axes, mean.numpy(), path
        mean = mean + found.shift
        axes = _maximize(found, torch.from_numpy(axes.axes))


def _first_axes(x, known, k):
    """Axes of centered rows that have zeros where nothing is known."""
    axes = PrincipalAxes.of_data(x.numpy(), min(k, *x.shape))
    return axes.divided_by(math.sqrt(float(known.double().mean())))


def _maximize(found, axes):
    """Principal axes that maximize the expected likelihood, or at least raise it."""
    d, k = axes.shape
    basis = None
    if d > max(_NARROW, 2 * k):
        basis = torch.cat([axes, found.covariance_times(axes)], dim=1)
        basis = torch.linalg.qr(basis)[0]
    S = found.covariance_times(basis)
    S = S if basis is None else basis.mT @ S
    eigenvalues, vectors = torch.linalg.eigh(0.5 * (S + S.mT))
    eigenvalues = eigenvalues.flip(0)[:k].clamp_min(0.0)
    vectors = vectors.flip(1)[:, :k]
    vectors = vectors if basis is None else basis @ vectors
    vectors = vectors * torch.where(vectors.sum(0) < 0, -1.0, 1.0)
    residual = max(0.0, found.total_variance - float(eigenvalues.sum()))
    return PrincipalAxes(eigenvalues.numpy(), vectors.numpy(), residual)


def _some_rows(x, n_rows):
    """About `n_rows` random rows, in which each column has an entry; or all rows."""
    if n_rows >= len(x):
        return x
    some = np.random.RandomState(0).choice(len(x), n_rows, replace=False)
    known = ~np.isnan(x)
    lacking = ~known[some].any(axis=0)
    return x[np.union1d(some, known[:, lacking].argmax(axis=0))]


def incomplete_axes(x, n_components, level, tau_of):
    """Principal axes, mean and noise variance of rows with NaN.

    The axes are those of the codes, and after these of what they leave of completed
    rows, with variances above a level. Returns also whether they are all of these.
    """
    n_rows, d = x.shape
    k = min(n_components, n_rows, d)
    n_operations = d * k * min(d, max(_NARROW, 2 * k))
    n_some = max(_MIN_ROWS * k, min(_OPERATIONS // n_operations, _KEPT // k**2))
    n_steps = _STEPS * _OPERATIONS / (n_operations * min(n_some, n_rows))
    n_steps = int(min(_STEPS, max(_MIN_STEPS, n_steps)))
    axes, mean, _ = fit_incomplete(_some_rows(x, n_some), k, tau_of, n_steps)
    tau, highest = tau_of(axes), level(axes)
    if k == d:
        return axes, mean, tau, True
    completion = Completion(mean, axes.axes, axes.eigenvalues, tau, 0, False)
    rows = completion.complete(torch.from_numpy(x).double())[:, :d].numpy() - mean
    rest = rows - rows @ axes.axes @ axes.axes.T
    # What is completed leaves nothing.
    known = 1 - float(np.isnan(x).mean())
    rest, is_complete = principal_axes(
        rest, n_components, lambda found: known * highest, d - k
    )
    rest = rest.divided_by(math.sqrt(known))
    both = np.hstack([axes.axes, rest.axes])
    both = PrincipalAxes(
        np.append(axes.eigenvalues, np.minimum(rest.eigenvalues, axes.eigenvalues[-1])),
        orthonormal(both),
        rest.residual,
    )
    return both, mean, tau, is_complete
