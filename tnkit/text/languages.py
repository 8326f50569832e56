"""Names of languages, however they are written, and the scripts they are written in.

same("ja", "jpn_Jpan"), same("zh_Hans", "zh_Hant")      # True, False
profile("ar").right_to_left, profile("ar").script        # True, "Arabic"
code_of("Japanese"), code_of("url")                      # "ja", None
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import langcodes
from langcodes.data_dicts import LIKELY_SUBTAGS, MACROLANGUAGES

_SPEAKERS = 2_000_000
_SAMPLE = 1000  # texts
# ISO 15924 codes that join scripts of Unicode: the scripts that a text may have, and those of which it needs some.
_JOINED = {
    "Jpan": ({"Hira", "Kana", "Hani"}, {"Hira", "Kana"}),
    "Kore": ({"Hang", "Hani"}, {"Hang"}),
    "Hrkt": ({"Hira", "Kana"}, {"Hira", "Kana"}),
} | dict.fromkeys(("Hans", "Hant", "Hanb"), ({"Hani", "Bopo"}, {"Hani"}))


@lru_cache(4096)
def code_of(name: str) -> str | None:
    """The BCP-47 code of a language from the name of a column; None for a column that names something else.

    A name is an ISO 639 code or the name of a language; the language has a two-letter code or two million speakers,
    unless its script is named too. Names that end in "id" in lower case are identifiers.

    >>> [code_of(name) for name in ("ja", "jpn_Jpan", "ja-JP", "Japanese", "zho_Hans", "ace_Latn")]
    ['ja', 'ja-Jpan', 'ja-JP', 'ja', 'zh-Hans', 'ace-Latn']
    >>> [code_of(name) for name in ("src", "lp", "url", "id", "row_id", "iso_15924", "text")]
    [None, None, None, None, None, None, None]
    """
    language = _parsed(name)
    if language is None or name.strip().endswith("id"):
        return None
    usual = langcodes.Language.make(language=language.language)
    common = len(_base(name)) == 2 or usual.speaking_population() >= _SPEAKERS  # src (of Sardinian, sc) is not
    return language.to_tag() if language.script or common else None


def same(name: str, other: str) -> bool:
    """Whether two names are of one language; scripts and regions are compared if both names have them.

    >>> same("ja", "jpn_Jpan"), same("pt-BR", "por"), same("pt-BR", "pt-PT"), same("zh_TW", "zho_Hans")
    (True, True, False, False)
    """
    first, second = _parsed(name), _parsed(other)
    if first is None or second is None:
        return name == other
    if first.language != second.language:
        return False
    if first.territory and second.territory and first.territory != second.territory:
        return False
    scripts = [_unicode_scripts(_stated_script(language)) for language in (first, second)]
    return not all(scripts) or bool(scripts[0] & scripts[1])


def matching(name: str, names: Iterable[str]) -> list[str]:
    """The names that match a language: the same name, or else code, or else language, or else its members.

    The members of a macrolanguage are languages, such as nn of no; callers refuse several.

    >>> matching("ja", ["eng_Latn", "jpn_Jpan"]), matching("zh", ["zho_Hans", "zho_Hant"])
    (['jpn_Jpan'], ['zho_Hans', 'zho_Hant'])
    >>> matching("pes", ["pes_Arab", "prs_Arab"]), matching("fa", ["prs_Arab"])
    (['pes_Arab'], ['prs_Arab'])
    >>> matching("no", ["eng_Latn", "nno_Latn"]), matching("ar", ["arz_Arab", "acm_Arab"])
    (['nno_Latn'], ['arz_Arab', 'acm_Arab'])
    """
    names = list(names)
    if name in names:
        return [name]
    matches = [other for other in names if same(name, other)]
    if not matches:  # nobody means Indonesian by Malay
        codes = {other: _base(other) for other in names if _parsed(other)}
        matches = [other for other, code in codes.items() if code != "id" and MACROLANGUAGES.get(code) == _base(name)]
    return [other for other in matches if _base(other) == _base(name)] or matches


def scripts_of(name: str) -> set[str]:
    """The Unicode scripts in which a language is usually written; none if the name is not a language.

    >>> sorted(scripts_of("ja")), scripts_of("ru"), scripts_of("srp_Latn"), scripts_of("x")
    (['Hani', 'Hira', 'Kana'], {'Cyrl'}, {'Latn'}, set())
    """
    language = _parsed(name)
    script = language.maximize().script if language else None
    return set(_JOINED.get(script, ({script},))[0]) if script else set()


def name_of(name: str) -> str:
    """A language's English name; the name itself if it is not a language.

    >>> name_of("jpn_Jpan"), name_of("ko"), name_of("text")
    ('Japanese', 'Korean', 'text')
    """
    language = _parsed(name)
    return name if language is None else langcodes.Language.make(language=language.language).display_name()


@dataclass(frozen=True)
class Profile:
    """What is known of a language.

    Attributes:
        code: BCP 47, or the name as it was given where it is no language.
        name: in English.
        autonym: in the language itself.
        script: the English name of the script in which it is usually written, or that its name states.
        right_to_left: whether that script runs from right to left.
        speakers: how many people speak it, approximately; 0 where that is not known.
    """

    code: str
    name: str
    autonym: str
    script: str
    right_to_left: bool
    speakers: int


@lru_cache(4096)
def profile(name: str) -> Profile:
    """A language's name, script, direction and number of speakers, from CLDR through langcodes.

    Args:
        name: a code or a name, as in `code_of`.

    >>> profile("ar").script, profile("ar").right_to_left, profile("jpn_Jpan").name
    ('Arabic', True, 'Japanese')
    >>> profile("srp_Latn").script, profile("hi").autonym, profile("text").script
    ('Latin', 'हिन्दी', '')
    """
    from fontTools import unicodedata as unicode_scripts

    language = _parsed(name)
    if language is None:
        return Profile(name, name, name, "", False, 0)
    script = language.script or language.maximize().script or ""
    joined = _JOINED.get(script, ({script}, {script}))[1] or {script}
    named = langcodes.Language.make(script=script).script_name() if script else ""
    return Profile(
        code=language.to_tag(),
        name=name_of(name),
        autonym=langcodes.Language.make(language=language.language).autonym(),
        script=named,
        right_to_left=bool(script) and unicode_scripts.script_horizontal_direction(min(joined), "LTR") == "RTL",
        speakers=int(language.speaking_population()),
    )


def grouped(languages: Sequence[str]) -> list[str]:
    """Languages in an order that keeps scripts together: by script, the most spoken scripts first, then by speakers.

    >>> grouped(["en", "ja", "ru", "it", "uk"])
    ['en', 'it', 'ru', 'uk', 'ja']
    """
    speakers: Counter[str] = Counter()
    for language in languages:
        speakers[profile(language).script] += profile(language).speakers
    known = {language: profile(language) for language in languages}
    return sorted(
        languages, key=lambda one: (-speakers[known[one].script], known[one].script, -known[one].speakers, one)
    )


def foreign_script(texts: Sequence[str], name: str) -> str | None:
    """The script of most letters, if the texts are clearly not in the language; otherwise None.

    They are not if fewer than half of the letters of a sample are in a script of the language, or if Japanese has
    hardly any kana or Korean hardly any hangul.

    >>> foreign_script(["Hello!", "Good morning."], "ja"), foreign_script(["お早う。", "OKだ。"], "ja")
    ('Latin', None)
    """
    from fontTools import unicodedata as unicode_scripts

    language = _parsed(name)
    if language is None:
        return None
    sets = [_JOINED.get(script, ({script}, {script})) for script in _scripts(language)]
    accepted, required = (set[str]().union(*(pair[index] for pair in sets)) for index in (0, 1))
    letters: Counter[str] = Counter()
    for letter, count in Counter("".join(texts[:: -(-len(texts) // _SAMPLE) or 1])).items():
        if unicodedata.category(letter)[0] in "LM":
            letters[unicode_scripts.script(letter)] += count
    for shared in ("Zyyy", "Zinh", "Zzzz"):  # common, inherited and unknown
        del letters[shared]
    total = letters.total()
    shares = [sum(letters[script] for script in scripts) / max(total, 1) for scripts in (accepted, required)]
    if not total or not accepted or (shares[0] >= 0.5 and shares[1] >= 0.05):
        return None
    return str(unicode_scripts.script_name(letters.most_common(1)[0][0]))


@lru_cache(4096)
def _parsed(name: str) -> langcodes.Language | None:
    """The language of a name with its usual code (jpn and Japanese as ja, cmn as zh), or None."""
    tag = name.strip().replace("_", "-")
    try:
        language = langcodes.Language.get(tag)
    except ValueError:
        language = langcodes.Language.make()
    if not language.language or not language.is_valid():
        return _named(name.strip())
    usual = language.prefer_macrolanguage()
    # A code of a language in one script or region (hbs, prs) does not name that script or region.
    return usual if "-" in tag else langcodes.Language.make(language=usual.language)


def _named(name: str) -> langcodes.Language | None:
    """The language with this English name, or this name in the language itself."""
    if len(name) < 2 or not any(map(str.isalpha, name)):
        return None
    try:
        language = langcodes.find(name)
    except (LookupError, ValueError):  # the latter for control characters
        return None
    names = {language.display_name().casefold(), language.autonym().casefold()}
    return language.prefer_macrolanguage() if name.casefold() in names else None


def _base(name: str) -> str:
    """The language's own code, not that of its macrolanguage: pes and prs, not fa."""
    try:
        written = langcodes.Language.get(name.strip().replace("_", "-"), normalize=False)
    except ValueError:
        written = _named(name.strip()) or langcodes.Language.get("und")
    return langcodes.standardize_tag(written.language or "und")


def _stated_script(language: langcodes.Language) -> str | None:
    """The script in the name, or that of the region in the name."""
    return language.script if language.script or not language.territory else language.maximize().script


def _unicode_scripts(script: str | None) -> set[str]:
    """The scripts to compare codes by: Jpan includes Hira, Kore Hang, Hani both Hans and Hant."""
    if script in ("Hans", "Hant"):
        return {script}
    if script in ("Hani", "Hanb"):
        return {"Hans", "Hant", "Hani"}
    return _JOINED.get(script, ({script}, set[str]()))[0] if script else set()


def _scripts(language: langcodes.Language) -> set[str]:
    """The scripts of a language: the one in its name, or all that are likely somewhere."""
    stated = _stated_script(language)
    if stated:
        return {stated}
    likely = [tag.split("-") for key, tag in LIKELY_SUBTAGS.items() if key.split("-")[0] == language.language]
    return {subtags[1] for subtags in likely if len(subtags) > 1 and len(subtags[1]) == 4}
