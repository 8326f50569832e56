"""Code in the task files of the lm-evaluation-harness: it runs only if the caller trusts it.

A YAML file can name Python functions (`!function`), metrics that are downloaded and run, and templates that access
Python objects. Files are checked without running anything; templates run in Jinja's sandbox.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tnkit.errors import TnkitError, first_line
from tnkit.models.sessions import replaced

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

_STANDARD = "tag:yaml.org,2002:"
_LARGEST = 10 << 20  # the most bytes of a task file


def refuse_code(tasks: Iterable[str | Mapping[str, Any]], folder: Path | None) -> None:
    """Refuse task files that run code: those in a folder, those named by path, and the files that they include.

    Raises:
        TnkitError: naming the file and line, or for a file that cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "mine.yaml").write_text("process_docs: !function code.run")
    ...     refuse_code([], Path(folder))
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: ...mine.yaml, line 1...
    """
    files = sorted(folder.rglob("*.yaml")) if folder else []
    files += [Path(task) for task in tasks if isinstance(task, str) and Path(task).is_file()]
    for task in tasks:
        if isinstance(task, Mapping):
            files += [Path(name) for name in _several(task.get("include"))]
    seen: set[Path] = set()
    for file in files:
        _check(file.expanduser().resolve(), seen)


def refuse_dataset_code(manager: "TaskManager", tasks: Iterable[str | Mapping[str, Any]]) -> None:
    """Refuse the harness's own tasks whose data sets contain code."""
    waiting, seen = [task for task in tasks if isinstance(task, str)], set()
    while waiting:
        name = waiting.pop()
        entry = manager.task_index.get(name)
        if entry is None or name in seen:
            continue
        seen.add(name)
        settings = entry.cfg or {}
        children = settings.get("task")
        waiting += [*entry.tags] if entry.kind.name == "TAG" else []
        waiting += [child for child in _several(children) if isinstance(child, str)] if "group" in settings else []
        if "custom_dataset" in settings or (settings.get("dataset_kwargs") or {}).get("trust_remote_code"):
            raise _untrusted(f"{entry.yaml_path}: the data set of {name} runs its own code")


@contextmanager
def sandboxed_templates() -> Iterator[None]:
    """A context in which the harness's templates can access no Python objects but their documents.

    Raises:
        TnkitError: for a template that tries to.
    """
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from lm_eval import utils

    before = utils.env
    options = {"undefined": before.undefined, "keep_trailing_newline": before.keep_trailing_newline}
    sandbox = ImmutableSandboxedEnvironment(loader=before.loader, **options)
    sandbox.filters.update(before.filters)
    try:
        with replaced(utils, "env", sandbox):
            yield
    except SecurityError as error:
        raise _untrusted(f"a template accesses Python objects ({first_line(error)})") from error


def _check(file: Path, seen: set[Path]) -> None:
    import yaml
    from lm_eval.api.registry import metric_registry

    if file in seen:
        return
    seen.add(file)
    try:
        if file.stat().st_size > _LARGEST:
            raise TnkitError(f"{file} is larger than {_LARGEST >> 20} MB; is it a task file?")
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise TnkitError(f"{file} is not a readable task file ({first_line(error)})") from error
    for node in _nodes(root):
        if not node.tag.startswith(_STANDARD) or node.tag.startswith(f"{_STANDARD}python"):
            raise _untrusted(f"{file}, line {node.start_mark.line + 1}: {node.tag} runs {node.value!s:.60}")
    settings = _plain(root)
    for entry in _several(settings.get("metric_list")):
        name = entry.get("metric") if isinstance(entry, dict) else None
        if name is not None and (name not in metric_registry or entry.get("hf_evaluate") not in (None, "false")):
            raise _untrusted(f"{file}: the metric {name!s:.60} is not built in; its code would be downloaded")
    for include in _several(settings.get("include")):
        _check((file.parent / str(include)).resolve(), seen)


def _nodes(root: Any) -> Iterator[Any]:
    """Every node of a YAML file once, even if aliases repeat it."""
    waiting, seen = [root] if root else [], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if node.id == "mapping":
            waiting += [child for pair in node.value for child in pair]
        elif node.id == "sequence":
            waiting += node.value


def _plain(root: Any, depth: int = 4) -> Any:
    """The upper levels of a YAML file as dicts, lists and strings."""
    if root is None or depth == 0:
        return {}
    if root.id == "mapping":
        return {key.value: _plain(value, depth - 1) for key, value in root.value if key.id == "scalar"}
    return [_plain(value, depth - 1) for value in root.value] if root.id == "sequence" else root.value


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value in (None, {}) else [value]


def _untrusted(reason: str) -> TnkitError:
    return TnkitError(f"{reason}; review it, and allow it with trust_remote_code=True / --trust_remote_code")
