"""`python -m lm_envs.pretraining`: makes the bundled language model again, or one of a text of your own."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lm_envs.pretraining.recipe import Recipe


def main(argv: list[str] | None = None) -> None:
    """Trains a tokenizer and a model, measures the model, and writes its folder."""
    parser = argparse.ArgumentParser(
        prog="python -m lm_envs.pretraining",
        description="Train a tokenizer and a language model on generated text, or on a text of your own, and "
        "write a folder to be used as model=. A run that was interrupted goes on when the same command is "
        "given again; a finished one is measured and written again without training.",
    )
    parser.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="a UTF-8 file to learn from instead of the generated text, documents separated by blank lines; "
        "longer ones are cut to the model's window of 256 tokens, and every tenth document is held out",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/pretraining"),
        help="folder to write (default: %(default)s; lm_envs/bundled replaces the model that ships)",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="where the run is saved every 45 seconds (default: OUT/checkpoint/training.safetensors)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        help="optimizer steps (default: 8500, about 90 minutes on 2 cores; with --text 1000)",
    )
    parser.add_argument("--seed", type=int, help="of the weights and of the generated text (default: 0)")
    parser.add_argument(
        "--write-only",
        action="store_true",
        help="train no further: write the model of the checkpoint as it stands",
    )
    arguments = parser.parse_args(argv)
    try:
        _run(arguments)
    except (ValueError, FileNotFoundError, ImportError) as error:
        parser.error(str(error))


def _run(arguments: argparse.Namespace) -> None:
    # Here, so that --help does not wait for torch.
    from transformers import PreTrainedTokenizerFast

    from lm_envs.pretraining import corpus, own_text
    from lm_envs.pretraining.batches import Source
    from lm_envs.pretraining.recipe import Recipe
    from lm_envs.pretraining.release import write_model, write_release
    from lm_envs.pretraining.tokenizer import train_tokenizer
    from lm_envs.pretraining.training import load_checkpoint, train

    settings = {name: getattr(arguments, name) for name in ("steps", "seed")}
    settings = {name: value for name, value in settings.items() if value is not None}
    own = None if arguments.text is None else own_text.OwnText.read(arguments.text)
    checkpoint: Path = arguments.checkpoint or arguments.out / "checkpoint" / "training.safetensors"
    if arguments.write_only:
        if not checkpoint.is_file():
            raise FileNotFoundError(f"--write-only: there is no checkpoint {checkpoint}")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint.parent)
        trained = load_checkpoint(checkpoint, tokenizer)
    else:
        recipe = Recipe(**settings) if own is None else own.recipe(**settings)
        texts = own.train if own else corpus_texts(recipe)
        tokenizer = train_tokenizer(texts, recipe.vocab_size, recipe.context_length)
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(checkpoint.parent)
        source: Source = own_text.Pieces(own_text.cut(tokenizer, own.train)) if own else corpus.text
        trained = train(recipe, source, tokenizer, checkpoint)

    print("measuring ...", flush=True)
    if own is not None:
        write_model(arguments.out, trained.model, tokenizer)
        prompts = f", prompts=[{' '.join(own.held_out[0].split()[:5])!r}]"
        held_out = own_text.cut(tokenizer, own.held_out)
        perplexity = own_text.perplexity(trained.model, tokenizer, held_out)
    else:
        prompts = ""
        perplexity = write_release(arguments.out, trained, tokenizer)
    print(
        f"{trained.tokens:,} tokens, {trained.seconds / 60:.1f} minutes, "
        f"held-out perplexity {perplexity:.3f}\n"
        f'wrote {arguments.out}: gymnasium.make("TextGen-v0", model="{arguments.out}"{prompts})'
    )


def corpus_texts(recipe: Recipe) -> Iterator[str]:
    """What the bundled tokenizer learns from: texts of all phases of the curriculum."""
    from lm_envs.pretraining.corpus import text

    for number in range(recipe.tokenizer_texts):
        yield text(number, recipe.mixture(number * recipe.steps // recipe.tokenizer_texts))


if __name__ == "__main__":
    main()
