"""Careless and hostile command lines, in unusual surroundings: one sentence, and nothing half-written."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tnkit as tn
from tests.test_cli import CENTROIDS, DETECT, assert_one_line, files, folder, prepared, tnkit  # noqa: F401 - fixtures
from tnkit import storage
from tnkit.cli import main as cli

ABLATE = "ablate --model_id model --neurons set.json --lang_for_TN ja --sentence_path pairs.tsv --seeds 2"
STEER = "steer --model_id model --neurons set.json --lang_for_TN ja --sentence_path pairs.tsv"
UNPRIVILEGED = "setpriv --inh-caps=-all --bounding-set=-all " if os.geteuid() == 0 else ""
PATCH = "patch --model_id model --lang_for_TN ja --source_language en --sentence_path pairs.tsv"
LENS = "lens --model_id model --neurons set.json"
PAPER = "paper --model_id model --languages ja --sentence_path pairs.tsv --quick"
CONTROLS = "a\x1b[31m\n\u202e"
HOSTILE = {
    "centroids_folder": (f"{DETECT} --centroids_path folder", "folder is a folder, expected a file"),
    "empty_centroids": (f"{DETECT} --centroids_path empty.tsv", "empty.tsv is empty"),
    "neurons_for_centroids": (f"{DETECT} --centroids_path set.json", "not a readable safetensors file"),
    "centroids_for_sentences": (f"{DETECT} --sentence_path shared.safetensors", "ends in .safetensors"),
    "sentences_folder": (f"{DETECT} --sentence_path folder", "folder is a folder in no layout"),
    "model_file": (f"{DETECT} --model_id mono.txt", "mono.txt is a file; name a GGUF file, or the folder"),
    "model_of_nothing": (f"{DETECT} --model_id folder", "folder could not be loaded"),
    "unknown_language": (f"{DETECT} --lang_for_TN zz", "these centroids are of en and ja; type1 of zz"),
    "language_path": (f"{DETECT} --lang_for_TN ../../x --sentence_path pairs.tsv", "no column for ../../x"),
    "language_twice_in_file": (f"{DETECT} --sentence_path twice.tsv", "a column is named twice"),
    "hub_twice": (f"{CENTROIDS} --hub en,EN", "requested twice"),
    "language_is_hub": (f"{CENTROIDS} --hub en,ja", "--lang_for_TN ja is also the hub"),
    "out_folder": (f"{DETECT} --out folder.json", "folder.json: it is a folder"),
    "out_below_file": (f"{DETECT} --out /dev/null/n.json", "/dev/null is not a folder"),
    "out_in_model": (f"{DETECT} --out model/config.json", "this command also reads it"),
    "out_is_input": (f"{ABLATE} --sentence_path pairs.csv --out pairs.csv", "this command also reads it"),
    "out_is_control": (f"{ABLATE} --other other.csv --out other.csv", "this command also reads it"),
    "out_in_tasks": (
        "evaluate --model_id model --neurons set.json --tasks t --include_path . --out pairs.csv",
        "this command also reads it",
    ),
    "patch_out_is_input": (f"{PATCH} --sentence_path pairs.csv --out pairs.csv", "this command also reads it"),
    "patch_neurons_of_states": (f"{PATCH} --neurons set.json", "neurons= is for activations and contributions"),
    "patch_source_is_target": (f"{PATCH} --source_language ja", "is also --lang_for_TN"),
    "patch_without_column": (f"{PATCH} --source_language zz", "no column for zz"),
    "patch_far_layers": (f"{PATCH} --layers 0:9", "layer 4 is not in"),
    "patch_without_layer": (f"{PATCH} --measure margin", "name the layer to measure"),
    "patch_layer_of_token": (f"{PATCH} --layer 2", "has no layer; leave layer out"),
    "patch_far_layer": (f"{PATCH} --measure margin --layer 999999", "layer 999999 is not in"),
    "patch_lengths": (f"{PATCH} --tokens prompt", "positions do not match"),
    "patch_figure": (f"{PATCH} --figure f.svg", "name a file that ends in .png"),
    "lens_of_nothing": ("lens --model_id model", "nothing to read: give --neurons"),
    "lens_figure": (f"{LENS} --figure f.png", "are of the latent language"),
    "lens_out": (f"{LENS} --out set.json", "ends in .json"),
    "lens_unknown_language": (f"{LENS} --lang_for_TN zz", "there are no concepts in 'zz'"),
    "lens_unknown_source": (f"{LENS} --lang_for_TN ja --source_language zz", "there are no concepts in 'zz'"),
    "lens_too_many_items": (f"{LENS} --k 999999", "more than the"),
    "steer_towards_itself": (f"{STEER} --away ja", "--lang_for_TN ja is also --away"),
    "steer_missing_language": (f"{STEER} --beside zz", "no column for zz"),
    "steer_missing_prompts": (f"{STEER} --prompts nothing.txt", "there is no file nothing.txt"),
    "steer_prompts_of_another": (f"{STEER} --prompts pairs.tsv --away it", "no column for it"),
    "steer_empty_prompts": (f"{STEER} --prompts empty.tsv", "empty.tsv is empty"),
    "steer_out_is_prompts": (f"{STEER} --prompts pairs.csv --out pairs.csv", "this command also reads it"),
    "steer_outputs_name": (f"{STEER} --outputs set.txt", "name a file that ends in .json"),
    "steer_outputs_is_input": (f"{STEER} --outputs set.json", "this command also reads it"),
    "card_of_nothing": ("card --neurons none.json", "there is no file none.json"),
    "card_of_pickle": ("card --neurons mono.pkl", "does not say what model it is of"),
    "card_of_other": ("card --neurons shared.safetensors", "shared.safetensors is not a readable JSON file"),
    "card_in_set": ("card --neurons set.json --out set.json", "ends in .json; name a file that ends in .md"),
    "card_with_folder": ("card --neurons set.json --evidence folder", "folder is a folder, expected a file"),
    "card_with_no_table": ("card --neurons set.json --evidence malicious.pkl", "malicious.pkl is not a readable table"),
    "page_ending": ("page --model_id model --sentence_path pairs.tsv --out page.txt", "ends in .txt; name a file"),
    "page_below_file": ("page --model_id model --sentence_path pairs.tsv --out mono.txt/x.html", "is not a folder"),
    "page_languages": ("page --model_id model --sentence_path pairs.tsv --languages en,zz", "no column for zz"),
    "paper_language": (f"{PAPER} --languages ja zz", "no column for zz"),
    "paper_hub": (f"{PAPER} --hub ja", "--hub ja is also among --languages"),
    "paper_section": (f"{PAPER} --sections spaces,nothing", "section='nothing' must be one of spaces"),
    "paper_out": (f"{PAPER} --out mono.txt", "cannot write mono.txt"),
    "paper_below_file": (f"{PAPER} --out mono.txt/deep", "cannot write mono.txt"),
    "paper_sentences": (f"{PAPER} --sentence_path folder", "folder is a folder in no layout"),
    "paper_without_test": (f"{PAPER} --sentence_path marked.tsv", "in its split 'test'"),
    "paper_one_sentence": (f"{PAPER} --sentences 1", "sentences=1 must be at least 2"),
    "long_out": (f"{DETECT} --out {'a' * 300}.json", "File name too long"),
    "long_input": (f"{DETECT} --sentence_path {'a' * 300}.txt", "File name too long"),
    "huge_top": (f"{DETECT} --top_n 999999999999999999", "2 layers of 48 neurons hold 96"),
    "far_layers": (f"{DETECT} --layers 0:999999999", "reaches past the last layer"),
    "no_device": (f"{DETECT} --device_map cuda:99", "model"),
    "unknown_device": (f"{DETECT} --device_map nonsense", "model"),
    "control_file_names": (["--sentence_path", f"{CONTROLS}.tsv"], "there is no file a [31m .tsv"),
    "surrogate_path": (["--sentence_path", "\udcff.tsv"], "there is no file"),
    "surrogate_language": (["--lang_for_TN", "\udcff"], "not valid Unicode"),
    "surrogate_model": (["--model_id", "\udcff"], "unknown model"),
}
USAGE = {
    "negative_top": (["--top_n", "-5"], "'-5' is not a positive whole number"),
    "nan_top": (["--top_n", "nan"], "'nan' is not a positive whole number"),
    "top_beyond_int": (["--top_n", "9" * 20], "is not a positive whole number"),
    "wide_digits": (["--top_n", "１０"], "is not a positive whole number"),
    "empty_layers": (["--layers", "2:2"], "2:2 holds no layers"),
    "negative_layers": (["--layers=-1:2"], "is not START:STOP"),
    "no_value": (["--top_n"], "expected one argument"),
    "empty_path": (["--sentence_path", ""], "expected a value"),
    "empty_language": (["--lang_for_TN", " "], "expected a value"),
    "empty_model": (["--model_id", ""], "expected a value"),
    "empty_out": (["--out", ""], "expected a value"),
    "nul": (["--sentence_path", "a\0.txt"], "holds a NUL character"),
    "no_bytes": (["--centroids_path", "\ud800"], "is not valid Unicode"),
    "surrogate_suffix": (["--suffix", "\udcff"], "not valid Unicode"),
    "unknown_surrogate": (["--\udcff"], "unrecognized arguments"),
    "ambiguous": (["--s", "x"], "ambiguous option: --s could match"),
    "strengths_of_words": (["--strengths", "1,x"], "'1,x' is not a list of numbers"),
    "endless_strength": (["--strengths", "1,inf"], "'1,inf' is not a list of numbers"),
    "value_for_switch": (["--quiet=1"], "ignored explicit argument"),
}


@pytest.fixture(autouse=True)
def more(folder):  # noqa: F811, ARG001 - the fixture, which comes first
    """More files: a neuron set, folders where files are expected, a corpus of its own kinds."""
    Path("folder").mkdir()
    Path("folder.json").mkdir()
    Path("twice.tsv").write_text("en\tja\tja\na\tb\tc\n")
    Path("marked.tsv").write_text("en\tja\tsplit\na\tb\ttrain\nc\td\ttrain\n")
    shutil.copy("pairs.tsv", "pairs.csv")
    tn.NeuronSet(((0, 1), (1, 2)), (4, 48)).save("set.json")
    shutil.copy("set.json", "other.csv")


def words_of(line):
    if isinstance(line, str):
        return shlex.split(line)
    return [*shlex.split(STEER if "--strengths" in line else DETECT), *line]


@pytest.mark.parametrize("name", HOSTILE)
def test_one_sentence_and_nothing_written(name, capsys):
    line, said = HOSTILE[name]
    before = files()
    assert_one_line(cli.main(words_of(line)), *capsys.readouterr(), said)
    assert files() == before


@pytest.mark.parametrize("name", USAGE)
def test_wrong_usage(name, capsys):
    line, said = USAGE[name]
    before = files()
    with pytest.raises(SystemExit) as stop:
        cli.main(words_of(line))
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "") and err.startswith("usage: tnkit") and said in err.splitlines()[-1]
    assert files() == before


@pytest.mark.parametrize(
    ("flags", "out", "count"),
    [
        ("--top 5", "new.json", 5),
        ("--top_n 5 --top-n 6", "new.json", 6),
        ("--top 4", "new.json", 4),
        ("--top-n=3 --lang-for ja", "new.json", 3),
        ("--lang_for_TN ja --lang-for-TN ja", "new.json", 10),
        ("--out missing/deep/n.json", "missing/deep/n.json", 10),
        (f"--out {'a' * 250}.json", f"{'a' * 250}.json", 10),
        (f"--out {'あ' * 80}.json", f"{'あ' * 80}.json", 10),
        ("--batch_tokens 999999999999999999", "new.json", 10),
        ("--batch_tokens 1", "new.json", 10),
    ],
)
def test_unusual_lines_that_are_right(tnkit, flags, out, count):  # noqa: F811 - the fixture
    assert tnkit(f"{DETECT} --quiet {flags}") == (0, f"{out}\n", "")
    assert len(tn.NeuronSet.load(out)) == count


@pytest.mark.parametrize("flags", [[], ["--clear", "--yes"]])
@pytest.mark.parametrize(
    ("cache", "said"), [("mono.txt", "mono.txt is a file"), ("~no-such-user/x", "the home folder of an unknown user")]
)
def test_a_cache_that_is_no_folder(cache, said, flags, monkeypatch, capsys):
    monkeypatch.setenv("TNKIT_CACHE", cache)
    assert_one_line(cli.main(["cache", *flags]), *capsys.readouterr(), said)


def test_a_capture_goes_on_where_the_cache_is_a_file(tnkit, monkeypatch):  # noqa: F811 - the fixture
    monkeypatch.setenv("TNKIT_CACHE", "mono.txt")
    code, out, err = tnkit(f"{DETECT} --quiet --cache")
    assert (code, out) == (0, "new.json\n")
    assert len(err.splitlines()) <= 1, err


def test_the_end_of_the_input_removes_nothing(tnkit, monkeypatch):  # noqa: F811 - the fixture
    monkeypatch.setenv("TNKIT_CACHE", str(Path("cache").absolute()))
    assert tnkit(f"{DETECT} --quiet --cache")[0] == 0

    def end(_):
        raise EOFError

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", end)
    code, out, err = tnkit("cache --clear")
    assert (code, err) == (0, "") and out.endswith("nothing was removed\n")
    assert list(storage.cache_folder().rglob("*.safetensors"))


T = f"{shlex.quote(sys.executable)} -m tnkit"
ASCII = "LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0"
SHELL = {  # the line, its exit code, what it prints last, and words of the only line on standard error
    "no reading right": (f"chmod 0 mono.txt; {UNPRIVILEGED}{T} {DETECT}", 1, "", "Permission denied"),
    "folder without writing right": (
        f"chmod 500 folder; {UNPRIVILEGED}{T} {DETECT} --out folder/n.json", 1, "", "you may not write to",
    ),
    "read-only working folder": (
        f"cd folder; chmod 500 .; {UNPRIVILEGED}{T} centroids --model_id ../model --TN_Type type2 --lang_for_TN ja "
        "--sentence_path ../mono.txt", 1, "", "you may not write to",
    ),
    "removed working folder": (f"cd folder; rmdir ../folder; {T} {DETECT}", 1, "", "the working folder was removed"),
    "broken pipe": (f"{T} {DETECT} --quiet | true; exit ${{PIPESTATUS[0]}}", 1, "", None),
    "full output": (f"{T} {DETECT} --quiet >/dev/full", 1, "", "No space left on device"),
    "closed output": (f"{T} {DETECT} --quiet >&-", 0, "", None),
    "closed input": (f"{T} {DETECT} --quiet <&-", 0, "new.json\n", None),
    "closed input, asked": (f"{T} {DETECT} --quiet --cache >&- && {T} cache --clear <&- >&-", 1, "", "--yes"),
    "all closed": (f"{T} {DETECT} <&- >&- 2>&-", 0, "", None),
    "ASCII": (f"{ASCII} {T} {DETECT} --quiet --out ねこ.json", 0, "json\n", None),
    "ASCII, a missing file": (f"{ASCII} {T} {DETECT} --sentence_path ねこ.txt", 1, "", "check its name and folder"),
    "no Unicode": (f"{T} {DETECT} --quiet --out $'\\xff.json'", 0, ".json\n", None),
}  # fmt: skip


@pytest.mark.parametrize("name", SHELL)
def test_shells_and_machines(name, monkeypatch):
    line, code, printed, said = SHELL[name]
    if UNPRIVILEGED and UNPRIVILEGED in line and not shutil.which("setpriv"):
        pytest.skip("root reads and writes everything")
    monkeypatch.setenv("TNKIT_CACHE", str(Path("cache").absolute()))
    monkeypatch.setenv("PYTHONPATH", str(Path(tn.__file__).parents[1]))
    before = files().keys()
    run = subprocess.run(["bash", "-c", line], capture_output=True, timeout=120)
    err = run.stderr.decode(errors="replace")
    assert "Traceback" not in err and "unexpected" not in err and "Exception ignored" not in err, err
    assert run.returncode == code, err
    assert run.stdout.decode(errors="replace").endswith(printed)
    assert err == "" if said is None else err.startswith("tnkit: ") and err.count("\n") == 1 and said in err
    left = {path for path in files().keys() - before if path.name.startswith(".")}
    assert not left
