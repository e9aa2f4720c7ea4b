"""The torch module: encode, decode, and what carries both beyond the training data."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from .build import Networks, count_operations
from .gaps import unpack


@dataclass(eq=False)
class Posterior:
    """Normal distributions of codes, a mean and a log-variance of shape (n, k) each."""

    mean: torch.Tensor
    log_var: torch.Tensor

    def __iter__(self):
        # So that it unpacks.
        return iter((self.mean, self.log_var))

    @cached_property
    def std(self):
        """torch.Tensor : Standard deviations."""
        return torch.exp(0.5 * self.log_var)

    @cached_property
    def reflection(self):
        """torch.Tensor : Signs that a row's own code selects, for fixed points.

        With them the errors of rows are not all the same, and average out.
        """
        return torch.where(self.mean < 0, -1.0, 1.0).to(self.mean)

    def points(self, eps):
        """Codes for standard normal points of shape (..., n or 1, k)."""
        return self.mean + self.std * eps

    def entropy(self):
        """Differential entropy (n,), in nats."""
        return 0.5 * (self.log_var + (1 + math.log(2 * math.pi))).sum(-1)

    def __getitem__(self, rows):
        return Posterior(self.mean[rows], self.log_var[rows])

    def where(self, mask, other):
        """Itself for rows where `mask` is true, elsewhere another."""
        mask = mask.unsqueeze(-1)
        return Posterior(
            torch.where(mask, self.mean, other.mean),
            torch.where(mask, self.log_var, other.log_var),
        )

    def stack(self):
        """Tensor of shape (n, 2, k): means, then log-variances."""
        return torch.stack([self.mean, self.log_var], dim=1)


def bound_log_var(log_var):
    """Log-variances that hardly exceed those of the prior.

    No posterior of a linear model is wider than the prior, but an encoder's could be,
    far from its data, by many orders of magnitude. Values above 0, the prior's, grow
    like a logarithm.
    """
    # The gradient of the first term at 0 is one and that of the second zero, so that
    # components without use, which are at 0, train as if there were no bound.
    return log_var.clamp_max(0.0) + log_var.relu().log1p()


class LinearTails(nn.Module):
    """What carries a model on, linearly, beyond where its training data was.

    Networks know nothing of what is out there, and one far row would decide a mean
    score. They see a far row moved to the edge of the range of the training data, from
    ``low`` to ``high``, and a far code shortened to the norm ``limit``. The rest goes
    through the optimal linear model, so that far out the model is probabilistic PCA:
    principal ``axes`` (n, n_components) of what networks see, zero where there are
    fewer, ``variances`` along them, and ``noise_variance``, its tau.
    """

    def __init__(self, axes, variances, noise_variance, low, high, limit):
        super().__init__()
        # They move with the module, but training neither saves nor restores them.
        self.register_buffer("axes", axes, persistent=False)
        self.register_buffer("variances", variances, persistent=False)
        self.register_buffer("noise_variance", noise_variance, persistent=False)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        self.register_buffer("limit", limit, persistent=False)

    @property
    def _amplitudes(self):
        """Sizes of the columns of the linear decoder."""
        return (self.variances - self.noise_variance).clamp_min(0.0).sqrt()

    def split_rows(self, x):
        """Rows moved to the edge, and what that takes from their codes, or None."""
        inside = x.clamp(self.low, self.high)
        if torch.equal(inside, x):
            return x, None
        # The amplitude of unused components is zero, and so may be the variance.
        tiny = torch.finfo(self.variances.dtype).tiny
        gain = self._amplitudes / self.variances.clamp_min(tiny)
        return inside, (x - inside) @ self.axes * gain

    def split_codes(self, z):
        """Codes shortened, and what that takes from their locations, or None."""
        # Codes of zero have a gradient, too.
        norm = z.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        factor = (self.limit / norm).clamp_max(1.0)
        if (factor == 1).all():
            return z, None
        inside = factor * z
        return inside, (z - inside) * self._amplitudes @ self.axes.mT


class VAE(nn.Module):
    """Encoder, decoder and prior, the units they work in, and the layout of samples.

    Rows and locations are internal values of the units; where these are features, and
    the units have axes, the networks see coordinates along them. The encoder's are
    filtered. Rows of features may have gaps, which ``completion`` fills for the
    encoder. ``tails`` carry the model on beyond the training data, once it is trained.
    """

    def __init__(self, networks, prior, units, layout, n_components):
        super().__init__()
        for name, value in networks._asdict().items():
            setattr(self, name, value)
        self.prior = prior
        self.units, self.layout, self.n_components = units, layout, n_components
        self.tails = self.completion = None
        has_filter = units.filter is not None
        filter_ = torch.from_numpy(units.filter).float() if has_filter else None
        # Not among the weights, since units hold them.
        self.register_buffer("axes", None, persistent=False)
        self.register_buffer("filter", filter_, persistent=False)
        self.set_rotates(units.rotates)

    @property
    def networks(self):
        """Networks : Those that it was made of."""
        return Networks(*(getattr(self, name) for name in Networks._fields))

    def set_rotates(self, rotates):
        """Make rows coordinates along the axes, or features."""
        rotates = rotates and self.units.axes is not None
        if rotates != self.units.rotates:
            self.units = replace(self.units, rotates=rotates)
        goes_through_axes = self.units.axes is not None and not rotates
        axes = torch.from_numpy(self.units.axes).float() if goes_through_axes else None
        self.axes = None if axes is None else axes.to(self.device)

    def on_features(self):
        """The same model, with the same weights, of rows that are features."""
        if not self.units.rotates:
            return self
        units = replace(self.units, rotates=False)
        vae = VAE(self.networks, self.prior, units, self.layout, self.n_components)
        vae.tails, vae.completion = self.tails, self.completion
        return vae.to(self.device).train(self.training)

    def unpack(self, x):
        """Internal values of rows, and of rows with gaps what :func:`unpack` gives."""
        return unpack(x, self.units.n_internal)

    def coordinates(self, x):
        """What networks see of rows."""
        return x if self.axes is None else x @ self.axes

    def encode(self, x):
        """Posterior q(z|x) of rows."""
        x, known, shift = self.unpack(x)
        mean, log_var = self._encode(x)
        if known is not None:
            log_var = log_var + shift
        return Posterior(mean, bound_log_var(log_var))

    def _encode(self, x):
        x = self.coordinates(x)
        moved = None
        if self.tails is not None:
            x, moved = self.tails.split_rows(x)
        if self.filter is not None:
            x = x * self.filter
        # In the dtype of x, even if autocast computes in another.
        mean, log_var = self.encoder(x).to(x.dtype).chunk(2, dim=-1)
        return mean if moved is None else mean + moved, log_var

    def posterior(self, x):
        """Posterior q(z|x) of standardized features."""
        return self.encode(self.units.rotate(x))

    def decode(self, z):
        """Locations for codes of shape (..., n_components), any leading dimensions."""
        moved = None
        if self.tails is not None:
            z, moved = self.tails.split_codes(z)
        location = self.decoder(z if z.ndim == 2 else z.flatten(0, -2)).to(z.dtype)
        location = location.reshape(*z.shape[:-1], *location.shape[1:])
        location = location if moved is None else location + moved
        return location if self.axes is None else location @ self.axes.mT

    def forward(self, x):
        """Mean of q(z|x), without its variance, which takes a tenth of the time."""
        return self._encode(self.unpack(x)[0])[0]

    @cached_property
    def n_operations(self):
        """float : Floating-point operations for one row, about."""
        return count_operations(self)

    @property
    def device(self):
        """torch.device : Where the parameters live."""
        return next(self.parameters()).device
