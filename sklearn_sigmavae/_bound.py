"""The variational bound: its terms, and the points its expectation is taken over."""

import math

import numpy as np
import torch
from scipy.special import gammaincinv, ndtri
from scipy.stats import qmc
from torch import nn

# An expectation over q(z|x) is taken over at least this many points.
N_POINTS = 64


def kl_divergence(mean, log_var):
    """KL(q(z|x) || p(z)) in nats, per row and component; p(z) is standard normal."""
    return 0.5 * (mean * mean + log_var.exp() - 1 - log_var)


def bound_terms(vae, noise, x, eps, scale):
    """Log-likelihood and KL terms of the bound, in internal units.

    Parameters
    ----------
    vae : VAE
        The module.
    noise : NoiseModel
        The noise model.
    x : torch.Tensor of shape (n, *input_shape)
        Clean data.
    eps : torch.Tensor of shape (n_points, n or 1, n_components)
        Standard normal points at which q(z|x) is evaluated.
    scale : float or None
        Scale of the noise.

    Returns
    -------
    log_likelihood : torch.Tensor of shape (n_points, n)
        log p(x|z) at each point, in nats.
    kl : torch.Tensor of shape (n,)
        KL(q(z|x) || p(z)), in nats.
    """
    mean, log_var = vae.encode(x)
    z = mean + torch.exp(0.5 * log_var) * eps
    kl = kl_divergence(mean, log_var).sum(-1)
    return noise.log_prob(x, vae.decode(z), scale), kl


def integration_points(n_components, n_points=N_POINTS):
    """Fixed points whose mean replaces the expectation over a standard normal.

    Pairs of opposite points along the columns of random rotations, so that odd moments
    vanish, at radii that follow the chi distribution, scaled so that the matrix of
    second moments is the identity: quadratics are integrated exactly, and with them
    the bound of a linear decoder with Gaussian noise.

    Parameters
    ----------
    n_components : int
        Dimension k of the points.
    n_points : int
        Least number of points; rounded up to a multiple of 2 k.

    Returns
    -------
    points : ndarray of shape (2 * k * n_rotations, k), float64
        In an order that is random but the same in every call.
    """
    k = n_components
    random_state = np.random.RandomState(0)
    n_rotations = math.ceil(n_points / (2 * k))
    # Quantiles of the chi-squared distribution at the middles of equal strata.
    strata = (np.arange(n_rotations) + 0.5) / n_rotations
    squared_radii = 2 * gammaincinv(k / 2, strata)
    radii = np.sqrt(squared_radii * k / squared_radii.mean())
    columns = np.concatenate(
        [radius * _random_rotation(k, random_state).T for radius in radii]
    )
    return random_state.permutation(np.concatenate([columns, -columns]))


def _random_rotation(k, random_state):
    # The QR decomposition of a Gaussian matrix; any signs of its columns will do here.
    return np.linalg.qr(random_state.standard_normal((k, k)))[0]


def importance_points(n_components, n_samples):
    """Fixed standard normal points for importance-weighted bounds.

    Quasi-random points of scipy, since importance weights are far from quadratic.

    Parameters
    ----------
    n_components : int
        Dimension k of the points.
    n_samples : int
        Number of importance samples in one bound.

    Returns
    -------
    points : ndarray of shape (n_groups * n_samples, k), float64
        At least ``N_POINTS`` in all. The points of one group are spread out over the
        sequence.
    """
    n_points = n_samples * math.ceil(N_POINTS / n_samples)
    # Sobol points come in powers of two.
    sobol = qmc.Sobol(n_components, seed=0).random_base2((n_points - 1).bit_length())
    normal = ndtri(np.clip(sobol, 1e-12, 1 - 1e-12))
    return np.random.RandomState(0).permutation(normal)[:n_points]


def importance_weighted_bound(vae, noise, x, points, n_samples, scale):
    """Bound from importance samples, the tighter the more there are of them.

    Parameters
    ----------
    vae : VAE
        The module.
    noise : NoiseModel
        The noise model.
    x : torch.Tensor of shape (n, *input_shape)
        Clean data.
    points : torch.Tensor of shape (n_groups * n_samples, n_components)
        Standard normal points. The bound is the mean over groups of consecutive ones.
    n_samples : int
        Number of importance samples in a group.
    scale : float
        Scale of the noise.

    Returns
    -------
    bound : torch.Tensor of shape (n,)
        In nats.
    """
    mean, log_var = vae.encode(x)
    # Each row sees the points in the reflection that its own code says: the errors of
    # rows are then not all the same, and average out in the score of many.
    eps = points.unsqueeze(1) * torch.where(mean < 0, -1.0, 1.0).to(mean.dtype)
    z = mean + torch.exp(0.5 * log_var) * eps
    log_joint = noise.log_prob(x, vae.decode(z), scale) - 0.5 * (z * z).sum(-1)
    log_weights = log_joint + 0.5 * (eps * eps + log_var).sum(-1)
    groups = log_weights.reshape(-1, n_samples, len(x))
    return (groups.logsumexp(dim=1) - math.log(n_samples)).mean(dim=0)


class NegativeBound(nn.Module):
    """The training loss: minus the bound, in nats per row and in the data's units.

    Parameters
    ----------
    noise : NoiseModel
        The noise model.
    beta : float
        Weight of the KL term.
    scale : float or None
        Scale of the noise, in internal units; None for noise without one.
    log_volume : float
        Added to the loss: what the change of units does to the density.
    min_scale : float or None, default=None
        If given, the scale is learned: in training it is the maximum-likelihood scale
        of each batch, never below this, and in evaluation that of the last epoch.
    """

    def __init__(self, noise, beta, scale, log_volume, min_scale=None):
        super().__init__()
        self.noise = noise
        self.beta = beta
        self.scale = scale
        self.log_volume = log_volume
        self.min_scale = min_scale
        self.power = None

    @property
    def learns_scale(self):
        """bool : Whether the scale is learned."""
        return self.min_scale is not None

    def forward(self, vae, x, eps):
        """Mean loss of rows, less :meth:`constant`.

        The same as from :func:`bound_terms`, in fewer operations, since on small
        batches each one has its price: sums run over all rows at once, and what no
        gradient sees is left out (the normaliser of a scale that is being learned is
        not: it changes from batch to batch).

        Parameters
        ----------
        vae : VAE
            The module. For a stack, all shapes begin with n_members.
        x : torch.Tensor of shape (n, n_features)
            Clean data.
        eps : torch.Tensor of shape (n, n_components) or (n_points, n, n_components)
            Standard normal points at which q(z|x) is evaluated.

        Returns
        -------
        loss : torch.Tensor of shape ()
        """
        stacked = vae.n_stack_dims
        mean, log_var = vae.encode(x)
        std = torch.exp(0.5 * log_var)
        n_rows = mean.shape[-2]
        # With many points for each row, they take a dimension before that of the rows.
        has_points = eps.ndim > mean.ndim
        centre, spread = (
            (mean.unsqueeze(stacked), std.unsqueeze(stacked))
            if has_points
            else (mean, std)
        )
        location = vae.decode(torch.addcmul(centre, spread, eps))
        per_member = location.shape[stacked:]
        n_draws = per_member[:-1].numel()  # rows times points
        if has_points:
            x = x.unsqueeze(stacked).expand(*x.shape[:stacked], *per_member)
        x, location = x.flatten(stacked), location.flatten(stacked)
        scale = (
            self._batch_scale(x, location, n_rows) if self._is_learning else self.scale
        )
        energy = self.noise.energy(x, location, self._for_rows(scale))
        squares = torch.addcmul(torch.addcmul(-log_var, mean, mean), std, std)
        weight = 0.5 * self.beta * (n_draws / n_rows)
        loss = _add_weighted(energy, squares.sum((-2, -1)), weight) * (1 / n_draws)
        if self._is_learning:
            n_features = x.shape[-1] // n_draws
            loss = loss + n_features * self.noise.log_normalizer(scale)
        return loss

    @property
    def settings(self):
        """tuple : Numbers that the training loss depends on."""
        return self.beta, self.min_scale, None if self.learns_scale else self.scale

    def constant(self, vae):
        """What :meth:`forward` leaves out of the loss: a number, in nats."""
        beta, scale = _on_host(self.beta), _on_host(self.scale)
        constant = self.log_volume - 0.5 * beta * vae.n_components
        if not self._is_learning:
            n_features = vae.layout.n_features
            constant = constant + n_features * self._log_normalizer(scale)
        return constant

    def _log_normalizer(self, scale):
        return self.noise.log_normalizer(scale)

    @property
    def _is_learning(self):
        return self.training and self.learns_scale

    def _batch_scale(self, x, location, n_rows):
        # No gradient is needed through the scale: at its maximum the likelihood's
        # derivative with respect to it is zero.
        with torch.no_grad():
            power = self.noise.mean_power(x, location)
            # In place, and on the device: a captured step must find it again.
            self.power.add_(power, alpha=n_rows)
            return (power ** (1 / self.noise.exponent)).clamp_min(self.min_scale)

    def begin_epoch(self, device):
        """Start to collect what the learned scale, if any, is computed from."""
        if self.learns_scale:
            if self.power is None:
                shape = torch.as_tensor(self.scale).shape
                self.power = torch.zeros(shape, dtype=torch.float32, device=device)
            self.power.zero_()

    def end_epoch(self, n_rows):
        """Make the scale of the `n_rows` rows since then that of evaluations."""
        if self.learns_scale:
            power = self.power.cpu().double() / n_rows
            scale = (power ** (1 / self.noise.exponent)).clamp_min(self.min_scale)
            self._set_scale(scale)

    def _set_scale(self, scale):
        self.scale = scale.item()

    def _for_rows(self, scale):
        return scale


def _on_host(value):
    return value.cpu().double() if torch.is_tensor(value) else value


def _add_weighted(a, b, weight):
    # One operation instead of two, at every step.
    if torch.is_tensor(weight):
        return torch.addcmul(a, b, weight)
    return torch.add(a, b, alpha=weight)


class NegativeBoundStack(NegativeBound):
    """The losses of a stack's members, a tensor of shape (n_members,).

    Parameters
    ----------
    bounds : list of NegativeBound
        The members' own: all with the same noise, all with a learned scale or none.
    """

    def __init__(self, bounds):
        first = bounds[0]
        super().__init__(first.noise, None, None, None, first.min_scale)
        del self.beta, self.scale
        # Buffers, since they must be where the stack is.
        self.register_buffer("beta", _float32([bound.beta for bound in bounds]))
        has_scale = first.noise.has_scale
        scales = _float32([bound.scale for bound in bounds]) if has_scale else None
        self.register_buffer("scale", scales)
        self.log_volume = torch.tensor(
            [bound.log_volume for bound in bounds], dtype=torch.float64
        )

    @property
    def settings(self):
        """tuple : Numbers that the loss depends on; tensors are seen by captures."""
        return (self.min_scale,)

    def _set_scale(self, scale):
        self.scale.copy_(scale)

    def _for_rows(self, scale):
        return None if scale is None else scale[:, None]

    def _log_normalizer(self, scale):
        if scale is None:
            return self.noise.log_normalizer(None)
        # Number by number, as noise models expect it.
        each = [self.noise.log_normalizer(value) for value in scale.tolist()]
        return torch.tensor(each, dtype=scale.dtype)


def _float32(values):
    return torch.tensor(values, dtype=torch.float32)
