"""A noise model of a user's own, which the documentation shows and the tests use."""

import math
from numbers import Real

import numpy as np
import torch

from sklearn_sigmavae import NoiseModel


class StudentNoise(NoiseModel):
    """Student's t with more than 2 degrees of freedom, whose tails forgive."""

    def __init__(self, degrees=4.0):
        self.degrees = degrees

    def validate(self):
        """Raise ``ValueError`` unless the variance is finite."""
        if not isinstance(self.degrees, Real) or not 2 < self.degrees < math.inf:
            raise ValueError("The 'degrees' of StudentNoise must be finite and > 2.")

    def energy(self, x, location, scale):
        """Part of minus the log-density that depends on the residual."""
        residual = (x - location) / scale
        terms = torch.log1p(residual.square() / self.degrees)
        return 0.5 * (self.degrees + 1) * terms.sum(-1)

    def log_normalizer(self, scale):
        """The rest, of one feature."""
        n = self.degrees
        constant = math.lgamma(n / 2) - math.lgamma((n + 1) / 2)
        return math.log(scale) + 0.5 * math.log(n * math.pi) + constant

    def sample(self, location, scale, random_state):
        """Draw an observation for each location."""
        noise = random_state.standard_t(self.degrees, size=np.shape(location))
        return location + scale * noise

    @property
    def variance_factor(self):
        """float : Variance at ``scale=1``."""
        return self.degrees / (self.degrees - 2)
