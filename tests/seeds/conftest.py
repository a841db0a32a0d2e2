"""Stand-ins for what the pages import besides workflows: a scripted model, an index in memory."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel


class Completion(BaseModel):
    text: str

    def __str__(self) -> str:
        return self.text


class OpenAI:
    """A model that answers with what it was asked."""

    def __init__(self, model: str = "", **_: Any) -> None:
        self.model = model

    async def acomplete(self, prompt: str) -> Completion:
        return Completion(text=f"answer to <{prompt}>")


class Node(BaseModel):
    text: str


class VectorStoreIndex:
    def __init__(self, nodes: list[Node]) -> None:
        self._nodes = nodes

    @classmethod
    def from_documents(cls, documents: list[Node]) -> VectorStoreIndex:
        return cls(documents)

    def as_retriever(self, similarity_top_k: int) -> VectorStoreIndex:
        return VectorStoreIndex(self._nodes[:similarity_top_k])

    async def aretrieve(self, query: str) -> list[Node]:
        return self._nodes


class SimpleDirectoryReader:
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def load_data(self) -> list[Node]:
        return [Node(text=f"page {number} of {self._folder}") for number in range(20)]


class SentenceTransformerRerank:
    def __init__(self, model: str, top_n: int) -> None:
        self._top_n = top_n

    def postprocess_nodes(self, nodes: list[Node], query_str: str) -> list[Node]:
        return nodes[: self._top_n]


class Memory:
    """Keeps messages; the pages ask for it as a resource."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    @classmethod
    def from_defaults(cls, user: str, token_limit: int) -> Memory:
        return cls()

    async def aput(self, message: Any) -> None:
        self.messages.append(message)


class FastAPI:
    def __init__(self) -> None:
        self.routes: dict[str, Any] = {}

    def post(self, path: str) -> Any:
        return lambda function: self.routes.setdefault(path, function)


STAND_INS = {
    "llama_index": {},
    "llama_index.llms": {},
    "llama_index.llms.openai": {"OpenAI": OpenAI},
    "llama_index.embeddings": {},
    "llama_index.embeddings.openai": {"OpenAIEmbedding": OpenAI},
    "llama_index.core": {
        "VectorStoreIndex": VectorStoreIndex,
        "SimpleDirectoryReader": SimpleDirectoryReader,
        "Settings": SimpleNamespace(llm=OpenAI()),
    },
    "llama_index.core.postprocessor": {"SentenceTransformerRerank": SentenceTransformerRerank},
    "llama_index.core.memory": {"Memory": Memory},
    "fastapi": {"FastAPI": FastAPI},
}


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Puts the stand-ins where the pages import them, and lets old forms warn."""
    for name, content in STAND_INS.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* is (an|the) old (form|name)", DeprecationWarning)
        yield
    sys.modules.pop("block", None)
