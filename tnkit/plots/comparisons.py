"""The untouched model beside the ablated one and its controls: means, intervals and shares."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from tnkit.plots.looks import language_colour
from tnkit.plots.style import axes, language_label, literal, titled

_COLOURS = {"none": "#555555", "untouched": "#555555", "the set": "#D55E00", "patched": "#D55E00"}
_CONTROL_COLOURS = ("#0072B2", "#009E73", "#56B4E9", "#CC79A7", "#E69F00", "#8C6D31", "#332288", "#117733")


def _coloured(names: list[str]) -> dict[str, str]:
    """A colour for each condition."""
    controls = [name for name in names if name not in _COLOURS]
    return _COLOURS | {name: _CONTROL_COLOURS[number % len(_CONTROL_COLOURS)] for number, name in enumerate(controls)}


def conditions_by_layer(
    frame: pd.DataFrame, *, ylabel: str, xlabel: str = "layer", legend: str = "neurons off", ax: Axes | None = None
) -> Axes:
    """Draw means with interval bands by layer, one line per condition; points with error bars for a single layer.

    Args:
        frame: columns `mean`, `low`, `high`, indexed (layer, condition).
        ylabel: the measure.
        xlabel, legend: what the layers and the conditions are.
        ax: where to draw (default: a new figure).
    """
    names = list(dict.fromkeys(frame.index.get_level_values("condition")))
    colours = _coloured(names)
    with axes(ax, 7.5, 4.0) as ax:
        for number, name in enumerate(names):
            rows, colour, main = frame.xs(name, level="condition"), colours[name], name in _COLOURS
            if len(rows) == 1:
                below, above = rows["mean"] - rows["low"], rows["high"] - rows["mean"]
                ax.errorbar([number], rows["mean"], [below, above], fmt="o", color=colour, capsize=4)
                continue
            look: dict[str, Any] = {"lw": 2.4, "zorder": 3} if main else {"lw": 1.4, "zorder": 2}
            ax.plot(rows.index, rows["mean"], color=colour, label=literal(name), **look)
            ax.fill_between(rows.index, rows["low"], rows["high"], color=colour, alpha=0.15, lw=0)
        ax.set(ylabel=literal(ylabel))
        if ax.lines and len(frame) > len(names):
            ax.set(xlabel=literal(xlabel))
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.legend(title=literal(legend), alignment="left")
        else:
            ax.set_xticks(range(len(names)), list(map(literal, names)), rotation=20, ha="right")
    return ax


def conditions_by_dose(
    frame: pd.DataFrame, *, xlabel: str, ylabel: str, logarithmic: bool = False, title: str = "", ax: Axes | None = None
) -> Axes:
    """Draw means with interval bands by dose, one line per condition, and the untouched model as a dashed line.

    Args:
        frame: columns `mean`, `low`, `high`, indexed (dose, condition); the condition "none" is the untouched model.
        xlabel, ylabel: the dose and the measure.
        logarithmic: whether doses are spaced by their logarithm.
        title: of the axes.
        ax: where to draw (default: a new figure).

    >>> import pandas as pd
    >>> index = pd.MultiIndex.from_product([[10, 100], ["none", "the set"]], names=["neurons", "condition"])
    >>> frame = pd.DataFrame({"mean": [0.9, 0.8, 0.9, 0.3], "low": 0.2, "high": 0.9}, index=index)
    >>> ax = conditions_by_dose(frame, xlabel="neurons", ylabel="retrieval", logarithmic=True)
    >>> [text.get_text() for text in ax.get_legend().get_texts()], ax.get_xscale()
    (['none', 'the set'], 'log')
    """
    names = list(dict.fromkeys(frame.index.get_level_values("condition")))
    colours = _coloured(names)
    with axes(ax, 6.5, 4.0) as ax:
        for name in names:
            rows, colour, main = frame.xs(name, level="condition"), colours[name], name in _COLOURS
            if name == "none":
                ax.axhline(float(rows["mean"].iloc[0]), color=colour, lw=1.4, ls="--", label=name)
                continue
            look: dict[str, Any] = {"lw": 2.4, "zorder": 3} if main else {"lw": 1.4, "zorder": 2}
            ax.plot(rows.index, rows["mean"], "o-", ms=4, color=colour, label=literal(name), **look)
            ax.fill_between(rows.index, rows["low"], rows["high"], color=colour, alpha=0.15, lw=0)
        if logarithmic:
            ax.set_xscale("log")
            doses = sorted(set(frame.index.get_level_values(0)))
            ax.set_xticks(doses, [f"{dose:,g}" for dose in doses])
            ax.minorticks_off()
        ax.set(xlabel=literal(xlabel), ylabel=literal(ylabel), title=literal(title))
        ax.legend(title="neurons changed", alignment="left")
    return ax


def conditions(frame: pd.DataFrame, *, xlabel: str, title: str = "", ax: Axes | None = None) -> Axes:
    """Draw each condition's mean and interval in a row of its own, with the mean written beside it.

    Args:
        frame: columns `mean`, `low`, `high`, `seeds`, indexed by condition.
        xlabel: the measure.
        title: of the axes.
        ax: where to draw (default: a new figure).

    >>> import pandas as pd
    >>> frame = pd.DataFrame({"mean": [0.9], "low": [0.8], "high": [0.95], "seeds": [4]}, index=["same layers"])
    >>> [label.get_text() for label in conditions(frame, xlabel="retrieval").get_yticklabels()]
    ['same layers (4 seeds)']
    """
    with axes(ax, 7.0, 1.1 + 0.36 * len(frame)) as ax:
        names = list(map(str, frame.index))
        for number, (name, (_, row)) in enumerate(zip(names, frame.iterrows(), strict=True)):
            colour, coordinates = _COLOURS.get(name, _CONTROL_COLOURS[0]), ("axes fraction", "data")
            ax.hlines(number, row["low"], row["high"], color=colour, lw=2)
            ax.plot(row["mean"], number, "o", color=colour, ms=6)
            ax.annotate(f"{row['mean']:z.3f}", (1.01, number), xycoords=coordinates, va="center", color=colour)

        seeds = zip(names, frame["seeds"], strict=True)
        labels = [literal(name) + (f" ({count:.0f} seeds)" if count > 1 else "") for name, count in seeds]
        ax.set_yticks(range(len(frame)), labels)
        ax.set(xlabel=literal(xlabel), ylim=(len(frame) - 0.5, -0.5))
        titled(ax, title)
        ax.grid(axis="y", visible=False)
    return ax


def language_shares(shares: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the share of outputs in each language as bars: columns `before` (pale) and `after`, indexed by language."""
    with axes(ax, 1.8 + 0.9 * len(shares), 3.4) as ax:
        x = np.arange(len(shares))
        colours = [language_colour(language) if language != "unknown" else "#8a8a8a" for language in shares.index]
        for shift, column, alpha in ((-0.2, "before", 0.4), (0.2, "after", None)):
            ax.bar(x + shift, shares[column], 0.38, color=colours, alpha=alpha)
            for at, share in zip(x + shift, shares[column], strict=True):
                ax.text(at, share, f"{share:.0%}", ha="center", va="bottom", fontsize=8)
        ax.set_xticks(x, [language_label(language) for language in shares.index], rotation=20, ha="right")
        ax.set(ylabel="share of outputs, before (pale) and after", ylim=(0, 1.08))
        ax.grid(axis="x", visible=False)
    return ax


def before_and_after(means: Mapping[str, tuple[float, float]], *, ylabel: str, ax: Axes | None = None) -> Axes:
    """Draw pairs of shares between 0 and 1 as bars, before (grey) and after, by name."""
    with axes(ax, 1.8 + 1.1 * len(means), 3.4) as ax:
        x = np.arange(len(means))
        for number, (name, colour) in enumerate((("before", "#b8b8b8"), ("after", "#D55E00"))):
            heights = [pair[number] for pair in means.values()]
            bars = ax.bar(x + 0.4 * number - 0.2, heights, 0.38, color=colour, label=name)
            ax.bar_label(bars, fmt="%.3f", fontsize=8)
        ax.set_xticks(x, list(map(literal, means)))
        ax.set(ylabel=literal(ylabel), ylim=(0, 1.05))
        ax.grid(axis="x", visible=False)
        ax.legend()
    return ax


def conditions_by_value(frames: Mapping[str, pd.DataFrame], *, xlabel: str, ax: Axes | None = None) -> Axes:
    """Draw each condition's mean and interval in a row of its own, in a colour for each value that neurons were set to.

    Args:
        frames: value → columns `mean`, `low`, `high`, indexed by condition; the first has a row for every condition.
            The row "none" does not depend on the value: it is drawn as a dashed line.
        xlabel: the measure.
        ax: where to draw (default: a new figure).

    >>> import pandas as pd
    >>> frame = pd.DataFrame({"mean": [0.9, 0.3], "low": [0.8, 0.2], "high": [1, 0.4]}, index=["none", "the set"])
    >>> [label.get_text() for label in conditions_by_value({"zero": frame}, xlabel="retrieval").get_yticklabels()]
    ['the set']
    """
    first = next(iter(frames.values()))
    names = [name for name in first.index if name != "none"]
    with axes(ax, 7.0, 1.3 + 0.27 * len(names)) as ax:
        colours = ("#D55E00", *_CONTROL_COLOURS)
        for number, ((value, frame), colour) in enumerate(zip(frames.items(), colours, strict=False)):
            rows = frame.loc[[name for name in names if name in frame.index]]
            heights = np.array([names.index(name) for name in rows.index]) + 0.22 * (number - (len(frames) - 1) / 2)
            ax.hlines(heights, rows["low"], rows["high"], color=colour, lw=1.6)
            ax.plot(rows["mean"], heights, "o", color=colour, ms=4.5, label=f"set to {literal(value)}")
        if "none" in first.index:
            ax.axvline(float(first["mean"]["none"]), color="#555555", lw=1, ls="--", label="untouched")
        ax.set_yticks(range(len(names)), list(map(literal, names)))
        ax.set(xlabel=literal(xlabel), ylim=(len(names) - 0.4, -0.6))
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.35 / len(names) ** 0.5), ncols=len(frames) + 1)
        ax.grid(axis="y", visible=False)
    return ax
