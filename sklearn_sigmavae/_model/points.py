"""Fixed points that replace expectations over a standard normal."""

import math

import numpy as np
import torch
from scipy.special import gammaincinv, ndtri
from scipy.stats import qmc

# An expectation over q(z|x) is taken over at least this many points, and the center;
# with importance weights over more, since they are far from quadratic.
N_POINTS, _N_WEIGHTED = 32, 64


def _opposites(k, n_points):
    """Half (n, k) of the points of a rule; the other half are their opposites.

    They lie along the columns of random rotations, at radii whose squares have the mean
    of the chi-squared distribution, k, so that second moments are the identity. Of more
    than one rotation the variance of the squares is that of the distribution, too.
    """
    random_state = np.random.RandomState(0)
    n_rotations = math.ceil(n_points / (2 * k))
    # Quantiles of the chi-squared distribution at the middles of equal strata.
    strata = (np.arange(n_rotations) + 0.5) / n_rotations
    squares = 2 * gammaincinv(k / 2, strata)
    squares *= k / squares.mean()
    if n_rotations > 1:
        # As far as none becomes negative.
        spread = min(math.sqrt(2 * k / squares.var()), k / (k - squares.min()))
        squares = k + spread * (squares - k)
    radii = np.sqrt(squares)
    # The QR decomposition of a Gaussian matrix; the signs of its columns do not matter.
    columns = [
        radius * np.linalg.qr(random_state.standard_normal((k, k)))[0].T
        for radius in radii
    ]
    return random_state.permutation(np.concatenate(columns))


def integration_points(n_components, n_points=2 * N_POINTS):
    """Fixed points whose mean replaces the expectation over a standard normal.

    Quadratics are integrated exactly, and with them the ELBO of a linear decoder with
    Gaussian noise. Their number is a multiple of 2 k, their random order the same in
    every call.
    """
    half = _opposites(n_components, n_points)
    return np.random.RandomState(0).permutation(np.concatenate([half, -half]))


def quadrature(n_components, noise=None):
    """Points (n, 1, k) and weights (n,) for an expectation over a standard normal.

    They are more exact than as many integration points, and are tensors in float64:
    pairs of opposites, and last the center. Of one rotation the mean fourth power of
    the radius is too small, so its points are moved outwards, and the center gets the
    rest of the weight. But the energy of noise that is not Gaussian may have a kink
    there, so for this there are two rotations at least.
    """
    k, n_points, center = n_components, N_POINTS, 0.0
    is_smooth = noise is None or noise.is_rotation_invariant
    half = _opposites(k, n_points if is_smooth else max(2 * n_points, 4 * k))
    if is_smooth:
        fourth_power = np.square(np.square(half).sum(axis=1)).mean()
        center = max(0.0, 1 - fourth_power / (k * (k + 2)))
    points = np.stack([half, -half], axis=1).reshape(-1, k) / math.sqrt(1 - center)
    weights = np.full(len(points), (1 - center) / len(points))
    if center:
        points, weights = np.vstack([points, np.zeros(k)]), np.append(weights, center)
    return torch.from_numpy(points).unsqueeze(1), torch.from_numpy(weights)


def weighted_mean(values, weights):
    """Mean (n,) of values (n, n_points)."""
    # Not a product of matrices, which autocast and TF32 would round.
    return (values * weights.to(values)).sum(-1)


def importance_points(n_components, n_samples):
    """Fixed standard normal points for importance-weighted bounds, in groups.

    They are quasi-random, and a group is spread out over the sequence.
    """
    n_points = n_samples * math.ceil(_N_WEIGHTED / n_samples)
    # Sobol points come in powers of two.
    sobol = qmc.Sobol(n_components, seed=0).random_base2((n_points - 1).bit_length())
    normal = ndtri(np.clip(sobol, 1e-12, 1 - 1e-12))
    return np.random.RandomState(0).permutation(normal)[:n_points]
