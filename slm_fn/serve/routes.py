"""What is not a completion: health, metrics, models, tokens to text and back.

Invariant: nothing here waits for the worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from litestar import Request, Response, get, head, post
from litestar.datastructures import State
from litestar.params import Body, PathParameter

from slm_fn.pipeline import talk
from slm_fn.serve import protocol, replies
from slm_fn.serve.completions import check_name
from slm_fn.serve.errors import BODY, invalid
from slm_fn.serve.gate import PUBLIC
from slm_fn.serve.requests import DetokenizeRequest, TokenizeRequest


@get("/health", opt={PUBLIC: True}, tags=["server"])
async def health(state: State) -> dict[str, Any]:
    """Alive, and how many generations hold a place."""
    return {"status": "ok", "model": state.name, "active": state.worker.active}


@head("/health", opt={PUBLIC: True}, include_in_schema=False)
async def alive() -> None:
    """What those ask who look every minute whether a server is there."""


@head("/", include_in_schema=False)
async def page() -> None:
    """The same of the page: Litestar's own router answers HEAD for each of its files but for this one."""


@get("/health/ready", opt={PUBLIC: True}, tags=["server"])
async def ready(state: State) -> Response[dict[str, Any]]:
    """Whether new work is accepted: 503 while the server is loading, draining or has failed."""
    phase = state.worker.phase
    headers = {} if phase == "ready" else {"Retry-After": "1"}
    return Response({"status": phase}, status_code=200 if phase == "ready" else 503, headers=headers)


async def metrics(request: Request[Any, Any, Any], state: State) -> Response[bytes]:
    """Figures for Prometheus."""
    return Response(state.worker.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@get(["/v1/models", "/models"], tags=["models"])
async def models(state: State) -> dict[str, Any]:
    """The models there are: one."""
    return replies.models([state.name], state.created, state.model.config.context)


@get(["/v1/models/{model_id:str}", "/models/{model_id:str}"], tags=["models"])
async def one_model(state: State, model_id: Annotated[str, PathParameter()]) -> dict[str, Any]:
    """That model by name."""
    check_name(state, model_id)
    return replies.model(state.name, state.created, state.model.config.context)


@post("/tokenize", status_code=200, exception_handlers=BODY, tags=["tokens"])
async def tokenize(state: State, data: Annotated[TokenizeRequest, Body()]) -> dict[str, Any]:
    """The ids of a text, or of a conversation that waits for its reply."""
    check_name(state, data.model or state.name)
    given = [value for value in (data.prompt, data.content, data.messages) if value is not None]
    if len(given) != 1:
        raise invalid("give one of prompt, content and messages", "prompt")
    try:
        if data.messages is not None:
            ids = await _long(state, talk.chat_ids, state.model, protocol.messages(data.messages))
        else:
            begins = data.add_special_tokens and data.prompt is not None
            ids = await _long(state, _ids, state, str(given[0]), begins)
    except ValueError as error:
        raise invalid(str(error), "messages" if data.messages is not None else "prompt") from None
    return {"tokens": ids, "count": len(ids), "max_model_len": state.model.config.context}


async def _long(state: State, work: Callable[..., list[int]], *inputs: Any) -> list[int]:
    """Texts of any length, a few at a time: the threads that read prompts are not for them alone."""
    async with state.long_texts:
        return await asyncio.to_thread(work, *inputs)


def _ids(state: State, text: str, begins: bool) -> list[int]:
    ids: list[int] = talk.text_ids(state.model, text) if begins else state.model.tokenizer.encode(text)
    return ids


@post("/detokenize", status_code=200, exception_handlers=BODY, tags=["tokens"])
async def detokenize(state: State, data: Annotated[DetokenizeRequest, Body()]) -> dict[str, str]:
    """The text of ids, under vLLM's name and llama.cpp's."""
    check_name(state, data.model or state.name)
    try:
        text = await asyncio.to_thread(state.model.tokenizer.decode, data.tokens)
    except ValueError as error:
        raise invalid(str(error), "tokens") from None
    return {"prompt": text, "content": text}


@get("/tokenizer_info", tags=["tokens"])
async def tokenizer_info(state: State) -> dict[str, Any]:
    """The control tokens, as lm-eval asks for them."""
    template = state.model.generation.template
    return {"bos_token": template.bos, "eos_token": template.end, "pad_token": template.bos, "chat_template": None}
