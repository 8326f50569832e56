"""Detection in one call equals its steps, streamed or stored, and refuses early."""

import copy
import gc
from pathlib import Path

import pytest
import torch

import tnkit as tn
from tnkit.detection.centroids import centroid
from tnkit.detection.detect import detect_towards
from tnkit.testing import byte_tokenizer, tiny_corpus, tiny_model, tiny_module
from tnkit.text.corpus import Sentences

CORPUS = tn.load_corpus("everyday", ["en", "ja", "it"])
TEXTS = {name: [text[:30] for text in sentences[:12]] for name, sentences in CORPUS["train"].items()}
QUIET = {"progress": False}


def test_one_call_equals_its_steps():
    model = tiny_model("gemma3")
    en, ja = (tn.capture(model, TEXTS[name], **QUIET) for name in ("en", "ja"))
    targets = {"type1": [en, ja], "type2": [ja]}
    found = tn.detect_all(model, TEXTS, ["ja"], top=9, **QUIET)
    for kind, layers in (("type1", model.early_layers), ("type2", model.late_layers)):
        scores = tn.score_neurons(model, ja, tn.estimate_centroids(targets[kind]))
        assert found["ja", kind].neurons.pairs == scores.top(9, layers=layers).pairs
        one = tn.detect(model, TEXTS, language="ja", kind=kind, top=9, **QUIET)
        assert one.neurons.pairs == found["ja", kind].neurons.pairs
        assert one.scores.layers == list(layers)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("hub", ["en", ["en", "it"]])
def test_streaming_equals_storing(distance, hub):
    model, options = tiny_model("gpt-neox"), {"hub": hub, "top": 5, "distance": distance, "batch_tokens": 300} | QUIET
    stored = tn.detect_all(model, TEXTS, ["ja"], streaming=False, **options)
    streamed = tn.detect_all(model, TEXTS, ["ja"], streaming=True, **options)
    for key, one in stored.items():
        assert torch.allclose(one.centroids.values, streamed[key].centroids.values, atol=1e-6)
        assert torch.allclose(one.scores.values, streamed[key].scores.values, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("hub", ["en", ["en", "it"]])
@pytest.mark.parametrize("languages", [["ja"], ["ja", "it"]])
def test_a_centred_detection_equals_its_steps(hub, languages):
    model = tiny_model("gemma3")
    captured = {name: tn.capture(model, TEXTS[name], **QUIET) for name in TEXTS}
    origin = tn.estimate_centroids([*captured.values()])
    shared = tn.estimate_centroids([captured[name] for name in ([hub] if hub == "en" else hub)])
    steps = list(tn.detect_steps(model, TEXTS, languages, hub=hub, top=9, score="centred", batch_tokens=300))
    assert steps[-1].done == steps[-1].total == 12 * (3 + len(languages))
    found = {(result.language, result.kind): result for step in steps for result in step.found}
    assert len(found) == 2 * len(languages)
    for (name, kind), detection in found.items():
        target = shared if kind == "type1" else tn.estimate_centroids([captured[name]])
        layers = model.early_layers if kind == "type1" else model.late_layers
        scores = tn.score_neurons(model, captured[name], target, origin=origin, layers=layers)
        assert torch.allclose(detection.scores.values, scores.values, atol=1e-6, equal_nan=True)
        assert len(set(detection.neurons) & set(scores.top(9))) >= 8  # rounding may swap the last two
        assert detection.scores.provenance["origin"] == origin.provenance["sentences"]
        known = {"language": name, "kind": kind, "top": 9} | QUIET
        again = detect_towards(model, TEXTS[name], target, origin=origin, **known)
        assert torch.allclose(detection.scores.values, again.scores.values, atol=1e-6, equal_nan=True)
    assert tn.detect(model, TEXTS, language="ja", top=9, **QUIET).neurons != found["ja", "type1"].neurons


def test_with_two_languages_the_centred_targets_are_opposite():
    texts, model = {name: TEXTS[name] for name in ("en", "ja")}, tiny_model("llama")
    how = {"language": "ja", "score": "centred", "top": 9, "layers": range(4)} | QUIET
    towards, away = (tn.detect(model, texts, kind=kind, **how).scores.values for kind in ("type1", "type2"))
    assert torch.allclose(towards, -away, atol=1e-6) and towards.abs().max() > 1e-3


@pytest.fixture
def massive(monkeypatch):
    """A model whose residual stream has one massive coordinate in every token, as if never warned about."""
    monkeypatch.setattr("tnkit.detection.targets._TOLD", set())
    module = copy.deepcopy(tiny_module("llama"))
    module.model.embed_tokens.weight.data[:, 3] = 50
    return tn.load_model(module, tokenizer=byte_tokenizer())


def test_a_target_that_scores_hardly_depend_on_is_warned_about_once(massive, caplog):
    tn.detect_all(massive, TEXTS, top=3, **QUIET)
    raw = tn.detect_all(massive, {name: tn.capture(massive, TEXTS[name], **QUIET) for name in TEXTS}, top=3, **QUIET)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "ja, type1, has a cosine of up to" in message and "squared length in one coordinate" in message
    own, shared = raw["ja", "type2"].centroids, raw["ja", "type1"].centroids
    for found, target, rival in ((raw["ja", "type1"], shared, own), (raw["ja", "type2"], own, shared)):
        frame, layers = found.target(), found.scores.layers
        assert list(frame.index) == layers
        expected = torch.nn.functional.cosine_similarity(target.values.double(), rival.values.double())[layers]
        assert torch.allclose(torch.tensor(frame["cosine with the rival"].values), expected, atol=1e-4)
        squares = target.values.double().square()[layers]
        expected = squares.amax(dim=1) / squares.sum(dim=1)
        assert torch.allclose(torch.tensor(frame["largest share"].values), expected, atol=1e-4)
    assert "cosine with the rival" in raw["ja", "type1"]._repr_html_()


def test_a_centred_target_is_described_from_its_origin(massive, caplog):
    found = tn.detect_all(massive, TEXTS, top=3, score="centred", **QUIET)
    assert caplog.records == []
    assert all(detection.target()["largest share"].max() < 0.5 for detection in found.values())
    captured = {name: tn.capture(massive, TEXTS[name], **QUIET).post.double().mean(dim=1) for name in TEXTS}
    origin = torch.stack([*captured.values()]).mean(dim=0)
    expected = torch.nn.functional.cosine_similarity(captured["en"] - origin, captured["ja"] - origin)
    for kind in ("type1", "type2"):
        frame = found["ja", kind].target()
        cosines = torch.tensor(frame["cosine with the rival"].values)
        assert torch.allclose(cosines, expected[list(frame.index)], atol=1e-3)


def test_the_hub_runs_no_further_than_type1_needs(request):
    """The late blocks see the sentences of the other languages alone, and nothing is scored otherwise."""
    model = tn.load_model(copy.deepcopy(tiny_module("llama")), tokenizer=byte_tokenizer())
    seen, block = [], model.module.model.layers[3]
    hook = block.register_forward_hook(lambda _block, given, _found: seen.append(given[0].numel()))
    request.addfinalizer(hook.remove)
    captured, of = {}, {}
    for name, sentences in TEXTS.items():
        captured[name] = tn.capture(model, sentences, **QUIET)
        of[name], seen[:] = sum(seen), []
    for streaming in (False, True):
        found = tn.detect_all(model, TEXTS, top=3, streaming=streaming, **QUIET)
        assert sum(seen) == of["ja"] + of["it"] > 0
        seen.clear()
        assert found["ja", "type1"].centroids.layers == tuple(model.early_layers)
        assert found["ja", "type2"].centroids.layers == tuple(range(4))
        for key, expected in tn.detect_all(model, captured, top=3, **QUIET).items():
            scores, wanted = found[key].scores.values, expected.scores.values
            assert torch.allclose(scores, wanted, atol=1e-7, rtol=1e-4, equal_nan=True)
            assert found[key].neurons.pairs == expected.neurons.pairs
    tn.detect_all(model, TEXTS, ["en", "ja"], hub=["en", "it"], top=3, **QUIET)  # whose own neurons are asked for
    assert sum(seen) == of["en"] + of["ja"]


def test_a_rival_that_was_not_captured_is_unknown():
    raw = tn.detect_all(tiny_model(), TEXTS, top=3, **QUIET)
    assert raw["ja", "type1"].target()["cosine with the rival"].notna().all()
    assert raw["ja", "type2"].target()["cosine with the rival"].isna().all()
    found = tn.detect(tiny_model(), TEXTS, language="ja", kind="type2", top=3, **QUIET)
    assert found.target()["cosine with the rival"].isna().all() and found.target()["largest share"].notna().all()
    hub = tn.detect_all(tiny_model(), TEXTS, ["en"], ["type2"], top=3, **QUIET)
    assert hub["en", "type2"].target()["cosine with the rival"].isna().all()


def test_centred_scores_are_shown_saved_and_told_apart(tmp_path):
    model = tiny_model()
    found = tn.detect(model, TEXTS, language="ja", top=3, score="centred", **QUIET)
    again = tn.Detection.load(found.save(tmp_path))
    assert again.scores.score == "centred" and again.scores.provenance == found.scores.provenance
    assert "centred" in again._repr_html_() and "centred" in repr(again.scores)
    assert "towards the hub's centroid (centred)" in tn.Detection.plot_all([again]).axes[0].get_title(loc="left")
    raw = tn.detect(model, TEXTS, language="ja", top=3, **QUIET)
    assert "raw" in raw._repr_html_()
    (tmp_path / "scores.safetensors").unlink()
    raw.scores.save(tmp_path / "scores.safetensors")
    with pytest.raises(tn.TnkitError, match="belongs to another detection"):
        tn.Detection.load(tmp_path)


@pytest.mark.parametrize("streaming", [False, True])
def test_all_languages_of_the_hub_may_be_in_question(streaming):
    model, hub = tiny_model("llama"), ["en", "it"]
    found = tn.detect_all(model, TEXTS, ["it", "en"], ["type1"], hub=hub, top=9, streaming=streaming, **QUIET)
    shared = tn.estimate_centroids([tn.capture(model, TEXTS[name], **QUIET) for name in hub])
    for name in hub:
        scores = tn.score_neurons(model, tn.capture(model, TEXTS[name], **QUIET), shared, layers=model.early_layers)
        assert torch.allclose(found[name, "type1"].scores.values, scores.values, atol=1e-6, equal_nan=True)


def test_known_centroids_in_flat_memory_give_the_same():
    model = tiny_model("llama")
    found = tn.detect(model, TEXTS, language="ja", kind="type2", top=9, **QUIET)
    again = detect_towards(model, TEXTS["ja"], found.centroids, language="ja", kind="type2", top=9, **QUIET)
    assert torch.allclose(again.scores.values, found.scores.values, atol=1e-7, equal_nan=True)


def test_centroids_of_the_wrong_languages_are_refused():
    model = tiny_model("llama")
    short = {name: Sentences(tuple(texts), name) for name, texts in TEXTS.items()}
    captured = {name: tn.capture(model, short[name], **QUIET) for name in ("en", "ja")}
    shared, own = tn.estimate_centroids([*captured.values()]), tn.estimate_centroids([captured["ja"]])
    for kind, target, language in (("type2", shared, "ja"), ("type1", own, "ja"), ("type1", shared, "it")):
        with pytest.raises(tn.TnkitError, match=f"{kind} of {language} needs those of"):
            detect_towards(model, TEXTS["ja"], target, language=language, kind=kind, top=3, **QUIET)


def test_type1_alone_runs_the_early_layers_only():
    model, ran = tiny_model("llama"), []
    handles = [
        block.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, block in enumerate(model.module.model.layers)
    ]
    tn.detect(model, TEXTS, language="ja", kind="type1", top=9, **QUIET)
    for handle in handles:
        handle.remove()
    assert 3 not in ran


def test_every_language_but_the_hub_by_default_and_hubs_may_have_type2():
    found = tn.detect_all(tiny_model(), TEXTS, top=3, **QUIET)
    assert set(found) == {(name, kind) for name in ("ja", "it") for kind in ("type1", "type2")}
    assert tn.detect(tiny_model(), TEXTS, language="en", kind="type2", top=3, **QUIET).neurons
    both = tn.detect_all(tiny_model(), TEXTS, ["ja", "en"], hub=["en", "it"], top=3, **QUIET)
    assert len(both) == 4


def test_a_corpus_gives_its_split_and_its_names():
    short = tn.Corpus("short", CORPUS.frame[CORPUS.frame["ja"].str.len() < 20].groupby("split").head(4))
    found = tn.detect(tiny_model(), short, language="ja", kind="type2", top=3, split="test", **QUIET)
    about = found.neurons.provenance
    assert about["sentences"]["split"] == "test"
    assert about["selection"] == {"kind": "type2", "language": "ja", "score": "raw", "top": 3, "layers": "2 to 3"}
    assert about["centroid"][0]["language"] == "ja"


def test_a_folder_gives_back_what_was_saved(tmp_path):
    found = tn.detect(tiny_model(), TEXTS, language="ja", top=3, **QUIET)
    again = tn.Detection.load(found.save(tmp_path / "ja"))
    assert (again.neurons, again.kind, again.language) == (found.neurons, "type1", "ja")
    assert torch.equal(again.centroids.values, found.centroids.values)
    assert len(again.plot().patches) == 160


FILES = ("scores.safetensors", "centroids.safetensors", "neurons.json")
OTHERS = {  # another detection, and the file of it that cannot be told apart from the first one's
    "language": ({"language": "it"}, None),
    "kind": ({"kind": "type2"}, None),
    "distance": ({"distance": "euclidean"}, "centroids.safetensors"),
    "hub": ({"hub": "it"}, None),
    "model": ({}, None),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Saved detections by what is different about them; "first" is the one that they are mixed with."""
    folder = tmp_path_factory.mktemp("detections")
    for name, (changed, _) in {"first": ({}, None), **OTHERS}.items():
        model = tiny_model("gemma3" if name == "model" else "llama")
        found = tn.detect(model, TEXTS, **{"language": "ja", "top": 3} | changed, **QUIET)
        found.save(folder / name)
        for part in ("scores", "centroids", "neurons"):  # as written one by one, without the hashes of each other
            ending = "json" if part == "neurons" else "safetensors"
            getattr(found, part).save(folder / f"{name}-plain" / f"{part}.{ending}")
    return folder


@pytest.mark.parametrize("form", ["", "-plain"])
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("file", FILES)
def test_files_of_different_detections_are_refused(folders, tmp_path, other, file, form):
    for name in FILES:
        source = folders / f"{other if name == file else 'first'}{form}" / name
        (tmp_path / name).write_bytes(source.read_bytes())
    if file == OTHERS[other][1]:
        assert tn.Detection.load(tmp_path).neurons.provenance["distance"] == "cosine"
    else:
        with pytest.raises(tn.TnkitError, match=r"(scores|centroids)\.safetensors belongs to another detection"):
            tn.Detection.load(tmp_path)


def cut_off(function, calls):
    """The function, interrupted after some calls."""
    left = iter(range(calls))

    def cut(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return function(*arguments)

    return cut


@pytest.mark.parametrize("calls", [1, 2])
def test_a_save_that_is_cut_short_over_an_older_one_is_noticed(tmp_path, monkeypatch, calls):
    older = tn.detect(tiny_model(), TEXTS, language="ja", top=3, **QUIET)
    later = tn.detect(tiny_model(), TEXTS, language="ja", top=3, last_layer="normed", kind="type2", **QUIET)
    older.save(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("tnkit.storage.write_atomically", cut_off(tn.storage.write_atomically, calls))
        later.save(tmp_path)
    assert tn.Detection.load(tmp_path).neurons == older.neurons
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pathlib.Path.replace", cut_off(Path.replace, calls))
        later.save(tmp_path)
    with pytest.raises(tn.TnkitError, match="belongs to another detection"):
        tn.Detection.load(tmp_path)
    assert tn.Detection.load(later.save(tmp_path)).neurons == later.neurons


def test_a_loaded_detection_has_the_provenance_of_the_saved_one(tmp_path):
    found = tn.detect(tiny_model(), TEXTS, language="ja", top=3, **QUIET)
    again = tn.Detection.load(found.save(tmp_path))
    for name in ("neurons", "scores", "centroids"):
        assert getattr(again, name).provenance == getattr(found, name).provenance


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"language": "fr"}, "no sentences in fr; it has en, ja, it"),
        ({"language": "ja", "kind": "type3"}, "kind='type3' must be one of type1, type2"),
        ({"language": "en"}, "Type-1 neurons of en need another hub"),
        ({"language": "ja", "hub": "de"}, "no sentences in de"),
        ({"language": "ja", "distance": "manhattan"}, "distance='manhattan' must be one of"),
        ({"language": "ja", "score": "centered"}, "score='centered' must be one of raw, centred"),
        ({"language": "ja", "score": "centred", "distance": "euclidean"}, "the same from every origin"),
        ({"language": "ja", "score": "centred", "streaming": False}, "leave streaming out"),
        ({"language": "ja", "score": "centred", "hub": ["en", "ja", "it"]}, "needs a corpus with more languages than"),
        ({"language": "ja", "top": 97}, "top 97 was asked for; 2 layers of 48 neurons hold 96"),
        ({"language": "ja", "layers": range(3, 5)}, "layer 4 is not in"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_runs(arguments, words, monkeypatch):
    monkeypatch.setattr("tnkit.captures.passes.trace_blocks", lambda *_, **__: pytest.fail("a pass was run"))
    with pytest.raises(tn.TnkitError, match=words):
        tn.detect(tiny_model(), TEXTS, **arguments, **QUIET)


@pytest.mark.parametrize(("streaming", "distance", "runs"), [(0, "cosine", 1), (1, "cosine", 1), (1, "euclidean", 2)])
def test_steps_say_how_far_they_are_and_bring_what_is_found(streaming, distance, runs):
    model, options = tiny_model("llama"), {"top": 5, "batch_tokens": 100, "streaming": bool(streaming)}
    options["distance"] = distance
    steps = list(tn.detect_steps(model, TEXTS, ["ja", "it"], **options))
    total = 12 + 2 * 12 * runs
    assert {step.total for step in steps} == {total} and steps[-1].done == total
    done = [step.done for step in steps]
    assert done == sorted(done) and len(set(done)) > 10
    assert [step.language for step in steps if step.found] == ["ja", "it"]
    found = {(one.language, one.kind): one for step in steps for one in step.found}
    whole = tn.detect_all(model, TEXTS, ["ja", "it"], progress=False, **options)
    assert found.keys() == whole.keys()
    for key, one in whole.items():
        assert torch.equal(found[key].scores.values.nan_to_num(9), one.scores.values.nan_to_num(9))
        assert found[key].neurons == one.neurons


def test_steps_may_be_left_and_other_things_done_between_them():
    model, options = tiny_model("llama"), {"top": 5, "batch_tokens": 100}
    expected = tn.detect(model, TEXTS, language="ja", **options, **QUIET)
    steps, found = tn.detect_steps(model, TEXTS, ["ja"], ["type1"], **options), ()
    for step in steps:
        with tn.Ablation(model, [(0, 1)]):
            tn.capture(model, ["Hi!"], **QUIET)
        assert model.ablations == [] and not torch.is_inference_mode_enabled()
        found = step.found or found
    assert found[0].neurons == expected.neurons
    left = tn.detect_steps(model, TEXTS, ["ja"], **options)
    next(left)
    left.close()
    assert tn.detect(model, TEXTS, language="ja", **options, **QUIET).neurons == expected.neurons


@pytest.mark.parametrize("streaming", [False, True])
def test_a_cached_detection_runs_nothing_twice_and_gives_the_same(streaming, tmp_path, monkeypatch):
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path))
    model, options = tiny_model("gemma3"), {"top": 5, "batch_tokens": 100, "streaming": streaming}
    fresh = tn.detect_all(model, TEXTS, **options, **QUIET)
    tn.detect_all(model, TEXTS, cache=True, **options, **QUIET)
    monkeypatch.setattr("tnkit.captures.passes.trace_blocks", lambda *_, **__: pytest.fail("a pass was run"))
    again = tn.detect_all(model, TEXTS, cache=True, **options, **QUIET)
    for key, one in fresh.items():
        assert torch.equal(one.scores.values.nan_to_num(9), again[key].scores.values.nan_to_num(9))
        assert one.neurons == again[key].neurons and one.scores.provenance == again[key].scores.provenance
    for changed in ({"distance": "euclidean"}, {"hub": ["en", "it"]}, {"score": "centred"}) if streaming else ():
        with pytest.raises(pytest.fail.Exception, match="a pass was run"):
            tn.detect_all(model, TEXTS, ["ja"], cache=True, **options | changed, **QUIET)


def test_a_cached_centred_detection_runs_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path))
    how = {"languages": ["ja"], "score": "centred", "top": 5, "cache": True} | QUIET
    fresh = tn.detect_all(tiny_model(), TEXTS, **how)
    monkeypatch.setattr("tnkit.captures.passes.trace_blocks", lambda *_, **__: pytest.fail("a pass was run"))
    again = tn.detect_all(tiny_model(), TEXTS, **how)
    for key, found in fresh.items():
        assert torch.equal(found.scores.folds, again[key].scores.folds)
        assert found.neurons == again[key].neurons and found.scores.provenance == again[key].scores.provenance
    fewer = {name: TEXTS[name] for name in ("en", "ja")}  # another origin
    with pytest.raises(pytest.fail.Exception, match="a pass was run"):
        tn.detect_all(tiny_model(), fewer, **how)


def test_known_centroids_take_up_their_sums(tmp_path, monkeypatch):
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path))
    model, own = tiny_model("llama"), centroid(tiny_model("llama"), TEXTS["ja"], cache=True, **QUIET)
    how = {"language": "ja", "kind": "type2", "top": 9, "cache": True} | QUIET
    first = detect_towards(model, TEXTS["ja"], own, **how)
    monkeypatch.setattr("tnkit.captures.passes.trace_blocks", lambda *_, **__: pytest.fail("a pass was run"))
    assert torch.equal(centroid(model, TEXTS["ja"], cache=True, **QUIET).values, own.values)
    assert detect_towards(model, TEXTS["ja"], own, **how).neurons == first.neurons


@pytest.mark.parametrize("hub", ["en", ("en", "ja"), ("en", "en"), ("ja", "en", "ja")])
def test_each_language_counts_once_in_the_shared_centroid(hub):
    model, corpus = tiny_model(), tiny_corpus()
    found = tn.detect(model, corpus, language="ja", hub=hub, top=5, progress=False)
    means = [
        tn.capture(model, corpus["train"][name], progress=False).post.double().mean(dim=1) for name in ("en", "ja")
    ]
    expected = torch.stack(means).mean(dim=0)[list(found.centroids.layers)]
    assert torch.allclose(found.centroids.values.double(), expected, atol=1e-6)


MANY = "en de nl sv da it es fr pt ro ru uk bg pl cs ar fa he hi bn ta te th vi id ja zh ko fi hu tr el".split()


def alive():
    """The bytes of all tensors that somebody still holds."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("streaming", [False, True])
def test_32_languages_hold_no_more_than_8_but_their_centroids(tmp_path, streaming):
    rows = ["\t".join(MANY), *("\t".join(f"{code} {row} {code * row}" for code in MANY) for row in range(1, 9))]
    (tmp_path / "many.tsv").write_text("\n".join(rows))
    corpus = tn.load_corpus(tmp_path / "many.tsv", MANY, test=0.0)  # a column named id is Indonesian only where asked
    model, held = tiny_model(), {}
    for count in (8, 32):
        texts, found = {code: corpus["train"][code] for code in MANY[:count]}, []
        before = alive()
        for step in tn.detect_steps(model, texts, top=5, streaming=streaming):
            found += [(detection.language, detection.kind) for detection in step.found]
            if len(found) == 2 * (count - 1):
                held[count] = alive() - before  # as the last language ends, while the detection still holds its own
        assert len(set(found)) == 2 * (count - 1)
    activations = 24 * 8 * model.n_layers * (model.n_neurons + 2 * model.hidden_size) * 4  # of 24 more languages
    assert held[32] - held[8] < activations / 4


@pytest.mark.parametrize(
    "options", [{}, {"distance": "euclidean"}, {"score": "centred"}, {"hub": ["en", "it"]}], ids=str
)
def test_captures_give_the_detections_of_their_sentences_and_nothing_runs(options, monkeypatch):
    model = tiny_model("gemma3")
    expected = tn.detect_all(model, TEXTS, ["ja"], top=9, **options, **QUIET)
    captured = {name: tn.capture(model, TEXTS[name], **QUIET) for name in TEXTS}
    monkeypatch.setattr("tnkit.captures.passes.trace_blocks", None)
    found = tn.detect_all(model, captured, ["ja"], top=9, **options, **QUIET)
    for key, detection in expected.items():
        assert found[key].neurons.pairs == detection.neurons.pairs
        assert torch.equal(found[key].scores.values.isnan(), detection.scores.values.isnan())
        assert torch.allclose(found[key].scores.values, detection.scores.values, atol=1e-7, equal_nan=True)
        known = detection.target().notna().all()  # of Type-2 in sentences the rival is not
        assert found[key].target().loc[:, known].equals(detection.target().loc[:, known])
        assert torch.allclose(found[key].scores.folds, detection.scores.folds, atol=1e-6, equal_nan=True)


def test_captures_that_cannot_be_used_are_refused():
    model = tiny_model("gemma3")
    captured = {name: tn.capture(model, TEXTS[name], **QUIET) for name in ("en", "ja")}

    def detect(texts, **options):
        return tn.detect(model, texts, language="ja", top=5, **options, **QUIET)

    with pytest.raises(tn.TnkitError, match="en are captures, ja are sentences; capture these too"):
        detect({"en": captured["en"], "ja": TEXTS["ja"]})
    for options in ({"position": "mean"}, {"suffix": ""}, {"batch_tokens": 9}, {"streaming": True}, {"cache": True}):
        with pytest.raises(tn.TnkitError, match=f"{next(iter(options))} cannot change captures"):
            detect(captured, **options)
    with pytest.raises(tn.TnkitError, match=r"parallel|sentences"):
        detect({"en": tn.capture(model, TEXTS["en"][:5], **QUIET), "ja": captured["ja"]})
    with pytest.raises(tn.TnkitError, match=r"captured at|another|position"):
        detect({"en": tn.capture(model, TEXTS["en"], position="mean", **QUIET), "ja": captured["ja"]})
    with pytest.raises(tn.TnkitError, match=r"capture of en lacks layers 1.*capture them"):
        detect({name: tn.capture(model, TEXTS[name], layers=[0], **QUIET) for name in captured})
    with pytest.raises(tn.TnkitError, match="activations"):
        detect({name: tn.capture(model, TEXTS[name], keep=["post", "mid"], **QUIET) for name in captured})
    other = tiny_model("llama")
    with pytest.raises(tn.TnkitError, match=r"model|weights"):
        tn.detect(other, captured, language="ja", top=5, **QUIET)
