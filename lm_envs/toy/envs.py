"""The six toy environments: texts of a fixed length over a small vocabulary, with exact solutions."""

from __future__ import annotations

from typing import Any, ClassVar

from lm_envs.text_env import TextGenEnv
from lm_envs.toy import games
from lm_envs.toy.games import Game, make_core
from lm_envs.toy.parts import ToyParts


class ToyEnv(ToyParts, TextGenEnv):  # type: ignore[misc]  # a toy in place of the text task
    """A toy: the base of all of them. Each one's rule, rewards and sizes are in its own docstring.

    ## Description
    An episode shows a prompt of P tokens, and every action writes one token behind it. After exactly T =
    `length` tokens the episode is over; there is no end-of-sequence token. The state is the whole context,
    and the problem is a tree of texts, which `lm_envs.toy.solve` solves exactly. The language model,
    `env.unwrapped.language_model`, is an n-gram model with exact probabilities, see `lm_envs.toy.NGram`.

    ## Observation space
    `observation="tokens"`, a `Dict` of arrays over the context window (L = P + T), right-padded:

    | Key               | Shape  | Dtype | Range  | Meaning                                   |
    |-------------------|--------|-------|--------|-------------------------------------------|
    | `input_ids`       | `(L,)` | int16 | 0..V-1 | the context, behind it 0                  |
    | `attention_mask`  | `(L,)` | int8  | 0, 1   | 1 for a token, 0 for padding              |
    | `completion_mask` | `(L,)` | int8  | 0, 1   | 1 for the tokens that the agent wrote     |

    `observation="index"`, `Discrete(n)`: the number of the state, see `lm_envs.toy.states.StateSpace`; all
    whole texts are state n - 1.

    `observation="onehot"`, a `Box` of shape `(L*V,)`, int8: for every place of the window which token is
    there; all 0 where there is none yet.

    `observation="last_k"`, a `MultiDiscrete` of `last_k` numbers 0..V: the last tokens of the context only, V
    where it has none. What the agent needs to know may be out of sight.

    ## Action space
    `Discrete(V)`, V = `vocab_size`: the next token.

    ## Rewards
    A text's score is its progress after T tokens; the toys define progress. With f(t) the progress after t
    tokens, f(0) = 0, token t is paid

    | `reward_timing` | Reward of token t                                                                |
    |-----------------|----------------------------------------------------------------------------------|
    | `"end"`         | 0, and the score f(T) if t = T                                                   |
    | `"dense"`       | f(t) - f(t-1)                                                                    |
    | `"delayed"`     | f(t-k) - f(t-k-1), k = max(1, T // 2), and all that is owed if t = T             |
    | `"shaped"`      | as "end", plus g(t) - g(t-1) with g(t) = f(t) - t/T before the end and g(T) = 0 |

    Whatever the timing, a text's rewards sum to its score, so for gamma = 1 all four have the same optimal
    policies. The potential g is what the text has lost so far (Ng et al. 1999). `reward_noise` adds normal
    noise to every token's reward, with "end" to the last one's only.

    `info` at the end holds `finish_reason` ("length"), `prompt_tokens`, `completion_tokens`, `turns`,
    `success` and, with `info_text=True`, `prompt` and `completion`. Otherwise text is decoded only when asked
    for: `env.unwrapped.language_model.decode(token_ids)`.

    ## Starting state
    A prompt, uniformly drawn. Every draw (prompt, slips, noise) is a hash of (seed, episode, step).
    `reset(options={"prompt": str})` sets the prompt, `{"task_index": int}` takes prompt 0 to N - 1.

    ## Episode end
    Terminated after T tokens, never truncated.

    ## Arguments
    | Name            | Type        | Default    | Meaning                                                   |
    |-----------------|-------------|------------|-----------------------------------------------------------|
    | `vocab_size`    | int or None | None       | V, 2..1024; None: the toy's                               |
    | `length`        | int or None | None       | T, 1..1024; None: the toy's                               |
    | `reward_timing` | str         | `"end"`    | "end", "delayed", "dense" or "shaped"                     |
    | `reward_noise`  | float       | `0.0`      | standard deviation of noise on rewards, >= 0              |
    | `slip`          | float       | `0.0`      | probability that a random token is written, 0..1  |
    | `observation`   | str         | `"tokens"` | "tokens", "index", "onehot" or "last_k"                   |
    | `last_k`        | int         | `2`        | tokens that "last_k" shows, 1..L                          |
    | `info_text`     | bool        | `False`    | infos hold prompt and completion as text                  |
    | `render_mode`   | str or None | `None`     | "ansi", "human" or "rgb_array"                            |

    Raises:
        ValueError: impossible dials; names argument, value and range.
    """

    game: ClassVar[Game]

    def __init__(
        self,
        vocab_size: int | None = None,
        length: int | None = None,
        *,
        reward_timing: str = "end",
        reward_noise: float = 0.0,
        slip: float = 0.0,
        observation: str = "tokens",
        last_k: int = 2,
        info_text: bool = False,
        render_mode: str | None = None,
    ) -> None:
        core = make_core(
            1,
            self.game,
            vocab_size=vocab_size,
            length=length,
            reward_timing=reward_timing,
            reward_noise=reward_noise,
            slip=slip,
            observation=observation,
            last_k=last_k,
            info_text=info_text,
        )
        self._adopt(core, render_mode)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As `TextGenEnv.step`; the last token of a text is answered from a table where there is one."""
        core, task = self._core, self.task
        a = core.episodes.arrays
        is_last = a.lengths.item(0) + 1 == core.episodes.context_length
        if not is_last or not a.running[0] or not task.is_plain or task.verdicts is None:
            return super().step(action)
        token = core.token(action)
        scores, successes = task.verdicts
        text = task.states.text_number([*a.tokens[0].tolist()[:-1], token])
        reward = scores.item(text)
        core.episodes.write_last(0, token, reward)
        self._renderer.show(0)
        info = {
            "finish_reason": "length",
            "prompt_tokens": task.rule.prompt_length,
            "completion_tokens": task.rule.length,
            "turns": 1,
            "success": successes.item(text),
        }
        return self._look()[0], reward, True, False, info

    def _look(self) -> tuple[Any, dict[str, Any]]:
        return self.view.look_at_first(), {}


class ToyCopyEnv(ToyEnv):
    """Write the prompt once more.

    ## Description
    Read `length` tokens and write them again. What to write is in the prompt, and nothing that was written
    matters.

    ## Observation space
    See `ToyEnv`; P = `length`. By default L = 10 and `observation="index"` is `Discrete(29404)`.

    ## Action space
    `Discrete(vocab_size)`, the next token: letters.

    ## Rewards
    Progress: the share of the `length` tokens that are right. A success has all of them right.
    See `ToyEnv` for when it is paid.

    ## Starting state
    `length` letters, each uniformly drawn.

    ## Episode end
    Terminated after `length` tokens, never truncated.

    ## Arguments
    Those of `ToyEnv`. Default: vocab_size=3, length=5; 29404 states, random play succeeds 1 time in 243.
    Hard: vocab_size=8, length=8; about 4e13 states, random play succeeds 1 time in 17 million.

    ## Vectorized use
    `gymnasium.make_vec("TextGen-ToyCopy-v0", num_envs=8)` makes a `ToyCopyVectorEnv`.

    ## References
    - Graves, Wayne and Danihelka, "Neural Turing machines", 2014 (the copy task).

    ## Version history
    - v0: initial version (lm-envs 0.1.0).
    """

    game = games.COPY


class ToyReverseEnv(ToyEnv):
    """Write the prompt backwards.

    ## Description
    Read `length` tokens and write them from the last one to the first.

    ## Observation space
    See `ToyEnv`; P = `length`. By default L = 10 and `observation="index"` is `Discrete(29404)`.

    ## Action space
    `Discrete(vocab_size)`, the next token: letters.

    ## Rewards
    Progress: the share of the `length` tokens that are right. A success has all of them right.
    See `ToyEnv` for when it is paid.

    ## Starting state
    `length` letters, each uniformly drawn.

    ## Episode end
    Terminated after `length` tokens, never truncated.

    ## Arguments
    Those of `ToyEnv`. Default: vocab_size=3, length=5; 29404 states, random play succeeds 1 time in 243.
    Hard: vocab_size=8, length=8; about 4e13 states, random play succeeds 1 time in 17 million.

    ## Vectorized use
    `gymnasium.make_vec("TextGen-ToyReverse-v0", num_envs=8)` makes a `ToyReverseVectorEnv`.

    ## References
    - Zaremba and Sutskever, "Reinforcement learning neural Turing machines", 2015 (the reverse task).

    ## Version history
    - v0: initial version (lm-envs 0.1.0).
    """

    game = games.REVERSE


class ToyBracketsEnv(ToyEnv):
    """Close what is open: write a well-nested string of brackets.

    ## Description
    The prompt opens one bracket. Prompt and completion together should be well-nested: every bracket is
    closed by one of its kind, in the right order.

    ## Observation space
    See `ToyEnv`; P = 1. By default L = 8 and `observation="index"` is `Discrete(10923)`.

    ## Action space
    `Discrete(vocab_size)`, the next token: vocab_size / 2 opening brackets, then the closing ones.

    ## Rewards
    Progress: the number of tokens before the first wrong one, over `length`. A token is right if the text can
    still become well-nested in what is left of it. A success is well-nested.
    See `ToyEnv` for when it is paid.

    ## Starting state
    One opening bracket, uniformly drawn.

    ## Episode end
    Terminated after `length` tokens, never truncated.

    ## Arguments
    Those of `ToyEnv`. Default: vocab_size=4, length=7; 10923 states, random play succeeds 1 time in 146.
    Hard: vocab_size=8, length=15; about 2e13 states, random play succeeds 1 time in 1.5 million.
    vocab_size must be even and length odd.

    ## Vectorized use
    `gymnasium.make_vec("TextGen-ToyBrackets-v0", num_envs=8)` makes a `ToyBracketsVectorEnv`.

    ## References
    - Chomsky and Schützenberger, "The algebraic theory of context-free languages", 1963 (the Dyck language).

    ## Version history
    - v0: initial version (lm-envs 0.1.0).
    """

    game = games.BRACKETS


class ToyBigramEnv(ToyEnv):
    """Write text that a language model finds likely and that holds a wanted word: `TextGen-v0` in small.

    ## Description
    A bigram model, `env.unwrapped.language_model`, finds some continuations of the prompt likely, and the
    wanted word, the last one of the vocabulary, unlikely everywhere (probability 0.02). The text should be
    fluent and hold that word.

    ## Observation space
    See `ToyEnv`; P = 1. By default L = 7 and `observation="index"` is `Discrete(19531)`.

    ## Action space
    `Discrete(vocab_size)`, the next token: letters.

    ## Rewards
    Progress: 1 if the completion so far holds the wanted word, plus 0.5 / `length` times the sum of its
    tokens' log-probabilities under the bigram model (nats). A success holds the word and is more likely than
    a uniform guess (mean log-probability above -log(vocab_size)).
    See `ToyEnv` for when it is paid.

    ## Starting state
    One letter, uniformly drawn.

    ## Episode end
    Terminated after `length` tokens, never truncated.

    ## Arguments
    Those of `ToyEnv`. Default: vocab_size=5, length=6; 19531 states, random play succeeds 1 time in 61.
    Hard: vocab_size=32, length=12; about 1e18 states, random play succeeds 1 time in 20,000.

    ## Vectorized use
    `gymnasium.make_vec("TextGen-ToyBigram-v0", num_envs=8)` makes a `ToyBigramVectorEnv`.

    ## References
    - Ziegler et al., "Fine-tuning language models from human preferences", 2019.

    ## Version history
    - v0: initial version (lm-envs 0.1.0).
    """

    game = games.BIGRAM


class ToyTranslateEnv(ToyEnv):
    """Translate word by word, with a rule that changes the order.

    ## Description
    The first half of the vocabulary (rounded down) are adjectives, the others nouns. An adjective right
    before a noun changes places with it; then word i becomes word (i + 1) mod vocab_size. Write the
    translation of the prompt.

    ## Observation space
    See `ToyEnv`; P = `length`. By default L = 10 and `observation="index"` is `Discrete(29404)`.

    ## Action space
    `Discrete(vocab_size)`, the next token: letters.

    ## Rewards
    Progress: the share of the `length` tokens that are right. A success has all of them right.
    See `ToyEnv` for when it is paid.

    ## Starting state
    `length` letters, each uniformly drawn.

    ## Episode end
    Terminated after `length` tokens, never truncated.

    ## Arguments
    Those of `ToyEnv`. Default: vocab_size=3, length=5; 29404 states, random play succeeds 1 time in 243.
    Hard: vocab_size=8, length=8; about 4e13 states, random play succeeds 1 time in 17 million.

    ## Vectorized use
    `gymnasium.make_vec("TextGen-ToyTranslate-v0", num_envs=8)` makes a `ToyTranslateVectorEnv`.

    ## References
    - Ranzato et al., "Sequence level training with recurrent neural networks", 2016.

    ## Version history
    - v0: initial version (lm-envs 0.1.0).
    """

    game = games.TRANSLATE


class ToyKeyDoorEnv(ToyEnv):
    """Take the right key first and open the door with the last token: credit assignment.

    ## Description
    The prompt names a door. Door i is opened by a completion whose first token is key (i + 1) mod vocab_size
    and whose last token is i. The tokens in between decide nothing, but each 0 ("a") among them is an apple.

    ## Observation space
    See `ToyEnv`; P = 1. By default L = 8 and `observation="index"` is `Discrete(21845)`.

    ## Action space
    `Discrete(vocab_size)`, the next token: letters.

    ## Rewards
    Progress: 0.2 times the share of apples among the `length - 2` tokens in between, plus 0.4 once the right
    key is taken; at the end the key counts nothing and an open door 0.8. With "end" the first token decides
    most of a reward that comes with the last. A success opens the door.
    See `ToyEnv` for when it is paid.

    ## Starting state
    One letter, uniformly drawn.

    ## Episode end
    Terminated after `length` tokens, never truncated.

    ## Arguments
    Those of `ToyEnv`. Default: vocab_size=4, length=7; 21845 states, random play succeeds 1 time in 16.
    Hard: vocab_size=40, length=20; about 1e32 states, random play succeeds 1 time in 1,600.
    length must be at least 3.

    ## Vectorized use
    `gymnasium.make_vec("TextGen-ToyKeyDoor-v0", num_envs=8)` makes a `ToyKeyDoorVectorEnv`.

    ## References
    - Hung et al., "Optimizing agent behavior over long time scales by transporting value", 2019.

    ## Version history
    - v0: initial version (lm-envs 0.1.0).
    """

    game = games.KEY_DOOR
