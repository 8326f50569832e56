"""The explorer as one HTML file that needs neither a kernel nor the network: `write_page`."""

import html
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tnkit import storage
from tnkit.detection.detect import KINDS
from tnkit.errors import listed
from tnkit.explorers.chunks import Chunks
from tnkit.explorers.study import CONTROLS, ZERO
from tnkit.plots.looks import language_name

_FRONT = Path(__file__).parent / "front"
_MODULES = (
    "core",
    "ribbon",
    "map",
    "prompt",
    "neurons",
    "evidence",
    "form",
    "detection",
    "app",
)  # in this order
_NAMED = 10  # at most so many languages are named above the page
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


@cache
def script() -> str:
    """The front end as one script, without imports."""
    return "\n".join((_FRONT / f"{name}.js").read_text(encoding="utf-8") for name in _MODULES)


@cache
def sheet() -> str:
    """Its style sheet."""
    return (_FRONT / "app.css").read_text(encoding="utf-8")


def keys_of(chunks: Chunks, kinds: tuple[str, ...] = KINDS) -> list[str]:
    """The chunks that a page holds: every language and type, with the usual number of neurons off, and one control.

    >>> from tnkit.explorers.study import Study
    >>> from tnkit.testing import tiny_corpus, tiny_model
    >>> keys_of(Chunks(Study(tiny_model(), tiny_corpus())), ("type1",))[:3]
    ['plane', 'ribbon', 'sets']
    """
    top, others = chunks.study.top, chunks.study.others
    pairs = [f"{language}|{kind}|{top}" for kind in kinds for language in others]
    off = [f"off|{pair}|{ZERO}|{CONTROLS[0]}" for pair in pairs]
    return [
        "plane",
        "ribbon",
        "sets",
        *off,
        *(f"neurons|{pair}" for pair in pairs),
        *(f"evidence|{pair}|{ZERO}|last" for pair in pairs),
    ]


def computing_page(chunks: Chunks) -> Iterator[tuple[int, int, str]]:
    """Compute every chunk of a page; yields how many are done, of how many, and a description before each step."""
    keys = keys_of(chunks)
    for done, key in enumerate(keys):
        for step in chunks.computing(key):
            yield done, len(keys), step


def page_html(chunks: Chunks, *, state: Mapping[str, Any] | None = None) -> str:
    """The page of chunks that are computed, as `write_page` writes it."""
    study = chunks.study
    about = chunks.about() | {"values": [ZERO], "controls": [CONTROLS[0]], "sizes": [study.top]}
    held = {key: chunks.now(key) for key in keys_of(chunks)}
    return page_of(about, held, state=state)


def page_of(about: Mapping[str, Any], held: Mapping[str, Any], *, state: Mapping[str, Any] | None = None) -> str:
    """The page of what `Chunks.about` says and of chunks by key."""
    content = json.dumps(
        {"about": about, "chunks": held, "state": state or {}}, ensure_ascii=False, separators=(",", ":")
    )
    content = content.replace("<", "\\u003c")  # nothing in it ends the element or begins a comment
    others = [language["name"] for language in about["languages"] if language["code"] != about["hub"]]
    names = listed(others) if len(others) <= _NAMED else f"{len(others)} languages"
    hub, model = html.escape(language_name(about["hub"])), html.escape(about["model"])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="generator" content="tnkit {html.escape(about["tnkit"])}">
<title>Transfer neurons of {model}</title>
<style>
{sheet()}
</style>
</head>
<body class="tn-page">
<main>
<div class="tn-about">
<h1>Where do the languages of {model} meet?</h1>
<p>Transfer neurons carry a sentence from the space of its language into a space that languages share (Type-1, early
layers), and back again (Type-2, late layers). Here are {html.escape(names)} beside {hub}: move through the layers,
switch the neurons off, and compare with controls. All of it was computed once; this page needs no network.</p>
</div>
<div id="tn-root"></div>
</main>
<script type="application/json" id="tn-payload">{content}</script>
<script>
"use strict";
(() => {{
{script()}
const payload = JSON.parse(document.getElementById("tn-payload").textContent);
globalThis.tnkit = open_page(document.getElementById("tn-root"), payload);
}})();
</script>
</body>
</html>
"""


def write_page(chunks: Chunks, path: str | Path, *, state: Mapping[str, Any] | None = None) -> Path:
    """Write the page: map, ribbon, neurons, detection, and the evidence of the usual sets.

    Args:
        chunks: of the study; what is missing is computed.
        path: of the file.
        state: what is shown first.

    Returns:
        The path.

    Raises:
        TnkitError: where the file cannot be written.
    """
    return storage.write_text(path, page_html(chunks, state=state))
