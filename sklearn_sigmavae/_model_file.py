"""What a file holds of a fitted estimator, and how an estimator comes of it.

Classes are named, never pickled: those of this package are known, others come from the
caller. The file's words are checked before memory is taken for them.
"""

import math
import platform
import warnings
from dataclasses import dataclass
from numbers import Real
from reprlib import repr as short

import numpy as np
import sklearn
import skorch
import torch
from skorch.history import History

from ._layout import Layout
from ._module import VAE, LinearTails, Units
from ._persistence import Header, ModelFileError, decode, encode
from ._rng import isolated_rng
from ._start import check_scale_in_range
from ._validation import in_feature_order, resolve_device
from ._version import __version__
from .networks import (
    RECIPES,
    LinearPathEncoder,
    class_name,
    known_recipe,
    rebuild_networks,
)
from .noise import NOISES, NoiseModel

# Raised by one when files are no longer what readers of the present one expect; new
# entries that these can do without do not count.
FORMAT = 2

# What a training has found.
OUTCOME = (
    "n_active_components_",
    "reconstruction_error_",
    "start_score_",
    "best_epoch_",
)

# Parameters that only training needs and that may be objects of any kind.
_LEFT_OUT_IF_OBJECTS = ("callbacks", "optimizer", "random_state")

# Those that may be objects: of these classes, or of the caller's own, who then passes
# them again.
_KNOWN = {"network": RECIPES, "noise": NOISES}

# Where the model runs, and where its checkpoints are, is for each machine to say.
_OF_THE_MACHINE = ("device", "checkpoint_dir")

# What ``set_output`` takes.
_OUTPUTS = "default", "pandas", "polars"

# Of longer histories the last epochs are kept: as Python's objects they take far more
# memory than in a file.
_MAX_EPOCHS, _COLUMNS = 20_000, 20


@dataclass(eq=False)
class LoadedModel:
    """A model without the net that trained it: what such a net tells, less its state.

    Attributes
    ----------
    module_ : VAE
        The module.
    history : skorch.history.History
        Of the training.
    structure : dict
        See :func:`~sklearn_sigmavae._start.structure`.
    noise : NoiseModel
        The noise.
    scale : float or None
        Its scale, in internal units.
    n_active_components_, reconstruction_error_, start_score_, best_epoch_
        As of the net.
    """

    module_: VAE
    history: History
    structure: dict
    noise: NoiseModel
    scale: float
    n_active_components_: int
    reconstruction_error_: float
    start_score_: float
    best_epoch_: int


def describe(estimator):
    """Header and arrays for a fitted estimator.

    Parameters
    ----------
    estimator : SigmaVAE
        The estimator.

    Returns
    -------
    header : dict
    arrays : dict of ndarray

    Raises
    ------
    ValueError
        If names of features cannot be kept.
    """
    model, arrays = estimator._model, {}
    vae, units = model.module_, model.module_.units
    for name, value in vae.state_dict().items():
        arrays[f"module.{name}"] = value.cpu().numpy()
    if vae.tails is not None:
        for name, value in vae.tails.named_buffers():
            arrays[f"tails.{name}"] = value.cpu().numpy()
    arrays["units.offset"] = units.offset
    # One number if all are equal, as they mostly are.
    arrays["units.scale"] = units.scale if np.ptp(units.scale) else units.scale[:1]
    if estimator.sigma_ is not None:
        arrays["sigma"] = np.array(estimator.sigma_, dtype=np.float64)
    header = {
        "format": FORMAT,
        "versions": {
            "sklearn_sigmavae": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
            "skorch": skorch.__version__,
            "torch": str(torch.__version__),
        },
        "params": _describe_params(estimator, arrays),
        "n_components": vae.n_components,
        "sample_shape": list(vae.layout.sample_shape),
        "input_shape": list(vae.layout.input_shape),
        "channels_last": vae.layout.channels_last,
        "network": _describe_object(vae.recipe, "network", "network", arrays),
        "linear_path": isinstance(vae.encoder, LinearPathEncoder),
        "noise": _describe_object(model.noise, "noise", "noise", arrays),
        "structure": encode(list(model.structure.items()), "structure", arrays),
        **{name.removesuffix("_"): getattr(model, name) for name in OUTCOME},
        # A file of format 1, from which the model may come, has none.
        "start_score": None if math.isnan(model.start_score_) else model.start_score_,
        "n_iter": estimator.n_iter_,
        "output": getattr(estimator, "_sklearn_output_config", {}).get("transform"),
    }
    describe_history(model.history, arrays, _MAX_EPOCHS)
    if hasattr(estimator, "feature_names_in_"):
        names = "\0".join(estimator.feature_names_in_)
        if names.count("\0") >= estimator.n_features_in_:
            raise ValueError("A file cannot hold names of features with a zero byte.")
        arrays["feature_names"] = np.frombuffer(names.encode(), dtype=np.uint8)
    return header, arrays


def _describe_params(estimator, arrays):
    described = {}
    for name, value in estimator.get_params(deep=False).items():
        if name in _OF_THE_MACHINE:
            continue
        if name in _KNOWN and not isinstance(value, str):
            described[name] = _describe_object(value, name, f"params.{name}", arrays)
            continue
        if name == "sigma":
            # Files have no labels.
            value = in_feature_order(value, estimator._feature_names, f"'{name}'")
        try:
            described[name] = encode(value, f"params.{name}", arrays)
        except TypeError:
            if name not in _LEFT_OUT_IF_OBJECTS:
                raise
            warnings.warn(
                f"The file does not hold '{name}', an object that only training needs: "
                "the loaded estimator has the default.",
                stacklevel=4,
            )
    return described


def _describe_object(value, kind, name, arrays):
    """The class of an object and its parameters, if the class is known."""
    if isinstance(value, str):
        return {"own": value}
    if type(value) not in _KNOWN[kind].values():
        return {"own": class_name(value)}
    params = value.get_params(deep=False).items()
    return {
        "class": type(value).__name__,
        "params": {key: encode(item, f"{name}.{key}", arrays) for key, item in params},
    }


def describe_history(history, arrays, max_epochs=math.inf):
    """Put columns of numbers among arrays, and which rows have one if not all do.

    Of a longer history the last epochs, fewer if they have unusually many columns.
    """
    history = list(history)
    columns = dict.fromkeys(name for row in history for name in row)
    # What is in them has been averaged; it may be of any size.
    columns.pop("batches", None)
    n_kept = max_epochs * min(1, _COLUMNS / max(1, len(columns)))
    if len(history) > n_kept:
        history = history[-int(n_kept) :]
    for column in columns:
        rows = [i for i, row in enumerate(history) if column in row]
        values = [history[i][column] for i in rows]
        if not all(isinstance(value, Real | np.bool_) for value in values):
            continue
        values = np.array(values)
        # Not integers beyond 64 bits.
        if values.dtype.kind not in "fib":
            continue
        arrays[f"history.{column}"] = values
        if len(rows) < len(history):
            arrays[f"rows.{column}"] = np.array(rows, dtype=np.int32)


def own_objects(estimator):
    """Network and noise of an estimator that no file can name, by parameter."""
    return {
        name: value
        for name, known in _KNOWN.items()
        if not isinstance(value := getattr(estimator, name), str)
        and type(value) not in known.values()
    }


def restore(cls, header, arrays, *, device, network=None, noise=None):
    """Estimator from a header and arrays.

    Parameters
    ----------
    cls : type
        The estimator's class.
    header : dict
    arrays : dict of ndarray
        As from :func:`describe`.
    device : str or torch.device
        Where the model is to be; a parameter of the estimator.
    network, noise : object, default=None
        Those of the caller's own, if the model has some.

    Returns
    -------
    estimator : SigmaVAE

    Raises
    ------
    Exception
        Of any kind, if something is wrong; of class ModelFileError with a reason that
        can be told to a user.
    """
    header = Header(header)
    if header.take("format", int) > FORMAT:
        made_by = header.section("versions")["sklearn_sigmavae"]
        raise ModelFileError(
            f"it was made by a later version, {made_by}. Upgrade sklearn-sigmavae."
        )
    objects = _Objects({"network": network, "noise": noise}, arrays)
    params = {
        name: objects.restore_param(name, value)
        for name, value in header.take("params", dict).items()
    }
    estimator = cls(**params)
    if "device" in estimator.get_params(deep=False):
        estimator.set_params(device=device)
    estimator._validate_params()
    recipe = objects.restore("network", header["network"])
    noise = objects.restore("noise", header["noise"])
    noise.validate()
    objects.refuse_unused()
    vae = _restore_module(header, arrays, recipe)
    sigma, scale = _restore_scale(vae, noise, arrays)
    model = LoadedModel(
        vae.to(resolve_device(device)).eval(),
        restore_history(arrays, _MAX_EPOCHS),
        dict(decode(header["structure"], arrays)),
        noise,
        scale,
        int(header.number("n_active_components")),
        float(header.number("reconstruction_error")),
        *_restore_gain(header),
    )
    estimator._set_model(model, sigma, int(header.number("n_iter")))
    estimator.n_features_in_ = vae.layout.n_features
    if "feature_names" in arrays:
        names = arrays["feature_names"]
        if np.count_nonzero(names == 0) + 1 != estimator.n_features_in_:
            raise ModelFileError("it has more or fewer names than features.")
        names = names.tobytes().decode().split("\0")
        estimator.feature_names_in_ = np.array(names, dtype=object)
    if (output := header["output"]) is not None:
        if output not in _OUTPUTS:
            raise ModelFileError(f"its 'output' is {output!r}.")
        estimator.set_output(transform=output)
    return estimator


class _Objects:
    """Objects of known classes, and those that the caller passes.

    Parameters
    ----------
    own : dict
        What the caller has passed, or None, for each name.
    arrays : dict of ndarray
        Arrays of the file.
    """

    def __init__(self, own, arrays):
        self.own = own
        self.arrays = arrays
        self.used = set()

    def restore_param(self, name, value):
        """Value of a parameter of the estimator."""
        if name in _KNOWN and isinstance(value, dict):
            return self.restore(name, value)
        return decode(value, self.arrays)

    def restore(self, name, described):
        """The object that a description stands for."""
        described = Header({name: described}).section(name)
        if "own" in described.values:
            return self._take_own(name, described["own"])
        known = _KNOWN[name]
        kind = described.take("class", str)
        if kind not in known:
            raise ModelFileError(f"its {name} is of an unknown class, {kind!r}.")
        params = described.take("params", dict).items()
        return known[kind](**{key: decode(item, self.arrays) for key, item in params})

    def _take_own(self, name, kind):
        if self.own[name] is None:
            raise ModelFileError(
                f"its {name} is one of your own, {kind}. Pass such an object: "
                f"SigmaVAE.load(path, {name}=...)."
            )
        if name not in self.used and kind != class_name(self.own[name]):
            warnings.warn(
                f"The {name} that the file was made with is {short(kind)}, that which "
                f"was given {class_name(self.own[name])}. If they are not the same, "
                "nor are the results.",
                stacklevel=2,
            )
        self.used.add(name)
        return self.own[name]

    def refuse_unused(self):
        """Raise if the caller has passed what the file has no place for."""
        for name, value in self.own.items():
            if value is not None and name not in self.used:
                raise ModelFileError(
                    f"it holds its {name} itself. Load it without {name}=."
                )


def _restore_module(header, arrays, recipe):
    for name, array in arrays.items():
        # Losses of an epoch may have been infinite.
        if not (name.startswith("history.") or np.isfinite(array).all()):
            raise ModelFileError(f"'{name}' has entries that are not finite.")
    layout = Layout(
        header.sizes("sample_shape"),
        header.sizes("input_shape"),
        header.take("channels_last", bool),
    )
    n_features = layout.n_features
    shape = layout.input_shape
    if len(shape) not in (1, 3) or math.prod(shape) != n_features:
        raise ModelFileError(f"its samples have no shape that can be, {shape}.")
    n_components = header.take("n_components", int)
    # No more than the weights have room for, layers neither.
    n_layers = sum(
        len(value)
        for value in getattr(recipe, "get_params", dict)().values()
        if isinstance(value, tuple | list)
    )
    if not 1 <= n_components <= sum(a.size for a in arrays.values()):
        raise ModelFileError(f"its number of components is {n_components}.")
    if n_layers > len(arrays):
        raise ModelFileError("its network has more layers than weights.")

    # Networks of the caller's own begin at random weights.
    with isolated_rng.alone(0):
        encoder, decoder, width, takes_float64 = rebuild_networks(
            recipe,
            layout,
            n_components,
            header.take("linear_path", bool),
            lambda module: _fill(module, arrays),
        )
    vae = VAE(
        encoder,
        decoder,
        _restore_units(arrays, n_features),
        layout,
        n_components,
        width,
        takes_float64,
        known_recipe(recipe),
    )
    vae.tails = _restore_tails(arrays, n_features, n_components)
    return vae


def _fill(module, arrays):
    """Put weights into a module, if they are its own."""
    state = {
        name.removeprefix("module."): torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith("module.")
    }

    def kinds(state):
        return {name: (value.shape, value.dtype) for name, value in state.items()}

    expected = module.state_dict()
    if kinds(state) != kinds(expected):
        names = ", ".join(sorted(state.keys() ^ expected.keys())[:3])
        raise ModelFileError(
            "its weights are not those of its network"
            + (f": {names} are of one alone." if names else ", but of another shape.")
        )
    if all(value.is_meta for value in expected.values()):
        # In memory of torch's own, which is aligned.
        state = {name: value.clone() for name, value in state.items()}
        module.load_state_dict(state, assign=True)
    else:
        module.load_state_dict(state)


def _restore_gain(header):
    """Score of the start and best epoch, which files of format 1 do not have."""
    if header.take("format", int) < 2:
        return math.nan, int(header.number("n_iter"))
    score = header["start_score"]
    if score is None:
        return math.nan, int(header.number("best_epoch"))
    score = header.take("start_score", (int, float))
    if not math.isfinite(score):
        raise ModelFileError(f"its 'start_score' is {score}.")
    return float(score), int(header.number("best_epoch"))


def _restore_tails(arrays, n_features, n_components):
    """What carries the model on, or None."""
    shapes = {
        "axes": (n_features, n_components),
        "variances": (n_components,),
        "noise_variance": (),
        "low": (n_features,),
        "high": (n_features,),
        "limit": (),
    }
    tails = {
        name: arrays[f"tails.{name}"] for name in shapes if f"tails.{name}" in arrays
    }
    if not tails:
        return None
    kinds = {name: (array.shape, array.dtype) for name, array in tails.items()}
    if kinds != {name: (shape, np.float32) for name, shape in shapes.items()}:
        raise ModelFileError("its tails are not those of its network.")
    if not ((tails["low"] <= tails["high"]).all() and tails["limit"] > 0):
        raise ModelFileError("its tails have no range.")
    return LinearTails(
        **{name: torch.from_numpy(array) for name, array in tails.items()}
    )


def _restore_units(arrays, n_features):
    offset, scale = (_float64(arrays, f"units.{name}") for name in ("offset", "scale"))
    if offset.shape != (n_features,) or scale.shape not in ((1,), (n_features,)):
        raise ModelFileError("its units are not those of its samples.")
    if not (scale > 0).all():
        raise ModelFileError("its units are not positive.")
    return Units(offset, np.broadcast_to(scale, n_features).copy())


def _restore_scale(vae, noise, arrays):
    """Scale of the noise, in the units of the data and in internal ones."""
    if not noise.has_scale:
        return None, None
    sigma, layout = _float64(arrays, "sigma"), vae.layout
    if sigma.shape not in ((), (layout.n_features,), layout.sample_shape):
        raise ModelFileError(f"its sigma has shape {sigma.shape}.")
    scale = np.ravel(sigma) / vae.units.scale
    if not (sigma > 0).all() or not np.allclose(scale, scale[0], rtol=1e-6, atol=0):
        raise ModelFileError("its sigma is not that of its units.")
    check_scale_in_range("its sigma", scale)
    return (sigma if sigma.ndim else float(sigma)), float(scale[0])


def _float64(arrays, name):
    if name not in arrays or arrays[name].dtype != np.float64:
        raise ModelFileError(f"it has no '{name}' of type float64.")
    return arrays[name]


def restore_history(arrays, max_epochs=math.inf):
    """History whose columns are among arrays; see :func:`describe_history`."""
    columns = {
        name.removeprefix("history."): array
        for name, array in arrays.items()
        if name.startswith("history.")
    }
    n_rows = max(map(len, columns.values()), default=0)
    n_values = sum(array.size for array in columns.values())
    if n_rows > max_epochs or n_values > max_epochs * _COLUMNS:
        raise ModelFileError(f"its history of {n_rows} epochs is too long.")
    history = History({"batches": []} for _ in range(n_rows))
    for name, values in columns.items():
        rows = range(n_rows)
        if f"rows.{name}" in arrays:
            rows = arrays[f"rows.{name}"].tolist()
        for row, value in zip(rows, values.tolist(), strict=True):
            history[row][name] = value
    return history
