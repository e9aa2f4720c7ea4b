"""What a device holds, how exactly it computes, and how to keep it busy."""

import warnings
from contextlib import contextmanager, nullcontext

import torch

# Training data stays on a CUDA device if it takes no more than this fraction of the
# memory that is free there before training.
DATA_FRACTION = 0.5

PRECISIONS = ("float32", "tf32", "bfloat16")

# Steps that run eagerly before one is captured, as CUDA asks: they build what must
# exist by then, such as the optimizer's state.
_WARM_UP_STEPS = 3


def fits(n_bytes, device):
    """Whether data may live on a device beside a model that trains there."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    # What torch's allocator holds without use is free too.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return n_bytes <= DATA_FRACTION * (free + unused)


def is_out_of_memory(error):
    """Whether an exception says that a device, or the machine, lacks memory."""
    # The CPU has no exception of its own for it.
    return isinstance(error, torch.OutOfMemoryError) or (
        "can't allocate memory" in str(error)
    )


@contextmanager
def matmul_precision(device, precision="float32"):
    """Context in which CUDA multiplies float32 matrices as told, and not faster.

    By default torch lets convolutions round to TF32, without a word. The settings are
    the process's, and are put back at the end.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    settings = cuda.matmul, cudnn.conv, cudnn.rnn
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


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
        Takes the tensors of a batch, trains on it, and returns the loss, a tensor of
        shape (). It must not wait for the device.
    batch_size : int
        Number of rows of the batches to capture.
    capture : callable, default=capture_in_graph
        Takes a function without arguments and returns one that does the same. It
        decides alone whether that goes through a graph.
    """

    def __init__(self, step, batch_size, capture=None):
        self.step = step
        self.batch_size = batch_size
        self.capture = capture or capture_in_graph
        self.n_warm_up = _WARM_UP_STEPS
        self.replay = None

    def __call__(self, *batch):
        """Take a step; return its loss."""
        if len(batch[0]) != self.batch_size or self.capture is None:
            return self.step(*batch)
        if self.n_warm_up:
            self.n_warm_up -= 1
            return on_side_stream(self.step, *batch)
        if self.replay is None and not self._capture(batch):
            return self.step(*batch)
        for static, tensor in zip(self.batch, batch, strict=True):
            static.copy_(tensor)
        self.replay()
        # The next replay overwrites it.
        return self.loss.clone()

    def _capture(self, batch):
        self.batch = [tensor.clone() for tensor in batch]
        self.loss = torch.zeros((), device=batch[0].device)
        try:
            self.replay = self.capture(lambda: self.loss.copy_(self.step(*self.batch)))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            # Nothing has been computed: capturing only records.
            self.capture = None
            warnings.warn(
                "A training step could not be captured in a CUDA graph, so training "
                "is slower than it could be. Does the network, or its optimizer, read "
                f"values back from the device? {str(error).splitlines()[0]}",
                stacklevel=2,
            )
        return self.replay is not None


def on_side_stream(function, *args):
    """Run a function on another CUDA stream, which the present one then awaits."""
    if args[0].device.type != "cuda":
        return function(*args)
    present, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(present)
    with torch.cuda.stream(side):
        result = function(*args)
    present.wait_stream(side)
    return result


def capture_in_graph(function):
    """Record a function's kernels in a CUDA graph; return what replays them."""
    graph, present = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        # On a stream of its own, and so that other threads, which may be training too,
        # can use the device meanwhile.
        with torch.cuda.graph(
            graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"
        ):
            function()
    finally:
        # After a failure torch stays on the other stream.
        torch.cuda.set_stream(present)
    return graph.replay
