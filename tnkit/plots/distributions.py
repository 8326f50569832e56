"""Distributions of scores, losses and activations over neurons or sentences."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Num
from matplotlib.axes import Axes

from tnkit.plots.looks import KIND_COLOURS, PALETTE, language_colour
from tnkit.plots.style import axes, language_label, literal

_GREY = "#b8b8b8"


def score_distribution(
    scores: Float[np.ndarray, "*any"],
    *,
    distance: str,
    chosen: Sequence[float] = (),
    colour: str = KIND_COLOURS["type1"],
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw a histogram of scores with the chosen ones in colour; counts are on a log axis.

    Args:
        scores: of all neurons; NaN for a neuron without a score.
        distance: what the scores are a change of: "cosine" or another.
        chosen: the scores of a set of neurons.
        colour: of the chosen scores.
        title: of the axes.
        ax: where to draw (default: a new figure).

    >>> drawn = score_distribution(np.array([0.1, 0.2, np.nan]), distance="cosine", chosen=[0.2])
    >>> [text.get_text() for text in drawn.get_legend().get_texts()]
    ['all 2 neurons', 'chosen 1, score ≥ 0.2']
    """
    values = scores[~np.isnan(scores)]
    bins = _bins(values, 80)
    change = "cosine" if distance == "cosine" else "distance"
    with axes(ax, 6.0, 3.4) as ax:
        ax.hist(values, bins=bins, color=_GREY, label=f"all {len(values):,} neurons")
        if len(chosen):
            lowest = min(chosen)
            ax.hist(chosen, bins=bins, color=colour, label=f"chosen {len(chosen):,}, score ≥ {lowest:z.2g}")
            ax.axvline(lowest, color=colour, lw=1, ls="--")
        ax.axvline(0, color="#555555", lw=0.8)
        xlabel = f"score (mean change of {change}; positive is nearer)"
        ax.set(xlabel=xlabel, ylabel="neurons", yscale="log", ylim=(0.7, None), title=literal(title))
        ax.legend()
    return ax


def _bins(values: np.ndarray, count: int) -> list[float]:
    low, high = values.min(), values.max()
    return np.linspace(low, high if high > low else low + 1, count + 1).tolist()


def random_sets(
    draws: Float[np.ndarray, "draw"],
    *,
    value: float,
    untouched: float,
    p: float,
    xlabel: str,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw a histogram of the effects of random sets, with the set and the untouched model as lines.

    Args:
        draws: the mean with each random set off.
        value, untouched: the mean with the set off, and with nothing off.
        p: of the set among the draws.
        xlabel: the measure.
        title: of the axes.
        ax: where to draw (default: a new figure).

    >>> drawn = random_sets(np.arange(9.0), value=20.0, untouched=8.0, p=0.1, xlabel="retrieval")
    >>> [text.get_text() for text in drawn.get_legend().get_texts()]
    ['9 random sets', 'nothing off: 8', 'the set: 20 (p sets = 0.1, the smallest possible)']
    """
    floor = ", the smallest possible" if p * (len(draws) + 1) < 1.5 else ""
    with axes(ax, 6.0, 3.4) as ax:
        ax.hist(draws, bins=_bins(draws, 40), color=_GREY, label=f"{len(draws):,} random sets")
        ax.axvline(untouched, color="#555555", lw=1.2, ls="--", label=f"nothing off: {untouched:z.3g}")
        ax.axvline(value, color="#D55E00", lw=1.8, label=f"the set: {value:z.3g} (p sets = {p:.3g}{floor})")
        ax.set(xlabel=literal(xlabel), ylabel="random sets", title=literal(title))
        ax.legend()
    return ax


def losses(values: Float[np.ndarray, "sentence"], *, whole: float, ax: Axes | None = None) -> Axes:
    """Draw a histogram of nats per token over sentences, with the value of the whole text as a line."""
    with axes(ax, 6.0, 3.4) as ax:
        ax.hist(values, bins=_bins(values, 30), color=_GREY)
        ax.axvline(whole, color="#D55E00", lw=1.5, label=f"whole text: {whole:.2f}")
        ax.set(xlabel="nats per token of a sentence", ylabel="sentences")
        ax.legend()
    return ax


def question_scores(
    f1: Float[np.ndarray, "question"], exact: Bool[np.ndarray, "question"], *, language: str, ax: Axes | None = None
) -> Axes:
    """Draw a histogram of F1 over questions, with exact matches in the language's colour and the mean as a line."""
    groups, colours = [f1[~exact], f1[exact]], [_GREY, language_colour(language)]
    labels = ["other", f"exact match ({exact.mean():.1%})"]
    with axes(ax, 6.0, 3.4) as ax:
        ax.hist(groups, bins=np.linspace(0, 1, 21).tolist(), stacked=True, color=colours, label=labels)
        ax.axvline(f1.mean(), color="#555555", ls="--", lw=1, label=f"mean F1 ({f1.mean():.1%})")
        ax.set(xlabel="F1 with the best accepted answer", ylabel="questions", xlim=(0, 1))
        ax.legend()
    return ax


def activations_by_language(
    activations: Mapping[str, Float[np.ndarray, "sentence"]], *, title: str = "", ax: Axes | None = None
) -> Axes:
    """Draw one neuron's activation in every sentence, by language: a violin, points, and the median as a bar."""
    random = np.random.default_rng(0)
    with axes(ax, 1.6 + 0.85 * len(activations), 3.2) as ax:
        for x, (language, values) in enumerate(activations.items()):
            colour, jittered = language_colour(language), x + random.uniform(-0.12, 0.12, len(values))
            if np.ptp(values) > 0:
                ax.violinplot(values, [x], widths=0.8, showextrema=False)
                ax.collections[-1].set(facecolor=colour, alpha=0.3, lw=0)
            ax.scatter(jittered, values, s=6, alpha=0.5, lw=0, color=colour)
            ax.hlines(np.median(values), x - 0.36, x + 0.36, color="black", lw=1.6, zorder=3)
        ax.axhline(0, color="#555555", lw=0.8)
        ax.set_xticks(range(len(activations)), [language_label(language) for language in activations])
        ax.set(ylabel="activation", title=literal(title))
        ax.grid(axis="x", visible=False)
    return ax


def exceedance(
    groups: Mapping[str, Num[np.ndarray, "value"]],
    *,
    xlabel: str,
    marks: Sequence[float] = (0.1, 0.25),
    ax: Axes | None = None,
) -> Axes:
    """Draw the share of each group's values greater than x, for values between 0 and 1.

    Args:
        groups: values by name; if there are two, the first is in colour and the second grey.

        xlabel: the measure.
        marks: x of the dashed lines.
        ax: where to draw (default: a new figure).
    """
    colours = ["#D55E00", "#8a8a8a"] if len(groups) == 2 else PALETTE
    with axes(ax, 6.0, 3.4) as ax:
        for (name, values), colour in zip(groups.items(), colours, strict=False):
            above = np.arange(len(values), -1, -1) / max(len(values), 1)
            x = np.concatenate([[0.0], np.sort(values)])
            ax.step(x, above, where="post", color=colour, label=f"{literal(name)} ({len(values):,})")
        for mark in marks:
            ax.axvline(mark, color="#555555", lw=0.8, ls="--")
        ax.set(xlabel=literal(xlabel), ylabel="share of neurons above", xlim=(0, 1), ylim=(0, 1))
        ax.legend()
    return ax
