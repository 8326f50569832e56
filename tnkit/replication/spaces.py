"""The section on the spaces of languages by layer: `SPACES`."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure, SubFigure

import tnkit as tn
from tnkit.replication.findings import Findings, Section
from tnkit.replication.study import Study, Work
from tnkit.replication.words import name, number, percent
from tnkit.statistics import mean_interval

_NEAREST = 10  # neighbours, as in the paper
_NEAR = "mutual k-NN"


def spaces(study: Study) -> Findings:
    """Kernel and cosine similarity, retrieval, distances, dimension and principal components, by layer.

    >>> from tnkit.testing import studied
    >>> studied(spaces).tables["summary"].index.tolist()[:3]
    [('it', 'first'), ('it', 'peak'), ('it', 'last')]
    """
    states, hub, depth = study.captured("test"), study.hub, study.model.n_layers
    count = len(states[hub])
    k = min(_NEAREST, count - 1)
    distances = tn.geometry.centroid_distances(states)
    dimension = {language: tn.geometry.effective_dimension(each).to_frame() for language, each in states.items()}
    planes = tn.geometry.pca(states, layers=sorted({depth // 8, depth // 2, depth - 1}))
    rows = {}
    for language in study.languages:
        apart = distances.by_layer(language)[hub]
        of_hub = {"distance": apart, "dimension (95 %)": dimension[language]["95%"]}
        rows[language] = _beside(states[language], states[hub], k).assign(**of_hub)
    by_layer = pd.concat(rows, names=["language"])
    summary = pd.concat({language: _ends(frame) for language, frame in rows.items()}, names=["language"])
    sizes = pd.concat(dimension, names=["language"])
    components = pd.DataFrame({language: frame["95%"] for language, frame in dimension.items()})
    return Findings(
        f"The last token of {count} test sentences of each language, after every layer. Kernel similarity is mutual "
        f"{k}-NN with the translation in {name(hub)} (chance {number(k / (count - 1))}). Beside it: the raw cosine of "
        "translations and, as the control, of other pairs; mean-centred retrieval of the translation (chance "
        f"{percent(1 / count)}); the cosine distance between centroids; and how many principal components hold 95 % of "
        "the variance. Intervals are 95 % bootstrap intervals over sentences. The peak is chosen on the same "
        "sentences, which flatters it.",
        _said(summary, hub),
        {
            "summary": summary,
            "by layer": by_layer,
            "distances": distances.to_frame(),
            "dimension": sizes,
            "explained variance": pd.DataFrame(planes.explained, pd.Index(planes.layers, name="layer")),
            "coordinates": planes.to_frame(),
        },
        {
            "components": planes.plot(),
            _NEAR: _lines(by_layer, _NEAR, f"mutual {k}-NN with {name(hub)}"),
            "retrieval": _lines(by_layer, "retrieval", "translations found (mean-centred retrieval@1)"),
            "dimension": tn.plots.lines_by_layer(components, ylabel="components for 95 % of variance").figure,
            "distances": distances.plot_all(),
        },
        shown=("summary",),
    )


def _beside(states: tn.Activations, hub: tn.Activations, k: int) -> pd.DataFrame:
    """Every measure of a language beside the hub, indexed by layer."""
    cosines = tn.geometry.similarity(states, hub)
    columns = {f"cosine, {column}": values for column, values in cosines.columns.items()}
    near = tn.geometry.shared_neighbours(states, hub, k=k)
    for measure, values in {_NEAR: near, "retrieval": tn.geometry.hits(states, hub).astype(np.float64)}.items():
        low, high = mean_interval(values)
        columns |= {measure: values.mean(axis=1), f"{measure} low": low, f"{measure} high": high}
    return pd.DataFrame(columns, index=pd.Index(cosines.layers, name="layer"))


def _ends(rows: pd.DataFrame) -> pd.DataFrame:
    """The first layer, the one with the highest kernel similarity, and the last."""
    chosen = rows.loc[[rows.index[0], rows[_NEAR].idxmax(), rows.index[-1]]].reset_index()
    return chosen.set_axis(pd.Index(["first", "peak", "last"], name="at"))


def _said(summary: pd.DataFrame, hub: str) -> tuple[str, ...]:
    lines, above = [], []
    for language, rows in summary.groupby(level="language", sort=False):
        first, peak, last = (row for _, row in rows.iterrows())
        above.append(max(first[_NEAR], last[_NEAR]) < peak[f"{_NEAR} low"])
        lines.append(
            f"{name(str(language))}: mutual k-NN with {name(hub)} is {number(first[_NEAR])} after the first layer, "
            f"{number(peak[_NEAR])} ({number(peak[f'{_NEAR} low'])} to {number(peak[f'{_NEAR} high'])}) after layer "
            f"{peak['layer']:.0f}, its peak, and {number(last[_NEAR])} after the last. At the peak, translations have "
            f"a raw cosine of {peak['cosine, parallel']:.3f} and other pairs {peak['cosine, non-parallel']:.3f}."
        )
    told = f"In {sum(above)} of {len(above)} languages the peak is above both ends of the model, beyond its interval."
    return (told, *lines)


def _lines(by_layer: pd.DataFrame, measure: str, label: str) -> Figure | SubFigure:
    frame = by_layer[[measure, f"{measure} low", f"{measure} high"]].set_axis(["mean", "low", "high"], axis=1)
    return tn.plots.languages_by_layer(frame.swaplevel(), ylabel=label).figure


SPACES = Section(
    "spaces",
    "The spaces of languages, by layer",
    "Do languages begin apart, meet in the middle layers and part again?",
    spaces,
    lambda study: Work(states=study.each),
    ("sentences",),
)
