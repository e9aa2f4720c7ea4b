"""What else a row with gaps may be: importance samples of its codes.

They are drawn around the refined posterior, and weighted by the true one.
"""

import math

import numpy as np
import torch

from ._model.blocks import in_blocks, in_double
from ._model.gaps import energy_of_rows
from ._model.points import importance_points
from ._model.settings import limited_threads
from ._model.vae import Posterior

# Samples of the posterior of each row.
N_SAMPLES = 128


def _importance_samples(vae, observed, posterior, eps):
    """Codes (n_samples, n, k) for normal points, and log-weights for the posterior.

    Components of the true posterior depend on each other. So codes come from a normal
    distribution with the covariance for a linear decoder, that of secants over the
    width of the refined posterior. For linear models with Gaussian noise it is exact.
    """
    root = torch.linalg.cholesky(_joint_precision(vae, observed, posterior))
    eps = torch.from_numpy(eps).to(root)
    offset = torch.linalg.solve_triangular(root.mT, eps.unsqueeze(-1), upper=True)
    z = posterior.mean + offset.squeeze(-1).to(posterior.mean)
    location = vae.decode(z)
    energy = energy_of_rows(observed.noise, observed.y, location, observed.scale)
    log_weights = (vae.prior.log_prob(z) - energy).double() + 0.5 * eps.square().sum(-1)
    return z, location, log_weights.nan_to_num(nan=-math.inf)


def _of_posteriors(function, vae, observed, found):
    """Array of what a function makes of rows and their refined posteriors."""
    vae = in_double(vae, found.dtype)
    weight = next(vae.parameters())

    @torch.no_grad()
    def of_block(block):
        posterior = Posterior(*torch.from_numpy(found[block]).to(weight).unbind(1))
        return function(vae, observed[block].to(weight), posterior)

    return in_blocks(of_block, len(observed), vae, found.dtype, n_points=N_SAMPLES)


@limited_threads(0, "cpu")
def expected_rows(vae, observed, found):
    """Mean (n, n_internal) of rows given what is known of them.

    Over the posterior, by importance weights at fixed points, and not at its mean: the
    two differ where rows can be completed in several ways.
    """
    points = importance_points(vae.n_components, N_SAMPLES // 2)
    # With their opposites, so that the answer for a linear model is exact.
    points = np.concatenate([points, -points])

    def expect(vae, rows, posterior):
        eps = points[:, np.newaxis].repeat(len(rows), axis=1)
        eps *= posterior.reflection.cpu().numpy()
        _, location, log_weights = _importance_samples(vae, rows, posterior, eps)
        weights = torch.softmax(log_weights, dim=0).unsqueeze(-1).cpu().numpy()
        mean = rows.noise.mean(location.cpu().numpy())
        return torch.from_numpy((weights * mean).sum(axis=0))

    return _of_posteriors(expect, vae, observed, found)


@limited_threads(0, "cpu")
def draw_codes(vae, observed, found, random_state):
    """Codes (n, k) drawn from the posterior of rows, by importance resampling [1]_.

    .. [1] D. B. Rubin, "The calculation of posterior distributions by data
       augmentation: Comment", Journal of the American Statistical Association 82(398),
       1987.
    """

    def draw(vae, rows, posterior):
        eps = random_state.standard_normal((N_SAMPLES, *posterior.mean.shape))
        z, _, log_weights = _importance_samples(vae, rows, posterior, eps)
        # The largest after the addition of Gumbel noise is such a draw.
        gumbel = torch.from_numpy(random_state.gumbel(size=log_weights.shape))
        chosen = (log_weights + gumbel.to(log_weights)).argmax(dim=0)
        return z[chosen, torch.arange(len(chosen), device=z.device)]

    return _of_posteriors(draw, vae, observed, found)


def _joint_precision(vae, observed, posterior):
    """Precisions (n, k, k) of the codes of rows, if the decoder were linear."""
    mean, std = posterior.mean.double(), posterior.std.double()
    if observed.scale is None:
        return torch.diag_embed(1 / std.square())
    slopes = []
    for step in torch.eye(vae.n_components).to(posterior.mean).unsqueeze(1):
        ends = (vae.decode(posterior.points(sign * step)) for sign in (1.0, -1.0))
        slopes.append(0.5 * (next(ends) - next(ends)).double())
    slopes = torch.stack(slopes, dim=-1) / std.unsqueeze(1)
    _, known, _ = vae.unpack(observed.y)
    precision = 1 / (observed.noise.variance_factor * observed.scale.double().square())
    precision = precision if known is None else precision * known
    precision = precision.expand(slopes.shape[:2]).unsqueeze(-1)
    of_codes = (slopes * precision).mT @ slopes
    found, best = None, None
    for log_weight, center, of_prior in zip(
        *vae.prior.gaussians(vae.n_components), strict=True
    ):
        center, of_prior = center.to(mean), of_prior.to(mean)
        score = log_weight.to(mean) + 0.5 * torch.linalg.slogdet(of_prior)[1]
        score = score - 0.5 * (((mean - center) @ of_prior) * (mean - center)).sum(-1)
        if found is None:
            found, best = of_prior.expand_as(of_codes), score
        found = torch.where((score > best)[:, None, None], of_prior, found)
        best = torch.maximum(score, best)
    return of_codes + found
