"""The task of `TextGen-Edit-v0`: mend a corrupted sentence by edit operations."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np

from lm_envs.pretraining.telling import Dice
from lm_envs.rewards import Fluency
from lm_envs.rewards.base import finite_number, whole_number
from lm_envs.tasks.base import Completion, Feedback, Replace
from lm_envs.tasks.record_task import Player, RecordTask
from lm_envs.tasks.records import Check, a_text, check_text, or_nothing

if TYPE_CHECKING:
    from lm_envs.language_model import LanguageModel

# What "insert" and "replace" offer: function words that hardly ever stand for each other.
WORDS = ("the", "and", "had", "was", "of", "to", "with", "it")
# The most words that a text may have, and so the number of positions.
MAX_WORDS = 16
# level -> how many corruptions, of which kinds.
CORRUPTIONS = {
    "easy": (1, ("swap", "duplicate", "delete")),
    "medium": (2, ("swap", "duplicate", "delete", "replace")),
    "hard": (4, ("swap", "duplicate", "delete", "replace", "insert")),
}
# Words of the generated sentences.
LENGTHS = range(6, 13)
# In characters: the story so far, 16 numbered words and an edit fit into 256 tokens of the bundled model.
LONGEST_BEFORE = 620

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")

Text = tuple[str, ...]


class EditOperation(NamedTuple):
    """One of the offered edits: "delete 3", "swap 3", "insert 3 the", "replace 3 the" or "done".

    Attributes:
        name: what to do.
        position: number of the word, the first is 1; 0 for "done".
        word: what is inserted or put in place; "" for the other operations.
    """

    name: Literal["done", "delete", "swap", "insert", "replace"]
    position: int = 0
    word: str = ""

    def __str__(self) -> str:
        """As the agent writes it."""
        return " ".join(str(part) for part in self if part)

    def fits(self, text: Text) -> bool:
        """Whether it can be done and changes something ("done" need not)."""
        at, size = self.position - 1, len(text)
        if self.name == "insert":
            return at <= size < MAX_WORDS
        if self.name == "replace":
            return at < size and text[at] != self.word
        if self.name == "swap":
            return at + 1 < size and text[at] != text[at + 1]
        return self.name == "done" or at < size > 1

    def apply(self, text: Text) -> Text:
        """The words after this edit, which fits."""
        at = self.position - 1
        if self.name == "done":
            return text
        if self.name == "insert":
            return (*text[:at], self.word, *text[at:])
        if self.name == "replace":
            return (*text[:at], self.word, *text[at + 1 :])
        if self.name == "swap":
            return (*text[:at], text[at + 1], text[at], *text[at + 2 :])
        return text[:at] + text[at + 1 :]


def _given_text(name: str, value: Any) -> str:
    """A column of texts that can be edited."""
    check_text(value, name)
    if not 1 <= len(value.split()) <= MAX_WORDS:
        raise ValueError(
            f"{name} must have 1 to {MAX_WORDS} words, got {len(value.split())} in {value!r:.60}"
        )
    return value


def _reference(name: str, value: Any) -> str:
    check_text(value, name)
    if not value.split():
        raise ValueError(f"{name} must have a word, got {value!r}")
    return value


@dataclass(frozen=True)
class EditState:
    """What an episode knows.

    Attributes:
        prompt: what the agent reads now.
        index: the record's number.
        before: the story up to the text.
        given: the words of the text as it was at first.
        words: its words now.
        reference: the words of the clean sentence, unknown to the agent.
        edits_left: turns until the end.
    """

    prompt: str
    index: int | None
    before: str
    given: Text
    words: Text
    reference: Text
    edits_left: int


class Edit(RecordTask):
    """Mend a sentence of a story, into which mistakes have come, by edits at numbered positions.

    ## What the agent reads and writes
    The story so far, the text with its words numbered, and how many edits are left. It writes one edit a
    turn; the next prompt shows the new text.

    ```
    Finn lived in a green valley of small farms and hoped to play the banjo at the village dance.
    Text: 1 But 2 suddenly 3 a 4 storm 5 over 6 roared 7 the 8 fields.
    Edits left: 6
    Edit: swap 5
    ```

    | Edit            | Does                                                              |
    |-----------------|-------------------------------------------------------------------|
    | `delete 3`      | takes word 3 out                                                  |
    | `swap 3`        | exchanges words 3 and 4                                           |
    | `insert 3 the`  | puts a word of a short list before word 3 (behind the last, too)  |
    | `replace 3 the` | puts a word of the list in the place of word 3                    |
    | `done`          | ends the episode                                                  |

    The list is `words`; by default "the", "and", "had", "was", "of", "to", "with", "it". Punctuation belongs
    to the word before it. The episode ends with "done" or when no edit is left.

    With `actions="edit"` (the registered default) the action space is a `Discrete` of all these edits
    (`task.choices["edit"]`, "done" is 0) at positions 1 to 16. The mask allows those that can be done now:
    the position exists, the text changes, and it keeps 1 to 16 words. In token mode, a completion that is no
    allowed edit changes nothing and counts as an edit.

    ## Reward
    Paid at the end of the episode, -1 to 1:

    `grammar_weight * grammar + (1 - grammar_weight) * similarity`

    - `grammar`: the share of the lost log-probability that is back,
      `(lp(final) - lp(given)) / max(lp(source) - lp(given), 1)`, cut to -1..1. lp is the mean over a text's
      tokens under the frozen model after the story so far, in nats; the source is the sentence before it was
      corrupted.
    - `similarity` to the source: the share of the mistakes that is gone,
      `(d(given) - d(final)) / d(given)`, cut to -1..1. d is the number of edits that lead to the source
      (optimal string alignment distance over words).

    Both are 0 for the text as it was given: "done" at once, and an empty completion in every turn, get
    exactly 0. The source gets 1, if lp tells it from the given text by 1 nat a token.

    ## Data
    Generated sentences of 6 to 12 words come from the stories that the bundled model knows. Records of `data`
    have the columns `text` (to be mended, at most 16 words) and `reference` (the source); optional: `before`
    (what stands before it, for agent and model to read). Where `words` do not suffice to get from text to
    reference, the best score is lower.

    ## Levels
    - easy: one mistake; a word changed places with the next, stands twice or is missing.
    - medium: two; a word may also be replaced by one of the list.
    - hard: four; there may also be a word of the list too many.

    ## Players
    "best" undoes the mistakes one by one. Tricks: "done" at once; "delete_first" until no edit is left;
    "random" edits; "unrepeat" deletes the second of two equal neighbors until there are none.

    ## How it could be hacked
    - By doing nothing, or never saying "done": exactly 0.
    - By deleting, or by random edits: below 0, because `similarity` falls with each edit that does not lead
      to the source.
    - By a single habit: "unrepeat" gets what doubled words are worth, 0.2 to 0.4 on easy texts.
    - By editing the text into whatever the model finds most likely: what is far from the source gets 0 or
      less in sum. A greedy search for the likeliest text, which asks the frozen model about every edit, got
      0.95 on easy and 0.86 on hard texts with the first bundled model, and did so by mending them
      (similarity 0.92 and 0.77).

    ## References
    - Dahlmeier and Ng, "Better evaluation for grammatical error correction", 2012: edits against a source.
    - Boytsov, "Indexing methods for approximate dictionary searching", 2011: optimal string alignment, which
      rapidfuzz computes.

    Args:
        language_model: the frozen model of the environment; it judges grammar.
        data, split, level: see `RecordTask`.
        words: what "insert" and "replace" offer, different words without blanks.
        max_edits: turns of an episode, at least 1.
        grammar_weight: 0 to 1.

    Raises:
        ValueError: an argument out of range, or bad data.
    """

    columns: ClassVar[Mapping[str, Check]] = {"text": _given_text, "reference": _reference}
    optional: ClassVar[Mapping[str, Check]] = {"before": or_nothing(a_text)}

    def __init__(
        self,
        language_model: LanguageModel,
        *,
        words: Sequence[str] = WORDS,
        max_edits: int = 6,
        grammar_weight: float = 0.5,
        **kwargs: Any,
    ) -> None:
        if isinstance(words, str) or not words or len({*words}) < len(words):
            raise ValueError(f"words must be a non-empty list of different words, got {words!r:.80}")
        for index, word in enumerate(words):
            check_text(word, f"words[{index}]")
            if word.split() != [word]:
                raise ValueError(f"words[{index}] must be one word, without blanks, got {word!r}")
        self.max_edits = whole_number("max_edits", max_edits, 1)
        self.grammar_weight = finite_number("grammar_weight", grammar_weight)
        if not 0 <= self.grammar_weight <= 1:
            raise ValueError(f"grammar_weight must be in 0..1, got {grammar_weight!r}")
        super().__init__(language_model, **kwargs)
        self.words = tuple(words)
        self.operations = operations(self.words)
        self.choices = {"edit": tuple(str(operation) for operation in self.operations)}
        self._by_name = dict(zip(self.choices["edit"], self.operations, strict=True))
        self._log_prob = Fluency(language_model)

    def generate(self, dice: Dice) -> dict[str, Any]:
        """A sentence of a story, its corruption and what comes before it."""
        from lm_envs.pretraining.stories import story

        count, kinds = CORRUPTIONS[self.level]
        while True:
            sentences = _SENTENCE_END.split(story(dice.below(2**32), self.split).text)
            at = 1 + dice.below(len(sentences) - 1)
            before, reference = " ".join(sentences[:at]), tuple(sentences[at].split())
            # Speech may be cut anywhere.
            if len(reference) not in LENGTHS or '"' in sentences[at] or before.count('"') % 2:
                continue
            if len(before) > LONGEST_BEFORE:
                continue
            text, mistakes = reference, 0
            while distance(text, reference) == mistakes < count:
                options = corruptions(dice.pick(kinds), text, self.words)
                text, mistakes = dice.pick(options) if options else text, mistakes + 1
            # Fewer if two undo each other, or a sentence has no word of the list.
            if distance(text, reference) == count:
                return {"text": " ".join(text), "reference": " ".join(reference), "before": before}

    def prompt_of(self, record: Mapping[str, Any]) -> str:
        """The story so far, the numbered words, the budget."""
        return self._prompt(record.get("before") or "", tuple(record["text"].split()), self.max_edits)

    def opening(self, record: Mapping[str, Any], index: int) -> EditState:
        """Nothing is edited yet."""
        given, before = tuple(record["text"].split()), record.get("before") or ""
        reference = tuple(record["reference"].split())
        return EditState(self.prompt_of(record), index, before, given, given, reference, self.max_edits)

    def allowed(self, states: Sequence[EditState], mode: str) -> np.ndarray:
        """Which edits can be done now and change something, (n, N) bool; "done" always is."""
        return np.array(
            [[operation.fits(state.words) for operation in self.operations] for state in states], np.bool_
        ).reshape(len(states), len(self.operations))

    def respond(
        self,
        states: Sequence[EditState],
        completions: Sequence[Completion],
        rngs: Sequence[np.random.Generator],
    ) -> list[Feedback]:
        """Does the edits; scores the texts that are finished, in one batch. See `Task.respond`."""
        after, ended = [], []
        for state, completion in zip(states, completions, strict=True):
            operation = self._by_name.get(" ".join(completion.text.split()))
            fits = operation is not None and operation.fits(state.words)
            words = operation.apply(state.words) if operation and fits else state.words
            left = state.edits_left - 1
            ended.append(left == 0 or (operation is not None and operation.name == "done"))
            prompt = self._prompt(state.before, words, left)
            after.append(replace(state, prompt=prompt, words=words, edits_left=left))
        scores = iter(self._scores([state for state, over in zip(after, ended, strict=True) if over]))
        feedbacks = []
        for state, over in zip(after, ended, strict=True):
            info: dict[str, Any] = {"text": " ".join(state.words)}
            if not over:
                feedbacks.append(Feedback(0.0, False, state, info, Replace(state.prompt)))
                continue
            parts = info["reward_parts"] = next(scores)
            weight = self.grammar_weight
            reward = weight * parts["grammar"] + (1 - weight) * parts["similarity"]
            feedbacks.append(Feedback(reward, True, state, info))
        return feedbacks

    def players(self) -> dict[str, Player]:
        """Scripted players; see the class."""
        return {
            "best": self._mend,
            "done": lambda state: "done",
            "delete_first": lambda state: "delete 1",
            "random": self._random,
            "unrepeat": _unrepeat,
        }

    def _prompt(self, before: str, words: Text, edits_left: int) -> str:
        numbered = " ".join(f"{number} {word}" for number, word in enumerate(words, 1))
        story = f"{before}\n" if before else ""
        return f"{story}Text: {numbered}\nEdits left: {edits_left}\nEdit:"

    def _scores(self, states: list[EditState]) -> list[dict[str, float]]:
        """The reward's parts for finished texts."""
        if not states:
            return []
        # Some tokenizers have no BOS that an empty context could be.
        contexts = [state.before or "\n" for state in states for _ in range(3)]
        texts = [text for state in states for text in (state.words, state.given, state.reference)]
        scores = self._log_prob(contexts, [f" {' '.join(text)}" for text in texts])
        parts = []
        for state, final, given, clean in zip(states, scores[::3], scores[1::3], scores[2::3], strict=True):
            mistakes = distance(state.given, state.reference)
            nearer = mistakes - distance(state.words, state.reference)
            # The same text twice may differ in the last digit: rows that go through the model together do.
            gained = 0.0 if state.words == state.given else final - given
            grammar, similarity = gained / max(clean - given, 1.0), nearer / max(mistakes, 1)
            parts.append({"grammar": _cut(grammar), "similarity": _cut(similarity)})
        return parts

    def _mend(self, state: EditState) -> str:
        """The first of the edits that lead nearest to the reference, each of them nearer."""

        @cache
        def plan(words: Text) -> tuple[int, tuple[EditOperation, ...]]:
            here = distance(words, state.reference)
            best: tuple[int, tuple[EditOperation, ...]] = here, (EditOperation("done"),)
            for operation in self.operations if here else ():
                after = operation.apply(words) if operation.fits(words) else words
                if best[0] and distance(after, state.reference) < here:
                    left, rest = plan(after)
                    best = min(best, (left, (operation, *rest)), key=lambda each: each[0])
            return best

        return str(plan(state.words)[1][0])

    def _random(self, state: EditState) -> str:
        """An allowed edit other than "done", drawn by the words."""
        names = self.choices["edit"]
        possible = np.flatnonzero(self.allowed([state], "edit")[0, 1:]) + 1
        return names[possible[Dice(zlib.crc32(state.prompt.encode())).below(len(possible))]]


def operations(words: Sequence[str]) -> tuple[EditOperation, ...]:
    """Every edit there is: "done", then deletions, swaps, insertions and replacements by position."""
    positions = range(1, MAX_WORDS + 1)
    return (
        EditOperation("done"),
        *(EditOperation("delete", position) for position in positions),
        *(EditOperation("swap", position) for position in positions[:-1]),
        *(EditOperation("insert", position, word) for position in positions for word in words),
        *(EditOperation("replace", position, word) for position in positions for word in words),
    )


def corruptions(kind: str, text: Text, words: Sequence[str]) -> list[Text]:
    """The texts that one corruption of this kind makes; each can be undone by an edit with these words."""
    positions = range(1, len(text) + 1)
    listed = [position for position in positions if text[position - 1] in words]
    if kind == "swap":
        edits = [EditOperation("swap", position) for position in positions]
    elif kind == "duplicate":
        edits = [EditOperation("insert", position, text[position - 1]) for position in positions]
    elif kind == "delete":
        edits = [EditOperation("delete", position) for position in listed]
    elif kind == "replace":
        edits = [EditOperation("replace", position, word) for position in listed for word in words]
    else:
        edits = [EditOperation("insert", position, word) for position in positions for word in words]
    return [edit.apply(text) for edit in edits if edit.fits(text)]


def distance(text: Text, reference: Text) -> int:
    """How many insertions, deletions, replacements and swaps of neighbors lead from one to the other.

    Optimal string alignment over words: no word is edited twice.
    """
    from rapidfuzz.distance import OSA

    return OSA.distance(text, reference)


def _unrepeat(state: EditState) -> str:
    """Deletes the second of two equal neighbors."""
    words = state.words
    repeated = [at for at in range(1, len(words)) if words[at] == words[at - 1]]
    return f"delete {repeated[0] + 1}" if repeated else "done"


def _cut(value: float) -> float:
    return min(1.0, max(-1.0, value))
