"""Translation memories (TMX), read by a parser that resolves no entities and loads nothing."""

from typing import TYPE_CHECKING, Any
from xml.parsers import expat

from tnkit.errors import TnkitError
from tnkit.text import records
from tnkit.text.files import File

if TYPE_CHECKING:
    import pandas as pd

_CODES = ("bpt", "ept", "ph", "it", "ut")  # elements whose text is formatting of the tool that wrote the file


def table(file: File) -> "pd.DataFrame":
    """The segments of a TMX file, a row for each unit and a column for each language.

    A language that a unit has twice counts with its first segment, and with the name that the file first gives it.

    Raises:
        TnkitError: for XML that is damaged, declares entities, or has no units.

    >>> segments = "<tuv lang='en'><seg>Hi!</seg></tuv><tuv lang='it'><seg>Ciao!</seg></tuv>"
    >>> data = f"<tmx><body><tu>{segments}</tu></body></tmx>".encode()
    >>> table(File("pairs.tmx", ".tmx", data)).to_dict("records")
    [{'en': 'Hi!', 'it': 'Ciao!'}]
    """
    memory = _Memory(file.path)
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = memory.start, memory.end
    parser.CharacterDataHandler = memory.text
    parser.StartDoctypeDeclHandler, parser.EntityDeclHandler = memory.doctype, memory.entity
    try:
        parser.Parse(file.data, True)
    except expat.ExpatError as error:
        raise TnkitError(
            f"{file.path}, line {error.lineno}: not a readable TMX file ({error}); is it complete?"
        ) from error
    except (LookupError, ValueError) as error:
        if isinstance(error, TnkitError):
            raise
        raise TnkitError(f"{file.path} is not a readable TMX file ({error}); save it as UTF-8") from error
    if not memory.units:
        raise TnkitError(f"{file.path} has no translation units (<tu>); is its ending right?")
    return records.of_rows(file.path, memory.units)


class _Memory:
    """Collects units while a file is parsed."""

    def __init__(self, path: str):
        self.path, self.units, self.names = path, list[dict[str, str]](), dict[str, str]()
        self.language, self.depth, self.pieces = "", 0, list[str]()  # depth: of codes within a segment
        self.inside = False

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "tu":
            self.units.append({})
        elif tag == "tuv":
            self.language = self._name(attributes.get("xml:lang") or attributes.get("lang") or "")
        elif tag == "seg":
            self.inside, self.pieces = True, []
        elif tag in _CODES:
            self.depth += 1

    def end(self, tag: str) -> None:
        if tag == "seg":
            self.inside = False
            if self.units and self.language:
                self.units[-1].setdefault(self.language, "".join(self.pieces))
        elif tag in _CODES:
            self.depth -= 1

    def text(self, text: str) -> None:
        if self.inside and not self.depth:
            self.pieces.append(text)

    def _name(self, language: str) -> str:
        """One name for EN and en."""
        if language not in self.names:
            lower = {name.lower(): name for name in self.names}
            self.names[language] = self.names.get(lower.get(language.lower(), ""), language)
        return self.names[language]

    def doctype(self, _name: str, _system: Any, _public: Any, internal: Any) -> None:
        if internal:
            raise TnkitError(f"{self.path} declares its own document type; take its <!DOCTYPE …[…]> out")

    def entity(self, *_: Any) -> None:
        raise TnkitError(f"{self.path} declares entities, which could grow without end; take its <!ENTITY …> out")
