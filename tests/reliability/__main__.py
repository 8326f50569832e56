"""Try what could lose data, run foreign code or grow without end, and keep the figures in tests/RELIABILITY.md.

make reliability                       # every part, about a quarter of an hour on a quiet machine
make reliability NAMES="files memory"  # some of them
"""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.reliability import damage, fuzz, jobs, layouts, payloads
from tnkit.storage import versions, write_text

RESULTS = Path(__file__).parents[1] / "RELIABILITY.md"
CUTS, FLIPS, SECONDS, EXAMPLES, ROUNDS, TIMES = 200, 1000, 180, 3_000, 6, 1000


def main(names: list[str]) -> int:
    """Run the named parts, or all, and put their tables in the place of their last ones; 1 where anything failed."""
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        sys.exit(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    kept = {}
    if RESULTS.exists():
        kept = dict(part.split("\n", 1) for part in RESULTS.read_text().split("\n## ")[1:])
    about = ", ".join(f"{name} {version}" for name, version in versions().items())
    failed = False
    for name in names or PARTS:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TNKIT_CACHE"] = f"{folder}/cache"
            rows, wrong = PARTS[name](Path(folder))
        taken = f"`make reliability NAMES={name}`, {time.monotonic() - started:.0f} s; {about}."
        head = ["| what | tried | outcome |", "| --- | --- | --- |"]
        kept[name] = "\n".join(["", taken, "", *head, *(f"| {' | '.join(row)} |" for row in rows), ""])
        print(f"## {name}\n{kept[name]}", flush=True)
        failed |= wrong
        sections = [f"\n## {one}\n{kept[one].rstrip()}\n" for one in PARTS if one in kept]
        write_text(RESULTS, INTRODUCTION + "".join(sections))
    return int(failed)


INTRODUCTION = """# Reliability

What was tried to make tnkit lose data, give wrong numbers, run foreign code, hang or grow. Written by
`make reliability`; small doses of the same run in every `make test`. A format without a checksum (text, Parquet, the
published code's pickles) can say another thing after a byte was changed, which no reader can tell; those are counted
apart, and only tnkit's own formats carry results.
"""


def files(folder: Path) -> tuple[list[tuple[str, str, str]], bool]:
    """Every kind of file, cut and changed."""
    rows, wrong = [], False
    for name, outcome in damage.tried(folder, CUTS, FLIPS).items():
        tried = f"{outcome.pop('cut')} cuts, {outcome.pop('flipped')} changed bytes"
        wrong |= any(count for how, count in outcome.items() if how not in ("refused", "right", damage.UNMARKED))
        rows.append((name, tried, said(outcome)))
    return rows, wrong


def pickled(folder: Path) -> tuple[list[tuple[str, str, str]], bool]:
    """Payloads, changed pickles, and programs of random opcodes."""
    found = payloads.tried(folder, SECONDS)
    outcome = {name: found[name] for name in ("refused", "read", "hung", "executed", "MB more at the peak")}
    rows = [
        ("known payloads, every protocol", f"{found['payloads']}", f"{found['payloads let through']} let through"),
        (f"changed pickles and random programs, {SECONDS} s", f"{found['cases']:,}", said(outcome)),
    ]
    wrong = bool(found["payloads let through"] or found["executed"] or found["hung"])
    if importlib.util.find_spec("atheris") is None:
        return [*rows, ("coverage-guided, by atheris", "not tried", "pip install atheris")], wrong
    words = ["-m", "tests.reliability.pickle_atheris", f"-max_total_time={SECONDS}", f"{folder}/seeds"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    runs = re.search(r"Done (\d+) runs", done.stderr)
    rows.append(
        (
            f"coverage-guided, by atheris, {SECONDS} s",
            f"{int(runs[1]):,}" if runs else "?",
            "none failed" if done.returncode == 0 else done.stderr.strip().splitlines()[-1],
        )
    )
    return rows, wrong or done.returncode != 0


def corpora(folder: Path) -> tuple[list[tuple[str, str, str]], bool]:
    """Corpora in every layout."""
    rows, wrong = [], False
    for kind, outcome in layouts.tried(folder, CUTS // 4, FLIPS // 10).items():
        rows.append((f"corpora in every layout, {kind}", f"{outcome.pop('tried'):,}", said(outcome)))
        wrong |= any(count for how, count in outcome.items() if how.startswith(("wrong", "hung")))
    return rows, wrong


def inputs(folder: Path) -> tuple[list[tuple[str, str, str]], bool]:
    """Files of sentences, words of the command line, and algebra of neuron sets, made up by hypothesis."""
    found = fuzz.tried(folder, EXAMPLES)
    return [(name, f"{count:,} examples", "none failed") for name, count in found.items()], False


def killed(_: Path) -> tuple[list[tuple[str, str, str]], bool]:
    """Jobs and saves that are killed."""
    found = jobs.killed(ROUNDS)
    return [
        ("cached captures and streamed detections", f"{found['jobs']} jobs, {found['kills']} kills", "all bit-equal"),
        ("results replaced while killed", f"{found['kills while saving']} kills", f"{found['half-written']} torn"),
    ], bool(found["half-written"])


def memory(_: Path) -> tuple[list[tuple[str, str, str]], bool]:
    """Resident memory of a long session."""
    found = jobs.memory(TIMES)
    grown = {name: after / before - 1 for name, (before, after) in found.items()}
    rows = [
        (f"{name}, after {TIMES // 10} and after {TIMES}", f"{before:.0f} → {after:.0f} MB", f"{grown[name]:+.2%}")
        for name, (before, after) in found.items()
    ]
    return rows, max(grown.values()) > 0.02


def repeated(_: Path) -> tuple[list[tuple[str, str, str]], bool]:
    """The same scores again, in other batches and threads."""
    found = jobs.repeated()
    rows = [(name, "scores of both types", str(value)) for name, value in found.items()]
    return rows, not (found["again, bit-equal"] and found["same order"] and found["largest difference"] < 1e-6)


def said(outcome: Counter | dict[str, int]) -> str:
    """Counts, in words."""
    return ", ".join(f"{count:,} {name}" for name, count in outcome.items() if count or name in ("executed", "hung"))


PARTS = {
    "files": files,
    "pickles": pickled,
    "layouts": corpora,
    "inputs": inputs,
    "kills": killed,
    "memory": memory,
    "determinism": repeated,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
