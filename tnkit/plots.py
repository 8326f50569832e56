"""Figures from results: results in, matplotlib axes or figures out; one palette and one style for the whole project."""

import zlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tnkit import storage

if TYPE_CHECKING:
    import pandas as pd

    from tnkit.geometry import PrincipalComponents
    from tnkit.neurons import NeuronSet
    from tnkit.scoring import NeuronScores

# Okabe & Ito's palette, which readers with any colour vision tell apart; a language keeps its colour everywhere.
_OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#000000")
_FIXED = dict(zip(("en", "ja", "ko", "nl", "it", "zh", "de", "fr"), _OKABE_ITO, strict=True))
_NAMES = {
    "ar": "Arabic", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English", "es": "Spanish",
    "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian", "id": "Indonesian",
    "it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "no": "Norwegian", "pl": "Polish",
    "pt": "Portuguese", "ru": "Russian", "sv": "Swedish", "th": "Thai", "tr": "Turkish", "vi": "Vietnamese",
    "zh": "Chinese",
}  # fmt: skip
_KIND = {"type1": "Type-1", "type2": "Type-2"}
_KIND_COLOUR = {"type1": "#0072B2", "type2": "#D55E00"}
_MARKERS = "osD^vPX*"
_STYLE = {
    "font.family": ["DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans"],
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "savefig.dpi": 150,
}


def style() -> AbstractContextManager[None]:
    """The project's matplotlib style, as a context.

    >>> with style():
    ...     figure = plt.figure()
    >>> plt.close(figure)
    """
    return plt.rc_context({**_STYLE, "font.family": _fonts()})


def _fonts() -> list[str]:
    from matplotlib import font_manager

    there = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in _STYLE["font.family"] if name in there]


def language_name(code: str) -> str:
    """A language's English name, or its code where tnkit knows none.

    >>> language_name("ja"), language_name("tlh")
    ('Japanese', 'tlh')
    """
    return _NAMES.get(code, code)


def language_colour(code: str) -> str:
    """The colour that a language has in every figure."""
    return _FIXED.get(code) or _OKABE_ITO[zlib.crc32(code.encode()) % len(_OKABE_ITO)]


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure in the format of its ending, atomically, and close it."""
    path = Path(path)
    written = storage.write_atomically(path, lambda file: figure.savefig(file, format=path.suffix.lstrip(".") or "png"))
    plt.close(figure)
    return written


def lines_by_layer(frame: "pd.DataFrame", *, ylabel: str, log: bool = False, ax: Axes | None = None) -> Axes:
    """One line a column over layers."""
    with style():
        ax = ax or plt.subplots(figsize=(6, 3.4))[1]
        for place, (name, column) in enumerate(frame.items()):
            ax.plot(frame.index, column, label=name, color=_OKABE_ITO[place % 8], marker=_MARKERS[place % 8], ms=4)
        ax.set(xlabel="layer", ylabel=ylabel, yscale="log" if log else "linear")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend()
    return ax


def neurons_by_layer(sets: Mapping[str, "NeuronSet"], *, title: str = "", ax: Axes | None = None) -> Axes:
    """How many neurons of each set sit in each layer, as bars side by side; keys "type1" and "type2" have names."""
    with style():
        ax = ax or plt.subplots(figsize=(7.5, 3.2))[1]
        depth = max(neurons.shape[0] for neurons in sets.values())
        counted = np.array(
            [[len(neurons.by_layer().get(layer, ())) for layer in range(depth)] for neurons in sets.values()]
        )
        beside = bool(((counted > 0).sum(axis=0) > 1).any())  # sets that share no layer need no room side by side
        width = 0.8 / len(sets) if beside else 0.8
        for place, ((label, neurons), counts) in enumerate(zip(sets.items(), counted, strict=True)):
            shift = (place - (len(sets) - 1) / 2) * width if beside else 0
            name = f"{_KIND.get(label, label)} ({len(neurons)})"
            ax.bar(
                np.arange(depth) + shift,
                counts,
                width,
                label=name,
                color=_KIND_COLOUR.get(label, _OKABE_ITO[place % 8]),
            )
        ax.set(xlabel="layer", ylabel="neurons in the set", xlim=(-0.6, depth - 0.4), title=title)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=20))
        ax.grid(axis="x", visible=False)
        ax.legend()
    return ax


def score_distribution(
    scores: "NeuronScores", *, chosen: "NeuronSet | None" = None, colour: str = "#0072B2", ax: Axes | None = None
) -> Axes:
    """A histogram of all scores, counts on a log axis, with the part that a chosen set takes in colour."""
    values = scores.values[scores.layers].reshape(-1).numpy()
    taken = np.asarray(chosen.scores) if chosen else np.empty(0)
    low, high = values.min(), values.max()
    bins = np.linspace(low, high if high > low else low + 1, 81)
    unit = "cosine" if scores.distance == "cosine" else "distance"
    with style():
        ax = ax or plt.subplots(figsize=(6, 3.4))[1]
        ax.hist(values, bins=bins, color="#b8b8b8", label=f"all {len(values):,} neurons")
        if len(taken):
            ax.hist(taken, bins=bins, color=colour, label=f"chosen {len(taken):,}, score ≥ {taken.min():.2g}")
            ax.axvline(taken.min(), color=colour, lw=1, ls="--")
        ax.axvline(0, color="#555555", lw=0.8)
        ax.set(
            xlabel=f"score (mean change of {unit}; positive is nearer)",
            ylabel="neurons",
            yscale="log",
            ylim=(0.7, None),
        )
        ax.legend()
    return ax


def detections(found: Mapping[str, "object"], *, title: str = "") -> Figure:
    """The score distributions of a language's detections by kind, side by side."""
    with style():
        figure, axes = plt.subplots(1, len(found), figsize=(5.2 * len(found), 3.4), squeeze=False)
        for ax, (kind, detection) in zip(axes[0], found.items(), strict=True):
            score_distribution(detection.scores, chosen=detection.neurons, colour=_KIND_COLOUR[kind], ax=ax)
            layers = detection.scores.layers
            target = "the shared centroid" if kind == "type1" else "the own centroid"
            ax.set_title(f"{_KIND[kind]}: towards {target}, layers {layers[0]}–{layers[-1]}")
        figure.suptitle(title)
    return figure


def spaces(components: "PrincipalComponents", layers: Sequence[int]) -> Figure:
    """Languages in the plane of their first two principal components, one panel a layer."""
    with style():
        figure, axes = plt.subplots(1, len(layers), figsize=(3.7 * len(layers), 3.9), squeeze=False)
        for ax, layer in zip(axes[0], layers, strict=True):
            place = components.layers.index(layer)
            for number, (language, points) in enumerate(components.coordinates.items()):
                ax.scatter(
                    *points[place, :, :2].T,
                    s=9,
                    alpha=0.6,
                    linewidths=0,
                    color=language_colour(language),
                    marker=_MARKERS[number % len(_MARKERS)],
                    label=language_name(language),
                )
            shares = components.explained[place]
            ax.set(
                xlabel=f"PC 1 ({shares[0]:.0%} of variance)", ylabel=f"PC 2 ({shares[1]:.0%})", title=f"layer {layer}"
            )
            ax.ticklabel_format(scilimits=(-2, 4))
            ax.locator_params(nbins=5)
        handles, labels = axes[0][0].get_legend_handles_labels()
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), markerscale=2.5)
        for handle in legend.legend_handles:
            handle.set_alpha(1)
    return figure


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
    """Distances between languages as an annotated heat map; `highest` is the end of the scale."""
    import seaborn

    names = [language_name(language) for language in languages]
    written = [[f"{value:,.0f}" if value >= 1000 else f"{value:.2g}" for value in row] for row in values]
    with style():
        ax = ax or plt.subplots(figsize=(1.8 + 0.75 * len(names), 1.2 + 0.6 * len(names)))[1]
        seaborn.heatmap(
            values,
            annot=np.array(written),
            fmt="",
            cmap="cividis_r",
            vmin=0,
            vmax=highest or values.max() or 1,
            square=True,
            linewidths=1,
            cbar=bar,
            cbar_kws={"label": label} if bar else None,
            xticklabels=names,
            yticklabels=names,
            ax=ax,
        )
        ax.set_title(title)
        ax.tick_params(length=0)
        ax.tick_params(axis="x", rotation=40)
        ax.tick_params(axis="y", rotation=0)
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
            figure.colorbar(scale, ax=list(axes[0]), label=label, shrink=0.8)
        else:
            figure.suptitle(label)
    return figure
