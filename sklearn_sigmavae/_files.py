"""Files: written whole or not at all, read as data, and what a saved model is.

A file is in the safetensors format: named arrays, and a dictionary as JSON in its
metadata. Nothing in it is executed. Classes are named, never pickled: those of this
package are known, others come from the caller.
"""

import errno
import json
import math
import os
import platform
import secrets
import stat
import warnings
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from numbers import Integral, Real
from pathlib import Path
from reprlib import repr as short

import numpy as np
import sklearn
import skorch
import torch
from safetensors import safe_open
from safetensors.numpy import save as to_safetensors
from skorch.history import History

from ._errors import ModelFileError
from ._model.build import RECIPES, LinearPathEncoder, build_networks, class_name
from ._model.fitted import OUTCOME, FittedModel
from ._model.gaps import Completion
from ._model.layout import Layout
from ._model.prior import build_prior
from ._model.settings import limited_threads, reproducible_weights, resolve_device
from ._model.units import Units
from ._model.vae import VAE, LinearTails
from ._validation import in_feature_order
from ._version import __version__
from .noise import NOISES
from .priors import PRIORS, NormalPrior

# To be increased when readers of this format can no longer read what is written, not
# for entries that they can ignore.
FORMAT = 5

# The dictionary's key in the metadata of a file.
_KEY = "sklearn_sigmavae"

# Maximum size of a file's header in bytes: enough for thousands of layers, and little
# enough that the objects that JSON makes of it take little memory.
_MAX_HEADER = 2**21

# Longer lists of numbers are stored as arrays.
_MAX_LIST = 1000

# Classes of objects that files hold. For other networks, noise models and priors they
# hold the name of the class.
_CLASSES = RECIPES | NOISES | PRIORS
_PARTS = ("network", "noise", "prior")

# The last epochs of longer histories are kept, since Python's objects take far more
# memory than the file; fewer if there are more columns than this.
_MAX_EPOCHS, _COLUMNS = 20_000, 20


def write_model(path, header, arrays):
    """Write a dictionary and arrays to a file: whole, or the old file stays.

    A link stays a link, to the new content. ``OSError`` means that the old file stays.
    """
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    content = to_safetensors(arrays, metadata={_KEY: text})
    if int.from_bytes(content[:8], "little") > _MAX_HEADER:
        raise ValueError("The model has too many layers, or parameters, for a file.")
    path = os.fsdecode(path)
    target = Path(os.path.realpath(path))
    is_folder = target.is_dir() or path.endswith(os.sep)
    # A file must not replace a device or a pipe.
    if is_folder or (target.exists() and not target.is_file()):
        code = errno.EISDIR if is_folder else errno.EINVAL
        raise OSError(code, os.strerror(code), path)
    temporary = target.with_name(f"{_beginning(target)}{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))
        os.replace(temporary, target)
    except BaseException:
        remove(temporary)
        raise


def _beginning(target):
    return f".{target.name[:100]}."


def remove(path):
    """Remove a file, if that is possible."""
    with suppress(OSError):
        os.unlink(path)


def remove_temporaries(path):
    """Remove temporary files that killed writers of a file have left beside it."""
    for left in path.parent.glob(f"{_beginning(path)}*.tmp"):
        remove(left)


def read_model(path, kind="model"):
    """Read the header and the arrays that :func:`write_model` wrote."""
    path = os.fsdecode(path)
    # Opening a pipe would wait for a writer.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ModelFileError(f"{path} is not a regular file.")
    with open(path, "rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
    with explain_file(path, kind):
        if header_size > _MAX_HEADER:
            raise ModelFileError("its header is too large.")
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise ModelFileError("it was not written by sklearn_sigmavae.")
            header = json.loads(metadata[_KEY])
            names = file.keys()
            return header, {name: file.get_tensor(name) for name in names}


@contextmanager
def explain_file(path, kind="model"):
    """Context in which any exception, but ``OSError``, becomes ``ModelFileError``."""
    try:
        yield
    except OSError:
        raise
    # A damaged file can cause an exception of any type.
    except Exception as error:
        name = f"{type(error).__name__}: " * (not isinstance(error, ModelFileError))
        raise ModelFileError(
            f"{path} cannot be loaded as the {kind} of a SigmaVAE: {name}{error}"
        ) from error


def encode(value, name, arrays):
    """A value as JSON can hold it, with arrays and tensors moved to `arrays`.

    The value is None, a string, a number, an array, a tensor or an object of a known
    class, or a list, a tuple or a dictionary of such values. The names of its arrays
    begin with `name`.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    if type(value) in _CLASSES.values():
        params = value.get_params(deep=False).items()
        params = {key: encode(item, f"{name}.{key}", arrays) for key, item in params}
        return {"class": type(value).__name__, "params": params}
    if isinstance(value, dict):
        # Pairs, since keys may be integers.
        items = value.items()
        return {"dict": [[k, encode(v, f"{name}.{k}", arrays)] for k, v in items]}
    if isinstance(value, tuple | list | range) and len(value) <= _MAX_LIST:
        items = [encode(item, f"{name}.{i}", arrays) for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    array = value.numpy(force=True) if torch.is_tensor(value) else np.asarray(value)
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise TypeError(f"A file cannot hold {name}={short(value)} ({array.dtype}).")
    arrays[name] = array
    return {"array": name}


def decode(value, arrays):
    """The inverse of :func:`encode`, less that tensors become arrays."""
    if isinstance(value, list):
        return [decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if "class" in value:
        params = value["params"].items()
        params = {name: decode(item, arrays) for name, item in params}
        return _CLASSES[value["class"]](**params)
    ((kind, content),) = value.items()
    if kind == "array":
        return arrays[content]
    return {"tuple": tuple, "dict": dict}[kind](decode(content, arrays))


def number(value, name, kind=int, minimum=0):
    """A finite number of a file, no boolean; an integer has a minimum."""
    is_number = type(value) in (int, kind) and math.isfinite(value)
    if not is_number or (kind is int and value < minimum):
        raise ModelFileError(f"its '{name}' is {short(value)}.")
    return kind(value)


def _section(arrays, prefix):
    """Arrays whose names have a prefix, without it."""
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def describe(estimator):
    """Header and arrays of a fitted estimator, for :func:`write_model`."""
    model, arrays = estimator._model, {}
    vae = model.module
    encode(vae.state_dict(), "module", arrays)
    if vae.tails is not None:
        encode(dict(vae.tails.named_buffers()), "tails", arrays)
    scale = vae.units.scale
    arrays["units.offset"] = vae.units.offset
    # They are usually all equal.
    arrays["units.scale"] = scale if np.ptp(scale) else scale[:1]
    axes = vae.units.axes
    if axes is not None:
        arrays["units.axes"], arrays["units.filter"] = axes, vae.units.filter
    completion = vae.completion
    arrays["completion.variances"] = completion.variances
    if completion.mean.any():
        arrays["completion.mean"] = completion.mean
    if axes is None and len(completion.variances):
        # Otherwise they are the first of the units.
        arrays["completion.axes"] = completion.axes
    if model.sigma is not None:
        arrays["sigma"] = np.array(model.sigma, dtype=np.float64)
    packages = {"numpy": np, "scikit-learn": sklearn, "skorch": skorch, "torch": torch}
    versions = {name: str(package.__version__) for name, package in packages.items()}
    versions |= {"sklearn_sigmavae": __version__, "python": platform.python_version()}
    header = {
        "format": FORMAT,
        "versions": versions,
        "params": _encode_params(estimator, arrays),
        "n_components": vae.n_components,
        "n_axes": None if axes is None else axes.shape[1],
        **asdict(vae.layout),
        "network": _encode_part(vae.recipe, "network", arrays),
        "linear_path": isinstance(vae.encoder, LinearPathEncoder),
        "completion": [completion.noise_variance, completion.corrects],
        "noise": _encode_part(model.noise, "noise", arrays),
        "prior": _encode_part(vae.prior.recipe, "prior", arrays),
        "structure": encode(list(model.structure.items()), "structure", arrays),
        "beta": model.beta,
        **{name: getattr(model, name) for name in OUTCOME},
        "output": getattr(estimator, "_sklearn_output_config", {}).get("transform"),
    }
    if math.isnan(model.start_score):
        # The model is from a file of format 1.
        header["start_score"] = None
    describe_history(model.history, arrays, _MAX_EPOCHS)
    if hasattr(estimator, "feature_names_in_"):
        names = "\0".join(estimator.feature_names_in_)
        if names.count("\0") >= estimator.n_features_in_:
            raise ValueError("A file cannot hold names of features with a zero byte.")
        arrays["feature_names"] = np.frombuffer(names.encode(), dtype=np.uint8)
    return header, arrays


def _encode_params(estimator, arrays):
    encoded = {}
    for name, value in estimator.get_params(deep=False).items():
        if name in ("device", "checkpoint_dir"):  # of the machine, not the model
            continue
        if name == "sigma":
            # Files have no labels.
            value = in_feature_order(value, estimator._feature_names, "'sigma'")
        is_part = name in _PARTS and not isinstance(value, str)
        try:
            encode_param = _encode_part if is_part else encode
            encoded[name] = encode_param(value, f"params.{name}", arrays)
        except TypeError:
            if name not in ("callbacks", "optimizer", "random_state"):
                raise
            warnings.warn(
                f"The file does not hold '{name}', an object that only training needs: "
                "the loaded estimator has the default.",
                stacklevel=4,
            )
    return encoded


def _encode_part(part, name, arrays):
    """A network, noise model or prior; of a custom one the name of the class."""
    if type(part) in _CLASSES.values():
        return encode(part, name, arrays)
    return {"own": part if isinstance(part, str) else class_name(part)}


def _decode_part(value, arrays, name, custom):
    """The inverse of :func:`_encode_part`; what is custom comes from the caller."""
    if not (isinstance(value, dict) and "own" in value):
        return decode(value, arrays)
    if custom is None:
        raise ModelFileError(
            f"its {name} is custom, {short(value['own'])}. Pass such an object: "
            f"SigmaVAE.load(path, {name}=...)."
        )
    if value["own"] != class_name(custom):
        warnings.warn(
            f"The file was made with a {name} of the class {short(value['own'])}, not "
            f"{class_name(custom)}. If they differ, so do the results.",
            stacklevel=2,
        )
    return custom


def custom_parts(estimator):
    """Custom network, noise model and prior of an estimator, by parameter."""
    parts = {name: getattr(estimator, name) for name in _PARTS}
    known = (str, *_CLASSES.values())
    return {name: part for name, part in parts.items() if type(part) not in known}


def describe_history(history, arrays, max_epochs=math.inf):
    """Add the columns of a history that are numbers, and which rows have them.

    Of longer histories only the last epochs are kept.
    """
    history = list(history)
    columns = dict.fromkeys(name for row in history for name in row)
    # Their content has been averaged, and may be large.
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
        # Integers may be too large for 64 bits.
        if values.dtype.kind in "fib":
            arrays[f"history.{column}"] = values
            if len(rows) < len(history):
                arrays[f"rows.{column}"] = np.array(rows, dtype=np.int32)


def restore_history(arrays, max_epochs=math.inf):
    """The history that :func:`describe_history` put among arrays."""
    columns = _section(arrays, "history.")
    n_rows = max(map(len, columns.values()), default=0)
    n_values = sum(array.size for array in columns.values())
    if n_rows > max_epochs or n_values > max_epochs * _COLUMNS:
        raise ModelFileError(f"its history of {n_rows} epochs is too long.")
    history = History({"batches": []} for _ in range(n_rows))
    for name, values in columns.items():
        rows = arrays.get(f"rows.{name}", np.arange(n_rows)).tolist()
        for row, value in zip(rows, values.tolist(), strict=True):
            history[row][name] = value
    return history


@limited_threads(0, "cpu")
def restore(cls, header, arrays, *, device, **custom):
    """Estimator of a class from what :func:`describe` returned.

    A custom network, noise model or prior comes from the caller. What is wrong
    with a file raises exceptions of any type, see :func:`explain_file`.
    """
    if header["format"] > FORMAT:
        made_by = header["versions"]["sklearn_sigmavae"]
        raise ModelFileError(
            f"it was made by a later version, {made_by}. Upgrade sklearn-sigmavae."
        )
    if header["format"] < 2:
        header = header | {"start_score": None, "best_epoch": header["n_iter"]}
    if header["format"] < 3:
        header = header | {"n_axes": None}
    if header["format"] < 4:
        header = header | {"prior": encode(NormalPrior(), "prior", {})}
        header["beta"] = header["params"]["beta"]
    for name, array in arrays.items():
        # Losses of an epoch may have been infinite.
        if not (name.startswith("history.") or np.isfinite(array).all()):
            raise ModelFileError(f"'{name}' has entries that are not finite.")
    params, parts = dict(header["params"]), {}
    for name in _PARTS:
        own = custom.get(name)
        parts[name] = _decode_part(header[name], arrays, name, own)
        if name in params:
            params[name] = _decode_part(params[name], arrays, name, own)
        if own is not None and own not in (parts[name], params.get(name)):
            raise ModelFileError(f"it holds its {name}. Load it without {name}=.")
    params = {name: decode(value, arrays) for name, value in params.items()}
    # They depend on this machine.
    params |= {"device": device, "checkpoint_dir": None}
    estimator = cls(**params)
    estimator._validate_params()
    noise = parts["noise"]
    noise.validate()
    parts["prior"].validate()
    vae = _restore_module(header, arrays, parts["network"], noise, parts["prior"])
    sigma, scale = _restore_sigma(vae, arrays) if noise.has_scale else (None, None)
    kinds = {field.name: field.type for field in fields(FittedModel)}
    outcome = {
        name: number(header[name], name, kinds[name])
        for name in OUTCOME
        if header[name] is not None
    }
    beta = number(header["beta"], "beta", float)
    if not beta > 0:
        raise ModelFileError(f"its 'beta' is {short(beta)}.")
    structure = dict(decode(header["structure"], arrays))
    structure.setdefault("prior", "normal")
    model = FittedModel(
        module=vae.to(resolve_device(device)).eval(),
        noise=noise,
        scale=scale,
        sigma=sigma,
        beta=beta,
        structure=structure,
        history=restore_history(arrays, _MAX_EPOCHS),
        **{"start_score": math.nan} | outcome,
    )
    estimator._adopt(model)
    estimator.n_features_in_ = vae.layout.n_features
    if "feature_names" in arrays:
        names = arrays["feature_names"].tobytes()
        if names.count(0) + 1 != estimator.n_features_in_:
            raise ModelFileError("it has more or fewer names than features.")
        names = names.decode().split("\0")
        estimator.feature_names_in_ = np.array(names, dtype=object)
    if header["output"] not in (None, "default", "pandas", "polars"):
        raise ModelFileError(f"its 'output' is {short(header['output'])}.")
    return estimator.set_output(transform=header["output"])


def _restore_module(header, arrays, recipe, noise, prior):
    sample_shape, input_shape = (
        tuple(number(size, name, minimum=1) for size in header[name])
        for name in ("sample_shape", "input_shape")
    )
    layout = Layout(sample_shape, input_shape, bool(header["channels_last"]))
    n_features = layout.n_features
    if len(input_shape) not in (1, 3) or math.prod(input_shape) != n_features:
        raise ModelFileError(f"its samples cannot have the shape {input_shape}.")
    if type(recipe) in RECIPES.values():
        # Layers take memory even without values.
        n_layers = sum(map(np.size, recipe.get_params(deep=False).values()))
        if n_layers > len(arrays):
            raise ModelFileError("its network has more layers than weights.")
    n_components = number(header["n_components"], "n_components", minimum=1)

    def fill(module):
        expected = module.state_dict()
        # Custom modules keep their parameters, which they may share.
        is_empty = all(value.is_meta for value in expected.values())
        others = {k: v for k, v in arrays.items() if not k.startswith("module.prior.")}
        weights = _tensors(others, "module.", expected)
        module.load_state_dict(weights, assign=is_empty)

    units = _restore_units(header, arrays, n_features, noise)
    # Custom networks begin at random weights.
    with reproducible_weights(0):
        linear_path = bool(header["linear_path"])
        networks = build_networks(
            recipe, layout, n_components, linear_path, units.axes, fill
        )
    prior = _restore_prior(prior, arrays, n_components)
    vae = VAE(networks, prior, units, layout, n_components)
    vae.tails = _restore_tails(arrays, units.n_seen, n_components)
    vae.completion = _restore_completion(header, arrays, vae, noise)
    return vae


def _restore_completion(header, arrays, vae, noise):
    d, k = vae.layout.n_features, vae.n_components
    if header["format"] < 5:
        # What the model takes for the mean.
        with torch.no_grad():
            location = vae.decode(torch.zeros(1, k)).numpy()[0]
        mean = vae.units.rotate_back(noise.mean(location))
        return Completion.by_mean(mean.astype(np.float64), k)
    noise_variance, corrects = header["completion"]
    noise_variance = number(noise_variance, "completion", float)
    variances = arrays["completion.variances"].astype(np.float64)
    mean = arrays.get("completion.mean", np.zeros(d)).astype(np.float64)
    n_axes, axes = variances.size, arrays.get("completion.axes", vae.units.axes)
    axes = np.zeros((d, 0)) if axes is None else axes[:, :n_axes].astype(np.float64)
    if axes.shape != (d, n_axes) or variances.shape != (n_axes,) or n_axes > k:
        raise ModelFileError("its completion is not one of its samples.")
    if mean.shape != (d,) or not (noise_variance > 0 and (variances >= 0).all()):
        raise ModelFileError("its completion has no density.")
    axes = np.ascontiguousarray(axes)
    return Completion(mean, axes, variances, noise_variance, k, bool(corrects))


def _restore_prior(recipe, arrays, n_components):
    n_numbers = sum(array.size for array in _section(arrays, "module.prior.").values())
    # One number too large could ask for all of the memory.
    n_gaussians = recipe.get_params(deep=False).get("n_components", 0)
    if type(recipe) in PRIORS.values() and n_gaussians * n_components**2 > n_numbers:
        raise ModelFileError("its prior has more components than parameters.")
    prior = build_prior(recipe, recipe.parameters(n_components))
    prior.load_state_dict(_tensors(arrays, "module.prior.", prior.state_dict()))
    return prior


def _restore_units(header, arrays, n_features, noise):
    offset, scale = arrays["units.offset"], arrays["units.scale"]
    if offset.shape != (n_features,) or not (scale > 0).all():
        raise ModelFileError("its units are not those of its samples, or not positive.")
    scale = np.broadcast_to(scale, n_features).astype(np.float64)
    units = Units(offset.astype(np.float64), scale)
    # Earlier versions, and random starts, have none.
    if header["n_axes"] is None and "units.axes" not in arrays:
        return units
    axes = arrays["units.axes"].astype(np.float64)
    shape = n_features, number(header["n_axes"], "n_axes", minimum=1)
    if axes.shape != shape or not np.allclose(
        axes.T @ axes, np.eye(shape[1]), atol=1e-6
    ):
        raise ModelFileError("its axes are not orthonormal, or not of its samples.")
    filter_ = arrays["units.filter"].astype(np.float64)
    if filter_.shape != shape[1:] or not ((filter_ > 0) & (filter_ <= 1)).all():
        raise ModelFileError("its filter is not that of its axes, or not in (0, 1].")
    rotates = noise.is_rotation_invariant
    return replace(units, axes=axes, filter=filter_, rotates=rotates)


def _tensors(arrays, prefix, expected):
    """A section as tensors, if names, shapes and types are those of other tensors."""
    # In torch's own memory, which is aligned.
    tensors = {
        name: torch.from_numpy(array).clone()
        for name, array in _section(arrays, prefix).items()
    }
    found, wanted = (
        {name: (value.shape, value.dtype) for name, value in state.items()}
        for state in (tensors, expected)
    )
    if found != wanted:
        raise ModelFileError("its weights are not those of its network.")
    return tensors


def _restore_tails(arrays, n, k):
    if not _section(arrays, "tails."):
        return None
    shapes = {"axes": (n, k), "variances": (k,), "low": (n,), "high": (n,)}
    shapes |= {"noise_variance": (), "limit": ()}
    like = {"dtype": torch.float32, "device": "meta"}
    expected = {name: torch.empty(shape, **like) for name, shape in shapes.items()}
    tails = _tensors(arrays, "tails.", expected)
    if not ((tails["low"] <= tails["high"]).all() and tails["limit"] > 0):
        raise ModelFileError("its tails have no range.")
    return LinearTails(**tails)


def _restore_sigma(vae, arrays):
    """Scale of the noise, in the units of the data and in internal ones."""
    sigma, layout = arrays["sigma"].astype(np.float64), vae.layout
    if sigma.shape not in ((), (layout.n_features,), layout.sample_shape):
        raise ModelFileError(f"its sigma has shape {sigma.shape}.")
    # Negative scales have no logarithm.
    scale = vae.units.common_scale(sigma) if (sigma > 0).all() else None
    if scale is None:
        raise ModelFileError("its sigma is not that of its units.")
    return (sigma if sigma.ndim else float(sigma)), scale
