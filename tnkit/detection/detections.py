"""Transfer neurons with the scores and the centroid that chose them: `Detection`."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import SupportsIndex

import pandas as pd

from tnkit import plots, storage
from tnkit.detection.centroids import Centroids
from tnkit.detection.neurons import NeuronSet
from tnkit.detection.scores import NeuronScores
from tnkit.detection.stability import Stability, stability
from tnkit.errors import TnkitError
from tnkit.models.tokens import ends_frame, ends_lines
from tnkit.provenance import Sentences, sentences_of

_NEURONS, _SCORES, _CENTROIDS = "neurons.json", "scores.safetensors", "centroids.safetensors"


@dataclass(frozen=True, eq=False)
class Detection:
    """The transfer neurons of one kind and language, with the scores and the centroid that chose them.

    Attributes:
        language: whose neurons.
        kind: "type1" (towards the shared centroid; with centred scores, the hub's) or "type2" (towards the language's
            own).
        neurons, scores, centroids: the results of each step.
    """

    language: str
    kind: str
    neurons: NeuronSet
    scores: NeuronScores
    centroids: Centroids

    def to_frame(self) -> pd.DataFrame:
        """The neurons with rank and score, indexed (layer, neuron)."""
        return self.neurons.to_frame()

    def ends(self) -> pd.DataFrame:
        """How the sentences of each language end, as `Activations.ends` says, indexed by language."""
        return ends_frame(self._sentences())

    def _sentences(self) -> list[Sentences]:
        """Those of the centroid, then those that were scored."""
        own: list[Sentences] = [{"language": self.language, **one} for one in sentences_of(self.scores.provenance)]
        return [*sentences_of(self.centroids.provenance), *own]

    def target(self) -> pd.DataFrame:
        """What the target of the scores is like in each layer, seen from their origin.

        Returns:
            A frame indexed by layer: `largest share` of the squared length in one coordinate, and the target's `cosine
            with the rival`: of Type-1 the language's own centroid, of Type-2 the shared one (of centred scores, the
            hub's). Where either is near 1, scores hardly tell the target from others. NaN where the rival is not
            known: raw scores of sentences need the hub's in the layers of Type-1 alone, and it runs no further, so give
            captures to know the rival of Type-2.
        """
        known, layers = self.scores.provenance.get("target", {}), self.scores.layers
        columns = {"largest share": "largest_share", "cosine with the rival": "cosines"}
        values = {name: known.get(key, [float("nan")] * len(layers)) for name, key in columns.items()}
        return pd.DataFrame(values, index=pd.Index(layers, name="layer"))

    def stability(self, n: SupportsIndex | None = None) -> Stability:
        """How many neurons the sets from two halves of the sentences share, beside chance.

        Args:
            n: neurons in a set (default: as many as the detection has).

        Raises:
            TnkitError: for the scores of a remote model, of a detection with stability=False, of an older tnkit's file
                or of one sentence.

        >>> from tnkit.detection.detect import detect
        >>> from tnkit.testing import tiny_corpus, tiny_model
        >>> found = detect(tiny_model(), tiny_corpus(), language="it", top=10, progress=False).stability()
        >>> found.n, found.candidates, bool(found.mean > found.chance[0])
        (10, 96, True)
        """
        return stability(self.scores, len(self.neurons) if n is None else n)

    def plot(self, ax: "plots.Axes | None" = None) -> "plots.Axes":
        """Draw the score distribution with the chosen tail."""
        return self.scores.plot(ax, chosen=self.neurons)

    @staticmethod
    def plot_all(detections: Iterable["Detection"], *, title: str = "") -> "plots.Figure":
        """Draw the score distributions of several detections side by side, in the colours of their kinds."""
        from tnkit.plots.looks import KIND_COLOURS, KIND_NAMES

        shown = list(detections)
        figure, axes = plots.panels(len(shown), width=5.2, height=3.4, title=title)
        for ax, detection in zip(axes, shown, strict=True):
            scores, kind = detection.scores, detection.kind
            shared = "the shared centroid" if scores.score == "raw" else "the hub's centroid"
            target = (shared if kind == "type1" else "the own centroid") + (" (centred)" * (scores.score == "centred"))
            plots.score_distribution(
                scores.values.numpy(),
                distance=scores.distance,
                chosen=detection.neurons.scores,
                colour=KIND_COLOURS[kind],
                title=f"{KIND_NAMES[kind]}: towards {target}, layers {scores.layers[0]}–{scores.layers[-1]}",
                ax=ax,
            )
        return figure

    def save(self, folder: str | Path) -> Path:
        """Write scores.safetensors, centroids.safetensors and neurons.json into a folder.

        The last one records the hashes of the other two, so that `load` notices a save that was cut short.

        >>> import tempfile
        >>> from tnkit.detection.detect import detect
        >>> from tnkit.testing import tiny_corpus, tiny_model
        >>> saved = detect(tiny_model(), tiny_corpus(), language="it", top=10, progress=False)
        >>> Detection.load(saved.save(tempfile.mkdtemp())).neurons == saved.neurons
        True
        """
        folder = Path(folder)
        with storage.together() as waiting:
            others = self.scores.save(folder / _SCORES), self.centroids.save(folder / _CENTROIDS)
            hashes = {path.name: _file_hash(waiting[path]) for path in others}
            provenance = self.neurons.provenance | {"saved_with": hashes}
            replace(self.neurons, provenance=provenance).save(folder / _NEURONS)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Detection":
        """Read what `save` wrote.

        Raises:
            TnkitError: for missing, damaged or foreign files, and for files of different detections.
        """
        folder = Path(folder)
        neurons = NeuronSet.load(folder / _NEURONS)
        provenance = dict(neurons.provenance)
        hashes = provenance.pop("saved_with", {})
        scores = NeuronScores.load(folder / _SCORES)
        centroids = Centroids.load(folder / _CENTROIDS)
        for name in (_SCORES, _CENTROIDS) if hashes else ():
            if hashes.get(name) != _file_hash(folder / name):
                raise _mixed(folder, name, "its content")
        selection = provenance.get("selection", {})
        neurons = replace(neurons, provenance=provenance)
        loaded = cls(selection.get("language", ""), selection.get("kind", ""), neurons, scores, centroids)
        loaded._check_files(folder)
        return loaded

    def _check_files(self, folder: Path) -> None:
        """Refuse results of different detections, whatever wrote them."""
        chosen, scored, target = self.neurons.provenance, self.scores.provenance, self.centroids.provenance
        for name in ("model", "sentences", "position", "centroid", "origin"):
            if chosen.get(name) != scored.get(name):
                raise _mixed(folder, _SCORES, f"its {name}")
        if chosen.get("distance", self.scores.distance) != self.scores.distance:
            raise _mixed(folder, _SCORES, f"its distance ({self.scores.distance})")
        values = self.scores.values
        if self.neurons.shape != tuple(values.shape):
            raise _mixed(folder, _SCORES, f"its shape {tuple(values.shape)}")
        if any(values[pair] != score for pair, score in zip(self.neurons.pairs, self.neurons.scores, strict=False)):
            raise _mixed(folder, _SCORES, "its scores of these neurons")
        for name in ("model", "position"):
            if target.get(name, scored.get(name)) != scored.get(name):
                raise _mixed(folder, _CENTROIDS, f"its {name}")
        if "centroid" in scored and target.get("sentences", target) != scored["centroid"]:
            raise _mixed(folder, _CENTROIDS, "its sentences")

    def _repr_html_(self) -> str:
        scores = self.scores
        rows = {"language": self.language, "kind": self.kind, "distance": scores.distance, "score": scores.score}
        for name, values in self.target().items():
            if values.notna().any():
                rows[str(name)] = f"{values.min():.3f} to {values.max():.3f}"
        if scores.folds is not None and int(scores.folds.flatten(1).any(dim=1).sum()) > 1:
            rows["halves of the sentences share"] = str(self.stability())
        rows |= {f"last tokens, {name}": text for name, text in ends_lines(self._sentences()).items()}
        return storage.html_card("Transfer neurons", rows) + self.neurons._repr_html_()


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _mixed(folder: Path, name: str, difference: str) -> TnkitError:
    return TnkitError(
        f"{folder / name} belongs to another detection than {_NEURONS} beside it: {difference} differs, as after a "
        "save that was cut short; detect again and save it"
    )
