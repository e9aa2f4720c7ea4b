"""The linear model: principal axes, and the optimum that training starts from.

With no nonlinear path, Gaussian noise of scale sigma and the objective's beta, the
optimum is known [1]_. With lambda_i the eigenvalues of the covariance (divided by n),
u_i its eigenvectors and tau = beta * sigma**2, component i is in use if lambda_i > tau;
then

    encoder mean      sqrt(lambda_i - tau) / lambda_i * u_i.(x - mean)
    encoder variance  tau / lambda_i
    decoder column    sqrt(lambda_i - tau) * u_i

and otherwise it stays at the prior. Networks see coordinates along the leading axes
u_i, down to those whose variance lambda_i is far below tau: along others the data does
not vary, and weights that nothing holds would pass on all of the noise in a noisy row.

.. [1] J. Lucas, G. Tucker, R. Grosse, M. Norouzi, "Don't Blame the ELBO! A Linear VAE
   Perspective on Posterior Collapse", arXiv:1911.02469, 2019.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.decomposition import PCA

from .._model.blocks import (
    AXES,
    CODES,
    CONVERTED,
    INITIAL,
    MIN_ROWS_PER_COMPONENT,
)
from .._model.settings import limited_threads
from .._model.vae import LinearTails


@dataclass(frozen=True, eq=False)
class PrincipalAxes:
    """Leading eigenpairs of the covariance of the data, standardized.

    Eigenvalues (n_axes,) decrease; axes (n_features, n_axes) are orthonormal columns.
    ``residual`` is the sum of all other eigenvalues.
    """

    eigenvalues: np.ndarray
    axes: np.ndarray
    residual: float

    @classmethod
    def of_data(cls, x, n_axes):
        """Principal axes of an array, always the same."""
        n_rows, n_features = x.shape
        # Of this shape scikit-learn would choose a slower one.
        is_narrow = n_features <= min(n_rows, 1000) and n_rows > 500
        solver = "covariance_eigh" if is_narrow else "auto"
        # With constant data it divides zero by zero, in a ratio that is not used here.
        with np.errstate(invalid="ignore"):
            pca = PCA(n_axes, svd_solver=solver, random_state=0).fit(x)
        # scikit-learn divides by n - 1; the likelihood's optimum divides by n.
        ratio = (n_rows - 1) / n_rows
        residual = pca.noise_variance_ * (min(x.shape) - n_axes) * ratio
        # Of rows in float32 they are orthonormal to that precision.
        axes = orthonormal(pca.components_.T.astype(np.float64))
        return cls(pca.explained_variance_ * ratio, axes, float(residual))

    @property
    def unit(self):
        """float : Largest standard deviation along any direction; 1 if it is zero."""
        return float(np.sqrt(self.eigenvalues[0])) or 1.0

    def total(self, first=0):
        """Sum of the eigenvalues but for the first ones."""
        return float(self.eigenvalues[first:].sum()) + self.residual

    def count(self, level, minimum):
        """Number of axes with variances above a level, and no less than a minimum."""
        n_above = int((self.eigenvalues > level).sum())
        return max(n_above, min(minimum, len(self.eigenvalues)))

    def size(self, n_axes):
        """Root mean variance of coordinates along the first axes; 1 if it is zero."""
        return float(np.sqrt(self.eigenvalues[:n_axes].mean())) or 1.0

    def filter(self, n_axes, tau):
        """What an encoder multiplies coordinates by: the square of Wiener's filter.

        Rows may be as noisy as the model imagines, and more. Directions with little
        variance have little to say, and then nothing but noise.
        """
        eigenvalues = self.eigenvalues[:n_axes]
        # The closed form divides by it.
        return np.square(eigenvalues / (eigenvalues + tau)).clip(1e-3)

    def divided_by(self, size):
        """Those of data divided by a number."""
        ratio = 1 / size**2
        return replace(
            self, eigenvalues=self.eigenvalues * ratio, residual=self.residual * ratio
        )

    def seen(self, vae):
        """Axes (k, n) of the codes of a VAE, as its networks see them, or zero."""
        k, units = vae.n_components, vae.units
        n_axes = min(k, len(self.eigenvalues))
        if units.axes is None:
            axes = self.axes[:, :n_axes].T
        else:
            axes = np.eye(n_axes, units.axes.shape[1])
        return np.pad(axes, ((0, k - n_axes), (0, 0)))

    def of_codes(self, k):
        """Eigenvalues (k,) of the codes; zero where there are fewer."""
        eigenvalues = self.eigenvalues[:k]
        return np.pad(eigenvalues, (0, k - len(eigenvalues)))

    def optimal_codes(self, k, tau):
        """Codes per unit of their coordinate, the reverse, and posterior variances."""
        eigenvalues = np.maximum(self.of_codes(k), np.finfo(np.float64).tiny)
        amplitude = np.sqrt(np.maximum(eigenvalues - tau, 0.0))
        return amplitude / eigenvalues, amplitude, tau / np.maximum(eigenvalues, tau)

    def optimum(self, vae, tau):
        """Encoder weight, encoder log-variance and decoder weight at the optimum."""
        gain, amplitude, variance = self.optimal_codes(vae.n_components, tau)
        axes = self.seen(vae)
        encoder = gain[:, None] * axes
        if vae.units.filter is not None:
            encoder /= vae.units.filter
        return encoder, np.log(variance), amplitude * axes.T

    def noise_variance_mle(self, k, ratio):
        """Maximum-likelihood noise variance of the linear model; 0 if unbounded.

        With tau = ratio * noise variance and all axes in use the distortion is
        their number times tau plus the residual, and at the maximum it equals
        ``n_features * noise variance``.
        """
        n_used = min(k, len(self.eigenvalues))
        free = len(self.axes) - ratio * n_used
        return self.total(n_used) / free if free > 0 else 0.0


def orthonormal(columns):
    """Columns that are almost orthonormal, made so."""
    axes, triangle = np.linalg.qr(columns)
    return axes * np.where(np.diag(triangle) < 0, -1.0, 1.0)


def start_at_pca(vae, axes, tau):
    """Put the closed form into the linear paths of a VAE, and zeros into networks."""
    with torch.no_grad():
        optimum = axes.optimum(vae, tau)
        for parameter, value in zip(_linear_parameters(vae), optimum, strict=True):
            parameter.copy_(torch.from_numpy(value))
        vae.encoder.linear.bias.zero_()
        vae.decoder.linear.bias.zero_()
    vae.encoder.zero_network()
    vae.decoder.zero_network()


def move_along_pca(vae, axes, tau, new_tau, fitted):
    """Move linear paths and prior of a VAE by what the start moves between two tau."""
    old, new = axes.optimum(vae, tau), axes.optimum(vae, new_tau)
    with torch.no_grad():
        for parameter, a, b in zip(_linear_parameters(vae), old, new, strict=True):
            parameter.add_(torch.from_numpy(b - a).to(vae.device, torch.float32))
        old, new = (_prior_start(vae, axes, each, fitted) for each in (tau, new_tau))
        for name, parameter in vae.prior.named_values().items():
            parameter.add_((new[name] - old[name]).to(parameter))


def _linear_parameters(vae):
    return vae.encoder.linear.weight, vae.encoder.log_var, vae.decoder.linear.weight


@limited_threads(0, "cpu")
def fit_prior(vae, axes, tau, selection, seed):
    """What the prior has to know of the principal coordinates of rows.

    They are in units of the largest standard deviation, so that models with other
    scales of the noise can share it.
    """
    if not vae.prior.named_values():
        return None
    random_state = np.random.RandomState(seed)
    order = torch.from_numpy(random_state.permutation(len(selection))[:CODES])
    index = selection.index[order.to(selection.index.device)]
    step = max(1, CONVERTED // selection.rows.width)
    rows = (selection.rows[part].cpu() for part in index.split(step))
    seen, missing = [], []
    for x in rows:
        features, known, shift = vae.unpack(x)
        seen.append(vae.coordinates(features))
        if known is not None:
            missing.append(shift)
    codes = torch.cat(seen).double().numpy() @ axes.seen(vae).T
    if missing:
        # The posterior of a row with gaps is wider.
        gain, _, variance = axes.optimal_codes(vae.n_components, tau)
        more = variance * np.expm1(torch.cat(missing).double().numpy())
        width = np.sqrt(np.maximum(more, 0.0)) / np.where(gain > 0, gain, np.inf)
        codes += width * random_state.standard_normal(width.shape)
    return vae.prior.recipe.fit_codes(codes / axes.unit, random_state)


def start_prior(vae, axes, tau, fitted):
    """Start the prior at what it was fitted to."""
    with torch.no_grad():
        start = _prior_start(vae, axes, tau, fitted)
        for name, parameter in vae.prior.named_values().items():
            parameter.copy_(start[name])


def _prior_start(vae, axes, tau, fitted):
    recipe, k = vae.prior.recipe, vae.n_components
    gain, _, variance = axes.optimal_codes(k, tau)
    # Where the noise hides everything, all codes are the same.
    if fitted is None or not gain.any():
        return recipe.parameters(k)
    return recipe.start(fitted, gain * axes.unit, variance)


@limited_threads(0, "cpu")
def principal_axes(x, n_components, level, n_all=None):
    """Principal axes of rows with variances above a level, and those of the codes.

    The level is a function of the axes. Returns also whether they are all of these, of
    the ``n_all`` that there are: of wide data it takes too long to find out, if there
    are many.
    """
    n_all = min(x.shape) if n_all is None else min(*x.shape, n_all)
    largest = min(n_all, max(n_components, AXES // x.shape[1]))
    is_wide = x.shape[1] > 1000 or len(x) < x.shape[1]
    for n_axes in (4, 16) if is_wide else (largest,):
        n_axes = min(largest, n_axes * n_components if is_wide else n_axes)
        axes = PrincipalAxes.of_data(x, n_axes)
        is_complete = n_axes == n_all or axes.eigenvalues[-1] <= level(axes)
        if is_complete or n_axes == largest:
            break
    return axes, is_complete


@limited_threads(0, "cpu")
def rows_for_start(X, units, n_components):
    """All rows, standardized and in float64, or random ones if they are too many."""
    n_rows = max(INITIAL // X.shape[1], MIN_ROWS_PER_COMPONENT * n_components)
    if n_rows >= len(X):
        return units.standardize(X).to(torch.float64).numpy()
    index = np.random.RandomState(0).choice(len(X), n_rows, replace=False)
    # The error of the sample is larger than that of float32.
    return units.standardize(X[index]).to(torch.float32).numpy()


def linear_tails(vae, axes, rows):
    """Tails of a model that starts at PCA, before training; None if it is linear."""
    if vae.encoder.network is None and vae.decoder.network is None:
        return None
    # The norms of the prior's draws hardly exceed their root mean square by more.
    limit = vae.n_components**0.5 + 3.0
    values = axes.seen(vae).T.copy(), axes.of_codes(vae.n_components), 0.0
    values = (torch.tensor(v, dtype=torch.float32) for v in (*values, limit))
    axes, variances, noise_variance, limit = values
    n_seen = vae.units.n_seen
    edges = (edge[:n_seen] for edge in _edges(rows))
    return LinearTails(axes, variances, noise_variance, *edges, limit)


def _edges(rows):
    """Range of rows, a little wider, so that no rounding puts any of them beyond it."""
    low, high = rows.survey.low.float(), rows.survey.high.float()
    margin = 1e-3 * (high - low) + 1e-6
    return low - margin, high + margin


def widen(tails, rows):
    """Widen the range of tails to that of other rows."""
    low, high = _edges(rows)
    tails.low = torch.minimum(tails.low, low.to(tails.low))
    tails.high = torch.maximum(tails.high, high.to(tails.high))
