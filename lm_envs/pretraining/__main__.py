"""`python -m lm_envs.pretraining`: makes the bundled language model again, from nothing."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path


def main(argv: list[str] | None = None) -> None:
    """Generates the stories, trains tokenizer and model, measures them, and writes the model's folder."""
    parser = argparse.ArgumentParser(
        prog="python -m lm_envs.pretraining",
        description="Generate the stories, train tokenizer and language model on them, write a model folder. "
        "A run that was interrupted goes on when the same command is given again.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/pretraining"),
        help="folder to write (default: %(default)s; lm_envs/bundled replaces the model that ships)",
    )
    parser.add_argument("--steps", type=int, help="optimizer steps (default: 8000, about 13 M tokens)")
    parser.add_argument("--seed", type=int, help="of the weights and of the stories (default: 0)")
    arguments = parser.parse_args(argv)

    # After parsing, so that --help does not wait for torch.
    from lm_envs.pretraining.release import write_release
    from lm_envs.pretraining.stories import story
    from lm_envs.pretraining.tokenizer import train_tokenizer
    from lm_envs.pretraining.training import Recipe, train

    given = {name: getattr(arguments, name) for name in ("steps", "seed")}
    try:
        recipe = Recipe(**{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        parser.error(str(error))

    checkpoint = arguments.out / "checkpoint" / "training.safetensors"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    texts = (story(seed).text for seed in range(recipe.tokenizer_stories))
    tokenizer = train_tokenizer(texts, recipe.vocab_size, recipe.context_length)
    try:
        trained = train(recipe, tokenizer, checkpoint)
    except ValueError as error:
        parser.error(str(error))
    print("measuring ...", flush=True)
    perplexity = write_release(arguments.out, recipe, trained, tokenizer)
    shutil.rmtree(checkpoint.parent)
    print(
        f"{trained.tokens:,} tokens, {trained.seconds / 60:.1f} minutes, "
        f"held-out perplexity {perplexity:.3f}\n"
        f'wrote {arguments.out}: gymnasium.make("TextGen-v0", model="{arguments.out}")'
    )


if __name__ == "__main__":
    main()
