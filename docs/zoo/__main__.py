"""Every model of the installed transformers, tiny and random: read correctly, refused in a sentence, or neither.

python -m docs.zoo                    # or make zoo: all types, and docs/models.md; a quarter of an hour on two cores
python -m docs.zoo llama gemma3_text  # these types alone

Each type is built from its configuration class (`docs.zoo.tiny`), loaded with `load_model`, scored, ablated, and held
to an oracle that shares no code with tnkit (`docs.zoo.oracle`). Verdicts are kept in docs/zoo/verdicts.csv; the page is
written from all of the installed transformers that are there.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pandas as pd
import transformers

import tnkit as tn
from docs.zoo.judge import AUTO, Verdict, judged

PAGE, KEPT = Path(__file__).parents[1] / "models.md", Path(__file__).with_name("verdicts.csv")
LIMIT, PATIENCE = 100, 600  # seconds of a processor, and seconds at all, that one type may take
KINDS = ("right", "refused", "wrong", "crashed", "not built")
TITLES = {"causal": "Causal language models", "image-text": "Image-text models, read as text models"}
HEAD = """# Models

Every model type of transformers {version}, built tiny and random from its configuration, and held to an oracle that
shares no code with tnkit: a neuron is removed from the weights, what leaves the block is compared, and the score is
computed from its definition in float64. An ablation is compared with zeroed weights, padded batches with sentences
alone. The error is the largest difference between a score and the oracle's. `make zoo` writes this page.

| | {kinds} |
|---|{bars}
{counts}
"""


def verdicts(asked: list[tuple[str, str]], processes: int = 2) -> Iterator[Verdict]:
    """Judge each (table, type) in a process of its own, so that a crash or a hang ends that one alone."""
    context, running, waiting = multiprocessing.get_context("fork"), [], list(reversed(asked))
    while waiting or running:
        while waiting and len(running) < processes:
            table, name = waiting.pop()
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_judge, args=(theirs, table, name))
            process.start()
            theirs.close()
            running.append((process, ours, table, name, time.monotonic()))
        for entry in list(running):
            process, ours, table, name, started = entry
            if ours.poll(0.02):
                try:
                    yield ours.recv()
                except EOFError:
                    process.join()
                    yield Verdict(table, name, "crashed", reason=f"the process ended with exit code {process.exitcode}")
            elif time.monotonic() - started > PATIENCE:
                yield Verdict(table, name, "crashed", reason=f"not done after {PATIENCE} seconds")
                process.kill()
            else:
                continue
            process.join()
            running.remove(entry)


def kept(found: list[Verdict]) -> list[Verdict]:
    """Keep verdicts, and return all that there are of the installed transformers, new ones in place of old ones."""
    frame = pd.DataFrame(map(vars, found)).assign(transformers=transformers.__version__)
    if KEPT.exists():
        old = pd.read_csv(KEPT, keep_default_na=False, na_values={"error": [""]})
        frame = pd.concat([old[old["transformers"] == transformers.__version__], frame])
    known = pd.MultiIndex.from_tuples((table, name) for table, (_, names) in AUTO.items() for name in names)
    frame = frame.drop_duplicates(["table", "name"], keep="last").sort_values(["table", "name"])
    frame = frame[pd.MultiIndex.from_frame(frame[["table", "name"]]).isin(known)]
    tn.storage.write_text(KEPT, frame.to_csv(index=False))
    rows = frame.drop(columns="transformers").astype(object).where(frame.notna(), None)
    return [Verdict(**row) for row in rows.to_dict("records")]


def _judge(pipe: Connection, table: str, name: str) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
    pipe.send(judged(table, name))


def page(found: list[Verdict]) -> str:
    """The page of all types."""
    counts = {table: Counter(one.kind for one in found if one.table == table) for table in TITLES}
    rows = [
        f"| {title} | " + " | ".join(str(counts[table][kind]) for kind in KINDS) + " |"
        for table, title in TITLES.items()
    ]
    text = HEAD.format(
        version=transformers.__version__, kinds=" | ".join(KINDS), bars="---|" * len(KINDS), counts="\n".join(rows)
    )
    for table, title in TITLES.items():
        text += f"\n## {title}\n\n| type | class | | error | |\n|---|---|---|---|---|\n"
        for one in sorted(
            (one for one in found if one.table == table), key=lambda one: (KINDS.index(one.kind), one.name)
        ):
            error = "" if one.error is None else f"{one.error:.0e}"
            reason = " ".join(one.reason.split()).replace("|", "\\|")
            text += f"| {one.name} | {one.module} | {one.kind} | {error} | {reason} |\n"
    return text


def main() -> int:
    """Print a line for each type, and the counts; the exit code is 1 where one is wrong or crashes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", help="types (default: all)")
    names = parser.parse_args().names
    asked = [(table, name) for table, (_, known) in AUTO.items() for name in known if not names or name in names]
    found = []
    for one in verdicts(asked):
        found.append(one)
        error = "" if one.error is None else f" {one.error:.1e}"
        print(f"{one.kind:9} {one.table} {one.name}{error}: {' '.join(one.reason.split())}", flush=True)
    tn.storage.write_text(PAGE, page(kept(found)))
    counts = Counter(one.kind for one in found)
    print(", ".join(f"{counts[kind]} {kind}" for kind in KINDS))
    return int(counts["wrong"] + counts["crashed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
