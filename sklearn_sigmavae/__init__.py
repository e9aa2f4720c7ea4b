"""Variational autoencoders that behave like scikit-learn's PCA."""

from ._errors import DivergenceError, ModelFileError
from ._plot.denoising import DenoisingDisplay
from ._plot.latent_space import LatentSpaceDisplay
from ._plot.reconstruction import ReconstructionDisplay
from ._plot.sigma_path import SigmaPathDisplay
from ._selection.grid_search import BatchedGridSearchCV
from ._selection.path import SigmaPath, sigma_path
from ._selection.power_law import PowerLaw
from ._sigma_vae import SigmaVAE
from ._version import __version__
from .imputation import SigmaVAEImputer
from .noise import BernoulliNoise, GeneralizedNormalNoise, NoiseModel, equivalent_beta
from .outliers import SigmaVAEOutlierDetector
from .priors import MixturePrior, NormalPrior, Prior

__all__ = [
    "BatchedGridSearchCV",
    "BernoulliNoise",
    "DenoisingDisplay",
    "DivergenceError",
    "GeneralizedNormalNoise",
    "LatentSpaceDisplay",
    "MixturePrior",
    "ModelFileError",
    "NoiseModel",
    "NormalPrior",
    "PowerLaw",
    "Prior",
    "ReconstructionDisplay",
    "SigmaPath",
    "SigmaPathDisplay",
    "SigmaVAE",
    "SigmaVAEImputer",
    "SigmaVAEOutlierDetector",
    "__version__",
    "equivalent_beta",
    "sigma_path",
]
