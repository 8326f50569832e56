"""Run every benchmark, or some by name, print the tables, and keep them in RESULTS.md.

Each ratio is the median over rounds; in a round the things compared run one after the other, so that a busy machine
slows all of them.
"""

import platform
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch

import tnkit as tn
from tests.benchmarks import choices, experts, gpu, peers, plain, scale
from tnkit.storage import versions, write_text

MODEL, LANGUAGE, TOP, ROUNDS = "gemma-3-270m", "ja", 300, 7


def main(names):
    """Measure the named parts, or all, print them, and put them in the place of their last results."""
    torch.set_grad_enabled(False)
    parts = {
        "detection": speed,
        "peers": beside,
        "choices": lambda: choices.rows(MODEL),
        "long jobs": lambda: scale.rows(MODEL),
        "experts": experts.rows,
        "explorers": in_browser,
        "gpu": gpu.rows,
    }
    unknown = [name for name in names if name not in parts]
    if unknown:
        sys.exit(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(parts)}")
    path = Path(__file__).parent / "RESULTS.md"
    kept = dict(part.split("\n", 1) for part in path.read_text().split("\n## ")[1:])
    found = []
    for name in names or parts:
        if name == "gpu" and (why := gpu.missing()):
            print(f"gpu: nothing was measured, {why}", flush=True)
            continue
        rows = parts[name]()
        kept[name] = "\n".join(["", about(name), "", *table(("what", "measured", "bound"), rows), ""])
        sections = [f"\n## {one}\n{kept[one].rstrip()}\n" for one in parts if one in kept]
        write_text(path, "# Benchmarks\n\nWritten by `make bench`, a part at a time.\n" + "".join(sections))
        found += [(name, *row) for row in rows]
        print(f"{name}: done", flush=True)
    print("\n".join(table(("part", "what", "measured", "bound"), found)))


def about(name):
    """What was measured, on which machine, with which versions, and when."""
    random = {"gpu": gpu.about, "experts": experts.about}
    what = random[name]() if name in random else f"{MODEL}, {LANGUAGE} and en, packaged corpus"
    machine = f"{_processor()}, {torch.get_num_threads()} threads"
    packages = ", ".join(f"{part} {version}" for part, version in versions().items())
    return f"{what}; {machine}, {packages}; {time.strftime('%Y-%m-%d')}."


def table(head, rows):
    """The lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def speed():
    """Detection against bare forward passes and against the plain implementation, and scoring again."""
    model = tn.load_model(MODEL)
    train = tn.load_corpus("everyday", ["en", LANGUAGE])["train"]
    some = {name: sentences[:64] for name, sentences in train.items()}
    names = ("detect", "bare", "bare packed", "type1", "streamed", "towards", "matrix")
    names += ("detect some", "plain", "plain, whole model", "again")
    timed = {name: [] for name in names}
    captured = tn.capture(model, train[LANGUAGE], progress=False)
    thousand = _repeated(captured, 1000)
    target = tn.estimate_centroids([captured])
    sums = {LANGUAGE: tn.attraction(model, captured)}
    targets = {name: tn.estimate_centroids([tn.capture(model, train[name], progress=False)]) for name in train}
    for number in range(ROUNDS):
        both = _time(timed["detect"], lambda: tn.detect_all(model, train, [LANGUAGE], top=TOP, progress=False))
        _time(timed["bare"], lambda: gpu.bare_forwards(model, train))
        _time(timed["bare packed"], lambda: gpu.bare_forwards(model, train, packed=True))
        _time(timed["type1"], lambda: tn.detect(model, train, language=LANGUAGE, top=TOP, progress=False))
        once = {"top": TOP, "streaming": True, "progress": False}
        _time(timed["streamed"], lambda once=once: tn.detect_all(model, train, [LANGUAGE], **once))
        _time(timed["towards"], lambda: sums[LANGUAGE].scores(target))
        sets = {kind: both[LANGUAGE, kind].neurons for kind in ("type1", "type2")}
        _time(timed["matrix"], lambda sets=sets: tn.specificity.moves(sets, sums, targets))
        _time(timed["again"], lambda: tn.score_neurons(model, thousand, target, distance="euclidean"))
        if number < 2:
            found = _time(timed["detect some"], lambda: tn.detect_all(model, some, [LANGUAGE], top=TOP, progress=False))
            given = (model.module, model.tokenizer, some[LANGUAGE], some["en"], model.boundary, TOP)
            expected = _time(timed["plain"], lambda given=given: plain.detect(*given, head=False))
            _time(timed["plain, whole model"], lambda given=given: plain.detect(*given, head=True))
            shared = [
                len(set(found[LANGUAGE, kind].neurons) & set(pairs)) / TOP
                for kind, pairs in zip(("type1", "type2"), expected, strict=True)
            ]
        print(
            f"round {number + 1} of {ROUNDS}", {name: round(times[-1], 2) for name, times in timed.items()}, flush=True
        )
    assert len(both) == 2
    n = sum(map(len, train.values()))
    bare = statistics.median(timed["bare"])
    return [
        (
            f"detection of both types, {n} sentences, over bare forward passes of padded batches ({bare:.1f} s)",
            _spread(timed["detect"], timed["bare"]),
            "≤ 0.95 ×",
        ),
        (
            "the same, over bare forward passes of the packed batches that it runs",
            _spread(timed["detect"], timed["bare packed"]),
            "for comparison",
        ),
        (
            "detection of Type-1 alone over full forward passes of padded batches",
            _spread(timed["type1"], timed["bare"]),
            "≤ 0.60 ×",
        ),
        (
            "streaming detection of both types, each sentence once in flat memory, over the same",
            _spread(timed["streamed"], timed["bare"]),
            "≤ 1.10 ×",
        ),
        (
            "scores of all layers towards another centroid, from a `tn.Attraction`, whatever the number of sentences",
            f"{statistics.median(timed['towards']):.2f} s",
            "< 0.1 s",
        ),
        (
            f"`tn.specificity.moves` of 2 sets, the sentences of 1 language, {len(targets)} centroids",
            f"{statistics.median(timed['matrix']):.2f} s",
            "< 0.2 s",
        ),
        (
            "plain one-sentence-at-a-time implementation, called whole as the published code does, over detection, 128 "
            f"sentences (same top {TOP}: {min(shared):.1%})",
            f"{_ratio(timed['plain, whole model'], timed['detect some']):.1f} ×",
            "≥ 10 ×",
        ),
        (
            "the same, with the output head left out of the plain implementation too",
            f"{_ratio(timed['plain'], timed['detect some']):.1f} ×",
            "for comparison",
        ),
        (
            "scoring again from a capture of 1,000 sentences, all layers, other distance",
            f"{statistics.median(timed['again']):.2f} s",
            "< 1 s",
        ),
    ]


def beside():
    """A capture against what a user would write instead, on the same sentences."""
    model = tn.load_model(MODEL)
    texts = tn.load_corpus("everyday", [LANGUAGE])["train"][LANGUAGE][:128]
    ours, n = [], len(texts)
    others = {
        "`output_hidden_states` and hooks": peers.hooked,
        "nnsight as its tutorial has it": peers.by_nnsight,
        "LAPE's counting of positive gates": peers.lape,
    }
    if bridge := peers.bridged(model):
        others["`run_with_cache` of TransformerLens"] = partial(peers.by_transformer_lens, bridge)
    else:
        print("TransformerLens was not compared: pip install transformer_lens", flush=True)
    timed = {name: [] for name in others}
    for _ in range(ROUNDS):
        kept = _time(ours, lambda: peers.captured(model, texts))
        for name, run in others.items():
            found = _time(timed[name], lambda run=run: run(model, texts))
            if len(found) == 3:
                assert torch.allclose(found[2], kept.activations, rtol=1e-2, atol=1e-2)
    return [
        (f"{name}, batches of {peers.BATCH}, over a capture of the same {n} sentences", _spread(times, ours), "")
        for name, times in timed.items()
    ]


def in_browser():
    """What explorers take in a browser, which a GPU server has not."""
    from tests.benchmarks import explorers

    return explorers.rows()


def _repeated(captured, count):
    place = torch.arange(count) % len(captured)
    tensors = {name: tensor[:, place].contiguous() for name, tensor in captured.tensors().items()}
    return tn.Activations(captured.layers, torch.arange(count), provenance=captured.provenance, **tensors)


def _time(times, run):
    started = time.perf_counter()
    result = run()
    times.append(time.perf_counter() - started)
    return result


def _spread(these, those):
    """The median of the ratios, and the least and the largest of them."""
    ratios = [this / that for this, that in zip(these, those, strict=True)]
    return f"{statistics.median(ratios):.2f} × ({min(ratios):.2f} to {max(ratios):.2f})"


def _ratio(these, those):
    return statistics.median(this / that for this, that in zip(these, those, strict=True))


def _processor():
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main(sys.argv[1:])
