"""A Gaussian dynamics ensemble in plain PyTorch: batched matrix products, Adam, the likelihood of MBPO's models."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

__all__ = ["ensemble_steps"]


def ensemble_steps(
    num_members: int, in_dim: int, out_dim: int, hidden: tuple[int, ...], batch: int, *, compiled: bool
) -> Callable[[int], Any]:
    """Returns ``run(steps)``: that many gradient steps, every member on rows of its own.

    Args:
      num_members: ``M``.
      in_dim: inputs.
      out_dim: outputs, each with a mean and a log-variance.
      hidden: hidden layers.
      batch: rows per member and step.
      compiled: whether the loss goes through ``torch.compile``.

    Raises:
      ImportError: PyTorch is not installed.
    """
    import torch

    torch.manual_seed(0)
    widths = (in_dim, *hidden, 2 * out_dim)
    weights = [torch.nn.Parameter(torch.randn(num_members, i, o) / i**0.5) for i, o in itertools.pairwise(widths)]
    biases = [torch.nn.Parameter(torch.zeros(num_members, 1, o)) for o in widths[1:]]
    low, high = torch.nn.Parameter(torch.full((out_dim,), -10.0)), torch.nn.Parameter(torch.full((out_dim,), 0.5))
    parameters = [*weights, *biases, low, high]
    optimiser = torch.optim.Adam(parameters, 1e-3)
    data_x, data_y = torch.randn(32_000, in_dim), torch.randn(32_000, out_dim)

    def loss(x: Any, y: Any) -> Any:
        for weight, bias in zip(weights[:-1], biases[:-1]):
            x = torch.nn.functional.silu(torch.baddbmm(bias, x, weight))
        mean, log_variance = torch.baddbmm(biases[-1], x, weights[-1]).chunk(2, dim=-1)
        log_variance = high - torch.nn.functional.softplus(high - log_variance)
        log_variance = low + torch.nn.functional.softplus(log_variance - low)
        nll = ((mean - y) ** 2 * torch.exp(-log_variance) + log_variance).mean((1, 2)).sum()
        return nll + 0.01 * (high - low).mean()

    step_loss = torch.compile(loss) if compiled else loss

    def run(steps: int) -> None:
        for _ in range(steps):
            rows = torch.randint(0, len(data_x), (num_members, batch))
            optimiser.zero_grad(set_to_none=True)
            step_loss(data_x[rows], data_y[rows]).backward()
            optimiser.step()

    return run
