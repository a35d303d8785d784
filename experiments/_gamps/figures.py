"""The pictures of the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments._gamps.report import grouped

__all__ = ["LABELS", "draw_cosines", "draw_returns", "draw_weights"]

Rows = Sequence[Mapping[str, Any]]
LABELS = {
    "gamps": ("GAMPS", "#009E73", "-"),
    "ml": ("likely model (ML)", "#D55E00", "--"),
    "pgt": ("PGT", "#0072B2", "-."),
    "reinforce": ("REINFORCE", "#CC79A7", ":"),
    "exact": ("true gradient", "0.35", (0, (1, 1))),
}


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw_returns(rows: Rows, domain: str, out: Path) -> None:
    """Draws the return over iterations, one panel per number of trajectories and one picture per topology."""
    plt = _pyplot()
    groups = grouped(rows)
    for topology in dict.fromkeys(key[0] for key in groups):
        counts = sorted({key[1] for key in groups if key[0] == topology})
        columns = min(4, len(counts))
        lines = -(-len(counts) // columns)
        figure, axes = plt.subplots(
            lines,
            columns,
            figsize=(1.2 + 3.6 * max(columns, 1.7), 0.9 + 3.1 * lines),
            sharex=True,
            sharey=True,
            layout="constrained",
            squeeze=False,
        )
        for panel, count in zip(axes.flat, counts):
            for method, (label, colour, dash) in LABELS.items():
                members = groups.get((topology, count, method))
                if not members:
                    continue
                returns = np.array([row["returns"] for row in members], np.float64)
                mean, std = returns.mean(axis=0), returns.std(axis=0)
                steps = np.arange(len(mean))
                panel.plot(steps, mean, color=colour, linestyle=dash, label=label)
                panel.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.13, linewidth=0)
            panel.set_title(f"{count} trajectories")
            panel.grid(True, alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
        for panel in axes.flat[len(counts) :]:
            panel.set_visible(False)
        for column in axes.T:
            # A panel that is hidden below it has the labels otherwise.
            lowest = [panel for panel in column if panel.get_visible()][-1]
            lowest.tick_params(labelbottom=True)
            lowest.set_xlabel("policy updates")
        for panel in axes[:, 0]:
            panel.set_ylabel("expected discounted return")
        seeds = len({row["seed"] for row in rows})
        where = f"{domain}, literal layout" if topology == "literal" else domain
        line = "\n" if columns == 1 else ", "
        figure.suptitle(f"Return over policy updates, {where}{line}mean of {seeds} runs, band: one standard deviation")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", frameon=False, ncols=len(labels))
        figure.savefig(out / f"returns{f'_{topology}' if topology else ''}.png", dpi=100)
        plt.close(figure)


def draw_cosines(rows: Rows, path: Path) -> None:
    """Draws the cosine of the first estimated gradient with the true one over the number of trajectories."""
    plt = _pyplot()
    groups = grouped(rows)
    figure, panel = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    counts = sorted({key[1] for key in groups if key[0] == "two_areas"})
    for method, (label, colour, dash) in LABELS.items():
        values = [
            [row["cosine"][0] for row in groups["two_areas", count, method]]
            for count in counts
            if ("two_areas", count, method) in groups
        ]
        if not values or method == "exact":
            continue
        middle, low, high = np.quantile(np.array(values, np.float64), [0.5, 0.1, 0.9], axis=1)
        panel.plot(counts, middle, color=colour, linestyle=dash, marker="o", markersize=4, label=label)
        panel.fill_between(counts, low, high, color=colour, alpha=0.13, linewidth=0)
    panel.set_xscale("log")
    panel.set_xticks(counts, [str(count) for count in counts])
    panel.minorticks_off()
    panel.set_xlabel("trajectories")
    panel.set_ylabel("cosine with the true policy gradient")
    panel.set_title("First gradient on the gridworld\nmedian of the runs, band: 10th to 90th percentile")
    panel.grid(True, alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_weights(maps: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> None:
    """Draws the share of the model's likelihood of every cell for the actions "up" and "right"."""
    plt = _pyplot()
    figure, axes = plt.subplots(2, 4, figsize=(12.4, 6.6), layout="constrained")
    names = {"uniform": "likelihood", "gradient_aware": "gradient-aware"}
    titles = {"two_areas": "two areas", "literal": "literal layout"}
    for line, (topology, kinds) in zip(axes, maps.items()):
        panels = iter(line)
        for kind, shares in kinds.items():
            largest = float(shares.max())
            lower = shares[2:].sum()
            for action, index in (("up", 0), ("right", 3)):
                panel = next(panels)
                image = panel.imshow(shares[:, :, index], vmin=0.0, vmax=largest, cmap="viridis")
                panel.axhline(1.5, color="white", linestyle="--", linewidth=1.2)
                panel.set_xticks([])
                panel.set_yticks([])
                panel.set_title(f"{names[kind]}, action {action}\nlower area {lower:.0%} of all weight", fontsize=10)
                if panel is line[0]:
                    panel.set_ylabel(titles[topology], fontsize=11)
            figure.colorbar(image, ax=panel, shrink=0.8, label="share of weight")
    figure.suptitle("Where the model's likelihood counts: 1000 trajectories, dashed line: border of the areas")
    figure.savefig(path, dpi=100)
    plt.close(figure)
