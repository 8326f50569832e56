"""The effect of ablating transfer neurons, or of setting them to other values, beside a control: `explore_ablation`."""

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

from tnkit import plots
from tnkit.detection.detections import Detection
from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError
from tnkit.explorers.explorer import Explorer
from tnkit.explorers.parts import Places, controls, html_table
from tnkit.explorers.steering_panel import SteeringPanel
from tnkit.explorers.study import CONTROLS, ZERO, Study
from tnkit.interventions.comparison import Comparison
from tnkit.interventions.controls import drawn
from tnkit.measures.behaviour.generation import continuations
from tnkit.measures.behaviour.likelihood import perplexity
from tnkit.measures.measurement import BY_STATES, MEASURE_NAMES
from tnkit.models.model import Model
from tnkit.plots.style import KIND_NAMES, language_name, style
from tnkit.text.corpus import Corpus

_COUNTS = (10, 20, 50, 100, 200, 300, 500, 1000, 2000, 3000, 5000, 10_000)
_SCOPES = {"last token": "last", "whole prompt": "prompt", "all tokens": "all"}
_NEW = 25  # tokens of a continuation
_READ = 32  # sentences whose nats per token are measured


class _Key(NamedTuple):
    language: str
    kind: str
    size: int
    scope: str
    control: str
    value: str


class AblationExplorer(Explorer):
    """Similarity, retrieval and mutual k-NN by layer: untouched, with a set off, and with a control off."""

    name = "ablation"
    title = "Effect of ablating transfer neurons"
    hint = (
        "Measured on test sentences, which were not used to find the neurons. Lines are means; bands are 95 % "
        "intervals over sentences and random draws. Only the selected language is ablated, never the hub. Means "
        "are over the training sentences, at the token that is read."
    )
    study: Study

    def _build(self, *, seeds: int) -> tuple[list[ipywidgets.Widget], list[ipywidgets.Widget]]:  # type: ignore[override]
        study, self.seeds = self.study, seeds
        self._compared: dict[_Key, dict[str, Comparison]] = {}
        self._tables: dict[_Key, dict[str, Any]] = {}
        most = min(len(layers) for layers in (study.model.early_layers, study.model.late_layers))
        counts = [count for count in _COUNTS if count <= most * study.model.n_neurons // 3]
        counts = sorted({*counts, study.top})
        self.language = ipywidgets.Dropdown(
            options=[(language_name(name), name) for name in study.others], description="Language"
        )
        self.kind = ipywidgets.Dropdown(options=[(name, kind) for kind, name in KIND_NAMES.items()], description="Type")
        self.count = ipywidgets.SelectionSlider(
            options=counts, value=study.top, description="Neurons off", continuous_update=False
        )
        self.scope = ipywidgets.Dropdown(options=list(_SCOPES), description="Ablate at")
        self.control = ipywidgets.Dropdown(options=CONTROLS, description="Control")
        self.value = ipywidgets.Dropdown(options=study.values(), description="Set to")
        self.language.observe(lambda _: self._act(self._change), "value")
        self.kind.observe(lambda _: self._act(self._change), "value")
        for control in (self.count, self.scope, self.control, self.value):
            control.observe(self._refresh, "value")
        self.summary = ipywidgets.HTML()
        self.prompt = ipywidgets.Textarea(description="Prompt", layout={"width": "97%", "height": "52px"})
        self.go_on = ipywidgets.Button(
            description="Continue", icon="play", tooltip="continue the prompt without and with the ablation"
        )
        self.go_on.on_click(lambda _: self._act(self._continue))
        self.continued = ipywidgets.HTML()
        self.steering = SteeringPanel(study, self.prompt, act=self._act, say=self._say)
        self._offer()
        rows = [controls(self.language, self.kind), controls(self.count, self.value, self.scope, self.control)]
        return rows, [self.summary, self.prompt, self.go_on, self.continued, self.steering]

    @property
    def neurons(self) -> NeuronSet:
        """The neurons that are ablated."""
        return self.study.neurons(self.language.value, self.kind.value, self.count.value)

    @property
    def result(self) -> dict[str, Comparison]:
        """The `Comparison` of each measure, by its name."""
        return self._compared[self._ready(self._key())]

    def _renew(self) -> None:
        self._compared.clear()
        self._tables.clear()
        self.study.detect(self.study.others)

    def _offer(self) -> None:
        """List the controls and suggest a prompt for the selected language."""
        language = self.language.value
        others = [
            f"{language_name(name)} {KIND_NAMES[self.kind.value]}" for name in self.study.others if name != language
        ]
        chosen = self.control.value
        with self._quietly():
            self.control.options = [*CONTROLS, *others]
            self.control.value = chosen if chosen in self.control.options else CONTROLS[0]
            text = self.study.texts["test"][language][0]
            self.prompt.value = text[: max(len(text) // 2, 1)].rstrip()

    def _change(self) -> None:
        self._offer()
        self._turn_to(self._key())

    def _key(self) -> _Key:
        scope = _SCOPES[self.scope.value]
        return _Key(self.language.value, self.kind.value, self.count.value, scope, self.control.value, self.value.value)

    def _prepare(self, key: _Key) -> Iterator[str]:
        if key in self._tables:
            return
        study = self.study
        yield from study.detecting(study.others, [key.kind])
        neurons = study.neurons(key.language, key.kind, key.size)
        control = drawn(study.controls(key.language, key.kind, key.size)[key.control], self.seeds)
        tokens = "last" if key.scope == "last" else "all"  # nothing is generated, so the prompt is the whole text
        for name in study.sources(key.language, key.value):
            yield f"reading the training sentences of {language_name(name)}"
            study.captured("train", name)
        values, sets = [], [NeuronSet((), neurons.shape), neurons, *control]
        changed = [study.set_to(off, key.language, key.value) for off in sets]
        for number, off in enumerate(changed, 1):
            if not study.has_measured(key.language, off, tokens):
                yield f"reading {language_name(key.language)}, {len(off)} neurons off ({number} of {2 + len(control)})"
            values.append(study.measured(key.language, off, tokens))
        yield f"choosing a layer on training sentences of {language_name(key.language)}"
        first = min(layer for layer, _ in neurons)
        chosen, layers = study.chosen_layer(key.language, first), tuple(range(first, study.model.n_layers))
        how: dict[str, Any] = {"chosen_layer": chosen, "chosen_on": "training sentences"}
        self._compared[key] = {
            measure: self._comparison(key, measure, layers, [value[measure][first:] for value in values], **how)
            for measure in BY_STATES
        }
        if key.kind == "type2" and key.scope != "last":  # a last token predicts nothing
            texts, nats = study.texts["test"][key.language][:_READ], []
            for number, off in enumerate(changed, 1):
                yield f"predicting {language_name(key.language)} ({number} of {len(changed)})"
                nats.append(perplexity(study.model, texts, neurons=off, progress=False).by_sentence[None])
            self._compared[key]["perplexity"] = self._comparison(key, "perplexity", (0,), nats)
        yield "resampling sentences"
        self._tables[key] = {measure: compared.to_frame() for measure, compared in self._compared[key].items()}

    @staticmethod
    def _comparison(
        key: _Key, measure: str, layers: tuple[int, ...], values: Sequence[np.ndarray], **how: Any
    ) -> Comparison:
        untouched, ablated, *others = values
        controls = {key.control: np.stack(others)}
        return Comparison(MEASURE_NAMES[measure], layers, untouched, ablated, controls, **how)

    def _near(self, key: _Key) -> Iterable[_Key]:
        if key.scope == "last":  # other scopes take a full pass each, too slow to draw ahead
            for count in sorted(self.count.options, key=lambda count: abs(count - key.size)):
                yield key._replace(size=count)

    def _draw(self, key: _Key) -> tuple[Figure, str, Places, list[int]]:
        tables = self._tables[key]
        name = f"{language_name(key.language)} {KIND_NAMES[key.kind]}"
        with style():
            figure = Figure(figsize=(8.6, 3.9))
            figure.set_layout_engine("none")
            for column, measure in enumerate(BY_STATES):
                table = tables[measure]
                ax = figure.add_axes((0.065 + 0.325 * column, 0.24, 0.265, 0.63))
                plots.conditions_by_layer(table, ylabel="", ax=ax)
                ax.set_title(MEASURE_NAMES[measure])
                handles, labels = ax.get_legend_handles_labels()
                if legend := ax.get_legend():
                    legend.remove()
            done = "off" if key.value == ZERO else f"set to {key.value}"
            labels = ["nothing off", f"{key.size} {name} neurons {done}", f"as many {done}: {key.control}"]
            figure.legend(
                handles, list(map(plots.literal, labels)), loc="lower center", ncols=3, bbox_to_anchor=(0.5, 0.0)
            )
        alt = f"Similarity, retrieval and mutual k-NN with {self.study.hub} by layer: {', '.join(labels)}"
        return figure, alt, [], []

    def _after(self, key: _Key) -> None:
        rows = []
        for measure, compared in self._compared[key].items():
            layer = compared.layers[0] if compared.chosen_layer is None else compared.chosen_layer
            table, count = self._tables[key][measure].loc[layer], compared.untouched.shape[1]
            shown = [f"{row['mean']:z.3f} ({row['low']:z.3f} – {row['high']:z.3f})" for _, row in table.iterrows()]
            p, p_sets, draws = table.iloc[-1][["p sentences", "p sets", "seeds"]]
            shown.append(f"{p:.4f}" if p > 0.0001 else "≤ 0.0001")
            shown.append("one set" if draws == 1 else f"{p_sets:.4f} (least possible {1 / (1 + draws):.4f})")
            where = "–" if compared.chosen_layer is None else str(layer)
            rows.append([MEASURE_NAMES[measure], where, str(count), *shown])
        heads = ["", "layer", "n", "nothing off", "set off", f"control off: {key.control}", "p sentences", "p sets"]
        self.summary.value = (
            f"<div class='tn-sentences tn-numbers'>Neurons set to {html.escape(key.value)}, at a layer that was chosen "
            "on training sentences among those from the first ablated one on (mean, 95 % interval):"
            f"{html_table(heads, rows)}</div>"
        )

    def _continue(self) -> None:
        if not self.prompt.value.strip():
            raise TnkitError("the prompt is empty; write the beginning of a sentence")
        self._say("continuing the prompt without and with the ablation")
        study = self.study
        result = continuations(
            study.model,
            [self.prompt.value],
            neurons=study.set_to(self.neurons, self.language.value, self.value.value),
            tokens=_SCOPES[self.scope.value],
            max_new_tokens=_NEW,
            languages=study.languages,
            progress=False,
        )
        columns = (("before", result.before, result.before_languages), ("after", result.after, result.after_languages))
        self.continued.value = "<div class='tn-words'>{}</div>".format(
            "".join(
                f"<div><h4>{name}: {language_name(language or '') or 'language unclear'}</h4>"
                f"<p dir='auto'>{html.escape(self.prompt.value)}<b>{html.escape(text)}</b></p></div>"
                for name, (text,), (language,) in columns
            )
        )
        self._say(f"done; {result.count} activations were set to {self.value.value}")

    def _values(self) -> dict[str, Any]:
        return {
            "language": self.language.value,
            "type": KIND_NAMES[self.kind.value],
            "neurons off": self.count.value,
            "set to": self.value.value,
            "off at": self.scope.value,
            "control": self.control.value,
        }

    def _provenance(self) -> Any:
        return self.study.set_to(self.neurons, self.language.value, self.value.value).provenance

    def parameters(self) -> dict[str, Any]:
        """As of every explorer, and the number of random draws ("seeds")."""
        return {**super().parameters(), "seeds": self.seeds}


def explore_ablation(
    model: Model,
    corpus: Corpus,
    *,
    languages: Sequence[str] | None = None,
    hub: str = "en",
    sentences: int = 256,
    seeds: int = 3,
    position: str = "last",
    suffix: str | None = None,
    found: Mapping[tuple[str, str], Detection] | None = None,
    folder: str = "figures",
) -> AblationExplorer:
    """Explore the effect of ablating transfer neurons on a language's test sentences, compared with a control.

    It shows curves from the first ablated layer on, with 95 % bootstrap intervals (cosine with the translation,
    mean-centred retrieval@1 of the translation, and the share of the 10 nearest neighbours common to both languages;
    for Type-2 neurons off at more than the last token, also nats per token), and continues a prompt before and after.
    Neurons are set to 0, to their mean over a language or all of them, to their value in another sentence, or scaled.

    Args:
        model: from `load_model`.
        corpus: neurons are found in its training split and measured in its test split (at least 11 sentences).
        languages: which languages (default: all).
        hub: the language of the translations.
        sentences: the maximum number of sentences per split.
        seeds: the number of draws of each random control.
        position, suffix: which token is read and ablated, as in `capture`.
        found: earlier detections, by (language, kind).
        folder: where pictures are saved.

    Returns:
        An `Explorer`: a widget with `figure()`, `save()` and `parameters()`; `result` has a `Comparison` per measure.

    Raises:
        TnkitError: for unknown languages, or too few sentences.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_model, tiny_corpus
    >>> explorer = explore_ablation(tiny_model(), tiny_corpus())
    >>> explorer.count.value = 10
    >>> sorted(explorer.result)
    ['mutual_knn', 'retrieval', 'similarity']
    """
    reading = {"position": position, "suffix": suffix}
    study = Study.of(model, corpus, found=found, languages=languages, hub=hub, sentences=sentences, **reading)
    study.detect(study.others)
    study.all_captured("test")
    return AblationExplorer(study=study, seeds=seeds, folder=folder)
