"""Sentences from the Hugging Face Hub: its client talks to a server on this machine that answers as the Hub does."""

import hashlib
import http.server
import io
import socket
import threading
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import close_session, constants

import tnkit as tn

CONVERTED = "refs/convert/parquet"


def rows_of(corpus):
    return [tuple(row) for row in corpus.frame[list(corpus.languages)].to_numpy()]


@pytest.fixture
def hub(request, monkeypatch, tmp_path):
    """A server on this machine that the real client of the Hub takes for the Hub."""
    files, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            if "/resolve/" in self.path:
                asked.append((self.command, self.path))
            data = files.get(self.path)
            self.send_response(404 if data is None else 200)
            if data is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            else:
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            revision = self.path.partition("/resolve/")[2].partition("/")[0]
            self.send_header("X-Repo-Commit", hashlib.sha1(revision.encode()).hexdigest())
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            return data or b""

        def do_GET(self):
            self.wfile.write(self.do_HEAD())

        def log_message(self, *_):
            pass

    def put(repository, revision, file, table):
        data = io.BytesIO()
        pq.write_table(table, data)
        files[f"/datasets/{repository}/resolve/{quote(revision, safe='')}/{file}"] = data.getvalue()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    for step in close_session, server.server_close, server.shutdown:
        request.addfinalizer(step)
    point_client_at(f"http://127.0.0.1:{server.server_port}", monkeypatch, tmp_path)
    return put, asked


def point_client_at(address, monkeypatch, cache):
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()


def put_tatoeba(put):
    for language, pairs in {
        "ja": [("Hi.", "やあ。"), ("Hi.", "どうも。"), ("Yes.", "はい。"), ("No.", "いいえ。")],
        "ko": [("No.", "아니요."), ("Hi.", "안녕."), ("Why?", "왜?")],
    }.items():
        table = pa.table(dict(zip(["english", "non_english"], zip(*pairs, strict=True), strict=True)))
        put("sentence-transformers/parallel-sentences-tatoeba", CONVERTED, f"en-{language}/train/0000.parquet", table)


def test_tatoeba_gives_what_every_language_has_with_its_first_translation(hub, monkeypatch):
    put, asked = hub
    put_tatoeba(put)
    expected = {("Hi.", "やあ。", "안녕."), ("No.", "いいえ。", "아니요.")}
    corpus = tn.load_corpus("tatoeba-hub", ["en", "ja", "ko"])
    assert set(rows_of(corpus)) == expected
    assert (corpus.name, corpus.dropped) == ("tatoeba-hub", {})
    place = "/datasets/sentence-transformers/parallel-sentences-tatoeba/resolve/refs%2Fconvert%2Fparquet"
    assert [path for command, path in asked if command == "GET"] == [
        f"{place}/en-{language}/train/0000.parquet" for language in ("ja", "ko")
    ]
    assert set(rows_of(tn.load_corpus("tatoeba-hub", ["ko", "ja"]))) == {(ko, ja) for _, ja, ko in expected}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert set(rows_of(tn.load_corpus("tatoeba-hub", "ja"))) == {("やあ。",), ("はい。",), ("いいえ。",)}
    assert [command for command, _ in asked].count("GET") == 2
    for languages in None, ["en"]:
        with pytest.raises(tn.TnkitError, match=r'name the languages: load_corpus\("tatoeba-hub", \["en", "ja"\]\)'):
            tn.load_corpus("tatoeba-hub", languages)


def test_mkqa_gives_the_questions_that_every_language_has(hub):
    put, asked = hub
    queries = [
        {"en": "who?", "ja": "誰?", "zh_cn": "谁?"},
        {"en": "when?", "ja": None, "zh_cn": "何时?"},
        {"en": "where?", "ja": "どこ?", "zh_cn": "哪里?"},
    ]
    put("apple/mkqa", CONVERTED, "mkqa/train/0000.parquet", pa.table({"example_id": [1, 2, 3], "queries": queries}))
    corpus = tn.load_corpus("mkqa", ["ja", "en"])
    assert set(rows_of(corpus)) == {("誰?", "who?"), ("どこ?", "where?")}
    assert corpus.dropped == {"empty": 1}
    assert tn.load_corpus("mkqa").languages == ("en", "ja", "zh_cn")
    with pytest.raises(tn.TnkitError, match=r"mkqa has no column for ko; it has en, ja, zh_cn"):
        tn.load_corpus("mkqa", ["en", "ko"])
    assert {path for _, path in asked} == {
        "/datasets/apple/mkqa/resolve/refs%2Fconvert%2Fparquet/mkqa/train/0000.parquet"
    }


def test_any_file_of_the_hub_at_any_revision(hub):
    put, _ = hub
    for revision, text in {"main": "a", "v1": "b", CONVERTED: "c"}.items():
        put("someone/pairs", revision, "data/x.parquet", pa.table({"en": [text], "ja": [text]}))
    for place, text in {"pairs": "a", "pairs@v1": "b", f"pairs@{CONVERTED}": "c"}.items():
        corpus = tn.load_corpus(f"hf://datasets/someone/{place}/data/x.parquet", ["en", "ja"])
        assert list(rows_of(corpus)) == [(text, text)]
    for source in "hf://someone/pairs/x.tsv", "hf://datasets/someone", "hf://models/a/b/x.tsv":
        with pytest.raises(tn.TnkitError, match=rf"{source} is not of the form hf://datasets/OWNER/NAME/FILE"):
            tn.load_corpus(source)


def test_a_hub_without_the_file_or_without_connection(hub, monkeypatch, tmp_path):
    put, _ = hub
    put_tatoeba(put)
    without = r"{} of the data set {} could not be downloaded from the Hugging Face Hub \(.+\); check"
    tatoeba = "en-xx/train/0000.parquet", "sentence-transformers/parallel-sentences-tatoeba"
    mkqa = "mkqa/train/0000.parquet", "apple/mkqa"
    with pytest.raises(tn.TnkitError, match=without.format(*tatoeba)):
        tn.load_corpus("tatoeba-hub", ["en", "xx"])
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits between its tries
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # taken, and nobody listens
        point_client_at(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch, tmp_path)
        for offline in False, True:
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
            with pytest.raises(tn.TnkitError, match=without.format(*mkqa)) as caught:
                tn.load_corpus("mkqa", ["en", "ja"])
            assert "\n" not in str(caught.value)
