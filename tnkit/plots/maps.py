"""Heat maps of numbers between languages or neuron sets.

With many rows or columns, cells hold no numbers, names are small, and `cluster` puts what is alike side by side.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from tnkit.plots.style import axes, language_label, literal, panels, style

_MANY = 12  # rows or columns, beyond which numbers in cells would not be readable
_ROUNDING = 1e-12  # distances that are all smaller than this are zeros with rounding errors


def distance_map(
    values: Float[np.ndarray, "language language"],
    languages: Sequence[str],
    *,
    label: str,
    title: str = "",
    highest: float | None = None,
    bar: bool = True,
    cluster: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draw distances between languages as an annotated heat map.

    A distance below a millionth of the scale is written as 0: its digits are rounding errors.

    Args:
        values: symmetric.
        languages: the codes of rows and columns.
        label: of the colour bar.
        title: of the axes.
        highest: the end of the scale (default: the largest value).
        bar: draw the colour bar.
        cluster: order languages so that near ones are side by side (average linkage, optimal leaf order).
        ax: where to draw (default: a new figure).

    >>> drawn = distance_map(np.array([[0, 1.5], [1.5, 0]]), ["en", "ja"], label="distance")
    >>> [text.get_text() for text in drawn.texts]
    ['0', '1.5', '1.5', '0']
    """
    if cluster:
        order = _order(values)
        values, languages = values[np.ix_(order, order)], [languages[index] for index in order]
    names = [language_label(language) for language in languages]
    top = highest or values.max()
    top = top if top > _ROUNDING else 1
    written = [["0" if value < 1e-6 * top else _short(value) for value in row] for row in values]
    look = {"cmap": "Blues", "vmin": 0, "vmax": top, "square": True}
    with axes(ax, *_size(len(names))) as ax:
        _heatmap(ax, values, written, (names, names), label if bar else None, **look)
        ax.set_title(literal(title))
        ax.tick_params(length=0)
        ax.tick_params(axis="x", rotation=90 if len(names) > _MANY else 40)
    return ax


def distance_maps(
    maps: Mapping[str, Float[np.ndarray, "language language"]], languages: Sequence[str], *, label: str, shared: bool
) -> Figure:
    """Draw one `distance_map` per title side by side, on one scale if `shared`."""
    highest = max(values.max() for values in maps.values()) if shared else None
    side = _size(len(languages))[1]
    figure, row = panels(len(maps), width=side + 1 / len(maps), height=side + 0.6)
    for ax, (title, values) in zip(row, maps.items(), strict=True):
        distance_map(values, languages, label=label, title=title, highest=highest, bar=False, ax=ax)
        if ax is not row[0]:
            ax.set_yticklabels([])
    with style():
        if shared:
            figure.colorbar(row[-1].collections[0], ax=row, label=literal(label), shrink=0.8)
        else:
            figure.suptitle(literal(label))
    return figure


def overlap_matrix(
    jaccard: Float[np.ndarray, "set set"],
    shared: Int[np.ndarray, "set set"],
    names: Sequence[str],
    *,
    cluster: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draw Jaccard indices of neuron sets as a heat map, annotated with the numbers of shared neurons.

    Args:
        jaccard: NaN for cells without colour, such as the diagonal.
        shared: neurons in both sets; on the diagonal, the set's size.
        names: of the sets.
        cluster: order sets so that those with many neurons in common are side by side.
        ax: where to draw (default: a new figure).
    """
    if cluster:
        order = _order(1 - jaccard)
        jaccard, shared = jaccard[np.ix_(order, order)], shared[np.ix_(order, order)]
        names = [names[index] for index in order]
    labels, side = list(map(literal, names)), 0.4 + _size(len(names))[1]
    top = _largest(jaccard)
    with axes(ax, side + 1.2, side) as ax:
        image = _image(ax, jaccard, np.vectorize("{:,}".format)(shared), top)
        turned: dict[str, Any] = {"rotation": 90} if len(names) > _MANY else {"rotation": 45, "ha": "right"}
        ax.set_xticks(range(len(names)), labels, **turned)
        ax.set_yticks(range(len(names)), labels)
        ax.figure.colorbar(image, ax=ax, label="Jaccard index", shrink=0.8)
    return ax


def matrix(
    frame: pd.DataFrame, *, xlabel: str, ylabel: str, value: str, cluster: bool = False, ax: Axes | None = None
) -> Axes:
    """Draw a frame as an annotated heat map; language codes among the labels become names.

    With `cluster`, columns that are alike (Euclidean distance) are side by side; rows with the name of a column follow
    its order, after the others.
    """
    if cluster:
        columns = frame.to_numpy().T
        order = _order(np.linalg.norm(columns[:, None] - columns[None], axis=2))
        frame = frame.iloc[:, order]
        others = [name for name in frame.index if name not in frame.columns]
        frame = frame.loc[[*others, *(name for name in frame.columns if name in frame.index)]]
    names = [language_label(name) for name in frame.columns], [language_label(name) for name in frame.index]
    written = np.vectorize("{:z.2f}".format)(frame)
    with axes(ax, *_frame_size(frame.shape[1], frame.shape[0], 2.4, 0.55)) as ax:
        _heatmap(ax, frame.to_numpy(), written, names, value, cmap="viridis")
        ax.set(xlabel=literal(xlabel), ylabel=literal(ylabel))
    return ax


def signed_maps(frames: Mapping[str, pd.DataFrame], *, xlabel: str, ylabel: str, value: str) -> Figure:
    """Draw frames of positive and negative numbers side by side, as annotated heat maps on one scale around 0.

    Args:
        frames: by title, alike in rows and columns; language codes among these become names.
        xlabel, ylabel: of all.
        value: the label of the colour bar.

    >>> import pandas as pd
    >>> frame = pd.DataFrame([[0.5, -2.0]], ["type1"], ["ja", "en"])
    >>> figure = signed_maps({"ja": frame}, xlabel="towards", ylabel="neurons", value="score")
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['+0.50', '-2.00']
    """
    rows, columns = next(iter(frames.values())).shape
    top = _largest(np.abs(np.stack([frame.to_numpy(float) for frame in frames.values()])))
    figure, row = panels(len(frames), width=1.5 + 0.9 * columns, height=1.9 + 0.55 * rows)
    for ax, (title, frame) in zip(row, frames.items(), strict=True):
        names = [language_label(name) for name in frame.columns], [language_label(name) for name in frame.index]
        written = np.vectorize("{:+z.2f}".format if top < 10 else "{:+z.1f}".format)(frame.to_numpy(float))
        with axes(ax, 0.0, 0.0) as ax:
            _heatmap(ax, frame.to_numpy(float), written, names, None, cmap="RdBu_r", vmin=-top, vmax=top)
            ax.set(xlabel=literal(xlabel), title=language_label(title))
            ax.tick_params(length=0)
            ax.tick_params(axis="x", rotation=40)
        if ax is row[0]:
            ax.set_ylabel(literal(ylabel))
        else:
            ax.set_yticklabels([])
    with style():
        bar = figure.colorbar(row[-1].collections[0], ax=row, label=literal(value), shrink=0.8)
    _cut(bar, np.stack([frame.to_numpy(float) for frame in frames.values()]))
    return figure


def perplexities(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw perplexities as a heat map coloured by change; frames mark the cells of a language's own set.

    Args:
        frame: columns `perplexity`, `change` and `own`, indexed (off, read); the first `off` is the untouched model.
        ax: where to draw (default: a new figure).
    """
    sets, languages = (list(dict.fromkeys(frame.index.get_level_values(level))) for level in ("off", "read"))
    values, changes, own = (
        frame[column].unstack("read").loc[sets, languages].to_numpy() for column in ("perplexity", "change", "own")
    )
    numbers = np.vectorize(lambda value: f"{value:,.0f}" if 99.5 <= value < 1e6 else f"{value:.3g}")(values)
    ablated = [
        [f"{number}\n{change:+z.1%}" for number, change in zip(*row, strict=True)]
        for row in zip(numbers[1:], changes[1:], strict=True)
    ]
    top = _largest(np.abs(changes))
    names = [language_label(language) for language in languages], [language_label(name) for name in sets]
    look = {"cmap": "RdBu_r", "vmin": -top, "vmax": top}
    label = "relative change of nats per token"
    with axes(ax, *_frame_size(len(languages), len(sets), 3.2, 0.7)) as ax:
        shown = np.nan_to_num(changes, posinf=top)
        _heatmap(ax, shown, [numbers[0].tolist(), *ablated], names, label, **look)
        _cut(ax.collections[0].colorbar, shown)
        for row, column in zip(*own.astype(bool).nonzero(), strict=True):
            ax.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor="black", lw=2, clip_on=False))
        ax.set(xlabel="language read", ylabel="neurons switched off")
        ax.tick_params(length=0)
    return ax


def _heatmap(
    ax: Axes,
    values: np.ndarray,
    written: Sequence[Sequence[str]] | np.ndarray,
    names: tuple[list[str], list[str]],
    label: str | None,
    **look: Any,
) -> None:
    """Draw annotated cells, the names of columns and rows, and a colour bar if it has a label.

    With many rows or columns, cells are not annotated.
    """
    import seaborn

    many = max(map(len, names)) > _MANY

    bar = {"cbar": False} if label is None else {"cbar_kws": {"label": literal(label)}}
    axis = {"xticklabels": names[0], "yticklabels": names[1], "ax": ax}
    annotation: dict[str, Any] = (
        {"linewidths": 0.2} if many else {"annot": np.array(written), "fmt": "", "linewidths": 1}
    )
    seaborn.heatmap(values, **annotation, **bar, **axis, **look)
    ax.tick_params(axis="y", rotation=0)
    if many:
        ax.tick_params(axis="x", rotation=90)
        ax.tick_params(labelsize=8)


def _cut(bar: Colorbar | None, values: np.ndarray) -> None:
    """End the colour bar of a scale around 0 at the lowest and highest value, or at 0 where all are on one side."""
    finite = [0.0, *values[np.isfinite(values)].tolist()]
    if bar is not None and min(finite) < max(finite):
        bar.ax.set_ylim(min(finite), max(finite))


def _image(ax: Axes, values: np.ndarray, written: np.ndarray, top: float) -> AxesImage:
    """Draw annotated cells in shades of blue from 0 to the top, NaN without colour."""
    image = ax.imshow(np.ma.masked_invalid(values), cmap="Blues", vmin=0.0, vmax=top)
    many = max(written.shape) > _MANY
    if many:
        ax.tick_params(labelsize=8)
    for (row, column), text in () if many else np.ndenumerate(written):
        dark = values[row, column] > 0.6 * top  # never for NaN
        shade = "white" if dark else "black"
        ax.text(column, row, text, ha="center", va="center", color=shade, fontsize=8.0)
    ax.grid(visible=False)
    return image


def _size(count: int) -> tuple[float, float]:
    return (1.8 + 0.75 * count, 1.2 + 0.6 * count) if count <= _MANY else (2.8 + 0.24 * count, 1.8 + 0.24 * count)


def _frame_size(columns: int, rows: int, margin: float, height: float) -> tuple[float, float]:
    """The size of a figure whose cells hold numbers, or hold none where there are many."""
    if max(columns, rows) > _MANY:
        return margin + 0.28 * columns + 1, 2 + 0.24 * rows
    return margin + 1.1 * columns, (1.5 if margin < 3 else 1.4) + height * rows


def _order(distances: np.ndarray) -> list[int]:
    """An order of rows in which near ones are side by side: average linkage, with the leaves ordered optimally."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(distances) < 3:
        return list(range(len(distances)))
    symmetric = np.nan_to_num((distances + distances.T) / 2, nan=1.0)
    np.fill_diagonal(symmetric, 0)
    tree = linkage(squareform(np.maximum(symmetric, 0), checks=False), "average", optimal_ordering=True)
    return [int(leaf) for leaf in leaves_list(tree)]


def _short(distance: float) -> str:
    """Two digits, or a whole number from 100."""
    return f"{distance:,.0f}" if distance >= 99.5 else f"{distance:.2g}"


def _largest(values: np.ndarray) -> float:
    """The largest finite value, or 1 if none is above 0."""
    finite = values[np.isfinite(values)]
    return float(finite.max()) if len(finite) and finite.max() > 0 else 1.0
