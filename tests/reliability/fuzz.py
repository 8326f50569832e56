"""Inputs that hypothesis makes up: files of sentences, words of the command line, algebra of neuron sets."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tnkit as tn
from tnkit.cli import main as cli
from tnkit.text import readers

SHAPE = (3, 4)
ENDINGS = [ending for ending in readers.READERS if ending != ".pkl"]
_COMMANDS = ["centroids", "detect", "ablate", "evaluate", "cache", "doctor"]  # not the demo, which takes minutes
_FLAGS = (
    "--help --version --model_id --lang_for_TN --TN_Type --sentence_path --out --top --position --dtype --clear".split()
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
SETS = st.lists(st.tuples(st.integers(0, SHAPE[0] - 1), st.integers(0, SHAPE[1] - 1)), unique=True, max_size=12).map(
    lambda pairs: tn.NeuronSet(tuple(pairs), SHAPE)
)


def tried(folder: Path, examples: int) -> dict[str, int]:
    """How many examples each property held for."""
    return {name: _runs(test, STRATEGIES[name], folder, examples) for name, test in PROPERTIES.items()}


def _runs(test: Callable[..., None], strategies: tuple, folder: Path, examples: int) -> int:
    runs = 0

    def counted(drawn):
        nonlocal runs
        runs += 1
        test(folder, *drawn)

    how = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=[*HealthCheck])
    how(given(st.tuples(*strategies))(counted))()
    return runs


def any_file(folder: Path, ending: str, data: bytes) -> None:
    """Whatever is in a file of sentences, it is a corpus or one clear sentence."""
    path = folder / f"x{ending}"
    path.write_bytes(data)
    try:
        corpus = tn.load_corpus(path, ["en"] if ending == ".txt" else None)
    except tn.TnkitError as error:
        assert "\n" not in str(error) and ("x" in str(error))
    else:
        assert len(corpus) and all(isinstance(cell, str) and cell for cell in corpus.frame.to_numpy().ravel())


def a_table(folder: Path, ending: str, rows: list[tuple[str, str]]) -> None:
    """What a file that is written as it should be holds, comes back, but for what is dropped and counted."""
    path = folder / f"y{ending}"
    if ending == ".jsonl":
        rows = [(en.translate(_ONE_LINE), ja.translate(_ONE_LINE)) for en, ja in rows]  # save() makes spaces of them
        path.write_text("".join(json.dumps({"en": en, "ja": ja}) + "\n" for en, ja in rows))
    else:
        rows = [(en.translate(_PLAIN), ja.translate(_PLAIN)) for en, ja in rows]
        path.write_text("".join("\t".join(row) + "\n" for row in [("en", "ja"), *rows]), newline="")
    try:
        corpus = tn.load_corpus(path, ["en", "ja"])
    except tn.TnkitError as error:
        assert any(reason in str(error) for reason in ("no sentences", "NUL", "not text", "two ways"))
        return
    assert len(corpus) + sum(corpus.dropped.values()) >= sum(1 for row in rows if any(cell.strip() for cell in row))
    again = tn.load_corpus(corpus.save(folder / "z.tsv"), ["en", "ja"])
    assert sorted(map(str, again.frame.to_numpy().tolist())) == sorted(map(str, corpus.frame.to_numpy().tolist()))


def a_command(folder: Path, words: list[str]) -> None:
    """Whatever is typed, the exit code is one of the documented and no traceback is shown."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = cli.main([word.replace("@", str(folder)) for word in words])
        except SystemExit as stop:
            code = stop.code
    assert code in (0, 1, 2) and "Traceback" not in said.getvalue() and "unexpected" not in said.getvalue()


def algebra(folder: Path, a: tn.NeuronSet, b: tn.NeuronSet, c: tn.NeuronSet) -> None:
    """Neuron sets obey the laws of sets, keep their order, and come back from their files."""
    for one, other in (
        (a & (b | c), (a & b) | (a & c)),
        (a - (b | c), (a - b) & (a - c)),
        (a ^ b, (a | b) - (a & b)),
        (a | b | c, a | (b | c)),
        ((a & b) & c, a & (b & c)),
    ):
        assert set(one) == set(other)
    assert [pair for pair in a if pair in b] == list(a & b)
    total = a.overlap(b).loc["all"]
    assert (total["this"], total["other"], total["both"]) == (len(a), len(b), len(set(a) & set(b)))
    assert tn.NeuronSet.load(a.save(folder / "a.json")) == a
    assert tn.NeuronSet.load(a.save(folder / "a.pkl", format="reference"), shape=SHAPE) == a
    if 2 * len(a) <= SHAPE[0] * SHAPE[1] and len(a):
        control = a.uniform(seed=len(b), layers=range(SHAPE[0]))
        assert len(control) == len(a) and not set(control) & set(a)


_ONE_LINE = dict.fromkeys(map(ord, "\t\r\n"), " ")
_PLAIN = dict.fromkeys((*range(32), 127, 133, 8232, 8233), " ")
_WORDS = st.sampled_from(
    [*_COMMANDS, *_FLAGS, "@/x.tsv", "@/none", "@", "ja", "en", "type1", "0", "-1", "1e9", "", "é"]
)
PROPERTIES = {
    "any bytes in a file of sentences": any_file,
    "tables of any text": a_table,
    "words of the command line": a_command,
    "algebra of neuron sets": algebra,
}
_BYTES = st.binary(max_size=200) | st.lists(
    st.sampled_from([b"en", b"ja", b"\t", b",", b"\n", b'"', b"{", b"}", b":", b"[", b"\0", b"\xff", b"PAR1", b"a"])
).map(b"".join)
STRATEGIES = {
    "any bytes in a file of sentences": (st.sampled_from(ENDINGS), _BYTES),
    "tables of any text": (
        st.sampled_from([".tsv", ".jsonl"]),
        st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6),
    ),
    "words of the command line": (st.lists(_WORDS | TEXT, max_size=6),),
    "algebra of neuron sets": (SETS, SETS, SETS),
}
