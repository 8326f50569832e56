"""The study run whole on a tiny model: its numbers are the library's, and it resumes, fails and is shown as it must."""

import json
import logging
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest

import tnkit as tn
from tnkit.replication.findings import Findings, Section
from tnkit.replication.paper import SECTIONS
from tnkit.replication.published import PUBLISHED
from tnkit.replication.study import QUICK, Work, cut
from tnkit.testing import letters, tiny_corpus, tiny_model

LANGUAGES = ["it", "ja"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The study, run whole, with small files in place of MKQA and MMLU-ProX."""
    folder = tmp_path_factory.mktemp("study")
    asked = [{"queries": dict.fromkeys(LANGUAGES, f"{n}?"), "answers": {name: [{"text": "a"}] for name in LANGUAGES}}
             for n in range(4)]  # fmt: skip
    (folder / "mkqa.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    rows = [{"question": f"{n}?", "option_0": "x", "option_1": "y", "answer": "AB"[n % 2]} for n in range(4)]
    for language in LANGUAGES:
        (folder / f"prox-{language}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TNKIT_CACHE", str(folder / "cache"))
        patch.setattr("tnkit.measures.steering.study.encoded", letters)
        files = {"mkqa": folder / "mkqa.jsonl", "mmlu_prox": folder / "prox-{language}.jsonl"}
        return tn.paper(
            tiny_model(), LANGUAGES, corpus=tiny_corpus(), out=folder / "out", quick=True, progress=False, **files
        )


@pytest.fixture
def corpus():
    return cut(tiny_corpus(), ["en", *LANGUAGES], QUICK.sentences)


@pytest.fixture
def sets(corpus):
    found = tn.detect_all(tiny_model(), corpus, LANGUAGES, top=QUICK.top, progress=False)
    return {key: detection.neurons for key, detection in found.items()}


def test_every_section_runs_and_writes_its_files(made):
    assert made.failed == {}
    assert [*made.findings] == [*SECTIONS]
    for kept in made.findings.values():
        assert kept.said and kept.measured and set(kept.shown) <= set(kept.tables)
        for path in kept.tables.values():
            assert len(pd.read_csv(made.path.parent / path))
        for path in kept.figures.values():
            png = (made.path.parent / f"{path}.png").read_bytes()
            place = png.index(b"pHYs") + 4
            assert int.from_bytes(png[place : place + 4]) == round(200 / 0.0254)
            assert (made.path.parent / f"{path}.svg").read_text().lstrip().startswith("<?xml")


def test_spaces_are_the_librarys(made, corpus):
    en, ja = (tn.capture(tiny_model(), corpus["test"][name], keep=["post"], progress=False) for name in ("en", "ja"))
    rows = made.table("spaces", "by layer").loc["ja"]
    cosine = torch_cosine(ja.tensors()["post"], en.tensors()["post"])
    np.testing.assert_allclose(rows["cosine, parallel"], cosine, atol=1e-6)
    near = tn.geometry.mutual_knn(ja, en).columns["mutual 10-NN"]
    np.testing.assert_allclose(rows["mutual k-NN"], near, rtol=1e-12)
    assert (rows["mutual k-NN low"] <= near + 1e-12).all() and (near <= rows["mutual k-NN high"] + 1e-12).all()
    apart = made.table("spaces", "distances")["cosine distance"].unstack("other").loc[2].loc["ja", "en"]
    means = [each.tensors()["post"][2].double().mean(dim=0) for each in (ja, en)]
    assert apart == pytest.approx(1 - float(means[0] @ means[1] / means[0].norm() / means[1].norm()), abs=1e-6)


def torch_cosine(a, b):
    return ((a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)).mean(dim=1).numpy()


def test_neurons_shares_and_overlaps_are_the_librarys(made, corpus, sets):
    neurons = made.table("detection", "neurons")
    for (language, kind), found in sets.items():
        assert [*neurons.loc[(kind, language)].index] == [*found]
    states = {name: tn.capture(tiny_model(), corpus["test"][name], progress=False) for name in ("en", *LANGUAGES)}
    passed = []
    for layer, neuron in sets["ja", "type1"]:
        values = {name: state.of_layer(layer)[:, neuron].numpy() for name, state in states.items()}
        rest = np.concatenate([values["en"], values["it"]])
        passed.append(eta2(values["ja"], rest) >= 0.1 and anova(values["ja"], rest) < 0.05)
    shares = made.table("specificity", "shares").loc[("type1", 0.1, "ja")]
    assert shares["set"] == pytest.approx(np.mean(passed))
    assert shares["LLaMA-3-8B"] == PUBLISHED["type1", 0.1][1]["ja"][0] == 0.409
    pairs = made.table("overlap", "pairs")
    assert pairs.loc[("type2", "it", "ja"), "both"] == len(set(sets["it", "type2"]) & set(sets["ja", "type2"]))


def eta2(own, rest):
    every = np.concatenate([own, rest])
    between = sum(len(part) * (part.mean() - every.mean()) ** 2 for part in (own, rest))
    return between / ((every - every.mean()) ** 2).sum()


def anova(own, rest):
    from scipy import stats

    return stats.f_oneway(own, rest).pvalue


def test_effects_are_the_librarys(made, corpus, sets):
    how = {"language": "it", "controls": {}, "progress": False}
    effect = tn.ablate(tiny_model(), corpus["test"], sets["it", "type1"], **how).to_frame()["mean"]
    written = made.table("similarity", "retrieval by layer").loc["it"]["mean"]
    for condition in ("none", "the set"):
        np.testing.assert_allclose(written.xs(condition, level="condition"), effect.xs(condition, level="condition"))
    read = corpus["test"]["ja"][: QUICK.read]
    with tn.Ablation(tiny_model(), sets["it", "type2"]):
        nats = tn.behaviour.perplexity(tiny_model(), read, progress=False).nats
    assert made.table("perplexity", "matrix").loc[("it", "ja"), "nats per token"] == pytest.approx(nats, rel=1e-6)
    answers = made.table("questions", "answers").loc[("it", "the set", 0)]
    assert answers["question"].tolist() == ["0?", "1?", "2?"][: QUICK.questions]
    assert {*made.table("mmlu-prox", "accuracy")["documents"]} == {4}


def test_the_additions_are_the_librarys(made, corpus):
    options = {"language": "it", "top": 9, "draws": 1, "selections": ["uniform"], "progress": False}
    shown = tn.evidence(tiny_model(), corpus, **options).to_frame()
    written = made.table("evidence", "effects").loc[("it", "type1")]
    for condition in ("none", "the set", "uniform"):
        row = ("it", "own mean", condition)
        assert written.loc[row, "mean"] == pytest.approx(shown.loc[row, "mean"])
    outputs = made.table("steering", "outputs")
    assert len(outputs) == 2 * QUICK.prompts * (1 + 2 * 3)
    share = outputs["in language"].groupby(level=[0, 1, 2]).mean()
    table = made.table("steering", "means")["share"]
    np.testing.assert_allclose(table, share.loc[table.index])


def test_the_page_needs_no_network_and_says_what_came_out(made):
    page = re.sub('base64,[^"]+', "base64,", made.path.read_text())
    assert not re.search(r"https?:|//[a-z]|<script|@import|url\(", page)
    assert re.findall(r'(?:src|href)="(?!data:image/png;base64,|#)', page) == []
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page
    for section in SECTIONS.values():
        assert f'id="{section.name}"' in page and section.question.replace("'", "&#x27;") in page
    assert "as its authors corrected them" in page and "0.409" in page
    assert len(re.findall("<img ", page)) == sum(len(kept.figures) for kept in made.findings.values())
    assert len(re.findall('alt="[^"]+"', page)) == len(re.findall("<img ", page))


def toy(name, runs, *, uses=(), fail=None):
    """A section that counts how often it runs, and may fail."""

    def run(study):
        runs.append(name)
        if fail is not None:
            raise fail
        table = pd.DataFrame({"top": [study.top], "x": [1 / 3]}, index=pd.Index(["<i>row"], name="<b>"))
        figure = tn.plots.lines_by_layer(pd.DataFrame({"a": [1.0, 2.0]}), ylabel="y").figure
        return Findings("<u>measured", (f"{name} & <script>said",), {"one": table}, {"line": figure}, ("one",))

    return Section(name, f"{name} <title>", "Why & what?", run, lambda _: Work(), uses)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A function that runs toy sections in one folder."""
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path / "cache"))

    def run(*sections, model=None, **options):
        monkeypatch.setattr("tnkit.replication.paper.SECTIONS", {section.name: section for section in sections})
        how = {"corpus": tiny_corpus(), "out": tmp_path / "out", "quick": True, "progress": False, **options}
        return tn.paper(model or tiny_model(), ["it"], **how)

    return run


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_resumed_study_equals_a_fresh_one_and_runs_nothing(study):
    runs = []
    fresh = study(toy("a", runs), toy("b", runs))
    before = contents(fresh.path.parent)
    again = study(toy("a", runs), toy("b", runs))
    assert runs == ["a", "b"] and contents(again.path.parent) == before
    assert again.table("a", "one").loc["<i>row", "x"] == 1 / 3


def test_only_what_depends_on_a_parameter_is_run_again(study):
    runs = []
    sections = toy("a", runs), toy("b", runs, uses=("top",))
    study(*sections)
    assert study(*sections, sizes={"top": 7}).table("b", "one")["top"].tolist() == [7]
    assert runs == ["a", "b", "b"]
    study(*sections, sizes={"top": 7, "sentences": 10})  # fewer sentences are other sentences
    assert runs == ["a", "b", "b", "a", "b"]


def test_another_model_is_not_given_the_tables_of_the_first(study):
    runs = []
    study(toy("a", runs))
    study(toy("a", runs), model=tiny_model("qwen3"))
    assert runs == ["a", "a"]


def test_a_changed_file_is_made_again(study, caplog):
    runs = []
    done = study(toy("a", runs))
    path = done.path.parent / done.findings["a"].tables["one"]
    path.write_text(path.read_text().replace("0.333", "0.999"))
    with caplog.at_level(logging.WARNING, "tnkit"):
        assert study(toy("a", runs)).table("a", "one")["x"].tolist() == [1 / 3]
    assert runs == ["a", "a"] and "was changed after it was written" in caplog.text


def test_an_interrupted_study_keeps_what_was_done(study):
    runs = []
    with pytest.raises(KeyboardInterrupt):
        study(toy("a", runs), toy("b", runs, fail=KeyboardInterrupt()), toy("c", runs))
    folder = study(toy("a", runs)).path.parent
    assert runs == ["a", "b"] and not list(folder.rglob(".*"))
    study(toy("a", runs), toy("b", runs), toy("c", runs))
    assert runs == ["a", "b", "b", "c"]


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        (tn.TnkitError("it needs <b>sudachipy</b>; install it"), "it needs &lt;b&gt;sudachipy&lt;/b&gt;; install it."),
        (RuntimeError("first\nsecond"), "unexpected RuntimeError: first."),
    ],
)
def test_a_section_that_fails_is_told_and_stops_no_other(study, fail, said):
    runs = []
    done = study(toy("a", runs, fail=fail), toy("b", runs))
    assert runs == ["a", "b"] and [*done.findings] == ["b"] and [*done.failed] == ["a"]
    assert f"This section did not run: {said}" in done.path.read_text()
    assert study(toy("a", runs), toy("b", runs)).failed == {} and runs == ["a", "b", "a"]


def test_text_of_others_writes_no_markup(study):
    page = study(toy("a", []), model=replace(tiny_model(), name="<script>alert('x')</script>")).path.read_text()
    assert "<script" not in page and "<b>" not in page.replace("<b>In the paper.</b>", "") and "<i>" not in page
    assert "a &amp; &lt;script&gt;said" in page and "&lt;script&gt;alert(" in page and "&lt;u&gt;measured" in page


def test_an_estimate_writes_nothing(study):
    done = study(*SECTIONS.values(), estimate=True)
    assert not done.path.parent.exists() and [*done.estimate.index] == [*SECTIONS, "all"]
    seconds = done.estimate["seconds here"]
    assert seconds["all"] == pytest.approx(seconds.iloc[:-1].sum()) and seconds["spaces"] > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sections": ["nothing"]}, "section='nothing' must be one of a"),
        ({"sizes": {"nothing": 1}}, "size='nothing' must be one of sentences"),
        ({"sizes": {"draws": 0}}, "draws=0 must be at least 1"),
        ({"hub": "it"}, "other than the hub, 'it'"),
        ({"hub": "zz"}, "no sentences in 'zz'"),
        ({"corpus": cut(tiny_corpus(), ["en", "ja"], 5)}, "no sentences in 'it'"),
        ({"corpus": {"en": ["a", "b"], "it": ["c", "d"]}}, "in its split 't"),
    ],
)
def test_what_cannot_be_studied_is_refused_before_anything_is_written(study, tmp_path, options, said):
    with pytest.raises(tn.TnkitError, match=re.escape(said)):
        study(toy("a", []), **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_to_is_refused_first(study, tmp_path):
    runs = []
    (tmp_path / "out").write_text("a file")
    with pytest.raises(tn.TnkitError, match="choose another path"):
        study(toy("a", runs))
    assert runs == []


def test_files_that_do_not_fit_are_told(study, tmp_path):
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "prox-it.csv").write_text("question,answer\nq,A\n")
    run = partial(study, SECTIONS["questions"], SECTIONS["mmlu-prox"])
    failed = run(mkqa=tmp_path / "other.jsonl", mmlu_prox=tmp_path / "prox-{language}.csv").failed
    assert "give MKQA's own mkqa.jsonl" in failed["questions"] and "needs the columns question" in failed["mmlu-prox"]
    failed = run(mkqa=tmp_path / "none.jsonl").failed
    assert "there is no file" in failed["questions"] and "was not asked for" in failed["mmlu-prox"]
