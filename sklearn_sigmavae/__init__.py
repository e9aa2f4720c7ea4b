"""Variational autoencoders that behave like scikit-learn's PCA."""

from ._denoising_display import DenoisingDisplay
from ._display import SigmaPathDisplay
from ._path import SigmaPath, sigma_path
from ._search import BatchedGridSearchCV
from ._sigma_vae import SigmaVAE
from .noise import BernoulliNoise, GeneralizedNormalNoise, equivalent_beta

__version__ = "0.1.0.dev0"

__all__ = [
    "BatchedGridSearchCV",
    "BernoulliNoise",
    "DenoisingDisplay",
    "GeneralizedNormalNoise",
    "SigmaPath",
    "SigmaPathDisplay",
    "SigmaVAE",
    "equivalent_beta",
    "sigma_path",
]
