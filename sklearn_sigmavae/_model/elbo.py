"""The evidence lower bound: its terms, and the loss that training minimizes."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .gaps import known_energy, log_likelihood_of_rows

# Part of the training in which noise falls to its scale.
ANNEALED = 0.6

# Noise that follows held-out rows falls by at most SLOW_FALL times while it is
# annealed, the slower the better, but arrives at them after this part of the training.
SLOW_FALL, _ARRIVED = 4.0, 0.8

# At the end of the training noise that follows held-out rows is this fraction of what
# they have: smaller noise draws the residuals after it, while too small a noise, or too
# early, is a minimum that training does not leave.
_LAST_FRACTION = 0.9


def elbo_terms(vae, noise, x, eps, scale, posterior=None):
    """Log-likelihood (n_points, n) and KL (n_points or 1, n) of the ELBO, in nats.

    ``eps``, of shape (n_points, n or 1, n_components), holds standard normal points at
    which q(z|x) is evaluated, by default the encoder's. The ELBO is a mean over them.
    Everything is in internal units.
    """
    posterior = vae.encode(x) if posterior is None else posterior
    z = posterior.points(eps)
    kl = vae.prior.kl_divergence(posterior, z)
    return log_likelihood_of_rows(noise, x, vae.decode(z), scale), kl


def energy_outside(noise, squares, scale):
    """Energy of what rows have outside of the axes, whose squared norms are given."""
    return noise.energy(squares.sqrt().unsqueeze(-1), squares.new_zeros(1), scale)


def linear_tau(noise, scale, beta):
    """The tau of the linear optimum; for exponents other than 2 a good start.

    It respects the equivalence of beta and sigma, if the noise has an exponent.
    """
    return beta ** (2 / (noise.exponent or 2.0)) * noise.variance_factor * scale**2


@dataclass
class FallingNoise:
    """Noise of the training that falls as the residuals of held-out rows do.

    It begins at ``first``. ``best`` is the scale, at least ``lowest``, at which the
    loss of the held-out rows is least. All are in internal units, of which one is
    ``unit`` in those of the data.
    """

    first: float
    lowest: float
    unit: float
    scale: float | None = None
    best: float | None = None
    progress: float = 0.0

    def step(self, progress):
        """Set the scale for when a part of training is over."""
        if self.scale is None:
            self.scale = self.first
        else:
            part = progress - self.progress
            wanted = self.best * (1 - (1 - _LAST_FRACTION) * progress)
            # A geometric sequence that arrives in time, if a slow one does not.
            left = max(part, _ARRIVED - self.progress)
            in_time = (wanted / self.scale) ** (part / left)
            fall = min(SLOW_FALL ** (-part / ANNEALED), in_time)
            self.scale = min(self.scale, max(fall * self.scale, wanted))
        self.progress = progress

    def move(self, loss, energy, scale, n_features, exponent):
        """Loss of held-out rows at their best scale, from that at another one.

        ``energy`` is what they have of it there, in nats per row.
        """
        # Zero, or not finite if the training has diverged.
        ratio = (exponent * energy / n_features) ** (1 / exponent)
        self.best = max(scale * ratio, self.lowest) if ratio >= 0 else math.inf
        with np.errstate(all="ignore"):
            change = energy * (np.float64(scale / self.best) ** exponent - 1)
            return loss + change + n_features * np.log(self.best / scale)


class NegativeELBO(nn.Module):
    """The training loss: minus the ELBO, in nats per row and in the data's units.

    The scale of the noise is in internal units. With ``min_scale`` it is learned: in
    training it is the maximum-likelihood scale of each batch, never below this, and in
    evaluation that of the last epoch. In training the KL divergence counts
    ``kl_factor`` times, which :meth:`anneal` lets fall from ``first_factor``, or such
    that the noise is what ``falling`` wants; evaluations are then at the best scale for
    their rows.
    """

    def __init__(
        self,
        noise,
        beta,
        scale,
        min_scale=None,
        first_factor=1.0,
        falling=None,
    ):
        super().__init__()
        self.noise, self.beta, self.scale = noise, beta, scale
        self.first_factor, self.kl_factor = first_factor, 1.0
        self.min_scale = min_scale
        self.falling = falling
        # What an epoch collects.
        self.power = self.outside = self.kl = None
        self.has_outside = False

    @property
    def learns_scale(self):
        """bool : Whether the scale is learned from the rows of the training."""
        return self.min_scale is not None

    @property
    def follows(self):
        """bool : Whether the scale follows held-out rows."""
        return self.falling is not None

    def forward(self, vae, x, eps):
        """Mean loss of rows (..., n, d), less what :meth:`in_nats` adds.

        Points are of shape (..., n, k), or (..., n_points, n, k) if there are several
        for each row. In a stack all shapes, and that of the loss, begin with n_members.

        It equals that of :func:`elbo_terms`, in fewer operations, which matter on small
        batches: sums run over all rows at once, and what no gradient sees is left out
        (not the normalizer of a learned scale, which changes from batch to batch).
        """
        posterior = vae.encode(x)
        center, spread, first = posterior.mean, posterior.std, -2
        n_rows = center.shape[-2]
        has_points = eps.ndim > center.ndim
        if has_points:
            center, spread, first = center.unsqueeze(-3), spread.unsqueeze(-3), -3
        z = torch.addcmul(center, spread, eps)
        location = vae.decode(z)
        n_draws = location.shape[first:-1].numel()  # rows times points
        if has_points:
            x = x.unsqueeze(-3).expand(*x.shape[:-2], *location.shape[-3:-1], -1)
        x, known, _ = vae.unpack(x)
        x, location = x.flatten(first), location.flatten(first)
        known = None if known is None else known.flatten(first)
        is_learning = self.training and self.learns_scale
        scale = self.scale
        if is_learning:
            scale = self._batch_scale(vae, x, location, n_rows, known)
        energy = known_energy(self.noise, x, location, self._for_rows(scale), known)
        if self.follows and not self.training:
            self.power.add_(energy, alpha=n_rows / n_draws)
        weight = 0.5 * self.beta * (n_draws / n_rows)
        if self.training:
            weight = weight * self.kl_factor
        kl = vae.prior.doubled_kl(posterior, z)
        if self.kl is not None:
            self.kl.add_(kl.detach())
        loss = _add_weighted(energy, kl, weight) * (1 / n_draws)
        if self.follows and self.training:
            # That of the noise, which grows as the noise falls: with it the steps of
            # optimizers that remember the size of gradients are longer, and gain more.
            loss = loss / self.kl_factor
        if is_learning:
            n_observed = vae.layout.n_features
            if known is not None:
                n_observed = known.sum(-1) / n_draws
            loss = loss + n_observed * self.noise.log_normalizer(scale)
            if self.has_outside:
                rows_scale = self._for_rows(scale)
                loss = loss + energy_outside(self.noise, self.outside, rows_scale)
        return loss

    @property
    def noise_variance(self):
        """float or None : The tau of the linear model, if it changes in training."""
        if not (self.learns_scale or self.follows):
            return None
        scale = self.falling.scale if self.follows else self.scale
        return None if scale is None else linear_tau(self.noise, scale, self.beta)

    @property
    def settings(self):
        """tuple : Numbers that the training loss depends on."""
        return self.beta, self.min_scale, None if self.learns_scale else self.scale

    def in_nats(self, vae, loss, dataset):
        """Loss, in nats, that a mean of :meth:`forward` over a dataset stands for.

        It is at the scale that is best for these rows if evaluations choose it.
        """
        return self._in_nats(vae, loss, dataset, self.power)

    def _in_nats(self, vae, loss, dataset, power):
        """The same, with what evaluations have collected."""
        outside, n_rows = dataset.outside, len(dataset)
        kl = 0.5 * vae.prior.constant(vae.n_components)
        factor = float(self.kl_factor) if self.training else 1.0
        scale = self.scale
        # The loss of noise that follows is divided by the factor.
        loss = loss + self.beta * kl * (1.0 if self.follows else factor)
        n_observed = dataset.n_observed
        if not (self.training and self.learns_scale):
            of_rest = 0.0
            if outside:
                squares = torch.tensor(outside, dtype=torch.float64)
                of_rest = float(energy_outside(self.noise, squares, scale))
            loss = loss + of_rest / (factor if self.follows else 1.0)
            if self.follows and self.training:
                scale = self.falling.scale
            loss = loss + n_observed * float(self.noise.log_normalizer(scale))
            if self.follows and not self.training:
                energy = float(power) / n_rows + of_rest
                exponent = self.noise.exponent
                loss = self.falling.move(loss, energy, scale, n_observed, exponent)
        return float(loss + dataset.log_volume)

    def divergence(self, vae, dataset):
        """KL divergence of a dataset's rows in this epoch, in nats, and its weight.

        Both are arrays, without dimensions if there is one model.
        """
        per_row = self.kl.double().cpu().numpy() / len(dataset)
        kl = 0.5 * (per_row + vae.prior.constant(vae.n_components))
        is_weighted = self.training and not self.follows
        weight = self.beta * (self.kl_factor if is_weighted else 1.0)
        return kl, torch.as_tensor(weight).double().cpu().numpy()

    def anneal(self, progress, largest):
        """Set the factor of the KL divergence for when a part of training is over.

        More weight to it is more noise, exactly: the noise falls, like a geometric
        sequence, to its scale, at which the rest of the training takes place.
        """
        if self.follows:
            exponent = self.noise.exponent
            self.falling.step(progress)
            factor = (self.falling.scale / self.scale) ** exponent
        else:
            first = min(self.first_factor, largest)
            factor = first ** max(0.0, 1 - progress / ANNEALED)
        if torch.is_tensor(self.kl_factor):
            # Captured steps read it.
            self.kl_factor.fill_(factor)
        else:
            self.kl_factor = factor

    def _for_rows(self, scale):
        return scale

    def _batch_scale(self, vae, x, location, n_rows, known):
        # No gradient is needed through the scale: at its maximum the likelihood's
        # derivative with respect to it is zero.
        with torch.no_grad():
            if known is None:
                power = self.noise.mean_power(x, location)
            else:
                x, location = x.unsqueeze(-1), location.unsqueeze(-1)
                power = (self.noise.mean_power(x, location) * known).mean(-1)
            if self.has_outside:
                inside = power * vae.units.n_internal
                power = (inside + self.outside) / vae.layout.n_features
            # In place, and on the device: a captured step must find it again.
            self.power.add_(power, alpha=n_rows)
            if known is not None:
                power = power / known.mean(-1).clamp_min(1 / known.shape[-1])
            return (power ** (1 / self.noise.exponent)).clamp_min(self.min_scale)

    @property
    def best_scale(self):
        """float or ndarray : Scale that is best for rows evaluated last, or NaN."""
        return self.falling.best if self.follows else math.nan

    @property
    def best_sigma(self):
        """float or ndarray : The same in the units of the data."""
        return self.falling.best * self.falling.unit

    def begin_epoch(self, dataset):
        """Start to collect the divergence, and what a scale that is not given needs."""
        outside = torch.as_tensor(dataset.outside, dtype=torch.float32)
        if self.kl is None:
            self.kl = torch.zeros_like(outside, device=dataset.device)
        # In place, as all that captured steps read.
        self.kl.zero_()
        if self.learns_scale or self.follows:
            if self.power is None:
                self.power = torch.zeros_like(self.kl)
            if self.outside is None:
                self.outside = torch.zeros_like(self.kl)
            self.power.zero_()
            self.outside.copy_(outside)
            self.has_outside = bool((outside > 0).any())

    def end_epoch(self, dataset):
        """Make the scale of a dataset's rows since then that of evaluations."""
        if self.learns_scale:
            known = np.divide(dataset.n_observed, dataset.n_features)
            power = self.power.cpu().double() / (len(dataset) * torch.as_tensor(known))
            scale = power ** (1 / self.noise.exponent)
            lowest = torch.as_tensor(self.min_scale, dtype=torch.float64, device="cpu")
            self.set_scale(torch.maximum(scale, lowest))

    def set_scale(self, scale):
        """Evaluate at another scale, a tensor."""
        self.scale = scale.item()


def _add_weighted(a, b, weight):
    # One operation instead of two, at every step.
    if torch.is_tensor(weight):
        return torch.addcmul(a, b, weight)
    return torch.add(a, b, alpha=weight)
