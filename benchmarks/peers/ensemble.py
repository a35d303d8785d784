"""Gaussian dynamics ensembles with the likelihood of MBPO's models and Adam: in plain PyTorch, and mbrl-lib's own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

__all__ = ["ensemble_steps", "mbrl_steps"]


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


def mbrl_steps(
    num_members: int, obs_dim: int, action_dim: int, hidden: tuple[int, ...], batch: int
) -> Callable[[int], Any]:
    """Returns ``run(steps)`` of mbrl-lib 0.2.0: its ensemble on its own batches, which its trainer takes step by step.

    Args:
      num_members: ``M``.
      obs_dim: numbers of an observation, whose change is predicted.
      action_dim: numbers of an action.
      hidden: hidden layers, all of one width.
      batch: rows per member and step.

    Raises:
      ImportError: PyTorch or mbrl-lib is not installed.
    """
    import numpy as np
    import torch
    from mbrl.models import GaussianMLP, OneDTransitionRewardModel
    from mbrl.types import TransitionBatch
    from mbrl.util.replay_buffer import BootstrapIterator

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = GaussianMLP(
        obs_dim + action_dim,
        obs_dim,
        torch.device("cpu"),
        num_layers=len(hidden),
        ensemble_size=num_members,
        hid_size=hidden[0],
        learn_logvar_bounds=True,
        activation_fn_cfg={"_target_": "torch.nn.SiLU"},
    )
    model = OneDTransitionRewardModel(network, normalize=True, learned_rewards=False)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    obs, change = rng.normal(size=(2, 32_000, obs_dim)).astype(np.float32)
    action = rng.uniform(-1.0, 1.0, (32_000, action_dim)).astype(np.float32)
    end = np.zeros(len(obs), bool)
    rows = TransitionBatch(obs, action, obs + 0.1 * change, obs[:, 0], end, end)
    model.update_normalizer(rows)
    batches = BootstrapIterator(rows, batch, num_members, shuffle_each_epoch=True, permute_indices=False, rng=rng)

    def run(steps: int) -> None:
        # An epoch has 125 batches.
        endless = itertools.chain.from_iterable(itertools.repeat(batches))
        for each in itertools.islice(endless, steps):
            model.update(each, optimiser)

    return run
