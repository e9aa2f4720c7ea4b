"""The power law of the KL divergence in the scale of the noise."""

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import linregress
from sklearn.utils import check_array, check_consistent_length


class PowerLaw(NamedTuple):
    """A fit of KL = prefactor * sigma ** -exponent, from :meth:`SigmaPath.power_law`.

    The KL of learned models is reported to follow such a law [1]_.

    Parameters
    ----------
    exponent : float
        The exponent ν.
    prefactor : float
        KL in nats per row at sigma = 1, in the units of the data.
    exponent_error : float
        Standard error of the exponent.
    log_prefactor_error : float
        Standard error of the natural logarithm of the prefactor.
    r2 : float
        Fraction of the variance of log KL that the law explains.
    sigmas : ndarray of shape (n_used,)
        Scales that were used, in the units of the data, in decreasing order.
    curvature : float, default=nan
        Coefficient of the square of log sigma where log KL is fitted by a parabola;
        zero for a power law. It takes four scales.
    curvature_error : float, default=nan
        Its standard error.

    See Also
    --------
    SigmaPath : The path that it is fitted to.

    References
    ----------
    .. [1] S. Saremi, "Learning and Inference in Imaginary Noise Models",
       arXiv:2005.09047, 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_sigmavae import PowerLaw
    >>> law = PowerLaw(1.0, 3.0, 0.0, 0.0, 1.0, np.array([1.0, 0.5, 0.25]))
    >>> law.prefactor * law.sigmas**-law.exponent  # nats at each scale
    array([ 3.,  6., 12.])
    """

    exponent: float
    prefactor: float
    exponent_error: float
    log_prefactor_error: float
    r2: float
    sigmas: np.ndarray
    curvature: float = math.nan
    curvature_error: float = math.nan

    @classmethod
    def of_curve(cls, sigmas, kl):
        """Fit the law to scales and KL, by least squares in the logarithms.

        Parameters
        ----------
        sigmas : array-like of shape (n_sigmas,)
            At least three different scales of the noise.
        kl : array-like of shape (n_sigmas,)
            KL at each, in nats per row.

        Returns
        -------
        law : PowerLaw
            The fitted law.

        Raises
        ------
        ValueError
            If the two are not one-dimensional, finite, positive and of one length, or
            there are fewer than three different scales.

        Examples
        --------
        >>> from sklearn_sigmavae import PowerLaw
        >>> law = PowerLaw.of_curve([1.0, 0.5, 0.25], [3.0, 6.0, 12.0])
        >>> round(law.exponent, 6), round(law.prefactor, 6)
        (1.0, 3.0)
        """
        sigmas, kl = (
            check_array(values, dtype=float, ensure_2d=False, input_name=name)
            for name, values in (("sigmas", sigmas), ("kl", kl))
        )
        check_consistent_length(sigmas, kl)
        for name, values in (("sigmas", sigmas), ("kl", kl)):
            if values.ndim != 1 or not (values > 0).all():
                raise ValueError(
                    f"The {name!r} of a power law must be a one-dimensional array of "
                    f"positive numbers. Got {values} instead."
                )
        if len(np.unique(sigmas)) < 3:
            raise ValueError(
                "A power law needs at least three different scales. Got sigmas="
                f"{sigmas}. Pass more."
            )
        x, y = np.log(sigmas), np.log(kl)
        line = linregress(x, y)
        law = -line.slope, np.exp(line.intercept), line.stderr, line.intercept_stderr
        curvature = math.nan, math.nan
        if len(np.unique(sigmas)) > 3:
            coefficients, covariance = np.polyfit(x - x.mean(), y, 2, cov=True)
            curvature = float(coefficients[0]), float(np.sqrt(covariance[0, 0]))
        return cls(*map(float, law), float(line.rvalue**2), sigmas, *curvature)
