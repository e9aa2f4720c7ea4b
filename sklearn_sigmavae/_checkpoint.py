"""Checkpoints: what a killed fit needs to end with the weights it would have had.

A fit is known by its parameters and its data, so fits that share a folder do not meet,
and one that is started again finds its own.
"""

import copy
import dataclasses
import hashlib
import os
import time
import warnings
from contextlib import ExitStack, contextmanager, suppress
from numbers import Number
from pathlib import Path

import joblib
import numpy as np
import torch
from skorch.callbacks import Callback, PassthroughScoring

from ._model_file import describe_history, restore_history
from ._module import blocks
from ._net import DivergenceError, KeepBest
from ._persistence import (
    Header,
    ModelFileError,
    check_types,
    explain_file,
    read_model,
    remove_temporaries,
    write_model,
)
from ._start import draw_seeds
from ._validation import resolve_device

try:
    import fcntl
except ImportError:  # where files are not locked
    fcntl = None

FORMAT = 1

# Writing takes at most about this fraction of the time.
_COST = 0.05

# What changes nothing in the weights that a fit ends with, or cannot be compared.
_IRRELEVANT = ("callbacks", "checkpoint_dir", "device", "random_state", "verbose")


@contextmanager
def checkpoint_of(params, plan, data, random_state, previous):
    """Context with the checkpoint of a fit, or None if it has none.

    At the end of the context the fit is done, and the file is removed.

    Parameters
    ----------
    params : SigmaVAE
        The estimator, for its parameters.
    plan : Plan
        How long to train.
    data : TrainingData
        What it is fitted to.
    random_state : numpy.random.RandomState
        Source of the seeds.
    previous : BoundNet, LoadedModel or None
        What it continues from.

    Raises
    ------
    OSError
        If the folder cannot be written to.
    ValueError
        If the parameters cannot be told from others.
    ModelFileError
        If there is a checkpoint that cannot be read.
    """
    # Of one epoch there is nothing to go on from.
    if params.checkpoint_dir is None or plan.epochs < 2:
        yield None
        return
    folder = Path(params.checkpoint_dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"fit-{_key(params, data, random_state, previous)}.safetensors"
    with _claim(path.with_suffix(".lock")) as is_claimed:
        if not is_claimed:
            warnings.warn(
                "Another fit with the same parameters and data is under way, to which "
                f"the checkpoint {path} belongs: this one has none.",
                stacklevel=2,
            )
            yield None
            return
        checkpoint = Checkpoint(path, draw_seeds(random_state))
        try:
            yield checkpoint
        except DivergenceError:
            # So it would again.
            checkpoint.remove()
            raise
        checkpoint.remove()


@contextmanager
def _claim(path):
    """Context that says whether no other has claimed a path.

    The system ends a claim with its process, however that ends.
    """
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
                # A file system without locks, as some of networks are: all fits go on.
                break
            # Its owner may have removed it in between.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    break
        stack.callback(path.unlink, missing_ok=True)
        yield True


class Checkpoint(Callback):
    """Checkpoint of one fit, a file that is replaced as the training goes on.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    seeds : tuple of int
        Seeds of the fit, unless there is a checkpoint already: then its seeds count.
    """

    def __init__(self, path, seeds):
        self.path = path
        self.n_done = 0
        self.header, self.arrays = None, None
        self.cost, self.written, self.has_warned = 0.0, -np.inf, False
        remove_temporaries(path)
        if path.exists():
            self.header, self.arrays = read_model(path, "checkpoint")
            with explain_file(path, "checkpoint"):
                header = Header(self.header)
                if header.take("checkpoint", int) != FORMAT:
                    raise ModelFileError("it is of another version.")
                seeds = header.sizes("seeds", at_least=0)
        self.seeds = seeds

    def restore(self, net):
        """Put a net where the checkpoint was, if there is one."""
        if self.header is None:
            # What cannot be kept is told now, not in an hour.
            check_types(_named("module", net.module_.state_dict()))
            return
        with explain_file(self.path, "checkpoint"):
            self.n_done = _restore(net, Header(self.header), self.arrays)
        self.header, self.arrays = None, None

    def on_epoch_end(self, net, **kwargs):
        """Count."""
        self.n_done += 1

    def on_epoch_begin(self, net, **kwargs):
        """Write, now that no callback has ended the training."""
        start = time.monotonic()
        if not self.n_done or _COST * (start - self.written) < self.cost:
            return
        header, arrays = _capture(net)
        header |= {
            "checkpoint": FORMAT,
            "seeds": list(self.seeds),
            "n_done": self.n_done,
        }
        try:
            write_model(self.path, header, arrays)
        except OSError as error:
            # What has been trained is worth more.
            if not self.has_warned:
                warnings.warn(
                    f"The checkpoint {self.path} could not be written, training goes "
                    f"on: {error}",
                    stacklevel=2,
                )
            self.has_warned = True
        self.written = time.monotonic()
        self.cost = self.written - start

    def remove(self):
        """Remove the file: the fit is done."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def _key(params, data, random_state, previous):
    """What tells a fit from others."""
    considered = params.get_params(deep=False)
    for name in _IRRELEVANT:
        considered.pop(name, None)
    # An int, or where a generator is; None is a new one each time.
    if params.random_state is not None:
        considered["random_state"] = random_state.get_state()
    considered["device"] = str(resolve_device(params.device))
    considered["layout"] = dataclasses.astuple(data.layout)
    try:
        described = joblib.hash(considered)
        is_stable = joblib.hash(copy.deepcopy(considered)) == described
    # As many types as there are reasons.
    except Exception as error:
        raise ValueError(_NOT_COMPARABLE.format(error)) from error
    if not is_stable:
        raise ValueError(_NOT_COMPARABLE.format("a copy of one differs from it"))
    digest = hashlib.blake2b(described.encode(), digest_size=16)
    for X in (data.X, data.X_val):
        if X is not None:
            digest.update(f"{X.shape} {X.dtype}".encode())
            for block in blocks(X):
                digest.update(np.ascontiguousarray(X[block]))
    if previous is not None:
        digest.update(str(len(previous.history)).encode())
        state = list(previous.module_.state_dict().values())
        if hasattr(previous, "optimizer_"):
            for values in previous.optimizer_.state_dict()["state"].values():
                state += filter(torch.is_tensor, values.values())
        for value in state:
            digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()


_NOT_COMPARABLE = (
    "With 'checkpoint_dir' fits are told apart by their parameters, which must be such "
    "that they can be pickled and compared. These are not: {}."
)


# What a net's training depends on


def _capture(net):
    """Header and arrays of the state of a net that is being trained."""
    arrays = _named("module", net.module_.state_dict())
    header = {"optimizer": {}, "criterion_scale": net.scale}
    for i, state in net.optimizer_.state_dict()["state"].items():
        header["optimizer"][str(i)] = numbers = {}
        for name, value in state.items():
            if torch.is_tensor(value):
                arrays |= _named(f"optimizer.{i}", {name: value})
            elif value is None or isinstance(value, Number):
                numbers[name] = value
            else:
                raise TypeError(
                    "With 'checkpoint_dir' the state of an optimizer must be tensors "
                    f"and numbers. That of {type(net.optimizer_).__name__} has "
                    f"{name}={value!r}."
                )
    header["rates"] = [float(group["lr"]) for group in net.optimizer_.param_groups]
    if net.scheduler_ is not None:
        state = net.scheduler_.state_dict()
        header["scheduler"] = {name: state[name] for name in _OF_SCHEDULER}
    arrays |= _named("generator", dict(enumerate(_generator_states(net))))
    if net.criterion_.power is not None:
        arrays |= _named("criterion", {"power": net.criterion_.power})
    # The row of the epoch that begins is there already.
    describe_history(list(net.history)[:-1], arrays)
    for keeper in _keepers(net):
        state = keeper.state()
        arrays |= _named("best", state.pop("weights"))
        arrays |= {f"keeper.{name}": np.asarray(value) for name, value in state.items()}
    return header, arrays


def _restore(net, header, arrays):
    """Put a net in a state; return how many epochs it has behind it."""
    net.module_.load_state_dict(_tensors("module", arrays))
    states = {
        int(i): numbers | _tensors(f"optimizer.{i}", arrays)
        for i, numbers in header.take("optimizer", dict).items()
    }
    groups = net.optimizer_.state_dict()["param_groups"]
    for group, rate in zip(groups, header.take("rates", list), strict=True):
        group["lr"] = rate
    net.optimizer_.load_state_dict({"state": states, "param_groups": groups})
    net.note_rates()
    if net.scheduler_ is not None:
        net.scheduler_.load_state_dict(header.take("scheduler", dict))
    states = _tensors("generator", arrays)
    for i, generator in enumerate(_generators(net)):
        generator.set_state(states[str(i)])
    if net.criterion_.learns_scale:
        net.criterion_.scale = header.number("criterion_scale")
        net.criterion_.power = _tensors("criterion", arrays)["power"].to(net.device)
    net.history_ = restore_history(arrays)
    n_done = int(header.number("n_done"))
    for _, callback in net.callbacks_:
        if isinstance(callback, PassthroughScoring):
            scores = (row.get(callback.name, np.inf) for row in net.history[-n_done:])
            callback.best_score_ = min(scores)
    for keeper in _keepers(net):
        state = _arrays("keeper", arrays)
        keeper.go_on(state | {"weights": _tensors("best", arrays)})
    return n_done


_OF_SCHEDULER = "last_epoch", "_step_count", "_last_lr"


def _generators(net):
    """All sources of randomness: the net's own, and torch's global ones."""
    generators = [*net.generators_, torch.default_generator]
    if net.generators_[0].device.type == "cuda":
        generators.append(torch.cuda.default_generators[torch.cuda.current_device()])
    return generators


def _generator_states(net):
    return [generator.get_state() for generator in _generators(net)]


def _keepers(net):
    return [
        callback for _, callback in net.callbacks_ if isinstance(callback, KeepBest)
    ]


def _named(prefix, tensors):
    return {f"{prefix}.{name}": value.cpu().numpy() for name, value in tensors.items()}


def _arrays(prefix, arrays):
    prefix += "."
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _tensors(prefix, arrays):
    return {
        name: torch.from_numpy(array) for name, array in _arrays(prefix, arrays).items()
    }
