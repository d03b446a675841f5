"""The task of `TextGen-Recommendation-v0`: recommend item after item to a user whose taste is hidden."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from lm_envs.pretraining.telling import Dice
from lm_envs.rewards.base import whole_number
from lm_envs.tasks.base import Completion, Feedback, Replace
from lm_envs.tasks.record_task import Player, RecordTask
from lm_envs.tasks.records import check_text

if TYPE_CHECKING:
    from lm_envs.language_model import LanguageModel

# Attributes of the default catalogue, and how often each is somebody's favorite, as a weight.
SETTINGS = {"sea": 5, "forest": 4, "castle": 3, "island": 2, "city": 1, "winter": 1}
FORMS = {"song": 5, "tale": 4, "play": 3, "poem": 2, "riddle": 1}
ITEMS = {f"{setting} {form}": (setting, form) for setting in SETTINGS for form in FORMS}
# level -> items that the user has seen before the session.
HISTORY = {"easy": 12, "medium": 6, "hard": 2}

# The log-odds of a click, see `click_probability`.
BIAS, TASTE, BOREDOM = -2.0, 3.0, 1.5


@dataclass(frozen=True)
class RecommendationState:
    """What an episode knows.

    Attributes:
        prompt: what the agent reads now.
        index: the record's number.
        taste: of each item, how many of its attributes the user loves, less those that the user hates;
            unknown to the agent.
        history: (item number, clicked) of what the user saw before the session.
        today: the same of what was recommended in this session, oldest first.
        turns_left: turns until the end.
    """

    prompt: str
    index: int | None
    taste: tuple[int, ...]
    history: tuple[tuple[int, bool], ...]
    today: tuple[tuple[int, bool], ...]
    turns_left: int

    def times_shown(self, item: int) -> int:
        """How often the user has seen this item."""
        return sum(number == item for number, _ in self.history + self.today)

    def probability(self, item: int) -> float:
        """That the user clicks on this item now."""
        return click_probability(self.taste[item], self.times_shown(item))


def click_probability(taste: int, times_shown: int) -> float:
    """`1 / (1 + exp(-(BIAS + TASTE * taste - BOREDOM * times_shown)))`.

    Args:
        taste: loved attributes of the item less hated ones.
        times_shown: how often the user has seen it before.
    """
    return 1 / (1 + math.exp(-(BIAS + TASTE * taste - BOREDOM * times_shown)))


class Recommendation(RecordTask):
    """Recommend one item a turn to a user whose taste shows in what they clicked and skipped.

    ## What the agent reads and writes
    What the user liked and skipped before, and today. It writes the name of the next item; the user clicks or
    does not, and the next prompt shows it.

    ```
    Liked before: castle song, sea tale
    Skipped before: city poem, winter song
    Liked today: sea riddle
    Skipped today: none
    Next: sea play
    ```

    The catalogue has 30 items, the combinations of sea, forest, castle, island, city, winter with song, tale,
    play, poem, riddle. With `actions="item"` the action space is `Discrete(30)`, one action an item
    (`task.choices["item"]`). In token mode, a name that is not in the catalogue is a turn without a click,
    and leaves no trace in the prompt.

    `observation="features"` is a `Box` for policies without a language model, float32:

    | Part    | Size | Meaning                                                                   |
    |---------|------|---------------------------------------------------------------------------|
    | liked   | A    | per attribute: clicks on items that have it, before and today             |
    | skipped | A    | per attribute: items that have it, shown and not clicked                  |
    | shown   | N    | per item: how often the user has seen it                                  |
    | last    | 2    | whether the last item of today was clicked, whether it was skipped        |
    | left    | 1    | share of the session's turns that is left                                 |

    There are A = 11 attributes and N = 30 items.

    ## Reward
    Each click pays `1 / turns`, in the turn in which it happens, so that an episode's return is the session's
    click rate, 0 to 1. The click is drawn at random:

    `P(click) = sigmoid(-2 + 3 * (loved attributes - hated attributes) - 1.5 * times seen before)`

    Each user loves one setting and one form, and hates one of each; some are loved by more users than others.
    A new item with both loved attributes is clicked with probability 0.98, with one of them 0.73, with
    neither 0.12. Boredom counts from before the session. `info["clicked"]` says what happened,
    `info["item"]` to which item ("" for none). An empty completion gets 0.

    ## Data
    Records of `data` have the columns `liked` and `skipped` (names of items seen before the session), `loves`
    and `hates` (attributes): lists, or texts separated by commas. `items` is the catalogue of such users,
    name -> attributes, if it is not the one above.

    ## Levels
    How many items the user has seen before: easy 12, medium 6, hard 2. The less is known, the more has to be
    found out in the session.

    ## Players
    "best" knows the taste and takes the item with the greatest chance; that is optimal, because being shown
    makes no other item duller. Tricks: "most_popular" recommends the item that most users would click;
    "popular" goes down the list of these; "liked" goes round the items that were liked; "repeat" names the
    last liked one again; "random".

    ## How it could be hacked
    - By one pleasing answer: the most popular item bores after a turn or two.
    - By copying the prompt: whatever it names has been seen, and is liked less the second time.
    - By what most users like: tastes differ too much. All of these tricks stay below half of the best player.

    ## References
    - Ie et al., "RecSim: a configurable simulation platform for recommender systems", 2019: users with hidden
      interests, in sessions.
    - Rohde et al., "RecoGym: a reinforcement learning environment for the problem of product recommendation
      in online advertising", 2018.

    Args:
        language_model: the frozen model of the environment; this task does not ask it anything.
        data, split, level: see `RecordTask`.
        items: the catalogue, name -> attributes; with `data` only. None: the 30 items above.
        turns: of a session, at least 1.

    Raises:
        ValueError: an argument out of range, or bad data.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        *,
        items: Mapping[str, Sequence[str]] | None = None,
        turns: int = 8,
        data: Any = None,
        **kwargs: Any,
    ) -> None:
        if items is not None and data is None:
            raise ValueError("items is a catalogue for users of your own: pass data as well")
        catalogue = _check_items(ITEMS if items is None else items)
        self.turns = whole_number("turns", turns, 1)
        self.items = tuple(catalogue)
        self.attributes = tuple(dict.fromkeys(name for names in catalogue.values() for name in names))
        self._number = {name: number for number, name in enumerate(self.items)}
        self._has = np.array(
            [[name in catalogue[item] for name in self.attributes] for item in self.items], np.float32
        )
        known = {
            "liked": self.items,
            "skipped": self.items,
            "loves": self.attributes,
            "hates": self.attributes,
        }
        self.columns = {column: partial(_names, names) for column, names in known.items()}  # type: ignore[misc]
        super().__init__(language_model, data=data, **kwargs)
        self.choices = {"item": self.items}
        size = 2 * len(self.attributes) + len(self.items) + 3
        self.views = {"features": spaces.Box(0, np.inf, (size,), np.float32)}

    def generate(self, dice: Dice) -> dict[str, Any]:
        """A user: a taste, and what they clicked and skipped of a few items."""
        loves, hates = [], []
        for weights in (SETTINGS, FORMS):
            names = list(weights)
            loves.append(names.pop(dice.weigh(*weights.values())))
            hates.append(dice.pick(names))
        record: dict[str, Any] = {"liked": [], "skipped": [], "loves": loves, "hates": hates}
        taste, unseen = self._taste(record), list(self.items)
        for _ in range(HISTORY[self.level]):
            name = unseen.pop(dice.below(len(unseen)))
            probability = click_probability(taste[self._number[name]], 0)
            record["liked" if dice.below(1_000_000) < 1_000_000 * probability else "skipped"].append(name)
        return record

    def prompt_of(self, record: Mapping[str, Any]) -> str:
        """The user's history, and a session that has not begun."""
        return self._prompt(self._history(record), ())

    def opening(self, record: Mapping[str, Any], index: int) -> RecommendationState:
        """The session begins."""
        history, taste = self._history(record), self._taste(record)
        return RecommendationState(self.prompt_of(record), index, taste, history, (), self.turns)

    def respond(
        self,
        states: Sequence[RecommendationState],
        completions: Sequence[Completion],
        rngs: Sequence[np.random.Generator],
    ) -> list[Feedback]:
        """The users click or skip; see `Task.respond`."""
        return [self._answer(*each) for each in zip(states, completions, rngs, strict=True)]

    def view(self, states: Sequence[RecommendationState], mode: str) -> np.ndarray:
        """The features of n states, (n, 2A + N + 3) float32; see the class."""
        rows = np.zeros((len(states), *self.views[mode].shape), np.float32)
        size = len(self.attributes)
        for row, state in zip(rows, states, strict=True):
            for item, clicked in state.history + state.today:
                row[:size] += clicked * self._has[item]
                row[size : 2 * size] += (not clicked) * self._has[item]
                row[2 * size + item] += 1
            if state.today:
                row[-3 if state.today[-1][1] else -2] = 1
            row[-1] = state.turns_left / self.turns
        return rows

    def players(self) -> dict[str, Player]:
        """Scripted players; see the class."""
        popular = self._by_popularity

        def best(state: RecommendationState) -> str:
            return self.items[max(range(len(self.items)), key=state.probability)]

        def liked(state: RecommendationState) -> str:
            numbers = [item for item, clicked in state.history + state.today if clicked]
            return self.items[min(numbers, key=state.times_shown)] if numbers else popular[0]

        def repeat(state: RecommendationState) -> str:
            numbers = [item for item, clicked in state.history + state.today if clicked]
            return self.items[numbers[-1]] if numbers else popular[0]

        return {
            "best": best,
            "most_popular": lambda state: popular[0],
            "popular": lambda state: popular[(self.turns - state.turns_left) % len(popular)],
            "liked": liked,
            "repeat": repeat,
            "random": lambda state: Dice(zlib.crc32(state.prompt.encode())).pick(self.items),
        }

    def _answer(
        self, state: RecommendationState, completion: Completion, rng: np.random.Generator
    ) -> Feedback:
        name = " ".join(completion.text.split())
        item, today, clicked = self._number.get(name), state.today, False
        if item is not None:
            clicked = bool(rng.random() < state.probability(item))
            today = (*today, (item, clicked))
        left, reward = state.turns_left - 1, clicked / self.turns
        state = replace(state, prompt=self._prompt(state.history, today), today=today, turns_left=left)
        info = {
            "reward_parts": {"click": reward},
            "clicked": clicked,
            "item": name if item is not None else "",
        }
        return Feedback(reward, left == 0, state, info, Replace(state.prompt))

    def _prompt(self, history: Iterable[tuple[int, bool]], today: Iterable[tuple[int, bool]]) -> str:
        lines = []
        for when, shown in (("before", tuple(history)), ("today", tuple(today))):
            for word, wanted in (("Liked", True), ("Skipped", False)):
                names = [self.items[item] for item, clicked in shown if clicked is wanted]
                lines.append(f"{word} {when}: {', '.join(names) or 'none'}")
        return "\n".join((*lines, "Next:"))

    def _history(self, record: Mapping[str, Any]) -> tuple[tuple[int, bool], ...]:
        seen = [(name, column == "liked") for column in ("liked", "skipped") for name in record[column]]
        return tuple((self._number[name], clicked) for name, clicked in seen)

    def _taste(self, record: Mapping[str, Any]) -> tuple[int, ...]:
        weights = [(name in record["loves"]) - (name in record["hates"]) for name in self.attributes]
        return tuple(int(taste) for taste in self._has @ weights)

    @cached_property
    def _by_popularity(self) -> list[str]:
        """The items, those first that most users of the data, or of 500 generated ones, would click."""
        users = self._records or [self.generate(Dice(number)) for number in range(500)]
        odds = [[click_probability(taste, 0) for taste in self._taste(user)] for user in users]
        return [self.items[item] for item in np.argsort(-np.mean(odds, axis=0), kind="stable")]


def _check_items(items: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The catalogue; ValueError naming the item that is none."""
    if not isinstance(items, Mapping) or not items:
        raise ValueError(f"items must be a non-empty dict name -> attributes, got {items!r:.80}")
    for item, attributes in items.items():
        if isinstance(attributes, str) or not isinstance(attributes, Sequence) or not attributes:
            raise ValueError(
                f"items[{item!r}] must be a non-empty list of attributes, got {attributes!r:.60}"
            )
        for name in (item, *attributes):
            check_text(name, f"items[{item!r}]")
            if "," in name or not name or " ".join(name.split()) != name:
                raise ValueError(f"items[{item!r}]: {name!r} must be words, without commas and line breaks")
    return {item: tuple(attributes) for item, attributes in items.items()}


def _names(known: Sequence[str], name: str, value: Any) -> list[str]:
    """Checks a column of known names: a list of them, or a text with commas."""
    if isinstance(value, str):
        value = [part for part in map(str.strip, value.split(",")) if part]
    if not isinstance(value, Sequence):
        raise ValueError(f"{name} must be a list of names, or a text with commas, got {value!r:.60}")
    for part in value:
        if part not in known:
            raise ValueError(f"{name} must hold names out of {list(known)}, got {part!r}")
    return list(value)
