"""Figures from results: results in, matplotlib axes or figures out."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tnkit.plots.style import (
    KIND_COLOURS,
    KIND_NAMES,
    MARKERS,
    PALETTE,
    is_language,
    language_colour,
    language_label,
    language_name,
    literal,
    save_figure,
    style,
    use_style,
)

if TYPE_CHECKING:
    import pandas as pd

    from tnkit.detection.detect import Detection
    from tnkit.detection.neurons import NeuronSet
    from tnkit.detection.scoring import NeuronScores
    from tnkit.measures.geometry import PrincipalComponents

__all__ = [
    "language_colour",
    "language_name",
    "literal",
    "save_figure",
    "style",
    "use_style",
]  # beside what is defined here


def lines_by_layer(
    frame: "pd.DataFrame", *, ylabel: str, log: bool = False, chance: float | None = None, ax: Axes | None = None
) -> Axes:
    """One line a column over layers; columns that are languages have their names and colours, chance a dotted line."""
    spoken = all(map(is_language, frame.columns))
    with style():
        ax = ax or plt.subplots(figsize=(6, 3.4))[1]
        for place, (code, column) in enumerate(frame.items()):
            name = str(code)
            label, colour = (
                (language_label(name), language_colour(name)) if spoken else (literal(name), PALETTE[place % 8])
            )
            ax.plot(frame.index, column, label=label, color=colour, marker=MARKERS[place % 8], ms=4)
        if chance is not None:
            ax.axhline(chance, color="#555555", lw=1, ls=":", label=f"chance ({chance:.2g})")
        ax.set(xlabel="layer", ylabel=literal(ylabel), yscale="log" if log else "linear")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend()
    return ax


def neurons_by_layer(sets: Mapping[str, "NeuronSet"], *, title: str = "", ax: Axes | None = None) -> Axes:
    """How many neurons of each set sit in each layer, as bars side by side; types and languages have their names.

    >>> from tnkit import NeuronSet
    >>> neurons_by_layer({"ja": NeuronSet(((0, 5), (1, 2)), shape=(4, 48))}).get_xlabel()
    'layer'
    """
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
            name = KIND_NAMES.get(label) or language_label(label)
            colour = language_colour(label) if is_language(label) else KIND_COLOURS.get(label, PALETTE[place % 8])
            ax.bar(
                np.arange(depth) + shift,
                counts,
                width,
                label=f"{name} ({len(neurons)})",
                color=colour,
            )
        top = 1.35 * max(int(counted.max()), 1)  # room for the legend
        ax.set(
            xlabel="layer", ylabel="neurons in the set", xlim=(-0.6, depth - 0.4), ylim=(0, top), title=literal(title)
        )
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
        ax.hist(values, bins=bins.tolist(), color="#b8b8b8", label=f"all {len(values):,} neurons")
        if len(taken):
            ax.hist(taken, bins=bins.tolist(), color=colour, label=f"chosen {len(taken):,}, score ≥ {taken.min():z.2g}")
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


def score_distributions(scores: Mapping[str, "NeuronScores"], *, title: str = "", ax: Axes | None = None) -> Axes:
    """The score distributions of several languages as outlines over one another, counts on a log axis."""
    values = {name: one.values[one.layers].reshape(-1).numpy() for name, one in scores.items()}
    low, high = min(map(np.min, values.values())), max(map(np.max, values.values()))
    bins = np.linspace(low, high if high > low else low + 1, 61)
    unit = "cosine" if next(iter(scores.values())).distance == "cosine" else "distance"
    with style():
        ax = ax or plt.subplots(figsize=(6, 3.4))[1]
        for name, part in values.items():
            colour = language_colour(name)
            ax.hist(part, bins=bins.tolist(), histtype="stepfilled", color=colour, alpha=0.15)
            ax.hist(part, bins=bins.tolist(), histtype="step", color=colour, lw=1.4, label=language_label(name))
        ax.axvline(0, color="#555555", lw=0.8)
        ax.set(
            xlabel=f"score (mean change of {unit})",
            ylabel="neurons",
            yscale="log",
            ylim=(0.7, None),
            title=literal(title),
        )
        ax.legend()
    return ax


def detections(found: Mapping[str, "Detection"], *, title: str = "") -> Figure:
    """The score distributions of a language's detections by kind, side by side."""
    with style():
        figure, axes = plt.subplots(1, len(found), figsize=(5.2 * len(found), 3.4), squeeze=False)
        for ax, (kind, detection) in zip(axes[0], found.items(), strict=True):
            score_distribution(detection.scores, chosen=detection.neurons, colour=KIND_COLOURS[kind], ax=ax)
            layers = detection.scores.layers
            target = "the shared centroid" if kind == "type1" else "the own centroid"
            ax.set_title(f"{KIND_NAMES[kind]}: towards {target}, layers {layers[0]}–{layers[-1]}")
        figure.suptitle(literal(title))
    return figure


def space(
    components: "PrincipalComponents",
    layer: int,
    *,
    pair: tuple[int, int] = (0, 1),
    centroids: bool = False,
    joined: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Languages in the plane of two principal components, a colour and a mark each.

    With `centroids`, each language's mean is a large mark, and the mean of those means a star. With `joined`, a line
    runs through the translations of each sentence.
    """
    place = components.layers.index(layer)
    points = {language: part[place][:, list(pair)] for language, part in components.coordinates.items()}
    with style():
        ax = ax or plt.subplots(figsize=(4.4, 4))[1]
        if joined:
            lines = np.stack(list(points.values()), axis=1)
            ax.add_collection(LineCollection(list(lines), colors="#777777", linewidths=0.4, alpha=0.45, zorder=1))
        for number, (language, part) in enumerate(points.items()):
            ax.scatter(
                part[:, 0],
                part[:, 1],
                s=14,
                alpha=0.6,
                linewidths=0,
                color=language_colour(language),
                marker=MARKERS[number % len(MARKERS)],
                label=language_label(language),
            )
        if centroids:
            means = np.stack([part.mean(axis=0) for part in points.values()])
            look: dict[str, Any] = {"edgecolors": "black", "linewidths": 1, "zorder": 4}
            for language, (x, y) in zip(points, means, strict=True):
                ax.scatter(x, y, s=90, color=language_colour(language), marker="D", **look)
            x, y = means.mean(axis=0)
            ax.scatter(x, y, s=260, color="white", marker="*", **look)
        across, up = (f"PC {one + 1} ({components.explained[place, one]:.0%} of variance)" for one in pair)
        ax.set(xlabel=across, ylabel=up.replace(" of variance", ""), title=f"layer {layer}")
        ax.ticklabel_format(scilimits=(-2, 4))
        ax.locator_params(nbins=5)
    return ax


def spaces(components: "PrincipalComponents", layers: Sequence[int], *, centroids: bool = False) -> Figure:
    """`space` for several layers, one panel each."""
    with style():
        figure, axes = plt.subplots(1, len(layers), figsize=(3.7 * len(layers), 3.9), squeeze=False)
        for ax, layer in zip(axes[0], layers, strict=True):
            space(components, layer, centroids=centroids, ax=ax)
        handles, labels = axes[0][0].get_legend_handles_labels()
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), markerscale=2.5)
        for handle in filter(None, legend.legend_handles):
            handle.set_alpha(1)
    return figure


def paired(
    before: Sequence[float], after: Sequence[float], *, xlabel: str, ylabel: str, ax: Axes | None = None
) -> Axes:
    """A point a sentence, after against before, beside the line on which nothing changes."""
    x, y = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    with style():
        ax = ax or plt.subplots(figsize=(4.4, 4))[1]
        ax.plot([low, high], [low, high], color="#555555", lw=1, ls="--", label="no change")
        up = y > x
        for above, name, colour in ((up, "greater after", "#0072B2"), (~up, "smaller or equal", "#D55E00")):
            ax.scatter(x[above], y[above], s=12, alpha=0.7, lw=0, color=colour, label=f"{name}: {above.sum()}")
        ax.set(xlabel=literal(xlabel), ylabel=literal(ylabel))
        ax.legend()
    return ax


def activations_by_language(activations: Mapping[str, np.ndarray], *, title: str = "", ax: Axes | None = None) -> Axes:
    """One neuron's activation in every sentence: a violin and its points a language, with the median as a bar."""
    random = np.random.default_rng(0)
    with style():
        ax = ax or plt.subplots(figsize=(1.6 + 0.85 * len(activations), 3.2))[1]
        for place, (language, values) in enumerate(activations.items()):
            colour, sideways = language_colour(language), place + random.uniform(-0.12, 0.12, len(values))
            if np.ptp(values) > 0:
                ax.violinplot(values, [place], widths=0.8, showextrema=False)
                ax.collections[-1].set(facecolor=colour, alpha=0.3, lw=0)
            ax.scatter(sideways, values, s=6, alpha=0.5, lw=0, color=colour)
            ax.hlines(np.median(values), place - 0.36, place + 0.36, color="black", lw=1.6, zorder=3)
        ax.axhline(0, color="#555555", lw=0.8)
        ax.set_xticks(range(len(activations)), [language_label(language) for language in activations])
        ax.set(ylabel="activation", title=literal(title))
        ax.grid(axis="x", visible=False)
    return ax


def exceedance(
    parts: Mapping[str, np.ndarray], *, xlabel: str, marks: Sequence[float] = (0.1, 0.25), ax: Axes | None = None
) -> Axes:
    """The share of each part's values that are greater than x, for values between 0 and 1; the first in colour."""
    colours = ["#D55E00", "#8a8a8a"] if len(parts) == 2 else PALETTE
    with style():
        ax = ax or plt.subplots(figsize=(6, 3.4))[1]
        for (name, values), colour in zip(parts.items(), colours, strict=False):
            above = np.arange(len(values), -1, -1) / max(len(values), 1)
            x = np.concatenate([[0.0], np.sort(values)])
            ax.step(x, above, where="post", color=colour, label=f"{literal(name)} ({len(values):,})")
        for mark in marks:
            ax.axvline(mark, color="#555555", lw=0.8, ls="--")
        ax.set(xlabel=literal(xlabel), ylabel="share of neurons above", xlim=(0, 1), ylim=(0, 1))
        ax.legend()
    return ax


def language_neurons(sets: Mapping[str, "NeuronSet"], *, ax: Axes | None = None) -> Axes:
    """How many neurons of each language's set sit in each layer, a line a language."""
    with style():
        ax = ax or plt.subplots(figsize=(6, 3.4))[1]
        for place, (language, neurons) in enumerate(sets.items()):
            by_layer = neurons.by_layer()
            ax.plot(
                range(neurons.shape[0]),
                [len(by_layer.get(layer, ())) for layer in range(neurons.shape[0])],
                color=language_colour(language),
                marker=MARKERS[place % len(MARKERS)],
                ms=4,
                label=f"{language_label(language)} ({len(neurons)})",
            )
        ax.set(xlabel="layer", ylabel="neurons in the set", ylim=(0, None))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend()
    return ax


def conditions_by_layer(frame: "pd.DataFrame", *, ylabel: str, ax: Axes | None = None) -> Axes:
    """Means with interval bands by layer, a line a condition; intervals as points where there is one layer only."""
    names = list(dict.fromkeys(frame.index.get_level_values("condition")))
    colours = {"none": "#555555", "the set": "#D55E00"}
    spare = iter(["#0072B2", "#009E73", "#56B4E9", "#CC79A7", "#E69F00", "#8C6D31"] * (1 + len(names) // 6))
    with style():
        ax = ax or plt.subplots(figsize=(7.5, 4))[1]
        for place, name in enumerate(names):
            rows = frame.xs(name, level="condition")
            colour = colours.get(name) or next(spare)
            if len(rows) == 1:
                low, high = rows["mean"] - rows["low"], rows["high"] - rows["mean"]
                ax.errorbar([place], rows["mean"], [low, high], fmt="o", color=colour, capsize=4)
                continue
            main = name in colours
            ax.plot(
                rows.index,
                rows["mean"],
                color=colour,
                lw=2.4 if main else 1.4,
                label=literal(name),
                zorder=3 if main else 2,
            )
            ax.fill_between(rows.index, rows["low"], rows["high"], color=colour, alpha=0.15, lw=0)
        ax.set(ylabel=literal(ylabel))
        if ax.lines and len(frame) > len(names):
            ax.set(xlabel="layer")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.legend(title="neurons off", alignment="left")
        else:
            ax.set_xticks(range(len(names)), list(map(literal, names)), rotation=20, ha="right")
    return ax


def conditions(frame: "pd.DataFrame", *, xlabel: str, title: str = "", ax: Axes | None = None) -> Axes:
    """Each condition's mean with its interval on a line of its own; the numbers stand beside it."""
    with style():
        ax = ax or plt.subplots(figsize=(7, 1.1 + 0.36 * len(frame)))[1]
        names = list(map(str, frame.index))
        for place, (name, (_, row)) in enumerate(zip(names, frame.iterrows(), strict=True)):
            colour = {"none": "#555555", "the set": "#D55E00"}.get(name, "#0072B2")
            ax.hlines(place, row["low"], row["high"], color=colour, lw=2)
            ax.plot(row["mean"], place, "o", color=colour, ms=6)
            ax.annotate(
                f"{row['mean']:z.3f}", (1.01, place), xycoords=("axes fraction", "data"), va="center", color=colour
            )
        seeds = zip(names, frame["seeds"], strict=True)
        labels = [literal(name) + (f" ({drawn:.0f} seeds)" if drawn > 1 else "") for name, drawn in seeds]
        ax.set_yticks(range(len(frame)), labels)
        ax.set(xlabel=literal(xlabel), title=literal(title), ylim=(len(frame) - 0.5, -0.5))
        ax.grid(axis="y", visible=False)
    return ax


def losses(values: np.ndarray, *, whole: float, ax: Axes | None = None) -> Axes:
    """How many sentences have how many nats per token, and the whole text's as a line."""
    with style():
        ax = ax or plt.subplots(figsize=(6, 3.4))[1]
        low, high = values.min(), values.max()
        ax.hist(values, bins=np.linspace(low, high if high > low else low + 1, 31).tolist(), color="#b8b8b8")
        ax.axvline(whole, color="#D55E00", lw=1.5, label=f"whole text: {whole:.2f}")
        ax.set(xlabel="nats per token of a sentence", ylabel="sentences")
        ax.legend()
    return ax


def language_shares(shares: "pd.DataFrame", *, ax: Axes | None = None) -> Axes:
    """The share of outputs in each language, before (pale) and after, as bars."""
    with style():
        ax = ax or plt.subplots(figsize=(1.8 + 0.9 * len(shares), 3.4))[1]
        places = np.arange(len(shares))
        colours = [language_colour(language) if language != "unknown" else "#8a8a8a" for language in shares.index]
        ax.bar(places - 0.2, shares["before"], 0.38, color=colours, alpha=0.4)
        ax.bar(places + 0.2, shares["after"], 0.38, color=colours)
        for shift, column in ((-0.2, "before"), (0.2, "after")):
            for place, share in zip(places, shares[column], strict=True):
                ax.text(place + shift, share, f"{share:.0%}", ha="center", va="bottom", fontsize=8)
        ax.set_xticks(places, [language_label(language) for language in shares.index], rotation=20, ha="right")
        ax.set(ylabel="share of outputs, before (pale) and after", ylim=(0, 1.08))
        ax.grid(axis="x", visible=False)
    return ax


def before_and_after(means: Mapping[str, tuple[float, float]], *, ylabel: str, ax: Axes | None = None) -> Axes:
    """Pairs of shares between 0 and 1 as bars, before (grey) and after."""
    with style():
        ax = ax or plt.subplots(figsize=(1.8 + 1.1 * len(means), 3.4))[1]
        places = np.arange(len(means))
        for place, (name, colour) in enumerate((("before", "#b8b8b8"), ("after", "#D55E00"))):
            heights = [pair[place] for pair in means.values()]
            bars = ax.bar(places + 0.4 * place - 0.2, heights, 0.38, color=colour, label=name)
            ax.bar_label(bars, fmt="%.3f", fontsize=8)
        ax.set_xticks(places, list(map(literal, means)))
        ax.set(ylabel=literal(ylabel), ylim=(0, 1.05))
        ax.grid(axis="x", visible=False)
        ax.legend()
    return ax
