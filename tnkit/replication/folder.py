"""What is kept of each section, so that a study resumes: `Folder`, `Kept`."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import tnkit as tn
from tnkit import storage
from tnkit.errors import TnkitError
from tnkit.replication.findings import Findings

FORMAT = 1  # raise it where a section gives other tables from the same parameters
_KIND, _NO_KEY = "section of a study", "not kept"
# of floats; pandas 3 reads them exactly without being told
_EXACT: dict[str, Any] = {"float_precision": "round_trip"} if pd.__version__ < "3" else {}
_LOG = logging.getLogger("tnkit")


def key_of(parameters: Mapping[str, Any], fingerprint: str | None) -> str:
    """What decides a section's numbers, as 24 hex digits; "" where the model cannot be told from another.

    >>> key_of({"top": 9}, "a") == key_of({"top": 9}, "a") != key_of({"top": 10}, "a"), key_of({}, None)
    (True, '')
    """
    if fingerprint is None:
        return ""
    content = [FORMAT, fingerprint, storage.versions(), dict(parameters)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Kept:
    """A section as it lies in the folder.

    Attributes:
        measured, said, published: as in `Findings`.
        seconds: it took.
        tables, figures: name → path below the folder, without the ending of figures.
        levels: of each table's index.
        shown: tables that the page shows.
    """

    measured: str
    said: tuple[str, ...]
    published: str
    seconds: float
    tables: dict[str, str]
    figures: dict[str, str]
    levels: dict[str, int]
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Folder:
    """The folder of a study: `tables/`, `figures/`, and in `sections/` what each section said and was made with.

    >>> import tempfile
    >>> folder = Folder(Path(tempfile.mkdtemp()))
    >>> found = Findings("one number", ("It is 1.",), {"a": pd.DataFrame({"x": [1.0]})}, {}, ("a",))
    >>> kept = folder.write("toy", found, key="k", seconds=2.0)
    >>> folder.read("toy", "k") == kept, folder.read("toy", "another") is None, folder.table(kept, "a")["x"].tolist()
    (True, True, [1.0])
    """

    path: Path

    def write(self, section: str, found: Findings, *, key: str, seconds: float) -> Kept:
        """Write a section's files, all of them or none.

        Raises:
            TnkitError: where they cannot be written.
        """
        tables = {name: f"tables/{_file(section, name)}.csv" for name in found.tables}
        figures = {name: f"figures/{_file(section, name)}" for name in found.figures}
        levels = {name: frame.index.nlevels for name, frame in found.tables.items()}
        kept = Kept(found.measured, found.said, found.published, seconds, tables, figures, levels, found.shown)
        with storage.together() as waiting:
            for name, frame in found.tables.items():
                storage.write_text(self.path / tables[name], frame.to_csv())
            for name, figure in found.figures.items():
                for ending in ("svg", "png"):
                    tn.plots.save_figure(figure, self.path / f"{figures[name]}.{ending}", close=ending == "png")
            hashes = {path.relative_to(self.path).as_posix(): _hash(file) for path, file in waiting.items()}
            content = {"key": key, "files": hashes, "kept": vars(kept)}
            storage.save_json(self._state(section), _KIND, content)
        return kept

    def read(self, section: str, key: str) -> Kept | None:
        """What is kept of a section, where it was made with the same key and its files are as they were written."""
        path = self._state(section)
        if not key or not path.exists():
            return None
        try:
            content = storage.load_json(path, _KIND)
            if content["key"] != key:
                return None
            changed = [name for name, hash_ in content["files"].items() if _hash(self.path / name) != hash_]
            if changed:
                raise TnkitError(f"{self.path / changed[0]} was changed after it was written")
        except (TnkitError, OSError) as error:
            _LOG.warning("%s; the section %s is computed again", error, section)
            return None
        kept = content["kept"]
        return Kept(**kept | {name: tuple(kept[name]) for name in ("said", "shown")})

    def table(self, kept: Kept, name: str) -> pd.DataFrame:
        """A table as it was written."""
        path, index = self.path / kept.tables[name], [*range(kept.levels[name])]
        return pd.read_csv(path, index_col=index, keep_default_na=False, na_values=[""], **_EXACT)

    def _state(self, section: str) -> Path:
        return self.path / "sections" / f"{section}.json"


def _file(section: str, name: str) -> str:
    return storage.file_name(f"{section}-{name.replace(' ', '-').replace(',', '')}")


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
