"""Tasks of the lm-evaluation-harness with neurons switched off: `evaluate`, and `TnkitLM` for your own runs.

evaluation = tn.harness.evaluate(model, ["mmlu_prox_lite_ja"], neurons=type1, tokens="prompt", limit=100)
evaluation.to_frame()                                  # metrics and unparsed answers, before and after
evaluation = tn.harness.evaluate(model, ["mine"], neurons=type1, include_path="folder/with/tasks")

with tn.Ablation(model, type1, tokens="prompt"):
    lm_eval.simple_evaluate(tn.harness.TnkitLM(model, batch_size=8), tasks=["belebele_jpn_Jpan"])

Install the harness with pip install 'tnkit[measures]'; it is imported on first use.
"""

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import pandas as pd

from tnkit import plots, storage
from tnkit.errors import TnkitError, first_line, optional, whole_number
from tnkit.interventions.ablation import Ablation
from tnkit.interventions.comparison import NONE, SET, Comparison, compared, each_condition, frame_of_conditions
from tnkit.interventions.controls import Control
from tnkit.interventions.together import Given, Neurons, neurons_of
from tnkit.measures.harness_model import model_class
from tnkit.measures.task_files import refuse_code, refuse_dataset_code, sandboxed_templates
from tnkit.models.model import Model
from tnkit.statistics import interval, resamples

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

UNPARSED = "unparsed"
_INVALID = "[invalid]"  # the result of the harness's extracting filters if they find nothing


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The results of tasks of the lm-evaluation-harness, untouched and with neurons switched off.

    Attributes:
        table: indexed (task, filter, metric): `before`, `after`, `change` = after - before with its 95 % bootstrap
            interval over documents (`low`, `high`; NaN for one document, or a metric that is not a mean over
            documents), and `documents`. The metric "unparsed" is the share of answers in which a task's extracting
            filter found nothing: if it rises, an accuracy may fall because answers lost their format.
        before, after: the results of the harness, with every document under "samples".
        count: the number of (token, neuron) values that were set.
        provenance: model, tasks and their versions, ablations, limit, versions.
        controls: for each control, the evaluation with each of its draws switched off.
    """

    table: pd.DataFrame
    before: dict[str, Any]
    after: dict[str, Any]
    count: int
    provenance: dict[str, Any] = field(default_factory=dict)
    controls: dict[str, tuple["Evaluation", ...]] = field(default_factory=dict)

    def compared(self, task: str, metric: str, *, filter: str | None = None) -> Comparison:
        """Compare a metric of a task: untouched, with the set off and with each control off.

        Args:
            task, metric, filter: as in the index of `table`; the filter only if a task has several.

        Returns:
            `Comparison` with a number for every document: means with intervals, effects and p-values.

        Raises:
            TnkitError: if no row or several rows match, or the metric lacks a number for each document.
        """
        names = [name for row, name, column in self.table.index if (row, column) == (task, metric)]
        names = [name for name in names if filter in (None, name)]
        if len(names) != 1:
            rows = "; ".join(", ".join(row) for row in self.table.index)
            raise TnkitError(
                f"{len(names)} rows have the task {task}, the metric {metric} and the filter {filter or 'any'}; name "
                f"one of (task, filter, metric): {rows}"
            )

        def values(result: Evaluation) -> list[np.ndarray]:
            return [_by_document(run, task, names[0], metric) for run in (result.before, result.after)]

        return compared(self, f"{task}, {metric}", values)

    def by_condition(self) -> pd.DataFrame:
        """`table` for the set and each draw of each control, indexed (off, seed, task, filter, metric)."""
        return frame_of_conditions(self)

    def to_frame(self) -> pd.DataFrame:
        """The table."""
        return self.table.copy()

    def plot(self, ax: "plots.Axes | None" = None) -> "plots.Axes":
        """Draw every metric before and after."""
        names = [f"{task}\n{metric}" for task, _, metric in self.table.index]
        if len(set(names)) < len(names):
            names = [f"{task}\n{metric}, {name}" for task, name, metric in self.table.index]
        means = dict(zip(names, zip(self.table["before"], self.table["after"], strict=True), strict=True))
        return plots.before_and_after(means, ylabel="", ax=ax)

    def _repr_html_(self) -> str:
        rows = {
            " ".join(name): f"{before:.4g} → {after:.4g}"
            for name, before, after in zip(self.table.index, self.table["before"], self.table["after"], strict=True)
        }
        return storage.html_card("Evaluation, before → after", rows | {"values set": self.count})


def evaluate(
    model: Model,
    tasks: str | Sequence[str | dict[str, Any]],
    *,
    neurons: Given = (),
    controls: Mapping[str, Control] = MappingProxyType({}),
    seeds: SupportsIndex = 10,
    tokens: str = "prompt",
    limit: SupportsIndex | float | None = None,
    num_fewshot: SupportsIndex | None = None,
    include_path: str | Path | None = None,
    batch_size: int = 8,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Run tasks of EleutherAI's lm-evaluation-harness untouched and with neurons switched off.

    In tasks that generate, "prompt" and "last" act on the prompt and not on generated tokens. In tasks that compare
    likelihoods (multiple choice), the harness feeds prompt and continuation in one pass. There "prompt" acts on both,
    like "all"; "last" acts on the last token of the prompt if every continuation is one token, and is refused
    otherwise.

    Args:
        model: from `load_model`.
        tasks: names of tasks or groups, paths of YAML files, or configurations as dicts.
        neurons: a `NeuronSet` or (layer, neuron) pairs to switch off, or interventions as in `Ablation`; with none,
            the tasks run once.
        controls: from `tnkit.controls`; each draw runs the tasks once more.
        seeds: draws of each random control.
        tokens: as in `Ablation`.
        limit: the number of documents of each task, or their share if below 1; None takes all.
        num_fewshot: the number of examples in each prompt (default: the task's own number).
        include_path: a folder with your own YAML task files. If it holds all requested tasks, the harness does not
            index its own thousands of tasks, which would take about ten seconds.
        batch_size: the number of requests that run at once.
        trust_remote_code: allow task files that run code: named Python functions (`!function`), downloaded metrics,
            data sets with their own code, templates that access Python objects.
        progress: show the harness's progress bars.

    Returns:
        `Evaluation`. The harness seeds Python, numpy and torch again in each run.

    Raises:
        TnkitError: for no or unknown tasks, a limit that is not positive, tokens="last" with continuations of several
            tokens, task files that run code, data that cannot be downloaded, or a missing lm_eval.

    >>> from datasets import Dataset
    >>> documents = Dataset.from_list([{"question": "Roma è in", "choices": [" Italia", " Asia"], "label": 0}])
    >>> task = {"task": "where", "output_type": "multiple_choice", "custom_dataset": lambda **_: {"test": documents}}
    >>> task |= {"test_split": "test", "doc_to_text": "question", "doc_to_choice": "choices", "doc_to_target": "label"}
    >>> from tnkit.testing import tiny_model
    >>> evaluate(tiny_model(), [task], neurons=[(1, 7)], progress=False).to_frame()["documents"].tolist()
    [1, 1]
    """
    tasks = [tasks] if isinstance(tasks, str) else list(tasks)
    if not tasks:
        raise TnkitError("there are no tasks to run; name at least one, such as belebele_jpn_Jpan")
    if limit is not None and not (isinstance(limit, float) and 0 < limit < 1):  # or a share
        limit = whole_number("limit", limit, at_least=1)
    if num_fewshot is not None:
        num_fewshot = whole_number("num_fewshot", num_fewshot)
    lm_eval = optional("lm_eval", "the lm-evaluation-harness")
    Ablation(model, neurons, tokens=tokens)  # so that it refuses its arguments before data is read
    model.check_ready()
    options = {"tasks": tasks, "limit": limit, "num_fewshot": num_fewshot, "bootstrap_iters": 1000}
    quiet = contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO())
    padding = model.tokenizer.padding_side, model.tokenizer.pad_token
    sandbox = contextlib.nullcontext() if trust_remote_code else sandboxed_templates()
    with quiet, sandbox:
        options["task_manager"] = _manager(tasks, include_path, trust_remote_code)
        try:
            harnessed = model_class()(model, batch_size=batch_size)

            def run(off: Neurons) -> tuple[dict[str, Any], Ablation]:
                ablation = Ablation(model, off, tokens=tokens)
                with ablation if ablation.values else contextlib.nullcontext():
                    return lm_eval.simple_evaluate(harnessed, **options), ablation

            chosen = neurons_of(model, neurons)
            results = each_condition(run, chosen, controls=controls, seeds=seeds, name="conditions", progress=progress)
        except OSError as error:  # errors of the Hub and of the network are OSErrors too
            raise _unread(tasks, error) from error
        finally:
            model.tokenizer.padding_side, model.tokenizer.pad_token = padding
    ((before, _),) = results.pop(NONE)

    def beside(drawn: tuple[dict[str, Any], Ablation], **more: Any) -> Evaluation:
        after, ablation = drawn
        origin = {
            "model": model.provenance,
            "tasks": dict(before["versions"]),
            "ablations": [*model.ablations, *(ablation.abouts if ablation.values else [])],
            "limit": limit,
            "versions": storage.versions() | {"lm_eval": lm_eval.__version__},
        }
        return Evaluation(_table(before, after), before, after, ablation.count, origin, **more)

    (ablated,) = results.pop(SET)
    return beside(ablated, controls={name: tuple(map(beside, draws)) for name, draws in results.items()})


def _unread(tasks: Sequence[Any], error: OSError) -> TnkitError:
    names = ", ".join(task if isinstance(task, str) else str(task.get("task")) for task in tasks)
    return TnkitError(
        f"the data of {names} could not be read ({first_line(error)}); check the network, and whether the data set "
        "needs a token (hf auth login); it is cached after the first download"
    )


def __getattr__(name: str) -> Any:
    if name == "TnkitLM":
        return model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _manager(tasks: list[str | dict[str, Any]], include_path: str | Path | None, trusted: bool) -> "TaskManager":
    """An index of tasks: only of the include path if it holds every task that is not a complete configuration."""
    from lm_eval.tasks import TaskManager

    path = None if include_path is None else str(include_path)
    if path is not None and not Path(path).is_dir():
        raise TnkitError(f"include_path={path} is not a folder; name the folder with the YAML task files")
    if not trusted:
        refuse_code(tasks, None if path is None else Path(path))
    included = TaskManager(include_path=path, include_defaults=False)
    complete = [task for task in tasks if isinstance(task, dict) and {"dataset_path", "custom_dataset"} & set(task)]
    if all(task in complete or task in included.all_subtasks for task in tasks):
        return included
    manager = TaskManager(include_path=path)
    known = set(manager.all_tasks)
    unknown = [task for task in tasks if isinstance(task, str) and task not in known and not Path(task).is_file()]
    if unknown:
        advice = f", nor does {path}; check its name" if path else "; for your own tasks, give include_path=FOLDER"
        raise TnkitError(f"the harness has no task {', '.join(unknown)}{advice}")
    if not trusted:
        refuse_dataset_code(manager, tasks)
    return manager


def _table(before: dict[str, Any], after: dict[str, Any]) -> pd.DataFrame:
    rows = {}
    for task, results in before["results"].items():
        samples = [run["samples"].get(task, []) for run in (before, after)]
        for key, value in results.items():
            metric, _, name = key.partition(",")
            if not name or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            values = [_values(run, name, metric) for run in samples]
            rows[task, name, metric] = _row(value, after["results"][task][key], values)
        for name, fallbacks in _fallbacks(before["configs"].get(task, {})).items():
            first, second = (_unparsed(run, name, fallbacks) for run in samples)
            rows[task, name, UNPARSED] = _row(first.mean(), second.mean(), [first, second])
    index = pd.MultiIndex.from_tuples(rows, names=["task", "filter", "metric"])
    return pd.DataFrame(rows.values(), index=index)


def _by_document(run: dict[str, Any], task: str, name: str, metric: str) -> np.ndarray:
    samples = run["samples"].get(task, [])
    if metric == UNPARSED:
        return _unparsed(samples, name, _fallbacks(run["configs"].get(task, {}))[name])
    values = _values(samples, name, metric)
    if values is None:
        raise TnkitError(f"{metric} of {task} has no number for each document; choose another metric")
    return values


def _values(samples: list[dict[str, Any]], name: str, metric: str) -> np.ndarray | None:
    """A metric's value for each document; None if it has no single number for each."""
    values = [sample.get(metric) for sample in samples if sample["filter"] == name]
    numbers = values and all(value is not None and np.ndim(value) == 0 for value in values)
    return np.array(values, dtype=float) if numbers else None


def _unparsed(samples: list[dict[str, Any]], name: str, fallbacks: set[str]) -> np.ndarray:
    """1 for each document whose answer could not be extracted, else 0."""
    answers = [np.ravel(sample["filtered_resps"])[0] for sample in samples if sample["filter"] == name]
    return np.array([float(str(answer) in fallbacks) for answer in answers])


def _row(before: float, after: float, values: list[np.ndarray | None]) -> dict[str, float]:
    row = {"before": float(before), "after": float(after), "change": float(after - before)}
    row |= {"low": math.nan, "high": math.nan, "documents": 0}
    if values[0] is None or values[1] is None:
        return row
    documents = len(values[0])
    row["documents"] = documents
    is_mean = np.allclose([values[0].mean(), values[1].mean()], [before, after])
    if documents > 1 and is_mean:
        row["low"], row["high"] = interval(resamples(documents) @ (values[1] - values[0]) / documents)
    return row


def _fallbacks(config: dict[str, Any]) -> dict[str, set[str]]:
    """For a generating task: filter that extracts answers → the placeholders for a missing answer."""
    if config.get("output_type") != "generate_until":
        return {}
    fallbacks = {}
    for chain in config.get("filter_list") or []:
        steps = [step for step in chain["filter"] if "regex" in step["function"] or step["function"] == "custom"]
        if steps:
            fallbacks[chain["name"]] = {str(step.get("fallback", _INVALID)) for step in steps}
    return fallbacks
