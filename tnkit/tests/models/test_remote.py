"""Remote models: equal to the same ones here, in an isolated process on every run; rules; traffic; errors; refusals."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import httpx
import nnsight
import pytest
import websocket
from nnsight.intervention.backends.remote import RemoteError
from nnsight.modeling.transformers import TransformersModel

import tnkit as tn
from tnkit.models.remote import RemoteModel
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_model, tiny_module
from tnkit.tests.rehearsal import BLIND, NAMES

URL = "http://user:hunter2@127.0.0.1:8001"
KEY = "0f0f0f0f-aaaa-bbbb-cccc-123456789abc"


@pytest.fixture(scope="session")
def rehearsed():
    """What `tnkit.tests.rehearsal` found."""
    paths = [str(Path(tn.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    one_thread = {"OMP_NUM_THREADS": "1"}  # as the server that stands in has, so that rounding errors are the same
    done = subprocess.run(
        [sys.executable, "-m", "tnkit.tests.rehearsal"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"} | one_thread,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def differing(found):
    """What is further apart than rounding."""
    return {what: error for what, error in found.items() if not error <= 1e-6}


@pytest.mark.parametrize("name", NAMES)
def test_a_remote_model_equals_the_same_one_here(rehearsed, name):
    """Weights, captures, centroids, scores, detection, and ablation in every scope and way of changing."""
    found = rehearsed["remote"][name]
    assert differing(found) == {}
    assert {
        "capture: activations",
        "scores: cosine",
        "type1, mean: scores",
        "type2, centred: scores",
        "ablated tokens=last: post",
    } <= set(found)


@pytest.mark.parametrize("name", BLIND)
def test_a_server_that_hides_the_weights_gives_the_same(rehearsed, name):
    """As its sandbox does: value vectors are then what the linear map makes of unit vectors, and no hash is claimed."""
    assert differing(rehearsed["blind"][name]) == {"same weights": 1.0}


def test_half_precision_scores_are_not_rounded_by_the_servers_autocast(rehearsed):
    assert differing(rehearsed["half"]) == {}


def test_the_rehearsal_catches_blocks_that_break_the_rules(rehearsed):
    rules = rehearsed["rules"]
    assert "No module named 'tnkit" in rules["import"]
    assert "No module named 'tnkit" in rules["unregistered"]
    assert rules["decorator"] == 1.0  # it doubles what it is given; there it was dropped
    assert rules["outer list"] == 0


def test_only_sums_come_back_from_a_detection(rehearsed):
    """Eight times the sentences in as many requests: as much comes back; of a capture, about eight times as much."""
    traffic = rehearsed["traffic"]
    assert traffic["detect 1"]["requests"] == traffic["detect 8"]["requests"] == 2
    assert traffic["detect 8"]["down"] < 1.02 * traffic["detect 1"]["down"]
    assert traffic["capture 8"]["down"] > 5 * traffic["capture 1"]["down"]


def test_a_cached_capture_of_a_remote_model_asks_for_nothing(rehearsed):
    assert rehearsed["traffic"]["cached"] == {"requests": 0, "same": True}


@pytest.fixture
def folder(tmp_path):
    """A tiny model on disk."""
    tiny_module("llama").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


SIGNED = "https://store.example/results/1.pt?X-Amz-Signature=5ec2e7"
RESPONSE = httpx.Response(403, request=httpx.Request("GET", SIGNED))


SAID = {
    "Failed to send request: Missing or invalid API key. Please visit": "set NDIF_API_KEY to a key",
    f"Failed to send request: Invalid API key format: '{KEY}'.": "format: '…'.*set NDIF_API_KEY",
    "Failed to send request: [Errno -2] Name or service not known": "no NDIF server answers at http://127",
    "Could not deploy this model. Not enough memory.": r"print\(nnsight\.status\(\)\)",
    "Your job exceeded the execution timeout of 60s.": "a smaller batch_tokens, or fewer layers",
    "Traceback (most recent call last):\n  File x\nOutOfMemoryError: CUDA out of memory.": "OutOfMemory.*smaller",
    "Traceback (most recent call last):\n  File x\ntnkit.errors.TnkitError: it is packed": "^it is packed$",
    "The architecture doesn't match: it has no module at 'x'.\n\nCompare the two": r"print\(nnsight\.compare\(\)\)",
}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        *((RemoteError(text), words) for text, words in SAID.items()),
        (websocket.WebSocketBadStatusException("Handshake status 403 Forbidden", 403), "set NDIF_API_KEY"),
        (websocket.WebSocketConnectionClosedException("Connection to remote host was lost."), "host was lost"),
        (
            ConnectionRefusedError(111, "Connection refused"),
            "no NDIF server answers at http://127.* that the server is up",
        ),
        (
            httpx.HTTPStatusError(f"403 for url '{SIGNED}'", request=None, response=RESPONSE),
            "could not be fetched.*less",
        ),
    ],
)
def test_what_the_service_says_becomes_one_sentence_without_secrets(monkeypatch, folder, error, words):
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", KEY)

    def fail(_):
        raise error

    monkeypatch.setattr(TransformersModel, "_remote_backend", lambda *_: fail)
    with pytest.raises(tn.TnkitError, match=words) as caught:
        tn.load_model(folder, remote=URL)
    said = str(caught.value)
    assert "\n" not in said
    assert not any(secret in said for secret in (KEY, "hunter2", "5ec2e7"))
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_a_model_that_the_hub_does_not_know_is_named(folder, monkeypatch):
    from huggingface_hub.errors import OfflineModeIsEnabled

    def offline(*_):
        raise OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr(TransformersModel, "_remote_backend", offline)
    with pytest.raises(tn.TnkitError, match="Hub did not confirm the name"):
        tn.load_model(folder, remote=URL)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"remote": "local"}, r"remote='local' must be True \(NDIF\) or a server's URL"),
        ({"remote": "http://host:99999"}, "must be True"),
        ({"remote": True}, "by their Hub id, not by a folder"),
        ({"remote": URL, "dtype": "bfloat16"}, "the server chooses dtype"),
        ({"remote": URL, "device_map": "auto"}, "the server chooses dtype and device_map"),
    ],
)
def test_what_cannot_be_remote_is_refused(folder, options, words):
    with pytest.raises(tn.TnkitError, match=words):
        tn.load_model(folder, **options)


def elsewhere(remote):
    """A tiny model that is taken to run on a server."""
    model = tiny_model()
    return RemoteModel(**{field.name: getattr(model, field.name) for field in fields(model)} | {"remote": remote})


def test_a_loaded_module_stays_where_it_is():
    with pytest.raises(tn.TnkitError, match="runs where it is"):
        tn.load_model(tiny_module("llama"), tokenizer=byte_tokenizer(), remote=URL)


def test_true_means_the_host_that_nnsight_is_set_to(monkeypatch):
    monkeypatch.setattr(nnsight.CONFIG.API, "HOST", "https://ndif.example")
    with pytest.raises(tn.TnkitError, match=r"runs on https://ndif\.example, where"):
        _ = elsewhere(True).module


@pytest.mark.parametrize(
    "use",
    [
        lambda model, _: model.module,
        lambda model, _: tn.behaviour.perplexity(model, SENTENCES, progress=False),
        lambda model, _: tn.behaviour.continuations(model, ["Hi"], progress=False),
        lambda model, _: tn.lens.promoted(model, (0, 1)),
        lambda model, folder: tn.export_ablated(model, [(0, 1)], folder / "off"),
    ],
    ids=["module", "perplexity", "generation", "lens", "export"],
)
def test_what_needs_the_weights_here_says_so(use, tmp_path):
    model = elsewhere(URL)
    with pytest.raises(tn.TnkitError, match=r"runs on http://127\.0\.0\.1:8001, where .* load_model\(.*\) here"):
        use(model, tmp_path)
    assert list(tmp_path.iterdir()) == []
