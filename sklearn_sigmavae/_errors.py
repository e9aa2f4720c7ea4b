"""Exceptions of the package."""


class DivergenceError(ValueError):
    """Training has left what float32 can hold: the loss, or weights, are not finite.

    The estimator is then what it was before. A smaller ``learning_rate``, or a larger
    ``sigma`` or ``batch_size``, helps.

    See Also
    --------
    SigmaVAE.fit : Trains, and raises it.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_sigmavae import DivergenceError, SigmaVAE
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = SigmaVAE(2, sigma=0.3, learning_rate=1e30, max_iter=2, random_state=0)
    >>> try:
    ...     vae.fit(X)
    ... except DivergenceError:
    ...     vae.set_params(learning_rate=1e-3).fit(X)
    SigmaVAE(...)
    """


class ModelFileError(ValueError):
    """A file that cannot be loaded as a model, or as the checkpoint of a fit.

    It is damaged, of another kind, was written by a later version, or contradicts
    itself. It is also raised for a file that needs a custom ``network`` or ``noise`` to
    be loaded.

    See Also
    --------
    SigmaVAE.load : Reads a file, and raises it.

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn_sigmavae import ModelFileError, SigmaVAE
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "model.safetensors")
    ...     with open(path, "w") as file:
    ...         _ = file.write("something else")
    ...     try:
    ...         vae = SigmaVAE.load(path)
    ...     except ModelFileError:
    ...         print("No model; fit a new one.")
    No model; fit a new one.
    """


def divergence_error(epoch, learning_rate):
    """The error for a loss that is no longer finite."""
    return DivergenceError(
        f"Training diverged: the loss is no longer finite in epoch {epoch}. Lower "
        f"learning_rate (now {learning_rate:g}), or raise sigma or batch_size; if that "
        "does not help, look for outliers in X."
    )
