"""What the ``optimizer`` and ``callbacks`` parameters stand for."""

import torch
from skorch.callbacks import Callback

# Adam's eps is far below any gradient, so that a common factor in the loss, such as
# beta's, changes nothing.
OPTIMIZERS = {
    "adam": (torch.optim.Adam, {"eps": 1e-12}),
    "adamw": (torch.optim.AdamW, {"eps": 1e-12}),
    "sgd": (torch.optim.SGD, {}),
}


def resolve_optimizer(optimizer, device):
    """Optimizer class and keyword arguments that an ``optimizer`` stands for."""
    if not isinstance(optimizer, str):
        if optimizer is torch.optim.LBFGS:
            raise ValueError(
                "The 'optimizer' parameter of SigmaVAE must evaluate the loss once a "
                "step, as torch.optim.LBFGS does not."
            )
        return optimizer, {}
    cls, kwargs = OPTIMIZERS[optimizer]
    # The fused variants update all parameters in one call.
    kwargs = kwargs | {"fused": device.type in ("cpu", "cuda")}
    # For a step in a CUDA graph; plain SGD does not know it, and runs without.
    if device.type == "cuda" and cls is not torch.optim.SGD:
        kwargs["capturable"] = True
    return cls, kwargs


def check_callbacks(callbacks):
    """Raise ``TypeError`` unless all are skorch callbacks, perhaps named."""
    for item in callbacks:
        callback = item[1] if isinstance(item, tuple) and len(item) == 2 else item
        cls = callback if isinstance(callback, type) else type(callback)
        if not issubclass(cls, Callback):
            raise TypeError(
                "The 'callbacks' parameter of SigmaVAE must hold skorch callbacks, or "
                f"pairs of a name and one. Got {item!r} instead."
            )
