"""Tests reach for no network and open no window; a folder of tiny models stands in for downloads."""

import copy
import os

import pytest

from tnkit.tests.conftest import close_figures  # noqa: F401 - a fixture

collect_ignore = ["ndif/cpu_server.py", "reliability/pickle_atheris.py"]  # import what only their environments have
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")


@pytest.fixture(scope="session")
def saved_models(tmp_path_factory):
    """A folder with a tiny `model`, an `other` of the same shape but other weights, and a `shallow` one."""
    import torch
    import transformers

    from tnkit.testing import byte_tokenizer, tiny_config, tiny_module

    modules = {"model": tiny_module("llama"), "other": copy.deepcopy(tiny_module("llama"))}
    with torch.no_grad():
        modules["other"].get_input_embeddings().weight.mul_(1.1)
    config = tiny_config("llama")
    config.num_hidden_layers = 3
    modules["shallow"] = transformers.AutoModelForCausalLM.from_config(config)
    folder, tokenizer = tmp_path_factory.mktemp("models"), copy.deepcopy(byte_tokenizer())
    tokenizer.model_max_length = 128  # transformers then warns of longer sentences
    for name, module in modules.items():
        module.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder
