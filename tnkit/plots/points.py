"""One point per sentence or neuron: hidden states in a plane, a measure after against before, effects beside scores."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from tnkit.plots.looks import MARKERS, language_looks
from tnkit.plots.style import axes, language_label, literal, panels, style

_STRATA = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")


def space(
    points: Mapping[str, Float[np.ndarray, "sentence 2"]],
    *,
    explained: Sequence[float],
    pair: tuple[int, int] = (0, 1),
    title: str = "",
    centroids: bool = False,
    joined: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draw languages in the plane of two principal components, each with its colour and marker.

    Args:
        points: the two components of every sentence, by language.
        explained: each component's share of the variance, between 0 and 1.
        pair: the components' numbers, from 0.
        title: of the axes.
        centroids: draw each language's mean as a large marker, and the mean of the means as a star.
        joined: draw a line through the translations of each sentence.
        ax: where to draw (default: a new figure).

    >>> space({"ja": np.array([[0.0, 1.0], [1.0, 0.0]])}, explained=(0.7, 0.2)).get_ylabel()
    'PC 2 (20%)'
    """
    with axes(ax, 4.4, 4.0) as ax:
        if joined:
            lines = np.stack(list(points.values()), axis=1)
            ax.add_collection(LineCollection(list(lines), colors="#777777", linewidths=0.4, alpha=0.45, zorder=1))
        looks = language_looks([*points])
        for language, xy in points.items():
            look: dict[str, Any] = dict(zip(("color", "marker"), looks[language], strict=True))
            ax.scatter(xy[:, 0], xy[:, 1], s=14, alpha=0.6, linewidths=0, label=language_label(language), **look)
        if centroids:
            means = np.stack([xy.mean(axis=0) for xy in points.values()])
            edge: dict[str, Any] = {"edgecolors": "black", "linewidths": 1, "zorder": 4}
            for language, (x, y) in zip(points, means, strict=True):
                ax.scatter(x, y, s=90, color=looks[language][0], marker="D", **edge)
            x, y = means.mean(axis=0)
            ax.scatter(x, y, s=260, color="white", marker="*", **edge)
        x_label, y_label = (f"PC {number + 1} ({share:.0%}" for number, share in zip(pair, explained, strict=True))

        ax.set(xlabel=f"{x_label} of variance)", ylabel=f"{y_label})", title=literal(title))
        ax.ticklabel_format(scilimits=(-2, 4))
        ax.locator_params(nbins=5)
    return ax


def spaces(
    points: Mapping[str, Float[np.ndarray, "panel sentence 2"]],
    *,
    explained: Float[np.ndarray, "panel 2"],
    titles: Sequence[str],
    centroids: bool = False,
) -> Figure:
    """Draw `space` several times side by side, with one legend for all."""
    figure, row = panels(len(titles), width=3.7, height=3.9)
    for number, (ax, title) in enumerate(zip(row, titles, strict=True)):
        panel = {language: coordinates[number] for language, coordinates in points.items()}
        space(panel, explained=explained[number].tolist(), title=title, centroids=centroids, ax=ax)
    handles, labels = row[0].get_legend_handles_labels()
    columns = len(labels) if len(labels) <= 3 * len(row) else 2 * len(row)
    figure.set_figheight(figure.get_figheight() + 0.2 * max(0, len(labels) / columns - 2))
    with style():
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, markerscale=2.5)
    for handle in filter(None, legend.legend_handles):
        handle.set_alpha(1)
    return figure


def paired(
    before: Sequence[float], after: Sequence[float], *, xlabel: str, ylabel: str, ax: Axes | None = None
) -> Axes:
    """Draw one point per sentence, after against before, and the line of no change.

    >>> drawn = paired([0.1, 0.2], [0.2, 0.1], xlabel="before", ylabel="after")
    >>> [text.get_text() for text in drawn.get_legend().get_texts()]
    ['no change', 'greater after: 1', 'smaller or equal: 1']
    """
    x, y = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    greater = y > x
    with axes(ax, 4.4, 4.0) as ax:
        ax.plot(ends, ends, color="#555555", lw=1, ls="--", label="no change")
        for mask, name, colour in ((greater, "greater after", "#0072B2"), (~greater, "smaller or equal", "#D55E00")):
            ax.scatter(x[mask], y[mask], s=12, alpha=0.7, lw=0, color=colour, label=f"{name}: {mask.sum()}")
        ax.set(xlabel=literal(xlabel), ylabel=literal(ylabel))
        ax.legend()
    return ax


def strata(
    points: Mapping[str, Float[np.ndarray, "neuron 2"]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw one point per neuron, with a colour and a marker for each stratum, and a line at 0.

    >>> ax = strata({"top": np.array([[1.0, 0.1]]), "random": np.array([[0.0, 0.0]])}, xlabel="score", ylabel="drop")
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['top', 'random']
    """
    with axes(ax, 5.2, 4.0) as ax:
        ax.axhline(0, color="#555555", lw=1, ls="--")
        for number, (name, xy) in enumerate(points.items()):
            look: dict[str, Any] = {"color": _STRATA[number % len(_STRATA)], "marker": MARKERS[number % len(MARKERS)]}
            ax.scatter(xy[:, 0], xy[:, 1], s=22, alpha=0.75, linewidths=0, label=literal(name), **look)
        ax.set(xlabel=literal(xlabel), ylabel=literal(ylabel), title=literal(title))
        ax.ticklabel_format(scilimits=(-2, 4))
        ax.locator_params(nbins=6)
        ax.legend()
    return ax
