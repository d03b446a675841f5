"""Shared fixtures: folders of tiny models, built once per test session."""

from __future__ import annotations

import pytest
from models import save_tiny


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """GPT-2: BOS and EOS, no default BOS, no pad token."""
    return save_tiny(tmp_path_factory.mktemp("gpt2"), "gpt2")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Llama: BOS in front by default, untied embeddings, grouped-query attention."""
    return save_tiny(tmp_path_factory.mktemp("llama"), "llama", add_bos=True)


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Qwen2: no BOS, a pad token, a chat template, and more embedding rows than its tokenizer has ids."""
    return save_tiny(tmp_path_factory.mktemp("qwen2"), "qwen2", bos=False, pad=True, chat=True, surplus_ids=7)


@pytest.fixture(scope="session")
def tiny_models(tiny_gpt2: str, tiny_llama: str, tiny_qwen2: str) -> dict[str, str]:
    """Architecture -> folder."""
    return {"gpt2": tiny_gpt2, "llama": tiny_llama, "qwen2": tiny_qwen2}
