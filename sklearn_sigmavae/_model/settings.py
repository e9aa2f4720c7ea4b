"""Devices, and the settings of the process that calls change while they run.

Torch's number of threads, precision of products and random state belong to the process.
Calls may run in several Python threads at once, so the first to enter saves a setting,
and the last to leave restores it.
"""

import os
import threading
import warnings
from contextlib import contextmanager, nullcontext

import torch

PRECISIONS = ("float32", "tf32", "bfloat16")

# Training data stays on a CUDA device, and a stack of models fits on it, if it takes at
# most this fraction of the free memory.
DATA_FRACTION = 0.5

# Operations of a forward pass, over a training batch or a block of rows in inference,
# for each thread. Torch's threads wait for each other by spinning: small operations
# gain nothing by them, and lose much where another process keeps a core busy.
OPERATIONS_PER_THREAD = 40e6

_IMPORTED_BY = os.getpid()


class _Shared:
    """A setting of the process that the first call saves and the last restores."""

    def __init__(self, read, write):
        self.read, self.write = read, write
        self._begin()

    def _begin(self):
        self.lock, self.n_active, self.pid = threading.RLock(), 0, os.getpid()

    @contextmanager
    def __call__(self):
        """Context with the value that was saved."""
        if self.pid != os.getpid():
            # In a forked child no call is active, whatever its parent was doing.
            self._begin()
        with self.lock:
            if not self.n_active:
                self.before = self.read()
            self.n_active += 1
        try:
            yield self.before
        finally:
            with self.lock:
                self.n_active -= 1
                if not self.n_active:
                    self.write(self.before)


# Threads

_threads = _Shared(torch.get_num_threads, torch.set_num_threads)
_of_this_thread = threading.local()


@contextmanager
def limited_threads(n_operations, device):
    """Context for forward passes of about `n_operations` each, on a device.

    On the CPU torch uses as many threads as there is work for, and no more than the
    user allows.
    """
    is_cpu = torch.device(device).type == "cpu"
    with _threads() as allowed:
        # Torch has one limit for each Python thread and one for those that start later,
        # so only an outer call in this thread counts.
        before = getattr(_of_this_thread, "limit", None)
        wanted = int(n_operations / OPERATIONS_PER_THREAD) if is_cpu else allowed
        allowed_here = min(allowed, getattr(_of_this_thread, "most", None) or allowed)
        # OpenMP's threads do not exist in a forked child, and torch would wait for them
        # forever. With one thread it needs none.
        limit = min(allowed_here, max(1, wanted)) if os.getpid() == _IMPORTED_BY else 1
        _of_this_thread.limit = limit
        torch.set_num_threads(limit)
        try:
            yield
        finally:
            _of_this_thread.limit = before
            torch.set_num_threads(before or allowed)


@contextmanager
def shared_threads(n_sharers):
    """Context for several Python threads that compute at the same time.

    It gives a context in which one of them computes with its share of torch's threads.
    """

    @contextmanager
    def share():
        _of_this_thread.most = max(1, allowed // n_sharers)
        try:
            yield
        finally:
            _of_this_thread.most = None

    with _threads() as allowed:
        yield share


# Random state


def _read_rng():
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), devices


def _write_rng(states):
    torch.set_rng_state(states[0])
    if states[1]:
        torch.cuda.set_rng_state_all(states[1])


_rng = _Shared(_read_rng, _write_rng)


@contextmanager
def isolated_rng(seed):
    """Context in which torch's global random state starts at `seed`.

    Dropout draws from it. Other threads share it.
    """
    with _rng():
        with _rng.lock:
            # torch.manual_seed would also seed devices that are not in use yet.
            torch.default_generator.manual_seed(seed)
            if torch.cuda.is_initialized():
                torch.cuda.manual_seed_all(seed)
        yield


@contextmanager
def reproducible_weights(seed):
    """Context to draw initial weights in: it excludes other threads, so keep it short.

    Torch's default type in it is float32, since draws depend on it.
    """
    # First what makes a new lock in a forked child.
    with _rng(), _rng.lock, isolated_rng(seed):
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


# Precision


def _precision_settings():
    backends = torch.backends
    return backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn


def _read_precision():
    """Torch's older and newer settings, which must agree, or reading them fails."""
    try:
        older = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        older = None
    return older, [setting.fp32_precision for setting in _precision_settings()]


def _write_precision(values):
    older, newer = values
    # Torch warns once that the older ones are deprecated.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if older is not None:
            torch.set_float32_matmul_precision(older[0])
            torch.backends.cudnn.allow_tf32 = older[1]
        for setting, value in zip(_precision_settings(), newer, strict=True):
            setting.fp32_precision = value


_precision = _Shared(_read_precision, _write_precision)


@contextmanager
def matmul_precision(device, precision="float32"):
    """Context in which CUDA multiplies float32 matrices as requested, and not faster.

    By default torch lets convolutions round to TF32. Of calls in several threads the
    most exact decides.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    with _precision():
        with _precision.lock:
            if precision != "tf32":
                _write_precision((("highest", False), ["ieee"] * 3))
            elif _precision.n_active == 1:
                _write_precision((("high", True), ["tf32"] * 3))
        yield


def autocast(device, precision):
    """Context for a forward pass in training at a precision."""
    if precision != "bfloat16":
        return nullcontext()
    # Casts that are kept from step to step would be stale in a captured graph.
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, cache_enabled=False)


# Devices


def resolve_device(device):
    """Device of a ``device`` parameter, tried out; ``ValueError`` if it fails."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
        torch.zeros(1, device=resolved).item()
    # Torch raises different types for the ways in which a device can be missing.
    except Exception as error:
        raise ValueError(
            "The 'device' parameter of SigmaVAE must be 'auto' or a device that torch "
            f"can use here, such as 'cpu'. Got {device!r} instead: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return resolved


def fits(n_bytes, device):
    """Whether data may live on a device beside a model that trains there."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    # What torch's allocator holds but does not use is free too.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return n_bytes <= DATA_FRACTION * (free + unused)


def is_out_of_memory(error):
    """Whether an exception says that a device, or the machine, lacks memory."""
    # Only one kind of this error has its own type.
    signs = "out of memory", "ALLOC_FAILED", "can't allocate memory"
    return isinstance(error, torch.OutOfMemoryError) or any(
        sign in str(error) for sign in signs
    )


@contextmanager
def explain_out_of_memory(device, batch_size):
    """Context in which lack of memory is a ``MemoryError`` that says what to change."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(
            f"Training ran out of memory on the device '{device}' with "
            f"batch_size={batch_size}. Lower batch_size, or make the network smaller. "
            f"{str(error).splitlines()[0]}"
        ) from error
