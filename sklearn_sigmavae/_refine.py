"""The posterior of noisy or incomplete rows: the bound, maximised for each by itself.

The encoder knows clean data only. The decoder knows what data can be, so with it held
fixed the bound of a noisy row, with the noise model at that row's scale, is maximised
over the mean and the variance of q(z). Entries that are missing are left out of the sum
over features.
"""

import math
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch

from ._bound import integration_points, kl_divergence
from ._inference import in_blocks
from ._threads import limited_threads
from .networks import LinearPathDecoder
from .noise import NoiseModel, resolve_power

# Adam's settings. Steps are in units of the posterior's width at the start, and fall to
# zero along a cosine; its memory is short, since there are few of them.
_STEP = 0.3
_MOMENTUM, _MEMORY = 0.7, 0.95
_LEAST_GRADIENT = 0.1

# Widths, at the start, below which steps do not follow: the start itself is no better.
_LEAST_WIDTH = 0.2

# Each step sees a pair of opposite points, but for this fraction of them, the first,
# which see one: far from the maximum that is as good, and half the work.
_SINGLE = 1 / 3

# Steeper gradients have squares that leave the range of float32.
_STEEPEST = 1e18

# Every so many steps rows that have converged leave.
_STEPS_TO_LEAVE = 10

# What tells the scale of the noise: so many rows and points, steps for each trial scale
# and the gain at which rows need no more, trials, and the change at which they end.
_ROWS_FOR_SCALE = 512
_POINTS_FOR_SCALE = 4
_STEPS_FOR_SCALE = 10
_GAIN_FOR_SCALE = 1e-2
_TRIALS = 50
_SCALE_TOLERANCE = 2e-3

# Entries that are farther out than this, in units of the data's scale or the noise's,
# have squares and gradients that leave the range of float32.
_FARTHEST = 1e15

# No scale is smaller than this, in units of the data's: there the bound has no maximum.
_MIN_SCALE = 1e-3


@dataclass(frozen=True, eq=False)
class Observations:
    """Rows that were observed through noise, in internal units, on a device.

    Attributes
    ----------
    y : torch.Tensor of shape (n, n_features)
        What was observed, and zeros where nothing was.
    known : torch.Tensor of shape (n, n_features) or None
        Which entries were observed; None for all.
    noise : NoiseModel
        The noise.
    scale : torch.Tensor of shape (1 or n, 1 or n_features) or None
        Its scale.
    """

    y: torch.Tensor
    known: torch.Tensor | None
    noise: NoiseModel
    scale: torch.Tensor | None

    @classmethod
    def of_rows(cls, units, X, noise, scale):
        """Observations of an array, NaN where nothing was observed.

        Parameters
        ----------
        units : Units
            Map to internal units.
        X : ndarray of shape (n, n_features)
            Rows, in the units of the data.
        noise : NoiseModel
            The noise.
        scale : ndarray of shape (1 or n, 1 or n_features), or None
            Its scale, in the units of the data.
        """
        y = units.to_internal(X)
        missing = y.isnan()
        known = None
        if missing.any():
            known = ~missing
            y = y.masked_fill(missing, 0.0)
        distance = y.abs()
        if scale is not None:
            # One scale for all features where that will do.
            one_unit = np.ptp(units.scale) == 0
            scale = scale / (units.scale[0] if one_unit else units.scale)
            scale = torch.from_numpy(scale)
            distance = distance / scale.clamp_max(1.0)
        if not (distance <= _FARTHEST).all():
            raise ValueError(
                "X has entries too far from the training data for float32, in which "
                f"the posterior is refined: more than {_FARTHEST:g} times the scale of "
                "the data or of the noise. Set them to NaN, or remove them."
            )
        return cls(y, known, noise, scale)

    def to(self, device, dtype):
        """The same elsewhere, or in other precision."""
        return replace(
            self,
            y=self.y.to(device, dtype),
            known=None if self.known is None else self.known.to(device),
            scale=None if self.scale is None else self.scale.to(device, dtype),
        )

    def __len__(self):
        return len(self.y)

    def __getitem__(self, rows):
        scale = self.scale
        if scale is not None and len(scale) > 1:
            scale = scale[rows]
        known = None if self.known is None else self.known[rows]
        return replace(self, y=self.y[rows], known=known, scale=scale)

    def energy(self, location):
        """Minus the log-density of rows, but for a constant.

        Parameters
        ----------
        location : torch.Tensor of shape (n_points, n, n_features)

        Returns
        -------
        energy : torch.Tensor of shape (n_points, n)
        """
        if self.known is None:
            return self.noise.energy(self.y, location, self.scale)
        # Feature by feature.
        scale = None if self.scale is None else self.scale.unsqueeze(-1)
        each = self.noise.energy(self.y.unsqueeze(-1), location.unsqueeze(-1), scale)
        return (each * self.known).sum(-1)


@dataclass(eq=False)
class Posterior:
    """Normal distributions of codes, a mean and a log-variance of shape (n, k) each."""

    mean: torch.Tensor
    log_var: torch.Tensor

    @property
    def std(self):
        """torch.Tensor : Standard deviations."""
        return torch.exp(0.5 * self.log_var)

    def points(self, eps):
        """Codes for standard normal points of shape (n_points, n or 1, k)."""
        return self.mean + self.std * eps

    def kl(self):
        """KL divergence from the prior, in nats, of shape (n,)."""
        return kl_divergence(self.mean, self.log_var).sum(-1)

    def where(self, mask, other):
        """Itself for rows where `mask` is true, elsewhere another."""
        mask = mask.unsqueeze(-1)
        return Posterior(
            torch.where(mask, self.mean, other.mean),
            torch.where(mask, self.log_var, other.log_var),
        )

    def __getitem__(self, rows):
        return Posterior(self.mean[rows], self.log_var[rows])


def refined_means(vae, observe, n_rows, *, max_iter, tol, dtype, bar=None):
    """Means of the refined posterior.

    Parameters
    ----------
    vae : VAE
        The module; its weights stay as they are.
    observe : callable
        From a slice of rows to their :class:`Observations`, on the CPU.
    n_rows : int
        Number of rows.
    max_iter : int
        Number of steps.
    tol : float
        Rows leave when their gradient promises to gain less than this, in nats.
    dtype : numpy.dtype
        Of the result.
    bar : tqdm.tqdm or None
        Progress bar, over steps of rows.

    Returns
    -------
    mean : ndarray of shape (n_rows, n_components)
    """

    def function(block):
        return refine(vae, observe(block), max_iter, tol, bar).mean

    return in_blocks(function, n_rows, vae, dtype)


def refined_posterior(vae, observe, n_rows, *, max_iter, tol, dtype, bar=None):
    """Means and log-variances of the refined posterior.

    Where what the encoder says has the greater bound, it is that. Parameters are those
    of :func:`refined_means`.

    Returns
    -------
    mean_and_log_var : ndarray of shape (n_rows, 2, n_components)
    """

    def find(block):
        found = refine(vae, observe(block), max_iter, tol, bar)
        return torch.stack([found.mean, found.log_var], dim=1)

    found = in_blocks(find, n_rows, vae, dtype)
    judge = vae
    if dtype == np.float64 and vae.device.type == "cpu" and vae.takes_float64:
        judge = deepcopy(vae).double()
    weight = next(judge.parameters())
    points = _as_points(integration_points(vae.n_components), weight)

    @torch.no_grad()
    def choose(block):
        observed = observe(block).to(weight.device, weight.dtype)
        both = torch.from_numpy(found[block]).to(weight.device, weight.dtype)
        best = better(judge, observed, Posterior(*both.unbind(1)), None, points)
        return torch.stack([best.mean, best.log_var], dim=1)

    return in_blocks(choose, n_rows, judge, dtype, n_points=len(points))


def better(vae, observed, a, b, points, margin=0.0):
    """Of two posteriors that with the greater bound, row by row.

    Parameters
    ----------
    vae : VAE
        The module.
    observed : Observations
        The rows.
    a, b : Posterior or None
        None stands for what the encoder says, with zeros for what is missing.
    points : torch.Tensor of shape (n_points, 1, k)
        Standard normal points at which the bound is taken.
    margin : float
        By how much, in nats, the bound of `b` must be greater.
    """
    a, b = (Posterior(*vae.encode(observed.y)) if q is None else q for q in (a, b))
    losses = (
        observed.energy(vae.decode(q.points(points))).mean(0) + q.kl() for q in (a, b)
    )
    of_a, of_b = (torch.nan_to_num(loss, nan=math.inf) for loss in losses)
    return a.where(of_a <= of_b + margin, b)


def refine(vae, observed, max_iter, tol, bar=None, start=None):
    """Maximise the bound of each row over its posterior.

    Parameters
    ----------
    vae, max_iter, tol, bar
        As for :func:`refined_means`.
    observed : Observations
        The rows.
    start : Posterior or None
        Where to start, if not at what the linear path says; by default at what the
        encoder or the prior says, whichever is best.

    Returns
    -------
    posterior : Posterior
    """
    linear = linear_posterior(vae, observed)
    observed = observed.to(vae.device, torch.float32)
    points = _as_points(integration_points(vae.n_components), observed.y)
    pair = torch.cat([points[:1], -points[:1]])
    with torch.no_grad():
        if start is None:
            zeros = observed.y.new_zeros(len(observed), vae.n_components)
            start = better(vae, observed, None, Posterior(zeros, zeros), pair)
        if linear is not None:
            # A pair of points tells the bound to about a nat for each component. The
            # linear path's answer is exact where the model is linear.
            start = better(vae, observed, linear, start, pair, vae.n_components)
    climb = _Climb(vae, observed, start)
    for i in range(max_iter):
        point = points[i % len(points)]
        climb.look(point, in_pairs=i == 0 or i >= _SINGLE * max_iter)
        if i % _STEPS_TO_LEAVE == 0:
            climb.leave(tol)
        climb.move(_STEP * 0.5 * (1 + math.cos(math.pi * i / max_iter)))
        if bar is not None:
            bar.update(len(observed))
        if not len(climb.rows):
            if bar is not None:
                bar.update(len(observed) * (max_iter - 1 - i))
            break
    return climb.result()


class _Climb:
    """Adam on the posterior of each row, of which those that have converged leave.

    Rows share nothing, so each goes as it would alone, whatever others it is with. The
    optimizers of torch keep no state that rows could leave.
    """

    def __init__(self, vae, observed, start):
        self.vae = vae
        self.observed = observed
        self.start = start
        self.found = Posterior(start.mean.clone(), start.log_var.clone())
        self.rows = torch.arange(len(observed), device=start.mean.device)
        self.width = start.std.clamp_min(_LEAST_WIDTH)
        # Each row sees the points in the reflection that its own code says, so that
        # their errors are not all the same.
        self.sign = torch.where(start.mean < 0, -1.0, 1.0).to(start.mean)
        # How far the mean is from the start, in widths, and the log-variance.
        self.at = torch.stack([torch.zeros_like(start.mean), start.log_var])
        self.gradient = torch.zeros_like(self.at)
        self.square = torch.zeros_like(self.at)
        self.n_looks = 0

    @property
    def posterior(self):
        """Posterior : Of the rows that are left."""
        return Posterior(self.start.mean + self.width * self.at[0], self.at[1])

    def look(self, point, in_pairs):
        """Take the gradient at a point of shape (1, k), or at it and its opposite."""
        eps = point * self.sign
        eps = torch.stack([eps, -eps]) if in_pairs else eps.unsqueeze(0)
        # Also under a caller's torch.no_grad().
        with torch.enable_grad():
            self.at.requires_grad_()
            posterior = self.posterior
            location = self.vae.decode(posterior.points(eps))
            loss = self.observed.energy(location).mean(0) + posterior.kl()
            (gradient,) = torch.autograd.grad(loss.sum(), self.at)
        self.at = self.at.detach()
        # A row whose gradient is not finite stays where it is; squares must be finite.
        gradient = torch.nan_to_num(gradient, 0.0, 0.0, 0.0)
        gradient = gradient.clamp(-_STEEPEST, _STEEPEST)
        self.n_looks += 1
        self.gradient.lerp_(gradient, 1 - _MOMENTUM)
        self.square.lerp_(gradient * gradient, 1 - _MEMORY)

    @property
    def mean_gradient(self):
        """torch.Tensor : Mean of the last gradients."""
        return self.gradient / (1 - _MOMENTUM**self.n_looks)

    def move(self, rate):
        """Take a step."""
        size = (self.square / (1 - _MEMORY**self.n_looks)).sqrt()
        self.at = self.at - rate * self.mean_gradient / (size + _LEAST_GRADIENT)

    def leave(self, tol):
        """Let rows leave whose gradient promises less than `tol` nats."""
        # In units of the posterior's width a Newton step gains half the square. The
        # variance comes to rest with the mean.
        gain = 0.5 * self.mean_gradient[0].square().sum(-1)
        stays = gain >= tol
        if stays.all():
            return
        self._write(~stays)
        self.observed, self.start = self.observed[stays], self.start[stays]
        self.rows, self.width = self.rows[stays], self.width[stays]
        self.sign = self.sign[stays]
        self.at, self.gradient, self.square = (
            tensor[:, stays] for tensor in (self.at, self.gradient, self.square)
        )

    def _write(self, mask):
        there = self.posterior[mask]
        self.found.mean[self.rows[mask]] = there.mean
        self.found.log_var[self.rows[mask]] = there.log_var

    def result(self):
        """Posterior of all rows."""
        self._write(torch.ones_like(self.rows, dtype=torch.bool))
        return self.found


def linear_posterior(vae, observed):
    """The exact posterior of the linear path, or None if there is none.

    For other than Gaussian noise, that of Gaussian noise with its variance.
    """
    if not isinstance(vae.decoder, LinearPathDecoder) or observed.scale is None:
        return None
    linear = vae.decoder.linear
    weight, bias = (
        tensor.detach().to("cpu", torch.float64)
        for tensor in (linear.weight, linear.bias)
    )
    n_features, k = weight.shape
    precision = 1 / (observed.noise.variance_factor * observed.scale.double().square())
    if observed.known is not None:
        precision = precision * observed.known
    precision = precision.expand(-1, n_features)
    # Precisions of the codes: one matrix for all rows, or one for each.
    products = (weight.unsqueeze(2) * weight.unsqueeze(1)).flatten(1)
    of_codes = (precision @ products).unflatten(1, (k, k))
    of_codes = of_codes + torch.eye(k, dtype=torch.float64)
    pull = ((observed.y.double() - bias) * precision) @ weight
    mean = torch.linalg.solve(of_codes, pull.unsqueeze(-1)).squeeze(-1)
    log_var = -torch.log(torch.diagonal(of_codes, dim1=1, dim2=2)).expand_as(mean)
    return Posterior(*(t.to(vae.device, torch.float32) for t in (mean, log_var)))


def estimate_scale(vae, noise, X):
    """Scale of the noise in rows, in the units of the data, that maximises their bound.

    The bound is maximised in turns over the posterior of some of the rows and over the
    scale, which has a closed form.

    Parameters
    ----------
    vae : VAE
        The module.
    noise : NoiseModel
        The noise; it has a scale.
    X : ndarray of shape (n, n_features)
        Rows, NaN where nothing was observed.

    Returns
    -------
    scale : float
        One scale for all of them.
    """
    resolve_power(noise, "its scale cannot be estimated; pass noise_scale as a number")
    rows = np.linspace(0, len(X) - 1, min(len(X), _ROWS_FOR_SCALE)).astype(int)
    unit = vae.units.mean_scale
    # Features in one unit, so that the noise has one scale.
    relative = torch.from_numpy(vae.units.scale / unit)
    # Each trial sets the scale.
    observed = Observations.of_rows(vae.units, X[rows], noise, None)
    known = torch.ones_like(observed.y) if observed.known is None else observed.known
    if not known.any():
        raise ValueError(
            "X has no entry to estimate the scale of the noise from: all are missing. "
            "Pass noise_scale as a number."
        )
    known = known.to(vae.device)
    y = (observed.y * relative).to(vae.device, torch.float32)
    # Few points for each row, all of them over the rows.
    points = torch.as_tensor(
        integration_points(vae.n_components), dtype=y.dtype, device=y.device
    )
    which = torch.arange(_POINTS_FOR_SCALE * len(y)).reshape(_POINTS_FOR_SCALE, -1)
    points = points[which % len(points)]

    def scale_of(location):
        # In units of the largest residual, whose powers stay in the range of float32.
        residual = ((y - location) * known).unsqueeze(-1)
        largest = float(residual.abs().max()) or 1.0
        # The mean over one feature, and then over those that are known.
        each = noise.mean_power(residual / largest, torch.zeros_like(residual))
        power = float(each.sum() / (known.sum() * len(location)))
        return max(largest * power ** (1 / noise.exponent), _MIN_SCALE)

    scale, posterior = scale_of(torch.zeros_like(y).unsqueeze(0)), None
    with limited_threads(vae.n_operations * len(y), vae.device):
        for _ in range(_TRIALS):
            observed = replace(observed, scale=(scale / relative).unsqueeze(0))
            posterior = refine(
                vae, observed, _STEPS_FOR_SCALE, _GAIN_FOR_SCALE, start=posterior
            )
            with torch.no_grad():
                location = vae.decode(posterior.points(points))
                before, scale = scale, scale_of(location * relative.to(y))
            if abs(math.log(scale / before)) < _SCALE_TOLERANCE:
                break
    return scale * unit


def _as_points(points, like):
    """Points as a tensor of shape (n_points, 1, k)."""
    return torch.as_tensor(points, dtype=like.dtype, device=like.device).unsqueeze(1)
