"""The noise models: each density is written once, for loss, score and sampling.

To add one, subclass :class:`NoiseModel`, and add a line with its name to ``ALIASES``.
"""

import math
from abc import ABCMeta, abstractmethod
from numbers import Real

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import StrOptions, validate_params
from torch.nn import functional as F

__all__ = ["BernoulliNoise", "GeneralizedNormalNoise", "NoiseModel", "equivalent_beta"]


class NoiseModel(BaseEstimator, metaclass=ABCMeta):
    """Distribution of an observation given its location, independent over features.

    It is the p(x|z) of a variational autoencoder [1]_. A subclass implements
    :meth:`energy`, :meth:`log_normalizer` and :meth:`sample`. Without an ``exponent``
    the scale of the noise cannot be estimated.

    Attributes
    ----------
    has_scale : bool
        Whether the density has a scale, the estimator's ``sigma``. Without one the
        data is neither centered nor scaled.
    exponent : float or None
        The p of densities whose energy is a power, ``scale ** -p``. It makes β and σ
        exchangeable and gives the scale of maximum likelihood a closed form.
    variance_factor : float
        Variance of the noise at ``scale=1``, in the squared unit of the scale. Where
        it is infinite, any number near the square of the density's width will do.
    is_rotation_invariant : bool
        Whether the density is the same in all directions, as that of the Gaussian is.
        Then models are made of principal coordinates, which is faster.

    See Also
    --------
    GeneralizedNormalNoise : The Gaussian, the Laplace, and what lies between.
    BernoulliNoise : The vanilla variational autoencoder.

    References
    ----------
    .. [1] D. P. Kingma, M. Welling, "Auto-Encoding Variational Bayes",
       arXiv:1312.6114, 2014.

    Examples
    --------
    >>> import math
    >>> import torch
    >>> from sklearn_sigmavae import NoiseModel
    >>> class CauchyNoise(NoiseModel):
    ...     def energy(self, x, location, scale):
    ...         return torch.log1p(((x - location) / scale) ** 2).sum(-1)
    ...
    ...     def log_normalizer(self, scale):
    ...         return math.log(math.pi * scale)
    ...
    ...     def sample(self, location, scale, random_state):
    ...         return location + scale * random_state.standard_cauchy(location.shape)
    >>> CauchyNoise().log_prob(torch.ones(1), torch.zeros(1), 1.0).round(decimals=3)
    tensor(-1.8380)
    """

    has_scale = True
    is_rotation_invariant = False
    exponent = None
    variance_factor = 1.0

    @abstractmethod
    def energy(self, x, location, scale):
        """Part of minus the log-density that depends on `x` and `location`.

        The same function of each entry, summed over the last dimension. Rows with gaps
        come one feature at a time.

        Parameters
        ----------
        x, location : torch.Tensor of shape (..., n_features)
            Observations and locations; their leading dimensions broadcast.
        scale : float or torch.Tensor of a shape that broadcasts with `x`
            Scale of the noise, in the units of `x`; None for noise without one.

        Returns
        -------
        energy : torch.Tensor of shape (...)
            Sum over features, in nats.

        Examples
        --------
        >>> import torch
        >>> from sklearn_sigmavae import GeneralizedNormalNoise
        >>> GeneralizedNormalNoise().energy(torch.ones(2), torch.zeros(2), 0.5).round()
        tensor(4.)
        """

    @abstractmethod
    def log_normalizer(self, scale):
        """Other part of minus the log-density, of one feature, in nats.

        Parameters
        ----------
        scale : float
            Scale of the noise, in the units of `x`; None for noise without one, and a
            torch.Tensor of any shape while ``sigma="mle"`` trains.

        Returns
        -------
        log_normalizer : float or torch.Tensor of the shape of `scale`
            Logarithm of the constant that the density is divided by, in nats.

        Examples
        --------
        >>> from sklearn_sigmavae import GeneralizedNormalNoise
        >>> round(GeneralizedNormalNoise().log_normalizer(1.0), 4)
        0.9189
        """

    def log_prob(self, x, location, scale):
        """Log-density of each observation, summed over features, in nats.

        Parameters
        ----------
        x, location : torch.Tensor of shape (..., n_features)
            Observations and locations; their leading dimensions broadcast.
        scale : float
            Scale of the noise, in the units of `x`; None for noise without one.

        Returns
        -------
        log_prob : torch.Tensor of shape (...)
            The log-density, in nats.

        Examples
        --------
        >>> import torch
        >>> from sklearn_sigmavae import GeneralizedNormalNoise
        >>> GeneralizedNormalNoise().log_prob(torch.zeros(1), torch.zeros(1), 1.0)
        tensor(-0.9189)
        """
        constant = x.shape[-1] * self.log_normalizer(scale)
        return -self.energy(x, location, scale) - constant

    @abstractmethod
    def sample(self, location, scale, random_state):
        """Draw one observation for each location.

        Parameters
        ----------
        location : ndarray of shape (..., n_features)
            Locations.
        scale : float or ndarray, of a shape that broadcasts to that of `location`
            Scale of the noise, in the units of `location`; None for noise without one.
        random_state : numpy.random.RandomState
            Source of randomness.

        Returns
        -------
        x : ndarray of shape (..., n_features)
            Observations, in the units of `location`.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_sigmavae import BernoulliNoise
        >>> BernoulliNoise().sample(np.array([-99.0, 99.0]), None, np.random)
        array([0., 1.])
        """

    def mean_power(self, x, location):
        """Mean of ``exponent * energy`` at a scale of 1: the best scale, to the p.

        Parameters
        ----------
        x, location : torch.Tensor of shape (..., n_features)
            Observations and locations.

        Returns
        -------
        mean_power : torch.Tensor of shape (...)
            Mean over features, in the units of `x` to the p.

        Examples
        --------
        >>> import torch
        >>> from sklearn_sigmavae import GeneralizedNormalNoise
        >>> GeneralizedNormalNoise(1).mean_power(torch.ones(2), torch.zeros(2))
        tensor(1.)
        """
        return self.exponent * self.energy(x, location, 1.0) / x.shape[-1]

    def validate(self):
        """Raise ``ValueError`` unless the model's parameters make a density.

        Examples
        --------
        >>> from sklearn_sigmavae import GeneralizedNormalNoise
        >>> GeneralizedNormalNoise(exponent=0.5).validate()
        Traceback (most recent call last):
        ValueError: The 'exponent' of GeneralizedNormalNoise must be a finite number...
        """

    def check_data(self, X):
        """Raise ``ValueError`` unless data lies in the support of the density.

        Parameters
        ----------
        X : ndarray of shape (n_samples, n_features)
            The data, in its own units.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_sigmavae import BernoulliNoise
        >>> BernoulliNoise().check_data(np.array([[0.0, 16.0]]))
        Traceback (most recent call last):
        ValueError: noise='bernoulli' needs data in [0, 1], but X ranges from 0 to 16...
        """

    def mean(self, location):
        """Mean of an observation, as data: what ``inverse_transform`` returns.

        Parameters
        ----------
        location : ndarray of shape (..., n_features)
            Locations, in internal units.

        Returns
        -------
        mean : ndarray of shape (..., n_features)
            Means, in internal units, which without a scale are those of the data.

        Examples
        --------
        >>> from sklearn_sigmavae import BernoulliNoise
        >>> float(BernoulliNoise().mean(0.0))
        0.5
        """
        return location

    def location_of_mean(self, mean):
        """Location whose mean is `mean`; inverts :meth:`mean`.

        Parameters
        ----------
        mean : ndarray of shape (..., n_features)
            Means, in internal units.

        Returns
        -------
        location : ndarray of shape (..., n_features)
            Locations, in internal units.

        Examples
        --------
        >>> from sklearn_sigmavae import BernoulliNoise
        >>> float(BernoulliNoise().location_of_mean(0.5))
        0.0
        """
        return mean


class GeneralizedNormalNoise(NoiseModel):
    r"""Generalized normal noise, with the Gaussian and the Laplace as members.

    Its log-density [1]_ of an observation :math:`x` at :math:`\nu` is, in nats,

    .. math::

        \log p(x \mid \nu, \sigma) = - \sum_i \frac{|x_i - \nu_i|^p}{p\,\sigma_i^p}
        - \sum_i \log\left( 2 \sigma_i\, p^{1/p}\, \Gamma(1 + 1/p) \right)

    Parameters
    ----------
    exponent : float, default=2.0
        The exponent :math:`p \ge 1`: 2 for the Gaussian, with :math:`\sigma` its
        standard deviation, 1 for the Laplace, with :math:`\sigma` its scale.

    See Also
    --------
    BernoulliNoise : For data in [0, 1], without a scale.
    equivalent_beta : The β that stands for another σ.

    References
    ----------
    .. [1] S. Nadarajah, "A generalized normal distribution", Journal of Applied
       Statistics 32(7), 2005. Its scale is :math:`p^{1/p}` times the one here.

    Examples
    --------
    >>> from sklearn_sigmavae import GeneralizedNormalNoise, SigmaVAE
    >>> SigmaVAE(noise=GeneralizedNormalNoise(1.5)).get_params()["noise__exponent"]
    1.5
    """

    def __init__(self, exponent=2.0):
        self.exponent = exponent

    def validate(self):
        """Check that the exponent is at least 1; see :meth:`NoiseModel.validate`."""
        p = self.exponent
        if not isinstance(p, Real) or not 1 <= p < math.inf:
            raise ValueError(
                "The 'exponent' of GeneralizedNormalNoise must be a finite number that "
                f"is at least 1. Got {p!r} instead."
            )

    def _power_sum(self, residual):
        if self.exponent == 2:
            # Several times cheaper than a general power. Under autocast vecdot rounds.
            product = torch.dot if residual.ndim == 1 else torch.linalg.vecdot
            return product(residual, residual)
        return (residual.abs() ** self.exponent).sum(-1)

    def energy(self, x, location, scale):
        """Sum ``|x - location|**p / (p * scale**p)``; see :meth:`NoiseModel.energy`."""
        p = self.exponent
        # The residual is scaled before the power: sigma ** p underflows in float32. In
        # this order the gradient of the location takes one operation less.
        return self._power_sum((location - x) / (scale * p ** (1 / p)))

    def log_normalizer(self, scale):
        """Log of the factor in the density; see :meth:`NoiseModel.log_normalizer`."""
        p = self.exponent
        log_scale = scale.log() if torch.is_tensor(scale) else math.log(scale)
        return log_scale + math.log(2) + math.log(p) / p + math.lgamma(1 + 1 / p)

    def sample(self, location, scale, random_state):
        """Draw an observation for each location; see :meth:`NoiseModel.sample`."""
        p = self.exponent
        # If G follows a Gamma(1/p), then (p G)^(1/p) follows |noise| / scale.
        gamma = random_state.standard_gamma(1 / p, size=np.shape(location))
        sign = random_state.choice((-1.0, 1.0), size=np.shape(location))
        return location + scale * sign * (p * gamma) ** (1 / p)

    @property
    def is_rotation_invariant(self):
        """bool : Whether it is the Gaussian; a subclass may change the density."""
        return self.exponent == 2 and type(self) is GeneralizedNormalNoise

    @property
    def variance_factor(self):
        """float : Variance of the noise at ``scale=1``; 1 for the Gaussian."""
        p = self.exponent
        return math.exp(2 / p * math.log(p) + math.lgamma(3 / p) - math.lgamma(1 / p))

    def mean_power(self, x, location):
        """Mean of ``|x - location| ** exponent``; see :meth:`NoiseModel.mean_power`."""
        # From the residuals themselves: the energy rounds their powers.
        return self._power_sum(x - location) / x.shape[-1]


class BernoulliNoise(NoiseModel):
    """Bernoulli noise on data in [0, 1]: the vanilla variational autoencoder.

    Locations are logits and there is no scale [1]_. Values between 0 and 1 are allowed,
    but then no score is a likelihood [2]_. Scores never compare with those of
    continuous noise.

    See Also
    --------
    GeneralizedNormalNoise : Continuous noise, with a scale.

    References
    ----------
    .. [1] D. P. Kingma, M. Welling, "Auto-Encoding Variational Bayes",
       arXiv:1312.6114, 2014.
    .. [2] G. Loaiza-Ganem, J. P. Cunningham, "The continuous Bernoulli: fixing a
       pervasive error in variational autoencoders", arXiv:1907.06845, 2019.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_sigmavae import SigmaVAE
    >>> X = (load_digits().data[:300] > 8).astype(float)
    >>> vae = SigmaVAE(8, noise="bernoulli", max_iter=2, random_state=0).fit(X)
    >>> bool(vae.inverse_transform(vae.transform(X)).max() < 1)
    True
    """

    has_scale = False

    def energy(self, x, location, scale=None):
        """Cross-entropy, summed over features; see :meth:`NoiseModel.energy`."""
        location, x = torch.broadcast_tensors(location, x)
        losses = F.binary_cross_entropy_with_logits(location, x, reduction="none")
        return losses.sum(-1)

    def log_normalizer(self, scale=None):
        """Zero: the cross-entropy is all; see :meth:`NoiseModel.log_normalizer`."""
        return 0.0

    def sample(self, location, scale, random_state):
        """Draw zeros and ones for each location; see :meth:`NoiseModel.sample`."""
        probability = self.mean(location)
        uniform = random_state.uniform(size=probability.shape)
        return (uniform < probability).astype(probability.dtype)

    def check_data(self, X):
        """Check that data lies in [0, 1]; see :meth:`NoiseModel.check_data`."""
        low, high = X.min(), X.max()
        if low < 0 or high > 1:
            raise ValueError(
                f"noise='bernoulli' needs data in [0, 1], but X ranges from {low:.6g} "
                f"to {high:.6g}. Scale it (MinMaxScaler), or use noise='gaussian'."
            )

    def mean(self, location):
        """Probability of a one for each logit; see :meth:`NoiseModel.mean`."""
        # The logistic function in a form that never overflows.
        return 0.5 * (1 + np.tanh(0.5 * location))

    def location_of_mean(self, mean):
        """Logit, kept finite at 0 and 1; see :meth:`NoiseModel.location_of_mean`."""
        probability = np.clip(mean, 1e-3, 1 - 1e-3)
        return np.log(probability) - np.log1p(-probability)


ALIASES = {
    "gaussian": GeneralizedNormalNoise(exponent=2.0),
    "laplace": GeneralizedNormalNoise(exponent=1.0),
    "bernoulli": BernoulliNoise(),
}

# What a ``noise`` parameter takes.
ANY_NOISE = [StrOptions(set(ALIASES)), NoiseModel]

# Those that a file can name.
NOISES = {type(model).__name__: type(model) for model in ALIASES.values()}


def resolve_noise(noise):
    """Noise model that a ``noise`` parameter stands for, its parameters checked."""
    model = ALIASES[noise] if isinstance(noise, str) else noise
    model.validate()
    if type(model) not in NOISES.values():
        _check_contract(model)
    return model


# Of (1, 0, 1) to a vector with another sum and other entries.
_ROTATION = torch.tensor(
    [[0.6, 0.8, 0.0], [-0.8, 0.6, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float32
)


def _check_contract(model):
    """Raise ``ValueError`` unless a custom noise model keeps its promises."""
    name = type(model).__name__
    x = torch.tensor([[1.0, 0.0, 1.0]] * 2, dtype=torch.float32)
    location = x.new_zeros(5, 2, 3)
    number = each = None
    if model.has_scale:
        number, each = 0.5, x.new_full((2, 3, 1), 0.5)
    try:
        energy = model.energy(x, location, number)
        parts = model.energy(x.unsqueeze(-1), location.unsqueeze(-1), each).sum(-1)
        rotated = model.energy(x @ _ROTATION, location, number)
        model.log_normalizer(number)
        drawn = model.sample(np.zeros((2, 3)), number, np.random.RandomState(0))
    except Exception as error:
        raise ValueError(
            f"The noise model {name} failed on x of shape (2, 3), locations of shape "
            "(5, 2, 3), and a number or a tensor for the scale: "
            f"{type(error).__name__}: {error}"
        ) from error
    wrong = None
    if np.shape(energy) != (5, 2):
        wrong = f"energy must sum over the last dimension. It is {np.shape(energy)}"
    elif not torch.allclose(energy, parts, 1e-3, equal_nan=True):
        wrong = "energy must be a sum over entries, each with its own scale"
    elif model.is_rotation_invariant and not torch.allclose(energy, rotated, 1e-3):
        wrong = "is_rotation_invariant must be false: energy changes with the direction"
    elif np.shape(drawn) != (2, 3):
        wrong = f"sample must return the shape of its locations, not {np.shape(drawn)}"
    if wrong:
        raise ValueError(f"{name}.{wrong}.")


def resolve_power(noise, consequence):
    """Noise model whose energy is a power; for others the error names a consequence."""
    model = resolve_noise(noise)
    if model.exponent is None:
        lacking = "exponent" if model.has_scale else "scale"
        raise ValueError(
            f"noise={noise!r} has no {lacking}, so {consequence}. Use 'gaussian', "
            "'laplace' or GeneralizedNormalNoise."
        )
    return model


@validate_params({"noise": ANY_NOISE}, prefer_skip_nested_validation=True)
def equivalent_beta(sigma_from, sigma_to, noise="gaussian"):
    r"""The β that makes a model at one scale the σ-VAE at another scale.

    For the generalized normal family the data term scales as :math:`\sigma^{-p}`, so
    up to a constant :math:`L(\sigma_1, \beta) = \beta\, L(\sigma_2, 1)` with
    :math:`\beta = (\sigma_2 / \sigma_1)^p`: the same optima [1]_.

    Parameters
    ----------
    sigma_from, sigma_to : float or array-like of shape (n_features,)
        Scale of the model with β, and that of the σ-VAE that it equals, in the same
        units. The ratio must be the same for every feature.
    noise : {"gaussian", "laplace"} or GeneralizedNormalNoise, default="gaussian"
        The noise model.

    Returns
    -------
    beta : float
        Weight of the KL term [2]_, without a unit.

    Raises
    ------
    ValueError
        If the noise has no exponent, a scale is not positive, or the ratio of the
        scales differs between features.

    See Also
    --------
    SigmaVAE : Takes it as ``beta``.

    References
    ----------
    .. [1] S. Saremi, "Learning and Inference in Imaginary Noise Models",
       arXiv:2005.09047, 2020.
    .. [2] I. Higgins et al., "beta-VAE: Learning Basic Visual Concepts with a
       Constrained Variational Framework", ICLR 2017.

    Examples
    --------
    >>> from sklearn_sigmavae import equivalent_beta
    >>> equivalent_beta(0.5, 1.0)
    4.0
    """
    model = resolve_power(noise, "no beta is equivalent to another sigma")
    sigma_from, sigma_to = np.asarray(sigma_from, float), np.asarray(sigma_to, float)
    for name, sigma in {"sigma_from": sigma_from, "sigma_to": sigma_to}.items():
        if not (np.isfinite(sigma).all() and (sigma > 0).all()):
            raise ValueError(f"{name} must be positive and finite. Got {sigma}.")
    ratio = np.ravel(sigma_to / sigma_from)
    if not np.allclose(ratio, ratio[0], rtol=1e-9, atol=0):
        raise ValueError(
            "sigma_from and sigma_to must have the same ratio for every feature. It "
            f"ranges from {ratio.min():.6g} to {ratio.max():.6g}."
        )
    return float(ratio[0] ** model.exponent)
