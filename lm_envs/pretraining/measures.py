"""The figures of the model card: how well a model knows the story world, and how much there is to know."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from lm_envs.pretraining.batches import padded, rows
from lm_envs.pretraining.checks import four_grams, mixes_genders, names, sentences, share
from lm_envs.pretraining.stories import story
from lm_envs.pretraining.training import next_token_loss


@torch.no_grad()
def held_out_perplexity(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, stories: int = 1000, batch: int = 50
) -> float:
    """exp of the mean negative log-probability of a token, over the first stories of the test split.

    Every token after the first `<|endoftext|>` counts, the closing one included.
    """
    loss, tokens = 0.0, 0
    for first in range(0, stories, batch):
        seeds = range(first, min(first + batch, stories))
        ids, lengths = padded(rows(tokenizer, seeds, "test"), tokenizer.eos_token_id)
        loss += next_token_loss(model, torch.from_numpy(ids), torch.from_numpy(lengths), "sum").item()
        tokens += int((lengths - 1).sum())
    return math.exp(loss / tokens)


def generator_perplexity(tokenizer: PreTrainedTokenizerBase, stories: int) -> float:
    """exp of the generator's own nats a token over the same stories (see `Story.nats`)."""
    nats = sum(story(seed, "test").nats for seed in range(stories))
    return math.exp(nats / sum(len(row) - 1 for row in rows(tokenizer, range(stories), "test")))


@torch.no_grad()
def sample_stories(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int,
    seed: int,
    max_new_tokens: int = 200,
) -> list[str]:
    """Whole stories at temperature 1, from the full distribution; they end with EOS or at the limit."""
    generator = torch.Generator().manual_seed(seed)
    eos = tokenizer.eos_token_id
    tokens = torch.full((count, 1), tokenizer.bos_token_id)
    ended = torch.zeros(count, dtype=torch.bool)
    written, cache = [], None
    for _ in range(max_new_tokens):
        output = model(tokens, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        tokens = torch.multinomial(output.logits[:, -1].softmax(-1), 1, generator=generator)
        tokens[ended] = eos
        ended |= tokens[:, 0] == eos
        written.append(tokens)
        if ended.all():
            break
    return tokenizer.batch_decode(torch.cat(written, dim=1), skip_special_tokens=True)


@dataclasses.dataclass(frozen=True)
class SampleQuality:
    """Shares of sampled stories, 0 to 1. All of them are 0 in generated text.

    Attributes:
        several_names: With more than one name.
        mixed_genders: With names or pronouns of both genders.
        unfinished: That do not end in a full stop, or stop inside a quotation.
    """

    several_names: float
    mixed_genders: float
    unfinished: float

    @classmethod
    def of(cls, texts: list[str]) -> SampleQuality:
        """Measures the texts."""
        return cls(
            several_names=share(len(names(text)) > 1 for text in texts),
            mixed_genders=share(mixes_genders(text) for text in texts),
            unfinished=share(
                not text.endswith((".", "!", "?", '"')) or text.count('"') % 2 == 1 for text in texts
            ),
        )


@dataclasses.dataclass(frozen=True)
class Variety:
    """How many different things the first `stories` training stories hold.

    Attributes:
        stories: How many were counted.
        texts: Distinct whole stories.
        openings: Distinct openings.
        endings: Distinct endings.
        sentences: Distinct sentences.
        last_sentences: Distinct last sentences.
        four_grams: Distinct runs of four words.
        top_four_gram: The run of four words that the most endings hold.
        top_four_gram_share: Share of the endings that hold it.
    """

    stories: int
    texts: int
    openings: int
    endings: int
    sentences: int
    last_sentences: int
    four_grams: int
    top_four_gram: str
    top_four_gram_share: float

    @classmethod
    def of(cls, stories: int) -> Variety:
        """Counts over training seeds 0 to `stories - 1`."""
        texts, openings, endings, said, last, grams = (set[object]() for _ in range(6))
        in_endings: Counter[tuple[str, ...]] = Counter()
        for seed in range(stories):
            told = story(seed)
            told_sentences = sentences(told.text)
            texts.add(told.text)
            openings.add(told.opening)
            endings.add(told.ending)
            said.update(told_sentences)
            last.add(told_sentences[-1])
            grams.update(four_grams(told.text))
            in_endings.update(four_grams(told.ending))
        top, holders = min(in_endings.items(), key=lambda item: (-item[1], item[0]))  # ties: by alphabet
        return cls(
            stories=stories,
            texts=len(texts),
            openings=len(openings),
            endings=len(endings),
            sentences=len(said),
            last_sentences=len(last),
            four_grams=len(grams),
            top_four_gram=" ".join(top),
            top_four_gram_share=holders / stories,
        )
