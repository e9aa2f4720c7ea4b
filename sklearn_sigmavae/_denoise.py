"""The posterior of noisy or incomplete rows: the ELBO, maximized for each by itself.

The encoder knows clean data only. The decoder knows what data can be, so with it held
fixed the ELBO of a noisy row, with the noise model at that row's scale, is maximized
over the mean and the variance of q(z). Entries that are missing are left out of the sum
over features.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from ._model.blocks import in_blocks, in_double
from ._model.build import LinearPathDecoder
from ._model.gaps import energy_of_rows
from ._model.points import integration_points, quadrature, weighted_mean
from ._model.settings import limited_threads
from ._model.vae import Posterior
from ._validation import check_noise_scale
from .noise import NoiseModel, resolve_noise, resolve_power

# Adam: steps in units of the posterior's width at the start, which fall to zero along a
# cosine; a short memory, since steps are few; and the minimum divisor.
_STEP, _MOMENTUM, _MEMORY, _MIN_GRADIENT = 0.3, 0.7, 0.95, 0.1

# Squares of larger gradients, and of larger entries in units of the data or the noise,
# leave the range of float32.
_STEEPEST, _FARTHEST = 1e18, 1e15

# The estimate of the scale of the noise: rows and points, trials and the change that
# ends them, steps for each trial and the gain in nats at which rows need no more.
_ROWS_FOR_SCALE, _POINTS_FOR_SCALE = 512, 4
_TRIALS, _SCALE_TOLERANCE = 50, 2e-3
_STEPS_FOR_SCALE, _GAIN_FOR_SCALE = 10, 1e-2

# No estimate is smaller, in units of the data's scale: there the ELBO has no maximum.
_MIN_SCALE = 1e-3


@dataclass(frozen=True, eq=False)
class Observations:
    """Rows that were observed through noise, in a module's internal units.

    `y` are rows, with gaps if not all was observed. The scale has shape (1 or n, 1 or
    n_features); None is for noise without one. ``outside`` is the squared norm (n,) of
    what rows have outside of the axes.
    """

    y: torch.Tensor
    noise: NoiseModel
    scale: torch.Tensor | None
    outside: torch.Tensor | None = None

    @classmethod
    def of_rows(cls, vae, X, noise, scale):
        """Observations of an array, NaN where nothing was, in the units of the data.

        Returns the module that they are for, too: another one, of features, if the
        noise of a row is not the same in all directions.
        """
        units = vae.units
        y = units.standardize(X)
        has_gaps = bool(y.isnan().any())
        distance = y.nan_to_num().abs()
        if scale is not None:
            scale = torch.from_numpy(units.scale_to_internal(scale, "noise_scale"))
            distance = distance / scale.clamp_max(1.0)
        if not (distance <= _FARTHEST).all():
            raise ValueError(
                "X has entries too far from the training data for float32, in which "
                f"the posterior is refined: more than {_FARTHEST:g} times the scale of "
                "the data or of the noise. Set them to NaN, or remove them."
            )
        if has_gaps:
            y = vae.completion.complete(y)
        observed = cls(y, noise, scale)
        if not has_gaps and noise.is_rotation_invariant and scale is not None:
            # The features of a row may have one scale in other units alone.
            ratio = scale / scale[:, :1]
            if (ratio - 1).abs().max() < 1e-6:
                y, outside = units.split(y)
                scale = scale[:, :1]
                return vae, replace(observed, y=y, scale=scale, outside=outside)
        return vae.on_features(), observed

    def to(self, like):
        """The same on the device, and in the precision, of a tensor."""
        return replace(
            self,
            y=self.y.to(like),
            scale=None if self.scale is None else self.scale.to(like),
            outside=None if self.outside is None else self.outside.to(like),
        )

    def __len__(self):
        return len(self.y)

    def __getitem__(self, rows):
        scale = self.scale
        scale = scale[rows] if scale is not None and len(scale) > 1 else scale
        outside = None if self.outside is None else self.outside[rows]
        return replace(self, y=self.y[rows], scale=scale, outside=outside)

    def loss(self, vae, posterior, eps):
        """Values (n_points, n) whose mean is minus the ELBO, but for a constant."""
        z = posterior.points(eps)
        location = vae.decode(z)
        energy = energy_of_rows(self.noise, self.y, location, self.scale)
        return energy + vae.prior.kl_divergence(posterior, z)


@limited_threads(0, "cpu")
@torch.inference_mode(False)
def observe(model, X, noise_scale, noise, feature_names):
    """A module, and observations for it; the arguments are those of ``denoise``."""
    vae = model.module
    estimates = isinstance(noise_scale, str) and noise_scale == "estimate"
    if noise_scale is None and noise is not None:
        raise ValueError("'noise' needs 'noise_scale', the scale of that noise.")
    if noise_scale is None:
        noise, scale = model.noise, model.sigma
        # Per-feature scales may have the shape of a sample.
        scale = None if scale is None else np.ravel(scale)[np.newaxis]
    else:
        noise = observation_noise(model, noise)
        if estimates:
            noise_scale = estimate_scale(vae, noise, X)
        scale = check_noise_scale(noise_scale, vae.layout, len(X), feature_names)
    return Observations.of_rows(vae, X, noise, scale)


def observation_noise(model, noise):
    """Noise model with a scale that a ``noise`` parameter stands for."""
    if not model.noise.has_scale:
        raise ValueError(
            f"The noise of this model, {model.noise!r}, has no scale, so neither "
            "'noise_scale' nor 'noise' can be given, or estimated. With "
            "noise_scale=None denoise and posterior take rows whose known entries are "
            "clean."
        )
    noise = model.noise if noise is None else resolve_noise(noise)
    if not noise.has_scale:
        raise ValueError(
            "The 'noise' parameter must be a noise model with a scale, such as "
            f"'gaussian'. Got {noise!r} instead."
        )
    return noise


@limited_threads(0, "cpu")
@torch.inference_mode(False)
def refined_posterior(vae, observed, max_iter, tol, bar):
    """Means and log-variances of the refined posterior: an array (n, 2, k)."""

    def of_block(block):
        return refine(vae, observed[block], max_iter, tol, bar).stack()

    return in_blocks(of_block, len(observed), vae, observed.y.numpy().dtype)


@limited_threads(0, "cpu")
def prefer_encoder(vae, observed, found):
    """The refined posterior or, for rows where its ELBO is greater, the encoder's."""
    vae = in_double(vae, found.dtype)
    weight = next(vae.parameters())
    points, weights = quadrature(vae.n_components, observed.noise)
    points = points.to(weight)

    @torch.no_grad()
    def of_block(block):
        refined = Posterior(*torch.from_numpy(found[block]).to(weight).unbind(1))
        rows = observed[block].to(weight)
        encoded = vae.encode(rows.y)
        eps = points * encoded.reflection
        return better(vae, rows, refined, encoded, eps, weights).stack()

    return in_blocks(of_block, len(observed), vae, found.dtype, n_points=len(points))


def better(vae, observed, a, b, points, weights, margin=0.0):
    """For each row `b` if its ELBO is greater by `margin` nats or `a`."""
    of_a, of_b = (
        weighted_mean(observed.loss(vae, q, points).T, weights).nan_to_num(nan=math.inf)
        for q in (a, b)
    )
    return a.where(of_a <= of_b + margin, b)


def refine(vae, observed, max_iter, tol, bar=None, start=None):
    """Maximize the ELBO of each row over its posterior.

    It starts at the best of `start`, by default the encoder's or the prior, and the
    linear path's. Rows stop after `max_iter` steps, or when their gradient promises to
    gain less than `tol` nats.
    """
    linear = linear_posterior(vae, observed)
    observed = observed.to(next(vae.parameters()))
    points = _as_points(vae, observed.y)
    pair = torch.cat([points[:1], -points[:1]]), points.new_full((2,), 0.5)
    with torch.no_grad():
        if start is None:
            zeros = observed.y.new_zeros(len(observed), vae.n_components)
            encoded, prior = vae.encode(observed.y), Posterior(zeros, zeros)
            start = better(vae, observed, encoded, prior, *pair)
        if linear is not None:
            # At a pair of points the ELBO is known to about a nat for each component.
            # The linear path's answer is exact where the model is linear.
            start = better(vae, observed, linear, start, *pair, vae.n_components)
    rows = RowwiseAdam(vae, observed, start)
    for i in range(max_iter):
        point = points[i % len(points)]
        # Far from the maximum one point is as good as a pair, and half the work.
        rows.accumulate(point, in_pairs=i == 0 or i >= 0.8 * max_iter)
        if i % 10 == 0:
            rows.drop_converged(tol)
        rows.step(_STEP * 0.5 * (1 + math.cos(math.pi * i / max_iter)))
        n_left = len(rows.index)
        if bar is not None:
            bar.update(len(observed) * (1 if n_left else max_iter - i))
        if not n_left:
            break
    return rows.result()


class RowwiseAdam:
    """Adam on the posterior of each row, of which those that converge are dropped.

    Rows share nothing, so each goes as it would alone, whatever others it is with. The
    optimizers of torch keep no state that rows could leave.
    """

    # Rows are the last dimension but one.
    _OF_ROWS = ("center", "width", "sign", "at", "gradient", "square")

    def __init__(self, vae, observed, start):
        self.vae, self.observed = vae, observed
        self.found = start.stack()
        self.index = torch.arange(len(observed), device=start.mean.device)
        # Steps do not follow smaller widths, which are no more exact than the start.
        self.center, self.width = start.mean, start.std.clamp_min(0.2)
        self.sign = start.reflection
        # How far the mean is from the start, in widths, and the log-variance.
        self.at = torch.stack([torch.zeros_like(start.mean), start.log_var])
        self.gradient = torch.zeros_like(self.at)
        self.square = torch.zeros_like(self.at)
        self.n_gradients = 0

    @property
    def posterior(self):
        """Posterior : Of the rows that are left."""
        return Posterior(self.center + self.width * self.at[0], self.at[1])

    @property
    def mean_gradient(self):
        """torch.Tensor : Mean of the last gradients."""
        return self.gradient / (1 - _MOMENTUM**self.n_gradients)

    def accumulate(self, point, in_pairs):
        """Take the gradient at a point of shape (1, k), or at it and its opposite."""
        eps = point * self.sign
        eps = torch.stack([eps, -eps]) if in_pairs else eps.unsqueeze(0)
        # Also under a caller's torch.no_grad().
        with torch.enable_grad():
            self.at.requires_grad_()
            loss = self.observed.loss(self.vae, self.posterior, eps)
            (gradient,) = torch.autograd.grad(loss.sum() / len(eps), self.at)
        self.at = self.at.detach()
        # A row whose gradient is not finite stays where it is; squares must be finite.
        gradient = torch.nan_to_num(gradient, 0.0, 0.0, 0.0)
        gradient = gradient.clamp(-_STEEPEST, _STEEPEST)
        self.n_gradients += 1
        self.gradient.lerp_(gradient, 1 - _MOMENTUM)
        self.square.lerp_(gradient * gradient, 1 - _MEMORY)

    def step(self, rate):
        """Take a step."""
        size = (self.square / (1 - _MEMORY**self.n_gradients)).sqrt()
        self.at = self.at - rate * self.mean_gradient / (size + _MIN_GRADIENT)

    def drop_converged(self, tol):
        """Drop the rows whose gradient promises less than `tol` nats."""
        # In units of the posterior's width a Newton step gains half the square. The
        # variance comes to rest with the mean.
        stays = 0.5 * self.mean_gradient[0].square().sum(-1) >= tol
        if stays.all():
            return
        self.result()
        self.observed, self.index = self.observed[stays], self.index[stays]
        for name in self._OF_ROWS:
            setattr(self, name, getattr(self, name)[..., stays, :])

    def result(self):
        """Posterior of all rows."""
        self.found[self.index] = self.posterior.stack()
        return Posterior(*self.found.unbind(1))


def linear_posterior(vae, observed):
    """Exact posterior of the linear path, for Gaussian noise, or None.

    Of a mixture for a prior it takes, for each row, the component that it most likely
    comes from.
    """
    if not isinstance(vae.decoder, LinearPathDecoder) or observed.scale is None:
        return None
    linear = vae.decoder.linear
    weight, bias = (
        parameter.detach().to("cpu", torch.float64)
        for parameter in (linear.weight, linear.bias)
    )
    if vae.axes is not None:
        axes = vae.axes.to(weight)
        weight, bias = axes @ weight, axes @ bias
    n_features, k = weight.shape
    # Other noise counts as Gaussian noise with its variance.
    precision = 1 / (observed.noise.variance_factor * observed.scale.double().square())
    y, known, _ = vae.unpack(observed.y.double())
    if known is not None:
        precision = precision * known
    precision = precision.expand(-1, n_features)
    # Precisions of the codes: one matrix for all rows, or one for each.
    products = (weight.unsqueeze(2) * weight.unsqueeze(1)).flatten(1)
    of_codes = (precision @ products).unflatten(1, (k, k))
    pull = ((y - bias) * precision) @ weight
    found, best = None, pull.new_full((len(pull),), -math.inf)
    for log_weight, center, of_prior in zip(*vae.prior.gaussians(k), strict=True):
        total = of_codes + of_prior
        force = pull + of_prior @ center
        mean = torch.linalg.solve(total, force.unsqueeze(-1)).squeeze(-1)
        log_var = -torch.log(torch.diagonal(total, dim1=1, dim2=2)).expand_as(mean)
        # Log-probability of the row and the component, up to a constant of the row.
        score = log_weight + 0.5 * (
            torch.linalg.slogdet(of_prior)[1]
            - torch.linalg.slogdet(total)[1]
            - center @ of_prior @ center
            + (force * mean).sum(-1)
        )
        each = Posterior(mean, log_var)
        found = each if found is None else found.where(best >= score, each)
        best = torch.maximum(best, score)
    return Posterior(*(t.to(vae.device, torch.float32) for t in found))


@limited_threads(0, "cpu")
@torch.inference_mode(False)
def estimate_scale(vae, noise, X):
    """Scale of the noise in rows, in the units of the data, that maximizes their ELBO.

    The ELBO is maximized in turns over the posterior of some of the rows and over the
    scale, which has a closed form.
    """
    resolve_power(noise, "its scale cannot be estimated; pass noise_scale as a number")
    X = X[np.linspace(0, len(X) - 1, min(len(X), _ROWS_FOR_SCALE)).astype(int)]
    if np.isnan(X).all():
        raise ValueError(
            "X has no entry to estimate the scale of the noise from: all are missing. "
            "Pass noise_scale as a number."
        )
    # Features in one unit, so that the noise has one scale. Each trial sets it.
    unit, n_features = np.full((1, 1), vae.units.mean_scale), vae.layout.n_features
    vae, observed = Observations.of_rows(vae, X, noise, unit)
    relative = 1 / observed.scale
    y, known, _ = vae.unpack(observed.y)
    y = (y * relative).to(vae.device, torch.float32)
    # Of rows that are features nothing is outside.
    share = y.shape[1] / n_features
    outside = 0.0 if observed.outside is None else float(observed.outside.mean())
    # Few points for each row, all of them over the rows.
    points = _as_points(vae, y).squeeze(1)
    which = torch.arange(_POINTS_FOR_SCALE * len(y)).reshape(_POINTS_FOR_SCALE, -1)
    points = points[which % len(points)]

    def scale_of(location):
        residual = (y - location).flatten()
        if known is not None:
            residual = (y - location)[..., known.to(vae.device) > 0].flatten()
        # In units of the largest, whose powers stay in the range of float32.
        largest = float(residual.abs().max()) or 1.0
        power = noise.mean_power(residual / largest, torch.zeros_like(residual))
        power = power * share + outside / largest**2 / n_features
        return max(largest * float(power) ** (1 / noise.exponent), _MIN_SCALE)

    scale, posterior = scale_of(torch.zeros_like(y)), None
    with limited_threads(vae.n_operations * len(y), vae.device):
        for _ in range(_TRIALS):
            observed = replace(observed, scale=scale / relative)
            posterior = refine(
                vae, observed, _STEPS_FOR_SCALE, _GAIN_FOR_SCALE, start=posterior
            )
            with torch.no_grad():
                location = vae.decode(posterior.points(points)) * relative.to(y)
            before, scale = scale, scale_of(location)
            if abs(math.log(scale / before)) < _SCALE_TOLERANCE:
                break
    return vae.units.mean_scale_to_data(scale)


def _as_points(vae, like):
    """Points to integrate over, a tensor of shape (n_points, 1, k)."""
    return torch.as_tensor(integration_points(vae.n_components)).to(like).unsqueeze(1)
