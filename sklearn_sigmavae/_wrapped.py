"""What estimators share that have a model of rows inside."""

from contextlib import contextmanager

from sklearn import config_context
from sklearn.base import clone
from sklearn.feature_selection import SelectorMixin
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags

from ._sigma_vae import SigmaVAE


def model_of(wrapper, restores=False):
    """The model that a wrapper fits: a clone, or by default for columns of any units.

    If it `restores` rows, its steps must keep the columns, let NaN pass and have
    ``inverse_transform``.
    """
    if wrapper.estimator is None:
        model = make_pipeline(StandardScaler(), SigmaVAE(sigma="auto"))
    else:
        model = clone(wrapper.estimator)
    vae = _find_vae(model, type(wrapper).__name__, restores)
    if vae.random_state is None:
        vae.set_params(random_state=wrapper.random_state)
    return model


def _find_vae(estimator, owner, restores):
    """The SigmaVAE, or the last step of a pipeline; ``TypeError`` if it is another."""
    while isinstance(estimator, Pipeline):
        *steps, (_, estimator) = estimator.steps
        for name, step in steps if restores else ():
            if step in (None, "passthrough"):
                continue
            if not hasattr(step, "inverse_transform"):
                lacks = "has no inverse_transform"
            elif not get_tags(step).input_tags.allow_nan:
                lacks = "takes no NaN"
            elif isinstance(step, SelectorMixin):
                lacks = "drops columns, which would come back as zeros"
            else:
                continue
            raise TypeError(
                "The steps before the SigmaVAE must keep the columns, let NaN pass and "
                f"have inverse_transform, as StandardScaler does. {name!r} {lacks}."
            )
    if not isinstance(estimator, SigmaVAE):
        raise TypeError(
            f"The 'estimator' parameter of {owner} must be a SigmaVAE or a pipeline "
            f"that ends in one. Its last step is {type(estimator).__name__}."
        )
    return estimator


@contextmanager
def unchanged_on_failure(estimator):
    """Give an estimator its attributes back if what follows fails."""
    before = vars(estimator).copy()
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


def through_pipeline(estimator, X, restore):
    """What ``restore(last_step, X)`` returns, in the units of what a pipeline gets.

    An estimator that is no pipeline counts as the last step of one.
    """
    if not isinstance(estimator, Pipeline):
        return restore(estimator, X)
    steps, last = estimator[:-1], estimator[-1]
    if not len(steps):
        return through_pipeline(last, X, restore)
    if not hasattr(steps, "inverse_transform"):
        raise TypeError(
            "The steps of a pipeline before the last must have inverse_transform, "
            f"which brings rows back to the units of X. Got {estimator!r}."
        )
    restored = through_pipeline(last, steps.transform(X), restore)
    return steps.inverse_transform(restored)


def arrays_inside():
    """Context in which transformers return arrays, whatever a caller configured."""
    # The output that a caller's configuration asks for is that of the imputer. Its
    # steps must see the same in fit and transform, whatever that is.
    return config_context(transform_output="default")
