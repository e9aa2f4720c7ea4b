"""Files of arrays and a plain dictionary: written whole or not at all, read as data.

The format is that of safetensors, whose header holds the dictionary as JSON. Nothing
in a file is ever executed, and nothing is believed before it has been checked.
"""

import errno
import json
import math
import os
import secrets
import stat
from contextlib import contextmanager, suppress
from numbers import Integral, Real
from pathlib import Path
from reprlib import repr as short

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

# Where in a file's header the dictionary is.
_KEY = "sklearn_sigmavae"

# Bytes that a header may have: enough for thousands of layers, and few enough that what
# JSON makes of them takes little memory.
_MAX_HEADER = 2**21

# Lists of more numbers are kept as arrays.
_MAX_LIST = 1000

# Types of arrays, as safetensors names them, and as numpy does.
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64"}
_DTYPES |= {"I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}


class ModelFileError(ValueError):
    """A file that is not, or no longer, what ``SigmaVAE.save`` wrote.

    It is damaged, of another kind, was made by a later version, or says of itself what
    is not so. It is also raised for a file that needs a ``network`` or ``noise`` of
    your own to be loaded.

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


def write_model(path, header, arrays):
    """Write a dictionary and arrays to a file.

    A crash at any time leaves the file that was there before or the new one, whole.

    Parameters
    ----------
    path : str or path-like
        The file. A link stays a link, to the new content.
    header : dict
        What JSON can hold, see :func:`encode`.
    arrays : dict of ndarray
        Named arrays.

    Raises
    ------
    OSError
        If it cannot be written; then the file is what it was before.
    TypeError
        If an array is of a type that has no place in a file.
    ValueError
        If the dictionary is too large for a header.
    """
    check_types(arrays)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    content = to_safetensors(arrays, metadata={_KEY: text})
    if _header_size(content) > _MAX_HEADER:
        raise ValueError("The model has too many layers, or parameters, for a file.")
    target = _target(path)
    temporary = target.with_name(f"{_beginning(target)}{secrets.token_hex(8)}.tmp")
    try:
        # As open does it, but never into a file that is there.
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _O_BINARY, 0o666
        )
        with open(descriptor, "wb", buffering=0) as file:
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(target.parent)


def check_types(arrays):
    """Raise ``TypeError`` if an array is of a type that has no place in a file."""
    for name, array in arrays.items():
        if array.dtype.name not in _DTYPES.values():
            raise TypeError(f"A file cannot hold '{name}', of type {array.dtype}.")


def _target(path):
    """The file that a path stands for, which may not exist yet."""
    target = Path(os.path.realpath(os.fsdecode(path)))
    with suppress(FileNotFoundError):
        mode = os.stat(target).st_mode
        if stat.S_ISDIR(mode):
            error = errno.EISDIR
        elif not stat.S_ISREG(mode):
            # A device, or a pipe, must not become a file.
            error = errno.EINVAL
        else:
            return target
        raise OSError(error, os.strerror(error), os.fspath(path))
    if os.fsdecode(path).endswith(os.sep):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    return target


def _beginning(target):
    return f".{target.name[:100]}."


def remove_temporaries(path):
    """Remove what crashes of :func:`write_model` have left beside a file."""
    for left in Path(path).parent.glob(f"{_beginning(path)}*.tmp"):
        with suppress(OSError):
            left.unlink()


_O_BINARY = getattr(os, "O_BINARY", 0)


def _sync_folder(folder):
    """Make a renaming last; not all systems can, nor need it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_model(path, kind="model"):
    """Read what :func:`write_model` wrote.

    Parameters
    ----------
    path : str or path-like
        The file.
    kind : str, default="model"
        What is in it, for messages.

    Returns
    -------
    header : dict
    arrays : dict of ndarray

    Raises
    ------
    ModelFileError
        If the file is not such a file.
    OSError
        If there is none, or it cannot be read.
    """
    path = os.fsdecode(path)
    # To open a pipe would wait for somebody to write to it.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ModelFileError(f"{os.fspath(path)} is not a regular file.")
    with open(path, "rb") as file:
        beginning = file.read(8)
    if _header_size(beginning) > _MAX_HEADER:
        raise ModelFileError(f"{os.fspath(path)} is no file of a SigmaVAE.")
    with explain_file(path, kind), safe_open(path, framework="np") as file:
        header = parse_header((file.metadata() or {}).get(_KEY))
        arrays = {}
        for name in file.keys():  # noqa: SIM118, it is no dictionary
            dtype = file.get_slice(name).get_dtype()
            if dtype not in _DTYPES:
                raise ModelFileError(f"'{name}' has a type that none has: {dtype}.")
            arrays[name] = file.get_tensor(name)
        return header, arrays


def _header_size(content):
    return int.from_bytes(content[:8], "little")


@contextmanager
def explain_file(path, kind="model"):
    """Context in which anything that goes wrong is a ``ModelFileError``."""
    try:
        yield
    except OSError:
        raise
    # Whatever a file can make happen: it may hold any numbers and names at all.
    except Exception as error:
        if isinstance(error, SafetensorError):
            reason = f"it is no whole safetensors file ({error})"
        elif isinstance(error, ModelFileError):
            reason = str(error)
        else:
            reason = f"{type(error).__name__}: {error}"
        raise ModelFileError(
            f"{os.fspath(path)} cannot be loaded as the {kind} of a SigmaVAE: {reason}"
        ) from error


def parse_header(text):
    """Dictionary in the text of a header.

    Raises
    ------
    ModelFileError
        If there is none.
    """
    if text is None:
        raise ModelFileError("it was not written by sklearn_sigmavae.")
    header = json.loads(text)
    if not isinstance(header, dict):
        raise ModelFileError("its header is no dictionary.")
    return header


def encode(value, name, arrays):
    """A value as JSON can hold it, or put among arrays.

    Parameters
    ----------
    value : object
        None, a string, a number, an array, or lists and tuples of these.
    name : str
        Name for an array.
    arrays : dict of ndarray
        Where arrays go.

    Raises
    ------
    TypeError
        If the value is of another kind.
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, range):
        value = list(value)
    elif not isinstance(value, tuple | list) and hasattr(value, "__array__"):
        value = np.asarray(value)
    if isinstance(value, tuple | list) and len(value) > _MAX_LIST:
        value = np.asarray(value)
    if isinstance(value, tuple | list):
        items = [encode(item, f"{name}.{i}", arrays) for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        kinds = {"f": np.float64, "i": np.int64, "u": np.int64, "b": np.bool_}
        arrays[name] = value.astype(kinds[value.dtype.kind])
        return {"array": name}
    raise TypeError(f"A file cannot hold {name}={value!r}.")


def decode(value, arrays):
    """The inverse of :func:`encode`."""
    if isinstance(value, list):
        return [decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tuple":
        return tuple(decode(item, arrays) for item in content)
    if kind == "array":
        return arrays[content]
    raise ModelFileError(f"it holds a value of unknown kind, {kind!r}.")


class Header:
    """Values of a dictionary from a file, each checked as it is taken.

    Parameters
    ----------
    values : dict
        What the file says.
    """

    def __init__(self, values):
        self.values = values

    def __getitem__(self, name):
        if name not in self.values:
            raise ModelFileError(f"its header lacks '{name}'.")
        return self.values[name]

    def take(self, name, kind):
        """Value of a type, or several; a number is no boolean."""
        value = self[name]
        if not isinstance(value, kind) or (
            isinstance(value, bool) and kind is not bool
        ):
            raise ModelFileError(f"its '{name}' is {short(value)}.")
        return value

    def section(self, name):
        """A dictionary in it."""
        return Header(self.take(name, dict))

    def number(self, name):
        """A finite number that is not negative."""
        value = self.take(name, (int, float))
        if not 0 <= value < math.inf:
            raise ModelFileError(f"its '{name}' is {short(value)}.")
        return value

    def sizes(self, name, at_least=1):
        """Integers of at least that, in a tuple."""
        value = self.take(name, list)
        if not all(type(size) is int and size >= at_least for size in value):
            raise ModelFileError(f"its '{name}' is {short(value)}.")
        return tuple(value)
