"""The task of `TextGen-Translation-v0`: translate a sentence from or into an invented language, Velan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, ClassVar, Literal, get_args

from lm_envs.pretraining.telling import Dice
from lm_envs.rewards import Bleu, Chrf, ExactMatch, RewardFunction, WeightedSum
from lm_envs.tasks.record_task import Player, RecordState, SingleTurn
from lm_envs.tasks.records import Check, a_text, texts

Direction = Literal["to_english", "from_english"]
Metric = Literal["chrf", "bleu", "exact"]
Kind = Literal["person", "animal", "thing"]
PERSON, ANIMAL, THING = get_args(Kind)
ANIMATE, OBJECTS, ANYTHING = (PERSON, ANIMAL), (ANIMAL, THING), (PERSON, ANIMAL, THING)


class Translation(SingleTurn):
    """Translate a sentence of Velan, a small invented language with agreement, into English, or back.

    > Text: ravo nel belen ketitar mata fomon tipon ti ne rufita
    > Translation:

    > *The dog that followed the cats did not find a new boat near the mill.*

    The default direction is into English: it is what a language model of English is fluent in, so that the
    policy has to learn what the foreign words and endings mean, and not how to spell.

    ## Velan
    The words are those of `NOUNS`, `PLACES`, `ADJECTIVES`, `TRANSITIVE` and `INTRANSITIVE` in this module;
    lower case, no punctuation.

    - Order: place, subject, object, verb. An adjective follows its noun, a relative clause stands before it,
      the postposition (*su* in, *nel* near, *gar* behind) after it.
    - Endings of nouns and adjectives: *-a* animate, *-o* inanimate; plural *-e* and *-u*; objects add *-n*.
      The adjective has the gender, number and case of its noun: *mata ruka* "the big dog", *belen ruken* "the
      big cats" as an object.
    - The article: *ti* after the noun and its adjective is "a" and "some"; without it "the".
    - Verbs: stem, tense (*-is* present, *-it* past, *-el* future), and the subject's ending (*-a -e -o -u*):
      *ketita* "[it] followed". *ne* before the verb negates it. In a relative clause the verb adds *-r* and
      agrees with the noun that the clause is about.
    - Pronouns: *ila* he, *ema* she, *ilo* it, *ile* they; as objects *ilan, eman, ilon, ilen*. *ile* agrees
      as animate.

    ## Reward
    chrF, the F-score of character n-grams (sacreBLEU), 0 to 1; `metric="bleu"`: sentence BLEU (sacreBLEU), 0
    to 1; `metric="exact"`: 1 for a right translation, else 0. `reward_parts` holds the metric and `exact`. An
    empty completion gets 0. Each sentence has one translation by construction, up to two liberties of
    English, all of whose forms are references: "that" or "who" after persons, and "did not" or "didn't".

    There is no reward "minus cross-entropy against the reference": cross-entropy is a property of the
    policy's distribution, not of one sampled completion; as a reward it would be the same for every
    completion.

    ## Levels
    - "easy": subject, object or place, and verb: singular, definite, past.
    - "medium": numbers, articles, adjectives and tenses, and with them all agreement.
    - "hard": also relative clauses, pronouns and negation.

    ## Data
    `source` (text) and `reference` (a text or a list of texts, all of them right), of any two languages.

    ## Players
    "best" gives the first reference. Tricks: copying the source, its first three words, one sentence for
    every source, the most frequent words, and "gloss": the dictionary form of each word in the order of the
    source, which needs the whole vocabulary and no grammar.

    ## How it could be hacked
    chrF is soft on order and endings: a gloss gets about 0.35, and the words of a right translation in
    alphabetical order 0.55 (into Velan 0.65); BLEU gives them 0.1 and 0.2 (0.3 to 0.45), `exact` 0. What all
    sentences share ("The ... the ...") is worth 0.1 to 0.2 without any translation.
    `tests/test_task_translation.py` shows that no trick that knows no word gets 0.25.

    ## References
    Popovic 2015, "chrF: character n-gram F-score for automatic MT evaluation"; Papineni et al. 2002, "BLEU";
    Post 2018, "A Call for Clarity in Reporting BLEU Scores" (sacreBLEU).

    Args:
        language_model: the frozen model of the environment.
        direction: "to_english" or "from_english", of generated sentences.
        metric: "chrf", "bleu" or "exact"; not with `reward`.
        kwargs: `data`, `split`, `level` and `reward`, see `SingleTurn`.

    Raises:
        ValueError: a direction or metric that does not exist.
    """

    columns: ClassVar[Mapping[str, Check]] = {"source": a_text, "reference": texts}

    def __init__(
        self,
        language_model: Any,
        *,
        direction: Direction = "to_english",
        metric: Metric = "chrf",
        **kwargs: Any,
    ) -> None:
        if direction not in get_args(Direction):
            raise ValueError(f"direction must be 'to_english' or 'from_english', got {direction!r}")
        if metric not in get_args(Metric):
            raise ValueError(f"metric must be 'chrf', 'bleu' or 'exact', got {metric!r}")
        self.direction, self.metric = direction, metric
        super().__init__(language_model, **kwargs)

    def default_reward(self) -> RewardFunction:
        """The metric; whether the translation is right is reported."""
        exact = Exact()
        if self.metric == "exact":
            return exact
        metric = Chrf() if self.metric == "chrf" else Bleu()
        return WeightedSum({self.metric: (1.0, metric), "exact": (0.0, exact)})

    def generate(self, dice: Dice) -> dict[str, Any]:
        """A sentence in one language, and all its translations into the other."""
        sentence = draw_sentence(dice, self.level)
        english, velan = in_english(sentence), in_velan(sentence)
        if self.direction == "to_english":
            return {"source": velan, "reference": english}
        return {"source": dice.pick(english), "reference": [velan]}

    def prompt_of(self, record: Mapping[str, Any]) -> str:
        """The sentence, and where its translation begins."""
        return f"Text: {record['source']}\nTranslation:"

    def players(self) -> dict[str, Player]:
        """See the class."""
        to_english = self.direction == "to_english"
        constant = "The boy saw the dog." if to_english else "soba matan vemita"
        frequent = "The the a that not will boy girl" if to_english else "ti ne mata belan soba vemita"
        return {
            "best": lambda state: " " + state.columns["reference"][0],
            "copy": lambda state: " " + state.columns["source"],
            "first words": lambda state: " " + " ".join(state.columns["source"].split()[:3]),
            "constant": lambda state: " " + constant,
            "frequent words": lambda state: " " + frequent,
            "gloss": _gloss,
        }


class Exact(ExactMatch):
    """1 if the completion, without blanks around it, is one of its references, else 0. Empty: 0."""

    __name__ = "exact"

    def __init__(self) -> None:
        super().__init__(normalize=False)

    def score(self, completion: str, references: list[str]) -> float:
        """1.0 or 0.0 for one completion."""
        return super().score(completion.strip(), references)


# --- words ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noun:
    """`stem` and an ending in Velan; its English forms."""

    stem: str
    singular: str
    plural: str
    kind: Kind


@dataclass(frozen=True)
class Adjective:
    """`stem` and an ending in Velan; English; the kinds of nouns that it is said of."""

    stem: str
    english: str
    of: tuple[Kind, ...]


@dataclass(frozen=True)
class Verb:
    """`stem` and endings in Velan; its English forms; who does it, and to whom (nobody: intransitive)."""

    stem: str
    base: str
    third: str
    past: str
    subjects: tuple[Kind, ...]
    objects: tuple[Kind, ...] = ()


_PEOPLE = "sob boy, lin girl, kav baker, tor farmer, mer king, zan queen, pel teacher, hod sailor, vik doctor"
_ANIMALS = "mat dog, bel cat, gor horse, fin bird, rud fox, hun bear, nig goat, duv duck"
_THINGS = "fom boat, kes box, lum lamp, zot hat, vil book, pik key, tam drum, gil bell, sof cup, hek chair"
_PLACES = "nal garden, tol forest, dom house, bur barn, kol castle, vis tower, rav mill, mok market"


def _nouns(listed: str, kind: Kind) -> tuple[Noun, ...]:
    pairs = [entry.split() for entry in listed.split(", ")]
    return tuple(Noun(stem, word, word + ("es" if word[-1] == "x" else "s"), kind) for stem, word in pairs)


NOUNS = (*_nouns(_PEOPLE, PERSON), *_nouns(_ANIMALS, ANIMAL), *_nouns(_THINGS, THING))
PLACES = _nouns(_PLACES, THING)
POSTPOSITIONS = {"in": "su", "near": "nel", "behind": "gar"}
ADJECTIVES = (
    *(Adjective(*pair, ANYTHING) for pair in (("ruk", "big"), ("min", "small"), ("sal", "old"))),
    *(Adjective(*pair, ANIMATE) for pair in (("yun", "young"), ("hap", "happy"), ("brel", "brave"))),
    *(Adjective(*pair, (THING,)) for pair in (("tip", "new"), ("ros", "red"), ("gren", "green"))),
)
TRANSITIVE = (
    Verb("vem", "see", "sees", "saw", ANIMATE, ANYTHING),
    Verb("ruf", "find", "finds", "found", ANIMATE, ANYTHING),
    Verb("los", "watch", "watches", "watched", ANIMATE, ANYTHING),
    Verb("lub", "like", "likes", "liked", ANIMATE, ANYTHING),
    Verb("ket", "follow", "follows", "followed", ANIMATE, ANIMATE),
    Verb("dak", "help", "helps", "helped", ANIMATE, ANIMATE),
    Verb("fed", "feed", "feeds", "fed", (PERSON,), (ANIMAL,)),
    Verb("zam", "paint", "paints", "painted", (PERSON,), ANYTHING),
    Verb("von", "sell", "sells", "sold", (PERSON,), OBJECTS),
    Verb("bav", "buy", "buys", "bought", (PERSON,), OBJECTS),
    Verb("nes", "carry", "carries", "carried", ANIMATE, OBJECTS),
    Verb("tuv", "hide", "hides", "hid", ANIMATE, (THING,)),
)
INTRANSITIVE = (
    Verb("dor", "sleep", "sleeps", "slept", ANIMATE),
    Verb("sen", "wait", "waits", "waited", ANIMATE),
    Verb("kur", "run", "runs", "ran", ANIMATE),
    Verb("lal", "sing", "sings", "sang", (PERSON,)),
    Verb("pav", "fall", "falls", "fell", ANYTHING),
    Verb("stal", "stand", "stands", "stood", ANYTHING),
)


# --- sentences --------------------------------------------------------------------------------------------

Tense = Literal["present", "past", "future"]


@dataclass(frozen=True)
class Phrase:
    """A noun with what belongs to it, or a pronoun (English nominative; then `noun` only tells the kind)."""

    noun: Noun
    plural: bool = False
    definite: bool = True
    adjective: Adjective | None = None
    clause: Clause | None = None
    pronoun: str = ""


@dataclass(frozen=True)
class Clause:
    """A verb with its tense and object; of a sentence, or relative."""

    verb: Verb
    tense: Tense = "past"
    negated: bool = False
    object: Phrase | None = None


@dataclass(frozen=True)
class Sentence:
    """Who does what, and where: a preposition and a place."""

    subject: Phrase
    clause: Clause
    place: tuple[str, Noun] | None = None


def draw_sentence(dice: Dice, level: str) -> Sentence:
    """A sentence of a level; see `Translation`."""
    verb = dice.pick(TRANSITIVE if dice.below(4) else INTRANSITIVE)
    subject = _draw_phrase(dice, level, verb.subjects)
    clause = _draw_clause(dice, level, verb, subject.noun)
    if level == "hard":
        subject = _draw_relative(dice, subject)
        if not subject.clause and dice.below(3) == 0:
            subject = replace(subject, definite=True, adjective=None, pronoun=_pronoun(dice, subject))
    has_place = dice.below(4) == 0 if verb.objects else level == "easy" or dice.below(2) == 0
    place = (dice.pick(list(POSTPOSITIONS)), dice.pick(PLACES)) if has_place else None
    return Sentence(subject, clause, place)


def _draw_phrase(
    dice: Dice, level: str, kinds: tuple[Kind, ...], other_than: tuple[Noun, ...] = ()
) -> Phrase:
    noun = dice.pick([noun for noun in NOUNS if noun.kind in kinds and noun not in other_than])
    if level == "easy":
        return Phrase(noun)
    plural, definite = dice.below(2) == 0, dice.below(3) > 0
    said_of = [adjective for adjective in ADJECTIVES if noun.kind in adjective.of]
    return Phrase(noun, plural, definite, dice.pick(said_of) if dice.below(2) == 0 else None)


def _draw_clause(dice: Dice, level: str, verb: Verb, *nouns: Noun) -> Clause:
    """A clause whose object is none of the nouns."""
    if level == "easy":
        return Clause(verb, object=_draw_phrase(dice, level, verb.objects, nouns) if verb.objects else None)
    tense = dice.pick(get_args(Tense))
    negated = level == "hard" and dice.below(3) == 0
    if not verb.objects:
        return Clause(verb, tense, negated)
    phrase = _draw_phrase(dice, level, verb.objects, nouns)
    if level == "hard":
        if dice.below(3) == 0:
            phrase = replace(phrase, definite=True, adjective=None, pronoun=_pronoun(dice, phrase))
        elif dice.below(3) == 0:
            phrase = _draw_relative(dice, phrase)
    return Clause(verb, tense, negated, phrase)


def _draw_relative(dice: Dice, phrase: Phrase) -> Phrase:
    """The phrase, half of the time with a relative clause of at most a noun and an article."""
    if dice.below(2):
        return phrase
    verb = dice.pick([verb for verb in TRANSITIVE + INTRANSITIVE if phrase.noun.kind in verb.subjects])
    if verb.objects:
        own = replace(_draw_phrase(dice, "medium", verb.objects, (phrase.noun,)), adjective=None)
        return replace(phrase, clause=Clause(verb, dice.pick(get_args(Tense)), object=own))
    return replace(phrase, clause=Clause(verb, dice.pick(get_args(Tense))))


def _pronoun(dice: Dice, phrase: Phrase) -> str:
    """The pronoun for a phrase; animals are "he" or "she" here, so that "it" is inanimate."""
    if phrase.plural:
        return "they"
    return "it" if phrase.noun.kind == THING else dice.pick(("he", "she"))


# --- the two languages ------------------------------------------------------------------------------------

_TENSES = {"present": "is", "past": "it", "future": "el"}
_PRONOUNS = {"he": "ila", "she": "ema", "it": "ilo", "they": "ile"}
_RELATIVES = ("that", "who")
_OBJECT_PRONOUNS = {"he": "him", "she": "her", "it": "it", "they": "them"}


def in_velan(sentence: Sentence) -> str:
    """The sentence in Velan: one way to say it."""
    said = [*_velan_phrase(sentence.subject), *_velan_clause(sentence.clause, _vowel(sentence.subject))]
    if sentence.place:
        preposition, noun = sentence.place
        said = [noun.stem + "o", POSTPOSITIONS[preposition], *said]
    return " ".join(said)


def _vowel(phrase: Phrase) -> str:
    """The ending of a phrase and of all that agrees with it."""
    if phrase.pronoun:
        return _PRONOUNS[phrase.pronoun][-1]
    return {(False, False): "a", (False, True): "e", (True, False): "o", (True, True): "u"}[
        phrase.noun.kind == THING, phrase.plural
    ]


def _velan_phrase(phrase: Phrase, case: str = "") -> list[str]:
    if phrase.pronoun:
        return [_PRONOUNS[phrase.pronoun] + case]
    before = _velan_clause(phrase.clause, _vowel(phrase) + "r") if phrase.clause else []
    stems = [phrase.noun.stem, *([phrase.adjective.stem] if phrase.adjective else [])]
    article = [] if phrase.definite else ["ti"]
    return [*before, *(stem + _vowel(phrase) + case for stem in stems), *article]


def _velan_clause(clause: Clause, ending: str) -> list[str]:
    verb = clause.verb.stem + _TENSES[clause.tense] + ending
    said = _velan_phrase(clause.object, "n") if clause.object else []
    return [*said, *(["ne"] if clause.negated else []), verb]


def in_english(sentence: Sentence) -> list[str]:
    """All ways to say the sentence in English, the fullest form first."""
    ways = product((False, True), _RELATIVES, _RELATIVES)
    return list(dict.fromkeys(_english(sentence, who, whom, short) for short, who, whom in ways))


def _english(sentence: Sentence, who: str, whom: str, short: bool) -> str:
    """`who` and `whom`: the relative pronouns of the subject and of the object, if they are people."""
    subject = sentence.subject
    plural = subject.plural or subject.pronoun == "they"
    said = [
        subject.pronoun or _english_phrase(subject, who),
        _english_clause(sentence.clause, plural, whom, short),
    ]
    if sentence.place:
        said.append(f"{sentence.place[0]} the {sentence.place[1].singular}")
    text = " ".join(said)
    return text[0].upper() + text[1:] + "."


def _english_phrase(phrase: Phrase, relative: str = "") -> str:
    said = [phrase.adjective.english] if phrase.adjective else []
    said.append(phrase.noun.plural if phrase.plural else phrase.noun.singular)
    article = (
        "the" if phrase.definite else "some" if phrase.plural else "an" if said[0][0] in "aeiou" else "a"
    )
    if phrase.clause:
        said.append(relative if phrase.noun.kind == PERSON else "that")
        said.append(_english_clause(phrase.clause, phrase.plural))
    return " ".join([article, *said])


def _english_clause(clause: Clause, plural: bool, relative: str = "", short: bool = False) -> str:
    verb = clause.verb
    do = {"present": "do" if plural else "does", "past": "did", "future": "will"}[clause.tense]
    if clause.negated:
        shortened = "won't" if do == "will" else do + "n't"
        said = f"{shortened if short else do + ' not'} {verb.base}"
    elif clause.tense == "future":
        said = f"will {verb.base}"
    else:
        said = verb.past if clause.tense == "past" else verb.base if plural else verb.third
    if clause.object is None:
        return said
    if clause.object.pronoun:
        return f"{said} {_OBJECT_PRONOUNS[clause.object.pronoun]}"
    return f"{said} {_english_phrase(clause.object, relative)}"


# --- a player that knows the words and no grammar ---------------------------------------------------------


def _glosses() -> dict[str, str]:
    """Stem -> English dictionary form."""
    words = {noun.stem: noun.singular for noun in NOUNS + PLACES}
    words |= {adjective.stem: adjective.english for adjective in ADJECTIVES}
    return words | {verb.stem: verb.base for verb in TRANSITIVE + INTRANSITIVE}


def _gloss(state: RecordState) -> str:
    """The dictionary form of each word of either language, in the order of the source."""
    stems = _glosses()
    small = {velan: word for word, velan in (_PRONOUNS | POSTPOSITIONS | {"a": "ti", "not": "ne"}).items()}
    back = {word: velan for velan, word in (stems | small).items()}
    said = []
    for word in state.columns["source"].lower().strip(".").split():
        known = [stem for stem in stems if word.startswith(stem)]
        said.append(small.get(word) or back.get(word) or (stems[max(known, key=len)] if known else word))
    return " " + " ".join(said)
