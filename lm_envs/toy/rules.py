"""What the toy tasks ask for: one rule each, in arrays over n texts, with no loop over texts.

A rule says how prompts look and how far a text has come. Everything else (when rewards are paid, noise,
slips, observations, exact solutions) is the same for all and built on `Rule.progress`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lm_envs.toy.ngram import NGram


class Rule:
    """The base of all rules: a prompt of `prompt_length` tokens, each of the first `prompt_base` ones.

    Args:
        vocab_size: V.
        length: T, the tokens that a completion has.

    Attributes:
        language_model: the reference, whose words are the V tokens' texts.
    """

    prompt_length = 1

    def __init__(self, vocab_size: int, length: int) -> None:
        self.vocab_size = vocab_size
        self.length = length
        self.prompt_base = vocab_size
        self.language_model = NGram.random(numbered("abcdefghijklmnopqrstuvwxyz", vocab_size))

    def progress(self, prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
        """How far each text had come after each of its tokens; nothing that comes later changes that.

        Args:
            prompts: (n, P) tokens.
            completions: (n, T) tokens; those that are not written yet may be anything.

        Returns:
            (n, T + 1) float64: 0 for no token first, the whole text's score last.
        """
        raise NotImplementedError

    def score(self, prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
        """The last column of `progress`, (n,) float64."""
        return self.progress(prompts, completions)[:, -1]

    def success(self, prompts: np.ndarray, completions: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Whether each whole text does all that was asked, (n,) bool; `scores` are its scores."""
        return scores > 1 - 1e-9

    def optimum(self) -> float:
        """The best text's score, on average over all prompts."""
        return 1.0


class Copy(Rule):
    """Write the prompt once more. The score is the share of tokens that are right."""

    def __init__(self, vocab_size: int, length: int) -> None:
        super().__init__(vocab_size, length)
        self.prompt_length = length

    def target(self, prompts: np.ndarray) -> np.ndarray:
        """The right completions, (n, T)."""
        return prompts

    def progress(self, prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
        """See `Rule.progress`."""
        progress = np.zeros((len(completions), self.length + 1))
        np.cumsum(completions == self.target(prompts), axis=1, out=progress[:, 1:])
        progress /= self.length
        return progress

    def score(self, prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
        """See `Rule.score`."""
        right = np.equal(completions.T, self.target(prompts).T, order="C")  # adding up whole rows is faster
        return np.add.reduce(right, axis=0, dtype=np.int16) / self.length


class Reverse(Copy):
    """Write the prompt backwards."""

    def target(self, prompts: np.ndarray) -> np.ndarray:
        """The right completions, (n, T)."""
        return prompts[:, ::-1]


class Translate(Copy):
    """Replace every word by the next one of the vocabulary, and put adjectives behind their nouns.

    The first half of the vocabulary are adjectives, the others nouns. Read from the left, an adjective that
    stands right before a noun changes places with it. Then word i becomes word (i + 1) mod V.
    """

    def __init__(self, vocab_size: int, length: int) -> None:
        super().__init__(vocab_size, length)
        self.following = np.roll(np.arange(vocab_size, dtype=np.int16), -1)

    def target(self, prompts: np.ndarray) -> np.ndarray:
        """The right completions, (n, T)."""
        prompts = np.ascontiguousarray(prompts.T)
        words = self.following.take(prompts)
        adjectives = prompts < self.vocab_size // 2
        swap = (words[:-1] ^ words[1:]) * (adjectives[:-1] > adjectives[1:])  # such pairs never overlap
        words[:-1] ^= swap
        words[1:] ^= swap
        return words.T


class Brackets(Rule):
    """Close what is open: prompt and completion together are a well-nested string of V/2 kinds of brackets.

    The prompt is one opening bracket. A token is right if the text can still end well after it. The score is
    the share of tokens before the first wrong one.
    """

    def __init__(self, vocab_size: int, length: int) -> None:
        super().__init__(vocab_size, length)
        if vocab_size % 2:
            raise ValueError(f"vocab_size must be even (opening and closing brackets), got {vocab_size}")
        if length % 2 == 0:
            raise ValueError(f"length must be odd (the prompt opens one bracket), got {length}")
        self.kinds = vocab_size // 2
        self.prompt_base = self.kinds
        words = numbered("([{<", self.kinds) + numbered(")]}>", self.kinds)
        self.language_model = NGram.random(words)

    def progress(self, prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
        """See `Rule.progress`."""
        progress = np.zeros((len(completions), self.length + 1))
        for at, good in enumerate(self._good(prompts, completions)):
            np.add(progress[:, at], good, out=progress[:, at + 1])
        progress /= self.length
        return progress

    def score(self, prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
        """See `Rule.score`."""
        return sum(self._good(prompts, completions), start=np.zeros(len(completions))) / self.length

    def _good(self, prompts: np.ndarray, completions: np.ndarray) -> Iterator[np.ndarray]:
        """For each place in turn whether all tokens up to it are right, (n,) bool."""
        width = self.length + 2
        closers = np.zeros((len(completions), width), completions.dtype)  # of what is open, a stack
        closers[:, 1] = prompts[:, 0] + self.kinds
        stack = closers.reshape(-1)
        top = np.arange(len(completions)) * width + 1
        depth = np.ones(len(completions), np.int64)
        good = np.ones(len(completions), bool)
        for at in range(self.length):
            token = completions[:, at]
            opens = token < self.kinds
            # At depth 0 the stack says 0, which is no closing bracket.
            good = good & np.where(opens, depth < self.length - 1 - at, token == stack.take(top))
            yield good
            stack[top + 1] = token + self.kinds  # counts if it opens: above the top nothing is read
            step = np.where(opens, 1, -1) * good
            depth += step
            top += step


class Bigram(Rule):
    """Continue so that the text is likely under a bigram model and holds the wanted word, the last of all.

    Score: 1 if the completion holds the word, plus `FLUENCY_WEIGHT` times the mean log-probability of its
    tokens, in nats. A success holds the word and is more likely than a uniform guess.
    """

    FLUENCY_WEIGHT = 0.5
    RARE = 0.02  # how likely the model finds the wanted word, after whatever word

    def __init__(self, vocab_size: int, length: int) -> None:
        super().__init__(vocab_size, length)
        self.language_model = NGram.random(self.language_model.words, rare=self.RARE)
        self.log_table = np.log(self.language_model.table)  # (V, V)
        self.wanted = vocab_size - 1

    def progress(self, prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
        """See `Rule.progress`."""
        progress = np.zeros((len(completions), self.length + 1))
        np.cumsum(self._log_probs(prompts, completions), axis=1, out=progress[:, 1:])
        progress *= self.FLUENCY_WEIGHT / self.length
        progress[:, 1:] += np.logical_or.accumulate(completions == self.wanted, axis=1)
        return progress

    def score(self, prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
        """See `Rule.score`."""
        fluency = self._log_probs(prompts, completions).sum(axis=1) * (self.FLUENCY_WEIGHT / self.length)
        return fluency + self._holds(completions)

    def success(self, prompts: np.ndarray, completions: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """See `Rule.success`."""
        holds = self._holds(completions)
        return holds & ((scores - holds) / self.FLUENCY_WEIGHT > -np.log(self.vocab_size))

    def optimum(self) -> float:
        """See `Rule.optimum`; by induction over the last token and whether the word is there already."""
        gains = self.log_table * (self.FLUENCY_WEIGHT / self.length)  # (before, token)
        bonus = (np.arange(self.vocab_size) == self.wanted).astype(float)
        with_word, without = np.zeros((2, self.vocab_size))  # what is still to come, by the last token
        for _ in range(self.length):
            following = np.where(bonus > 0, with_word, without)
            without = (gains + bonus + following).max(axis=1)
            with_word = (gains + with_word).max(axis=1)
        return float(without.mean())

    def _holds(self, completions: np.ndarray) -> np.ndarray:
        return np.logical_or.reduce([column == self.wanted for column in completions.T])

    def _log_probs(self, prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
        pairs = completions.astype(np.intp, order="C")  # sums of its rows are rounded in one way only
        pairs[:, 0] += prompts[:, -1] * self.vocab_size
        pairs[:, 1:] += completions[:, :-1] * self.vocab_size
        return self.log_table.take(pairs)


class KeyDoor(Rule):
    """Take the key first that fits the door in the prompt, and name the door last.

    Door i is opened by key (i + 1) mod V. Opening it is worth `DOOR`. Between the two, every token 0 is an
    apple; the apples are worth 1 - `DOOR` together. As progress, the right key counts half the door until the
    end.
    """

    DOOR = 0.8

    def __init__(self, vocab_size: int, length: int) -> None:
        super().__init__(vocab_size, length)
        if length < 3:
            raise ValueError(f"length must be at least 3 (a key, a way and a door), got {length}")

    def progress(self, prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
        """See `Rule.progress`."""
        door = prompts[:, 0]
        key = completions[:, 0] == (door + 1) % self.vocab_size
        progress = np.zeros((len(completions), self.length + 1))
        apples = completions[:, 1:-1] == 0
        np.cumsum(apples, axis=1, out=progress[:, 2:-1])
        progress[:, -1] = progress[:, -2]
        progress *= (1 - self.DOOR) / (self.length - 2)
        progress[:, 1:-1] += self.DOOR / 2 * key[:, None]
        progress[:, -1] += self.DOOR * self._opened(prompts, completions)
        return progress

    def success(self, prompts: np.ndarray, completions: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Whether the door opens; the apples do not matter."""
        return self._opened(prompts, completions)

    def _opened(self, prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
        door = prompts[:, 0]
        return (completions[:, 0] == (door + 1) % self.vocab_size) & (completions[:, -1] == door)


def numbered(symbols: str, count: int) -> tuple[str, ...]:
    """`count` different words: the symbols, then the symbols with the number 1, and so on."""
    rounds = [(symbols[i % len(symbols)], i // len(symbols)) for i in range(count)]
    return tuple(symbol + (str(number) if number else "") for symbol, number in rounds)
