"""Every environment id of this package, in one table. Entry points are strings: no torch is imported."""

from __future__ import annotations

import gymnasium

TEXT, VECTOR = "lm_envs.text_env:TextGenEnv", "lm_envs.vector_env:TextGenVectorEnv"

# id -> (single environment, vector environment, keyword arguments)
ENVIRONMENTS: dict[str, tuple[str, str, dict[str, object]]] = {
    "TextGen-v0": (TEXT, VECTOR, {"task": "continuation"}),
    "TextGen-Story-v0": (TEXT, VECTOR, {"task": "story", "max_new_tokens": 96}),
    "TextGen-Control-v0": (TEXT, VECTOR, {"task": "control", "max_new_tokens": 92}),
    "TextGen-Sentiment-v0": (TEXT, VECTOR, {"task": "sentiment", "max_new_tokens": 56}),
    "TextGen-Translation-v0": (TEXT, VECTOR, {"task": "translation", "max_new_tokens": 40, "stop": "\n"}),
    "TextGen-Summarization-v0": (TEXT, VECTOR, {"task": "summarization", "max_new_tokens": 56, "stop": "\n"}),
    "TextGen-QA-v0": (TEXT, VECTOR, {"task": "qa", "max_new_tokens": 24, "stop": "\n"}),
    "TextGen-Dialogue-v0": (TEXT, VECTOR, {"task": "dialogue", "max_new_tokens": 24, "stop": "\n"}),
    "TextGen-Transcription-v0": (TEXT, VECTOR, {"task": "transcription", "max_new_tokens": 32, "stop": "\n"}),
    "TextGen-Edit-v0": (
        TEXT,
        VECTOR,
        {"task": "edit", "actions": "edit", "max_new_tokens": 16, "stop": "\n"},
    ),
    "TextGen-Snake-v0": (TEXT, VECTOR, {"task": "snake", "max_new_tokens": 4, "stop": "\n"}),
    "TextGen-Recommendation-v0": (
        TEXT,
        VECTOR,
        {"task": "recommendation", "max_new_tokens": 8, "stop": "\n"},
    ),
    "TextGen-ReasoningGym-v0": (TEXT, VECTOR, {"task": "reasoning_gym", "max_new_tokens": 12, "stop": "\n"}),
    **{
        f"TextGen-{toy}-v0": (f"lm_envs.toy.envs:{toy}Env", f"lm_envs.toy.vector_env:{toy}VectorEnv", {})
        for toy in ("ToyCopy", "ToyReverse", "ToyBrackets", "ToyBigram", "ToyTranslate", "ToyKeyDoor")
    },
}


def register_all() -> None:
    """Registers the ids that are not registered yet, so that importing twice does no harm."""
    for env_id, (entry_point, vector_entry_point, kwargs) in ENVIRONMENTS.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(
                env_id, entry_point=entry_point, vector_entry_point=vector_entry_point, kwargs=kwargs
            )
