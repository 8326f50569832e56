"""The study of Tezuka & Inoue (EMNLP 2025) in one call: `paper`.

study = tn.paper(model, ["ja", "nl", "ko", "it"], out="paper")   # writes paper/index.html, tables and figures
study.findings["similarity"], study.table("similarity", "retrieval"), study.failed
tn.paper(model, ["ja"], estimate=True).estimate                  # how long it takes; nothing is run
"""

import hashlib
import logging
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, SupportsIndex

import matplotlib
import pandas as pd
from tqdm.auto import tqdm

import tnkit as tn
from tnkit import storage
from tnkit.errors import TnkitError, check_model, first_line, one_of, whole_number
from tnkit.replication.ablations import PERPLEXITY, QUESTIONS, SIMILARITY
from tnkit.replication.additions import EVIDENCE, STEERING
from tnkit.replication.estimate import SECONDS, estimated
from tnkit.replication.findings import Section
from tnkit.replication.folder import Folder, Kept, key_of
from tnkit.replication.neurons import DETECTION, OVERLAP, SPECIFICITY
from tnkit.replication.page import page_of
from tnkit.replication.spaces import SPACES
from tnkit.replication.study import QUICK, Sizes, Study, cut
from tnkit.replication.tasks import MMLU_PROX

SECTIONS = {
    section.name: section
    for section in (SPACES, DETECTION, SIMILARITY, SPECIFICITY, OVERLAP, PERPLEXITY, QUESTIONS, MMLU_PROX, EVIDENCE,
                    STEERING)
}  # fmt: skip
_LOG = logging.getLogger("tnkit")


@dataclass(frozen=True, eq=False)
class Paper:
    """The study as it lies in its folder.

    Attributes:
        path: of the page, index.html; the folder is its parent.
        estimate: seconds of each section, about, here and for a model of 8 billion parameters on one GPU.
        findings: section → what it measured and said, and its files.
        failed: section → why it did not run.
    """

    path: Path
    estimate: pd.DataFrame
    findings: dict[str, Kept] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def table(self, section: str, name: str) -> pd.DataFrame:
        """A table of a section.

        Raises:
            TnkitError: for a section or a table that is not there.
        """
        one_of("section", section, tuple(self.findings))
        one_of("name", name, tuple(self.findings[section].tables))
        return Folder(self.path.parent).table(self.findings[section], name)

    def _repr_html_(self) -> str:
        rows = {name: kept.said[0] for name, kept in self.findings.items()} | self.failed
        return storage.html_card("Study", {"page": str(self.path), **rows})


def paper(
    model: tn.Model,
    languages: Sequence[str] = ("ja", "nl", "ko", "it"),
    *,
    corpus: Any = "everyday",
    hub: str = "en",
    out: str | Path = "paper",
    sizes: Mapping[str, SupportsIndex] = MappingProxyType({}),
    quick: bool = False,
    sections: Iterable[str] | None = None,
    mkqa: str | Path | None = None,
    mmlu_prox: str | Path | None = None,
    estimate: bool = False,
    progress: bool = True,
) -> Paper:
    """Run the study of Tezuka & Inoue (EMNLP 2025) whole on a model, and write it as a folder with one page.

    Sections: the spaces of languages by layer; neurons of both types; translations with Type-1 off beside controls;
    correlation ratios; overlap between languages and with LAPE; perplexity and questions with Type-2 off; MMLU-ProX;
    and beyond the paper the evidence table and steering. Every table is written as CSV, every figure as PNG and SVG,
    and index.html says of each section what was measured, what came out, and whether a control does as much.

    A finished section is kept with the model's fingerprint, the sentences, its parameters and versions, and is not run
    again with the same; an interrupted study goes on there. A section that cannot run does not stop the others.

    Args:
        model: from `load_model`.
        languages: to study.
        corpus: a `Corpus`, or what `load_corpus` reads; of the hub and the languages, with a train and a test split.
        hub: the language whose space is taken as shared.
        out: the folder.
        sizes: how much is run, by name, such as {"top": 1000, "draws": 10}; the names are those of
            `tnkit.replication.study.Sizes`.
        quick: begin from the smallest sizes, to see whether all sections work.
        sections: names of those to run (default: all), of `SECTIONS`.
        mkqa: MKQA's own file mkqa.jsonl (default: packaged questions).
        mmlu_prox: "hub" for the tasks of the lm-evaluation-harness, or a file of MMLU-ProX in each language, with
            {language} in its name (default: that section is left out).
        estimate: only estimate the time; nothing is written.
        progress: show bars.

    Returns:
        `Paper`: the page, the estimate, what each section found, and why others did not run.

    Raises:
        TnkitError: for an unknown language or section, too few sentences, and a folder that cannot be written.

    >>> import tempfile
    >>> from tnkit.testing import tiny_corpus, tiny_model
    >>> options = {"corpus": tiny_corpus(), "quick": True, "estimate": True, "progress": False}
    >>> paper(tiny_model(), ["it"], **options).estimate.index.tolist()[-2:]
    ['steering', 'all']
    """
    check_model(model)
    chosen = list(SECTIONS) if sections is None else list(dict.fromkeys(sections))
    for name in chosen:
        one_of("section", name, tuple(SECTIONS))
    for name in sizes:
        one_of("size", name, tuple(vars(QUICK)))
    languages = [languages] if isinstance(languages, str) else list(dict.fromkeys(languages))
    if not languages or hub in languages:
        raise TnkitError(f"languages={languages} must name one or more languages other than the hub, {hub!r}")
    asked = replace(QUICK if quick else Sizes(), **{name: whole_number(name, value) for name, value in sizes.items()})
    corpus = corpus if isinstance(corpus, tn.Corpus) else tn.load_corpus(corpus, [hub, *languages])
    small = cut(corpus, [hub, *languages], asked.sentences)
    studied, hub = small.languages[1:], small.languages[0]
    study = Study(model, small, studied, hub, asked, mkqa, mmlu_prox, progress=progress)
    path, run = Path(out) / "index.html", [SECTIONS[name] for name in chosen]
    guess = estimated(study, run)
    if estimate:
        return Paper(path, guess)
    if progress:
        minutes = f"about {guess[SECONDS]['all'] / 60:.0f} minutes for {len(run)} sections"
        tqdm.write(f"{minutes}; those that {out} holds already take none", file=sys.stderr)
    done = Paper(path, guess)
    _run(study, run, done)
    return done


def _run(study: Study, sections: list[Section], done: Paper) -> None:
    """Run the sections, and write the page after each."""
    folder, fingerprint = Folder(done.path.parent), study.model.fingerprint()
    _write(study, sections, done)  # refuses a folder that cannot be written to
    for section in tqdm(sections, unit=" sections", desc="study", disable=not study.progress):
        key = key_of(_parameters(study, section), fingerprint)
        kept = folder.read(section.name, key)
        try:
            done.findings[section.name] = kept or _made(study, section, folder, key)
        except Exception as error:
            done.failed[section.name] = _reason(error)
            _LOG.warning("the section %s did not run: %s", section.name, done.failed[section.name])
        finally:
            _write(study, sections, done)


def _made(study: Study, section: Section, folder: Folder, key: str) -> Kept:
    """Run a section and write its files."""
    began = time.perf_counter()
    with matplotlib.rc_context({"figure.max_open_warning": 0}):  # the folder closes them
        found = section.run(study)
    return folder.write(section.name, found, key=key, seconds=time.perf_counter() - began)


def _write(study: Study, sections: list[Section], done: Paper) -> None:
    how: dict[str, Any] = {"folder": Folder(done.path.parent), "failed": done.failed, "estimate": done.estimate}
    storage.write_text(done.path, page_of(study, sections, done.findings, **how))


def _reason(error: Exception) -> str:
    """Why a section did not run, in one sentence."""
    text = str(error) if isinstance(error, TnkitError) else f"unexpected {type(error).__name__}: {first_line(error)}"
    return text.rstrip(".") + "."


def _parameters(study: Study, section: Section) -> dict[str, Any]:
    """What decides a section's numbers beside the model and versions."""
    values = {name: getattr(study.sizes, name, None) or getattr(study, name) for name in section.uses}
    files = {name: _content(study, value) for name, value in values.items() if name in ("mkqa", "mmlu_prox")}
    texts = {"corpus": study.corpus.hash, "languages": list(study.languages), "hub": study.hub}
    return {"section": section.name, **texts, **values, **files}


def _content(study: Study, value: str | Path | None) -> Any:
    """A name, and what the files that it stands for hold."""
    if value is None:
        return None
    paths = [Path(str(value).replace("{language}", language)) for language in study.languages]
    return [str(value), *(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file())]
