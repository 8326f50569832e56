"""The lm-evaluation-harness on local toy tasks, against plain loops: no network, no change to model or tokenizer."""

import copy
import json
import re
import socket
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tnkit as tn
from tnkit.measures import harness, harness_model
from tnkit.measures.task_files import refuse_code, refuse_dataset_code
from tnkit.testing import byte_tokenizer, tiny_model, tiny_module
from tnkit.tests.measures.test_behaviour import planted

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.tasks._index import Kind  # noqa: E402

NEURONS = [(layer, neuron) for layer in range(4) for neuron in range(0, 48, 2)]
DOCUMENTS = [
    {"question": "Roma è la capitale d'", "choices": ["Italia", "Olanda", "Corea!"], "letters": ["A", "B"], "label": 0},
    {"question": "日本の首都は", "choices": ["東京", "ローマ", "ソ"], "letters": ["A", "B"], "label": 0},
    {"question": "Een hond", "choices": ["blaft", "kraait", "a"], "letters": ["A", "B"], "label": 1},
    {"question": "Two and two", "choices": ["make four", "make", "?"], "letters": ["A", "B"], "label": 1},
]
GENERATING = """
generation_kwargs: {until: ["\\n"], max_gen_toks: 3, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - {name: letter, filter: [{function: regex, regex_pattern: "([AB])"}, {function: take_first}]}
  - {name: whole, filter: [{function: take_first}]}
"""
TASKS = {
    "choice": "output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: label",
    "letter": "output_type: multiple_choice\ndoc_to_choice: letters\ndoc_to_target: label",
    "generate": 'output_type: generate_until\ndoc_to_target: "A"' + GENERATING,
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a test asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tasks of our own, with a local file as their data set."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "data.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in DOCUMENTS))
    for name, rest in TASKS.items():
        data = {"data_files": {"test": str(folder / "data.jsonl")}, "cache_dir": str(folder / "cache")}
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {json.dumps(data)}\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(f'{head}doc_to_text: "{{{{question}}}}"\n{rest}\n')
    return folder


class plain_hooks:
    """NEURONS set to 0 by plain hooks at some tokens of unpadded rows."""

    def __init__(self, module, places=slice(None)):
        self.module, self.places = module, places

    def __enter__(self):
        def hook(_, args):
            whole = args[0].clone()
            whole[:, self.places, 0:48:2] = 0
            return (whole,)

        layers = self.module.model.layers
        self.handles = [layer.mlp.down_proj.register_forward_pre_hook(hook) for layer in layers]

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def likelihood(prompt, continuation):
    """Log likelihood of a continuation, and whether it is what greedy decoding says."""
    start = byte_tokenizer()(prompt)["input_ids"]
    ids = byte_tokenizer()(prompt + continuation)["input_ids"]
    with torch.inference_mode():
        logits = tiny_module("llama")(input_ids=torch.tensor([ids[:-1]])).logits[0, len(start) - 1 :].double()
    wanted = torch.tensor(ids[len(start) :])
    found = logits.log_softmax(-1)[torch.arange(len(wanted)), wanted].sum()
    return float(found), bool((logits.argmax(-1) == wanted).all())


def likelihoods(column):
    """(document, choice), for the choices that a task offers, with its space before them."""
    return [[likelihood(row["question"], " " + end)[0] for end in row[column]] for row in DOCUMENTS]


def logged(found, task):
    return [[answer[0] for answer in row["filtered_resps"]] for row in found["samples"][task]]


def requests(pairs):
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, pair, place) for place, pair in enumerate(pairs)]


def test_multiple_choice_equals_a_plain_loop(folder):
    found = harness.evaluate(tiny_model(), "choice", neurons=NEURONS, include_path=folder, progress=False)
    plain = likelihoods("choices")
    with plain_hooks(tiny_module("llama")):
        ablated = likelihoods("choices")
    for run, expected in ((found.before, plain), (found.after, ablated)):
        assert all(np.allclose(a, b, atol=1e-3) for a, b in zip(logged(run, "choice"), expected, strict=True))
    frame = found.to_frame()
    labels = [row["label"] for row in DOCUMENTS]
    for column, values in (("before", plain), ("after", ablated)):
        right = [int(np.argmax(row)) == label for row, label in zip(values, labels, strict=True)]
        assert frame.loc[("choice", "none", "acc"), column] == np.mean(right)
    assert (frame["documents"] == 4).all() and "unparsed" not in frame.index.get_level_values("metric")
    assert not np.allclose(ablated[0], plain[0], atol=0.01)
    fed = sum(
        len(byte_tokenizer()(row["question"] + " " + end)["input_ids"]) - 1
        for row in DOCUMENTS
        for end in row["choices"]
    )
    assert found.count == fed * len(NEURONS)  # no padding is counted
    assert found.provenance["ablations"][0]["tokens"] == "prompt"


def test_likelihoods_are_those_of_the_harness_itself():
    from lm_eval.models.huggingface import HFLM

    pairs = [(row["question"], " " + end) for row in DOCUMENTS for end in (*row["choices"], *row["letters"])]
    ours = harness.TnkitLM(tiny_model(), batch_size=5).loglikelihood(requests(pairs), disable_tqdm=True)
    tokenizer = copy.deepcopy(byte_tokenizer())
    theirs = HFLM(tiny_module("llama"), tokenizer=tokenizer, batch_size=5).loglikelihood(requests(pairs))
    assert np.allclose([one[0] for one in ours], [one[0] for one in theirs], atol=1e-4)
    assert [one[1] for one in ours] == [one[1] for one in theirs]
    texts = requests([("Hello",), ("Hi",)])
    ours = harness.TnkitLM(tiny_model(), batch_size=5).loglikelihood_rolling(texts)
    theirs = HFLM(tiny_module("llama"), tokenizer=tokenizer, batch_size=5).loglikelihood_rolling(texts)
    assert np.allclose(ours, theirs, atol=1e-4)


def test_the_last_token_is_never_padding():
    """Rows of different lengths run in one batch of the harness, whose padding has no mask."""
    tokenizer, model = byte_tokenizer(), tiny_model()
    pairs = [(row["question"], end) for row in DOCUMENTS for end in row["letters"]]
    with tn.Ablation(model, NEURONS, tokens="last") as ablation:
        found = harness.TnkitLM(model, batch_size=8).loglikelihood(requests(pairs), disable_tqdm=True)
    for (prompt, end), (value, _) in zip(pairs, found, strict=True):
        with plain_hooks(tiny_module("llama"), len(tokenizer(prompt)["input_ids"]) - 1):
            assert value == pytest.approx(likelihood(prompt, end)[0], abs=1e-3)
    assert ablation.count == len(NEURONS) * len(DOCUMENTS)  # one pass for the one-token ends of a prompt


def test_the_last_token_of_several_is_refused(folder):
    with pytest.raises(tn.TnkitError, match='use tokens="prompt" or "all"'):
        harness.evaluate(tiny_model(), "choice", neurons=NEURONS, tokens="last", include_path=folder, progress=False)
    assert not tiny_model().ablations


def letter():
    return byte_tokenizer()("A")["input_ids"][-1]


def test_generated_answers_are_parsed_and_what_is_not_is_counted(folder):
    model, how = planted(letter()), {"include_path": folder, "progress": False}
    off = harness.evaluate(model, ["generate"], neurons=[(3, 5)], tokens="all", **how)
    assert [row["resps"][0][0] for row in off.before["samples"]["generate"][:4]] == ["AAA"] * 4
    frame = off.to_frame().xs("generate")
    columns = ["before", "after", "change", "low", "high"]
    assert frame.loc[("letter", "exact_match"), columns].tolist() == [1, 0, -1, -1, -1]
    assert frame.loc[("letter", "unparsed"), columns].tolist() == [0, 1, 1, 1, 1]
    assert ("whole", "unparsed") not in frame.index and frame.loc[("whole", "exact_match"), "before"] == 0
    # Only the prompt is ablated: the first token changes, and the letter comes with the second.
    prompt = harness.evaluate(model, ["generate"], neurons=[(3, 5)], limit=2, **how)
    said = [row["resps"][0][0] for row in prompt.after["samples"]["generate"][:2]]
    assert [(text[0] != "A", text[-2:]) for text in said] == [(True, "AA")] * 2
    row = prompt.to_frame().loc[("generate", "letter", "unparsed")]
    assert (row["after"], row["documents"]) == (0, 2)
    prompts = [len(byte_tokenizer()(document["question"])["input_ids"]) for document in DOCUMENTS[:2]]
    assert prompt.count == sum(prompts)
    names = [label.get_text() for label in off.plot().get_xticklabels()]
    assert "generate\nexact_match, letter" in names


def test_intervals_are_paired_and_honest():
    samples = [
        [{"filter": "none", "acc": float(value), "pair": (1, 0)} for value in values]
        for values in ([1, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 1])
    ]
    values = [harness._values(run, "none", "acc") for run in samples]
    row = harness._row(0.5, 1 / 3, values)
    resampled = np.random.default_rng(9).choice(values[1] - values[0], (40_000, 6)).mean(axis=1)
    assert (row["low"], row["high"]) == pytest.approx(np.quantile(resampled, (0.025, 0.975)), abs=0.02)
    assert harness._values(samples[0], "none", "pair") is None and harness._values(samples[0], "none", "f1") is None
    for other in (
        harness._row(7.0, 9.0, values),
        harness._row(1.0, 1.0, [np.ones(1)] * 2),
        harness._row(0.5, 0.6, [None] * 2),
    ):
        assert np.isnan([other["low"], other["high"]]).all()


def test_controls_are_evaluated_as_if_alone(folder):
    how = {"include_path": folder, "progress": False}
    other = tn.NeuronSet(tuple((layer, neuron) for layer in range(4) for neuron in range(1, 48, 2)), (4, 48))
    found = harness.evaluate(tiny_model(), "choice", neurons=NEURONS, controls={"other": other}, **how)
    alone = harness.evaluate(tiny_model(), "choice", neurons=other, **how)
    assert found.controls["other"][0].table.equals(alone.table) and found.controls["other"][0].count == alone.count
    table, name = found.compared("choice", "acc").at(), ("choice", "none", "acc")
    means = {"none": found.table.loc[name, "before"], "the set": found.table.loc[name, "after"]}
    assert table["mean"].to_dict() == means | {"other": alone.table.loc[name, "after"]}
    assert table.loc["none", "effect"] == pytest.approx(found.table.loc[name, "change"])
    assert len(found.by_condition().loc["other"]) == len(found.table)
    with pytest.raises(tn.TnkitError, match="0 rows have the task choice, the metric f1"):
        found.compared("choice", "f1")


def test_unparsed_answers_are_compared_by_document(folder):
    found = harness.evaluate(
        planted(letter()), ["generate"], neurons=[(3, 5)], tokens="all", include_path=folder, progress=False
    )
    assert found.compared("generate", "unparsed").at()["mean"].to_dict() == {"none": 0, "the set": 1}
    assert found.compared("generate", "exact_match", filter="letter").at().loc["none", "effect"] == -1
    with pytest.raises(tn.TnkitError, match="2 rows have the task generate"):
        found.compared("generate", "exact_match")


def test_nothing_off_changes_nothing_and_runs_once(folder, monkeypatch):
    model, runs = planted(letter()), []
    model.tokenizer.pad_token, model.tokenizer.padding_side = None, "right"
    weights, simple_evaluate = model.weights_hash, lm_eval.simple_evaluate
    monkeypatch.setattr(lm_eval, "simple_evaluate", lambda *a, **k: runs.append(1) or simple_evaluate(*a, **k))
    found = harness.evaluate(model, ["letter", "generate"], include_path=folder, progress=False)
    assert (found.table["change"] == 0).all() and found.count == 0 and runs == [1]
    assert (model.tokenizer.pad_token, model.tokenizer.padding_side) == (None, "right")
    assert model.weights_hash == weights


CODE = {  # what a task file, or one that it includes, runs: (file, rest of the YAML, what the refusal says)
    "function": ("evil.yaml", "process_docs: !function evil.run", "evil.yaml, line 6: !function runs evil.run"),
    "class": ("evil.yaml", "class: !function evil.run", "!function runs evil.run"),
    "python tag": ("evil.yaml", "x: !!python/object/apply:os.mkdir [executed]", "python/object/apply:os.mkdir"),
    "metric": ("evil.yaml", "metric_list: [{metric: nobody/evil}]", "the metric nobody/evil is not built in"),
    "hf metric": ("evil.yaml", "metric_list: [{metric: acc, hf_evaluate: true}]", "the metric acc is not"),
    "include": ("evil.yaml", "include: deep/base.inc", "base.inc, line 1: !function runs evil.run"),
    "template": ("evil.yaml", "doc_to_text: \"{{ ''.__class__.__mro__ }}\"", "a template accesses Python objects"),
    "hidden template": (
        "evil.yaml",
        r"""doc_to_text: "{{ question['_'~'_class_'~'_'].mro() }}" """,
        "a template accesses",
    ),
}


@pytest.fixture
def evil(folder, tmp_path, monkeypatch):
    """A function that writes a task which runs code, and says whether it did."""
    monkeypatch.chdir(tmp_path)
    tasks = tmp_path / "tasks"
    (tasks / "deep").mkdir(parents=True)
    (tasks / "evil.py").write_text("import os\nos.mkdir('executed')\ndef run(documents):\n    return documents\n")
    (tasks / "deep" / "evil.py").write_text((tasks / "evil.py").read_text())
    (tasks / "deep" / "base.inc").write_text("process_docs: !function evil.run\n")

    def write(rest):
        choice = (folder / "choice.yaml").read_text().replace("task: choice", "task: evil")
        (tasks / "evil.yaml").write_text("\n".join([*choice.splitlines()[:5], rest, *choice.splitlines()[5:]]))
        return tasks

    return write


@pytest.mark.parametrize("how", CODE)
@pytest.mark.parametrize("by_path", [False, True])
def test_task_files_that_run_code_are_refused_before_anything_runs(evil, tmp_path, how, by_path):
    name, rest, said = CODE[how]
    tasks = evil(rest)
    if "template" in how:
        lines = (tasks / name).read_text().splitlines()
        (tasks / name).write_text("\n".join(line for line in lines if line == rest or "doc_to_text" not in line))
    options = {"tasks": str(tasks / name)} if by_path else {"tasks": "evil", "include_path": tasks}
    with pytest.raises(tn.TnkitError, match=re.escape(said)) as refused:
        harness.evaluate(tiny_model(), **options, progress=False)
    assert "trust_remote_code=True" in str(refused.value)
    assert not (tmp_path / "executed").exists()


def test_trusted_task_files_run_their_code(evil, tmp_path):
    found = harness.evaluate(
        tiny_model(), "evil", include_path=evil(CODE["function"][1]), trust_remote_code=True, progress=False
    )
    assert (tmp_path / "executed").exists() and found.to_frame()["documents"].max() == 4


def test_data_sets_of_the_harness_that_run_code_are_refused():
    entry = SimpleNamespace(
        cfg={"task": "x", "custom_dataset": "/x.load"}, kind=Kind.TASK, tags=set(), yaml_path="x.yaml"
    )
    group = SimpleNamespace(cfg={"group": "all", "task": ["tagged"]}, kind=Kind.GROUP, tags=set(), yaml_path="g.yaml")
    tag = SimpleNamespace(cfg=None, kind=Kind.TAG, tags={"x"}, yaml_path=None)
    manager = SimpleNamespace(task_index={"x": entry, "all": group, "tagged": tag})
    for task in ("x", "tagged", "all"):
        with pytest.raises(tn.TnkitError, match=r"x\.yaml: the data set of x runs its own code"):
            refuse_dataset_code(manager, [task])
    entry.cfg = {"task": "x", "dataset_kwargs": {"trust_remote_code": True}}
    with pytest.raises(tn.TnkitError, match="trust_remote_code=True"):
        refuse_dataset_code(manager, ["x"])


def test_a_task_file_full_of_aliases_ends(tmp_path):
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    refuse_code([], tmp_path)


def test_data_that_the_hub_does_not_give_is_named(tmp_path):
    (tmp_path / "far.yaml").write_text(
        f"task: far\ndataset_path: nobody/nothing\ntest_split: test\n{TASKS['choice']}\n"
    )
    with pytest.raises(tn.TnkitError, match=r"the data of far could not be read \(.*nobody/nothing.*\); check the net"):
        harness.evaluate(tiny_model(), "far", include_path=tmp_path, progress=False)


def test_what_cannot_be_run_is_refused(folder, monkeypatch):
    model = tiny_model()
    for tasks, how, message in (
        ([], {}, "no tasks"),
        ("choice", {"limit": 0}, "limit=0"),
        ("choice", {"include_path": folder / "none"}, "is not a folder"),
        ("choice", {"tokens": "first"}, "must be one of"),
    ):
        with pytest.raises(tn.TnkitError, match=message):
            harness.evaluate(model, tasks, neurons=NEURONS, **({"include_path": folder} | how), progress=False)
    monkeypatch.setattr(
        "lm_eval.tasks.TaskManager", lambda **_: type("Index", (), {"all_tasks": [], "all_subtasks": []})
    )
    with pytest.raises(tn.TnkitError, match=r"the harness has no task nothing, nor does .*; check its name"):
        harness.evaluate(model, "nothing", include_path=folder, progress=False)
    harness_model.model_class.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(tn.TnkitError, match=r"pip install 'tnkit\[measures\]'"):
        harness.evaluate(model, "choice", include_path=folder, progress=False)
    with pytest.raises(tn.TnkitError, match="not installed"):
        _ = harness.TnkitLM
