"""The task of `TextGen-Dialogue-v0`: the desk's side of a conversation with a customer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lm_envs.pretraining.telling import Dice, expand
from lm_envs.pretraining.world import BOYS, GIRLS
from lm_envs.tasks.base import Append, Completion, Feedback
from lm_envs.tasks.record_task import Player, RecordTask
from lm_envs.tasks.records import Check, a_text

MAX_WORDS = 20  # of a turn; a longer one is not read


class Desk(NamedTuple):
    """A kind of desk: what customers come with, what can be wrong with it, what they get and are asked."""

    things: tuple[str, ...]
    problems: tuple[str, ...]
    offers: tuple[str, ...]
    facts: tuple[str, ...]


DESKS = (
    Desk(
        ("lamp", "clock", "chair", "coat", "kite", "ring", "basket", "blanket"),
        ("broken", "late", "lost", "wet", "torn", "too small"),
        ("new one", "money back", "gift", "cake"),
        ("number", "name", "place", "color"),
    ),
    Desk(
        ("boat trip", "garden trip", "island trip", "night trip"),
        ("late", "full", "too long", "too cold"),
        ("new trip", "warm room", "gift", "money back"),
        ("number", "name", "place", "time"),
    ),
    Desk(
        ("book", "song book", "map", "letter", "little book"),
        ("lost", "torn", "wet", "late"),
        ("new one", "new card", "gift", "cake"),
        ("number", "name", "place", "color"),
    ),
)
OPENINGS = (
    "Hello, my {thing} is {problem}.",
    "My {thing} is {problem}.",
    "Help, the {thing} is {problem}!",
    "Good morning. My new {thing} is {problem}.",
    "I am sad. My {thing} is {problem}.",
)
VAGUE_OPENINGS = (
    "Hello, I need help with my {thing}.",
    "I came about the {thing}.",
    "Good morning. It is about my {thing}.",
    "I am not happy with my {thing}.",
)

# Facts that a desk may need; the customer knows a name, a place, a color, a time of these lists as one.
NAMES = (*GIRLS, *BOYS)
PLACES = ("harbor", "market", "mill", "castle", "farm", "school", "lake", "forest")
COLORS = ("red", "blue", "green", "black", "white", "brown", "golden")
TIMES = ("morning", "noon", "evening", "midnight")
NUMBERS = tuple(map(str, range(10, 100)))
VALUES = {"number": NUMBERS, "name": NAMES, "place": PLACES, "color": COLORS, "time": TIMES}
# How the customer tells them; other facts are told as they stand.
TELLING = {
    "number": ("It is {}.", "Number {}."),
    "name": ("I am {}.", "My name is {}."),
    "place": ("At the {}.", "By the {}."),
    "color": ("It is {}.", "A {} one."),
    "time": ("It was {}.", "About {}."),
    "problem": ("It is {}.", "Oh, it is {}."),
}
# How the best player asks.
QUESTIONS = {
    "name": "What is your name",
    "place": "Where do you live",
    "color": "What color is it",
    "problem": "I am sorry. What is wrong",
}
SYNONYMS = {
    "where": "place",
    "when": "time",
    "who": "name",
    "wrong": "problem",
    "happened": "problem",
    "matter": "problem",
}

POLITE = {"please", "thank", "thanks", "sorry", "glad", "happy", "welcome", "gladly", "course", "kind"}
RUDE = {"stupid", "idiot", "shut", "fool", "hate", "ugly", "silly", "liar", "dumb"}
_QUESTION = re.compile(r"\b(tell (me|us)|give (me|us)|(i|we) need|(may|can|could) (i|we) have)\b")
_NEGATION = re.compile(r"\b(not|never|cannot|without|no(?! problem))\b|n't\b")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")


@dataclass(frozen=True)
class DialogueState:
    """A conversation.

    Attributes:
        prompt: the text that the agent reads first.
        index: the record's number.
        columns: the record.
        text: everything said so far, as the agent reads it.
        hidden: facts that the customer has not told yet, name -> value.
        turns: the agent's turns before the rating.
        polite_turns: those among them that were polite.
        annoyances: how often the customer was annoyed.
        rated: whether the goal is met and the customer has given the stars: what is left is a goodbye.
    """

    prompt: str
    index: int | None
    columns: Mapping[str, Any]
    text: str
    hidden: Mapping[str, str]
    turns: int = 0
    polite_turns: int = 0
    annoyances: int = 0
    rated: bool = False


def facts(name: str, value: Any) -> dict[str, str]:
    """A column of facts: a dict of texts, or a text such as "number: 47; place: mill"; may be empty.

    Entries of None are left out: so a Parquet file or a `datasets.Dataset` says that a row lacks this fact.

    Raises:
        ValueError: neither of these.
    """
    if isinstance(value, str):
        pairs = [part.split(":", 1) for part in value.split(";") if part.strip()]
        if any(len(pair) < 2 for pair in pairs):
            raise ValueError(f"{name} must be facts such as 'number: 47; place: mill', got {value!r:.60}")
        return {key.strip().lower(): each.strip() for key, each in pairs}
    if not isinstance(value, Mapping) or not all(
        isinstance(key, str) and isinstance(each, str | None) for key, each in value.items()
    ):
        raise ValueError(f"{name} must be a dict of texts, or one text, got {value!r:.60}")
    return {key.lower(): each for key, each in value.items() if each is not None}


def phrases(name: str, value: Any) -> list[str]:
    """A column of phrases: a non-empty list of texts, or one text with `;` between them.

    Raises:
        ValueError: neither of these, or a phrase without a word.
    """
    found = [each.strip() for each in value.split(";")] if isinstance(value, str) else value
    if (
        not isinstance(found, Sequence)
        or not found
        or not all(isinstance(x, str) and words(x) for x in found)
    ):
        raise ValueError(
            f"{name} must be a non-empty list of texts, or one with ';' in it, got {value!r:.60}"
        )
    return list(found)


def patience(name: str, value: Any) -> int:
    """A column of whole numbers >= 1, or texts of such. Raises ValueError."""
    if isinstance(value, bool) or not re.fullmatch("[1-9][0-9]?", str(value)):
        raise ValueError(f"{name} must be an integer in 1..99, got {value!r:.60}")
    return int(value)


class Dialogue(RecordTask):
    """The desk's side of a conversation with a customer, turn by turn.

    ## Description
    A customer comes to a desk. The prompt shows the rules of the desk (which problem is answered by which
    offer), what has to be asked for, and what the customer says first. Each turn of the agent is one line of
    the desk's; the simulated customer answers with a line of their own:

    ```
    Rules: late, gift; broken, new one. Ask: number, place.
    User: Hello, my lamp is broken.
    Desk: I am sorry. What is the number, please?
    User: It is 47.
    Desk: Where do you live, please?
    User: By the mill.
    Desk: Sorry, you get a new one for number 47, the mill.
    User: Thank you! 5 stars.
    Desk: You are welcome. Goodbye.
    ```

    What the customer knows and how patient they are is hidden: the agent has to ask, to read the answers
    (some customers tell two things at once, some have said their name already), to look up the rule, and to
    repeat what it was told. What was done wrong is said in plain words ("That is not what I asked.", "One
    thing at a time!"), and the goal met is rated with stars; both stay in the context.

    ## How the customer understands
    By rules, on whole words, case ignored. A sentence that ends in "?" or says "tell me", "give me", "I
    need", "may I have" is a question; it asks for the facts that it names ("where" is the place, "when" the
    time, "who" the name, "what is wrong", "what happened" the problem). Any other sentence that names an
    offer promises it; with a "not", "no", "never", "cannot", "without" in it, it denies it. In this order:

    | The turn                                                             | The customer                 |
    |----------------------------------------------------------------------|------------------------------|
    | has no word, a rude word, more than 20 words, or repeats itself      | is annoyed                   |
    | promises two offers                                                  | is annoyed                   |
    | denies an offer, or promises one that the rules do not give          | leaves                       |
    | promises the right one before all facts are asked for                | is annoyed                   |
    | promises it without the facts, or with another number, place, ...    | is annoyed                   |
    | promises it with the facts                                           | is helped, and gives stars   |
    | asks for two things at once, for nothing, or for what is not needed  | is annoyed                   |
    | asks for one fact that is needed and not told yet                    | tells it                     |

    An annoyed customer says why; one whose patience is used up leaves, which ends the episode. After the
    stars comes one more turn of the agent's, and the episode is over.

    ## Rewards
    Paid per turn: how the customer's satisfaction changes. Their sum is at most 1:

    `0.2 * (share of the facts that were told) + 0.5 * helped + 0.2 * helped * polite + 0.1 * goodbye
    - 0.1 * annoyances`

    `polite` is the share of the turns up to the stars with a polite word ("please", "sorry", "thank", ...),
    `goodbye` is 1 if the turn after the stars is polite, makes no promise and has at most 10 words. A turn
    that says nothing gets -0.1; an agent that always says nothing gets minus 0.1 times the patience. These
    parts are in `info["reward_parts"]` of every turn, the customer's answer in `info["reply"]`.
    `info["stars"]`, 1 to 5, comes with the rating: 5 less the annoyances, less 1 if not even half of the
    turns were polite.

    ## Levels
    | Level    | Rules | Facts to ask for                         | Patience |
    |----------|-------|------------------------------------------|----------|
    | "easy"   | 2     | 1                                        | 3        |
    | "medium" | 3     | 2; some customers introduce themselves   | 2        |
    | "hard"   | 3     | 3, the problem among them                | 1        |

    ## Data
    Columns of `data=` (lists as JSON or with ";" between the items, so that CSV can hold them):

    | Column     | Type                | Meaning                                                             |
    |------------|---------------------|---------------------------------------------------------------------|
    | `rules`    | str                 | what the agent reads before the conversation                        |
    | `opening`  | str                 | the customer's first line                                           |
    | `facts`    | dict or str         | what the customer tells when asked: "number: 47; place: mill"       |
    | `answer`   | list of str or str  | the right offer, then the values to repeat: "new one; 47; mill"     |
    | `wrong`    | list of str or str  | offers that are wrong here                                          |
    | `patience` | int                 | annoyances after which the customer leaves                          |

    A further column `talkative` (true or false) says whether the customer tells two facts at a time.

    ## Players
    "best" asks for what is hidden and gives what the rules say: 1.0. The tricks: silence; the customer's own
    words; one polite sentence; one question again and again; every question and every offer at once; the
    customer's words with the first offer; and "ask and guess", which asks for all that the rules list, and
    then promises the first offer with all that it was told. "ask and guess" is the best of them: 0.50, 0.26
    and 0.27 at the three levels.

    ## How it could be hacked
    - All keywords at once: two questions or two offers in a turn annoy, and nothing is told
      (`test_keywords_at_once_do_not_win`).
    - Trying one offer after the other: a wrong promise ends the conversation.
    - Guessing numbers: a fact counts when the customer has told it, and another number in the promise is an
      error.
    - Keywords without grammar: "Please number?" is understood as a question, and "Sorry gift 47." as a
      promise: such a telegram gets the full reward (`test_telegrams_are_understood`). A KL penalty to a
      language model keeps an agent from it; the simulated customer does not.
    - Politeness is a list of words: "please" in every turn is all that it takes.

    Args:
        language_model: the frozen model of the environment; not used.
        data, split, level: see `RecordTask`.

    ## References
    - Schatzmann et al., "Agenda-based user simulation for bootstrapping a POMDP dialogue system", 2007.
    - Walker et al., "PARADISE: a framework for evaluating spoken dialogue agents", 1997 (task success and
      dialogue costs as satisfaction).
    """

    columns: ClassVar[Mapping[str, Check]] = {
        "rules": a_text,
        "opening": a_text,
        "facts": facts,
        "answer": phrases,
        "wrong": phrases,
        "patience": patience,
    }

    def generate(self, dice: Dice) -> dict[str, Any]:
        """A customer and the rules of a desk."""
        size = {"easy": 2, "medium": 3, "hard": 3}[self.level]
        desk = dice.pick(DESKS)
        problems, offers = sample(dice, desk.problems, size), sample(dice, desk.offers, size)
        needed = sample(dice, desk.facts, 1 if self.level == "easy" else 2)
        listed, introduces_self = list(needed), self.level == "medium" and dice.below(2) == 0
        if introduces_self:  # the name is on the list, but need not be asked for
            needed = sample(dice, tuple(fact for fact in desk.facts if fact != "name"), 2)
            listed = sample(dice, ("name", *needed), 3)
        hidden = {fact: dice.pick(VALUES[fact]) for fact in needed}
        which, thing = dice.below(size), dice.pick(desk.things)
        right = offers[which]
        openings: Sequence[str] = VAGUE_OPENINGS if self.level == "hard" else OPENINGS
        answer = [right, *hidden.values()]
        if self.level == "hard":
            hidden, listed = {"problem": problems[which], **hidden}, ["problem", *listed]
        opening = dice.pick(openings) + (f" I am {dice.pick(NAMES)}." if introduces_self else "")
        rules = "; ".join(f"{problem}, {offer}" for problem, offer in zip(problems, offers, strict=True))
        return {
            "rules": f"{rules}. Ask: {', '.join(listed)}.",
            "opening": expand(opening, {"thing": thing, "problem": problems[which]}, dice),
            "facts": hidden,
            "answer": answer,
            "wrong": [offer for offer in desk.offers if offer != right],
            "patience": {"easy": 3, "medium": 2, "hard": 1}[self.level],
            "talkative": self.level != "easy" and dice.below(4) == 0,
        }

    def prompt_of(self, record: Mapping[str, Any]) -> str:
        """The rules, the customer's first line, and the desk's turn."""
        return f"Rules: {record['rules']}\nUser: {record['opening']}\nDesk:"

    def opening(self, record: Mapping[str, Any], index: int) -> DialogueState:
        """A conversation in which the customer has spoken once."""
        prompt = self.prompt_of(record)
        return DialogueState(prompt, index, record, prompt, record["facts"])

    def respond(
        self,
        states: Sequence[DialogueState],
        completions: Sequence[Completion],
        rngs: Sequence[np.random.Generator],
    ) -> list[Feedback]:
        """The customers' answers; see `Task.respond`."""
        return [self._answer(*each) for each in zip(states, completions, rngs, strict=True)]

    def players(self) -> dict[str, Player]:
        """See the class docstring."""
        every_offer = sorted({offer for desk in DESKS for offer in desk.offers})
        everything = (
            f"Please, the {', the '.join((*VALUES, 'problem'))}? You get a {', a '.join(every_offer)}."
        )
        players: dict[str, Player] = {
            "best": best,
            "silence": lambda state: "",
            "echo": last_line,
            "polite sentence": lambda state: "I am very sorry. Thank you, I am glad to help.",
            "one question": lambda state: "What is the number, please?",
            "everything at once": lambda state: everything,
            "echo and first offer": lambda state: (
                f"Sorry, {last_line(state)} You get a {first_offer(state)}."
            ),
            "ask and guess": ask_and_guess,
        }
        return {name: spaced(player) for name, player in players.items()}

    def _answer(self, state: DialogueState, completion: Completion, rng: np.random.Generator) -> Feedback:
        heard = completion.text.strip()
        said = words(heard)
        polite = not POLITE.isdisjoint(said)
        if state.rated:
            goodbye = polite and len(said) <= 10 and not promises(heard, offers_of(state.columns))
            info = {"reward_parts": {"goodbye": 0.1 * goodbye}}
            return Feedback(0.1 * goodbye, True, replace(state, text=f"{state.text} {heard}"), info)
        state = replace(state, turns=state.turns + 1, polite_turns=state.polite_turns + polite)
        complaint = complain(state, heard)
        if complaint is not None:
            state = replace(state, annoyances=state.annoyances + 1)
            leaves = complaint == WRONG or state.annoyances >= state.columns["patience"]
            return reply(state, completion, complaint, {"annoyed": -0.1}, done=leaves)
        if promises(heard, offers_of(state.columns)):
            share = state.polite_turns / state.turns
            stars = max(1, 5 - state.annoyances - (share < 0.5))
            parts = {"helped": 0.5, "polite": 0.2 * share}
            if not state.columns["facts"]:
                parts["facts"] = 0.2
            line = f"Thank you! {stars} star{'s' * (stars > 1)}."
            answer = reply(replace(state, rated=True), completion, line, parts)
            return replace(answer, info={**answer.info, "stars": stars})
        (asked,) = questions(heard, state.columns)
        told = [asked]
        if is_true(state.columns.get("talkative", False)):
            told += [fact for fact in state.hidden if fact not in (asked, "problem")][:1]
        lines = [TELLING.get(fact, ("{}.",)) for fact in told]
        line = " ".join(
            options[rng.integers(len(options))].format(state.hidden[fact])
            for options, fact in zip(lines, told, strict=True)
        )
        hidden = {fact: value for fact, value in state.hidden.items() if fact not in told}
        gain = 0.2 * len(told) / len(state.columns["facts"])
        return reply(replace(state, hidden=hidden), completion, line, {"facts": gain})


WRONG = "That is not right. Goodbye."


def complain(state: DialogueState, heard: str) -> str | None:
    """What is wrong with a turn; None if it is a promise that helps, or a question to answer."""
    said, record = words(heard), state.columns
    if not said:
        return "Hello?"
    if not RUDE.isdisjoint(said):
        return "That is rude."
    if len(said) > MAX_WORDS or len(set(said)) < 0.7 * len(said):
        return "I do not understand you."
    promised = promises(heard, offers_of(record))
    right, *values = record["answer"]
    if len(set(promised)) > 1:
        return "Which one?"
    if promised:
        if promised != {right: True}:
            return WRONG
        if state.hidden:
            return f"And the {next(iter(state.hidden))}?"
        if not all(holds(heard, value) for value in values) or mixes_up(said, record["answer"]):
            return "That is not what I told you."
        return None
    asked = questions(heard, record)
    if not asked:
        return "That is not what I asked."
    if len(asked) > 1:
        return "One thing at a time!"
    (fact,) = asked
    if fact in state.hidden:
        return None
    return "I told you that." if fact in record["facts"] else "You do not need that."


def reply(
    state: DialogueState, completion: Completion, line: str, parts: Mapping[str, float], done: bool = False
) -> Feedback:
    """The customer says a line, and the desk is next."""
    heard = completion.text.strip()
    turn = f"User: {line}\nDesk:"
    context = turn if completion.finish_reason == "stop" else f"\n{turn}"
    state = replace(state, text=f"{state.text} {heard}\n{turn}")
    info = {"reward_parts": dict(parts), "reply": line}
    return Feedback(sum(parts.values()), done, state, info, Append(context))


def words(text: str) -> list[str]:
    """Lower-case words and numbers."""
    return _WORD.findall(text.lower())


def holds(text: str, phrase: str) -> bool:
    """Whether a text holds a phrase as whole words."""
    return f" {' '.join(words(phrase))} " in f" {' '.join(words(text))} "


def offers_of(record: Mapping[str, Any]) -> list[str]:
    """The right offer and the wrong ones."""
    return [record["answer"][0], *record["wrong"]]


def sentences(text: str) -> tuple[list[str], list[str]]:
    """The questions and the other sentences of a text, in lower case."""
    parts = [part.strip() for part in _SENTENCE.findall(text.lower())]
    asks = [part.endswith("?") or _QUESTION.search(part) is not None for part in parts]
    pairs = list(zip(parts, asks, strict=True))
    return [part for part, ask in pairs if ask], [part for part, ask in pairs if not ask]


def named(text: str, names: Sequence[str]) -> list[str]:
    """The names that a text holds as whole words; "card" is not named by "new card", if both are names."""
    found = [name for name in names if holds(text, name)]
    return [name for name in found if not any(name != other and holds(other, name) for other in found)]


def promises(text: str, offers: Sequence[str]) -> dict[str, bool]:
    """The offers that a text's statements name -> whether it promises them (False: denies)."""
    found: dict[str, bool] = {}
    for sentence in sentences(text)[1]:
        for offer in named(sentence, offers):
            found[offer] = found.get(offer, True) and not _NEGATION.search(sentence)
    return found


def questions(text: str, record: Mapping[str, Any]) -> set[str]:
    """The facts that a text's questions name: those of the record and the common ones."""
    names = [*dict.fromkeys([*record["facts"], *VALUES, "problem"]), *SYNONYMS]
    return {SYNONYMS.get(name, name) for sentence in sentences(text)[0] for name in named(sentence, names)}


def mixes_up(said: Sequence[str], values: Sequence[str]) -> bool:
    """Whether numbers, names, places, colors or times are said other than the right ones of their kind."""
    right = {word for value in values for word in words(value)}
    if any(word.isdigit() and word not in right for word in said):
        return True
    for kind in (NAMES, PLACES, COLORS, TIMES):
        known = {value.lower() for value in kind}
        if known & right and not known.intersection(said) <= right:
            return True
    return False


def is_true(value: Any) -> bool:
    """A column of true and false, also as text."""
    return str(value).lower() in ("true", "1", "yes")


def sample(dice: Dice, options: Sequence[str], size: int) -> list[str]:
    """`size` different options in random order."""
    rest = list(options)
    return [rest.pop(dice.below(len(rest))) for _ in range(size)]


def spaced(player: Player) -> Player:
    """Writes the blank behind "Desk:" too, unless nothing follows it."""

    def write(state: DialogueState) -> str:
        line = player(state)
        return f" {line}" if line else ""

    return write


def best(state: DialogueState) -> str:
    """Asks for what is hidden, then gives what the rules say: the best possible player."""
    if state.rated:
        return "You are welcome. Goodbye."
    for fact in state.hidden:
        return f"{QUESTIONS.get(fact, f'What is the {fact}')}, please?"
    offer, *values = state.columns["answer"]
    what = offer if offer.startswith("money") else f"a {offer}"
    told = [f"number {value}" if value.isdigit() else value for value in values]
    told = [f"the {value}" if value in PLACES else value for value in told]
    return f"Sorry, you get {what} for {', '.join(told)}."


def last_line(state: DialogueState) -> str:
    """What the customer said last."""
    return state.text.removesuffix("\nDesk:").rpartition("User: ")[2]


def first_offer(state: DialogueState) -> str:
    """The first offer of the rules."""
    return state.prompt.partition(", ")[2].partition(";")[0]


def ask_and_guess(state: DialogueState) -> str:
    """Asks for all that the rules list, in order, then promises the first offer with all that was told."""
    listed = state.prompt.partition("Ask: ")[2].partition(".")[0].split(", ")
    lines = state.text.partition("\n")[2]
    for fact in listed:
        if f"the {fact}, please?" not in lines:
            return f"What is the {fact}, please?"
    told = " ".join(line for line in lines.splitlines() if line.startswith("User:"))
    vocabulary = [value for values in VALUES.values() for value in values]
    values = [value for value in vocabulary if holds(told, value)]
    return f"Sorry. You get a {first_offer(state)} for {', '.join(values)}."
