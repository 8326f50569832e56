"""JupyterLab on loopback with settings of its own, and a browser that refuses every request to anywhere else."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from playwright.sync_api import Locator, Page, expect, sync_playwright

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
_FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
VIEWS = ("Map", "Neurons", "Evidence", "Detection")
SETUP = """
import tnkit as tn
from tnkit.testing import tiny_corpus, tiny_model
model, corpus = tiny_model(), tiny_corpus()
"""
_PATIENCE = 90_000  # milliseconds; machines of continuous integration are slow
_ERRORS = (
    "[data-mime-type='application/vnd.jupyter.error'], [data-mime-type='application/vnd.jupyter.stderr'], .tn-error"
)
expect.set_options(timeout=_PATIENCE)


@dataclass
class Browser:
    """A page, what it asked of hosts other than loopback, and what its console called an error."""

    page: Page
    foreign: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)


@contextmanager
def browser(width: int = 1280, height: int = 1350) -> Iterator[Browser]:
    """Headless Chromium with one page."""
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        context = chromium.new_context(viewport={"width": width, "height": height}, device_scale_factor=1.5)
        found = Browser(context.new_page())
        found.page.set_default_timeout(_PATIENCE)

        def decide(route):
            if route.request.url.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:")):
                route.continue_()
            else:
                found.foreign.append(route.request.url)
                route.abort()

        context.route("**/*", decide)
        found.page.on("console", lambda said: said.type == "error" and found.console.append(said.text))
        yield found
        chromium.close()


@dataclass
class Lab:
    """A running JupyterLab."""

    root: Path
    url: str
    token: str

    def write(self, name: str, cells: list[str]) -> None:
        """Write a notebook."""
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, self.root / f"{name}.ipynb")

    def open(self, page: Page, name: str, cells: list[str]) -> Locator:
        """Write a notebook, open it in JupyterLab, run it, and return it once its cells are done."""
        self.write(name, cells)
        return self.run(page, name)

    def run(self, page: Page, name: str) -> Locator:
        """Open a notebook that is there, run it, and return it once its cells are done."""
        page.goto(f"{self.url}/lab/workspaces/{Path(name).name}/tree/{name}.ipynb?token={self.token}&reset")
        page.locator(".jp-Notebook").wait_for()
        page.get_by_text("| Idle").first.wait_for()
        page.evaluate("async () => { await window.jupyterapp.commands.execute('notebook:run-all-cells') }")
        book = page.locator(".jp-Notebook")
        expect(book.get_by_text("[*]:")).to_have_count(0)
        return book

    def notebook7(self, page: Page, name: str, cells: list[str]) -> Locator:
        """The same in Notebook 7."""
        self.write(name, cells)
        page.goto(f"{self.url}/notebooks/{name}.ipynb?token={self.token}")
        book = page.locator(".jp-Notebook")
        book.wait_for()
        page.evaluate(
            """async () => {
                const { sessionContext } = window.jupyterapp.shell.currentWidget;
                await sessionContext.ready; // before, cells are kept back, and run twice where they are asked for twice
                await sessionContext.session.kernel.info;
                await window.jupyterapp.commands.execute('notebook:run-all-cells');
            }"""
        )
        expect(book.get_by_text(f"[{len(cells)}]:")).to_have_count(1)
        return book

    def stop_kernels(self) -> None:
        """End every kernel, so that none of them computes beside the next."""
        headers = {"Authorization": f"token {self.token}"}
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/api/kernels", headers=headers)) as reply:
            kernels = json.load(reply)
        for kernel in kernels:
            address = f"{self.url}/api/kernels/{kernel['id']}"
            urllib.request.urlopen(urllib.request.Request(address, headers=headers, method="DELETE")).close()

    def voila(self, page: Page, name: str, cells: list[str]) -> Locator:
        """The same in Voila, which runs all cells before it shows the page."""
        self.write(name, cells)
        page.goto(f"{self.url}/voila/render/{name}.ipynb?token={self.token}")
        return page.locator("body")


@contextmanager
def lab(folder: Path) -> Iterator[Lab]:
    """JupyterLab with its root, settings, cache and kernels' home in a folder."""
    root, token = folder / "root", secrets.token_hex(16)
    root.mkdir()
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "RUNTIME", "DATA")}
    own |= {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
    }
    own |= {"IPYTHONDIR": str(folder / "ipython"), "JUPYTER_TOKEN": token, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root"),
        *("--ServerApp.port_retries=0", f"--ServerApp.root_dir={root}", "--expose-app-in-browser"),
        "--JupyterNotebookApp.expose_app_in_browser=True",
        *("--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.news_url=None"),
    ]
    url = f"http://127.0.0.1:{port}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env={**os.environ, **own}, stdout=log, stderr=log, cwd=root)
        try:
            _wait(process, f"{url}/api", folder / "log")
            yield Lab(root, url, token)
        finally:
            process.terminate()
            process.wait(30)


def _wait(process: subprocess.Popen, url: str, log: Path) -> None:
    for _ in range(360):
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None:
                break
            time.sleep(0.25)
    raise RuntimeError(f"JupyterLab did not come up:\n{log.read_text()[-3000:]}")


# Elements of the explorer beyond its edge, or wider than what shows them; tables and charts scroll.
_CUT = """root => [...root.querySelectorAll("*")].filter((node) => {
  if (!node.getClientRects().length || node.closest(".tn-spoken, svg")) return false;
  if (node.parentElement.closest(".tn-scroll, .tn-table")) return false;
  const [box, app] = [node.getBoundingClientRect(), root.getBoundingClientRect()];
  const clips = ["hidden", "clip"].includes(getComputedStyle(node).overflowX);
  return (clips && node.scrollWidth > node.clientWidth + 1) || box.left < app.left || box.right > app.right;
}).map((node) => `${node.tagName} ${node.className}: ${node.textContent.slice(0, 40)}`)"""


def faults(page: Page, within: str | None = ".tn-app") -> list[str]:
    """What axe-core finds wrong within an element (None: on the whole page), and what of the explorer is cut."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, context=within).response["violations"]
    said = [f"{one['id']}: {node['target']} {node['failureSummary']}" for one in found for node in one["nodes"]]
    return said + [f"cut: {node}" for node in page.locator(".tn-app").evaluate(_CUT)]


class Seen:
    """One explorer in a notebook or on a page, used as a person would."""

    def __init__(self, book: Locator | Page, page: Page) -> None:
        self.page, self.book = page, book
        self.root = book.locator(".tn-app")
        expect(self.root).to_have_count(1)
        self.canvas = self.root.locator("canvas")

    def check(self, patience: int = _PATIENCE) -> None:
        """Nothing is computed any more, and no error is shown, anywhere in the notebook."""
        expect(self.root).to_have_attribute("data-state", "idle", timeout=patience)
        expect(self.book.locator(_ERRORS)).to_have_count(0, timeout=patience)
        expect(self.root.locator(".tn-stale")).to_have_count(0, timeout=patience)

    def view(self, name: str) -> None:
        self.root.get_by_role("tab", name=name).click()
        expect(self.root.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")

    def slider(self, label: str) -> Locator:
        return self.root.get_by_role("slider", name=label)

    def box(self, label: str) -> Locator:
        return self.root.get_by_role("combobox", name=label, exact=True)

    def button(self, label: str) -> Locator:
        return self.root.get_by_role("button", name=label, exact=True)

    def status(self) -> Locator:
        return self.root.locator(".tn-state")

    def saved(self, label: str) -> bytes:
        """What a button of the header downloads."""
        with self.page.expect_download() as download:
            self.button(label).click()
        return download.value.path().read_bytes()


def opened(lab: Lab, page: Page, name: str, *more: str, **state: object) -> Seen:
    """An explorer of the tiny model in JupyterLab, just opened, with more cells below."""
    options = ", ".join(["model", "corpus", "seeds=2", *(f"{key}={value!r}" for key, value in state.items())])
    call = f"explorer = tn.explore_{name}({options})\nexplorer"
    seen = Seen(lab.open(page, f"{name}-{len(list(lab.root.glob('*.ipynb')))}", [SETUP, call, *more]), page)
    seen.check()
    return seen
