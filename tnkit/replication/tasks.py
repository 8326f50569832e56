"""Questions of MKQA's file, and the section on MMLU-ProX, where its data can be had: `mkqa`, `MMLU_PROX`."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

import tnkit as tn
from tnkit import storage
from tnkit.errors import TnkitError
from tnkit.replication.findings import Findings, Section
from tnkit.replication.study import KINDS, Study, Work
from tnkit.replication.words import name, number
from tnkit.text import files

_LETTERS, _CONTROL = "ABCDEFGHIJ", "same layers"
_READERS: dict[str, Callable[..., Any]] = {
    ".jsonl": partial(pd.read_json, lines=True),
    ".csv": pd.read_csv,
    ".parquet": pd.read_parquet,
}


def mkqa(path: str | Path, language: str, count: int) -> tuple[list[str], list[list[Any]]]:
    """The first questions of MKQA's own file that have an answer in a language, and their accepted answers.

    Raises:
        TnkitError: for a file that is missing or laid out otherwise.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "mkqa.jsonl")
    >>> size = file.write_text('{"queries": {"it": "Dove?"}, "answers": {"it": [{"text": "Roma", "aliases": []}]}}')
    >>> mkqa(file, "it", 1)
    (['Dove?'], [[{'text': 'Roma', 'aliases': []}]])
    """
    asked: dict[str, list[Any]] = {}
    for line in files.opened(Path(path)).lines():
        try:
            record = json.loads(line)
            question, answers = record["queries"][language], record["answers"][language]
            named = [answer for answer in answers if answer.get("text")]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TnkitError(
                f"{path} has a line without queries and answers in {language}; give MKQA's own mkqa.jsonl"
            ) from error
        if question and named:
            asked[question] = named
        if len(asked) == count:
            break
    if not asked:
        raise TnkitError(f"{path} has no question with an answer in {language}; give MKQA's own mkqa.jsonl")
    return [*asked], [*asked.values()]


def mmlu_prox(study: Study) -> Findings:
    """MMLU-ProX with Type-1 and with Type-2 neurons off.

    >>> from tnkit.testing import studied
    >>> studied(mmlu_prox)
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: MMLU-ProX was not asked for: its data is not packaged; name a file, or hub, with ...
    """
    if study.mmlu_prox is None:
        raise TnkitError(
            "MMLU-ProX was not asked for: its data is not packaged; name a file, or hub, with mmlu_prox= / --mmlu_prox"
        )
    frames = {}
    for language in study.languages:
        tasks = _tasks(study, language)
        for kind in KINDS:
            neurons = study.found[language, kind].neurons
            how: dict[str, Any] = {"limit": study.sizes.documents, "tokens": "prompt", "seeds": 1, **study.bar}
            controls = {_CONTROL: neurons.matched(seed=0)}
            done = tn.harness.evaluate(study.model, tasks, neurons=neurons, controls=controls, **how)
            control = done.controls[_CONTROL][0].to_frame()["after"]
            frames[language, kind] = done.to_frame().assign(**{_CONTROL: control})
    table: Any = pd.concat(frames, names=["language", "type"])
    said = [
        f"{name(language)}, {name(kind)} off: {metric} goes from {number(row['before'])} to {number(row['after'])} "
        f"(change {number(row['low'])} to {number(row['high'])}); with random neurons of the same layers off it is "
        f"{number(row[_CONTROL])}."
        for (language, kind, _, _, metric), row in table.iterrows()
        if metric != "unparsed"
    ]
    return Findings(
        f"The first {study.sizes.documents} documents of each language by the lm-evaluation-harness, untouched and "
        "with a set at zero over the prompt; 95 % bootstrap intervals of the change over documents. Control: as many "
        "random neurons in each layer (one draw).",
        tuple(said),
        {"accuracy": table},
        {},
        shown=("accuracy",),
    )


def _tasks(study: Study, language: str) -> list[Any]:
    """The harness's own task, or one made of a file."""
    if study.mmlu_prox == "hub":
        return [f"mmlu_prox_lite_{language}"]
    from datasets import Dataset

    path = Path(str(study.mmlu_prox).replace("{language}", language))
    if path.suffix not in _READERS:
        raise TnkitError(f"{path} ends in {path.suffix or 'nothing'}; give a file that ends in {', '.join(_READERS)}")
    try:
        frame = _READERS[path.suffix](storage.existing_file(path))
    except (ValueError, OSError) as error:
        raise error if isinstance(error, TnkitError) else TnkitError(f"{path} is not a readable table") from error
    options = [column for column in frame if str(column).startswith("option_")]
    if not {"question", "answer"} <= {*frame} or not options:
        raise TnkitError(f"{path} needs the columns question, option_0, option_1, … and answer, as MMLU-ProX has them")
    rows = [_document(row, options) for _, row in frame.head(study.sizes.documents).iterrows()]
    documents = Dataset.from_list(rows)
    task = {"task": f"mmlu_prox_{language}", "output_type": "multiple_choice", "test_split": "test"}
    task |= {"doc_to_text": "question", "doc_to_choice": "choices", "doc_to_target": "label"}
    return [task | {"custom_dataset": lambda **_: {"test": documents}}]


def _document(row: "pd.Series", options: list[Any]) -> dict[str, Any]:
    choices = [str(row[option]) for option in options if pd.notna(row[option]) and str(row[option])]
    lines = [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=False)]
    answer = str(row["answer"]).strip()[:1]
    if not answer or answer not in _LETTERS[: len(choices)]:
        raise TnkitError(f"the answer {row['answer']!r:.40} is not the letter of one of {len(choices)} options")
    question = "\n".join([str(row["question"]), *lines, "Answer:"])
    return {
        "question": question,
        "choices": [f" {letter}" for letter in _LETTERS[: len(choices)]],
        "label": _LETTERS.index(answer),
    }


MMLU_PROX = Section(
    "mmlu-prox",
    "MMLU-ProX",
    "Does reasoning in the language suffer?",
    mmlu_prox,
    lambda study: Work(predicted=0 if study.mmlu_prox is None else 48 * len(study.languages) * study.sizes.documents),
    ("sentences", "top", "documents", "mmlu_prox"),
)
