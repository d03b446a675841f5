"""The task of `TextGen-Transcription-v0`: the text behind a noisy sequence of phonemes."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

from lm_envs.pretraining.telling import Dice, expand
from lm_envs.pretraining.world import BOYS, GIRLS
from lm_envs.rewards import RewardFunction, WordErrorRate
from lm_envs.tasks.record_task import TEST_SHARE, Player, SingleTurn
from lm_envs.tasks.records import Check, a_text, texts


class Transcription(SingleTurn):
    """Write the text behind a sequence of phonemes, misheard in places: speech recognition in symbols.

    > Sounds: l ih l iy, f aw m d, dh ah, r eh d, d ah m
    > Text:

    > *Lily found the red drum.*

    Phonemes have ARPAbet's names, in lower case and without stress; a comma stands between words. The
    dictionary is made by the letter-to-sound rules of this module: regular, and only nearly English.

    ## Reward
    Minus the word error rate (package jiwer), -1 to 0: wrong, missing and surplus words, divided by the words
    of the text, and never worse than -1. Case and punctuation do not count. An empty completion gets -1.

    ## Levels
    | level | text | in 100 phonemes: misheard, lost, made up | between words |
    |---|---|---|---|
    | "easy" | 5 words | 4, 1, 1 | a comma |
    | "medium" | 7 words | 8, 3, 3 | a comma |
    | "hard" | 11 or 12 words | 8, 3, 3 | nothing |

    What is misheard becomes a similar sound: "d" and "t", "m" and "n", "ih" and "iy". Without noise the
    text is the only one that the dictionary allows: no two words sound alike, nor do two sequences of
    words. With noise nobody can always be right (is "m ih" the mill or the mirror?); the best player reads
    the text itself.

    The splits share no text.

    ## Data
    `phonemes` (text, shown as it is) and `reference` (a text or a list of texts, all of them right).

    ## Players
    "best" gives the first reference. Tricks: "the", which is the most frequent word, the same sentence
    always, the phonemes themselves, and the phonemes of each word written as one word. No player, since it
    knows the dictionary, is an honest listener: the words with the fewest edits from what
    was heard, where there are commas, get about -0.03 at "easy" and -0.09 at "medium".

    ## How it could be hacked
    Words that are in most texts are right for nothing: "the" alone gets about -0.8 to -0.9, a whole sentence
    always the same -0.8 to -0.7. Leaving out a word costs as much as a wrong one, so guessing is never worse
    than silence. `tests/test_task_transcription.py` shows that no trick gets above -0.65.

    ## References
    Morris, Maier and Green 2004, "From WER and RIL to MER and WIL" (word error rate); the package jiwer.

    Args:
        language_model: the frozen model of the environment.
        kwargs: `data`, `split`, `level` and `reward`, see `SingleTurn`.
    """

    columns: ClassVar[Mapping[str, Check]] = {"phonemes": a_text, "reference": texts}

    def default_reward(self) -> RewardFunction:
        """Minus the word error rate."""
        return WordErrorRate()

    def generate(self, dice: Dice) -> dict[str, Any]:
        """A text of the split, and what was heard of it."""
        text = draw_text(dice, self.level)
        while (zlib.crc32(text.encode()) % TEST_SHARE == 0) != (self.split == "test"):
            text = draw_text(dice, self.level)
        heard = [mishear(pronounce(word), NOISE[self.level], dice) for word in spoken(text)]
        separator = " " if self.level == "hard" else ", "
        return {"phonemes": separator.join(" ".join(word) for word in heard if word), "reference": [text]}

    def prompt_of(self, record: Mapping[str, Any]) -> str:
        """The phonemes, and where the text begins."""
        return f"Sounds: {record['phonemes']}\nText:"

    def players(self) -> dict[str, Player]:
        """See the class."""
        constant = CONSTANTS[self.level]
        return {
            "best": lambda state: " " + state.columns["reference"][0],
            "most frequent word": lambda state: " the",
            "constant": lambda state: " " + constant,
            "copy": lambda state: " " + state.columns["phonemes"],
            "spelling": lambda state: " " + state.columns["phonemes"].replace(" ", "").replace(",", " "),
        }


# --- texts ------------------------------------------------------------------------------------------------

_WHO = f"[{'|'.join(GIRLS + BOYS)}]"
_ROLES = "[baker|sailor|teacher|miller|shepherd|gardener|doctor|tailor|farmer|king|queen|painter]"
_TRAITS = "[brave|shy|clever|quiet|careful|gentle|proud|lonely|young|happy|old|tired]"
_THINGS = "[boat|lamp|drum|kite|basket|box|hat|map|ring|coat|flute|wagon|blanket|candle|letter|mirror]"
_LOOKS = "[small|big|red|green|new|long|broken|silver|golden|dusty]"
_DID = "[found|lost|sold|painted|mended|carried|dropped|wanted|cleaned|borrowed|remembered|noticed]"
_MET = "[helped|followed|thanked|greeted|visited|invited|trusted]"
_MOVED = "[waited|rested|smiled|cried|slept|sang|laughed|stopped|listened]"
_WHERE = (
    "[in the [garden|castle|market|harbor|forest|cottage|barn]|under the [bridge|tower|castle]|"
    "[near|behind] the [mill|barn|tower|garden|castle|market|harbor|forest|cottage]]"
)

# The sentences of each level. No "an": "an a" would sound like "Anna".
_TEXTS = {
    "easy": (
        f"{_WHO} {_DID} the {_LOOKS} {_THINGS}.",
        f"The {_TRAITS} {_ROLES} {_MET} {_WHO}.",
        f"{_WHO} {_MOVED} {_WHERE}.",
        f"The {_ROLES} {_MET} the {_ROLES}.",
    ),
    "medium": (
        f"The {_TRAITS} {_ROLES} {_DID} [the|a] {_LOOKS} {_THINGS}.",
        f"{_WHO} {_DID} [the|a] {_THINGS} {_WHERE}.",
        f"{_WHO} and {_WHO} {_MET} the {_TRAITS} {_ROLES}.",
        f"The {_TRAITS} {_ROLES} {_MOVED} {_WHERE}.",
    ),
    "hard": (
        f"{_WHO} {_DID} [the|a] {_LOOKS} {_THINGS} and {_WHO} {_MOVED} {_WHERE}.",
        f"The {_TRAITS} {_ROLES} {_MET} {_WHO} and {_DID} [the|a] {_THINGS} {_WHERE}.",
        f"{_WHO} {_MOVED} {_WHERE} and the {_ROLES} {_DID} [the|a] {_THINGS}.",
    ),
}


def draw_text(dice: Dice, level: str) -> str:
    """A sentence of a level that names nobody twice."""
    while True:
        text = expand(dice.pick(_TEXTS[level]), {}, dice)
        named = [word for word in spoken(text) if word not in ("the", "a")]
        if len(set(named)) == len(named):
            return text


def spoken(text: str) -> list[str]:
    """The words of a text, lower case."""
    return re.findall("[a-z]+", text.lower())


# One text for all: it has many of the words that most texts have, where they have them.
CONSTANTS = {
    "easy": "The baker followed the king.",
    "medium": "The brave baker waited in the garden.",
    "hard": "Anna waited in the garden and the baker found the drum.",
}


@cache
def vocabulary() -> tuple[str, ...]:
    """All words that texts are made of, sorted."""
    return tuple(sorted({word for level in _TEXTS.values() for text in level for word in spoken(text)}))


# --- sounds -----------------------------------------------------------------------------------------------

# Words that the rules would say wrong.
_IRREGULAR = {
    "a": "ah",
    "behind": "b ih hh ay n d",
    "clever": "k l eh v er",
    "invited": "ih n v ay t ih d",
    "laughed": "l ae f t",
    "listened": "l ih s ah n d",
    "noah": "n ow ah",
    "noticed": "n ow t ih s t",
    "quiet": "k w ay ah t",
    "shepherd": "sh eh p er d",
    "the": "dh ah",
    "young": "y ah ng",
}

# Letters -> phonemes. At each place of a word the first rule that matches there is taken; it may look back,
# (?<=...), and ahead, (?=...). C stands for a consonant letter.
_RULES = tuple(
    (re.compile(pattern.replace("C", "[b-df-hj-np-tvxz]")), tuple(phonemes.split()))
    for pattern, phonemes in (
        # Endings.
        ("(?<=[a-z][td])ed$", "ih d"),
        ("(?<=[a-z][pkfsxh])ed$", "t"),
        ("(?<=rr)ied$", "iy d"),
        ("ied$", "ay d"),
        ("ired$", "ay er d"),
        ("ered$", "er d"),
        ("(?<=[a-z]{2})ed$", "d"),
        ("age$", "ih jh"),
        ("stle$", "s ah l"),
        ("le$", "ah l"),
        ("ful$", "f ah l"),
        ("on$", "ah n"),
        ("(?<=[a-z]{2})or$", "er"),
        ("ind$", "ay n d"),
        ("(?<=^Cr)y$", "ay"),
        ("(?<=^sh)y$", "ay"),
        ("y$", "iy"),
        ("a$", "ah"),
        ("o$", "ow"),
        ("e(?=ly$|$)", ""),
        # Long vowels.
        ("a(?=C(e|er|en)$)", "ey"),
        ("(?<=^C)e(?=Cer$)|e(?=[nr]a$)", "iy"),
        ("i(?=Ce$|led$|mon$)|^i(?=C[ai])", "ay"),
        ("i(?=ra$)", "iy"),
        ("o(?=ld|[kns][ea])", "ow"),
        ("u(?=Ce$|th$)", "uw"),
        ("u(?=Co$)", "y uw"),
        # Vowels of two letters, and with r, w and l.
        ("ear", "ih r"),
        ("ee|ea", "iy"),
        ("eo$", "iy ow"),
        ("ew", "uw"),
        ("ay(?=a)", "ay"),
        ("ai|ay", "ey"),
        ("oa", "ow"),
        ("ou", "aw"),
        ("ow(?=$|ed$)", "ow"),
        ("ow", "aw"),
        ("a(?=ll)", "ao"),
        ("(?<=w)a(?=n)", "aa"),
        ("are(?=ful$|$)", "eh r"),
        ("a(?=rr)", "ae"),
        ("ar", "aa r"),
        ("i(?=rr)", "ih"),
        ("o(?=rr)", "aa"),
        ("or", "ao r"),
        ("er|ir|ur", "er"),
        # Short vowels.
        ("a", "ae"),
        ("e", "eh"),
        ("i", "ih"),
        ("o", "aa"),
        ("u", "ah"),
        # Consonants.
        (r"(C)(?=\1)", ""),
        ("ck", "k"),
        ("ch", "ch"),
        ("sh", "sh"),
        ("th", "th"),
        ("qu", "k w"),
        ("dge", "jh"),
        ("ng$", "ng"),
        ("n(?=k)", "ng"),
        ("g(?=e)", "jh"),
        ("c(?=[ei])", "s"),
        ("(?<=[aeiou])s(?=[aeiou])", "z"),
        ("x", "k s"),
        *((letter, letter) for letter in "bdfgklmnprstvwyz"),
        ("c", "k"),
        ("h", "hh"),
        ("j", "jh"),
        ("q", "k"),
    )
)

# Level -> of 100 phonemes, how many are misheard, lost, and followed by one that nobody said.
NOISE = {"easy": (4, 1, 1), "medium": (8, 3, 3), "hard": (8, 3, 3)}

# Phonemes that are taken for each other: those of one group.
SIMILAR = (
    *("p b", "t d", "k g", "f v th", "th dh d", "s z", "sh s ch", "ch jh", "m n ng", "l r", "w v", "hh f"),
    *("y iy", "iy ih", "ih eh", "eh ae", "ae aa", "aa ah ao", "uw ow ao", "ey eh", "ay ey", "aw ow"),
    *("er r",),
)
_TAKEN_FOR: dict[str, list[str]] = {}
for _group in SIMILAR:
    for _phoneme in _group.split():
        _TAKEN_FOR.setdefault(_phoneme, []).extend(p for p in _group.split() if p != _phoneme)


@cache
def pronounce(word: str) -> tuple[str, ...]:
    """The phonemes of a lower-case word of ASCII letters."""
    if word in _IRREGULAR:
        return tuple(_IRREGULAR[word].split())
    phonemes: list[str] = []
    place = 0
    while place < len(word):
        found, said = next((match, said) for rule, said in _RULES if (match := rule.match(word, place)))
        phonemes += said
        place = found.end()
    return tuple(phonemes)


def mishear(phonemes: tuple[str, ...], noise: tuple[int, int, int], dice: Dice) -> list[str]:
    """What is heard of phonemes; `noise` as in `NOISE`."""
    substituted, deleted, inserted = noise
    heard: list[str] = []
    for phoneme in phonemes:
        roll = dice.below(100)
        if roll < substituted:
            heard.append(dice.pick(_TAKEN_FOR[phoneme]))
        elif roll >= substituted + deleted:
            heard.append(phoneme)
            if roll < substituted + deleted + inserted:
                heard.append(dice.pick(sorted(_TAKEN_FOR)))
    return heard
