"""Every reward against the library it wraps or a value worked by hand; what `checked` lets through."""

from __future__ import annotations

import math
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import save_tiny
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import sentence_bleu, sentence_chrf
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from lm_envs.errors import ModelError, RewardError
from lm_envs.language_model import LanguageModel
from lm_envs.rewards import (
    Bleu,
    Chrf,
    DistinctN,
    ExactMatch,
    Fluency,
    KeywordCoverage,
    Length,
    Regex,
    RepetitionPenalty,
    RewardModel,
    Rouge,
    Sentiment,
    WeightedSum,
    WordErrorRate,
    checked,
    scored,
)
from lm_envs.testing import check_reward

TEXTS = [
    "The cat sat on the mat, and it was happy.",
    "the dog did not like the rain at all!",
    "No.",
    "",
    "Grüße aus Zürich, 東京 🙂",
]
REFERENCES = [
    ["The cat sat on a mat and was happy.", "A happy cat."],
    ["The dog liked the rain.", "The dog did not like rain."],
    ["No."],
    ["Yes, of course."],
    ["Grüße aus Bern"],
]
PROMPTS = ["Tell me: "] * len(TEXTS)


def one(reward: Any, completion: str, **columns: Any) -> float:
    """The reward of one completion."""
    (value,) = reward(prompts=["Say: "], completions=[completion], **{k: [v] for k, v in columns.items()})
    return value


# --- against the wrapped libraries ------------------------------------------------------------------------


def test_sentiment_is_vaders_compound() -> None:
    analyzer = SentimentIntensityAnalyzer()
    assert Sentiment()(PROMPTS, TEXTS) == [analyzer.polarity_scores(text)["compound"] for text in TEXTS]


@pytest.mark.parametrize("options", [{}, {"lowercase": True}, {"tokenize": "char"}])
def test_bleu_is_sacrebleus(options: dict[str, Any]) -> None:
    expected = [sentence_bleu(*row, **options).score / 100 for row in zip(TEXTS, REFERENCES, strict=True)]
    assert Bleu(**options)(PROMPTS, TEXTS, references=REFERENCES) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("word_order", [0, 2])
def test_chrf_is_sacrebleus(word_order: int) -> None:
    rows = zip(TEXTS, REFERENCES, strict=True)
    expected = [sentence_chrf(*row, word_order=word_order).score / 100 for row in rows]
    values = Chrf(word_order=word_order)(PROMPTS, TEXTS, references=REFERENCES)
    assert values == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("kind", "stemmer"), [("rouge1", False), ("rouge2", True), ("rougeL", False)])
def test_rouge_is_the_best_f_measure_of_rouge_score(kind: str, stemmer: bool) -> None:
    scorer = RougeScorer([kind], use_stemmer=stemmer)
    expected = [
        max(scorer.score(reference, text)[kind].fmeasure for reference in references)
        for text, references in zip(TEXTS, REFERENCES, strict=True)
    ]
    assert Rouge(kind, stemmer=stemmer)(PROMPTS, TEXTS, references=REFERENCES) == pytest.approx(expected)


def word_edits(truth: list[str], said: list[str]) -> int:
    """Levenshtein distance in words, by its recursive definition."""
    row = list(range(len(said) + 1))
    for i, a in enumerate(truth, 1):
        row, before = [i], row
        for j, b in enumerate(said, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b)))
    return row[-1]


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_word_error_rate_is_jiwers_and_the_edit_distance(truth: list[str], said: list[str]) -> None:
    value = one(WordErrorRate(), " ".join(said), references=[" ".join(truth)])
    assert value == pytest.approx(-min(1.0, jiwer.wer(" ".join(truth), " ".join(said))), abs=1e-12)
    assert value == pytest.approx(-min(1.0, word_edits(truth, said) / len(truth)), abs=1e-12)


# --- against hand-worked values ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reward", "completion", "columns", "expected"),
    [
        (Length(2, 4), "one", {}, 1 / 2),
        (Length(2, 4), "one two three", {}, 1.0),
        (Length(2, 4), "it's one-two three, four five six seven!", {}, 4 / 8),
        (Length(3, 3, unit="tokens"), "abc", {"completion_ids": [1, 2, 3, 4]}, 3 / 4),
        (Length(3, 3, unit="tokens"), "", {"completion_ids": [0]}, 0.0),
        (Length(0, 5), "", {}, 1.0),
        (Length(2), "", {}, 0.0),
        (KeywordCoverage(["cat", "dog"]), "The CAT ran; dogs barked.", {}, 1 / 2),
        (KeywordCoverage("old key"), "an Old Key!", {}, 1.0),
        (KeywordCoverage(["C++", "3.5"]), "C++ is 3x5", {}, 1 / 2),
        (KeywordCoverage(), "a b c", {"keywords": ["a", "c", "d", "e"]}, 2 / 4),
        (KeywordCoverage(["a"]), "", {}, 0.0),
        (DistinctN(1), "a b a B", {}, 2 / 4),
        (DistinctN(2), "a b a b", {}, 2 / 3),
        (DistinctN(2), "happy, happy! happy.", {}, 1 / 2),
        (DistinctN(2), "a", {}, 0.0),
        (DistinctN(2), "", {}, 0.0),
        (RepetitionPenalty(2), "a b a b", {}, -1 / 3),
        (RepetitionPenalty(3), "no no no no no", {}, -2 / 3),
        (RepetitionPenalty(), "all words differ here", {}, 0.0),
        (RepetitionPenalty(), "", {}, 0.0),
        (ExactMatch(), " the Answer,  IS 42 ", {"reference": "An answer is: 42."}, 1.0),
        (ExactMatch(), "41", {"reference": "42"}, 0.0),
        (ExactMatch(), "b", {"references": ["a", "b"]}, 1.0),
        (ExactMatch(), "the", {"reference": "A"}, 0.0),  # both are nothing but an article
        (ExactMatch(), "?!", {"reference": "A"}, 0.0),
        (ExactMatch(), "", {"reference": "A"}, 0.0),
        (ExactMatch(), "", {"reference": ""}, 1.0),
        (ExactMatch(normalize=False), "The answer", {"reference": "the answer"}, 0.0),
        (ExactMatch(normalize=False), "the answer", {"reference": "the answer"}, 1.0),
        (Regex(r"\d+"), "it is 42", {}, 1.0),
        (Regex(r"\d+", full=True), "it is 42", {}, 0.0),
        (Regex(r"(?i)^yes"), "YES!", {}, 1.0),
        (Regex("x"), "", {}, 0.0),
        (Regex("x*"), "", {}, 1.0),
        (Sentiment(), "", {}, 0.0),
        (Bleu(), "", {"reference": "a b c d"}, 0.0),
        (Bleu(), "a b c d e", {"reference": "a b c d e"}, 1.0),
        (Chrf(), "", {"reference": "abc"}, 0.0),
        (Chrf(), "abc def", {"reference": "abc def"}, 1.0),
        (Rouge("rouge1"), "a b", {"reference": "b c"}, 1 / 2),
        (Rouge("rougeL"), "", {"reference": "b c"}, 0.0),
        (WordErrorRate(), " the CAT sat. Down!", {"reference": "The cat sat on a mat."}, -3 / 6),
        (WordErrorRate(), "b", {"references": ["a a", "a b"]}, -1 / 2),
        (WordErrorRate(), "a b c d e", {"reference": "x y"}, -1.0),
        (WordErrorRate(), "", {"reference": "x y"}, -1.0),
        (WordErrorRate(), "", {"reference": "..."}, 0.0),
        (WordErrorRate(), "x", {"reference": ""}, -1.0),
        (WordErrorRate(normalize=False), " A  cat.", {"reference": "a cat."}, -1 / 2),
        (WeightedSum({"a": (2, Regex("a")), "n": (-0.5, Length(2, 2))}), "a", {}, 2 - 0.25),
        (WeightedSum({"a": (2, Regex("a")), "n": (-0.5, Length(2, 2))}), "", {}, 0.0),
    ],
)
def test_hand_worked_values(reward: Any, completion: str, columns: dict[str, Any], expected: float) -> None:
    assert one(reward, completion, **columns) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 4))
def test_ngram_rewards_against_brute_force(letters: list[str], n: int) -> None:
    grams = [" ".join(letters[i : i + n]) for i in range(len(letters)) if i + n <= len(letters)]
    repeats = sum(gram in grams[:i] for i, gram in enumerate(grams))
    share = repeats / len(grams) if grams else None
    text = " ".join(letters)
    assert one(DistinctN(n), text) == pytest.approx(0.0 if share is None else 1 - share)
    assert one(RepetitionPenalty(n), text) == pytest.approx(0.0 if share is None else -share)


# --- fluency ----------------------------------------------------------------------------------------------


def mean_log_prob(folder: str, context: list[int], completion: list[int]) -> float:
    """One plain forward pass of one row."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        logits = model(torch.tensor([context + completion])).logits[0]
    log_probs = logits.log_softmax(-1)
    picked = [log_probs[len(context) + i - 1, token].item() for i, token in enumerate(completion)]
    return sum(picked) / len(picked)


def test_fluency_is_the_mean_log_prob_of_the_completion(tiny_llama: str) -> None:
    lm = LanguageModel.load(tiny_llama, dtype="float64")
    prompts = ["The fox ", "At night", "Nobody knew "]
    texts = ["waits by the river.", "", "why"]
    bos = lm.tokenizer.bos_token_id
    expected = [
        mean_log_prob(tiny_llama, [bos, *lm.encode("The fox ")], lm.encode("waits by the river.")),
        -math.log(lm.vocab_size),
        mean_log_prob(tiny_llama, [bos, *lm.encode("Nobody knew ")], lm.encode("why")),
    ]
    assert Fluency(lm)(prompts, texts) == pytest.approx(expected, abs=1e-9)
    perplexities = Fluency(lm, output="perplexity")(prompts, texts)
    assert perplexities == pytest.approx([math.exp(-value) for value in expected], rel=1e-9)
    assert perplexities[1] == pytest.approx(lm.vocab_size)


def test_typicality_is_zero_in_expectation_for_the_models_own_text(tiny_llama: str) -> None:
    """By enumeration: the mean over all two-token completions, weighed by their probability."""
    lm = LanguageModel.load(tiny_llama, dtype="float64")
    context, tokens = lm.encode_prompt("The"), range(lm.vocab_size)
    for second in (None, 7):  # the first token alone; the second one given a first
        start = context if second is None else [*context, second]
        completions = [[token] for token in tokens]
        probabilities = np.exp(np.concatenate(lm.log_probs([start] * len(completions), completions)))
        typicality = np.concatenate(lm.typicality([start] * len(completions), completions))
        assert probabilities @ typicality == pytest.approx(0.0, abs=1e-9)
        assert probabilities @ np.abs(typicality) > 0.1
    ids = lm.encode("fox")
    mean = np.mean(lm.typicality([context], [ids])[0])
    assert Fluency(lm, output="typicality")(["The"], ["fox"]) == pytest.approx([mean], abs=1e-9)


def test_fluency_scores_given_ids_as_they_are(tiny_llama: str) -> None:
    lm = LanguageModel.load(tiny_llama, dtype="float64")
    context = lm.encode_prompt("The")
    ids = [token for letter in "fox wai" for token in lm.encode(letter)]
    assert ids != lm.encode("fox wai")
    ids.append(lm.tokenizer.get_vocab()["<eos>"])
    expected = mean_log_prob(tiny_llama, context, ids)
    columns = {"prompt_ids": [context], "completion_ids": [ids]}
    assert Fluency(lm)(["The"], ["fox wai"], **columns) == pytest.approx([expected], abs=1e-9)
    # A stop string has been cut off the text.
    assert Fluency(lm)(["The"], ["fox"], **columns) == pytest.approx([expected], abs=1e-9)


@pytest.mark.parametrize("ids", [[60, 61, 62], [10**6]])
def test_fluency_encodes_the_text_when_ids_are_another_tokenizers(tiny_llama: str, ids: list[int]) -> None:
    fluency = Fluency(LanguageModel.load(tiny_llama))
    columns = {"prompt_ids": [[1]], "completion_ids": [ids]}
    assert fluency(["The"], ["fox"], **columns) == fluency(["The"], ["fox"])


def test_fluency_takes_a_folder_and_names_a_wrong_column(tiny_gpt2: str) -> None:
    assert one(Fluency(tiny_gpt2), "fox") == one(Fluency(LanguageModel.load(tiny_gpt2)), "fox")
    with pytest.raises(ValueError, match="'completion_ids' must have one entry per completion"):
        Fluency(tiny_gpt2)(["a"], ["b"], prompt_ids=[[1]], completion_ids=[[1], [2]])


def test_fluency_judges_an_empty_text_of_another_tokenizer(tiny_gpt2: str, tmp_path: Path) -> None:
    judge = save_tiny(tmp_path, "llama", word_level=True)
    eos = LanguageModel.load(tiny_gpt2).eos_token_id
    value = Fluency(judge)(["A fox"], [""], prompt_ids=[[283, 5]], completion_ids=[[eos]])
    assert value == pytest.approx([-math.log(LanguageModel.load(judge).vocab_size)])


# --- reward model -----------------------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "fox", "is", "happy", "sad", "and", "not", "very"]


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A classifier with three labels and a window of 12 tokens."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = Tokenizer(WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
        initializer_range=0.5,
        id2label={0: "negative", 1: "neutral", 2: "positive"},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def save_gpt2_classifier(folder: Path, pad: bool) -> str:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(save_tiny(folder, "gpt2", pad=pad))
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        initializer_range=0.4,
        id2label={0: "score"},
        pad_token_id=tokenizer.pad_token_id,
    )
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def logits_one_by_one(folder: str, rows: list[list[int]]) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return torch.cat([model(torch.tensor([row])).logits for row in rows])


BERT_PROMPTS = ["the fox ", "the ", "", "", "the fox is not "]
BERT_TEXTS = ["is happy", "fox is not very happy and the fox is sad", "", "[SEP] happy", ""]
BERT_IDS = [
    [2, 4, 5, 6, 7, 3],
    [2, 5, 6, 10, 11, 7, 9, 4, 5, 6, 8, 3],  # 13 tokens, cut to 12 at the beginning
    [2, 3],
    [2, 1, 1, 1, 7, 3],  # what looks like a special token is text
    [2, 4, 5, 6, 10, 3],
]


def test_a_reward_model_that_was_trained_on_is_read_again(tiny_bert: str, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "bert")
    before = RewardModel(folder, label=2)(["the fox "], ["is sad"])
    model = BertForSequenceClassification.from_pretrained(folder)
    for weight in model.classifier.parameters():
        weight.data.mul_(-3)
    model.save_pretrained(folder)
    after = RewardModel(folder, label=2)(["the fox "], ["is sad"])
    assert after == pytest.approx([-3 * value for value in before], abs=1e-5)


def test_positions_that_begin_behind_the_padding(tiny_bert: str, tmp_path: Path) -> None:
    """RoBERTa's: of 12 positions with padding id 0, 11 are for tokens."""
    folder = shutil.copytree(tiny_bert, tmp_path / "roberta")
    config = BertConfig.from_pretrained(folder).to_dict()
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    sizes = {name: config[name] for name in (*names, "max_position_embeddings")}
    model = RobertaForSequenceClassification(RobertaConfig(**sizes, pad_token_id=0, num_labels=1))
    model.save_pretrained(folder)
    (value,) = RewardModel(folder)(["the fox "], ["is happy " * 20])
    expected = logits_one_by_one(str(folder), [[2, 7, *[6, 7] * 4, 3]])
    assert value == pytest.approx(expected.item(), abs=1e-5)


def test_reward_model_equals_one_by_one(tiny_bert: str) -> None:
    logits = logits_one_by_one(tiny_bert, BERT_IDS)
    values = RewardModel(tiny_bert, label="positive", batch_size=2)(BERT_PROMPTS, BERT_TEXTS)
    assert values == pytest.approx(logits[:, 2].tolist(), abs=1e-5)
    reward = RewardModel(tiny_bert, label=0, output="probability")
    assert reward(BERT_PROMPTS, BERT_TEXTS) == pytest.approx(logits.softmax(-1)[:, 0].tolist(), abs=1e-5)
    alone = RewardModel(tiny_bert, label=2, with_prompt=False)(["not ", "sad"], ["the fox", ""])
    expected = logits_one_by_one(tiny_bert, [[2, 4, 5, 3], [2, 3]])
    assert alone == pytest.approx(expected[:, 2].tolist(), abs=1e-5)


@pytest.mark.parametrize("pad", [True, False])
def test_reward_model_of_a_decoder(tmp_path: Path, pad: bool) -> None:
    folder = save_gpt2_classifier(tmp_path, pad)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    prompts, texts = ["The fox", "", "", "A"], [" waits.", "At night the small boat", "", "<eos>"]
    rows = [tokenizer.encode(p + t, split_special_tokens=True) for p, t in zip(prompts, texts, strict=True)]
    rows[2] = [tokenizer.eos_token_id]
    expected = logits_one_by_one(folder, rows)[:, 0]
    assert RewardModel(folder)(prompts, texts) == pytest.approx(expected.tolist(), abs=1e-5)
    probability = RewardModel(folder, output="probability")
    assert probability(prompts, texts) == pytest.approx(expected.sigmoid().tolist(), abs=1e-5)


def test_reward_model_refuses_bad_folders(tmp_path: Path, tiny_bert: str) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        RewardModel(tmp_path / "nowhere")
    headless = save_tiny(tmp_path / "headless", "gpt2", pad_token_id=0)
    with pytest.raises(ModelError, match=r"headless.*score\.weight"):
        RewardModel(headless, label=0)(["a"], ["b"])
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for file in Path(tiny_bert).iterdir():
        name = "pytorch_model.bin" if file.suffix == ".safetensors" else file.name
        (pickled / name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match="pickle"):
        RewardModel(pickled, label=0)


# --- arguments and columns --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Length(-1), "minimum must be an integer >= 0, got -1"),
        (lambda: Length(5, 3), "maximum must be an integer >= 5, got 3"),
        (lambda: Length(0, 0), "maximum must be an integer >= 1, got 0"),
        (lambda: Length(1.5), "minimum must be an integer >= 0, got 1.5"),  # type: ignore[arg-type]
        (lambda: Length(1, unit="lines"), "unit must be 'words' or 'tokens', got 'lines'"),
        (lambda: KeywordCoverage([]), "keywords must be a str or a non-empty list of str"),
        (lambda: DistinctN(0), "n must be an integer >= 1, got 0"),
        (lambda: RepetitionPenalty(True), "n must be an integer >= 1, got True"),
        (lambda: Regex("("), r"pattern must be a regular expression, got '\('"),
        (lambda: Bleu(tokenize="no"), "tokenize must be one of .*, got 'no'"),
        (lambda: Chrf(word_order=-1), "word_order must be an integer >= 0, got -1"),
        (lambda: Rouge("rouge0"), "kind must be .*, got 'rouge0'"),
        (
            lambda: Fluency(output="nats"),
            "output must be 'log_prob', 'perplexity' or 'typicality', got 'nats'",
        ),
        (lambda: WeightedSum({}), "rewards must be a non-empty dict"),
        (lambda: WeightedSum({"a": Sentiment()}), r"rewards\['a'\] must be a pair"),  # type: ignore[dict-item]
        (
            lambda: WeightedSum({"a": (math.nan, Sentiment())}),
            "weight of .*'a'.* must be a finite number, got nan",
        ),
    ],
)
def test_bad_arguments_are_named(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_bad_reward_model_arguments_are_named(tiny_bert: str) -> None:
    with pytest.raises(ValueError, match=r"label must be an index or a name of .*positive.*, got None"):
        RewardModel(tiny_bert)
    with pytest.raises(ValueError, match=r"label must be .* got 3"):
        RewardModel(tiny_bert, label=3)
    with pytest.raises(ValueError, match=r"output must be .*, got 'score'"):
        RewardModel(tiny_bert, label=0, output="score")
    with pytest.raises(ValueError, match=r"device must be 'auto' .* got 'gpu'"):
        RewardModel(tiny_bert, label=0, device="gpu")
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1, got 0"):
        RewardModel(tiny_bert, label=0, batch_size=0)


@pytest.mark.parametrize("reward", [ExactMatch(), Bleu(), Chrf(), Rouge(), WordErrorRate()])
def test_missing_and_bad_references(reward: Any) -> None:
    assert one(reward, "a b", reference="a b") == one(reward, "a b", references=["a b"])
    with pytest.raises(
        ValueError, match=r"column 'references' or 'reference'; the columns given are \['answer'\]"
    ):
        one(reward, "a", answer="a")
    with pytest.raises(ValueError, match=r"'reference' must have one entry per completion \(2\), got 1"):
        reward(["p", "p"], ["a", "b"], reference=["a"])
    with pytest.raises(
        ValueError, match=r"references\[1\] must be a str or a non-empty list of str, got \[\]"
    ):
        reward(["p", "p"], ["a", "b"], references=["a", []])


def test_missing_columns_of_the_others() -> None:
    with pytest.raises(ValueError, match="column 'keywords'"):
        one(KeywordCoverage(), "a")
    with pytest.raises(ValueError, match="column 'completion_ids'"):
        one(Length(1, unit="tokens"), "a")


def test_chat_messages_are_refused() -> None:
    with pytest.raises(TypeError, match=r"completions\[0\] must be a str, got list; of chat messages"):
        Sentiment()(["a"], [[{"role": "assistant", "content": "b"}]])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="completions must be a list of str, got str"):
        Sentiment()(["a"], "b")
    with pytest.raises(ValueError, match="got 2 prompts for 1 completions"):
        Sentiment()(["a", "a"], ["b"])


# --- every reward -----------------------------------------------------------------------------------------

REFERENCE = {"reference": ["4", "a b"]}
EVERY: dict[str, tuple[Any, dict[str, Any]]] = {
    "sentiment": (Sentiment(), {}),
    "length": (Length(2, 4), {}),
    "keyword_coverage": (KeywordCoverage(["happy"]), {}),
    "distinct_2": (DistinctN(), {}),
    "repetition_penalty_3": (RepetitionPenalty(), {}),
    "regex": (Regex("4"), {}),
    "exact_match": (ExactMatch(), REFERENCE),
    "bleu": (Bleu(), REFERENCE),
    "chrf": (Chrf(), REFERENCE),
    "rougeL": (Rouge(), REFERENCE),
    "word_error_rate": (WordErrorRate(), REFERENCE),
    "weighted_sum": (WeightedSum({"a": (1.0, Sentiment()), "b": (-1.0, Length(3))}), {}),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_reward_passes_check_reward(name: str, recwarn: pytest.WarningsRecorder) -> None:
    reward, columns = EVERY[name]
    check_reward(reward, **columns)
    assert reward.__name__ == name  # TRL logs it
    assert not recwarn.list
    assert reward([], [], **{column: [] for column in columns}) == []


def test_rewards_with_models_pass_check_reward(tiny_llama: str, tiny_bert: str) -> None:
    for reward, name in (
        (Fluency(tiny_llama), "fluency"),
        (Fluency(tiny_llama, output="perplexity"), "perplexity"),
        (Fluency(tiny_llama, output="typicality"), "typicality"),
        (RewardModel(tiny_bert, label=2), "reward_model"),
    ):
        assert reward.__name__ == name
        texts = ["", "happy", "the fox is sad"]
        check_reward(reward, ["The", "fox", "is"], texts)
        assert pickle.loads(pickle.dumps(reward))(texts, texts) == reward(texts, texts)


def test_importing_the_rewards_is_cheap() -> None:
    heavy = ("torch", "transformers", "sacrebleu", "rouge_score", "jiwer", "nltk", "vaderSentiment")
    code = f"import sys, lm_envs.rewards; print([name for name in {heavy} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


# --- checked ----------------------------------------------------------------------------------------------


def returning(value: Any) -> Any:
    return lambda prompts, completions, **columns: value


@pytest.mark.parametrize(
    "values",
    [
        [1, 2.5],
        (1.0, 2.5),
        np.array([1.0, 2.5]),
        np.array([1.0, 2.5], np.float16),
        torch.tensor([1.0, 2.5], dtype=torch.bfloat16, requires_grad=True),
        [np.float32(1), np.array(2.5)],
        [np.int64(1), torch.tensor(2.5)],
    ],
    ids=repr,
)
def test_checked_converts_numbers(values: Any) -> None:
    result = checked(returning(values), ["p", "q"], ["a", "b"])
    assert result == [1.0, 2.5]
    assert all(type(value) is float for value in result)


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        None,
        "1.0",
        True,
        np.True_,
        np.array([1.0]),
        [1.0],
        1j,
        10**400,
        Decimal(1),
        np.float32("nan"),
        torch.tensor(float("inf")),
        torch.tensor([1.0]),
        b"1",
        {},
    ],
    ids=repr,
)
def test_checked_names_slot_text_and_value(value: Any) -> None:
    with pytest.raises(RewardError, match=r"slot 7 \(completion 'bad'\).* finite number") as caught:
        checked(returning([1.0, value]), ["p", "q"], ["good", "bad"], slots=[4, 7])
    assert (caught.value.slot, caught.value.text) == (7, "bad")
    assert caught.value.value is value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "returned 1 values, expected 2 finite numbers"),
        ([1.0] * 3, "returned 3 values, expected 2"),
        ([], "returned 0 values, expected 2"),
        (np.ones(3), "returned 3 values, expected 2"),
        (None, "returned NoneType None, expected 2"),
        (1.0, "returned float 1.0, expected 2"),
        (np.float64(1), "returned float64"),
        (torch.tensor(1.0), "returned Tensor"),
        (np.ones((2, 1)), "returned ndarray"),
        ("ab", "returned str 'ab', expected 2"),
        ({"a": 1.0, "b": 2.0}, "returned dict"),
        (iter([1.0, 2.0]), "returned list_iterator"),
        (np.array([True, False]), r"slot 0 .* finite number"),
        (np.array(["1", "2"]), r"slot 0 .* finite number"),
    ],
    ids=repr,
)
def test_checked_refuses_what_is_not_one_number_each(values: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        checked(returning(values), ["p", "q"], ["a", "b"])


def test_checked_finds_the_completion_that_makes_a_function_raise() -> None:
    def fragile(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
        return [1 / len(text) + float(a) for text, a in zip(completions, answer, strict=True)]

    assert checked(fragile, ["p"] * 2, ["a", "bb"], answer=["1", "2"]) == [2.0, 2.5]
    with pytest.raises(
        RewardError, match=r"'fragile' raised ZeroDivisionError: .* slot 9 \(completion ''\)"
    ) as caught:
        checked(fragile, ["p"] * 3, ["a", "", "c"], slots=[3, 9, 5], answer=["1", "2", "3"])
    assert (caught.value.slot, caught.value.text) == (9, "")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(RewardError, match=r"raised ValueError: .* slot 5") as caught:
        checked(fragile, ["p"] * 3, ["a", "b", "c"], slots=[3, 9, 5], answer=["1", "2", "x"])
    assert isinstance(caught.value.__cause__, ValueError)


def test_checked_says_when_only_the_batch_raises() -> None:
    def crowded(completions: list[str], **columns: Any) -> list[float]:
        if len(completions) > 1:
            raise MemoryError("too many")
        return [0.0]

    with pytest.raises(
        RewardError, match="MemoryError: too many for 2 completions together, and for none alone"
    ):
        checked(crowded, ["p", "q"], ["a", "b"])


def test_checked_takes_trl_style_functions_as_they_are() -> None:
    def accuracy(completions: list[str], solution: list[str], **kwargs: Any) -> list[float]:
        return [float(text == want) for text, want in zip(completions, solution, strict=True)]

    values = checked(accuracy, ["p", "q"], ["a", "b"], solution=["a", "c"], trainer_state=object())
    assert values == [1.0, 0.0]
    with pytest.warns(UserWarning, match="cannot be pickled"):  # it is local to this test
        check_reward(accuracy, solution=["4", "b"])


def test_long_texts_are_shortened_in_messages() -> None:
    with pytest.raises(RewardError) as caught:
        checked(returning([None]), ["p"], ["x" * 10_000])
    assert len(str(caught.value)) < 200
    assert caught.value.text == "x" * 10_000


def test_checked_checks_its_own_arguments() -> None:
    assert checked(returning(None), [], []) == []
    with pytest.raises(ValueError, match="got 1 slots for 2 completions"):
        checked(Sentiment(), ["p", "q"], ["a", "b"], slots=[1])


# --- weighted sum -----------------------------------------------------------------------------------------


def test_weighted_sum_has_parts() -> None:
    reward = WeightedSum(
        {"happy": (1.0, Sentiment()), "short": (-2, Length(1, 2)), "own": (0.5, returning([3, 4]))}
    )
    texts = ["I love it", "no"]
    happy = SentimentIntensityAnalyzer().polarity_scores
    values, parts = scored(reward, ["p", "q"], texts)
    assert parts == {
        "happy": [happy(text)["compound"] for text in texts],
        "short": [2 / 3, 1.0],
        "own": [3.0, 4.0],
    }
    expected = [parts["happy"][0] - 4 / 3 + 1.5, parts["happy"][1] - 2 + 2]
    assert values == reward(["p", "q"], texts) == pytest.approx(expected)
    assert scored(Sentiment(), ["p"], [""]) == ([0.0], {})


def test_a_weighted_sum_beyond_the_floats_is_refused() -> None:
    huge = WeightedSum({"a": (1e308, returning([0.0, 10.0]))})
    with pytest.raises(RewardError, match=r"'weighted_sum' returned inf .* slot 1"):
        checked(huge, ["p", "q"], ["a", "b"])


def test_weighted_sums_nest_and_pass_columns_on() -> None:
    inner = WeightedSum({"match": (2.0, ExactMatch())})
    reward = WeightedSum({"inner": (1.5, inner), "any": (1.0, Regex("."))})
    assert scored(reward, ["p"], ["a"], reference=["A"]) == ([4.0], {"inner": [2.0], "any": [1.0]})


def test_an_error_in_a_weighted_sum_names_the_part() -> None:
    reward = WeightedSum({"good": (1.0, Sentiment()), "bad": (1.0, returning([0.0, math.nan]))})
    with pytest.raises(
        RewardError, match=r"part 'bad': .* returned nan .*slot 8 \(completion 'b'\)"
    ) as caught:
        scored(WeightedSum({"outer": (1.0, reward)}), ["p", "q"], ["a", "b"], slots=[2, 8])
    assert (caught.value.slot, caught.value.text) == (8, "b")
