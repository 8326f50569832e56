"""The study of the paper on the packaged model: the tables of docs/paper.md, and the page and tables in docs/paper/.

python -m docs.paper                              # a quarter of an hour on two cores; build/paper keeps what is done
python -m docs.paper FOLDER sentences=64 draws=2  # in another folder, with other sizes
"""

import base64
import io
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
from PIL import Image

import tnkit as tn
from tnkit.replication.page import shown_rows
from tnkit.replication.paper import SECTIONS

HERE = Path(__file__).parent
PAGE, KEPT, BUILD = HERE / "paper.md", HERE / "paper", HERE.parent / "build" / "paper"
MARK = "<!-- results -->"
TABLES = {  # of docs/paper.md: (section, table) → its columns
    ("spaces", "summary"): ["layer", "mutual k-NN", "mutual k-NN low", "mutual k-NN high", "retrieval", "distance"],
    ("similarity", "retrieval"): ["mean", "low", "high", "effect", "effect low", "effect high", "layer"],
    ("specificity", "shares"): None,
    ("perplexity", "controls"): ["mean", "low", "high", "effect", "effect low", "effect high"],
    ("questions", "F1"): ["mean", "low", "high", "effect", "effect low", "effect high"],
}
WIDEST = 1400  # pixels of a picture on the page that is kept here
LARGEST = 200_000  # bytes of a table that is kept here


def markdown(frame: pd.DataFrame) -> str:
    """A Markdown table, with its index as columns."""
    head, rows = shown_rows(frame)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def results(done: tn.Paper) -> str:
    """What every section said, and the main tables."""
    parts = []
    for name, section in SECTIONS.items():
        parts.append(f"## {section.title}\n\n*{section.question}*")
        if name not in done.findings:
            parts.append(f"Not run: {done.failed.get(name, 'it was left out here.')}")
            continue
        kept = done.findings[name]
        parts += [kept.measured, "\n".join(f"- {sentence}" for sentence in kept.said)]
        for key, columns in TABLES.items():
            if key[0] == name:
                frame = done.table(*key)
                parts.append(markdown(frame if columns is None else frame[columns]))
        parts.append(f"**In the paper.** {kept.published}")
    return "\n\n".join(parts)


def compact(page: str) -> str:
    """The page with pictures in few colours, and no wider than a screen shows them."""

    def smaller(match: re.Match[str]) -> str:
        picture = Image.open(io.BytesIO(base64.b64decode(match[1]))).convert("RGB")
        picture.thumbnail((WIDEST, WIDEST))
        buffer = io.BytesIO()
        picture.quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"

    return re.sub(r"data:image/png;base64,([A-Za-z0-9+/=]+)", smaller, page)


def keep(done: tn.Paper) -> None:
    """Write the page and the tables of a study here."""
    shutil.rmtree(KEPT, ignore_errors=True)
    (KEPT / "tables").mkdir(parents=True)
    tn.storage.write_text(KEPT / "index.html", compact(done.path.read_text()))
    for path in sorted((done.path.parent / "tables").glob("*.csv")):
        if path.stat().st_size <= LARGEST:
            shutil.copy(path, KEPT / "tables")
    head = PAGE.read_text().partition(MARK)[0]
    tn.storage.write_text(PAGE, f"{head}{MARK}\n\n{results(done)}\n")


if __name__ == "__main__":
    given = dict(argument.split("=") for argument in sys.argv[2:])
    sizes = {name: int(value) for name, value in given.items()}
    keep(tn.paper(tn.load_model("gemma-3-270m"), out=Path(sys.argv[1]) if len(sys.argv) > 1 else BUILD, sizes=sizes))
