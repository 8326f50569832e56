"""Run lm-evaluation-harness tasks with a neuron set ablated.

example:
  tnkit evaluate --model_id gemma-3-270m --neurons ja-type1-neurons.json --tasks mmlu_prox_lite_ja --limit 100
"""

import argparse

from tnkit.cli import flags


def add_flags(command: argparse.ArgumentParser) -> None:
    flags.add_model(command)
    flags.add_neurons(command, "prompt")
    flags.flag(command, "tasks", "task names, comma-separated", type=flags.names, required=True)
    flags.flag(command, "limit", "number of documents of each task (default all)", type=flags.positive)
    flags.flag(command, "include_path", "folder with your own tasks")
    flags.flag(command, "out", "table to write, .csv (default: evaluation.csv in the current folder)")


def run(options: argparse.Namespace) -> None:
    import tnkit as tn

    out = flags.output(options, "out", ".csv", "evaluation.csv")
    model = flags.model(options)
    evaluation = tn.harness.evaluate(
        model,
        list(options.tasks),
        neurons=flags.neurons(options.neurons, model),
        tokens=options.tokens,
        limit=options.limit,
        include_path=options.include_path,
        trust_remote_code=options.trust_remote_code,
    )
    table = evaluation.to_frame()
    flags.show(table.to_string())
    flags.write(lambda: tn.storage.write_text(out, table.to_csv()))
