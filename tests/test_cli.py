"""The command line as a user meets it: what it prints, what it writes, and what it says when it cannot."""

import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tnkit as tn
from tnkit.captures import shards
from tnkit.cli import main as cli
from tnkit.detection.detect import detect_towards
from tnkit.testing import byte_tokenizer, letters, tiny_module

ENGLISH = ["Good morning.", "See you later, then.", "I like tea.", "It rains.", "Where is it?", "We walk home."]
JAPANESE = ["おはよう。", "またあとでね。", "お茶が好き。", "雨が降る。", "どこ？", "歩いて家に帰る。"]
CENTROIDS = "centroids --model_id model --TN_Type type1 --lang_for_TN ja --sentence_path pairs.tsv --out c.safetensors"
DETECT = (
    "detect --model_id model --TN_Type type1 --top_n 10 --lang_for_TN ja --sentence_path mono.txt "
    "--centroids_path shared.safetensors --out new.json"
)
SHARED = "model_id TN_Type lang_for_TN sentence_path out format position dtype device_map batch_tokens quiet".split()
SHARED += ["cache", "tp_plan", "suffix", "chat"]
ENDS = "tnkit: sentences in ja end: 83% in '。', 100% in punctuation\n"
FLAGS = {
    "demo": ["language", "model_id", "top_n", "out"],
    "centroids": [*SHARED, "hub", "last_layer"],
    "detect": [*SHARED, "top_n", "scoring_type", "score", "centroids_path", "origin_path", "layers", "scores"],
    "ablate": [
        *"model_id neurons lang_for_TN sentence_path measure tokens hub seeds scores_path other figure".split(),
        *("position", "suffix", "chat"),
    ],
    "evaluate": "model_id neurons tokens tasks limit include_path out quiet".split(),
    "neurons": "model_id neurons lang_for_TN beside sentence_path position suffix out figure quiet".split(),
    "patch": "model_id lang_for_TN source_language site neurons layers tokens measure layer suffix out figure".split(),
    "lens": "model_id neurons top_n lens k lang_for_TN source_language seeds out figure quiet".split(),
    "steer": [
        *"model_id neurons lang_for_TN away beside sentence_path prompts strengths selections tokens layer".split(),
        *"draws max_new_tokens candidates out outputs figure quiet".split(),
    ],
    "card": ["neurons", "licence", "evidence", "out"],
    "paper": [
        *"model_id languages hub sentence_path sentences top_n draws sections mkqa mmlu_prox".split(),
        *("quick", "estimate", "out", "quiet"),
    ],
    "page": "model_id sentence_path languages sentences position suffix seeds out quiet".split(),
    "cache": ["clear", "models", "yes"],
    "doctor": ["model"],
}


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


FILES = {
    "pairs.tsv": "".join(f"{a}\t{b}\n" for a, b in zip(["en", *ENGLISH], ["ja", *JAPANESE], strict=True)).encode(),
    "pairs.pkl": pickle.dumps(list(zip(ENGLISH, JAPANESE, strict=True))),
    "mono.txt": "\n".join(JAPANESE).encode(),
    "mono.pkl": pickle.dumps(JAPANESE),
    "long.txt": ("短い。\n" + "なが" * 30).encode(),
    "ragged.tsv": "en\tja\nHi!\tやあ！\nBye!\n".encode(),
    "held-out.tsv": "ja\tsplit\nやあ！\ttest\n".encode(),
    "picture.tsv": b"ja\n\x89PNG\0",
    "letter.docx": b"PK",
    "empty.tsv": b"",
    "damaged.safetensors": b"\x10\0\0\0\0\0\0\0{not a header",
    "malicious.pkl": pickle.dumps(Malicious()),
}


@pytest.fixture(scope="session")
def prepared(saved_models):
    """The folder of tiny models, with Type-1 centroids of two of them beside."""
    pairs = saved_models / "parallel.tsv"
    pairs.write_bytes(FILES["pairs.tsv"])
    for name, out in {"model": "shared.safetensors", "shallow": "shallow.safetensors"}.items():
        flags = f"--model_id {saved_models / name} --sentence_path {pairs} --out {saved_models / out}"
        assert cli.main(shlex.split(f"{CENTROIDS} {flags}")) == 0
    return saved_models


@pytest.fixture(autouse=True)
def folder(prepared, tmp_path, monkeypatch):
    """The working folder of each test: models, centroids, and files of every kind."""
    monkeypatch.chdir(tmp_path)
    for name, data in FILES.items():
        Path(name).write_bytes(data)
    for path in prepared.iterdir():
        Path(path.name).symlink_to(path)


@pytest.fixture
def tnkit(capsys):
    """Run a command line in this process; its exit code, output and error output."""

    def run(line):
        try:
            code = cli.main(shlex.split(line))
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def program(*words):
    """Run a process of its own."""
    return subprocess.run(words, capture_output=True, encoding="utf-8", timeout=100)


def files():
    return {path: path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


def assert_one_line(code, out, err, *said):
    assert (code, out) == (1, "") and re.fullmatch(r"tnkit: [^\n]+\n", err)
    for words in said:
        assert words in err


def library(kind, distance, position="last", last_layer="raw", layers=None):
    """Centroids and the ten best neurons by the library: captures of whole languages, not streams."""
    model = tn.load_model("model")
    options = {"position": position, "progress": False}
    languages = [ENGLISH, JAPANESE] if kind == "type1" else [JAPANESE]
    parts = [tn.capture(model, texts, keep=["post"], last_layer=last_layer, **options) for texts in languages]
    centroids = tn.estimate_centroids(parts)
    layers = layers or (model.early_layers if kind == "type1" else model.late_layers)
    captured = tn.capture(model, JAPANESE, **options)
    return centroids, tn.score_neurons(model, captured, centroids, distance=distance).top(10, layers=layers)


@pytest.mark.parametrize("command", FLAGS)
def test_help_lists_every_flag_and_shows_an_example(tnkit, command):
    code, text, err = tnkit(f"{command} --help")
    assert (code, err) == (0, "")
    for flag in FLAGS[command]:
        assert f"--{flag}" in text and f"--{flag.replace('_', '-')}" in text
    examples = text.partition("\nexample:\n")[2].replace("\\\n", "").strip().splitlines()
    assert {cli._parser().parse_args(shlex.split(one)[1:]).command for one in examples} == {command}


def test_help_of_the_program_imports_nothing_heavy():
    found = program(sys.executable, "-X", "importtime", "-m", "tnkit", "--help")
    assert found.returncode == 0
    assert all(words in found.stdout for words in [*FLAGS, "example: tnkit demo", "exit codes"])
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in found.stderr.splitlines()}
    assert "argparse" in imported and not imported & {
        "torch",
        "transformers",
        "nnsight",
        "numpy",
        "pandas",
        "matplotlib",
    }


@pytest.mark.parametrize("form", ["tnkit", "reference"])
@pytest.mark.parametrize(
    "kind, pairs, mono, scoring, position, last, layers",
    [
        ("type1", "pairs.tsv", "mono.txt", "cos_sim", "last", "raw", None),
        ("type1", "pairs.pkl", "pairs.tsv", "L2_dis", "mean", "raw", (1, 3)),
        ("type2", "mono.txt", "mono.pkl", "L2_dis", "last", "normed", None),
        ("type2", "pairs.tsv", "mono.txt", "cos_sim", "mean", "normed", (1, 4)),
    ],
)
def test_files_hold_what_the_library_computes(tnkit, form, kind, pairs, mono, scoring, position, last, layers):
    made, out = ("c.pkl", "n.pkl") if form == "reference" else ("c.safetensors", "n.json")
    both = f"--model_id model --TN_Type {kind} --lang_for_TN ja --position {position} --format {form}"
    estimate = f"centroids {both} --sentence_path {pairs} --last_layer {last} --out {made}"
    assert tnkit(estimate) == (0, f"{made}\n", "")
    detect = f"detect {both} --sentence_path {mono} --top_n 10 --scoring_type {scoring} --centroids_path {made}"
    detect += f" --layers {layers[0]}:{layers[1]}" if layers else ""
    assert tnkit(f"{detect} --out {out} --scores s.safetensors") == (0, f"{out}\ns.safetensors\n", ENDS)

    distance = {"cos_sim": "cosine", "L2_dis": "euclidean"}[scoring]
    centroids, neurons = library(kind, distance, position, last, layers and range(*layers))
    if form == "reference":
        rows, pairs = pickle.loads(Path(made).read_bytes()), pickle.loads(Path(out).read_bytes())
        assert [(type(row), row.shape) for row in rows] == [(np.ndarray, (32,))] * 4
        assert type(rows) is type(pairs) is list and pairs == list(neurons.pairs)  # a list would not equal a tuple
        np.testing.assert_allclose(np.stack(rows), centroids.values, rtol=1e-5, atol=1e-6)
    else:
        loaded = tn.NeuronSet.load(out)
        assert loaded.pairs == neurons.pairs and loaded.shape == (4, 48)
        assert loaded.scores == pytest.approx(neurons.scores, rel=1e-4)
        assert {"kind": kind, "language": "ja"}.items() <= loaded.provenance["selection"].items()
        torch.testing.assert_close(tn.Centroids.load(made).values, centroids.values, rtol=1e-5, atol=1e-6)
    scores = tn.NeuronScores.load("s.safetensors")
    assert scores.distance == distance and scores.top(10).pairs == neurons.pairs


def test_two_runs_and_centroids_of_either_format_give_the_same_neurons(tnkit):
    tnkit(f"{CENTROIDS} --format reference --out c.pkl")
    for out, flags in {"a.json": "", "b.json": "", "c.json": "--centroids_path c.pkl"}.items():
        assert tnkit(f"{DETECT} {flags} --out {out}") == (0, f"{out}\n", ENDS)
    first, *others = (tn.NeuronSet.load(f"{name}.json") for name in "abc")
    assert all((other.pairs, other.scores) == (first.pairs, first.scores) for other in others)


def test_the_last_word_and_the_suffix_are_read_as_in_the_library(tnkit):
    how = "--position last_word --suffix ! --model_id model --lang_for_TN ja"
    tnkit(f"{CENTROIDS} {how} --out c.safetensors")
    code, _, err = tnkit(f"{DETECT} {how} --centroids_path c.safetensors --out n.json")
    assert (code, err) == (0, "tnkit: sentences in ja end: 100% in '!', 100% in punctuation\n")
    model, reading = tn.load_model("model"), {"position": "last_word", "suffix": "!", "progress": False}
    shared = tn.estimate_centroids([tn.capture(model, texts, **reading) for texts in (ENGLISH, JAPANESE)])
    torch.testing.assert_close(tn.Centroids.load("c.safetensors").values, shared.values, rtol=1e-5, atol=1e-6)
    found = detect_towards(model, JAPANESE, shared, language="ja", top=10, **reading)
    assert tn.NeuronSet.load("n.json").pairs == found.neurons.pairs
    assert tnkit(f"{DETECT} {how} --chat")[2] == (
        "tnkit: the tokenizer has no chat template; give template='...{sentence}...', or load a model tuned for chat\n"
    )


def test_centred_scores_take_the_hub_and_the_mean_over_all_languages(tnkit):
    model = "--model_id model --sentence_path pairs.tsv"
    tnkit(f"centroids {model} --TN_Type type2 --lang_for_TN en --out en.safetensors")
    tnkit(f"centroids {model} --TN_Type type1 --lang_for_TN ja --out all.safetensors")
    line = f"{DETECT} --centroids_path en.safetensors --out n.json"
    for flags in ("--score centred", "--origin_path all.safetensors"):
        assert tnkit(f"{line} {flags}")[2] == (
            "tnkit: centred scores need both --score centred and --origin_path; give both or neither\n"
        )
    assert tnkit(f"{line} --score centred --origin_path all.safetensors") == (0, "n.json\n", ENDS)
    texts = {"en": ENGLISH, "ja": JAPANESE}
    found = tn.detect(tn.load_model("model"), texts, language="ja", top=10, score="centred", progress=False)
    loaded = tn.NeuronSet.load("n.json")
    assert loaded.pairs == found.neurons.pairs and loaded.scores == pytest.approx(found.neurons.scores, rel=1e-4)
    assert loaded.provenance["selection"]["score"] == "centred"


def test_normed_centroids_are_those_of_transformers(tnkit):
    """Mean over sentences of `output_hidden_states` at the last token, as the published code takes it."""
    tnkit(f"{CENTROIDS} --TN_Type type2 --sentence_path mono.txt --last_layer normed --format reference --out c.pkl")
    tokens = [byte_tokenizer()(text, return_tensors="pt") for text in JAPANESE]
    with torch.no_grad():
        states = [tiny_module("llama")(**one, output_hidden_states=True).hidden_states[1:] for one in tokens]
    expected = torch.stack([torch.stack(one)[:, 0, -1] for one in states]).mean(dim=0)
    np.testing.assert_allclose(np.stack(pickle.loads(Path("c.pkl").read_bytes())), expected, rtol=1e-4, atol=1e-5)


def test_the_installed_program_with_hyphens_and_default_names():
    line = "centroids --model-id model --TN-Type type1 --lang-for-TN ja --sentence-path pairs.tsv --last-layer raw"
    made = program(Path(sys.executable).with_name("tnkit"), *line.split())
    assert (made.returncode, made.stdout, made.stderr) == (0, "ja-type1-centroids.safetensors\n", "")
    line = "detect --model-id model --TN-Type type1 --top-n 10 --lang-for-TN ja --scoring-type cos_sim "
    line += "--centroids-path ja-type1-centroids.safetensors --sentence-path mono.txt"
    found = program(sys.executable, "-m", "tnkit", *line.split())
    assert (found.returncode, found.stdout, found.stderr) == (0, "ja-type1-neurons.json\n", ENDS)
    assert tn.NeuronSet.load("ja-type1-neurons.json").pairs == library("type1", "cosine")[1].pairs


def test_the_cache_is_used_shown_and_cleared(tnkit, monkeypatch):
    monkeypatch.setenv("TNKIT_CACHE", str(Path("cache").absolute()))
    assert tnkit("cache") == (0, f"{'0 B':>9}  in all, in {Path('cache').absolute()}\n", "")
    both = "--model_id model --TN_Type type2 --lang_for_TN ja --sentence_path mono.txt --cache"
    for out in ("a.json", "b.json"):
        assert tnkit(f"centroids {both} --out c.safetensors")[0] == 0
        assert tnkit(f"detect {both} --top_n 10 --centroids_path c.safetensors --out {out}")[0] == 0
        monkeypatch.setattr("tnkit.captures.passes.trace_blocks", lambda *_, **__: pytest.fail("a pass was run"))
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()
    code, out, err = tnkit("cache")
    assert (code, err) == (0, "")
    assert [line.split("  ")[-1] for line in out.splitlines()] == [
        "sums of 6 sentences (mono.txt train ja), model: activations, mid, scale",
        "sums of 6 sentences (mono.txt train ja), model: post",
        f"in all, in {Path('cache').absolute()}",
    ]
    assert tnkit("cache --clear") == (
        1,
        out,
        "tnkit: --clear asks before it removes these; add --yes to remove them without a question\n",
    )
    for answer, removed in (("", False), ("n", False), ("y", True)):
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        assert tnkit("cache --clear")[1].splitlines()[-1].startswith("freed" if removed else "nothing was removed")
    assert tnkit("cache --clear --yes")[0] == 0
    assert tnkit("cache")[1].startswith("      0 B  in all")


def test_what_an_entry_says_cannot_steer_the_terminal(tnkit, monkeypatch):
    monkeypatch.setenv("TNKIT_CACHE", str(Path("cache").absolute()))
    shards.Shards({"job": 1}, "capture\x1b]0;title\x07\x1b[2J").write("00000", {"a": torch.ones(1)})
    code, out, _ = tnkit("cache")
    assert code == 0 and "\x1b" not in out and r"capture\x1b]0;title\x07\x1b[2J" in out


@pytest.mark.parametrize(
    "line, said",
    [
        (f"{DETECT} --model_id nobody/nothing", ["unknown model 'nobody/nothing'", "gemma-3-270m"]),
        (f"{DETECT} --model_id other", ["made with", "model", "other", "make them"]),
        (f"{DETECT} --model_id shallow", ["4 layers", "shallow has 3", "estimate them"]),
        (f"{DETECT} --centroids_path shallow.safetensors", ["3 layers", "model has 4", "estimate them"]),
        (f"{DETECT} --centroids_path missing.safetensors", ["no file missing.safetensors"]),
        (f"{DETECT} --centroids_path damaged.safetensors", ["damaged.safetensors", "damaged"]),
        (f"{DETECT} --centroids_path malicious.pkl", ["malicious.pkl", "mkdir"]),
        (f"{DETECT} --sentence_path missing.tsv", ["no file missing.tsv"]),
        (f"{DETECT} --sentence_path empty.tsv", ["empty.tsv is empty"]),
        (f"{DETECT} --sentence_path letter.docx", ["letter.docx", ".docx", ".tsv .csv"]),
        (f"{DETECT} --sentence_path ragged.tsv", ["ragged.tsv, line 3", "1 columns, expected 2"]),
        (f"{DETECT} --sentence_path picture.tsv", ["picture.tsv, line 2", "UTF-8"]),
        (f"{DETECT} --sentence_path held-out.tsv", ["held-out.tsv", "'train'"]),
        (f"{DETECT} --sentence_path malicious.pkl", ["malicious.pkl", "mkdir", "TSV"]),
        (f"{DETECT} --sentence_path pairs.pkl", ["pairs.pkl", "tuples of 2 sentences"]),
        (f"{DETECT} --sentence_path pairs.tsv --lang_for_TN fr", ["pairs.tsv", "no column for fr", "en, ja"]),
        (f"{DETECT} --sentence_path long.txt", ["ながなが", "181 tokens", "128", "shorten"]),
        (f"{DETECT} --top_n 97", ["top 97", "2 layers of 48 neurons hold 96", "ask for"]),
        (f"{DETECT} --layers 3:40", ["--layers 3:40", "last layer of model, 3", "within 0:4"]),
        (f"{DETECT} --out mono.txt/new.json", ["mono.txt/new.json", "not a folder", "--out"]),
        (f"{DETECT} --out new.txt", ["--out new.txt ends in .txt", ".json"]),
        (f"{DETECT} --format reference --out new.json", ["--out new.json ends in .json", ".pkl"]),
        (f"{DETECT} --scores mono.txt/new.safetensors", ["mono.txt/new.safetensors", "not a folder", "--scores"]),
        (f"{DETECT} --scores shared.safetensors", ["shared.safetensors", "this command also reads it", "--scores"]),
        (f"{CENTROIDS} --sentence_path mono.txt", ["mono.txt", "single sentences", "en, ja", "TSV"]),
        (f"{CENTROIDS} --sentence_path mono.pkl", ["mono.pkl", "single sentences", "en, ja", "TSV"]),
        (f"{CENTROIDS} --hub fr", ["pairs.tsv", "no column for fr", "en, ja"]),
        (f"{CENTROIDS} --lang_for_TN en", ["--lang_for_TN en is also the hub", "--hub"]),
        ("demo --language xx --model_id model", ["'xx'", "ja"]),
    ],
)
def test_one_line_says_what_is_wrong_and_nothing_is_written(tnkit, line, said):
    before = files()
    assert_one_line(*tnkit(line), *said)
    assert files() == before


def test_warnings_of_other_libraries_do_not_drown_the_line():
    found = program(sys.executable, "-m", "tnkit", *shlex.split(f"{DETECT} --sentence_path long.txt"))
    assert_one_line(found.returncode, found.stdout, found.stderr, "181 tokens")


@pytest.mark.parametrize(
    "line, said",
    [
        ("", "COMMAND"),
        ("detect", "--model_id"),
        ("describe", "'describe'"),
        (f"{DETECT} --unknown", "--unknown"),
        (f"{DETECT} --layers 5:2", "5:2 holds no layers"),
        (f"{DETECT} --top_n 0", "'0' is not a positive whole number"),
        (f"{DETECT} --top_n many", "'many' is not a positive whole number"),
        (f"{DETECT} --dtype float33", "'bfloat16'"),
        (f"{CENTROIDS} --hub ,", "expected one or more names"),
    ],
)
def test_wrong_usage(tnkit, line, said):
    before = files()
    code, out, err = tnkit(line)
    assert (code, out) == (2, "") and err.startswith("usage: tnkit") and said in err
    assert files() == before


def test_steer_writes_what_the_library_returns(tnkit, monkeypatch):
    monkeypatch.setattr("tnkit.measures.steering.study.encoded", letters)
    found = tn.NeuronSet(((0, 5), (1, 7)), (4, 48))
    found.save("set.json")
    Path("prompts.txt").write_text("He said:\nShe wrote:\n")
    asked = "--prompts prompts.txt --strengths 1,2 --selections uniform,DiffMean --draws 1 --max_new_tokens 3"
    asked += " --candidates en,ja --tokens prompt --outputs o.json --figure s.png --quiet"
    code, out, err = tnkit(
        f"steer --model_id model --neurons set.json --lang_for_TN ja --sentence_path pairs.tsv {asked}"
    )
    assert (code, err) == (0, "") and out.splitlines()[-3:] == ["ja-steering.csv", "o.json", "s.png"]
    how = {"strengths": [1, 2], "selections": ["uniform", "DiffMean"], "draws": 1, "max_new_tokens": 3}
    how |= {"candidates": ["en", "ja"], "encode": letters, "tokens": "prompt", "progress": False}
    texts = {"en": ENGLISH, "ja": JAPANESE}
    expected = tn.steer(tn.load_model("model"), ["He said:", "She wrote:"], {"ja": found}, texts, **how)
    assert Path("ja-steering.csv").read_text() == expected.to_frame().to_csv()
    assert list(tn.Steering.load("o.json").outputs["text"]) == list(expected.outputs["text"])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("two\nlines")], ids=["Ctrl-C", "a bug"])
@pytest.mark.parametrize("place", ["tnkit.captures.passes.trace_blocks", "os.fsync"])
@pytest.mark.parametrize("line", [CENTROIDS, f"{DETECT} --scores s.safetensors"], ids=["centroids", "detect"])
def test_a_run_cut_short_leaves_nothing(tnkit, monkeypatch, line, place, error):
    def stop(*_, **__):
        raise error

    before = files()
    monkeypatch.setattr(place, stop)
    code, out, err = tnkit(line)
    if isinstance(error, KeyboardInterrupt):
        assert (code, out) == (130, "") and re.fullmatch("tnkit: interrupted[^\n]*\n", err)
    else:
        assert_one_line(code, out, err, "unexpected RuntimeError: two lines", "TNKIT_DEBUG=1")
        monkeypatch.setenv("TNKIT_DEBUG", "1")
        with pytest.raises(RuntimeError, match="two"):
            tnkit(line)
    assert files() == before


def test_a_closed_pipe_is_no_traceback():
    words = [sys.executable, "-m", "tnkit", *shlex.split(DETECT), "--quiet"]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=buffered) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1 and len(tn.NeuronSet.load("new.json")) == 10


def test_a_checkpoint_that_lacks_weights_is_one_line(tnkit):
    from safetensors.torch import load_file, save_file

    shutil.copytree("model", "partial")
    tensors = load_file("partial/model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, "partial/model.safetensors", metadata={"format": "pt"})
    said = tnkit(f"{DETECT} --model_id partial")
    assert_one_line(*said, "partial lacks 1 weight(s) of its model (model.layers.1.mlp.up_proj.weight)")
