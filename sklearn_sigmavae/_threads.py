"""How many threads torch uses, by the arithmetic that there is for them.

Torch starts as many threads as there are cores for every operation, and they wait for
each other by spinning. Small operations gain nothing by that, and where another process
keeps one of the cores busy they take many times as long.
"""

import threading
from contextlib import contextmanager

import torch
from torch import nn

# Operations of a forward pass, over a training batch or a block of rows in inference,
# for each thread. The benchmark of threads has the measurements behind it.
OPERATIONS_PER_THREAD = 40e6


class _LimitedThreads(threading.local):
    """Context in which torch uses no more threads than there is work for.

    Never more than the user allows, whose number is read when the first call enters
    and is what a call leaves behind. Torch has a number for each thread of Python, and
    one for those that start later, so of calls in several threads each has its own.
    """

    lock = threading.Lock()
    n_active = 0
    n_forks = 0
    allowed = None
    depth = 0

    @contextmanager
    def __call__(self, n_operations, device):
        """Context for forward passes of about `n_operations` each, on a device."""
        if torch.device(device).type != "cpu":
            yield
            return
        cls = type(self)
        with self.lock:
            if not cls.n_active:
                cls.allowed = torch.get_num_threads()
            cls.n_active += 1
            before = torch.get_num_threads() if self.depth else cls.allowed
            self.depth += 1
            wanted = max(1, int(n_operations / OPERATIONS_PER_THREAD))
            torch.set_num_threads(min(cls.allowed, wanted))
            n_forks = cls.n_forks
        try:
            yield
        finally:
            with self.lock:
                # In a child that was forked inside, which keeps to one thread, no call
                # is active.
                if n_forks == cls.n_forks:
                    self.depth -= 1
                    cls.n_active -= 1
                    torch.set_num_threads(before)

    def forget(self):
        """Start anew, in a forked process, where no call is active."""
        cls = type(self)
        cls.lock, cls.n_active, self.depth = threading.Lock(), 0, 0
        cls.n_forks += 1


limited_threads = _LimitedThreads()


def count_operations(vae):
    """Floating-point operations of encoding and decoding one row, about.

    Those of the layers that have a matrix, or filters, of weights.
    """
    total = 0

    def record(layer, inputs, output):
        nonlocal total
        weight = getattr(layer, "weight", None)
        if not torch.is_tensor(weight) or weight.ndim < 2:
            return
        # Each number that comes in, or goes out, meets one slice of the weights.
        n_numbers, n_slices = output.numel(), len(weight)
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            n_numbers = inputs[0].numel()
        total += 2 * n_numbers * (weight.numel() // n_slices)

    layers = [m for m in vae.modules() if not isinstance(m, torch.jit.ScriptModule)]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    weight = next(vae.parameters())
    x = weight.new_zeros((2, vae.layout.n_features))
    modes = [(module, module.training) for module in vae.modules()]
    try:
        with torch.no_grad():
            vae.eval().decode(vae.encode(x)[0])
    finally:
        for module, mode in modes:
            module.training = mode
        for hook in hooks:
            hook.remove()
    return total / 2
