"""MNIST for benchmarks and examples: files in a folder, else a download."""

import gzip
import os
from pathlib import Path

import numpy as np
from sklearn.datasets import fetch_openml

N_TRAIN = 60_000
FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def load_mnist(folder=None):
    """Load the MNIST images and labels.

    Parameters
    ----------
    folder : str or path-like, default=None
        Folder with the four gzipped IDX files of MNIST. If None, the one that the
        environment variable ``MNIST_DIR`` names; if that is not set either, MNIST is
        downloaded from OpenML, once: scikit-learn keeps a copy in its data home.

    Returns
    -------
    X_train : ndarray of shape (60000, 784), uint8
    y_train : ndarray of shape (60000,), uint8
    X_test : ndarray of shape (10000, 784), uint8
    y_test : ndarray of shape (10000,), uint8

    Raises
    ------
    FileNotFoundError
        If the folder lacks any of the files.
    ConnectionError
        If no folder is given and the download fails.
    """
    folder = folder or os.environ.get("MNIST_DIR")
    return _load_folder(Path(folder)) if folder else _download()


def _load_folder(folder):
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"The MNIST folder {folder} lacks {', '.join(missing)}. Put the four "
            "gzipped IDX files there, name another folder, or name none (nor set "
            "MNIST_DIR) to download MNIST from OpenML."
        )
    X_train, y_train, X_test, y_test = (_read_idx(folder / name) for name in FILES)
    return (
        X_train.reshape(len(X_train), -1),
        y_train,
        X_test.reshape(len(X_test), -1),
        y_test,
    )


def _read_idx(path):
    """Array in a gzipped IDX file of bytes.

    The format: two zeros, the type (8 for bytes), the number of dimensions, each
    dimension as a big-endian 32-bit integer, the data.
    """
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an IDX file of bytes; download it again.")
    n_dims = content[3]
    shape = np.frombuffer(content, dtype=">i4", count=n_dims, offset=4)
    data = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * n_dims)
    # A copy, since an array on top of bytes is read-only.
    return data.reshape(shape).copy()


def _download():
    try:
        X, y = fetch_openml(
            "mnist_784", version=1, as_frame=False, parser="auto", return_X_y=True
        )
    except OSError as error:
        raise ConnectionError(
            f"MNIST could not be downloaded from OpenML: {error}. Without a "
            f"connection, put {', '.join(FILES)} in a folder and name it, as an "
            "argument or in the environment variable MNIST_DIR."
        ) from error
    X, y = X.astype(np.uint8), y.astype(np.uint8)
    return X[:N_TRAIN], y[:N_TRAIN], X[N_TRAIN:], y[N_TRAIN:]
