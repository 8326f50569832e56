"""Neuron sets travel: the card says where a set is from, the real client of the Hub uploads and downloads it."""

import base64
import hashlib
import http.server
import json
import re
import socket
import threading

import pandas as pd
import pytest
import torch
import yaml
from huggingface_hub import close_session, constants
from jsonschema import Draft202012Validator

import tnkit as tn
from tnkit import storage
from tnkit.detection import neuron_files

PROVENANCE = {
    "model": {"name": "/home/ann/llama", "weights": "f" * 32, "dtype": "bfloat16"},
    "sentences": {"corpus": "everyday", "split": "train", "language": "ja", "n": 256, "hash": "3509"},
    "position": "last",
    "selection": {"kind": "type1", "language": "ja", "top": 2},
    "versions": {"tnkit": "0.1.0"},
}
NEURONS = tn.NeuronSet(((0, 1), (2, 3)), (4, 6), (0.5, 0.25), PROVENANCE)
EFFECTS = pd.DataFrame({"mean": [0.9, 1 / 3]}, index=pd.Index(["none", "the set | <b>"], name="condition"))


def front(card):
    """The metadata in front of a card, and its text."""
    _, metadata, text = card.split("---\n", 2)
    return yaml.safe_load(metadata), text


def commit_of(branch):
    return hashlib.sha1(branch.encode()).hexdigest()


@pytest.fixture
def hub(request, monkeypatch, tmp_path):
    """The files of a server on this machine that the real client takes for the Hub, by address."""
    files, refused = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, content, status=200):
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if refused:
                self.answer({"error": "You may not write here"}, 403)
            elif self.path == "/api/repos/create":
                asked = json.loads(body)
                self.answer({"url": f"{constants.ENDPOINT}/{asked['organization']}/{asked['name']}"})
            elif self.path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif match := re.fullmatch(r"/api/models/(.+)/preupload/([^/?]+)", self.path.split("?")[0]):
                asked = json.loads(body)["files"]
                self.answer(
                    {
                        "files": [
                            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked
                        ]
                    }
                )
            elif match := re.fullmatch(r"/api/models/(.+)/commit/([^/?]+)", self.path.split("?")[0]):
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        data = base64.b64decode(line["value"]["content"])
                        files[f"/{match[1]}/resolve/{match[2]}/{line['value']['path']}"] = data
                commit = commit_of(match[2])
                self.answer({"commitUrl": f"{constants.ENDPOINT}/{match[1]}/commit/{commit}", "commitOid": commit})
            else:
                self.answer({})

        def do_HEAD(self):
            data = files.get(self.path)
            self.send_response(404 if data is None else 200)
            self.send_header("ETag", f'"{hashlib.sha256(data or b"").hexdigest()}"')
            self.send_header("X-Repo-Commit", commit_of(self.path.split("/")[4]))
            self.send_header("Content-Length", str(len(data or b"")))
            if data is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            return data or b""

        def do_GET(self):
            self.wfile.write(self.do_HEAD())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    for step in close_session, server.server_close, server.shutdown:
        request.addfinalizer(step)
    point_client_at(f"http://127.0.0.1:{server.server_port}", monkeypatch, tmp_path / "cache")
    return files, refused


def point_client_at(address, monkeypatch, cache):
    for name, value in {
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
        "ENDPOINT": address,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "stand-in")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()


def test_a_set_comes_back_from_the_hub_and_says_which_commit_it_is(hub):
    files, _ = hub
    address = NEURONS.push_to_hub("ann/sets", "ja-type1", licence="cc0-1.0", evidence=EFFECTS)
    assert address.endswith(f"/ann/sets/commit/{commit_of('main')}")
    assert sorted(files) == [f"/ann/sets/resolve/main/ja-type1/{name}" for name in ("README.md", "neurons.json")]
    again = tn.NeuronSet.from_hub("ann/sets", "ja-type1")
    assert again == NEURONS
    assert again.provenance["hub"] == {"repository": "ann/sets", "subfolder": "ja-type1", "commit": commit_of("main")}
    assert again.provenance["model"] == {**PROVENANCE["model"], "name": "llama"}  # no folder of this machine
    metadata, text = front(files["/ann/sets/resolve/main/ja-type1/README.md"].decode())
    assert metadata["license"] == "cc0-1.0" and metadata["language"] == "ja" and "base_model" not in metadata
    assert 'tn.NeuronSet.from_hub("ann/sets", "ja-type1")' in text and "/home" not in text


def test_a_branch_holds_another_version(hub):
    files, _ = hub
    NEURONS.push_to_hub("ann/sets")
    NEURONS[:1].push_to_hub("ann/sets", revision="small")
    assert len(tn.NeuronSet.from_hub("ann/sets")) == 2
    assert tn.NeuronSet.from_hub("ann/sets", revision="small").pairs == ((0, 1),)
    assert len(files) == 4


def test_what_the_hub_refuses_is_one_sentence(hub, monkeypatch, tmp_path):
    files, refused = hub
    with pytest.raises(tn.TnkitError, match=r"neurons\.json of ann/none could not be downloaded .*check the names"):
        tn.NeuronSet.from_hub("ann/none")
    NEURONS.push_to_hub("ann/sets")
    path = "/ann/sets/resolve/main/neurons.json"
    files[path] = files[path].replace(b"0.25", b"0.35")
    with pytest.raises(tn.TnkitError, match="was edited or damaged"):
        tn.NeuronSet.from_hub("ann/sets")
    refused.append(True)
    with pytest.raises(tn.TnkitError, match=r"ann/sets could not be written .*whether your token may write"):
        NEURONS.push_to_hub("ann/sets")
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits between its tries
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # taken, and nobody listens
        point_client_at(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch, tmp_path / "other")
        for call in (NEURONS.push_to_hub, tn.NeuronSet.from_hub):
            with pytest.raises(tn.TnkitError, match="ann/sets") as caught:
                call("ann/sets")
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "names", [["sets"], ["../x/y"], ["ann/sets", "../up"], ["ann/sets", "/tmp"], ["a/b", "x/../y"]]
)
def test_names_that_lead_elsewhere_are_refused_before_anything_is_sent(names):
    for call in (NEURONS.push_to_hub, tn.NeuronSet.from_hub):
        with pytest.raises(tn.TnkitError, match="must be"):
            call(*names)


def test_a_card_states_the_origin_and_no_markup_of_others():
    metadata, text = front(NEURONS.card(evidence=EFFECTS))
    assert metadata == {
        "language": "ja",
        "library_name": "tnkit",
        "tags": ["tnkit", "transfer-neurons", "interpretability", "multilingual"],
    }
    for words in (
        "2 Type-1 neurons of Japanese in llama",
        "everyday, train, ja, 256 sentences",
        "f" * 32,
        "last token",
    ):
        assert words in text
    assert "| none | 0.9 |" in text and r"| the set \| \<b> | 0.3333 |" in text and "not stated" in text
    assert "No evidence was given" in tn.NeuronSet(((0, 1),), (2, 4)).card()
    control = NEURONS.uniform(seed=0).card()
    assert "a control" in control and "how: uniform" in control and "everyday" in control
    hostile = tn.NeuronSet(((0, 1),), (2, 4), provenance={"model": {"name": "a\n---\nlicense: mit\n```"}})
    assert "license" not in front(hostile.card())[0]


def test_many_rows_of_evidence_are_cut_and_counted():
    card = NEURONS.card(evidence=pd.DataFrame({"mean": range(100)}))
    assert "The first 30 of 100 rows." in card and "| 30 |" not in card


def test_what_save_writes_is_what_the_schema_describes(tmp_path):
    schema = json.loads(neuron_files.SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    assert schema["properties"]["schema"]["const"] == storage._SCHEMA
    for neurons in (NEURONS, tn.NeuronSet((), (4, 6)), tn.NeuronSet(((1, 2),), (2, 4), layout=((4,), (3,)))):
        written = json.loads(neurons.save(tmp_path / "set.json").read_text())
        Draft202012Validator(schema).validate(written)
        unsealed = {name: value for name, value in written.items() if name != "checksum"}
        sealed = hashlib.sha256(json.dumps(unsealed, sort_keys=True).encode()).hexdigest()
        assert sealed == written["checksum"]  # as the schema's description says


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pairs": [[0, 1]]}, r"expected the file to have \['shape', 'pairs'\]"),
        ({"shape": [4, 6], "pairs": [[0, 1], [1]]}, r"pairs\[1\] is \[1\], expected at least 2 entries"),
        ({"shape": [4, 6], "pairs": [[0, "1"]]}, r"pairs\[0\]\[1\] is '1', expected integer"),
        ({"shape": [4, 6], "pairs": [[0, -1]]}, r"pairs\[0\]\[1\] is -1, expected at least 0"),
        ({"shape": [4, 6], "pairs": [[0, 1]], "scores": [float("nan")]}, "a score is not finite"),
        ({"shape": [4, 6], "pairs": [[0, 1]], "layout": [[]]}, r"layout\[0\] is \[\], expected at least 1"),
    ],
)
def test_a_file_that_breaks_the_schema_is_told_where(tmp_path, content, message):
    path = storage.save_json(tmp_path / "set.json", "neurons", content)
    with pytest.raises(tn.TnkitError, match=rf"set\.json does not hold a neuron set: {message}"):
        tn.NeuronSet.load(path)


def test_files_of_the_lape_code_become_sets(tmp_path):
    """As its identify.py saves them: by language, by layer, a tensor of indices."""
    held = [[torch.tensor([1, 4]), torch.tensor([]).long()], [torch.tensor([]).long(), torch.tensor([3])]]
    torch.save(held, tmp_path / "llama-7b")
    sets = tn.specificity.load_lape(tmp_path / "llama-7b", ["en", "zh"], shape=(2, 6))
    assert [list(neurons) for neurons in sets.values()] == [[(0, 1), (0, 4)], [(1, 3)]]
    assert sets["zh"].provenance["language"] == "zh"
    for languages, shape, message in (
        (["en"], (2, 6), "holds 2 languages, not 1"),
        (["en", "zh"], (3, 6), "a model with 2 layers, not 3"),
        (["en", "zh"], (2, 4), "outside a model of 2 layers of 4 neurons"),
    ):
        with pytest.raises(tn.TnkitError, match=message):
            tn.specificity.load_lape(tmp_path / "llama-7b", languages, shape=shape)


class Runs:
    def __reduce__(self):
        return print, ("it ran",)


@pytest.mark.parametrize(
    "content", [{"a": 1}, [[torch.ones(2)]], [torch.tensor([1])], [[[1, 2]]], Runs(), b"\x80\x04x"]
)
def test_other_files_are_not_taken_for_lapes(tmp_path, content, capsys):
    path = tmp_path / "x"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(tn.TnkitError, match="/x"):
        tn.specificity.load_lape(path, ["en"], shape=(1, 6))
    assert "it ran" not in capsys.readouterr().out
