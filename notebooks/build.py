"""Run the notebooks' percent sources in fresh kernels and write the .ipynb beside each, small and the same every time.

    python -m notebooks.build                  # all of them
    python -m notebooks.build 01_detection     # by name

A cell that raises stops the build, and so does a widget whose callback raised, which runners otherwise pass over.
"""

import argparse
import base64
import io
import os
import re
import sys
import time
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
TIMEOUT = 900  # seconds a cell
FIRST = 120  # seconds for the first cell, which imports; a kernel that has lost its first message never answers
LARGEST = 1_000_000  # bytes a notebook
VIEW, STATE = "application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json"
_ERROR_CLASS = re.compile(r"""class=["'][^"']*\btn-error\b""")
_ABSOLUTE = re.compile(r"(?<![\w.:/])/(home|root|tmp|usr|opt|var|mnt|Users)/|[A-Z]:\\\\")


class BuildError(Exception):
    """Why a notebook was not built."""


def sources(names: Iterable[str] = ()) -> list[Path]:
    """The percent sources, in order; of some by name.

    Raises:
        BuildError: for a name that is none.
    """
    known = {path.stem: path for path in sorted(FOLDER.glob("[0-9][0-9]_*.py"))}
    unknown = [name for name in names if Path(name).stem not in known]
    if unknown:
        raise BuildError(f"there is no notebook {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[Path(name).stem] for name in names] or list(known.values())


def read(source: Path) -> NotebookNode:
    """A source as a notebook without outputs."""
    return jupytext.reads(source.read_text(), fmt="py:percent")


def address() -> str:
    """Where pip finds the kit: what pyproject.toml names as the repository."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    return f"git+{urls['Repository']}"


def addressed(text: str) -> str:
    """A source in which every address of the kit is the one in pyproject.toml."""
    return re.sub(r"git\+https?://[^\s\"']+", address(), text)


def tagged(notebook: NotebookNode) -> int:
    """The place of the cell of parameters.

    Raises:
        BuildError: where there is not just one.
    """
    found = [place for place, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    if len(found) != 1:
        raise BuildError(f"expected one cell tagged parameters, found {len(found)}")
    return found[0]


def execute(
    notebook: NotebookNode, folder: Path, parameters: Mapping[str, Any] | None = None, *, timeout: int = TIMEOUT
) -> NotebookNode:
    """Run a notebook in a folder, as papermill would, and refuse it where a cell or a widget's callback raised.

    A kernel that does not answer the first cell is replaced once.

    Args:
        timeout: seconds a cell.

    Raises:
        BuildError: with the cell's error, or the widget's.
    """
    if parameters:
        lines = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
        notebook.cells.insert(tagged(notebook) + 1, nbformat.v4.new_code_cell(lines))
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    try:
        try:
            _run(notebook, folder, environment, timeout)
        except CellTimeoutError:
            if any(cell.get("execution_count") for cell in notebook.cells):
                raise
            _run(notebook, folder, environment, timeout)
    except CellExecutionError as error:
        raise BuildError(f"a cell raised {error.ename}: {error.evalue}\n{error}") from error
    except (CellTimeoutError, DeadKernelError) as error:
        raise BuildError(str(error)) from error
    raised = callback_errors(notebook)
    if raised:
        raise BuildError("a widget's callback raised: " + "; ".join(raised))
    return notebook


def _run(notebook: NotebookNode, folder: Path, environment: Mapping[str, str], timeout: int) -> None:
    """Run all cells in a new kernel."""
    first = next((cell for cell in notebook.cells if cell.cell_type == "code"), None)
    client = NotebookClient(
        notebook,
        timeout_func=lambda cell: min(timeout, FIRST) if cell is first else timeout,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment)


def callback_errors(notebook: NotebookNode) -> list[str]:
    """Errors that stand in a run notebook's widgets: in an Output, or in HTML of the class tn-error."""
    states = notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    found = []
    for widget in states.values():
        state = widget.get("state", {})
        for output in state.get("outputs", ()):
            if output.get("output_type") == "error":
                found.append(f"{output['ename']}: {output['evalue']}")
        value = state.get("value")
        if isinstance(value, str) and _ERROR_CLASS.search(value):
            found.append(" ".join(re.sub("<[^>]*>", " ", value).split()))
    return found


def tidy(notebook: NotebookNode, name: str) -> NotebookNode:
    """A run notebook as it is committed: pictures small, widgets as pictures, nothing that changes from run to run.

    Raises:
        BuildError: for an output that names a place on this machine.
    """
    about = {key: notebook.metadata[key] for key in ("jupytext", "kernelspec") if key in notebook.metadata}
    notebook.metadata = nbformat.from_dict(about | {"language_info": {"name": "python"}})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for place, cell in enumerate(notebook.cells):
        cell["id"] = f"{name}-{place}"
        cell.metadata = nbformat.from_dict({key: value for key, value in cell.metadata.items() if key == "tags"})
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_tidied, cell.outputs) if output is not None]
            for output in cell.outputs:
                check_places(output, cell)
    return notebook


def _tidied(output: NotebookNode) -> NotebookNode | None:
    """An output without a live widget, its picture in few colours; None for a bar that showed progress."""
    if output.output_type == "stream" and output.name == "stderr" and "\r" in output.text:
        return None
    data = output.get("data", {})
    if "tn-still-mark" in data.get("text/html", ""):  # how JupyterLab shows a widget or its picture
        return None
    if VIEW in data:
        if "image/png" not in data:
            return None
        del data[VIEW]
    if "image/png" in data:
        data["image/png"] = small(data["image/png"])
    if "metadata" in output:
        output.metadata = nbformat.from_dict({})
    output.pop("transient", None)
    return output


def small(png: str) -> str:
    """A PNG in base64, in at most 128 colours on white.

    >>> file = io.BytesIO()
    >>> Image.new("RGBA", (300, 200), (255, 0, 0, 128)).save(file, "PNG")
    >>> Image.open(io.BytesIO(base64.b64decode(small(base64.b64encode(file.getvalue()).decode())))).mode
    'P'
    """
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    file = io.BytesIO()
    Image.alpha_composite(white, image).convert("RGB").quantize(128).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def check_places(output: NotebookNode, cell: NotebookNode) -> None:
    """Refuse an output that names a place on this machine."""
    text = str({key: value for key, value in output.get("data", output).items() if key != "image/png"})
    here = [text.find(place) for place in (str(ROOT), str(Path.home()), sys.prefix) if len(place) > 5]
    found = [place for place in here if place >= 0] or [match.start() for match in _ABSOLUTE.finditer(text)]
    if found:
        excerpt = text[max(0, min(found) - 20) : min(found) + 200]
        raise BuildError(
            f"the output of the cell that begins {cell.source[:40]!r} names a place of this machine: …{excerpt}…"
        )


def build(source: Path) -> Path:
    """Run one source and write its notebook beside it.

    Raises:
        BuildError: for a cell or a callback that raised, an output with a place of this machine, a file too large.
    """
    text = source.read_text()
    if addressed(text) != text:
        source.write_text(addressed(text))
    notebook = read(source)
    tagged(notebook)
    written = nbformat.writes(tidy(execute(notebook, source.parent), source.stem)) + "\n"
    if len(written.encode()) > LARGEST:
        raise BuildError(f"the notebook has {len(written.encode()):,} bytes, more than {LARGEST:,}")
    target = source.with_suffix(".ipynb")
    target.write_text(written)
    return target


def main(arguments: list[str] | None = None) -> int:
    """Build the named notebooks, or all; 1 where one could not be built."""
    parser = argparse.ArgumentParser(prog="python -m notebooks.build", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="which notebooks, such as 01_detection (default: all)")
    failed = False
    try:
        chosen = sources(parser.parse_args(arguments).names)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    for source in chosen:
        started = time.perf_counter()
        try:
            target = build(source)
        except BuildError as error:
            print(f"{source.stem}: {error}", file=sys.stderr)
            failed = True
            continue
        size = target.stat().st_size / 1000
        print(f"{source.stem}: {time.perf_counter() - started:.0f} s, {size:.0f} kB", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
