"""What only a GPU can show. `tests/test_decoding.py` checks on a CPU what CUDA graphs demand of a step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import ARCHITECTURES, build_model
from stable_baselines3 import PPO

from benchmarks.speed.rollout import waits
from lm_envs.decoding import Decoder
from lm_envs.language_model import LanguageModel
from lm_envs.sampling import sample
from lm_envs.sb3 import EpisodeRolloutBuffer, KLCallback, TransformerPolicy, make_vec_env

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_replayed_steps_are_exact(architecture: str) -> None:
    model = build_model(architecture, 53).double().cuda()
    decoder = Decoder(model, 4, vocab_size=50, context_length=64)
    rng = np.random.default_rng(0)
    contexts = [rng.integers(50, size=length).tolist() for length in (3, 5, 2, 7)]
    decoder.prefill(range(4), contexts)
    for _ in range(50):  # over the width bucket of 32
        tokens = rng.integers(50, size=4).tolist()
        decoder.step(tokens)
        contexts = [[*context, token] for context, token in zip(contexts, tokens, strict=True)]
        for slot, context in enumerate(contexts):
            with torch.no_grad():
                expected = model(input_ids=torch.tensor([context], device="cuda")).logits[0, -1, :50]
            torch.testing.assert_close(decoder.logits([slot])[0], expected, rtol=0, atol=1e-10)


def test_a_step_waits_twice() -> None:
    """For the tokens on their way in and on their way out."""
    decoder = LanguageModel.load(device="cuda").decoder(8)
    decoder.prefill(range(8), [[1, 2, 3]] * 8)

    def steps() -> None:
        for _ in range(5):
            tokens, _ = sample(decoder.logits())
            decoder.step(tokens.cpu().numpy())

    steps()  # records
    assert waits(steps) <= 2 * 5


def test_bad_logits_raise_when_the_token_is_used() -> None:
    decoder = LanguageModel.load(device="cuda").decoder(2)
    decoder.prefill(range(2), [[1], [2]])
    logits = decoder.logits()
    logits[1, 0] = torch.nan
    with pytest.raises(ValueError, match="token id -1 is out of range"):
        decoder.step(sample(logits)[0].cpu().numpy())


def test_training_on_a_gpu() -> None:
    """A first epoch starts at ratios of 1: rollout and update agree, with the KL to the reference 0."""
    env = make_vec_env("TextGen-v0", 4, seed=0)
    learner = PPO(
        TransformerPolicy,
        env,
        n_steps=16,
        batch_size=64,
        n_epochs=1,
        normalize_advantage=False,
        rollout_buffer_class=EpisodeRolloutBuffer,
        device="cuda",
        seed=0,
    )
    learner.learn(64, callback=KLCallback(kl_coef=0.1))
    buffer = learner.rollout_buffer
    assert isinstance(buffer, EpisodeRolloutBuffer)
    np.testing.assert_allclose(buffer.kl, 0.0, atol=0.2)  # the reference is in bfloat16
    assert learner.logger.name_to_value["train/clip_fraction"] == 0.0
