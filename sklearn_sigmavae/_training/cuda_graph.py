"""Training steps as CUDA graphs.

On a small network the GPU waits for Python to launch one kernel after another; a graph
launches all of a step's at once. It replays the same kernels on the same memory, so
what changes from step to step, such as the learning rate, must be in tensors on the
device.
"""

import warnings

import torch

# By how much, relative to the step, a replay may differ from the eager step: the order
# of sums on a GPU changes from run to run.
_TOLERANCE = 1e-2


def can_capture(net, device, n_steps):
    """Whether steps of a net may be captured in a graph, and there are enough."""
    return (
        device.type == "cuda"
        and not net.run.watches_batches
        and n_steps >= 50  # fewer are over before a graph is captured
        and all(group.get("capturable") for group in net.optimizer_.param_groups)
    )


class GraphedSteps:
    """The training steps of a net, captured once in a CUDA graph and then replayed.

    They are captured anew where callbacks change what a graph cannot see. The first
    replay is compared with an eager step from the same state; if it differs, all steps
    are eager. Batches of another size run eagerly too. A step must not wait for the
    device.
    """

    def __init__(self, net):
        self.net, self.rates = net, []
        criterion, device = net.criterion_, net.run.generators[0].device
        factor = torch.as_tensor(criterion.kl_factor, dtype=torch.float32)
        criterion.kl_factor = factor.to(device)
        self.settings = self.state = None

    def begin_epoch(self, batch_size):
        """Let captured steps see what callbacks changed."""
        net, optimizer = self.net, self.net.optimizer_
        settings = [(p.requires_grad, p.data_ptr()) for p in net.run.parameters]
        settings.append(net.criterion_.settings)
        for i, group in enumerate(optimizer.param_groups):
            if i == len(self.rates):
                device = net.run.generators[0].device
                self.rates.append(torch.zeros((), dtype=torch.float32, device=device))
            # A graph reads the learning rate from where it was at its capture.
            if group["lr"] is not self.rates[i]:
                self.rates[i].fill_(float(group["lr"]))
                group["lr"] = self.rates[i]
            settings.append(
                {key: group[key] for key in group.keys() - {"params", "lr"}}
            )
        if settings != self.settings or optimizer.state is not self.state:
            self.settings, self.state = settings, optimizer.state
            self.batch_size, self.graph = batch_size, CudaGraph()
            # Eager steps, as CUDA asks: they build the optimizer's state, for example.
            self.n_warm_up, self.is_captured = 3, False

    def __call__(self, *batch):
        """Take a step; return its loss."""
        if batch[0].shape[-2] != self.batch_size or self.graph is None:
            return self.net.take_step(*batch)
        if self.n_warm_up:
            self.n_warm_up -= 1
            return self._warm_up(batch)
        if not self.is_captured:
            return self._capture(batch)
        return self._replay(batch)

    def _changed_tensors(self):
        """What a step changes: weights, buffers, moments, and the sums of an epoch."""
        states = self.net.optimizer_.state.values()
        values = [value for state in states for value in state.values()]
        criterion = self.net.criterion_
        values += self.net.module_.state_dict().values()
        values += [criterion.kl, criterion.power]
        return [value for value in values if torch.is_tensor(value)]

    def _warm_up(self, batch):
        # The first step may wait for the device where later ones do not.
        if self.n_warm_up:
            return self.graph.run(self.net.take_step, *batch)
        loss, waits = self.graph.run_and_watch(self.net.take_step, *batch)
        self.loss = torch.zeros_like(loss)
        if waits:
            # Its capture could fail, from which torch does not always recover.
            self._give_up(waits)
        return loss

    def _capture(self, batch):
        """Capture a step and try it; in any case the step is taken eagerly."""
        graph, tensors = self.graph, self._changed_tensors()
        self.batch = [tensor.clone() for tensor in batch]
        before = [tensor.clone() for tensor in tensors]
        random = graph.random_state()
        replayed = []
        try:
            graph.capture(lambda: self.loss.copy_(self.net.take_step(*self.batch)))
            replayed = [self._replay(batch), *(tensor.clone() for tensor in tensors)]
        except RuntimeError as error:
            # Torch hides the reason behind a second error.
            self._give_up(error.__context__ or error)
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)
        graph.set_random_state(random)
        loss = self.net.take_step(*batch)
        self.is_captured = True
        if replayed and not _agree(before, replayed, [loss, *tensors]):
            self._give_up("Its first replay differs from the step itself.")
        return loss

    def _replay(self, batch):
        for static, tensor in zip(self.batch, batch, strict=True):
            static.copy_(tensor)
        self.graph.replay()
        # The next replay overwrites it.
        return self.loss.clone()

    def _give_up(self, reason):
        self.graph = None
        warnings.warn(
            "A training step could not be captured in a CUDA graph, and training is "
            f"slower. Does the network read values back? {str(reason).splitlines()[0]}",
            stacklevel=2,
        )


def _agree(before, replayed, eager):
    """Whether two steps from one state, losses first, have the same results."""
    if not torch.allclose(replayed[0], eager[0], rtol=_TOLERANCE, equal_nan=True):
        return False
    for old, a, b in zip(before, replayed[1:], eager[1:], strict=True):
        size = (b - old).norm() if b.is_floating_point() else 0
        difference = (a - b).double().norm()
        if difference > _TOLERANCE * size + 1e-6 * b.double().norm():
            return False
    return True


class CudaGraph:
    """A CUDA graph of a function, with the stream that it is made on."""

    def __init__(self):
        # One stream for all runs: each keeps its own workspace on the device.
        self.stream = torch.cuda.Stream()
        self.graph = torch.cuda.CUDAGraph()

    def run(self, function, *args):
        """Run a function on the stream, which the current one then awaits."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = function(*args)
        current.wait_stream(self.stream)
        return result

    def run_and_watch(self, function, *args):
        """Result of a function, and torch's warning if it waits, or None."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                result = self.run(function, *args)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        messages = [str(warning.message) for warning in caught]
        waits = [text for text in messages if "called a synchronizing" in text]
        return result, next(iter(waits), None)

    def capture(self, function):
        """Record a function's kernels, which does not run them."""
        current = torch.cuda.current_stream()
        try:
            # So that other threads, which may be training too, can use the device.
            with torch.cuda.graph(
                self.graph, stream=self.stream, capture_error_mode="thread_local"
            ):
                function()
        finally:
            # After a failure torch stays on the other stream.
            torch.cuda.set_stream(current)

    def replay(self):
        """Run what was recorded."""
        self.graph.replay()

    def random_state(self):
        """State of the device's generator, which dropout draws from."""
        return torch.cuda.get_rng_state()

    def set_random_state(self, state):
        """Put the generator in a state."""
        torch.cuda.set_rng_state(state)
