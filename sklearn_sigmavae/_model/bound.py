"""Bounds and divergences of rows, at fixed points."""

import math

import numpy as np
import torch

from .blocks import in_parts
from .elbo import elbo_terms, energy_outside
from .gaps import energy_of_rows, log_likelihood_of_rows, unpack
from .points import importance_points, quadrature, weighted_mean
from .vae import Posterior

# Two posteriors are first compared at _FEW pairs of points. All points are used unless
# the gain, minus _SURE standard errors, exceeds _CLEAR nats.
_FEW, _SURE, _CLEAR = 4, 6.0, 0.2

# Steps that refine a posterior mean at most, the gain in nats that is worth one, and
# the longest in units of the first.
_STEPS, _SMALL, _LONGEST = 10, 0.01, 3.0


class RowBound:
    """Function from a module and standardized rows to bounds (n,), in nats.

    With the ``beta`` of the training the encoder's posteriors are refined.
    """

    def __init__(self, noise, scale, n_components, n_importance_samples, beta=None):
        self.noise, self.scale, self.beta = noise, scale, beta
        self.points, self.weights = quadrature(n_components, noise)
        self.n_samples = n_importance_samples or 1
        if self.n_samples > 1:
            self.samples = importance_points(n_components, self.n_samples)

    def __call__(self, vae, x):
        if not vae.units.n_outside:
            x = vae.units.rotate(x)
            _, known, _ = vae.unpack(x)
            bounds = self._inside(vae, x)
            if known is not None:
                # The caller subtracts this for all features.
                log_scale = torch.from_numpy(np.log(vae.units.scale)).to(known)
                bounds = bounds + ((1 - known) * log_scale).sum(1)
            return bounds
        x, outside = vae.units.split(x)
        inside = self._inside(vae, x)
        constant = vae.units.n_outside * self.noise.log_normalizer(self.scale)
        return inside - energy_outside(self.noise, outside, self.scale) - constant

    def _inside(self, vae, x):
        # Of all rows at once, since they take a few points each.
        posterior = vae.encode(x)
        if self.beta is not None:
            posterior, bounds = self._refine(vae, x, posterior)
        elif self.n_samples == 1:
            values = self._elbo(vae, x, posterior, posterior)
            bounds = weighted_mean(values, self.weights)
        if self.n_samples == 1:
            return bounds
        samples = torch.from_numpy(self.samples).to(x).unsqueeze(1)

        def weighted(x, *posterior):
            arguments = Posterior(*posterior), samples, self.n_samples, self.scale
            return importance_weighted_bound(vae, self.noise, x, *arguments)

        return in_parts(weighted, vae, len(samples), x, *posterior)

    def of_features(self, vae, x):
        """Expected log-density (n, n_features) of each feature that is known, in nats.

        Summed, and less the KL divergence, they are the bounds of rows.
        """
        inside = vae.units.rotate(x)
        encoded = posterior = vae.encode(inside)
        if self.beta is not None:
            posterior, _ = self._refine(vae, inside, encoded)

        def of_part(x, sign, *posterior):
            z = Posterior(*posterior).points(self.points.to(x) * sign)
            location = vae.units.rotate_back(vae.decode(z))
            x, known, _ = unpack(x, location.shape[-1])
            # The last dimension is the one that noise models sum over.
            each = x.unsqueeze(-1), location.unsqueeze(-1)
            log_prob = self.noise.log_prob(*each, self.scale)
            expected = weighted_mean(log_prob.movedim(0, -1), self.weights)
            return expected if known is None else expected * known

        return in_parts(
            of_part, vae, len(self.points), x, encoded.reflection, *posterior
        )

    def _refine(self, vae, x, encoded):
        """Posteriors, refined where that raises their ELBO, and their ELBO (n,).

        More at the mean need not be more in the mean over the posterior. A gain that is
        clear at a few points is not checked at all of them.
        """
        refined = refine_means(vae, self.noise, x, encoded, self.scale, self.beta)
        values, few = self._elbo(vae, x, refined, encoded), slice(2 * _FEW)
        bounds = weighted_mean(values, self.weights)
        gains = values[:, few] - self._elbo(vae, x, encoded, encoded, few)
        gains = gains.unflatten(1, (_FEW, 2)).mean(2)
        is_sure = gains.mean(1) - _SURE * gains.std(1) / math.sqrt(_FEW) > _CLEAR
        rows = (~is_sure & (refined.mean != encoded.mean).any(1)).nonzero().squeeze(1)
        if len(rows):
            posterior = encoded[rows]
            values = self._elbo(vae, x[rows], posterior, posterior)
            of_encoder = weighted_mean(values, self.weights)
            stays = ~(bounds[rows] > of_encoder.nan_to_num(nan=-math.inf))
            bounds[rows[stays]] = of_encoder[stays]
            refined.mean[rows[stays]] = encoded.mean[rows[stays]]
        return refined, bounds

    def _elbo(self, vae, x, posterior, encoded, which=slice(None)):
        """Values (n, n_points) of which the ELBO is the mean, at points of a slice."""
        eps = self.points[which].to(x)

        def of_part(x, sign, *posterior):
            arguments = x, eps * sign, self.scale, Posterior(*posterior)
            terms = elbo_terms(vae, self.noise, *arguments)
            return (terms[0] - terms[1]).T

        return in_parts(of_part, vae, len(eps), x, encoded.reflection, *posterior)


def refine_means(vae, noise, x, posterior, scale, beta):
    """Posteriors with better means, the same where that gains next to nothing.

    On rows unlike those of the training an encoder may be far off. The objective's
    curvature at the mean is about ``beta`` over the posterior's variance, so the first
    step is that of Newton's method: the gradient times the variance over ``beta``. The
    change of the gradient then shows how much longer or shorter the next one has to be.
    A step that does not raise a row's objective is taken back. Rows share nothing.
    """

    def value_and_gradient(mean, x):
        with torch.enable_grad():
            mean = mean.detach().requires_grad_()
            energy = energy_of_rows(noise, x, vae.decode(mean), scale)
            value = beta * vae.prior.log_prob(mean) - energy
            (gradient,) = torch.autograd.grad(value.sum(), mean)
        return value.detach(), gradient

    found, gained = posterior.mean.clone(), x.new_zeros(len(x))
    rows, mean = torch.arange(len(x), device=x.device), posterior.mean
    variance, size = posterior.log_var.exp() / beta, torch.ones_like(mean[:, :1])
    value, gradient = value_and_gradient(mean, x)
    for _ in range(_STEPS):
        step = size * variance * gradient
        stays = 0.5 * (step * gradient).sum(1) > _SMALL
        if not stays.any():
            break
        rows, x, mean, variance, size, value, gradient, step = (
            each[stays]
            for each in (rows, x, mean, variance, size, value, gradient, step)
        )
        tried = mean + step
        new_value, new_gradient = value_and_gradient(tried, x)
        gain = torch.nan_to_num(new_value - value, nan=0.0)
        gained[rows] += gain.clamp_min(0.0)
        rises = (gain > 0)[:, None]
        mean = torch.where(rises, tried, mean)
        found[rows] = mean
        value = torch.where(rises[:, 0], new_value, value)
        # The size that fits the curvature along this step (Barzilai and Borwein, 1988).
        change = gradient - new_gradient
        curved = (step * change).sum(1, keepdim=True)
        longer = curved / (variance * change * change).sum(1, keepdim=True)
        longer = torch.where(curved > 0, longer.clamp_max(_LONGEST), size)
        size = torch.where(rises, longer, 0.3 * size)
        gradient = torch.where(rises, new_gradient, gradient)
    # Where the encoder is exact, the gain is that of rounding.
    mean = torch.where((gained > _SMALL)[:, None], found, posterior.mean)
    return Posterior(mean, posterior.log_var)


def kl_of_rows(prior, n_components):
    """Function from a module and standardized rows to KL divergences.

    They are (n, k) if the prior factorizes, else (n,).
    """
    if prior.factorizes:
        return lambda vae, x: prior.of_components(vae.posterior(x))
    points, weights = quadrature(n_components)

    def kl(vae, x):
        def of_part(*posterior):
            posterior = Posterior(*posterior)
            z = posterior.points(points.to(x) * posterior.reflection)
            return weighted_mean(vae.prior.kl_divergence(posterior, z).T, weights)

        return in_parts(of_part, vae, len(points), *vae.posterior(x))

    return kl


def importance_weighted_bound(vae, noise, x, posterior, points, n_samples, scale):
    """Bound (n,) from importance samples, tighter than the ELBO, in nats.

    It is the mean over groups of `n_samples` consecutive points.
    """
    eps = points * posterior.reflection
    z = posterior.points(eps)
    log_prob = log_likelihood_of_rows(noise, x, vae.decode(z), scale)
    log_joint = log_prob + vae.prior.log_prob(z)
    # The entropy is that of the points (eps * eps).sum(-1) = k.
    squares = 0.5 * (eps * eps - 1).sum(-1)
    log_weights = log_joint + posterior.entropy() + squares
    groups = log_weights.reshape(-1, n_samples, len(x))
    return (groups.logsumexp(dim=1) - math.log(n_samples)).mean(dim=0)
