"""The study as one HTML page that needs no network, made of what its folder holds: `page_of`."""

import base64
import html
import math
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from tnkit.errors import listed
from tnkit.plots import language_name
from tnkit.replication.estimate import LARGE, NOTE
from tnkit.replication.findings import Section
from tnkit.replication.folder import Folder, Kept
from tnkit.replication.study import Study
from tnkit.replication.words import name as name_of

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_ROWS = 40  # of a table
_WIDE = 2000  # pixels: a wider figure takes the whole width, others share it


@cache
def sheet() -> str:
    """The style sheet.

    >>> "prefers-color-scheme: dark" in sheet()
    True
    """
    return (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def page_of(
    study: Study,
    sections: Iterable[Section],
    kept: Mapping[str, Kept],
    *,
    folder: Folder,
    failed: Mapping[str, str],
    estimate: pd.DataFrame,
) -> str:
    """The page.

    Args:
        study: of which.
        sections: in order.
        kept: by name, those that are done.
        folder: that holds their tables and figures.
        failed: why others did not run.
        estimate: from `estimated`.

    >>> import tempfile
    >>> from tnkit.testing import tiny_study
    >>> how = {"folder": Folder(Path(tempfile.mkdtemp())), "failed": {}, "estimate": pd.DataFrame()}
    >>> page_of(tiny_study(), [], {}, **how).startswith("<!doctype html>")
    True
    """
    sections = list(sections)
    bodies = [_section(section, kept.get(section.name), folder, failed.get(section.name)) for section in sections]
    links = "".join(f'<li><a href="#{section.name}">{_text(section.title)}</a></li>' for section in sections)
    title = f"Transfer neurons in {study.model.name}"
    languages = listed(language_name(language) for language in study.languages)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="color-scheme" content="light dark">
<title>{_text(title)}</title>
<style>
{sheet()}</style>
</head>
<body>
<main>
<header>
<h1>{_text(title)}</h1>
<p class="lead">The study of Tezuka &amp; Inoue (EMNLP 2025) run on {_text(study.model.name)}, in {_text(languages)}
with {_text(language_name(study.hub))} as the hub, with the controls that could break each claim.</p>
{_facts(study)}
</header>
{_summary(sections, kept, failed)}
<nav><h2>Sections</h2><ol>{links}</ol></nav>
{"".join(bodies)}
{_times(sections, kept, estimate)}
</main>
</body>
</html>
"""


def _facts(study: Study) -> str:
    """What the study was made with."""
    model, train = study.model.provenance, study.corpus["train"][study.hub]
    rows = {
        "model": f"{model['name']}, {model['layers']} layers of {model['neurons']:,} neurons, {model['dtype']}",
        "weights (hash)": model["weights"],
        "sentences": f"{study.corpus.name}: {len(train)} for training and {len(study.corpus['test'][study.hub])} for "
        "tests in each language, aligned",
        "neurons of a set": f"{study.top:,} ({study.top / sum(study.model.widths):.2%} of all)",
    }
    listed_rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in rows.items())
    return f"<dl>{listed_rows}</dl>"


def _summary(sections: Iterable[Section], kept: Mapping[str, Kept], failed: Mapping[str, str]) -> str:
    """The first sentence of every section."""
    items = []
    for section in sections:
        done = kept.get(section.name)
        said = done.said[0] if done else failed.get(section.name)
        label = "" if done else "not run: "
        if said:
            items.append(f'<li><a href="#{section.name}">{_text(section.title)}</a>: {label}{_text(said)}</li>')
    return f"<section><h2>In short</h2><ul>{''.join(items)}</ul></section>"


def _section(section: Section, kept: Kept | None, folder: Folder, reason: str | None) -> str:
    head = (
        f'<section id="{section.name}"><h2>{_text(section.title)}</h2><p class="question">{_text(section.question)}</p>'
    )
    if kept is None:
        why = f"This section did not run: {reason}" if reason else "This section has not run yet."
        return f'{head}<p class="missing">{_text(why)}</p></section>'
    said = "".join(f"<li>{_text(sentence)}</li>" for sentence in kept.said)
    figures = "".join(_figure(folder, section, name, path) for name, path in kept.figures.items())
    tables = "".join(_table(folder.table(kept, name), name, kept.tables[name]) for name in kept.shown)
    others = [path for name, path in kept.tables.items() if name not in kept.shown]
    more = f'<p class="note">More tables in the folder: {_text(", ".join(others))}</p>' if others else ""
    return f"""{head}
<h3>What was measured</h3><p>{_prose(kept.measured)}</p>
<div class="figures">{figures}</div>
{tables}{more}
<h3>What came out</h3><ul>{said}</ul>
<p class="published"><b>In the paper.</b> {_text(kept.published)}</p>
</section>
"""


def _figure(folder: Folder, section: Section, name: str, path: str) -> str:
    data = (folder.path / f"{path}.png").read_bytes()
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    kind = "wide" if width > _WIDE else "one"
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    caption = " ".join(language_name(word) for word in name.split(" "))
    return (
        f'<figure class="{kind}"><img src="{source}" width="{width}" height="{height}" '
        f'alt="{_text(f"{section.title}: {caption}")}"><figcaption>{_text(caption)}</figcaption></figure>'
    )


def _table(frame: pd.DataFrame, name: str, path: str) -> str:
    """A table, with its index as heads of the rows."""
    columns, rows = shown_rows(frame.iloc[:_ROWS])
    levels = frame.index.nlevels
    head = "".join(f'<th scope="col" class="{"key" if place < levels else ""}">{_text(column)}</th>'
                   for place, column in enumerate(columns))  # fmt: skip
    lines, before = [], [""]
    for row in rows:
        begins = row[: levels - 1] != before  # a language, or a type, begins
        before = row[: levels - 1]
        heads = "".join(f'<th scope="row">{_text(cell)}</th>' for cell in row[:levels])
        cells = "".join(f"<td>{_text(cell)}</td>" for cell in row[levels:])
        lines.append(f'<tr class="{"group" if begins else ""}">{heads}{cells}</tr>')
    rest = f", the first {_ROWS} of {len(frame)} rows" if len(frame) > _ROWS else ""
    return (
        f'<div class="table"><table><caption>{_text(name)} <span>{_text(path)}{rest}</span></caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def shown_rows(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a table as text, its index first.

    >>> shown_rows(pd.DataFrame({"x": [0.5]}, pd.Index(["ja"], name="language")))
    (['language', 'x'], [['Japanese', '0.500']])
    """
    head = [*(str(level or "") for level in frame.index.names), *map(str, frame.columns)]
    keys = [key if isinstance(key, tuple) else (key,) for key in frame.index]
    values = frame.to_numpy(dtype=object)
    rows = [[*map(_label, key), *map(_number, row)] for key, row in zip(keys, values, strict=True)]
    return head, rows


def _label(value: Any) -> str:
    return name_of(value) if isinstance(value, str) else _number(value)


def _number(value: Any) -> str:
    """A cell, with three digits where it is no whole number.

    >>> _number(0.12345), _number(3.0), _number(float("nan")), _number(True), _number(5474.2)
    ('0.123', '3', '—', 'yes', '5,474')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) or not hasattr(value, "__float__"):
        return str(value)
    number = float(value)
    if math.isnan(number):
        return "—"
    if number.is_integer() or abs(number) >= 1000:
        return f"{number:,.0f}"
    return f"{number:.3g}" if abs(number) < 1e-3 else f"{number:.3f}" if abs(number) < 10 else f"{number:.1f}"


def _times(sections: Iterable[Section], kept: Mapping[str, Kept], estimate: pd.DataFrame) -> str:
    """How long each section took, and what was estimated."""
    rows = {section.name: {"seconds": kept[section.name].seconds} for section in sections if section.name in kept}
    if not rows:
        return ""
    frame = pd.DataFrame(rows).T.round(1).rename_axis("section")
    if LARGE in estimate:
        frame = frame.join(estimate[[LARGE]].round(1))
    frame = pd.concat([frame, frame.sum().to_frame("all").T]).rename_axis("section")
    return (
        f'<section><h2>Time</h2>{_table(frame, "seconds", "not in a file")}<p class="note">{_text(NOTE)}</p></section>'
    )


def _prose(text: str) -> str:
    """Text with names between backticks as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", _text(text))


def _text(text: object) -> str:
    """Text that writes no markup and no control characters."""
    return html.escape(re.sub("[\0-\x08\x0b-\x1f\x7f]", " ", str(text)))
