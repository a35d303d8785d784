"""CRAR's update in plain PyTorch: the same networks and losses, channels last, seven RMSprops in turn or one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["crar_updates"]

_GAMMA, _SHARPNESS, _ACTIONS = 0.9, 5.0, 4


def crar_updates(batch: int, *, joint: bool, compiled: bool) -> Callable[[int], Any]:
    """Returns ``run(updates)``: that many updates on random pictures of the maze's size.

    Args:
      batch: steps per update.
      joint: whether one optimiser takes the sum of the losses.
      compiled: whether each loss goes through ``torch.compile``.

    Raises:
      ImportError: PyTorch is not installed.
    """
    import torch

    torch.manual_seed(0)
    nets = _networks()
    target = _networks()
    target.load_state_dict(nets.state_dict())
    data = {
        "s": torch.rand(2000, 1, 48, 48) * 2 - 1,
        "next": torch.rand(2000, 1, 48, 48) * 2 - 1,
        "a": torch.nn.functional.one_hot(torch.randint(0, _ACTIONS, (2000,)), _ACTIONS).float(),
        "r": torch.rand(2000),
        "d": (torch.rand(2000) > 0.01).float(),
    }
    losses = _losses(nets, target)
    if joint:
        each = tuple(losses.values())
        losses = {"joint": lambda b: sum(loss(b) for loss in each)}
    if compiled:
        losses = {name: torch.compile(loss) for name, loss in losses.items()}
    parts = {"transition": ("e", "t"), "reward": ("e", "r"), "discount": ("e", "g"), "critic": ("e", "q")}
    optimisers = {}
    for name in losses:
        names = ("e", "t", "r", "g", "q") if joint else parts.get(name, ("e",))
        touched = [p for part in names for p in nets[part].parameters()]
        optimisers[name] = (touched, torch.optim.RMSprop(touched, 5e-4, alpha=0.9, eps=1e-4))

    def run(updates: int) -> None:
        for _ in range(updates):
            rows = torch.randint(0, 2000, (batch,))
            b = {name: value[rows] for name, value in data.items()}
            for name in ("s", "next"):
                b[name] = b[name].contiguous(memory_format=torch.channels_last)
            for name, loss in losses.items():
                touched, optimiser = optimisers[name]
                optimiser.zero_grad(set_to_none=True)
                loss(b).backward()
                torch.nn.utils.clip_grad_norm_(touched, 1.0)
                optimiser.step()

    return run


def _networks() -> Any:
    """Encoder, transition, reward, discount and critic, padded as ours are: at the end first."""
    from torch import nn

    def conv(i: int, o: int, k: int) -> Any:
        low, high = (k - 1) // 2, k - 1 - (k - 1) // 2
        return nn.Sequential(nn.ZeroPad2d((low, high, low, high)), nn.Conv2d(i, o, k))

    def head(i: int, o: int) -> Any:
        layers: list[Any] = [conv(i, 16, 2), nn.Tanh(), conv(16, 32, 3), nn.Tanh(), nn.MaxPool2d(2)]
        layers += [conv(32, 16, 2), nn.Tanh(), conv(16, 4, 1), nn.Tanh(), nn.Flatten()]
        for i, width in ((64, 200), (200, 50), (50, 20)):
            layers += [nn.Linear(i, width), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(20, o))

    encoder = [conv(1, 8, 2), nn.Tanh(), conv(8, 16, 2), nn.Tanh(), nn.MaxPool2d(2)]
    encoder += [conv(16, 32, 3), nn.Tanh(), nn.MaxPool2d(3), conv(32, 3, 1)]
    transition: list[Any] = []
    for i, o, k in ((7, 16, 1), (16, 32, 2), (32, 64, 3), (64, 32, 2), (32, 16, 1)):
        transition += [conv(i, o, k), nn.Tanh()]
    nets = {
        "e": nn.Sequential(*encoder),
        "t": nn.Sequential(*transition, conv(16, 3, 1)),
        "r": head(7, 1),
        "g": head(7, 1),
        "q": head(3, _ACTIONS),
    }
    import torch

    return nn.ModuleDict(nets).to(memory_format=torch.channels_last)


def _losses(nets: Any, target: Any) -> dict[str, Callable[[Any], Any]]:
    """The seven losses of a batch, in the order in which their steps are taken."""
    import torch

    def with_action(z: Any, a: Any) -> Any:
        return torch.cat([a[:, :, None, None].expand(-1, -1, *z.shape[2:]), z], dim=1)

    def transition(b: Any) -> Any:
        z = nets["e"](b["s"])
        error = z + nets["t"](with_action(z, b["a"])) - nets["e"](b["next"])
        return torch.mean((b["d"][:, None, None, None] * error) ** 2)

    def reward(b: Any) -> Any:
        return torch.mean((b["r"] - nets["r"](with_action(nets["e"](b["s"]), b["a"]))[:, 0]) ** 2)

    def discount(b: Any) -> Any:
        return torch.mean((_GAMMA * b["d"] - nets["g"](with_action(nets["e"](b["s"]), b["a"]))[:, 0]) ** 2)

    def volume(b: Any) -> Any:
        return torch.mean(torch.clip(torch.amax(nets["e"](b["s"]) ** 2, dim=1) - 1.0, 0.0, 100.0))

    def apart(x: Any, y: Any) -> Any:
        square = torch.sum((x - y).flatten(1) ** 2, dim=1)
        return torch.mean(torch.exp(-_SHARPNESS * torch.sqrt(torch.clip(square, 1e-6, 10.0))))

    def random_pairs(b: Any) -> Any:
        z = nets["e"](b["s"])
        return apart(z, torch.roll(z, 1, 0))

    def consecutive_pairs(b: Any) -> Any:
        return apart(nets["e"](b["s"]), nets["e"](b["next"]))

    def critic(b: Any) -> Any:
        with torch.no_grad():
            best = nets["q"](nets["e"](b["next"])).argmax(1, keepdim=True)
            bootstrap = target["q"](target["e"](b["next"])).gather(1, best)[:, 0]
            y = b["r"] + _GAMMA * b["d"] * bootstrap
        return torch.mean((torch.sum(b["a"] * nets["q"](nets["e"](b["s"])), dim=1) - y) ** 2)

    each = (transition, reward, discount, volume, random_pairs, consecutive_pairs, critic)
    return {loss.__name__: loss for loss in each}
