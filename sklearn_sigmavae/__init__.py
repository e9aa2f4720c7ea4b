"""Variational autoencoders that behave like scikit-learn's PCA."""

from ._denoising_display import DenoisingDisplay
from ._display import SigmaPathDisplay
from ._net import DivergenceError
from ._path import SigmaPath, sigma_path
from ._persistence import ModelFileError
from ._search import BatchedGridSearchCV
from ._sigma_vae import SigmaVAE
from ._version import __version__
from .noise import BernoulliNoise, GeneralizedNormalNoise, equivalent_beta

__all__ = [
    "BatchedGridSearchCV",
    "BernoulliNoise",
    "DenoisingDisplay",
    "DivergenceError",
    "GeneralizedNormalNoise",
    "ModelFileError",
    "SigmaPath",
    "SigmaPathDisplay",
    "SigmaVAE",
    "__version__",
    "equivalent_beta",
    "sigma_path",
]
