"""The doctor finds what is there, says what to do about what is not, and keeps secrets."""

import copy
import re
from importlib import metadata

import pytest
from tokenizers import processors
from transformers import AutoModel, AutoModelForCausalLM

from tnkit.cli import doctor
from tnkit.cli import main as cli
from tnkit.models import packaged
from tnkit.models.proofs import completeness_error
from tnkit.testing import byte_tokenizer, redrawn, tiny_config, tiny_model, tiny_module


def found(what):
    return next(finding for finding in doctor.examine() if finding.check == what)


def test_everything_is_looked_at_and_here_nothing_must_be_fixed(capsys):
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for what in ("tnkit", "python", "torch", "transformers", "nnsight", "processor", "memory", "cache", "gemma-3-270m"):
        assert f" {what} " in printed
    for what in ("GPU", "notebooks", "fonts", "Hugging Face", "NDIF"):
        assert f" {what} " in printed
    assert "FIX" not in printed


def test_a_package_that_is_missing_or_too_old_must_be_fixed(monkeypatch, capsys):
    installed = metadata.version

    def version(name):
        if name == "seaborn":
            raise metadata.PackageNotFoundError(name)
        return "0.5.0" if name == "nnsight" else installed(name)

    monkeypatch.setattr(metadata, "version", version)
    assert found("seaborn").needed and found("seaborn").advice.startswith("pip install 'seaborn")
    assert found("nnsight").needed and "pip install 'nnsight<0.9,>=0.8.1'" in found("nnsight").advice
    assert cli.main(["doctor"]) == 1
    assert "2 of these must be fixed before tnkit works; see FIX above" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_to(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path / "file" / "cache"))
    assert "is not writable" in found("cache").state and "TNKIT_CACHE" in found("cache").advice


def test_a_demo_model_that_is_not_there_or_not_unpacked(monkeypatch, tmp_path):
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path))
    if found("gemma-3-270m").state != "not installed":
        assert "unpacked on first use" in found("gemma-3-270m").state
    gone = packaged.PackagedModel(("no-such-distribution",), "x", "0" * 64)
    monkeypatch.setattr(packaged, "MODELS", {"gemma-3-270m": gone})
    assert "pip install 'tnkit[demo]'" in found("gemma-3-270m").advice


def test_no_font_for_japanese(monkeypatch):
    monkeypatch.setattr("tnkit.plots.style._CJK_FONTS", ())
    assert "fonts-noto-cjk" in found("fonts").advice


def test_a_key_is_told_of_and_not_told(monkeypatch):
    from nnsight import CONFIG

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(CONFIG.API, "APIKEY", "secret")
    text = "\n".join(map(str, doctor.examine()))
    assert found("NDIF").state == "key set" and found("Hugging Face").state.startswith("token set")
    assert "secret" not in text


def test_what_breaks_while_it_is_looked_at_is_a_finding(monkeypatch):
    def _broken():
        raise KeyError("x")
        yield

    monkeypatch.setattr(doctor, "CHECKS", (_broken,))
    (finding,) = doctor.examine()
    assert finding.needed and str(finding).startswith("FIX   broken         KeyError: 'x'\n")


@pytest.mark.parametrize(
    ("free", "said"), [(10**9, "too little"), (24 * 10**9, "about 10 billion"), (640 * 10**9, "about 256 billion")]
)
def test_how_large_a_model_fits(free, said):
    assert said in doctor._room(free, free)


@pytest.mark.parametrize(
    ("single", "state", "words"),
    [
        ("<bos> $A", "BOS added, special token at the end: none, no chat template", ""),
        (
            "$A <eos>",
            "BOS absent, special token at the end: <eos>, no chat template",
            "ends in the special token <eos>",
        ),
    ],
)
def test_the_tokenizer_of_a_folder_is_looked_at(single, state, words, tmp_path, capsys):
    tokenizer = copy.deepcopy(byte_tokenizer())
    special = [("<bos>", 256), ("<eos>", 257)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    tiny_module("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert cli.main(["doctor", "--model", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path}: {state}" in printed and words in printed
    assert ("does not add it" in printed) == ("absent" in state)
    missing = next(one for one in doctor.examine(str(tmp_path / "no")) if one.check == "tokenizer")
    assert "has none that loads" in missing.state


def findings(source):
    return {finding.check: finding for finding in doctor.examine(str(source))}


@pytest.fixture
def saved(tmp_path):
    """Save a module with its tokenizer, and give the folder."""

    def save(module):
        module.save_pretrained(tmp_path)
        byte_tokenizer().save_pretrained(tmp_path)
        return tmp_path

    return save


def test_the_doctor_says_how_a_model_is_read(saved):
    """The numbers are those that `load_model` proves."""
    told = findings(saved(tiny_module("gemma3")))
    assert told["model"].state == "Gemma3ForCausalLM, 4 layers, hidden size 32, float32"
    assert "48 a layer" in told["neurons"].state and "mlp.down_proj" in told["neurons"].state
    error = re.search(r"to (\S+) of the MLP's output, at worst in layer (\d)", told["adds up"].state)
    assert float(error[1]) == float(f"{completeness_error(tiny_model('gemma3')).max():.1g}") and int(error[2]) < 4
    assert told["supports"].state == "all but chat=True"


def test_the_doctor_says_what_a_model_without_a_head_does_not_support(saved):
    told = findings(saved(redrawn(AutoModel.from_config(tiny_config("llama")))))
    assert told["model"].state.startswith("LlamaModel") and not told["model"].needed
    assert told["supports"].state == "all but generation, likelihood and lens, chat=True"


def test_the_doctor_says_why_a_model_is_not_read(saved, capsys):
    config = tiny_config("gemma3")
    config.use_bidirectional_attention = True
    folder = saved(redrawn(AutoModelForCausalLM.from_config(config)))
    told = findings(folder)
    assert told["model"].needed and "does not attend causally" in told["model"].state and "adds up" not in told
    assert cli.main(["doctor", "--model", str(folder)]) == 1
    assert "does not attend causally" in capsys.readouterr().out
