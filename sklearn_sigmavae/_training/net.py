"""Training: a skorch net that maximizes the ELBO at the speed of a bare loop."""

import dis
import math
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import Callback
from skorch.utils import TeeGenerator, is_dataset, to_numpy, to_tensor

from .._errors import divergence_error
from .._model.settings import autocast, isolated_rng, matmul_precision
from .._model.units import Units
from . import cuda_graph
from .callbacks import KeepBest, StopTraining
from .data import ResidentRows, Selection

# Points of the held-out ELBO of an epoch, about: several for each row if there are few
# rows, else two. All epochs use the same points, so two are enough to find the best
# epoch: on five tables with 43 to 300 held-out rows the ELBO of the epoch chosen with
# two points a row was at most 0.001 nats below that of the best, by 256 points a row.
VALIDATION_POINTS = 2**9


class TrainingRun:
    """State of one call of :meth:`VAENet.train`.

    ``generators`` order the rows and draw from q(z|x). ``step`` takes a step with a
    batch and returns its loss. ``n_done`` epochs come from a checkpoint.
    """

    def __init__(self, net, selection):
        net.run = self
        device = selection.device
        self.parameters = list(net.module_.parameters())
        seeds = np.atleast_1d(net.seed).tolist()
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.watches_batches = any(
            getattr(type(callback), hook) is not getattr(Callback, hook)
            for _, callback in net.callbacks_
            for hook in ("on_batch_begin", "on_batch_end", "on_grad_computed")
        )
        n_steps = net.max_epochs * len(net.get_iterator(selection, training=True))
        can_capture = cuda_graph.can_capture(net, device, n_steps)
        self.graph = cuda_graph.GraphedSteps(net) if can_capture else None
        self.step = self.graph or net.take_step
        self.n_done = 0
        # Log-variances follow the noise, and optimizers such as Adam move a weight by
        # no more than the learning rate in a step.
        self.largest_factor = math.exp(min(50.0, net.lr * n_steps))
        self.scheduler = None
        if net.one_cycle:
            # One more than is taken: the scheduler runs ahead of the optimizer.
            self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
                net.optimizer_, net.lr, total_steps=n_steps + 1, cycle_momentum=False
            )


class VAENet(NeuralNet):
    """skorch net whose module is a VAE and whose criterion is the negative ELBO.

    ``seed`` is that of the order of the rows and of the draws from q(z|x), in a stack
    one for each distinct selection of rows. With ``one_cycle`` the learning rate warms
    up to ``lr`` and falls to zero, and the noise falls to its scale. ``precision`` is
    that of the training steps. Training sets ``start_loss_``, ``best_epoch_``, whose
    weights are kept, 0 for the start, and ``is_rising_``, whether the held-out ELBO was
    rising at the end.
    """

    # Everything that holds tensors is pickled together, so that what is shared stays
    # shared; skorch maps it to the CPU where the device is missing.
    cuda_dependent_attributes_ = ["module", "criterion", "optimizer"]

    run = None

    def __init__(self, module, criterion, *, seed, one_cycle, precision, **kwargs):
        super().__init__(module, criterion, train_split=None, **kwargs)
        self.seed, self.one_cycle, self.precision = seed, one_cycle, precision

    def resume(self, other):
        """Go on from another net: its optimizer's state and its history."""
        self.history_ = deepcopy(other.history)
        if type(self.optimizer_) is type(getattr(other, "optimizer_", None)):
            # The moments of the other, the settings of this one.
            state = deepcopy(other.optimizer_.state_dict())
            state["param_groups"] = self.optimizer_.state_dict()["param_groups"]
            self.optimizer_.load_state_dict(state)
        self.note_rates()

    def note_rates(self):
        """Record the learning rate where torch's schedulers look for it on resuming."""
        for group in self.optimizer_.param_groups:
            group.setdefault("initial_lr", self.lr)

    @property
    def keeper(self):
        """KeepBest or None : What keeps the best weights."""
        keepers = (c for _, c in self.callbacks_ if isinstance(c, KeepBest))
        return next(keepers, None)

    def train(self, selection, held_out, checkpoint=None):
        """Train for ``max_epochs`` epochs, or what a checkpoint leaves of them.

        Unlike skorch's ``fit`` it lets Ctrl-C through, but not a ``KeyboardInterrupt``
        that a callback raises, skorch's way to stop early.
        """
        with matmul_precision(self.device):
            self.start_loss_ = self.validation_loss(held_out or selection.some())
        self.best_epoch_, self.is_rising_ = 0, False
        if not self.max_epochs:
            if self.criterion_.follows:
                self.criterion_.set_scale(torch.as_tensor(self.criterion_.best_scale))
            return
        datasets, n_before = (selection, held_out), len(self.history)
        with (
            self._running(selection) as run,
            matmul_precision(self.device, self.precision),
        ):
            with suppress(StopTraining):
                if checkpoint is not None:
                    checkpoint.restore(self)
                    run.n_done = checkpoint.n_done
                self.notify("on_train_begin", X=datasets, y=None)
                self.fit_loop(datasets, epochs=self.max_epochs - run.n_done)
            with suppress(StopTraining):
                self.notify("on_train_end", X=datasets, y=None)
        self.best_epoch_ = len(self.history) - n_before
        if self.keeper is not None:
            # A number for one model, a list for a stack.
            self.best_epoch_ = self.keeper.best_epoch.tolist()
            self.is_rising_ = self.keeper.is_rising.tolist()

    @contextmanager
    def _running(self, selection):
        device, seed = selection.device, int(np.ravel(self.seed)[0])
        is_cuda = device.type == "cuda"
        run = TrainingRun(self, selection)
        try:
            with (
                isolated_rng(seed),
                torch.cuda.device(device) if is_cuda else nullcontext(),
            ):
                yield run
        finally:
            self.run = None
            # Gradients are as large as the weights.
            self.module_.zero_grad()
            self._set_training(False)
            # Last, since it fails if the device has failed.
            for group in self.optimizer_.param_groups:
                group["lr"] = float(group["lr"])

    def notify(self, method_name, **kwargs):
        """Call a method of this net and of each callback."""
        getattr(self, method_name)(self, **kwargs)
        stop = False
        # All callbacks see the hook in which one of them stops the training.
        for _, callback in self.callbacks_:
            try:
                getattr(callback, method_name)(self, **kwargs)
            except StopTraining:
                stop = True
            except KeyboardInterrupt as error:
                if not _is_raised_by_code(error):
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
            return dataset.training_batches(self.batch_size, k, self.run.generators)
        return dataset.evaluation_batches(self.module_, VALIDATION_POINTS)

    def run_single_epoch(self, iterator, training, prefix, step_fn, **fit_params):
        """Run an epoch, reading its loss out once, unless a callback sees batches."""
        if iterator is None:
            return
        self._set_training(training)
        if training:
            self.criterion_.begin_epoch(iterator.dataset)
            if self.one_cycle or self.criterion_.follows:
                progress = (len(self.history) - 1) / self.max_epochs
                self.criterion_.anneal(progress, self.run.largest_factor)
            if self.run.graph is not None:
                self.run.graph.begin_epoch(iterator.sizes[0])
        iterator.dataset.complete_for(self.criterion_)
        chooses = self.criterion_.follows and not training
        if self.run.watches_batches:
            batches, step = self._for_callbacks(iterator, step_fn, training)
            super().run_single_epoch(batches, training, prefix, step, **fit_params)
            if chooses:
                self._move_to_best_scale(prefix + "_loss", iterator.dataset)
        else:
            self.record_epoch(prefix, self._mean_loss(iterator, step_fn), iterator)
        self._record_terms(prefix, iterator.dataset)
        if training:
            self.check_finite(self.history[-1, "batches", :, prefix + "_loss"])
            self.criterion_.end_epoch(iterator.dataset)
        elif chooses:
            self.history.record("sigma", self.criterion_.best_sigma)

    def _move_to_best_scale(self, name, dataset):
        """Put losses in nats into the history, which has what forward returned."""
        mean = self._mean_of_batches(name)
        change = self.criterion_.in_nats(self.module_, mean, dataset) - mean
        for row in self.history[-1, "batches"]:
            if name in row:
                row[name] += change

    def _mean_of_batches(self, name):
        """Mean of the losses of the last epoch, of batches of any sizes."""
        batches = [row for row in self.history[-1, "batches"] if name in row]
        sizes = [row[name.replace("loss", "batch_size")] for row in batches]
        return np.average([row[name] for row in batches], axis=0, weights=sizes)

    def _record_terms(self, prefix, dataset):
        """Record the two terms of the loss of an epoch, in nats per row."""
        loss = self._mean_of_batches(prefix + "_loss")
        kl, weight = self.criterion_.divergence(self.module_, dataset)
        terms = {"kl": kl, "reconstruction": loss - weight * kl}
        for name, value in terms.items():
            value = value if value.ndim else value.item()
            self.history.record(f"{prefix}_{name}", value)

    def record_epoch(self, prefix, loss, iterator):
        """Record the loss of an epoch as that of one large batch."""
        self.history.new_batch()
        self.history.record_batch(prefix + "_loss", loss)
        self.history.record_batch(prefix + "_batch_size", len(iterator.dataset))
        self.history.record(prefix + "_batch_count", len(iterator))

    def train_step(self, batch, **fit_params):
        """Take one optimization step."""
        loss = self.run.step(*batch)
        if self.run.scheduler is not None:
            self.run.scheduler.step()
        return {"loss": loss}

    def take_step(self, x, eps):
        """Take a step of the optimizer; return the loss before it."""
        # Like zero_grad, without what that records for profilers at each step.
        for parameter in self.run.parameters:
            parameter.grad = None
        with autocast(self.device, self.precision):
            loss = self.criterion_(self.module_, x, eps)
        # The members of a stack share nothing: each has the gradient of its own loss.
        loss.backward(torch.ones_like(loss) if loss.ndim else None)
        if self.run.watches_batches:
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
        with torch.no_grad():
            return {"loss": self.criterion_(self.module_, *batch)}

    def _for_callbacks(self, batches, step_fn, training):
        """Batches and a step as skorch's callbacks expect them.

        A row is its own target, and its reconstruction, for which the step takes
        another pass, the prediction.
        """
        points, dataset, criterion = [], batches.dataset, self.criterion_
        if not training:
            criterion.begin_epoch(dataset)

        def pairs():
            for x, eps in batches:
                points[:] = [eps]
                yield x, x[..., : self.module_.units.n_internal]

        def step(batch, **fit_params):
            # A callback that predicts leaves the net in evaluation mode.
            self._set_training(training)
            loss = step_fn((batch[0], *points), **fit_params)["loss"]
            # In evaluation mode: dropout would draw from the random state, and a batch
            # normalization learn from each batch twice.
            self.module_.eval()
            with torch.no_grad():
                y_pred = self.infer(batch[0])
            self.module_.train(training)
            if training or not criterion.follows:
                loss = criterion.in_nats(self.module_, loss, dataset)
            return {"loss": torch.as_tensor(loss), "y_pred": y_pred}

        return pairs(), step

    def infer(self, x, **fit_params):
        """Reconstructions of rows, both in internal units: what the net predicts."""
        x = to_tensor(x, device=self.device)
        location = self.module_.decode(self.module_(x))
        mean = self.criterion_.noise.mean(to_numpy(location))
        return to_tensor(mean, device=self.device).to(x.dtype)

    def get_dataset(self, X, y=None):
        """Rows in internal units, such as callbacks predict, as a dataset."""
        if is_dataset(X):
            return X
        X = np.array(to_numpy(X), dtype=np.float32)
        units = Units.identity(X.shape[1])
        return Selection(ResidentRows(X, units, torch.device(self.device)))

    def validation_loss(self, dataset):
        """Mean loss of a dataset, in nats; one for each member of a stack."""
        self._set_training(False)
        return self._mean_loss(self.get_iterator(dataset), self.validation_step)

    def _mean_loss(self, batches, step_fn):
        losses, recent, sizes = [], [], []
        if not self.criterion_.training:
            self.criterion_.begin_epoch(batches.dataset)
        for batch in batches:
            recent.append(step_fn(batch)["loss"])
            sizes.append(batch[0].shape[-2])
            # Small tensors that outlive a batch lie between the freed memory of large
            # ones, which then cannot be used again.
            if len(recent) == 32:
                losses.append(torch.stack(recent))
                recent.clear()
        if recent:
            losses.append(torch.stack(recent))
        mean = np.average(torch.cat(losses).tolist(), axis=0, weights=sizes)
        return self.criterion_.in_nats(self.module_, mean, batches.dataset)

    def learn_scale(self, selection):
        """Set the learned scale to the maximum-likelihood one over rows."""
        self.criterion_.begin_epoch(selection)
        self._set_training(False)
        self.criterion_.train()
        with torch.no_grad(), matmul_precision(self.device):
            # More points than for an epoch, since it is done once.
            for x, eps in selection.evaluation_batches(self.module_, 2**15):
                self.criterion_(self.module_, x, eps)
        self.criterion_.eval()
        self.criterion_.end_epoch(selection)

    def check_finite(self, losses):
        """Raise ``DivergenceError`` unless the losses of a member are finite."""
        if not np.isfinite(losses).all(axis=0).any():
            raise divergence_error(len(self.history), self.lr)


def _is_raised_by_code(error):
    """Whether a statement raised an exception: Ctrl-C raises it in between two."""
    traceback = error.__traceback__
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    instruction = traceback.tb_frame.f_code.co_code[traceback.tb_lasti]
    return dis.opname[instruction] == "RAISE_VARARGS"
