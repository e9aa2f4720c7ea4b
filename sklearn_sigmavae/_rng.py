"""Torch's global random state, which fits must leave as it was."""

import threading
from contextlib import contextmanager

import torch


class _IsolatedRng:
    """Torch's global random state, seeded for a while and then put back.

    The first to enter saves the state and the last to leave restores it, so that fits
    in several threads leave it untouched too.
    """

    def __init__(self):
        self.lock = threading.RLock()
        self.depth = 0

    @contextmanager
    def __call__(self, seed):
        """Context in which the state starts at `seed`, shared with other threads."""
        with self.lock:
            if self.depth == 0:
                n_devices = (
                    torch.cuda.device_count() if torch.cuda.is_initialized() else 0
                )
                self.fork = torch.random.fork_rng(devices=range(n_devices))
                self.fork.__enter__()
            self.depth += 1
            # torch.manual_seed would seed devices too that are not in use, for later.
            torch.default_generator.manual_seed(seed)
            if torch.cuda.is_initialized():
                torch.cuda.manual_seed_all(seed)
        try:
            yield
        finally:
            with self.lock:
                self.depth -= 1
                if self.depth == 0:
                    self.fork.__exit__(None, None, None)

    @contextmanager
    def alone(self, seed):
        """Context that keeps other threads' contexts out; for short work.

        Torch's default type in it is float32, since draws depend on it.
        """
        with self.lock, self(seed):
            dtype = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
            try:
                yield
            finally:
                torch.set_default_dtype(dtype)


# Networks take their initial weights, and dropout its masks, from torch's global state.
isolated_rng = _IsolatedRng()
