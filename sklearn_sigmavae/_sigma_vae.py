"""The estimator: validates, delegates, and returns arrays."""

import warnings
from contextlib import contextmanager
from numbers import Real
from os import PathLike

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from . import _denoise, _files, _importance
from ._model.blocks import decode, infer
from ._model.bound import RowBound, kl_of_rows
from ._model.fitted import OUTCOME
from ._model.settings import PRECISIONS, resolve_device
from ._training.callbacks import progress
from ._training.fit import ONE_EPOCH, TrainingSchedule, fit_model
from ._training.initial import Samples, warn_of_small_chunk
from ._training.optimizers import OPTIMIZERS
from ._validation import (
    COUNT,
    COUNT_OR_ZERO,
    FRACTION,
    POSITIVE,
    check_params,
    check_rows,
    check_samples,
    check_support,
    find_gaps,
    resolve_layout,
    warn_if_far,
)
from .networks import ACTIVATIONS
from .noise import ANY_NOISE, NoiseModel
from .priors import ANY_PRIOR, Prior

_NOT_NEGATIVE = Interval(Real, 0, None, closed="left")
_RECIPE = HasMethods(["encoder", "decoder"])

# Constraints of the methods that take noisy rows.
_OBSERVATION = {
    "X": "no_validation",
    "noise_scale": "no_validation",
    "noise": [*ANY_NOISE, None],
    "max_iter": [COUNT_OR_ZERO],
    "tol": [_NOT_NEGATIVE],
}


class SigmaVAE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Variational autoencoder with a noise scale σ that you choose and can score.

    A variational autoencoder [1]_ whose decoder assumes that the data carries noise of
    scale ``sigma``, while the encoder sees clean data only [2]_. Training maximizes,
    over rows :math:`x`,

    .. math::

        \mathbb{E}_{q(z|x)} \log p(x \mid \nu(z), \sigma)
        - \beta\, \mathrm{KL}(q(z|x) \,\|\, p(z))

    and starts at the exact optimum of the linear model, probabilistic PCA with noise
    variance :math:`\sigma^2` [3]_ [4]_. The nonlinear part of the networks
    grows from there. :meth:`score` is a normalized likelihood bound, so that
    ``sigma`` can be searched over and scores compare with those of
    :class:`~sklearn.decomposition.PCA`.

    Data is a table, or an array of images: (n, H, W), (n, H, W, C) or, with
    `channels_first`, (n, C, H, W). Its offset and unit do not matter, but columns in
    different units need a :class:`~sklearn.preprocessing.StandardScaler`, or one
    ``sigma`` each. Entries may be missing, NaN, in training as in all else: the bound
    of a row is that of the entries that are known [9]_, and training starts at
    probabilistic PCA of these. :class:`SigmaVAEImputer` fills the gaps.

    Parameters
    ----------
    n_components : int, default=16
        Dimension of the codes. It may exceed the number of features; unused components
        stay at the prior (``n_active_components_`` counts the others).
    sigma : float, array-like of shape (n_features,), "auto" or "mle", default=1.0
        Scale of the noise in the units of `X`, one for all features or one for each, or
        an array of the shape of a sample. A Series, or a DataFrame of one row, is
        matched to the columns of `X` by name, if they have names. Smaller values keep
        more detail and use more components.

        "auto" finds the scale in one fit: the noise of the training falls from above,
        as the residuals of the held-out rows do, and of the epochs the one is kept that
        is best for these rows, each at its own best scale. It needs ``beta=1`` and
        ``early_stopping=True``, runs all of `max_iter`, and is one scale for all
        features. A fit that goes on (``partial_fit``, ``warm_start``) keeps the scale
        of its model.

        "mle" learns the maximum-likelihood scale of the residuals of the training rows
        [5]_; "auto" mostly reaches better scores.
    beta : float, default=1.0
        Weight of the KL term in training [6]_. A model with ``beta`` is a model with
        another ``sigma`` (:func:`equivalent_beta`); scores are always taken at 1.
    noise : {"gaussian", "laplace", "bernoulli"} or NoiseModel, default="gaussian"
        Distribution of the noise. "bernoulli" is the vanilla VAE for data in [0, 1]:
        it has no ``sigma``, and its scores compare only with each other.
    prior : {"normal", "mixture"} or Prior, default="normal"
        Distribution of the codes. "mixture" stands for
        :class:`MixturePrior(n_components=10) <MixturePrior>`, which starts at a
        Gaussian mixture and is trained with the networks. It models the density of
        data with clusters, or of other shapes that are not elliptical, better.
    network : {"mlp", "conv"} or recipe, default="mlp"
        "mlp" stands for :class:`~sklearn_sigmavae.networks.MLP` with the two
        parameters below, "conv" for :class:`~sklearn_sigmavae.networks.Conv`, for
        images, with ``activation``. A recipe is an object with methods
        ``encoder(input_shape, n_components)`` and
        ``decoder(n_components, output_shape)`` that return modules: the encoder's maps
        ``(n, *input_shape)`` to ``(n, 2 * n_components)``, mean then log-variance, the
        decoder's ``(n, n_components)`` to ``(n, *output_shape)``, in centered and
        scaled units (logits for Bernoulli noise). They see rows without what lies
        outside of the principal axes. The shape is ``(n_features,)`` for
        tables and, whatever the order of `X`, ``(C, H, W)`` for images.
    hidden_layer_sizes : tuple of int, default=(256, 256)
        Widths of the encoder's hidden layers, for "mlp"; the decoder mirrors them.
        ``()`` is the linear model.
    activation : str, default="silu"
        Activation of the hidden layers, for "mlp" and "conv": "silu", "gelu", "relu",
        "elu", "leaky_relu", "softplus" or "tanh".
    linear_path : bool, default=True
        Whether to add a linear map, which starts at PCA, to each network.
    image_shape : tuple of int or None, default=None
        Shape (H, W) or (H, W, C), with `channels_first` (C, H, W), of images that are
        flattened to the rows of a two-dimensional `X`.
    channels_first : bool, default=False
        Whether images have their channels before height and width, as in torch.
    init : {"pca", "random"}, default="pca"
        Start at probabilistic PCA, with the networks at zero, or at random weights.
        With "pca" networks see coordinates along the principal axes whose variance is
        not far below that of the noise; what lies outside of these is noise to the
        model. "pca" needs ``linear_path=True``; with Bernoulli noise it starts the
        decoder at the mean of the data and all else at random, and networks see
        features. It uses a random subset of data with more than 2**23 numbers.
    optimizer : {"adam", "adamw", "sgd"} or callable, default="adam"
        A first-order optimizer's name, or a class or function that takes parameters
        and ``lr`` and returns a :class:`torch.optim.Optimizer`.
    learning_rate : float, default=2e-3
        Learning rate; its maximum for "one_cycle".
    lr_schedule : {"one_cycle", "constant"}, default="one_cycle"
        "one_cycle" [7]_ warms up to ``learning_rate`` and falls to zero over all of
        ``max_iter``. "constant" stays there and, with ``early_stopping``, may stop.
        ``warm_start`` and ``partial_fit`` always run at a constant rate.
    sigma_annealing : float, default=10.0
        With "one_cycle", training starts with noise of up to this many times ``sigma``,
        at most 0.4 standard deviations of the data, and lowers it to ``sigma`` over the
        first 60 % of the epochs [8]_. It starts lower if there are few training steps.
        1 disables annealing. It does not apply to noise without a scale, to "auto",
        which has a fall of its own, to "mle", or to linear models that start at PCA.
        ``train_loss`` in ``history_`` is at
        the noise of its epoch, ``valid_loss`` at ``sigma``.
    batch_size : int, default=128
        Rows in a training batch; a single row left over joins the batch before.
    max_iter : int or "auto", default="auto"
        Number of epochs. ``0`` keeps the start; "auto" is as many as take about 5000
        steps, but at least 20 and at most 200.
    early_stopping : bool, default=True
        Whether to hold out rows and keep the weights of the best held-out epoch, the
        start included, or train on all rows and keep the last weights.
    validation_fraction : float, default=0.1
        Fraction of the rows to hold out; ``X_val`` in :meth:`fit` replaces them.
    n_iter_no_change : int, default=10
        With ``lr_schedule="constant"``, stop after so many epochs without an
        improvement of the held-out bound.
    tol : float, default=1e-3
        Minimum improvement that counts, in nats per row.
    warm_start : bool, default=False
        Whether :meth:`fit` continues from the last one, with the current parameters.
        Those that shape the model cannot change in between.
    callbacks : list or None, default=None
        Callbacks of skorch, copied for each fit: what they record is in ``history_``.
        Those that see batches cost speed, skorch's own ``LRScheduler`` among them. To
        those that score, such as ``EpochScoring("neg_mean_squared_error")``, rows are
        X and y, and reconstructions the predictions, both as ``module_`` has them.
    checkpoint_dir : str, path-like or None, default=None
        Folder for checkpoints. A :meth:`fit` that was killed, or interrupted, and is
        started again with the same parameters and data continues from there, and ends
        with the weights it would have had, bit for bit on the CPU. A fit replaces its
        file while that takes at most about a twentieth of the time, and removes it at
        its end; any number of fits may share a folder. `callbacks` start anew.
    device : str or torch.device, default="auto"
        "auto" is CUDA where there is one, else the CPU; or any device torch knows. On
        CUDA the data stays on the device if it takes at most half of the free memory,
        and training steps run as CUDA graphs, unless callbacks see batches or a custom
        optimizer is not ``capturable``.
    precision : {"float32", "tf32", "bfloat16"}, default="float32"
        Arithmetic of training. "tf32" rounds the factors of matrix products on CUDA,
        "bfloat16" computes most of the networks in it. Scores, like all else, are in
        float32 or float64.
    random_state : int, RandomState instance or None, default=None
        Source of the initial weights, the held-out rows, and the randomness of
        training. An int makes fits on the CPU identical, at the same number of threads
        (networks with dropout: if no other fit runs in the process meanwhile).
    verbose : int, default=0
        With 1, a progress bar shows the bound in nats per row.

    Attributes
    ----------
    sigma_ : float or ndarray of the shape of `sigma`, if that is an array
        Scale of the noise in use, in the units of `X` and the order of its columns;
        None for Bernoulli noise.
    noise_ : NoiseModel
        The noise model in use.
    module_ : torch.nn.Module
        The trained module. Its rows are principal coordinates of the centered and
        scaled data; with noise other than Gaussian, or ``init="random"``, features.
    net_ : skorch.NeuralNet
        The skorch net that trained it; absent after :meth:`load`.
    history_ : skorch.history.History
        Training history: a row for each epoch, with ``train_loss`` and, if rows were
        held out, ``valid_loss``, minus the bound (its KL term weighted by ``beta``) in
        nats per row, and its terms, ``train_reconstruction``, minus the expected
        log-likelihood, and ``train_kl``, so for held-out rows, too. :meth:`score`
        improves the posteriors first and takes more points, so it is higher. With
        ``early_stopping``, ``improved`` marks the epochs that are better than all
        before, the start included. With ``sigma="auto"``,
        ``sigma`` is the best scale for the held-out rows, and ``valid_loss`` is at it.
    n_iter_ : int
        Number of epochs run.
    start_score_ : float
        Bound, with its KL term weighted by ``beta``, that the last call of :meth:`fit`
        or :meth:`partial_fit` began with; with ``init="pca"`` and a normal prior that
        of PCA at this `sigma`. It is the mean over the held-out rows, or without them
        over about 1000 training rows, and compares with minus ``valid_loss`` in
        ``history_``; NaN if the model is from a file of an earlier version.
    best_epoch_ : int
        Epoch of that call, from 1, whose weights are kept; 0 is the start.
    n_active_components_ : int
        Components of the codes in use: those whose posterior means vary over rows, by
        more than a fiftieth of what means and posteriors vary together (estimated from
        about 1000 training rows).
    reconstruction_error_ : float
        Root mean squared error of reconstructions from draws of the posterior, in the
        units of `X`: of the held-out rows, or without them of about 1000 training rows.
    n_features_in_ : int
        Number of features of the training data; for images, of all their numbers.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, if all are strings.

    See Also
    --------
    sklearn.decomposition.PCA : The linear model, its noise scale fitted.
    sklearn.decomposition.FactorAnalysis : The linear model with one scale per feature.
    equivalent_beta : The ``beta`` that stands for another ``sigma``.
    BatchedGridSearchCV : Chooses ``sigma``, and all else.
    sigma_path : Models along a path of ``sigma``.

    Notes
    -----
    Likelihoods of continuous data can mislead: constant or duplicated columns make them
    grow without bound as σ falls, and discrete data has no density at all. Only
    ``sigma="auto"`` and ``sigma="mle"`` warn of that.

    References
    ----------
    .. [1] D. P. Kingma, M. Welling, "Auto-Encoding Variational Bayes",
       arXiv:1312.6114, 2014.
    .. [2] S. Saremi, "Learning and Inference in Imaginary Noise Models",
       arXiv:2005.09047, 2020.
    .. [3] J. Lucas, G. Tucker, R. Grosse, M. Norouzi, "Don't Blame the ELBO! A Linear
       VAE Perspective on Posterior Collapse", arXiv:1911.02469, 2019.
    .. [4] M. E. Tipping, C. M. Bishop, "Probabilistic Principal Component Analysis",
       Journal of the Royal Statistical Society B 61(3), 1999.
    .. [5] O. Rybkin, K. Daniilidis, S. Levine, "Simple and Effective VAE Training with
       Calibrated Decoders", arXiv:2006.13202, 2021.
    .. [6] I. Higgins et al., "beta-VAE: Learning Basic Visual Concepts with a
       Constrained Variational Framework", ICLR 2017.
    .. [7] L. N. Smith, N. Topin, "Super-Convergence: Very Fast Training of Neural
       Networks Using Large Learning Rates", arXiv:1708.07120, 2018.
    .. [8] K. Rose, "Deterministic Annealing for Clustering, Compression,
       Classification, Regression, and Related Optimization Problems", Proceedings of
       the IEEE 86(11), 1998.
    .. [9] A. Nazabal, P. M. Olmos, Z. Ghahramani, I. Valera, "Handling Incomplete
       Heterogeneous Data using VAEs", arXiv:1807.03653, 2018.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_sigmavae import SigmaVAE
    >>> X, _ = load_digits(return_X_y=True)
    >>> vae = SigmaVAE(n_components=10, sigma=3.0, max_iter=2, random_state=0).fit(X)
    >>> codes = vae.transform(X)
    >>> codes.shape
    (1797, 10)
    >>> vae.inverse_transform(codes).shape
    (1797, 64)
    >>> vae.n_active_components_
    10

    The noise scale found by the fit itself, here in two of the 200 epochs that it would
    take by default:

    >>> vae.set_params(sigma="auto").fit(X).sigma_ < 3
    True
    """

    _parameter_constraints: dict = {
        "n_components": [COUNT],
        "sigma": [POSITIVE, "array-like", StrOptions({"auto", "mle"})],
        "beta": [POSITIVE],
        "noise": ANY_NOISE,
        "prior": ANY_PRIOR,
        "network": [StrOptions({"mlp", "conv"}), _RECIPE],
        "hidden_layer_sizes": ["array-like", COUNT],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "linear_path": ["boolean"],
        "image_shape": ["array-like", None],
        "channels_first": ["boolean"],
        "init": [StrOptions({"pca", "random"})],
        "optimizer": [StrOptions(set(OPTIMIZERS)), callable],
        "learning_rate": [POSITIVE],
        "lr_schedule": [StrOptions({"one_cycle", "constant"})],
        "sigma_annealing": [Interval(Real, 1, None, closed="left")],
        "batch_size": [COUNT],
        "max_iter": [COUNT_OR_ZERO, StrOptions({"auto"})],
        "early_stopping": ["boolean"],
        "validation_fraction": [FRACTION],
        "n_iter_no_change": [COUNT],
        "tol": [_NOT_NEGATIVE],
        "warm_start": ["boolean"],
        "callbacks": [list, None],
        "checkpoint_dir": [str, PathLike, None],
        "device": [str, torch.device],
        "precision": [StrOptions(set(PRECISIONS))],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        n_components=16,
        *,
        sigma=1.0,
        beta=1.0,
        noise="gaussian",
        prior="normal",
        network="mlp",
        hidden_layer_sizes=(256, 256),
        activation="silu",
        linear_path=True,
        image_shape=None,
        channels_first=False,
        init="pca",
        optimizer="adam",
        learning_rate=2e-3,
        lr_schedule="one_cycle",
        sigma_annealing=10.0,
        batch_size=128,
        max_iter="auto",
        early_stopping=True,
        validation_fraction=0.1,
        n_iter_no_change=10,
        tol=1e-3,
        warm_start=False,
        callbacks=None,
        checkpoint_dir=None,
        device="auto",
        precision="float32",
        random_state=None,
        verbose=0,
    ):
        self.n_components = n_components
        self.sigma = sigma
        self.beta = beta
        self.noise = noise
        self.prior = prior
        self.network = network
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.linear_path = linear_path
        self.image_shape = image_shape
        self.channels_first = channels_first
        self.init = init
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.lr_schedule = lr_schedule
        self.sigma_annealing = sigma_annealing
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start
        self.callbacks = callbacks
        self.checkpoint_dir = checkpoint_dir
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose

    @property
    def net_(self):
        """skorch.NeuralNet : The net that trained the model."""
        check_is_fitted(self)
        if self._model.net is None:
            raise AttributeError(
                "A SigmaVAE from a file has no net: files hold what inference needs."
            )
        return self._model.net

    @property
    def module_(self):
        """torch.nn.Module : The trained module, of principal coordinates."""
        check_is_fitted(self)
        return self._model.module

    @property
    def history_(self):
        """skorch.history.History : A row for each epoch."""
        check_is_fitted(self)
        return self._model.history

    # Fitting

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, *, X_val=None):
        """Fit the model to data.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or images
            Training data, at least two rows, in any units. NaN stands for a missing
            entry; each column needs one that is known. Unsigned integers of 8 or 16
            bits are converted batch by batch.
        y : Ignored
            Present for API consistency.
        X_val : array-like, of samples of the same shape, default=None
            Held-out rows to use instead of a random split, for grouped or ordered data.
            With ``early_stopping=False`` their loss is only recorded. A pipeline
            transforms them with ``Pipeline(..., transform_input=["X_val"])``, metadata
            routing enabled and ``set_fit_request(X_val=True)``.

        Returns
        -------
        self : SigmaVAE
            The fitted estimator.

        Raises
        ------
        ValueError, TypeError
            If a parameter or the data is not valid, before training starts.
        DivergenceError
            If the loss becomes non-finite, or ends far above that of the start. After
            this, as after any error, the estimator is what it was before.
        MemoryError
            If the device runs out of memory.
        OSError
            If ``checkpoint_dir`` cannot be written to.
        ModelFileError
            If there is a checkpoint of this fit that cannot be read.

        Warns
        -----
        UserWarning
            If `sigma` hides all of the data at the start, or is a tenth of the
            residuals; if no component is in use at the end; if float32 does not resolve
            `sigma` beside a large column; if `X_val` lies far outside of `X`, as it
            does in other units.
        ConvergenceWarning
            If no epoch improved on the start, if training ended below it or, at a
            constant rate, while the held-out bound was rising, or if a `sigma` of
            "auto" or "mle" meets a likelihood that grows without bound.

        Examples
        --------
        Choose the best epoch by every fifth row:

        >>> import numpy as np
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import SigmaVAE
        >>> X, _ = load_iris(return_X_y=True)
        >>> held_out = np.arange(150) % 5 == 0
        >>> vae = SigmaVAE(2, sigma=0.3, max_iter=5, random_state=0)
        >>> vae = vae.fit(X[~held_out], X_val=X[held_out])
        >>> bool(-3.5 < -vae.history_[-1, "valid_loss"] < -2.5)  # nats per row
        True
        """
        self._fit(X, X_val)
        # Last, so that nothing is lost where warnings are errors.
        for remark in self._model.remarks:
            warnings.warn(remark.text, remark.category, stacklevel=3)
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y=None):
        """Train for one epoch on these rows, at a constant learning rate.

        The rows of the first call fix the units of the networks and, with
        ``init="pca"``, the start and the principal axes: take at least a few hundred,
        more than components, and shuffle the data before it is cut into chunks. A first
        chunk with fewer than two rows per feature keeps all directions. With
        ``sigma="mle"`` the scale is that of the last chunk; "auto" needs :meth:`fit`
        before, whose scale is kept.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or images
            Training data. The first call needs at least two rows.
        y : Ignored
            Present for API consistency.

        Returns
        -------
        self : SigmaVAE
            The fitted estimator.

        Raises
        ------
        ValueError, TypeError
            As for :meth:`fit`, or if a parameter that shapes the model has changed
            since the last call.
        DivergenceError
            If the loss becomes non-finite, as for :meth:`fit`.

        Warns
        -----
        UserWarning
            If the first chunk has fewer than 10 rows, or the rows are far larger, or
            smaller, than those of the first chunk, or vary by more than the noise in
            directions in which those did not.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import SigmaVAE
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, sigma=0.3, random_state=0)
        >>> for chunk in (X[::3], X[1::3], X[2::3]):
        ...     vae = vae.partial_fit(chunk)
        >>> vae.n_iter_
        3
        """
        continues = self.__sklearn_is_fitted__()
        with self._unchanged_on_failure():
            # scikit-learn's decorator does it before the first call only.
            self._validate_params()
            minimum = 1 if continues else 2
            samples = self._check_samples(X, continues=continues, minimum=minimum)
            if not continues:
                warn_of_small_chunk(len(samples.X))
            if not hasattr(self, "_random_state"):
                self._random_state = check_random_state(self.random_state)
            self._train(samples, self._random_state, ONE_EPOCH, continues)
        return self

    # Inference

    def transform(self, X):
        """Posterior means: the codes of the rows.

        They come from the encoder, which training has shown clean data only. Codes of
        rows with noise up to about ``sigma_`` still mean something; for more noise, or
        a scale that is known, see :meth:`posterior`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or images
            Data. Rows with missing entries, NaN, are completed for the encoder by the
            linear model that training started from.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            Codes, in units of the prior's standard deviation; of the dtype of `X` if
            that is float32 or float64, float32 for unsigned integers.

        Raises
        ------
        NotFittedError, ValueError, TypeError
            If the estimator is not fitted, or `X` is not valid: another number of
            features or shape, infinity, sparse, or outside of [0, 1] for Bernoulli
            noise.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn_sigmavae import SigmaVAE
        >>> X, y = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, sigma=0.3, max_iter=2, random_state=0)
        >>> model = make_pipeline(vae, LogisticRegression()).fit(X, y)
        >>> bool(model.score(X, y) > 0.9)
        True
        """
        return self._infer(lambda vae, x: vae(vae.units.rotate(x)), X)

    def inverse_transform(self, Z):
        """Decode codes: the mean of the data given them.

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_components)
            Codes.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features), or images
            Data in the shape and units of the training data.

        Raises
        ------
        NotFittedError, ValueError, TypeError
            If the estimator is not fitted, or `Z` is not valid: another number of
            columns, NaN, or sparse.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import SigmaVAE
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, sigma=0.3, max_iter=2, random_state=0).fit(X)
        >>> restored = vae.inverse_transform(vae.transform(X))
        >>> bool(abs(restored - X).mean() < 0.5 * X.std(axis=0).mean())
        True
        """
        check_is_fitted(self)
        Z = check_array(Z, dtype=[np.float64, np.float32], input_name="Z")
        if Z.shape[1] != self._n_features_out:
            raise ValueError(
                f"Z has {Z.shape[1]} columns, but this SigmaVAE has "
                f"n_components={self._n_features_out}; pass codes as transform returns "
                "them."
            )
        return self._decode(Z).astype(Z.dtype, copy=False)

    @check_params(_OBSERVATION | {"refine": ["boolean", None]})
    def posterior(
        self, X, *, noise_scale=None, noise=None, refine=None, max_iter=40, tol=1e-2
    ):
        """Mean and standard deviation of the posterior of the codes.

        For clean rows they come from the encoder. For noisy rows, or rows with missing
        entries (NaN), the bound is maximized over mean and standard deviation, row by
        row, with the decoder held fixed and the noise at the given scale. Rows for
        which the encoder's posterior has the greater bound keep it.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or images
            Rows, clean or noisy. NaN stands for a missing entry.
        noise_scale : float, array-like (shapes below) or "estimate", default=None
            Scale of the noise that `X` carries, in its units: one number, or an array
            of shape (n_features,), (n_samples, 1) or (n_samples, n_features), or with
            the shape of samples for that of features. A Series, and the columns of a
            DataFrame, are matched to those of `X` by name, rows by position. "estimate"
            finds one number, at which the bound is greatest. None stands for
            ``sigma_``, which only counts where the posterior is refined.
        noise : {"gaussian", "laplace"} or NoiseModel, default=None
            Distribution of the noise that `X` carries; None for that of the model.
        refine : bool, default=None
            Whether to refine. None refines if there is noise or something is missing;
            False takes the encoder's answer for rows that the linear model completes.
        max_iter : int, default=40
            Number of steps of the refinement.
        tol : float, default=1e-2
            Rows stop earlier if their gradient promises less than this, in nats.

        Returns
        -------
        mean, std : ndarray of shape (n_samples, n_components)
            Means and standard deviations, in units of those of the prior.

        Raises
        ------
        NotFittedError, ValueError, TypeError
            If the estimator is not fitted, or `X` or another parameter is not valid, or
            ``refine=False`` with noise.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import SigmaVAE
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, sigma=0.3, max_iter=2, random_state=0).fit(X)
        >>> _, clean = vae.posterior(X)
        >>> _, noisy = vae.posterior(X + 1.0, noise_scale=2.0)
        >>> bool(noisy.mean() > clean.mean())  # of noisy rows less is known
        True
        """
        check_is_fitted(self)
        rows = self._check_observed(X)
        noise_scale = self._scale_to_fill(rows, noise_scale, noise)
        given = noise_scale is not None or noise is not None
        if refine is False and given:
            raise ValueError(
                "refine=False takes the posterior from the encoder, which knows clean "
                "data only; it goes with neither noise_scale nor noise."
            )
        refined = np.full(len(rows), bool(refine or given))
        if refine is None:
            refined |= np.isnan(rows).any(axis=1)
        found = np.empty(
            (len(rows), 2, self._n_features_out), np.result_type(rows, np.float32)
        )
        if refined.any():
            # Scales of the noise may be those of the rows.
            some = slice(None) if refined.all() else refined
            arguments = noise_scale, noise, max_iter, tol
            *_, found[some] = self._refine(rows[some], *arguments, prefers=True)
        if not refined.all():
            found[~refined] = infer(
                self.module_, lambda vae, x: vae.posterior(x).stack(), rows[~refined]
            )
        return found[:, 0], np.exp(0.5 * found[:, 1])

    @check_params(_OBSERVATION)
    def denoise(self, X, *, noise_scale="estimate", noise=None, max_iter=40, tol=1e-2):
        """Clean rows from noisy or incomplete ones.

        They are decoded from the mean of the refined :meth:`posterior`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or images
            Noisy rows. NaN, or null, stands for a missing entry; to fill these alone,
            see :class:`SigmaVAEImputer`.
        noise_scale : float, array-like (shapes below) or "estimate", default="estimate"
            Scale of the noise, in the units of `X`, of a shape that :meth:`posterior`
            takes. None stands for ``sigma_``. Bernoulli noise has no scale: "estimate"
            fills gaps as None does, and raises if there are none.
        noise : {"gaussian", "laplace"} or NoiseModel, default=None
            Distribution of the noise; None for that of the model.
        max_iter : int, default=40
            Number of steps of the refinement.
        tol : float, default=1e-2
            Rows stop earlier if their gradient promises less than this, in nats.

        Returns
        -------
        X : ndarray, same shape as `X`
            In its units, and of its dtype, or float32 for integers.

        Raises
        ------
        NotFittedError, ValueError, TypeError
            If the estimator is not fitted, or `X` or another parameter is not valid.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn.datasets import load_digits
        >>> from sklearn_sigmavae import SigmaVAE
        >>> X = load_digits().data
        >>> vae = SigmaVAE(16, sigma=2.0, max_iter=1, random_state=0).fit(X[100:])
        >>> X = X[:100]
        >>> Y = X + np.random.default_rng(0).normal(scale=8, size=X.shape)
        >>> restored = vae.denoise(Y, noise_scale=8)
        >>> bool(((restored - X) ** 2).mean() < 0.3 * ((Y - X) ** 2).mean())
        True
        """
        check_is_fitted(self)
        rows = self._check_observed(X)
        noise_scale = self._scale_to_fill(rows, noise_scale, noise)
        *_, found = self._refine(rows, noise_scale, noise, max_iter, tol)
        return self._decode(found[:, 0]).astype(found.dtype, copy=False)

    @check_params({"X": "no_validation", "noise": [*ANY_NOISE, None]})
    def estimate_noise_scale(self, X, *, noise=None):
        """Scale of the noise that rows carry, one number for all.

        The scale at which the bound is greatest, less the error of the model on clean
        rows, ``reconstruction_error_``, by a difference of variances. Noise far below
        that error cannot be seen.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or images
            Noisy rows. NaN stands for a missing entry.
        noise : {"gaussian", "laplace"} or NoiseModel, default=None
            Distribution of the noise; None for that of the model.

        Returns
        -------
        noise_scale : float
            In the units of `X`; for Gaussian noise its standard deviation.

        Raises
        ------
        NotFittedError, ValueError, TypeError
            If the estimator is not fitted, or `X` or `noise` is not valid, all of `X`
            is missing, or the noise, or that of the model, has no scale.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn.datasets import load_digits
        >>> from sklearn_sigmavae import SigmaVAE
        >>> X = load_digits().data[:500]
        >>> vae = SigmaVAE(16, sigma=2.0, max_iter=1, random_state=0).fit(X)
        >>> Y = X + np.random.default_rng(0).normal(scale=8, size=X.shape)
        >>> 7.5 < vae.estimate_noise_scale(Y) < 8.5
        True
        """
        check_is_fitted(self)
        rows = self._check_observed(X)
        noise = _denoise.observation_noise(self._model, noise)
        scale = _denoise.estimate_scale(self.module_, noise, rows)
        factor = np.sqrt(noise.variance_factor)
        excess = 1 - (self.reconstruction_error_ / (factor * scale)) ** 2
        return float(scale * np.sqrt(max(excess, 0.0)))

    def kl_divergence(self, X):
        """KL divergence of the posterior from the prior.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or images
            Clean data, NaN where an entry is missing.

        Returns
        -------
        kl : ndarray of shape (n_samples, n_components) or (n_samples,)
            Information of each component about each row, in nats. With a prior other
            than the normal, that of all components together, estimated at fixed points.

        Raises
        ------
        NotFittedError, ValueError, TypeError
            If the estimator is not fitted, or `X` is not valid, see :meth:`transform`.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import SigmaVAE
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(3, sigma=0.3, max_iter=2, random_state=0).fit(X)
        >>> (vae.kl_divergence(X).mean(axis=0) > 0.1).tolist()
        [True, True, False]
        """
        check_is_fitted(self)
        kl = kl_of_rows(self.module_.prior, self._n_features_out)
        return self._infer(kl, X)

    @check_params(
        {
            "X": "no_validation",
            "n_importance_samples": [COUNT, None],
            "refine": ["boolean"],
        }
    )
    def score_samples(self, X, *, n_importance_samples=None, refine=True):
        """Lower bound on the log-likelihood of each row.

        It is the bound at ``beta=1``, whatever ``beta`` trained the model, so it
        compares across ``sigma`` and with ``PCA.score``. Of rows with missing entries
        it bounds the likelihood of those that are known. The expectation is taken over
        fixed points, which is exact for a linear decoder with Gaussian noise and a
        normal prior, and off by a few hundredths of a nat at most otherwise.

        The encoder's posterior can be far from the best one, most of all for rows that
        are unlike the training data, so its mean is first improved by a few gradient
        steps. For a linear model with Gaussian noise and a normal prior it is already
        the best.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or images
            Clean data, NaN where an entry is missing.
        n_importance_samples : int, default=None
            Number of samples of the tighter importance-weighted bound [1]_.
        refine : bool, default=True
            Whether to improve the means of the encoder's posteriors [2]_. Without it
            the bound is that of the training, and of :meth:`kl_divergence`.

        Returns
        -------
        score : ndarray of shape (n_samples,), float64
            In nats.

        Raises
        ------
        NotFittedError, ValueError, TypeError
            If the estimator is not fitted, or `X` or another argument is not valid.

        References
        ----------
        .. [1] Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted
           Autoencoders", arXiv:1509.00519, 2016.
        .. [2] C. Cremer, X. Li, D. Duvenaud, "Inference Suboptimality in Variational
           Autoencoders", arXiv:1801.03558, 2018.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import SigmaVAE
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, sigma=0.3, max_iter=2, random_state=0).fit(X)
        >>> X[[7, 77]] += 5
        >>> sorted(np.argsort(vae.score_samples(X))[:2].tolist())
        [7, 77]
        """
        check_is_fitted(self)
        model, k = self._model, self._n_features_out
        bound = RowBound(
            *(model.noise, model.scale, k, n_importance_samples),
            beta=model.beta if refine else None,
        )
        scores = self._infer(bound, X)
        return scores.astype(np.float64) - self.module_.units.log_volume

    @check_params({"X": "no_validation", "refine": ["boolean"]})
    def score_features(self, X, *, refine=True):
        """Expected log-density of each entry: what makes a row likely or not.

        Summed over a row, and less the KL divergence of its posterior, they are its
        :meth:`score_samples`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or images
            Clean data, NaN where an entry is missing.
        refine : bool, default=True
            Whether to improve the means of the encoder's posteriors, as in
            :meth:`score_samples`. Without it the divergence is that of
            :meth:`kl_divergence`.

        Returns
        -------
        score : ndarray of the shape of `X`, float64
            In nats; zero where an entry is missing.

        Raises
        ------
        NotFittedError, ValueError, TypeError
            If the estimator is not fitted, or `X` or `refine` is not valid.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import SigmaVAE
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, sigma=0.3, max_iter=2, random_state=0).fit(X)
        >>> X[7, 1] += 5  # a sepal that is too wide
        >>> int(vae.score_features(X)[7].argmin())
        1
        """
        X = self._check_clean(X)
        model, units = self._model, self.module_.units
        bound = RowBound(
            *(model.noise, model.scale, self._n_features_out, None),
            beta=model.beta if refine else None,
        )
        scores = infer(self.module_, bound.of_features, X)
        scores = scores.astype(np.float64) - np.where(
            np.isnan(X), 0, np.log(units.scale)
        )
        return self.module_.layout.to_samples(scores)

    def score(self, X, y=None):
        """Mean of :meth:`score_samples`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or images
            Clean data, NaN where an entry is missing.
        y : Ignored
            Present for API consistency.

        Returns
        -------
        score : float
            Lower bound on the mean log-likelihood of a row, in nats.

        Raises
        ------
        NotFittedError, ValueError, TypeError
            If the estimator is not fitted, or `X` is not valid.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from sklearn_sigmavae import SigmaVAE
        >>> X = load_digits().data
        >>> vae = SigmaVAE(16, sigma=2.0, max_iter=3, random_state=0).fit(X[200:])
        >>> start = SigmaVAE(16, sigma=2.0, max_iter=0).fit(X[200:])
        >>> vae.score(X[:200]) > start.score(X[:200])
        True
        """
        return float(self.score_samples(X).mean())

    @check_params(
        {
            "n_samples": [COUNT],
            "add_noise": ["boolean"],
            "random_state": ["random_state"],
        }
    )
    def sample(self, n_samples=1, *, add_noise=False, random_state=None):
        """Draw from the model.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows to draw.
        add_noise : bool, default=False
            Whether to draw noisy data, of the density that :meth:`score_samples`
            bounds, or clean data.
        random_state : int, RandomState instance or None, default=None
            Source of randomness; pass an int for reproducible draws.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features), or images
            Data in the shape and units of the training data, in float64.

        Raises
        ------
        NotFittedError, ValueError
            If the estimator is not fitted, or a parameter is not valid.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import SigmaVAE
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, sigma=0.3, max_iter=2, random_state=0).fit(X)
        >>> vae.sample(10, random_state=0).shape
        (10, 4)
        """
        check_is_fitted(self)
        random_state = check_random_state(random_state)
        prior = self.module_.prior
        Z = prior.sample(n_samples, self._n_features_out, random_state)
        return self._decode(Z, noise_from=random_state if add_noise else None)

    # Files

    def save(self, path):
        """Write the fitted model to one file, without pickle.

        The file, in the `safetensors format <https://huggingface.co/docs/safetensors>`_,
        holds what inference needs, the parameters and the history, but no training
        data. A crash leaves the file that was there before, or the new one, whole.

        Parameters
        ----------
        path : str or path-like
            The file.

        Raises
        ------
        NotFittedError, ValueError
            If the estimator is not fitted, or a parameter is not valid.
        OSError
            If it cannot be written. A previous file is still there.
        TypeError
            If a custom network has values of a type that files cannot hold, or `path`
            is not a path.

        Warns
        -----
        UserWarning
            If ``callbacks``, ``optimizer`` or ``random_state`` are objects: the loaded
            estimator has their defaults.

        Examples
        --------
        >>> import os, tempfile
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import SigmaVAE
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, sigma=0.3, max_iter=2, random_state=0).fit(X)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     vae.save(os.path.join(folder, "iris.safetensors"))
        ...     os.listdir(folder)
        ['iris.safetensors']
        """
        check_is_fitted(self)
        self._validate_params()
        _files.write_model(path, *_files.describe(self))

    @classmethod
    @check_params(
        {
            "network": [_RECIPE, None],
            "noise": [NoiseModel, None],
            "prior": [Prior, None],
        }
    )
    def load(cls, path, *, device="auto", network=None, noise=None, prior=None):
        """Read a model that :meth:`save` wrote.

        Nothing in the file is executed, so it is safe to load files from strangers.
        The estimator has no ``net_``; :meth:`partial_fit` and ``warm_start`` continue
        from the weights, with a fresh optimizer.

        Parameters
        ----------
        path : str or path-like
            The file.
        device : str or torch.device, default="auto"
            Where the model is to be, wherever it was trained.
        network : recipe, default=None
            The recipe, if it is a custom one: files name its class, but hold no code.
        noise : NoiseModel, default=None
            The noise model, if it is of a custom class.
        prior : Prior, default=None
            The prior, if it is of a custom class.

        Returns
        -------
        vae : SigmaVAE
            The fitted estimator.

        Raises
        ------
        ModelFileError
            If the file is damaged, of another kind or of a later version, or needs a
            `network`, `noise` or `prior`.
        OSError
            If there is no such file, or it cannot be read.
        ValueError, TypeError
            If a parameter is not valid.

        Warns
        -----
        UserWarning
            If `network`, `noise` or `prior` is of another class than the file names.

        Examples
        --------
        >>> import os, tempfile
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import SigmaVAE
        >>> from sklearn_sigmavae.networks import MLP
        >>> class Narrow(MLP):
        ...     def __init__(self, hidden_layer_sizes=(8,), activation="tanh"):
        ...         super().__init__(hidden_layer_sizes, activation)
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, sigma=0.3, network=Narrow(), max_iter=2).fit(X)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "iris.safetensors")
        ...     vae.save(path)
        ...     same = SigmaVAE.load(path, device="cpu", network=Narrow())
        >>> same.transform(X).shape
        (150, 2)
        """
        resolve_device(device)
        header, arrays = _files.read_model(path)
        with _files.explain_file(path):
            return _files.restore(
                cls,
                header,
                arrays,
                device=device,
                network=network,
                noise=noise,
                prior=prior,
            )

    def __reduce_ex__(self, protocol):
        # Pickles and copies hold everything, also the net, to continue training.
        return _with_attributes, (type(self), vars(self).copy())

    def __getstate__(self):
        """State of plain values and arrays, what skops puts in its files."""
        self._validate_params()
        if not self.__sklearn_is_fitted__():
            return {"params": self.get_params(deep=False)}
        header, arrays = _files.describe(self)
        return {"header": header, "arrays": arrays} | _files.custom_parts(self)

    def __setstate__(self, state):
        with _files.explain_file("The state"):
            if "params" in state:
                self.__init__(**state["params"])
                self._validate_params()
            else:
                restored = _files.restore(type(self), device="auto", **state)
                vars(self).update(vars(restored))

    # Private

    @property
    def _n_features_out(self):
        return self.module_.n_components

    @property
    def _feature_names(self):
        return getattr(self, "feature_names_in_", None)

    def __sklearn_is_fitted__(self):
        return hasattr(self, "_model")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    _doc_link_module = "sklearn_sigmavae"
    _doc_link_template = (
        "https://sklearn-sigmavae.readthedocs.io/en/stable/generated/"
        "sklearn_sigmavae.{estimator_name}.html"
    )

    def _fit(self, X, X_val=None):
        """Fit; the caller issues the warnings."""
        continues = self.warm_start and self.__sklearn_is_fitted__()
        with self._unchanged_on_failure():
            vars(self).pop("_random_state", None)
            samples = self._check_samples(X, X_val, continues=continues)
            random_state = check_random_state(self.random_state)
            schedule = TrainingSchedule.of_fit(self, len(samples.X))
            self._train(samples, random_state, schedule, continues)
        return self

    def _check_samples(self, X, X_val=None, *, continues=False, minimum=2):
        """Training data as ``Samples``; sets ``n_features_in_`` and names."""
        with_gaps = {"ensure_all_finite": "allow-nan"}
        kwargs = with_gaps | {"ensure_min_samples": minimum}
        if continues:
            layout = self.module_.layout
            X = check_rows(self, X, layout, **kwargs)
        else:
            X = check_samples(self, X, reset=True, **kwargs)
            layout = resolve_layout(X.shape[1:], self.image_shape, self.channels_first)
            self.n_features_in_ = layout.n_features
            X = layout.to_rows(X)
        has_gaps = find_gaps(X, self._feature_names, must_be_known=not continues)
        if X_val is not None:
            X_val = check_rows(self, X_val, layout, name="X_val", **with_gaps)
            has_gaps |= find_gaps(X_val, self._feature_names, must_be_known=False)
            warn_if_far(X, X_val)
        return Samples(X, X_val, layout, self._feature_names, has_gaps)

    @contextmanager
    def _unchanged_on_failure(self):
        before = vars(self).copy()
        random_state = before.get("_random_state")
        position = random_state and random_state.get_state()
        try:
            yield
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            if random_state is not None:
                random_state.set_state(position)
            raise

    def _train(self, samples, random_state, schedule, continues):
        previous = self._model if continues else None
        self._adopt(fit_model(self, samples, random_state, schedule, previous))

    def _adopt(self, model, like=None):
        """Take over a fitted model, and the features that another estimator saw."""
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(like, name):
                setattr(self, name, getattr(like, name))
        self._model = model
        self.noise_, self.sigma_ = model.noise, model.sigma
        for name in OUTCOME:
            setattr(self, f"{name}_", getattr(model, name))

    def _infer(self, function, X):
        return infer(self.module_, function, self._check_clean(X))

    def _check_clean(self, X):
        """Rows for what runs block by block, and sees there whether all are finite."""
        check_is_fitted(self)
        X = check_rows(self, X, self.module_.layout, ensure_all_finite=False)
        check_support(self.noise_, X)
        return X

    def _decode(self, Z, noise_from=None):
        units = self.module_.units
        location = units.rotate_back(decode(self.module_, Z))
        if noise_from is None:
            x = self.noise_.mean(location)
        else:
            x = self.noise_.sample(location, self._model.scale, noise_from)
        return self.module_.layout.to_samples(units.to_data(x))

    def _check_observed(self, X):
        """Noisy rows, with NaN where an entry is missing."""
        X = check_rows(self, X, self.module_.layout, ensure_all_finite="allow-nan")
        if not self.noise_.has_scale:
            check_support(self.noise_, X)
        return X

    def _scale_to_fill(self, rows, noise_scale, noise):
        """A scale of the noise, or None where "estimate" is to fill gaps alone."""
        estimates = isinstance(noise_scale, str) and noise is None
        if estimates and not self.noise_.has_scale and np.isnan(rows).any():
            return None
        return noise_scale

    def _expect(self, X):
        """Mean of rows given what is known of them, without noise."""
        found = self._refine(self._check_observed(X))
        units, rows = self.module_.units, _importance.expected_rows(*found)
        return self.module_.layout.to_samples(units.to_data(rows))

    def _draw(self, X, random_state):
        """A draw of whole rows given what is known of them, noise included."""
        vae, observed, found = self._refine(self._check_observed(X))
        codes = _importance.draw_codes(vae, observed, found, random_state)
        return self._decode(codes, noise_from=random_state)

    def _refine(
        self, rows, noise_scale=None, noise=None, max_iter=40, tol=1e-2, prefers=False
    ):
        """A module, observations of noisy rows for it, and each refined posterior.

        The encoder's, where that is better, if the noise is that of the model, or with
        ``prefers``.
        """
        model, names = self._model, self._feature_names
        vae, observed = _denoise.observe(model, rows, noise_scale, noise, names)
        refine, n_steps = _denoise.refined_posterior, len(rows) * max_iter
        with progress(n_steps, self.verbose, "SigmaVAE", "step") as bar:
            found = refine(vae, observed, max_iter, tol, bar)
        if prefers or noise_scale is None:
            found = _denoise.prefer_encoder(vae, observed, found)
        return vae, observed, found


def _with_attributes(cls, attributes):
    """Estimator with attributes, for pickle."""
    estimator = cls.__new__(cls)
    vars(estimator).update(attributes)
    return estimator
