"""SGD, SAM and GAM in PyTorch, written from the papers: what these cost where autograd records every operation anew."""

# pyright: reportMissingImports=false

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.data import Batch
from experiments.measure.cost.cases import ALPHA, RHO, SAM_RHO

Tensors = Sequence[torch.Tensor]
_BETA, _GAMMA, _RHO_PRIME = 0.5, 0.03, 0.02


class Problem:
    """One network on one batch: losses and gradients at the parameters and near them."""

    def __init__(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype):
        self._model, self._images, self._labels, self._dtype = model, images, labels, dtype
        self.params = [p for p in model.parameters() if p.requires_grad]

    def gradient(self, *, differentiable: bool = False) -> Tensors:
        """The gradient at the parameters as they are now; with a graph of its own to be differentiated again."""
        narrow = self._dtype != torch.float32
        with torch.autocast(self._images.device.type, self._dtype, enabled=narrow):  # parameters stay float32
            loss = nn.functional.cross_entropy(self._model(self._images).float(), self._labels)
        return torch.autograd.grad(loss, self.params, create_graph=differentiable)

    def norm_and_gradient(self) -> tuple[Tensors, Tensors]:
        """The gradient, and the gradient of its norm by double backward."""
        gradient = self.gradient(differentiable=True)
        ascent = torch.autograd.grad(_norm(gradient), self.params)
        return [g.detach() for g in gradient], ascent

    def moved(self, direction: Tensors, radius: float) -> "_Moved":
        """A context in which the parameters lie ``radius`` along a direction."""
        return _Moved(self.params, direction, radius / float(_norm(direction) + 1e-12))


def _norm(tensors: Tensors) -> torch.Tensor:
    return torch.sqrt(sum((torch.sum(t * t) for t in tensors), torch.zeros((), device=tensors[0].device)))


class _Moved:
    def __init__(self, params: Tensors, direction: Tensors, factor: float):
        self._params, self._shift = params, torch._foreach_mul(list(direction), factor)

    def __enter__(self) -> None:
        self._before = [p.detach().clone() for p in self._params]
        with torch.no_grad():
            torch._foreach_add_(list(self._params), self._shift)

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            torch._foreach_copy_(list(self._params), self._before)


def sgd(problem: Problem) -> Tensors:
    """One gradient."""
    return problem.gradient()


def sam(problem: Problem) -> Tensors:
    """The gradient at the worst point nearby (Foret et al. 2021): two gradients."""
    with problem.moved(problem.gradient(), SAM_RHO):
        return problem.gradient()


def gam(problem: Problem) -> Tensors:
    """Algorithm 1 of Zhang et al. (2023), Hessian-vector products by double backward."""
    gradient, ascent = problem.norm_and_gradient()
    with problem.moved(ascent, RHO):
        _, h_norm = problem.norm_and_gradient()
    return torch._foreach_add(list(gradient), list(h_norm), alpha=ALPHA * RHO)


def accelerated_gam(problem: Problem) -> Tensors:
    """Algorithm 2 of Zhang et al. (2023), in which differences of four gradients stand for the products."""
    g0 = problem.gradient()
    with problem.moved(g0, _RHO_PRIME):
        g1 = problem.gradient()
    with problem.moved(torch._foreach_sub(list(g1), list(g0)), RHO):
        g2 = problem.gradient()
        with problem.moved(g2, _RHO_PRIME):
            g3 = problem.gradient()
    minus = [_BETA * a + (1 - _BETA) * b for a, b in zip(g0, g2, strict=True)]
    plus = [ALPHA * a + (1 - ALPHA) * b for a, b in zip(g1, g3, strict=True)]
    scale = sum(torch.sum(p * m) for p, m in zip(plus, minus, strict=True)) / (_norm(plus) ** 2 + 1e-12)
    return [p - _GAMMA * (m - scale * p) for p, m in zip(plus, minus, strict=True)]


METHODS: dict[str, Callable[[Problem], Tensors]] = {
    "SGD": sgd,
    "SAM": sam,
    "GAM, double backward": gam,
    "GAM, four gradients": accelerated_gam,
}


_TWICE = ("GAM, double backward",)
"""Methods that differentiate the network twice, which torch.compile refuses."""


def steps(model: nn.Module, batch: Batch, dtype: str, *, compiled: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    """Name and one training step of each method.

    Args:
      model: the network.
      batch: what it is trained on.
      dtype: of the computation, as in :class:`experiments.models.config.ModelConfig`.
      compiled: whether torch.compile compiles the network.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format  # what its kernels are best at
    model = model.to(device, memory_format=layout)  # pyright: ignore[reportCallIssue]
    images = torch.from_numpy(np.array(batch.image, np.float32)).permute(0, 3, 1, 2)
    images = (images.to(device).contiguous(memory_format=layout) / 255 - 0.45) / 0.25
    labels = torch.from_numpy(np.array(batch.label, np.int64)).to(device)
    network: nn.Module = torch.compile(model) if compiled else model  # pyright: ignore[reportAssignmentType]
    problem = Problem(network, images, labels, getattr(torch, dtype))
    for name, method in METHODS.items():
        if compiled and name in _TWICE:
            continue
        optimizer = torch.optim.SGD(problem.params, lr=0.01, momentum=0.9, weight_decay=5e-4)

        def step(method: Callable[[Problem], Tensors] = method, optimizer: torch.optim.SGD = optimizer) -> None:
            for parameter, gradient in zip(problem.params, method(problem), strict=True):
                parameter.grad = gradient
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()

        yield name, step


def flops(step: Callable[[], None]) -> float:
    """Floating-point operations of a step in matrix products and convolutions; runs it once."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())
