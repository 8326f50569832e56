"""Neuron sets as things to share: a card that describes a set, and repositories on the Hugging Face Hub.

neurons.card(licence="cc0-1.0")                       # Markdown, with the Hub's metadata in front
neurons.push_to_hub("me/gemma-3-270m-neurons", "ja-type1", licence="cc0-1.0")
tn.NeuronSet.from_hub("me/gemma-3-270m-neurons", "ja-type1")
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from tnkit import storage
from tnkit.errors import TnkitError, first_line, visible
from tnkit.provenance import sentences_of
from tnkit.text.languages import code_of, name_of

FILE = "neurons.json"
_CARD = "README.md"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_KINDS = {"type1": "Type-1", "type2": "Type-2"}
_ROWS = 30  # of evidence, in a card
_Set = TypeVar("_Set", bound="Shareable")


class Shareable:
    """What `tnkit.NeuronSet` can be shared by.

    >>> import tnkit as tn
    >>> issubclass(tn.NeuronSet, Shareable)
    True
    """

    if TYPE_CHECKING:
        pairs: tuple[tuple[int, int], ...]
        shape: tuple[int, int]
        scores: tuple[float, ...]
        provenance: dict[str, Any]

        def save(self, path: str | Path) -> Path: ...

        @classmethod
        def load(cls: type[_Set], path: str | Path) -> _Set: ...

    def card(self, *, licence: str = "", evidence: pd.DataFrame | None = None, source: str = "") -> str:
        """A description of the set for readers of a repository, in Markdown with the Hub's metadata in front.

        Args:
            licence: of the set, as the Hub names it, such as "cc0-1.0".
            evidence: what the set does beside its controls, such as `tn.evidence(…).at("zero")`; a row for each
                condition.
            source: how to get the set in Python (default: from a file beside the card).

        >>> import tnkit as tn
        >>> card = tn.NeuronSet(((0, 5), (1, 2)), shape=(4, 48), provenance={"model": {"name": "me/llama"}}).card()
        >>> card.splitlines()[1], card.splitlines()[10]
        ('base_model: me/llama', '# 2 neurons of me/llama')
        """
        made = {**_mapping(self.provenance.get("of")), **self.provenance}  # a control, of what its set is of
        rows = _described(self.pairs, self.shape, self.scores, made)
        rows["licence"] = licence or "not stated"
        source = source or f'tn.NeuronSet.load("{FILE}")'
        model = json.dumps(_model_name(made) or "the model they were made with", ensure_ascii=False)
        sections = [
            f"---\n{_metadata(made, licence)}\n---",
            f"# {_title(self.pairs, made)}",
            "A neuron is one input coordinate of the last linear map of a layer's MLP; layers and neurons are counted "
            f"from 0. `{FILE}` lists them with their scores and origin.",
            _table(["", ""], [[name, value] for name, value in rows.items()]),
            "## What they do",
            _evidence_table(evidence),
            "## Use",
            f"```python\nimport tnkit as tn\n\nmodel = tn.load_model({model})\nneurons = {source}\n"
            "with tn.Ablation(model, neurons):  # set to zero; refuses a model with other weights\n    ...\n```",
        ]
        return "\n\n".join(sections) + "\n"

    def push_to_hub(
        self,
        repo_id: str,
        subfolder: str = "",
        *,
        licence: str = "",
        evidence: pd.DataFrame | None = None,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> str:
        """Upload the set and its card to a model repository on the Hugging Face Hub, which is created if needed.

        Folders in the provenance, such as that of a model on this machine, are shortened to their last part.

        Args:
            repo_id: OWNER/NAME.
            subfolder: of the repository, for one that holds several sets.
            licence, evidence: as in `card`.
            private: whether a new repository is private (default: as its owner's settings say).
            revision: branch to commit to, created if needed (default: the main one).
            token: of the Hub (default: that of `hf auth login`).

        Returns:
            The address of the commit.

        Raises:
            TnkitError: where the Hub refuses or cannot be reached.
        """
        from huggingface_hub import CommitOperationAdd, HfApi

        _check_names(repo_id, subfolder)
        within = f"{subfolder}/" if subfolder else ""
        named = f'"{repo_id}"' + (f', "{subfolder}"' if subfolder else "")
        shared: Any = replace(self, provenance=storage.without_folders(self.provenance))  # type: ignore[type-var]
        card = shared.card(licence=licence, evidence=evidence, source=f"tn.NeuronSet.from_hub({named})")
        with TemporaryDirectory() as folder:
            data = shared.save(Path(folder) / FILE).read_bytes()
        files = {f"{within}{FILE}": data, f"{within}{_CARD}": card.encode()}
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        hub = HfApi(token=token)
        try:
            hub.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                hub.create_branch(repo_id, branch=revision, exist_ok=True)
            message = f"Upload {_title(self.pairs, shared.provenance)}"
            return str(hub.create_commit(repo_id, operations, commit_message=message, revision=revision).commit_url)
        except Exception as error:
            raise TnkitError(
                f"{repo_id} could not be written on the Hugging Face Hub ({first_line(error)}); check its name, your "
                "network, and whether your token may write to it (hf auth login)"
            ) from error

    @classmethod
    def from_hub(
        cls: type[_Set], repo_id: str, subfolder: str = "", *, revision: str | None = None, token: str | None = None
    ) -> _Set:
        """Download a set that `push_to_hub` uploaded; its provenance records the repository and the commit.

        Args:
            repo_id, subfolder, token: as in `push_to_hub`.
            revision: branch, tag or commit.

        Raises:
            TnkitError: for what cannot be downloaded, or is not a neuron set.
        """
        from huggingface_hub import hf_hub_download

        _check_names(repo_id, subfolder)
        where: dict[str, Any] = {"subfolder": subfolder or None, "revision": revision, "token": token}
        try:
            path = Path(hf_hub_download(repo_id, FILE, **where))
        except Exception as error:
            raise TnkitError(
                f"{FILE} of {repo_id} could not be downloaded from the Hugging Face Hub ({first_line(error)}); check "
                "the names of the repository and of its subfolder, your network, and whether you must log in"
            ) from error
        loaded: Any = cls.load(path)
        commit = re.search(r"/snapshots/([^/]+)/", path.as_posix())  # how the Hub's cache lays its files out
        origin = {"repository": repo_id, "subfolder": subfolder, "commit": commit[1] if commit else revision}
        return replace(loaded, provenance={**loaded.provenance, "hub": origin})


def _check_names(repo_id: str, subfolder: str) -> None:
    if not _HUB_NAME.fullmatch(repo_id):
        raise TnkitError(f"repo_id={repo_id!r:.60} must be OWNER/NAME, as in me/ja-type1-neurons")
    if subfolder and not re.fullmatch(r"(?!\.)[\w.-]+(/(?!\.)[\w.-]+)*", subfolder):
        raise TnkitError(f"subfolder={subfolder!r:.60} must be the name of a folder, as in ja-type1")


def _metadata(provenance: Mapping[str, Any], licence: str) -> str:
    """What the Hub reads of a card, in YAML."""
    from huggingface_hub import ModelCardData

    model, language = _model_name(provenance), _selection(provenance).get("language")
    code = code_of(language) if isinstance(language, str) else None
    data = ModelCardData(
        base_model=model if model and _HUB_NAME.fullmatch(model) else None,
        language=code.split("-")[0] if code else None,
        license=licence or None,
        library_name="tnkit",
        tags=["tnkit", "transfer-neurons", "interpretability", "multilingual"],
    )
    return data.to_yaml()


def _model_name(provenance: Mapping[str, Any]) -> str:
    return str(storage.without_folders(_mapping(provenance.get("model")).get("name") or ""))


def _selection(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    return _mapping(provenance.get("selection"))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _title(pairs: tuple[tuple[int, int], ...], provenance: Mapping[str, Any]) -> str:
    selection, model = _selection(provenance), _model_name(provenance)
    kind = _KINDS.get(str(selection.get("kind")), "")
    language = f" of {name_of(str(selection['language']))}" if "language" in selection else ""
    where = (" in " if language else " of ") + model if model else ""
    control = ", a control" if "control" in provenance else ""
    return _cell(f"{len(pairs)} {kind} neurons{language}{where}{control}".replace("  ", " "))


def _described(
    pairs: tuple[tuple[int, int], ...], shape: tuple[int, int], scores: tuple[float, ...], provenance: Mapping[str, Any]
) -> dict[str, str]:
    """What a set is and where it comes from, a line for each fact that is known."""
    model, selection = _mapping(provenance.get("model")), _selection(provenance)
    layers = [layer for layer, _ in pairs]
    suffix = f"suffix {provenance['suffix']!r}" if "suffix" in provenance else ""
    facts = {
        "model": _joined(_model_name(provenance), model.get("revision"), model.get("dtype")),
        "weights (hash)": model.get("weights"),
        "neurons": f"{len(pairs)} in layers {min(layers)} to {max(layers)}" if layers else "none",
        "shape": f"{shape[0]} layers of up to {shape[1]} neurons",
        "scores": f"{max(scores):+.4g} to {min(scores):+.4g}" if scores else "none",
        "selection": _joined(*(f"{name}: {value}" for name, value in selection.items())),
        "control": _joined(*(f"{name}: {value}" for name, value in _mapping(provenance.get("control")).items())),
        "distance": provenance.get("distance"),
        "sentences": _corpora(provenance),
        "centroid of": _corpora({"sentences": provenance.get("centroid") or []}),
        "read at": _joined(f"{provenance['position']} token" if "position" in provenance else "", suffix),
        "made with": _joined(*(f"{name} {value}" for name, value in _mapping(provenance.get("versions")).items())),
    }
    return {name: str(value) for name, value in facts.items() if value}


def _corpora(provenance: Mapping[str, Any]) -> str:
    entries = [_mapping(entry) for entry in sentences_of(provenance)]
    texts = [
        _joined(
            entry.get("corpus"),
            entry.get("split"),
            entry.get("language"),
            f"{entry['n']} sentences" if "n" in entry else "",
            f"hash {entry['hash']}" if "hash" in entry else "",
        )
        for entry in entries
    ]
    return "; ".join(filter(None, texts))


def _joined(*facts: Any) -> str:
    return ", ".join(str(fact) for fact in facts if fact)


def _evidence_table(evidence: pd.DataFrame | None) -> str:
    if evidence is None:
        return (
            "No evidence was given with this set. A score does not show what neurons do: compare the set with its "
            "controls (`tn.evidence`, or `tn.compare` with `tn.controls`) before you build on it."
        )
    frame = evidence.reset_index()
    rows = [[f"{value:.4g}" if isinstance(value, float) else str(value) for value in row] for row in frame.to_numpy()]
    note = f"\n\nThe first {_ROWS} of {len(rows)} rows." if len(rows) > _ROWS else ""
    return _table([str(name) for name in frame.columns], rows[:_ROWS]) + note


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Text from elsewhere that stays in its cell of a table and writes no markup."""
    return re.sub(r"([|<`\[\]*_\\])", r"\\\1", visible(text).replace("\n", " ").replace("\t", " "))
