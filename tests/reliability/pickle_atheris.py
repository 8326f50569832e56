"""Coverage-guided fuzzing of the pickle reader, with atheris (pip install atheris; Linux).

python -m tests.reliability.pickle_atheris -max_total_time=600 CORPUS_FOLDER
"""

import contextlib
import pickle
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tnkit.pickles", "pickle", "pickletools"]):
    import tnkit as tn
    from tnkit import pickles
from tnkit.tests.test_pickles import ARRAYS, PLAIN, hostile

FOLDER = Path(tempfile.mkdtemp())
MARK = FOLDER / "mark"


def one_input(data: bytes) -> None:
    """Whatever the bytes are, they are read or refused, and nothing runs."""
    path = FOLDER / "x.pkl"
    path.write_bytes(data)
    with contextlib.suppress(tn.TnkitError):
        pickles.read(path)
    if MARK.exists():
        raise RuntimeError("a pickle ran code")


if __name__ == "__main__":
    seeds = Path(sys.argv[-1])
    seeds.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate([*hostile(MARK).values(), *PLAIN, ARRAYS]):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            (seeds / f"{number}-{protocol}").write_bytes(pickle.dumps(content, protocol))
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
