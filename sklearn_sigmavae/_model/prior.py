"""Priors as parts of a module: a recipe, and the parameters that training learns."""

import math

import torch
from torch import nn

from ..priors import NormalPrior


def build_prior(recipe, values):
    """The module of a prior with values for its parameters."""
    if type(recipe) is NormalPrior:
        return NormalDensity(recipe)
    return Density(recipe, values)


class Density(nn.Module):
    """A prior of codes; its divergences are expectations over points.

    ``factorizes`` says whether they are sums over components.
    """

    factorizes = False

    def __init__(self, recipe, values):
        super().__init__()
        self.recipe, self._names = recipe, tuple(values)
        for name, value in values.items():
            if hasattr(self, name):
                raise ValueError(
                    f"{type(recipe).__name__}.parameters must not use the name "
                    f"{name!r}, which the module of a prior has already; rename it."
                )
            # Recipes may choose a type, and views; training is in float32.
            self.register_parameter(name, nn.Parameter(value.detach().float().clone()))

    def named_values(self):
        """Parameters by name."""
        return {name: getattr(self, name) for name in self._names}

    def _in_double(self):
        return {
            name: value.detach().to("cpu", torch.float64)
            for name, value in self.named_values().items()
        }

    def log_prob(self, z):
        """Log-density of codes (..., k), in nats."""
        # It subtracts large numbers where components are narrow.
        with torch.autocast(z.device.type, enabled=False):
            return self.recipe.log_prob(z, **self.named_values())

    def kl_divergence(self, posterior, z):
        """Values whose mean over points z (n_points, n, k) is the KL divergence.

        They are (n_points, n), or (1, n) where it is known without points.
        """
        # The entropy is.
        return -posterior.entropy() - self.log_prob(z)

    def doubled_kl(self, posterior, z):
        """Twice the divergence, summed over rows, less the constant of each, at points.

        Points are (..., n, k), or (..., n_points, n, k), and the result the mean over
        these. In a stack all shapes begin with n_members.
        """
        n_rows = posterior.mean.shape[-2]
        first = posterior.mean.ndim - 2
        log_prob = self.log_prob(z).flatten(first)
        ratio = 2 * n_rows / log_prob.shape[-1]
        return -posterior.log_var.sum((-2, -1)) - ratio * log_prob.sum(-1)

    def constant(self, n_components):
        """What :meth:`doubled_kl` leaves out for each row."""
        return -n_components * (1 + math.log(2 * math.pi))

    def sample(self, n_samples, n_components, random_state):
        """Codes, an array in float64."""
        values = {name: v.numpy() for name, v in self._in_double().items()}
        return self.recipe.sample(n_samples, n_components, random_state, **values)

    def gaussians(self, n_components):
        """Log-weights, means and precisions of normal distributions, in float64."""
        gaussians = self.recipe.gaussians(**self._in_double())
        if gaussians is None:
            # For other priors the standard normal is a start.
            eye = torch.eye(n_components, dtype=torch.float64)
            gaussians = eye.new_zeros(1), eye.new_zeros(1, n_components), eye[None]
        return gaussians


class NormalDensity(Density):
    """The standard normal, whose divergences have a closed form."""

    factorizes = True

    def __init__(self, recipe):
        super().__init__(recipe, {})

    def kl_divergence(self, posterior, z=None):
        """See :class:`Density`; the values are all the same."""
        return self.of_components(posterior).sum(-1).unsqueeze(0)

    def of_components(self, posterior):
        """KL divergence (n, k) of posteriors in each component."""
        mean, log_var = posterior.mean, posterior.log_var
        return 0.5 * (mean * mean + log_var.exp() - 1 - log_var)

    def doubled_kl(self, posterior, z):
        """See :class:`Density`; in few operations, which matter on small batches."""
        mean, log_var, std = posterior.mean, posterior.log_var, posterior.std
        squares = torch.addcmul(torch.addcmul(-log_var, mean, mean), std, std)
        return squares.sum((-2, -1))

    def constant(self, n_components):
        """See :class:`Density`."""
        return -n_components
