"""Training steps of a stack: layers written for stacks, against ``torch.func.vmap``.

One step is the bound of a batch of 128 rows for each member, its gradients and Adam.
Searches train the hand-written stack; the other one maps the model of a single member
over stacked weights. They take turns; ratios are taken within each repeat.
"""

import argparse
from copy import copy, deepcopy
from pathlib import Path

import numpy as np
import torch
from _report import alternate, environment, publish
from torch.func import functional_call, stack_module_state, vmap

from sklearn_sigmavae import SigmaVAE
from sklearn_sigmavae._model.elbo import NegativeELBO
from sklearn_sigmavae._training.optimizers import OPTIMIZERS
from sklearn_sigmavae._training.stack import NegativeELBOStack, VAEStack

N_FEATURES, N_COMPONENTS, BATCH_SIZE = 64, 16, 128
WRITTEN, MAPPED = "written for stacks", "vmap"


class Loss(torch.nn.Module):
    """The loss of one model, so that it can be called with any weights."""

    def __init__(self, vae, criterion):
        super().__init__()
        self.vae, self.criterion = vae, criterion

    def forward(self, x, eps, beta, scale):
        """Loss of a batch."""
        criterion = copy(self.criterion)
        criterion.beta, criterion.scale = beta, scale
        return criterion(self.vae, x, eps)


def members(n_members, hidden):
    """Models and losses of a search over sigma."""
    X = np.random.default_rng(0).normal(size=(BATCH_SIZE, N_FEATURES))
    params = {"max_iter": 0, "device": "cpu", "init": "random"}
    vae = SigmaVAE(N_COMPONENTS, hidden_layer_sizes=hidden, **params)
    vaes = [vae.set_params(random_state=i).fit(X).module_ for i in range(n_members)]
    sigmas = np.geomspace(0.2, 1, n_members).tolist()
    return vaes, [NegativeELBO(vae.noise_, 1.0, sigma) for sigma in sigmas]


def written(vaes, criteria):
    """Loss and parameters of the hand-written stack."""
    stack, criterion = VAEStack(vaes), NegativeELBOStack(criteria)
    return (lambda x, eps: criterion(stack, x, eps)), list(stack.parameters())


def mapped(vaes, criteria):
    """Loss and parameters of a mapped member."""
    parameters, _ = stack_module_state(vaes)
    base = Loss(deepcopy(vaes[0]), criteria[0])
    numbers = torch.tensor([[c.beta, c.scale] for c in criteria]).T

    def loss_of_one(parameters, *args):
        weights = {f"vae.{name}": value for name, value in parameters.items()}
        return functional_call(base, weights, args)

    def loss(x, eps):
        return vmap(loss_of_one)(parameters, x, eps, *numbers)

    return loss, list(parameters.values())


def training(loss, parameters, batches):
    """Function that takes a step with each batch."""
    optimizer_class, options = OPTIMIZERS["adam"]
    optimizer = optimizer_class(parameters, lr=1e-3, fused=True, **options)

    def run():
        for x, eps in batches:
            optimizer.zero_grad()
            of_members = loss(x, eps)
            of_members.backward(torch.ones_like(of_members))
            optimizer.step()

    return run


def report(args):
    """Lines of the report."""
    torch.set_num_threads(1)
    yield f"One thread; milliseconds per step, medians of {args.repeats}."
    yield ""
    yield f"| hidden layers | members | {WRITTEN} | {MAPPED} | ratio |"
    yield "|---|---|---|---|---|"
    for hidden in ((64, 64), (256, 256)):
        for n in (8, 16, 40):
            models = members(n, hidden)
            programs = {WRITTEN: written(*models), MAPPED: mapped(*models)}
            n_steps = max(2, args.steps * 8 * 64 // (n * hidden[0]))
            shape = n_steps, n, BATCH_SIZE
            x, eps = torch.randn(*shape, N_FEATURES), torch.randn(*shape, N_COMPONENTS)
            batches = list(zip(x, eps, strict=True))
            both = [loss(*batches[0]) for loss, _ in programs.values()]
            torch.testing.assert_close(*both, rtol=1e-4, atol=1e-3)
            runs = {k: training(*pair, batches) for k, pair in programs.items()}
            alternate(runs, 1)
            times = alternate(runs, args.repeats)
            ratios = times[MAPPED] / times[WRITTEN]
            of_steps = [f"{1e3 * np.median(t) / n_steps:.3g}" for t in times.values()]
            yield (
                f"| {hidden} | {n} | {' | '.join(of_steps)} | {np.median(ratios):.2f} "
                f"({ratios.min():.2f}..{ratios.max():.2f}) |"
            )
    yield ""
    yield environment()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--output", type=Path)
    publish(report(parser.parse_args()), parser.parse_args().output)
