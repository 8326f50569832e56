"""Measures and numbers of neurons, layer by layer."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from tnkit.errors import TnkitError
from tnkit.plots.looks import KIND_COLOURS, KIND_NAMES, MARKERS, PALETTE, is_language, language_colour
from tnkit.plots.style import axes, language_label, literal

Neurons = Iterable[tuple[int, int]]  # (layer, neuron) pairs, such as a `tn.NeuronSet`


def lines_by_layer(
    frame: pd.DataFrame, *, ylabel: str, log: bool = False, chance: float | None = None, ax: Axes | None = None
) -> Axes:
    """Draw one line per column over layers, and chance as a dotted line.

    Columns that are all language codes get the languages' names and colours.
    """
    languages = all(map(is_language, frame.columns))
    with axes(ax, 6.0, 3.4) as ax:
        for number, (column, values) in enumerate(frame.items()):
            name, marker = str(column), MARKERS[number % len(MARKERS)]
            label, colour = (
                (language_label(name), language_colour(name))
                if languages
                else (literal(name), PALETTE[number % len(PALETTE)])
            )
            ax.plot(frame.index, values, label=label, color=colour, marker=marker, ms=4)
        if chance is not None:
            ax.axhline(chance, color="#555555", lw=1, ls=":", label=f"chance ({chance:.2g})")
        ax.set(xlabel="layer", ylabel=literal(ylabel), yscale="log" if log else "linear")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend()
    return ax


def languages_by_layer(
    frame: pd.DataFrame,
    *,
    beside: pd.DataFrame | None = None,
    dashed: str = "",
    ylabel: str,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw one line per language over layers with its interval as a band, and dashed lines beside them.

    Args:
        frame: columns `mean`, `low`, `high`, indexed (layer, language).
        beside: the same for the dashed lines.
        dashed: what those are.
        ylabel, title: of the axes.
        ax: where to draw (default: a new figure).

    >>> import pandas as pd
    >>> index = pd.MultiIndex.from_product([[0, 1], ["en", "ja"]], names=["layer", "language"])
    >>> ax = languages_by_layer(pd.DataFrame(0.5, index=index, columns=["mean", "low", "high"]), ylabel="share")
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['English', 'Japanese']
    """
    with axes(ax, 6.5, 3.8) as ax:
        for number, language in enumerate(dict.fromkeys(frame.index.get_level_values("language"))):
            colour = language_colour(language) if is_language(language) else PALETTE[number % len(PALETTE)]
            for rows, line in ((frame, "-"), (beside, "--")):
                if rows is not None:
                    values = rows.xs(language, level="language")
                    label = language_label(language) if line == "-" else None
                    ax.plot(values.index, values["mean"], line, color=colour, label=label)
                    ax.fill_between(values.index, values["low"], values["high"], color=colour, alpha=0.15, lw=0)
        if beside is not None:
            ax.plot([], [], "--", color="#555555", label=literal(dashed))
        ax.set(xlabel="layer", ylabel=literal(ylabel), title=literal(title))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return ax


def neurons_by_layer(sets: Mapping[str, Neurons], *, n_layers: int, title: str = "", ax: Axes | None = None) -> Axes:
    """Draw the number of neurons of each set in each layer as bars.

    Args:
        sets: (layer, neuron) pairs by name; types and languages get their names and colours.
        n_layers: of the model.
        title: of the axes.
        ax: where to draw (default: a new figure).

    Raises:
        TnkitError: for a neuron in a layer that the model does not have.

    >>> neurons_by_layer({"ja": [(0, 5), (1, 2)]}, n_layers=4).get_legend().get_texts()[0].get_text()
    'Japanese (2)'
    """
    counts_by_set = np.array([_counts(neurons, n_layers) for neurons in sets.values()])
    shared = bool(((counts_by_set > 0).sum(axis=0) > 1).any())  # only sets that share a layer need bars side by side
    width = 0.8 / len(sets) if shared else 0.8
    with axes(ax, 7.5, 3.2) as ax:
        for number, (name, counts) in enumerate(zip(sets, counts_by_set, strict=True)):
            shift = (number - (len(sets) - 1) / 2) * width if shared else 0
            label = KIND_NAMES.get(name) or language_label(name)
            spare = KIND_COLOURS.get(name, PALETTE[number % len(PALETTE)])
            colour = language_colour(name) if is_language(name) else spare
            ax.bar(np.arange(n_layers) + shift, counts, width, label=f"{label} ({counts.sum()})", color=colour)
        top = 1.35 * max(int(counts_by_set.max()), 1)  # room for the legend
        ax.set(xlabel="layer", ylabel="neurons in the set", title=literal(title))
        ax.set(xlim=(-0.6, n_layers - 0.4), ylim=(0, top))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=20))
        ax.grid(axis="x", visible=False)
        ax.legend()
    return ax


def language_neurons(sets: Mapping[str, Neurons], *, n_layers: int, ax: Axes | None = None) -> Axes:
    """Draw the number of neurons of each language's set in each layer, one line per language."""
    with axes(ax, 6.0, 3.4) as ax:
        for number, (language, neurons) in enumerate(sets.items()):
            counts, marker = _counts(neurons, n_layers), MARKERS[number % len(MARKERS)]
            label = f"{language_label(language)} ({counts.sum()})"
            ax.plot(range(n_layers), counts, color=language_colour(language), marker=marker, ms=4, label=label)
        ax.set(xlabel="layer", ylabel="neurons in the set", ylim=(0, None))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend()
    return ax


def _counts(neurons: Neurons, n_layers: int) -> Int[np.ndarray, "layer"]:
    counts = np.bincount(np.array([layer for layer, _ in neurons], dtype=int), minlength=n_layers)
    if len(counts) > n_layers:
        raise TnkitError(
            f"a neuron is in layer {len(counts) - 1}, which a model of {n_layers} layers does not have; give "
            "n_layers=model.n_layers"
        )
    return counts
