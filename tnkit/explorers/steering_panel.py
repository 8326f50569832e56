"""One language taken away and another added while a prompt is continued: the panel of the ablation explorer."""

import html
from collections.abc import Callable
from typing import Any

import ipywidgets

from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError
from tnkit.explorers.parts import controls, html_table
from tnkit.explorers.study import Study
from tnkit.interventions.direction import Direction
from tnkit.interventions.intervention import Intervention
from tnkit.measures.behaviour.generation import Continuations, continuations
from tnkit.plots.style import language_name

_NEW = 25  # tokens of a continuation
_MOST = 4.0  # strength


class SteeringPanel(ipywidgets.VBox):
    """Two languages, a strength, and the continuations of a prompt with the set and beside it two controls.

    Args:
        study: the explorer's.
        prompt: the widget that holds the prompt.
        act: runs what a control asks for, and shows an error.
        say: shows what is being done.

    >>> import ipywidgets
    >>> from tnkit.testing import tiny_corpus, tiny_model
    >>> study = Study.of(tiny_model(), tiny_corpus())
    >>> panel = SteeringPanel(study, ipywidgets.Text("Hello"), act=lambda do: do(), say=lambda text: None)
    >>> panel.strength.value = 0.0
    >>> said = panel.steered()
    >>> said.before == said.after == said.controls["DiffMean"][0].after
    True
    """

    def __init__(
        self, study: Study, prompt: Any, *, act: Callable[[Callable[[], object]], None], say: Callable[[str], None]
    ) -> None:
        self.study, self.prompt, self._say = study, prompt, say
        named = [(language_name(name), name) for name in study.languages]
        self.away = ipywidgets.Dropdown(options=named, description="Take away")
        self.added = ipywidgets.Dropdown(options=named[1:], description="Add")
        self.strength = ipywidgets.FloatSlider(
            value=1.0, min=0.0, max=_MOST, step=0.25, description="Strength", continuous_update=False
        )
        self.go = ipywidgets.Button(
            description="Steer", icon="play", tooltip="continue the prompt while one language is added"
        )
        self.shown = ipywidgets.HTML()
        self.go.on_click(lambda _: act(self._show))
        self.strength.observe(lambda _: act(self._show) if self.shown.value else None, "value")
        hint = ipywidgets.HTML(
            "Type-2 neurons of the language that is added get strength × (its mean - mean of the other language), at "
            "every token; those of the language that is taken away are multiplied by 1 - strength, at least 0."
        )
        super().__init__([controls(self.away, self.added, self.strength, self.go), hint, self.shown])

    def close(self) -> None:
        """Release the model and its results."""
        self.__dict__.pop("study", None)
        super().close()

    def steered(self) -> Continuations:
        """The continuations of the prompt: untouched, with the set, and with each control.

        Raises:
            TnkitError: for an empty prompt, or one language as both.
        """
        study, away, added, strength = self.study, self.away.value, self.added.value, self.strength.value
        if not self.prompt.value.strip():
            raise TnkitError("the prompt is empty; write the beginning of a sentence")
        if away == added:
            raise TnkitError("the same language is taken away and added; choose two")
        for text in study.detecting([name for name in (away, added) if name != study.hub], ["type2"]):
            self._say(text)
        self._say("reading the training sentences of both languages")
        add: dict[str, Any] = {"add": strength, "of": study.means(added), "minus": study.means(away)}
        neurons, layer = study.neurons(added, "type2"), study.model.n_layers // 2
        direction = Direction.difference(add["of"], add["minus"], layers=[layer], add=strength)
        random = neurons.matched(seed=0)
        return continuations(
            study.model,
            [self.prompt.value],
            neurons=[*self._off(neurons), Intervention(neurons, **add)],
            controls={
                "random neurons of the same layers": [*self._off(random), Intervention(random, **add)],
                "DiffMean": [*self._off(neurons[:0]), direction],
            },
            seeds=1,
            tokens="all",
            max_new_tokens=_NEW,
            languages=study.languages,
            progress=False,
        )

    def _off(self, added: NeuronSet) -> list[Intervention]:
        """The neurons of the language that is taken away, but those that another one is added with."""
        if self.away.value == self.study.hub:
            return []
        neurons = self.study.neurons(self.away.value, "type2")
        return [Intervention(neurons - added, scale=max(0.0, 1.0 - self.strength.value))]

    def _show(self) -> None:
        said = self.steered()
        rows = [("untouched", said.before, said.before_languages)]
        rows.append((f"{language_name(self.added.value)} Type-2", said.after, said.after_languages))
        rows += [(name, draw.after, draw.after_languages) for name, (draw,) in said.controls.items()]
        cells = [[name, language_name(spoken or "") or "unclear", text] for name, (text,), (spoken,) in rows]
        title = html.escape(f"{self.prompt.value} …")
        self.shown.value = (
            f"<div class='tn-sentences'><p>{title}</p>{html_table(['', 'language', 'text'], cells)}</div>"
        )
        self._say(f"done; strength {self.strength.value:g}")
