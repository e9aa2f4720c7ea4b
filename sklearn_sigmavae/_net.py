"""Training: a skorch net that maximises the bound at the speed of a bare loop."""

import math
import signal
import threading
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import Callback
from skorch.utils import TeeGenerator, is_dataset, to_numpy, to_tensor

from . import _device
from ._batches import ResidentRows, Selection
from ._device import CapturedStep, autocast, matmul_precision
from ._module import Units
from ._rng import isolated_rng

# The fused variants update all parameters in one call. Adam's eps is far below any
# gradient, so that a common factor in the loss, such as beta's, changes nothing.
OPTIMIZERS = {
    "adam": (torch.optim.Adam, {"eps": 1e-12, "fused": True}),
    "adamw": (torch.optim.AdamW, {"eps": 1e-12, "fused": True}),
    "sgd": (torch.optim.SGD, {"fused": True}),
}

_BATCH_HOOKS = ("on_batch_begin", "on_batch_end", "on_grad_computed")

# About how many points the held-out bound of an epoch is taken over: enough to tell
# epochs apart on few rows, two for each of many.
_VALIDATION_POINTS = 2048

# The same for the learned scale of the noise, which is computed once.
_SCALE_POINTS = 2**15

# Losses of so many batches move into one tensor. Small tensors that outlive a batch lie
# between the freed memory of large ones, which then cannot be used again.
_LOSSES_TOGETHER = 32

# Fewer steps than this are over before a graph is captured.
_STEPS_TO_CAPTURE = 50


class BoundNet(NeuralNet):
    """skorch net whose module is a VAE and whose criterion is the negative bound.

    Parameters
    ----------
    module : VAE
        The module to train.
    criterion : NegativeBound
        The loss.
    seed : int or tuple of int
        Seed of the order of the rows and of the draws from q(z|x); of a stack, one for
        each distinct selection of rows.
    one_cycle : bool
        Whether the learning rate warms up to ``lr`` and falls to zero, or is constant.
    structure : dict
        The parameters that shaped the module, for training that continues.
    precision : {"float32", "tf32", "bfloat16"}
        Arithmetic of the training steps.
    **kwargs
        Parameters of :class:`skorch.NeuralNet`.
    """

    # Everything that holds tensors is pickled together, so that what is shared stays
    # shared; skorch maps it to the CPU where the device is missing.
    cuda_dependent_attributes_ = ["module", "criterion", "optimizer"]

    def __init__(
        self, module, criterion, *, seed, one_cycle, structure, precision, **kwargs
    ):
        super().__init__(module, criterion, train_split=None, **kwargs)
        self.seed = seed
        self.one_cycle = one_cycle
        self.structure = structure
        self.precision = precision

    @property
    def scale(self):
        """float or None : Scale of the noise, in internal units."""
        return self.criterion_.scale

    @property
    def noise(self):
        """NoiseModel : The noise."""
        return self.criterion_.noise

    def resume(self, other):
        """Go on from another net: its optimizer's state, if any, and its history."""
        self.history_ = deepcopy(other.history)
        if type(self.optimizer_) is type(getattr(other, "optimizer_", None)):
            # The moments of the other, the settings of this one.
            state = deepcopy(other.optimizer_.state_dict())
            state["param_groups"] = self.optimizer_.state_dict()["param_groups"]
            self.optimizer_.load_state_dict(state)
        self.note_rates()
        return self

    def note_rates(self):
        """Note the learning rate, as schedulers of torch want it that go on."""
        for group in self.optimizer_.param_groups:
            group.setdefault("initial_lr", self.lr)

    def examine_start(self, selection):
        """Note the loss of rows at the weights that training starts with."""
        with matmul_precision(self.device):
            self.start_loss_ = self.validation_loss(selection)
        self.best_epoch_, self.is_rising_ = 0, False
        self._n_before = len(self.history)

    @property
    def keeper(self):
        """KeepBest or None : What keeps the best weights."""
        keepers = (c for _, c in self.callbacks_ if isinstance(c, KeepBest))
        return next(keepers, None)

    def train(self, selection, held_out, checkpoint=None):
        """Train for ``max_epochs`` epochs.

        Unlike skorch's ``fit`` it lets ``KeyboardInterrupt`` through, unless a callback
        raised it, which is skorch's way to stop early.

        Parameters
        ----------
        selection : Selection or SelectionStack
            Rows to train on.
        held_out : Selection, SelectionStack or None
            Held-out rows, whose loss is recorded.
        checkpoint : Checkpoint or None, default=None
            Where to go on from; one of the callbacks.
        """
        datasets = selection, held_out
        with self._run_state(selection), matmul_precision(self.device, self.precision):
            with suppress(StopTraining):
                if checkpoint is not None:
                    checkpoint.restore(self)
                    self.n_done_ = checkpoint.n_done
                self.notify("on_train_begin", X=datasets, y=None)
                self.fit_loop(datasets, epochs=self.max_epochs - self.n_done_)
            with suppress(StopTraining):
                self.notify("on_train_end", X=datasets, y=None)
        self.best_epoch_ = len(self.history) - self._n_before
        if self.keeper is not None:
            # A number for one model, a list for a stack.
            self.best_epoch_ = self.keeper.best_epoch.tolist()
            self.is_rising_ = self.keeper.is_rising.tolist()

    @contextmanager
    def _run_state(self, selection):
        """Context with what one run of training alone needs."""
        device = selection.device
        on_device = (
            torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        )
        self.parameters_ = list(self.module_.parameters())
        seeds = np.atleast_1d(self.seed).tolist()
        self.generators_ = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.watches_batches_ = any(
            getattr(type(callback), hook) is not getattr(Callback, hook)
            for _, callback in self.callbacks_
            for hook in _BATCH_HOOKS
        )
        n_steps = self.max_epochs * len(self.get_iterator(selection, True))
        self.captures_ = self._can_capture(device, n_steps)
        self.captured_settings_, self.captured_state_, self.rates_ = None, None, []
        self.step_ = self._take_step
        self.n_done_ = 0
        self.scheduler_ = None
        if self.one_cycle:
            self.scheduler_ = torch.optim.lr_scheduler.OneCycleLR(
                # One more than is taken: the scheduler runs ahead of the optimizer.
                self.optimizer_,
                self.lr,
                total_steps=n_steps + 1,
                cycle_momentum=False,
            )
        try:
            with (
                _watch_for_sigint() as self.interrupts_,
                isolated_rng(seeds[0]),
                on_device,
            ):
                yield
        finally:
            # Some of it cannot be pickled, and gradients are as large as weights.
            for parameter in self.parameters_:
                parameter.grad = None
            del self.parameters_, self.generators_, self.scheduler_, self.step_
            del self.watches_batches_, self.interrupts_, self.n_done_
            del self.captures_, self.rates_
            del self.captured_settings_, self.captured_state_
            self._set_training(False)
            for _, callback in self.callbacks_:
                if isinstance(callback, ProgressBar):
                    callback.close()
            # Last, since it fails where the device has failed.
            for group in self.optimizer_.param_groups:
                group["lr"] = float(group["lr"])

    def _can_capture(self, device, n_steps):
        """Whether steps may be captured in a graph, and there are enough of them."""
        return (
            device.type == "cuda"
            and not self.watches_batches_
            and n_steps >= _STEPS_TO_CAPTURE
            and all(group.get("capturable") for group in self.optimizer_.param_groups)
        )

    def _renew_capture(self, batch_size):
        """Let captured steps see what callbacks changed: anew, where they cannot."""
        settings = [(p.requires_grad, p.data_ptr()) for p in self.parameters_]
        settings.append(self.criterion_.settings)
        for i, group in enumerate(self.optimizer_.param_groups):
            if i == len(self.rates_):
                device = self.generators_[0].device
                self.rates_.append(torch.zeros((), dtype=torch.float32, device=device))
            # A graph reads the learning rate from where it was at its capture.
            if group["lr"] is not self.rates_[i]:
                self.rates_[i].fill_(float(group["lr"]))
                group["lr"] = self.rates_[i]
            settings.append(
                {key: group[key] for key in group.keys() - {"params", "lr"}}
            )
        state = self.optimizer_.state
        if settings != self.captured_settings_ or state is not self.captured_state_:
            self.captured_settings_, self.captured_state_ = settings, state
            graph = _device.CudaGraph()
            self.step_ = CapturedStep(self._take_step, batch_size, graph)

    def notify(self, method_name, **kwargs):
        """Call a method of this net and of each callback."""
        if any(self.interrupts_):
            # It was raised where Python ignores exceptions, in a destructor say.
            raise KeyboardInterrupt
        getattr(self, method_name)(self, **kwargs)
        stop = False
        # All callbacks see the hook in which one of them stops the training.
        for _, callback in self.callbacks_:
            try:
                getattr(callback, method_name)(self, **kwargs)
            except StopTraining:
                stop = True
            except KeyboardInterrupt:
                if self.interrupts_:
                    raise
                stop = True
        if stop:
            raise StopTraining

    def get_split_datasets(self, X, y=None, **fit_params):
        """Pass the pair of datasets through; the estimator has split them."""
        return X

    def get_iterator(self, dataset, training=False):
        """Batches of a dataset, shuffled in training."""
        if training:
            k = self.module_.n_components
            return dataset.training_batches(self.batch_size, k, self.generators_)
        return dataset.evaluation_batches(self.module_, _VALIDATION_POINTS)

    def run_single_epoch(self, iterator, training, prefix, step_fn, **fit_params):
        """Run an epoch, reading its loss out once, unless a callback sees batches."""
        if iterator is None:
            return
        self._set_training(training)
        if training:
            self.criterion_.begin_epoch(iterator.dataset.device)
            if self.captures_:
                self._renew_capture(iterator.sizes[0])
        if self.watches_batches_:
            seen = self._for_callbacks(iterator, step_fn, training)
            super().run_single_epoch(seen[0], training, prefix, seen[1], **fit_params)
        else:
            self.record_epoch(prefix, self._mean_loss(iterator, step_fn), iterator)
        if training:
            self.check_finite(self.history[-1, "batches", :, prefix + "_loss"])
            self.criterion_.end_epoch(len(iterator.dataset))

    def record_epoch(self, prefix, loss, iterator):
        """Record the loss of an epoch as that of one large batch."""
        self.history.new_batch()
        self.history.record_batch(prefix + "_loss", loss)
        self.history.record_batch(prefix + "_batch_size", len(iterator.dataset))
        self.history.record(prefix + "_batch_count", len(iterator))

    def train_step(self, batch, **fit_params):
        """Take one optimisation step."""
        loss = self.step_(*batch)
        if self.scheduler_ is not None:
            self.scheduler_.step()
        return {"loss": loss}

    def _take_step(self, x, eps):
        # As zero_grad does, less what that records for profilers at each step.
        for parameter in self.parameters_:
            parameter.grad = None
        with autocast(self.device, self.precision):
            loss = self.criterion_(self.module_, x, eps)
        # The members of a stack share nothing: each has the gradient of its own loss.
        loss.backward(torch.ones_like(loss) if loss.ndim else None)
        if self.watches_batches_:
            parameters = TeeGenerator(self.get_all_learnable_params())
            self.notify(
                "on_grad_computed",
                named_parameters=parameters,
                batch=(x, x),
                training=True,
            )
        self._step_optimizer(None)
        return loss.detach()

    def validation_step(self, batch, **fit_params):
        """Loss of held-out rows."""
        x, eps = batch
        with torch.no_grad():
            return {"loss": self.criterion_(self.module_, x, eps)}

    def _for_callbacks(self, batches, step_fn, training):
        """Batches and a step as skorch's callbacks expect them.

        A row is its own target, and its reconstruction, for which the step takes
        another pass, the prediction.
        """
        points = []

        def pairs():
            for x, eps in batches:
                points[:] = [eps]
                yield x, x

        def step(batch, **fit_params):
            # A callback that predicts leaves the net in evaluation mode.
            self._set_training(training)
            loss = step_fn((batch[0], *points), **fit_params)["loss"]
            # In evaluation mode: dropout would draw from the random state, and a batch
            # normalisation learn from each batch twice.
            self.module_.eval()
            with torch.no_grad():
                y_pred = self.infer(batch[0])
            self.module_.train(training)
            return {"loss": loss + self._constant, "y_pred": y_pred}

        return pairs(), step

    def infer(self, x, **fit_params):
        """Reconstructions of rows, both in internal units: what the net predicts."""
        x = to_tensor(x, device=self.device)
        location = self.module_.decode(self.module_.encode(x)[0])
        mean = self.noise.mean(to_numpy(location))
        return to_tensor(mean, device=self.device).to(x.dtype)

    def get_dataset(self, X, y=None):
        """Rows in internal units, such as callbacks predict, as a dataset."""
        if is_dataset(X):
            return X
        X = np.array(to_numpy(X), dtype=np.float32)
        units = Units.identity(X.shape[1])
        return Selection(ResidentRows(X, units, torch.device(self.device)))

    def validation_loss(self, dataset):
        """Mean loss of a dataset at the present weights, in nats.

        A float; for a stack, an array of shape (n_members,).
        """
        self._set_training(False)
        return self._mean_loss(self.get_iterator(dataset), self.validation_step)

    def _mean_loss(self, batches, step_fn):
        losses, recent, sizes = [], [], []
        for batch in batches:
            recent.append(step_fn(batch)["loss"])
            sizes.append(batch[0].shape[-2])
            if len(recent) == _LOSSES_TOGETHER:
                losses.append(torch.stack(recent))
                recent.clear()
        if recent:
            losses.append(torch.stack(recent))
        mean = np.average(torch.cat(losses).tolist(), axis=0, weights=sizes)
        loss = mean + np.asarray(self._constant)
        return loss if loss.ndim else float(loss)

    @property
    def _constant(self):
        return self.criterion_.constant(self.module_)

    def learn_scale(self, selection):
        """Set the learned scale to the maximum-likelihood one over rows."""
        self.criterion_.begin_epoch(selection.device)
        self._set_training(False)
        self.criterion_.train()
        with torch.no_grad(), matmul_precision(self.device):
            for x, eps in selection.evaluation_batches(self.module_, _SCALE_POINTS):
                self.criterion_(self.module_, x, eps)
        self.criterion_.eval()
        self.criterion_.end_epoch(len(selection))

    def check_finite(self, losses):
        """Raise ``ValueError`` unless the losses of a member are finite."""
        if not np.isfinite(losses).all(axis=0).any():
            raise divergence_error(len(self.history), self.lr)


class StopTraining(Exception):
    """Raised by a callback, ends the training and keeps what it reached."""


class DivergenceError(ValueError):
    """Training has left what float32 can hold: the loss, or weights, are not finite.

    The estimator is then what it was before. A smaller ``learning_rate``, or a larger
    ``sigma`` or ``batch_size``, helps.

    See Also
    --------
    SigmaVAE.fit : Trains, and raises it.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_sigmavae import DivergenceError, SigmaVAE
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = SigmaVAE(2, sigma=0.3, learning_rate=1e30, max_iter=2, random_state=0)
    >>> try:
    ...     vae.fit(X)
    ... except DivergenceError:
    ...     vae.set_params(learning_rate=1e-3).fit(X)
    SigmaVAE(...)
    """


def divergence_error(epoch, learning_rate):
    """The error that tells that the loss is no longer finite."""
    return DivergenceError(
        f"Training diverged: the loss is no longer finite in epoch {epoch}. Lower "
        f"learning_rate (now {learning_rate:g}), or raise sigma or batch_size; if that "
        "does not help, look for outliers in X."
    )


class KeepBest(Callback):
    """Ends with the weights of the best held-out loss, the start's included.

    The members of a stack each have their own best, and their own end: the training
    goes on until the last of them stops, which leaves the others as they are.

    Parameters
    ----------
    patience : int or None
        Stop after this many epochs without an improvement; None never stops.
    tol : float
        Least improvement that counts for `patience`, in nats.
    """

    def __init__(self, patience, tol):
        self.patience = patience
        self.tol = tol

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Take the start for the best, unless a checkpoint has brought a better."""
        loss = np.asarray(net.start_loss_)
        if hasattr(self, "_weights"):
            return
        self._best_loss = np.where(np.isnan(loss), math.inf, loss)
        self._reference = self._best_loss
        self._misses = np.zeros(loss.shape, dtype=int)
        self.n_epochs_ = np.zeros(loss.shape, dtype=int)
        self.best_epoch = np.zeros(loss.shape, dtype=int)
        self._weights = deepcopy(net.module_.state_dict())

    def on_epoch_end(self, net, **kwargs):
        """Keep the weights if they are the best, stop if none were for long."""
        loss = np.asarray(net.history[-1, "valid_loss"])
        runs = self._runs
        self.n_epochs_ = self.n_epochs_ + runs
        improved = runs & (loss < self._best_loss)
        net.history.record("improved", improved if improved.ndim else bool(improved))
        self._best_loss = np.where(improved, loss, self._best_loss)
        if improved.any():
            self._keep(net, improved)
            self.best_epoch = np.where(improved, self.n_epochs_, self.best_epoch)
        counts = loss < self._reference - self.tol
        self._reference = np.where(counts, loss, self._reference)
        self._misses = np.where(runs & counts, 0, self._misses + 1)
        if not self._runs.any():
            raise StopTraining

    def on_train_end(self, net, **kwargs):
        """Restore the best weights."""
        net.module_.load_state_dict(self._weights)
        del self._weights

    def state(self):
        """What to :meth:`go_on` from."""
        return {name: getattr(self, f"_{name}") for name in self._STATE} | {
            "n_epochs": self.n_epochs_,
            "best_epoch": self.best_epoch,
        }

    def go_on(self, state):
        """Take up a state."""
        self.n_epochs_, self.best_epoch = state["n_epochs"], state["best_epoch"]
        for name in self._STATE:
            setattr(self, f"_{name}", state[name])

    _STATE = "best_loss", "reference", "misses", "weights"

    @property
    def is_rising(self):
        """ndarray of bool : Whether the held-out loss still fell when training ended.

        With one cycle, which has no patience, every loss flattens, and nothing can be
        seen.
        """
        if self.patience is None or self.n_epochs_.max() < 2:
            return np.zeros(self._misses.shape, dtype=bool)
        recent = self.n_epochs_ - self.best_epoch <= self.n_epochs_ // 10
        return self._runs & recent

    @property
    def any_has_ended(self):
        """bool : Whether a member of the stack has run out of patience."""
        return not self._runs.all()

    @property
    def _runs(self):
        if self.patience is None:
            return np.ones(self._misses.shape, dtype=bool)
        return self._misses < self.patience

    def _keep(self, net, improved):
        state = net.module_.state_dict()
        if improved.all():
            self._weights = deepcopy(state)
            return
        for name, value in state.items():
            members = torch.from_numpy(improved).to(value.device)
            self._weights[name][members] = value[members]


class ProgressBar(Callback):
    """A tqdm bar over epochs that shows the bound, in nats per row."""

    def on_train_begin(self, net, **kwargs):
        """Open the bar."""
        from tqdm.auto import tqdm

        self._bar = tqdm(
            total=net.max_epochs, initial=net.n_done_, desc="SigmaVAE", unit="epoch"
        )

    def on_epoch_end(self, net, **kwargs):
        """Show the epoch's bounds."""
        names = {"train_loss": "bound", "valid_loss": "held-out"}
        row = net.history[-1]
        shown = {name: f"{-row[key]:.3f}" for key, name in names.items() if key in row}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def close(self):
        """Close the bar, also of a training that failed."""
        vars(self).pop("_bar").close()


@contextmanager
def _watch_for_sigint():
    """List that is non-empty once the user has pressed Ctrl-C.

    Its items say whether that must end the training, as it does unless the user's own
    handler decides otherwise.

    skorch's callbacks raise KeyboardInterrupt to stop early; only this tells one from
    the other. Signals reach the main thread alone, so elsewhere none can come.
    """
    received = []
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(
        previous
    ):
        yield received
        return

    def handle(signum, frame):
        received.append(previous is signal.default_int_handler)
        previous(signum, frame)

    signal.signal(signal.SIGINT, handle)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, previous)
