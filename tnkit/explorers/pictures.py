"""The explorer's views as matplotlib figures, which a saved notebook and `Explorer.save` show: `figure_of`."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from tnkit import plots
from tnkit.explorers.chunks import ROLES, Chunks
from tnkit.plots.looks import KIND_NAMES, language_name

_MARGIN = 0.12  # inches between what is drawn and the edge


def needed_by(state: Mapping[str, Any]) -> str:
    """The key of the chunk that a view's figure needs.

    >>> needed_by({"view": "evidence", "language": "ja", "kind": "type1", "size": 9, "value": "zero", "scope": "all"})
    'evidence|ja|type1|9|zero|all'
    """
    if state["view"] != "evidence":
        return "plane" if state["view"] == "map" else "sets"
    words = [str(state[name]) for name in ("language", "kind", "size", "value")]
    return "|".join(["evidence", *words, "last" if state["scope"] == "last" else "all"])


def figure_of(chunks: Chunks, state: Mapping[str, Any]) -> Figure:
    """A view as a figure.

    Args:
        chunks: of the study; what is missing is computed.
        state: of the explorer.

    >>> from tnkit.explorers.study import Study
    >>> from tnkit.testing import tiny_corpus, tiny_model
    >>> state = {"view": "neurons", "layer": 1, "language": "ja", "kind": "type1"}
    >>> figure_of(Chunks(Study(tiny_model(), tiny_corpus())), state).axes[0].get_title(loc="left")
    'Type-1 neurons by layer'
    """
    chunk, study = chunks.now(needed_by(state)), chunks.study
    if state["view"] == "map":
        figure = _map(chunks, state)
    elif state["view"] == "evidence":
        measures = chunk["measures"]
        measure = measures.get(state.get("measure")) or next(iter(measures.values()))
        title = f"{chunk['size']} {KIND_NAMES[state['kind']]} neurons of {language_name(state['language'])}"
        layer = "" if measure["chosen"] is None else f", layer {measure['chosen']}"
        label = f"{measure['name']}{layer}, n = {measure['sentences']}"
        figure = _whole(plots.conditions(_rows(measure), xlabel=label, title=title))
    else:
        sets = {name: study.neurons(name, state["kind"]) for name in study.others}
        title = f"{KIND_NAMES[state['kind']]} neurons by layer"
        axes = plots.neurons_by_layer(sets, n_layers=study.model.n_layers, title=title)
        axes.axvline(state["layer"], color="#555555", lw=1, ls="--")
        figure = _whole(axes)
    if isinstance(layout := figure.get_layout_engine(), ConstrainedLayoutEngine):
        layout.set(w_pad=_MARGIN, h_pad=_MARGIN)
    plt.close(figure)
    return figure


def _map(chunks: Chunks, state: Mapping[str, Any]) -> Figure:
    """The planes of what is shown, as far as it is computed."""
    planes, layer, study = chunks.planes, state["layer"], chunks.study
    panels: dict[str, dict[str, Any]] = {}
    visible = [name for name in study.languages if name not in state.get("hidden", ())]
    for role, name in ROLES.items():
        if role in state.get("shown", ("untouched",)):
            points = {code: chunks.points(role, code, state) for code in visible}
            if all(xy is not None for xy in points.values()):
                panels[f"layer {layer}, {name}"] = points
    if not panels:
        panels[f"layer {layer}"] = {code: chunks.points("untouched", code, state) for code in visible}
    share = float(planes.explained[layer])
    stacked = {code: np.stack([np.asarray(xy[code])[layer] for xy in panels.values()]) for code in visible}
    explained = np.full((len(panels), 2), share)
    figure = plots.spaces(stacked, explained=explained, titles=list(panels), centroids=True)
    for number, axes in enumerate(figure.axes):
        axes.set(xlabel=f"the same plane, {share:.0%} of the variance" if not number else "", ylabel="")
    return figure


def _whole(axes: Axes) -> Figure:
    """The figure that axes are in."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def _rows(measure: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of an evidence chunk's measure at its chosen layer, indexed by condition."""
    place = measure["layers"].index(measure["chosen"]) if measure["chosen"] is not None else 0
    rows = {row["name"]: {name: row[name][place] for name in ("mean", "low", "high")} for row in measure["conditions"]}
    seeds = {row["name"]: row["seeds"] for row in measure["conditions"]}
    return pd.DataFrame.from_dict(rows, orient="index").assign(seeds=pd.Series(seeds))
