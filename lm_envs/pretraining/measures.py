"""How well a model knows the story world, and how much there is to know: the figures of the model card."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_envs.completion_scoring import score_completions
from lm_envs.decoding import Decoder
from lm_envs.pretraining.checks import (
    all_sentences,
    is_unfinished,
    name_faults,
    pronoun_faults,
    role_faults,
    sentence_slips,
    share,
)
from lm_envs.pretraining.seen import Seen
from lm_envs.pretraining.stories import Story, story
from lm_envs.sampling import sample


def held_out_perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stories: int = 1000, batch: int = 50
) -> float:
    """exp of the mean negative log-probability of a token, over the first stories of the test split.

    Every token after the first `<|endoftext|>` counts, the closing one included. Stories that the tokenizer
    finds too long for its model are passed over.
    """
    nats, tokens = 0.0, 0
    held_out = [row for _, row in _held_out(tokenizer, stories)]
    for first in range(0, stories, batch):
        rows = held_out[first : first + batch]
        scores, _ = score_completions(
            model,
            [row[:1] for row in rows],
            [row[1:] for row in rows],
            vocab_size=len(tokenizer),
            context_length=model.config.max_position_embeddings,
        )
        nats -= sum(float(score.sum(dtype="float64")) for score in scores)
        tokens += sum(map(len, scores))
    return math.exp(nats / tokens)


def generator_perplexity(tokenizer: PreTrainedTokenizerBase, stories: int) -> float:
    """exp of the generator's own nats a token over the same stories (see `Story.nats`)."""
    held_out = _held_out(tokenizer, stories)
    return math.exp(sum(told.nats for told, _ in held_out) / sum(len(row) - 1 for _, row in held_out))


def _held_out(tokenizer: PreTrainedTokenizerBase, count: int) -> list[tuple[Story, list[int]]]:
    """The first test stories that fit, each with its token ids: BOS, the text, EOS."""
    told = (story(seed, "test") for seed in range(10 * count + 100))
    rows = ((each, [*tokenizer(each.text)["input_ids"], tokenizer.eos_token_id]) for each in told)
    fitting = (row for row in rows if len(row[1]) <= tokenizer.model_max_length)
    held_out = list(itertools.islice(fitting, count))
    if len(held_out) < count:
        raise ValueError(
            f"of {10 * count + 100} held-out stories, {len(held_out)} fit into {tokenizer.model_max_length} "
            f"tokens of this tokenizer; needed: {count}"
        )
    return held_out


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    seed: int,
    max_new_tokens: int | None = None,
    batch: int = 100,
    progress: str | None = None,
) -> list[str]:
    """What the model writes behind each prompt, at temperature 1, from the full distribution.

    Args:
        model: A causal LM.
        tokenizer: Its tokenizer; puts BOS in front by default.
        prompts: Texts; "" asks for a text from its beginning.
        seed: Of the sampling.
        max_new_tokens: A text ends with EOS, or after so many tokens; None: where the model's window ends.
        batch: Texts that are written together; which are together does change what is drawn.
        progress: Label of a progress bar; None shows none.

    Returns:
        The completions, special tokens left out.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    window = model.config.max_position_embeddings
    texts: list[str] = []
    with tqdm(total=len(prompts), desc=progress, disable=progress is None, unit="text") as bar:
        for first in range(0, len(prompts), batch):
            contexts: list[list[int]] = [
                tokenizer(prompt, split_special_tokens=True)["input_ids"]
                for prompt in prompts[first : first + batch]
            ]
            decoder = Decoder(model, len(contexts), vocab_size=len(tokenizer), context_length=window)
            decoder.prefill(range(len(contexts)), contexts)
            written: list[list[int]] = [[] for _ in contexts]
            going = list(range(len(contexts)))
            while going:
                tokens, _ = sample(decoder.logits(going), generator=generator)
                for slot, token in zip(going, tokens.tolist(), strict=True):
                    written[slot].append(token)
                still = [
                    slot
                    for slot in going
                    if written[slot][-1] != tokenizer.eos_token_id
                    and len(written[slot]) < (max_new_tokens or window)
                    and len(contexts[slot]) + len(written[slot]) < window
                ]
                bar.update(len(going) - len(still))
                going = still
                if going:
                    decoder.step([written[slot][-1] for slot in going], going)
            texts += tokenizer.batch_decode(
                written, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
    return texts


def is_story(text: str) -> bool:
    """Whether a training text is a story: one line without a heading ("Review: ...").

    The model learns other kinds of text as well, and begins them too when it writes from nothing.
    """
    return "\n" not in text and ":" not in text.split(" ", 1)[0]


def sample_stories(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int,
    seed: int,
    max_new_tokens: int | None = None,
    progress: str | None = None,
) -> list[str]:
    """The first `count` stories among the texts that the model writes from nothing (see `complete`).

    A model that writes none in 20 texts a story gives fewer.
    """
    stories: list[str] = []
    for attempt in range(20):
        if (lacking := count - len(stories)) == 0:
            break
        texts = complete(
            model,
            tokenizer,
            [""] * max(16, 2 * lacking),
            seed=seed + attempt * 2**32,
            max_new_tokens=max_new_tokens,
            progress=progress,
        )
        stories += [text for text in texts if is_story(text)][:lacking]
    return stories


@dataclasses.dataclass(frozen=True)
class StoryQuality:
    """What is wrong with stories, how much they copy, and how much they differ. Shares are 0 to 1.

    `strange`, `turned` and unknown names come from `seen.Seen`, all else from `checks`.

    Attributes:
        stories: How many were checked.
        words: Mean words a story.
        unknown_names: Stories with a name that was never introduced.
        people: Stories with a pronoun or role contradiction, any of the next three.
        pronouns: ... a pronoun without anybody to refer to, or a person of two genders.
        roles: ... a second helper out of nowhere.
        turned: ... a pronoun of another person than in any training story with the same sentence.
        broken_sentences: Sentences that are ungrammatical or unfinished: any of the next three.
        slips: ... by a certain rule.
        strange: ... with three words in a row that no training story has.
        unfinished_sentences: ... without an end.
        broken_stories: Stories with one of them, or an open quotation.
        unfinished: Stories that stop within a sentence or a quotation.
        copies: Stories that are a training story, word for word.
        masked_copies: Stories that are one but for people, their pronouns and things.
    """

    stories: int
    words: float
    unknown_names: float
    people: float
    pronouns: float
    roles: float
    turned: float
    broken_sentences: float
    slips: float
    strange: float
    unfinished_sentences: float
    broken_stories: float
    unfinished: float
    copies: float
    masked_copies: float

    @classmethod
    def of(cls, texts: Sequence[str], seen: Seen, genders: Mapping[str, str]) -> StoryQuality:
        """Checks the texts.

        Args:
            texts: At least one.
            seen: What the training stories hold.
            genders: "he" or "she" for names and roles.

        Raises:
            ValueError: There are no texts.
        """
        if not texts:
            raise ValueError("texts is empty; at least 1 story is needed")
        unknown_names = [bool(name_faults(text, genders) or seen.unknown_names(text)) for text in texts]
        pronouns = [bool(pronoun_faults(text, genders)) for text in texts]
        roles = [bool(role_faults(text, genders)) for text in texts]
        turned = [bool(seen.turned(text)) for text in texts]
        slips, strange, open_ends, broken_stories = [], [], [], []
        for text in texts:
            found = [sentence_slips(sentence) for sentence in all_sentences(text)]
            odd = [bool(triples) for triples in seen.strange(text)]
            slips += [bool(set(each) - {"no end"}) for each in found]
            open_ends += ["no end" in each for each in found]
            strange += odd
            broken_stories.append(any(map(bool, found)) or any(odd) or is_unfinished(text))
        return cls(
            stories=len(texts),
            words=sum(len(text.split()) for text in texts) / len(texts),
            unknown_names=share(unknown_names),
            people=share(map(any, zip(pronouns, roles, turned, strict=True))),
            pronouns=share(pronouns),
            roles=share(roles),
            turned=share(turned),
            broken_sentences=share(map(any, zip(slips, strange, open_ends, strict=True))),
            slips=share(slips),
            strange=share(strange),
            unfinished_sentences=share(open_ends),
            broken_stories=share(broken_stories),
            unfinished=share(map(is_unfinished, texts)),
            copies=share(map(seen.is_copy, texts)),
            masked_copies=share(map(seen.is_masked_copy, texts)),
        )


@dataclasses.dataclass(frozen=True)
class EndingQuality:
    """How openings of unseen plot combinations are continued. Shares are 0 to 1.

    Attributes:
        stories: How many openings.
        sensible: Endings that keep the cast, are about the matter and come to an end.
        keeps_cast: No new name, no pronoun or role contradiction, opening and ending taken together.
        on_topic: The ending mentions the helper or the thing that the story is about.
        finished: It stops at the end of a sentence, before the model's window is full.
        good: Its tone is good: VADER's compound score is above 0.05, VADER's own threshold.
        bad: Its tone is bad: below -0.05.
    """

    stories: int
    sensible: float
    keeps_cast: float
    on_topic: float
    finished: float
    good: float
    bad: float

    @classmethod
    def of(
        cls, stories: Sequence[Story], endings: Sequence[str], genders: Mapping[str, str]
    ) -> EndingQuality:
        """Checks an ending of each story's opening."""
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        analyzer = SentimentIntensityAnalyzer()
        keeps, on_topic = [], []
        for told, ending in zip(stories, endings, strict=True):
            text = f"{told.opening} {ending.strip()}"
            faults = (check(text, genders) for check in (name_faults, pronoun_faults, role_faults))
            keeps.append(not any(faults))
            said = ending.lower()
            on_topic.append(told.thing.lower() in said or told.helper.split()[-1].lower() in said)
        finished = [bool(ending.strip()) and not is_unfinished(ending.strip()) for ending in endings]
        tones = [analyzer.polarity_scores(ending)["compound"] for ending in endings]
        return cls(
            stories=len(stories),
            sensible=share(map(all, zip(keeps, on_topic, finished, strict=True))),
            keeps_cast=share(keeps),
            on_topic=share(on_topic),
            finished=share(finished),
            good=share(tone > 0.05 for tone in tones),
            bad=share(tone < -0.05 for tone in tones),
        )
