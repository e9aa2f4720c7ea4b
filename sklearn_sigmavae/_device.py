"""What a device holds, how exactly it computes, and how to keep it busy."""

import os
import threading
import warnings
from contextlib import contextmanager, nullcontext

import torch

from ._threads import limited_threads

# Training data stays on a CUDA device if it takes no more than this fraction of the
# memory that is free there before training.
DATA_FRACTION = 0.5

PRECISIONS = ("float32", "tf32", "bfloat16")

# Steps that run eagerly before one is captured, as CUDA asks: they build what must
# exist by then, such as the optimizer's state.
_WARM_UP_STEPS = 3


def _in_child():
    # The threads of OpenMP are not in a forked child, where torch would wait for them
    # for ever. With one thread it asks for none.
    limited_threads.forget()
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def fits(n_bytes, device):
    """Whether data may live on a device beside a model that trains there."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    # What torch's allocator holds without use is free too.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return n_bytes <= DATA_FRACTION * (free + unused)


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


def is_out_of_memory(error):
    """Whether an exception says that a device, or the machine, lacks memory."""
    # Only one of the ways in which it comes has a type of its own.
    signs = "out of memory", "ALLOC_FAILED", "can't allocate memory"
    return isinstance(error, torch.OutOfMemoryError) or any(
        sign in str(error) for sign in signs
    )


class _MatmulPrecision:
    """Context in which CUDA multiplies float32 matrices as told, and not faster.

    By default torch lets convolutions round to TF32, without a word. The settings are
    the process's, so of fits in several threads the most exact decides, and the last
    to leave puts them back.
    """

    def __init__(self):
        self.lock = threading.Lock()
        self.active = []

    @contextmanager
    def __call__(self, device, precision="float32"):
        """Context for a device and a precision of :data:`PRECISIONS`."""
        if torch.device(device).type != "cuda":
            yield
            return
        with self.lock:
            if not self.active:
                self.before = _read_precision()
            self.active.append(precision)
            self._apply()
        try:
            yield
        finally:
            with self.lock:
                self.active.remove(precision)
                if self.active:
                    self._apply()
                else:
                    _write_precision(*self.before)

    def _apply(self):
        if all(precision == "tf32" for precision in self.active):
            _write_precision(("high", True), ["tf32"] * 3)
        else:
            _write_precision(("highest", False), ["ieee"] * 3)


matmul_precision = _MatmulPrecision()


def _read_precision():
    """Torch's older and newer settings, which must agree, or reading them fails."""
    try:
        older = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        older = None
    return older, [setting.fp32_precision for setting in _precision_settings()]


def _write_precision(older, newer):
    # Torch tells once that the older ones will go.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if older is not None:
            torch.set_float32_matmul_precision(older[0])
            torch.backends.cudnn.allow_tf32 = older[1]
        for setting, value in zip(_precision_settings(), newer, strict=True):
            setting.fp32_precision = value


def _precision_settings():
    backends = torch.backends
    return backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn


def autocast(device, precision):
    """Context for a forward pass in training at a precision."""
    if precision != "bfloat16":
        return nullcontext()
    # Casts that are kept from step to step would be stale in a captured graph.
    return torch.autocast(
        torch.device(device).type, torch.bfloat16, cache_enabled=False
    )


class CapturedStep:
    """A training step that is captured once in a CUDA graph and then replayed.

    On a small network the GPU waits for Python to launch one kernel after another; a
    graph launches all of a step's at once. It replays the same kernels on the same
    memory, so what changes from step to step must live in tensors on the device, the
    learning rate among it, and batches of another size run eagerly.

    Parameters
    ----------
    step : callable
        Takes the tensors of a batch, of shape (..., n, n_features) or components,
        trains on it, and returns the loss, a tensor. It must not wait for the device.
    batch_size : int
        Number of rows of the batches to capture.
    graph : CudaGraph
        What captures and replays.
    """

    def __init__(self, step, batch_size, graph):
        self.step = step
        self.batch_size = batch_size
        self.graph = graph
        self.n_warm_up = _WARM_UP_STEPS
        self.is_captured = False

    def __call__(self, *batch):
        """Take a step; return its loss."""
        if batch[0].shape[-2] != self.batch_size or self.graph is None:
            return self.step(*batch)
        if self.n_warm_up:
            self.n_warm_up -= 1
            return self._warm_up(batch)
        if not self.is_captured and not self._capture(batch):
            return self.step(*batch)
        for static, tensor in zip(self.batch, batch, strict=True):
            static.copy_(tensor)
        self.graph.replay()
        # The next replay overwrites it.
        return self.loss.clone()

    def _warm_up(self, batch):
        # The first step may wait for the device where later ones do not.
        if self.n_warm_up:
            return self.graph.run(self.step, *batch)
        loss, waits = self.graph.run_and_watch(self.step, *batch)
        self.loss = torch.zeros_like(loss)
        if waits:
            self._give_up(waits)
        return loss

    def _capture(self, batch):
        self.batch = [tensor.clone() for tensor in batch]
        try:
            self.graph.capture(lambda: self.loss.copy_(self.step(*self.batch)))
            self.is_captured = True
        except RuntimeError as error:
            # Nothing has been computed: capturing only records. Torch hides the reason
            # behind a second error.
            self._give_up(error.__context__ or error)
        return self.is_captured

    def _give_up(self, reason):
        self.graph = None
        warnings.warn(
            "A training step could not be captured in a CUDA graph, so training is "
            "slower than it could be. Does the network, or its optimizer, read values "
            f"back from the device? {str(reason).splitlines()[0]}",
            stacklevel=2,
        )


class CudaGraph:
    """A CUDA graph of a function, with the stream that it is made on."""

    def __init__(self):
        # One for all: each keeps a workspace of its own on the device.
        self.stream = torch.cuda.Stream()
        self.graph = torch.cuda.CUDAGraph()

    def run(self, function, *args):
        """Run a function on the stream, which the present one then awaits."""
        present = torch.cuda.current_stream()
        self.stream.wait_stream(present)
        with torch.cuda.stream(self.stream):
            result = function(*args)
        present.wait_stream(self.stream)
        return result

    def run_and_watch(self, function, *args):
        """Run a function; return its result, and torch's word if it waits, or None.

        No capture of such a function is tried: torch does not always recover from a
        failure.
        """
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                result = self.run(function, *args)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        waits = None
        for warning in caught:
            if "called a synchronizing" in str(warning.message):
                waits = warning.message
            # Torch says of its debug mode that it is a prototype.
            elif "debug mode" not in str(warning.message):
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )
        return result, waits

    def capture(self, function):
        """Record a function's kernels, which does not run them."""
        present = torch.cuda.current_stream()
        try:
            # So that other threads, which may be training too, can use the device.
            with torch.cuda.graph(
                self.graph, stream=self.stream, capture_error_mode="thread_local"
            ):
                function()
        finally:
            # After a failure torch stays on the other stream.
            torch.cuda.set_stream(present)

    def replay(self):
        """Run what was recorded."""
        self.graph.replay()
