"""One progress bar for many models."""

from contextlib import contextmanager

from skorch.callbacks import Callback


@contextmanager
def progress(total, verbose, description, unit="epoch"):
    """Context with a bar over epochs, or other units, or with None unless `verbose`."""
    if not verbose:
        yield None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=description, unit=unit) as bar:
        yield bar


class MovesBar(Callback):
    """Moves a bar by an epoch of each member of a stack."""

    def __init__(self, bar, n_members):
        self.bar = bar
        self.n_members = n_members

    def on_epoch_end(self, net, **kwargs):
        """Move it."""
        self.bar.update(self.n_members)
