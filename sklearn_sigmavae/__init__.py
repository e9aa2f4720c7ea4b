"""Variational autoencoders that behave like scikit-learn's PCA."""

from ._sigma_vae import SigmaVAE
from .noise import BernoulliNoise, GeneralizedNormalNoise, equivalent_beta

__version__ = "0.1.0.dev0"

__all__ = [
    "BernoulliNoise",
    "GeneralizedNormalNoise",
    "SigmaVAE",
    "equivalent_beta",
]
