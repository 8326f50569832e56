"""Steer prompts towards a language with a neuron set and other selections, and measure what the model writes.

example:
  tnkit steer --model_id gemma-3-270m --neurons ja-type2-neurons.json --lang_for_TN ja --beside ko,nl,it \\
    --sentence_path train.tsv --strengths 0.5,1,2 --figure ja-steering.png
"""

import argparse
import math
from typing import Any

from tnkit.cli import flags
from tnkit.errors import TnkitError


def add_flags(command: argparse.ArgumentParser) -> None:
    flags.add_model(command)
    flags.add_sentences(command, "aligned sentences that chose the set, in its language, --away and --beside")
    flags.add_neurons(command, "all")
    flags.flag(command, "away", "language of the prompts, whose mean is taken away (default en)", default="en")
    text = "further languages of the same file, for language-specific neurons by other methods"
    flags.flag(command, "beside", text, type=flags.names, default=())
    text = "prompts in --away: openings (default, packaged, its test split), or a file"
    flags.flag(command, "prompts", text, default="openings")
    text = "how often the difference of means is added, comma-separated (default 1,2,4)"
    flags.flag(command, "strengths", text, type=_numbers, default=(1.0, 2.0, 4.0))
    text = "what the set is compared with, comma-separated, such as LAPE,DiffMean; none for nothing (default: all)"
    flags.flag(command, "selections", text, type=flags.names)
    flags.flag(command, "layer", "layer that directions enter (default: the middle)", type=flags.positive)
    flags.flag(command, "draws", "draws of each random selection (default 2)", type=flags.positive, default=2)
    text = "the most tokens to add to a prompt (default 24)"
    flags.flag(command, "max_new_tokens", text, type=flags.positive, default=24)
    text = "languages that an output may be in, comma-separated (default: all that lingua knows)"
    flags.flag(command, "candidates", text, type=flags.names)
    flags.flag(command, "out", "table to write, .csv (default: LANG-steering.csv in the current folder)")
    flags.flag(command, "outputs", "also write every output to this .json file")
    flags.flag(command, "figure", "also write a figure to this .png file: the share of outputs by strength")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(number) for number in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise argparse.ArgumentTypeError(f"{text!r:.60} is not a list of numbers, such as 0.5,1,2")
    return numbers


def run(options: argparse.Namespace) -> None:
    import tnkit as tn

    language, away = options.lang_for_TN, options.away
    if language == away:
        raise TnkitError(f"--lang_for_TN {language} is also --away; steer towards another language")
    out = flags.output(options, "out", ".csv", f"{tn.storage.file_name(language)}-steering.csv")
    figure = options.figure and flags.output(options, "figure", ".png")
    outputs = options.outputs and flags.output(options, "outputs", ".json")
    texts = flags.sentences(options, list(dict.fromkeys([away, language, *options.beside])))
    prompts = _prompts(options)
    model = flags.model(options)
    how: dict[str, Any] = {name: getattr(options, name) for name in ("away", "strengths", "layer", "draws", "tokens")}
    if options.selections is not None:
        how["selections"] = () if options.selections == ("none",) else options.selections
    steered = tn.steer(
        model,
        prompts,
        {language: flags.neurons(options.neurons, model)},
        texts,
        max_new_tokens=options.max_new_tokens,
        candidates=options.candidates,
        progress=flags.progress(options),
        **how,
    )
    table = steered.to_frame()
    columns = ["share", "share low", "share high", "relevance", "distinct", "perplexity", "score"]
    flags.show(f"{len(prompts)} prompts in {away}, tokens: {options.tokens}; share of outputs in {language}:")
    flags.show(table.loc[language, columns].round(3).to_string())
    more = [lambda: steered.save(outputs)] if outputs else []
    drawn = [lambda: tn.plots.save_figure(steered.plot(language).figure, figure)] if figure else []
    flags.write(lambda: tn.storage.write_text(out, table.to_csv()), *more, *drawn)


def _prompts(options: argparse.Namespace) -> Any:
    import tnkit as tn

    packaged = options.prompts == "openings"
    corpus = tn.load_corpus(options.prompts, [options.away], test=0.5 if packaged else 0.0)
    prompts = corpus["test" if packaged else "train"][options.away]
    if not prompts:
        raise TnkitError(f"{corpus.name} has no prompt in {options.away}; name a file with some")
    return prompts
