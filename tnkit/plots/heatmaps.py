"""Figures of numbers between languages or sets: heat maps from results, matplotlib axes or figures out."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tnkit.plots.style import language_label, literal, style

if TYPE_CHECKING:
    import pandas as pd

    from tnkit.measures.specificity import Overlaps

_ROUNDING = 1e-12  # a panel of distances no larger than this holds zeros that were rounded


def distance_map(
    values: np.ndarray,
    languages: Sequence[str],
    *,
    label: str,
    title: str = "",
    highest: float | None = None,
    bar: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Distances between languages as an annotated heat map; `highest` is the end of the scale.

    A distance below a millionth of the scale is written as 0: its digits are rounding errors.

    >>> distance_map(np.array([[0, 1.5], [1.5, 0]]), ["en", "ja"], label="distance", title="3").get_title(loc="left")
    '3'
    """
    import seaborn

    names = [language_label(language) for language in languages]
    top = highest or values.max()
    top = top if top > _ROUNDING else 1
    written = [["0" if value < 1e-6 * top else _short(value) for value in row] for row in values]
    with style():
        ax = ax or plt.subplots(figsize=(1.8 + 0.75 * len(names), 1.2 + 0.6 * len(names)))[1]
        seaborn.heatmap(
            values,
            annot=np.array(written),
            fmt="",
            cmap="Blues",
            vmin=0,
            vmax=top,
            square=True,
            linewidths=1,
            cbar=bar,
            cbar_kws={"label": literal(label)} if bar else None,
            xticklabels=names,
            yticklabels=names,
            ax=ax,
        )
        ax.set_title(literal(title))
        ax.tick_params(length=0)
        ax.tick_params(axis="x", rotation=40)
        ax.tick_params(axis="y", rotation=0)
    return ax


def _short(distance: float) -> str:
    """Two digits, and whole numbers from 100 on."""
    return f"{distance:,.0f}" if distance >= 99.5 else f"{distance:.2g}"


def similarity_map(
    values: np.ndarray, languages: Sequence[str], *, lowest: float, title: str = "", ax: Axes | None = None
) -> Axes:
    """Cosines between languages as an annotated heat map on a scale from `lowest` to 1."""
    names = [language_label(language) for language in languages]
    with style():
        ax = ax or plt.subplots(figsize=(1.8 + 0.75 * len(names), 1.2 + 0.6 * len(names)))[1]
        ax.imshow(values, cmap="Blues", vmin=lowest, vmax=1, aspect="auto")
        for row, column in np.ndindex(values.shape):
            dark = values[row, column] > lowest + 0.6 * (1 - lowest)
            shade = "white" if dark else "black"
            ax.text(column, row, f"{values[row, column]:z.3f}", ha="center", va="center", color=shade, fontsize=8.5)
        ax.set_xticks(range(len(names)), names)
        ax.set_yticks(range(len(names)), names)
        ax.set_title(literal(title))
        ax.tick_params(length=0)
        ax.grid(visible=False)
    return ax


def distance_maps(maps: Mapping[str, np.ndarray], languages: Sequence[str], *, label: str, shared: bool) -> Figure:
    """A heat map a title, side by side, on one scale where `shared`."""
    highest = max(values.max() for values in maps.values()) if shared else None
    side = 1.2 + 0.6 * len(languages)
    with style():
        figure, axes = plt.subplots(1, len(maps), figsize=(side * len(maps) + 1, side + 0.6), squeeze=False)
        for place, (ax, (title, values)) in enumerate(zip(axes[0], maps.items(), strict=True)):
            distance_map(values, languages, label=label, title=title, highest=highest, bar=False, ax=ax)
            if place:
                ax.set_yticklabels([])
        scale = axes[0][-1].collections[0]
        if shared:
            figure.colorbar(scale, ax=list(axes[0]), label=literal(label), shrink=0.8)
        else:
            figure.suptitle(literal(label))
    return figure


def overlap_matrix(overlaps: "Overlaps", *, ax: Axes | None = None) -> Axes:
    """Jaccard indices of each two sets as a heat map, with the numbers of shared neurons (of one: its size) in it."""
    names = list(overlaps.sets)
    labels = list(map(literal, names))
    jaccard = np.full((len(names), len(names)), np.nan)
    both = np.diag([len(neurons) for neurons in overlaps.sets.values()])
    for (first, second), (_, row) in zip(overlaps.table.index, overlaps.table.iterrows(), strict=True):
        a, b = names.index(first), names.index(second)
        jaccard[a, b] = jaccard[b, a] = row["jaccard"]
        both[a, b] = both[b, a] = row["both"]
    finite = jaccard[np.isfinite(jaccard)]
    top = float(finite.max()) if len(finite) and finite.max() > 0 else 1.0
    with style():
        side = 1.6 + 0.62 * len(names)
        ax = ax or plt.subplots(figsize=(side + 1.2, side))[1]
        image = ax.imshow(np.ma.masked_invalid(jaccard), cmap="Blues", vmin=0, vmax=top)
        for a, b in np.ndindex(both.shape):
            dark = np.isfinite(jaccard[a, b]) and jaccard[a, b] > 0.6 * top
            ax.text(b, a, f"{both[a, b]:,}", ha="center", va="center", color="white" if dark else "black", fontsize=8)
        ax.set_xticks(range(len(names)), labels, rotation=45, ha="right")
        ax.set_yticks(range(len(names)), labels)
        ax.grid(visible=False)
        ax.figure.colorbar(image, ax=ax, label="Jaccard index", shrink=0.8)
    return ax


def matrix(frame: "pd.DataFrame", *, xlabel: str, ylabel: str, value: str, ax: Axes | None = None) -> Axes:
    """A heat map with its numbers; language codes among the labels become names."""
    import seaborn as sns

    with style():
        ax = ax or plt.subplots(figsize=(2.4 + 1.1 * frame.shape[1], 1.5 + 0.55 * frame.shape[0]))[1]
        named = frame.rename(index=language_label, columns=language_label)
        sns.heatmap(
            named, annot=True, fmt="z.2f", cmap="viridis", linewidths=1, cbar_kws={"label": literal(value)}, ax=ax
        )
        ax.set(xlabel=literal(xlabel), ylabel=literal(ylabel))
        ax.tick_params(axis="y", rotation=0)
    return ax


def perplexities(frame: "pd.DataFrame", *, ax: Axes | None = None) -> Axes:
    """Perplexity by what is off (rows) and what is read (columns), coloured by change; a language's own set framed."""
    import seaborn

    offs, languages = (list(dict.fromkeys(frame.index.get_level_values(level))) for level in ("off", "read"))
    values, changes, own = (
        frame[column].unstack("read").loc[offs, languages].to_numpy() for column in ("perplexity", "change", "own")
    )
    numbers = np.vectorize(lambda value: f"{value:,.0f}" if 99.5 <= value < 1e6 else f"{value:.3g}")(values)
    written = [
        [number if place == 0 else f"{number}\n{change:+z.1%}" for number, change in zip(*row, strict=True)]
        for place, row in enumerate(zip(numbers, changes, strict=True))
    ]
    known = np.abs(changes[np.isfinite(changes)])
    top = float(known.max()) if len(known) and known.max() > 0 else 1.0
    with style():
        ax = ax or plt.subplots(figsize=(3.2 + 1.1 * len(languages), 1.4 + 0.7 * len(offs)))[1]
        seaborn.heatmap(
            np.nan_to_num(changes, posinf=top),
            annot=np.array(written),
            fmt="",
            cmap="RdBu_r",
            vmin=-top,
            vmax=top,
            linewidths=1,
            cbar_kws={"label": "relative change of nats per token"},
            xticklabels=[language_label(language) for language in languages],
            yticklabels=[language_label(off) for off in offs],
            ax=ax,
        )
        for row, column in zip(*own.astype(bool).nonzero(), strict=True):
            ax.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor="black", lw=2, clip_on=False))
        ax.set(xlabel="language read", ylabel="neurons switched off")
        ax.tick_params(length=0)
        ax.tick_params(axis="y", rotation=0)
    return ax
