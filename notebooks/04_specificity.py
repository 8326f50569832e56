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
# # What do transfer neurons answer to: the language, its script, or something else?
#
# A neuron can move Japanese sentences towards the shared space without being "about" Japanese: it may do the same to
# every sentence. And a neuron that *is* active on Japanese only may answer to the script, to a full stop of another
# shape, or to the order of the words. Tezuka & Inoue (*The Transfer Neurons Hypothesis*, EMNLP 2025,
# [aclanthology.org/2025.emnlp-main.1618](https://aclanthology.org/2025.emnlp-main.1618)) measure how much a neuron's
# activation has to do with the language of the sentence. This notebook does so too, compares the neurons with those
# that other studies call language-specific, looks at some one by one, and ends with two controls: the same sentences in
# Latin letters, and with their words shuffled.

# %%
import sys

if "google.colab" in sys.modules:
    # %pip install -q "tnkit[demo,measures] @ git+https://github.com/tnkit/tnkit"
    print("tnkit is installed")

# %% tags=["parameters"]
model_id = "gemma-3-270m"  # packaged with the kit; or a Hub id, or a folder
corpus_id = "everyday"  # packaged with the kit; or a file with one column a language
languages = ["en", "ja", "ko", "nl", "it"]
hub = "en"  # the language that stands for the shared space together with the one in question
language = "ja"  # whose neurons; not one in Latin script, because of the first control
top = 300  # how many neurons of each type
sentences = 128  # how many of each split
quantile = 0.95  # LAPE: a neuron must be active more often than this share of all
figures = "../figures"

# %%
import pandas as pd
from IPython.display import Markdown

import tnkit as tn

tn.plots.use_style()
save = tn.plots.figure_saver(
    f"{figures}/04",
    model=model_id,
    corpus=corpus_id,
    language=language,
    top=top,
    sentences=sentences,
    quantile=quantile,
)
model = tn.load_model(model_id)
corpus = tn.load_corpus(corpus_id, languages)
train, test = ({code: texts[:sentences] for code, texts in corpus[split].items()} for split in ("train", "test"))
name = tn.plots.language_name(language)

# %% [markdown]
# ## Finding the neurons
#
# As in [01_detection](01_detection.ipynb), in the training sentences. What they answer to is asked of the test
# sentences.

# %%
found = tn.detect_all(model, train, [language], hub=hub, top=top, cache=True)
type1, type2 = found[language, "type1"].neurons, found[language, "type2"].neurons
captured = {code: tn.capture(model, texts, keep=["activations"], cache=True) for code, texts in test.items()}

# %% [markdown]
# ## 1. What does an answer to the language look like?
#
# Here is one neuron: of the Type-2 neurons, the one whose activation depends most on whether the sentence is in the
# language or not. Every point is a sentence, at its last token; the bar is the median.

# %%
ratio = tn.specificity.correlation_ratio(captured, language=language)
eta2 = ratio.to_frame()["eta2"]
clearest = eta2.loc[list(type2)].idxmax()
card = tn.neuron_card(model, captured, test, clearest)
save("clearest-neuron", card.plot())

# %% [markdown]
# The **correlation ratio** η² puts a number on it: the share of the activation's variance that lies *between* the two
# groups, the sentences in the language and all others. It is 0 where the groups have the same mean, 1 where the
# activation says nothing but which group it is.

# %%
Markdown(f"For layer {clearest[0]}, neuron {clearest[1]}, η² = {eta2[clearest]:.2f}.")

# %% [markdown]
# ## 2. How many transfer neurons answer to the language?
#
# The share of neurons whose η² is above the value on the axis: Type-1, then Type-2, each against all other neurons of
# the layers that it comes from. A set that answers to the language has its line on the right of the grey one.

# %%
save("type1-ratio", ratio.plot(neurons=type1), title=f"{name}: Type-1")

# %%
save("type2-ratio", ratio.plot(neurons=type2), title=f"{name}: Type-2")

# %% [markdown]
# In the table, the share of the neurons above a threshold of η² that are also significant, by three tests: p of the
# analysis of variance as it is, the same as a false discovery rate over all neurons (q, Benjamini & Hochberg), and that
# of Welch's test, which lets the groups vary differently. *layer-matched* is what a random set with as many neurons in
# each layer has on average.

# %%
shares = pd.concat({"Type-1": ratio.shares(type1), "Type-2": ratio.shares(type2)}, names=["neurons"])
shares.round(3)

# %% [markdown]
# Why both an effect size and a test? With hundreds of sentences even a tiny difference is significant, so significance
# alone says little; it is the size of the effect that tells neurons apart.

# %%
Markdown(
    f"Of all {ratio.q.size:,} neurons {(ratio.q < 0.05).mean():.0%} have q < 0.05, but "
    f"{(ratio.eta2 >= 0.1).mean():.0%} have η² ≥ 0.1, and {(ratio.eta2 >= 0.25).mean():.0%} η² ≥ 0.25."
)

# %% [markdown]
# ## 3. Are they the neurons that others call language-specific?
#
# Two well-known ways of finding such neurons: **LAPE** (Tang et al., ACL 2024) takes those that few languages activate,
# by the entropy of the activation probabilities; **AP** (Kojima et al., NAACL 2024) those whose activation tells the
# language's sentences from all others, by average precision. Where do LAPE's neurons sit?

# %%
lape = tn.specificity.lape(captured, filter_quantile=quantile, language_quantile=quantile)
save("lape", lape.plot(), title="language-specific neurons by LAPE, over sentences")

# %% [markdown]
# And how many of the neurons are the same? Numbers are neurons that two sets have in common, on the diagonal the sets'
# sizes; the colour is the Jaccard index (common ones over all).

# %%
precision = tn.specificity.average_precision(captured, language)
sets = {"Type-1": type1, "Type-2": type2, "LAPE": lape.neurons[language]}
sets |= {"AP, highest": precision.top(top), "AP, lowest": precision.bottom(top)}
overlaps = tn.specificity.overlaps(sets)
save("overlap", overlaps.plot())

# %% [markdown]
# Two sets of this size have some neurons in common by chance. *expected in layers* is how many, for random sets with
# the same number of neurons in each layer, and p that of at least as many as there are.

# %%
table = overlaps.to_frame()[["both", "expected in layers", "jaccard"]].round(3)
table.assign(**{"p in layers": overlaps.table["p in layers"].map("{:.1e}".format)})

# %% [markdown]
# ## 4. Single neurons, read one by one
#
# A card has the test sentences in which the neuron is most active, and what it then writes: the items of the vocabulary
# that its value vector raises and lowers most when it is read through the model's own output layer (the *logit lens*;
# Geva et al., EMNLP 2022). First the neuron of the first picture:

# %%
card

# %% [markdown]
# Next, the Type-1 and the Type-2 neuron of the highest score.

# %%
best1 = tn.neuron_card(model, captured, test, type1[0])
save("best-type1", best1.plot())
best1

# %%
best2 = tn.neuron_card(model, captured, test, type2[0])
save("best-type2", best2.plot())
best2

# %% [markdown]
# Read with care: the logit lens says what a vector would do at the output, and from an early layer it has a long way to
# go.
#
# ## 5. Is it the script, or the order of the words?
#
# The same sentences of the language once in Latin letters, once with the words of each in a random order. If the
# neurons answer to the script, they fall silent in the first; if to the grammar, in the second.

# %%
variants = {
    "romanised": tn.variants.romanised(corpus, [language]),
    "shuffled": tn.variants.shuffled(corpus, [language]),
}
versions = {"as written": test[language]} | {what: one["test"][language][:sentences] for what, one in variants.items()}
pd.DataFrame({what: list(texts[:4]) for what, texts in versions.items()})

# %% [markdown]
# There is a catch: all of this looks at the last token, so let us see what that is.

# %%
ids = {what: model.tokenizer(list(texts))["input_ids"] for what, texts in (versions | test).items()}
last = {what: pd.Series([model.tokenizer.decode(one[-1:]) for one in rows]) for what, rows in ids.items()}
ends = {what: tokens.value_counts(normalize=True) for what, tokens in last.items()}
about = {"commonest last token": {what: repr(share.index[0]) for what, share in ends.items()}}
about["its share"] = {what: f"{share.iloc[0]:.0%}" for what, share in ends.items()}
pd.DataFrame(about).rename(index=tn.plots.language_name)

# %% [markdown]
# Where the commonest last token of the language is one that no other language has, a neuron may answer to that token
# alone, and both pictures above would look just as clear. The romanised sentences end as those of the other languages
# do.

# %%
read = {what: tn.capture(model, texts, keep=["activations"], cache=True) for what, texts in versions.items()}
ratios = {
    what: tn.specificity.correlation_ratio({**captured, language: part}, language=language)
    for what, part in read.items()
}
effects = {what: one.to_frame()["eta2"] for what, one in ratios.items()}

# %%
parts = {what: effect.loc[list(type1)].to_numpy() for what, effect in effects.items()}
axes = tn.plots.exceedance(parts, xlabel="correlation ratio η²")
axes.set_title(f"{name} Type-1 neurons, other versions of the sentences")
save("type1-variants", axes)

# %%
parts = {what: effect.loc[list(type2)].to_numpy() for what, effect in effects.items()}
axes = tn.plots.exceedance(parts, xlabel="correlation ratio η²")
axes.set_title(f"{name} Type-2 neurons, other versions of the sentences")
save("type2-variants", axes)

# %% [markdown]
# The other way round: would other neurons have been found in the other versions?

# %%
sources = {what: {**train, language: one["train"][language][:sentences]} for what, one in variants.items()}
again = {what: tn.detect_all(model, texts, [language], hub=hub, top=top, cache=True) for what, texts in sources.items()}

# %%
sets = {"Type-1, as written": type1} | {
    f"Type-1, {what}": one[language, "type1"].neurons for what, one in again.items()
}
sets |= {"Type-2, as written": type2} | {
    f"Type-2, {what}": one[language, "type2"].neurons for what, one in again.items()
}
overlaps = tn.specificity.overlaps(sets)
save("variants-overlap", overlaps.plot())

# %% [markdown]
# ## 6. Which experts serve a language?
#
# In a **mixture of experts** (Mixtral, Qwen-MoE, gpt-oss, OLMoE …) a router sends every token to a few of many MLPs. A
# neuron there belongs to an expert, and two more questions can be asked: are the sentences of a language sent to other
# experts than those of the others, and do its neurons sit in few of them? No such model is packaged, so this section
# shows the *instrument* on a tiny one with random weights. **Its numbers are no finding**: nothing in it was learned.

# %%
from transformers import AutoModelForCausalLM

from tnkit.testing import byte_tokenizer, redrawn, tiny_config

config = tiny_config("mixtral")
config.max_position_embeddings = 1024  # it reads bytes
mixture = tn.load_model(redrawn(AutoModelForCausalLM.from_config(config)), tokenizer=byte_tokenizer())

# %% [markdown]
# First the share of each language's sentences that an expert gets, at their last token. A token goes to two of six
# experts, so every column adds up to 2. Here are the layers in which Type-1 neurons are looked for:

# %%
routing = tn.specificity.routing({code: tn.capture(mixture, texts, keep=["experts"]) for code, texts in train.items()})
figure, row = tn.plots.panels(len(mixture.early_layers), width=6, height=3.4)
for ax, layer in zip(row, mixture.early_layers, strict=True):
    sent = routing.to_frame().loc[layer].rename("expert {}".format)
    tn.plots.matrix(sent, xlabel="", ylabel=f"layer {layer}", value="share of sentences", ax=ax)
save("experts", figure)

# %% [markdown]
# Then the language's neurons. A set of high scores can hardly avoid the experts that run often, because a neuron that
# does not run moves nothing. So the set is compared with random neurons *of experts that are run as often*: *experts*
# is the effective number of experts that the set sits in, *expected* the mean of such random sets, *low* to *high* the
# central 95 % of them, *p* the share of them that sit in as few.

# %%
routed = tn.detect(mixture, train, language=language, hub=hub, top=24)
inside = routing.concentration(routed.neurons, language=language)
inside.round(3)

# %% [markdown]
# A small *p* is no finding by itself. This model has learned nothing, but Japanese is sent to experts of its own here,
# too, since its sentences end in other bytes; and neurons of one expert are scored on the same sentences, so that they
# are chosen together. In a trained model, read *p* beside that of a model of the same shape with random weights. All
# else in this notebook is asked of experts in the same way; a score counts sentences in which the expert does not run
# as 0.
#
# ## What was found, and what it does not show

# %%
above = {kind: shares.loc[(kind, 0.1, "q < 0.05")] for kind in ("Type-1", "Type-2")}
Markdown(
    "**Language.** "
    + " ".join(
        f"Of the {kind} neurons of {name}, {row['set']:.0%} have η² ≥ 0.1 (and q < 0.05), of random neurons of the "
        f"same layers {row['layer-matched']:.0%}."
        for kind, row in above.items()
    )
)

# %%
kinds = {"Type-1": type1, "Type-2": type2}
kept = {
    (kind, what): (effect.loc[list(one)] > 0.1).mean()
    for kind, one in kinds.items()
    for what, effect in effects.items()
}
common = {label: len(kinds[label[:6]] & one) / top for label, one in sets.items()}
Markdown(
    "**Script and order.** "
    + " ".join(
        f"{kind}: η² ≥ 0.1 in {kept[kind, 'as written']:.0%} of the neurons as written, "
        f"{kept[kind, 'romanised']:.0%} romanised, {kept[kind, 'shuffled']:.0%} shuffled. Of the neurons found in "
        f"romanised sentences {common[f'{kind}, romanised']:.0%} are the same, of those found in shuffled ones "
        f"{common[f'{kind}, shuffled']:.0%}."
        for kind in kinds
    )
)

# %% [markdown]
# It does **not** show
#
# - what a neuron that does *not* answer to the language does. A transfer neuron need not be specific to be needed:
#   [03_ablation](03_ablation.ipynb) is about being needed.
# - that a specific neuron is *about the language*: the controls rule out script and word order, not topic, style, or
#   the length of the sentences.
# - that a romanised sentence is a fair control: the model has seen little text of that kind, and understands it less
#   well.
# - what happens at tokens other than the last.
#
# To turn these knobs by hand, open [00_explore](00_explore.ipynb).
