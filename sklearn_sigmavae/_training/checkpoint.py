"""Checkpoints: what a killed fit needs to end with the weights it would have had.

A fit is identified by its parameters and its data, so fits can share a folder, and one
that is started again finds its own checkpoint.
"""

import copy
import dataclasses
import os
import time
import warnings
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import joblib
import numpy as np
import torch
from skorch.callbacks import Callback, PassthroughScoring

from .. import _files
from .._errors import DivergenceError, ModelFileError
from .._model.elbo import FallingNoise
from .._model.settings import resolve_device
from .initial import draw_seeds

try:
    import fcntl
except ImportError:  # where files cannot be locked
    fcntl = None

FORMAT = 4

# Maximum fraction of the time, about, that writing takes.
_COST = 0.05


@contextmanager
def checkpoint_of(params, schedule, samples, random_state, previous):
    """Context of a fit with its checkpoint, or None; at its end the file is removed."""
    # After one epoch there is nothing to continue.
    if params.checkpoint_dir is None or schedule.epochs < 2:
        yield None
        return
    folder = Path(params.checkpoint_dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"fit-{_key(params, samples, random_state, previous)}.safetensors"
    with _lock(path.with_suffix(".lock")) as is_locked:
        if not is_locked:
            warnings.warn(
                "Another fit with the same parameters and data is running and writes "
                f"the checkpoint {path}: this fit has none.",
                stacklevel=2,
            )
            yield None
            return
        try:
            yield Checkpoint(path, draw_seeds(random_state))
        except DivergenceError:
            # It would diverge again.
            _files.remove(path)
            raise
        _files.remove(path)


@contextmanager
def _lock(path):
    """Context with whether a file could be locked; a lock ends with the process."""
    with ExitStack() as stack:
        while True:
            file = stack.enter_context(open(path, "w"))
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError:
                # Some network file systems have no locks.
                break
            # The previous owner may have removed the file after it was opened here.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    break
        stack.callback(path.unlink, missing_ok=True)
        yield True


class Checkpoint(Callback):
    """Checkpoint of one fit; the `seeds` of an existing file replace those given."""

    def __init__(self, path, seeds):
        self.path, self.seeds, self.found = path, seeds, None
        self.n_done, self.cost, self.written = 0, 0.0, -np.inf
        self.has_warned = False
        _files.remove_temporaries(path)
        if path.exists():
            self.found = header, _ = _files.read_model(path, "checkpoint")
            with _files.explain_file(path, "checkpoint"):
                if header["checkpoint"] != FORMAT:
                    raise ModelFileError("it is of another version. Delete it.")
                seeds = [_files.number(seed, "seeds") for seed in header["seeds"]]
                self.seeds = tuple(seeds)

    def restore(self, net):
        """Put a net in the state of the checkpoint, if there is one."""
        if self.found is None:
            # Types that cannot be stored are reported now, not after an epoch.
            _files.encode(net.module_.state_dict(), "module", {})
            return
        header, arrays = self.found
        self.found = None
        with _files.explain_file(self.path, "checkpoint"):
            self.n_done = _files.number(header["n_done"], "n_done")
            net.history_ = _files.restore_history(arrays)
            tensors = {name: torch.from_numpy(a) for name, a in arrays.items()}
            _set_state(net, _files.decode(header["state"], tensors), self.n_done)

    def on_epoch_end(self, net, **kwargs):
        """Count the epochs."""
        self.n_done += 1

    def on_epoch_begin(self, net, **kwargs):
        """Write, now that no callback has ended the training."""
        start = time.monotonic()
        if not self.n_done or _COST * (start - self.written) < self.cost:
            return
        arrays = {}
        header = {
            "checkpoint": FORMAT,
            "n_done": self.n_done,
            "seeds": list(self.seeds),
            "state": _files.encode(_state_of(net), "checkpoint", arrays),
        }
        # The row of the epoch that begins is there already.
        _files.describe_history(list(net.history)[:-1], arrays)
        try:
            _files.write_model(self.path, header, arrays)
        except OSError as error:
            # A fit is worth more than its checkpoint.
            if not self.has_warned:
                warnings.warn(
                    f"The checkpoint {self.path} could not be written, training "
                    f"continues: {error}",
                    stacklevel=2,
                )
            self.has_warned = True
        self.written = time.monotonic()
        self.cost = self.written - start


def _key(params, samples, random_state, previous):
    """Digest of all that determines the weights that a fit ends with."""
    considered = params.get_params(deep=False)
    # They do not change the weights that a fit ends with, or are not comparable.
    for name in ("callbacks", "checkpoint_dir", "device", "random_state", "verbose"):
        considered.pop(name, None)
    # None makes a new generator each time.
    if params.random_state is not None:
        considered["random_state"] = random_state.get_state()
    considered["device"] = str(resolve_device(params.device))
    considered["layout"] = dataclasses.astuple(samples.layout)
    try:
        if previous is not None:
            state, arrays = [len(previous.history), previous.module.state_dict()], {}
            if previous.net is not None:
                state.append(previous.net.optimizer_.state_dict()["state"])
            considered["previous"] = _files.encode(state, "previous", arrays), arrays
        described = joblib.hash(considered)
        if joblib.hash(copy.deepcopy(considered)) != described:
            raise TypeError("a copy of one differs from it")
    # Objects can fail to be pickled or copied in many ways.
    except Exception as error:
        raise ValueError(
            "With 'checkpoint_dir' fits are identified by their parameters, which must "
            f"be values that can be pickled and compared. These cannot: {error}."
        ) from error
    # Arrays are read where they lie, without a copy; SHA-1 is the fastest.
    return joblib.hash((described, samples.X, samples.X_val), hash_name="sha1")


def _state_of(net):
    """All that a net in training depends on, but for its history."""
    state = {
        "module": net.module_.state_dict(),
        "optimizer": net.optimizer_.state_dict()["state"],
        "rates": [float(group["lr"]) for group in net.optimizer_.param_groups],
        "generators": [generator.get_state() for generator in _generators(net)],
        "criterion": (net.criterion_.scale, net.criterion_.power),
    }
    if net.criterion_.follows:
        state["noise"] = dataclasses.astuple(net.criterion_.falling)
    if net.run.scheduler is not None:
        scheduler = net.run.scheduler.state_dict()
        changing = "last_epoch", "_step_count", "_last_lr"
        state["scheduler"] = {name: scheduler[name] for name in changing}
    if net.keeper is not None:
        state["keeper"] = net.keeper.state()
    return state


def _set_state(net, state, n_done):
    """Put a net in the state of :func:`_state_of`, `n_done` epochs after its start."""
    net.module_.load_state_dict(state["module"])
    optimizer = net.optimizer_.state_dict() | {"state": state["optimizer"]}
    for group, rate in zip(optimizer["param_groups"], state["rates"], strict=True):
        group["lr"] = float(rate)
    net.optimizer_.load_state_dict(optimizer)
    _check_fused(net.optimizer_)
    net.note_rates()
    if net.run.scheduler is not None:
        net.run.scheduler.load_state_dict(state["scheduler"])
    for generator, found in zip(_generators(net), state["generators"], strict=True):
        generator.set_state(found)
    if net.criterion_.learns_scale:
        scale, power = state["criterion"]
        net.criterion_.scale, net.criterion_.power = float(scale), power.to(net.device)
    if net.criterion_.follows:
        net.criterion_.falling = FallingNoise(*map(float, state["noise"]))
    # The history holds which losses were the best.
    for _, callback in net.callbacks_:
        if isinstance(callback, PassthroughScoring):
            scores = (row.get(callback.name, np.inf) for row in net.history[-n_done:])
            callback.best_score_ = min(scores)
    if net.keeper is not None:
        weights = state["keeper"].pop("weights")
        numbers = {name: np.asarray(v) for name, v in state["keeper"].items()}
        net.keeper.resume(numbers | {"weights": weights})


def _check_fused(optimizer):
    """Raise if a step would read beyond tensors: fused steps do not check shapes."""
    for group in optimizer.param_groups:
        if not group.get("fused"):
            continue
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if name != "step" and getattr(value, "shape", None) != parameter.shape:
                    raise ModelFileError(f"the optimizer's '{name}' has another shape.")


def _generators(net):
    """All sources of randomness: the net's own, and torch's global ones."""
    generators = [*net.run.generators, torch.default_generator]
    if net.run.generators[0].device.type == "cuda":
        generators.append(torch.cuda.default_generators[torch.cuda.current_device()])
    return generators
