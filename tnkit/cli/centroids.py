"""Estimate the centroids that neurons are scored against.

example:
  tnkit centroids --model_id gemma-3-270m --TN_Type type1 --lang_for_TN ja --sentence_path pairs.tsv
  tnkit centroids --model_id gemma-3-270m --TN_Type type2 --lang_for_TN ja --sentence_path mono.txt
"""

import argparse

from tnkit.cli import flags
from tnkit.errors import TnkitError


def add_flags(command: argparse.ArgumentParser) -> None:
    flags.add_model(command)
    flags.add_sentences(command, "pairs for type1, single sentences for type2")
    flags.add_detection(command)
    text = "language(s) of the shared space: en or en,fr (default en)"
    flags.flag(command, "hub", text, type=flags.names, default=("en",))
    text = "output of the last layer: raw, or after the final norm as in the published code (default raw)"
    flags.flag(command, "last_layer", text, choices=("raw", "normed"), default="raw")


def run(options: argparse.Namespace) -> None:
    from tnkit import parallel
    from tnkit.detection.centroids import centroid, estimate_centroids
    from tnkit.storage import file_name
    from tnkit.text.languages import code_of

    language = options.lang_for_TN
    hub = list(options.hub) if options.TN_Type == "type1" else []
    if code_of(language) in map(code_of, hub):
        raise TnkitError(f"--lang_for_TN {language} is also the hub; choose another hub with --hub")
    suffix = ".pkl" if options.format == "reference" else ".safetensors"
    out = flags.output(options, "out", suffix, f"{file_name(language)}-{options.TN_Type}-centroids{suffix}")
    texts = flags.sentences(options, [*hub, language])
    model, reading = flags.model(options), flags.reading(options)
    own = [
        centroid(model, texts[name], last_layer=options.last_layer, cache=options.cache, **reading)
        for name in (*hub, language)
    ]
    if parallel.rank() == 0:
        flags.write(lambda: estimate_centroids(own).save(out, format=options.format))
