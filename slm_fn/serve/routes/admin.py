"""All routes except completions: health, metrics, models, tokenize and detokenize.

Invariant: no handler waits for the worker.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from litestar import Response, get, head, post
from litestar.di import NamedDependency
from litestar.params import Body, PathParameter, SkipValidation

from slm_fn.pipeline.generation import generate
from slm_fn.pipeline.model_folder import Model
from slm_fn.serve.middleware.auth import PUBLIC
from slm_fn.serve.protocol import prompts, responses
from slm_fn.serve.protocol.errors import BODY_EXCEPTION_HANDLERS, invalid_request
from slm_fn.serve.protocol.requests import DetokenizeRequest, TokenizeRequest
from slm_fn.serve.services import Services

METRICS_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

ServicesDependency = NamedDependency[SkipValidation[Services]]


@get("/health", opt={PUBLIC: True}, tags=["server"])
async def health(services: ServicesDependency) -> dict[str, Any]:
    """The server is alive, and how many generations are queued or running."""
    num_active = services.worker.num_active
    return {"status": "ok", "model": services.config.name, "active": num_active}


@head("/health", opt={PUBLIC: True}, include_in_schema=False)
async def head_health() -> None:
    """HEAD of /health, which monitors request."""


@head("/", include_in_schema=False)
async def head_page() -> None:
    """HEAD of the page: Litestar answers HEAD for each of its static files except this one."""


@get("/health/ready", opt={PUBLIC: True}, tags=["server"])
async def ready(services: ServicesDependency) -> Response[dict[str, Any]]:
    """Whether new requests are accepted: 503 while the server loads, drains or has failed."""
    phase = services.worker.phase
    if phase == "ready":
        return Response({"status": phase}, status_code=200)
    return Response({"status": phase}, status_code=503, headers={"Retry-After": "1"})


async def metrics(services: ServicesDependency) -> Response[bytes]:
    """Returns the server's metrics in the text format of Prometheus."""
    return Response(services.worker.metrics.render(), media_type=METRICS_MEDIA_TYPE)


@get(["/v1/models", "/models"], tags=["models"])
async def models(services: ServicesDependency) -> dict[str, Any]:
    """Returns the list of models: the one that is served."""
    context = services.model.config.context
    return responses.model_list([services.config.name], services.created, context)


@get(["/v1/models/{model_id:str}", "/models/{model_id:str}"], tags=["models"])
async def one_model(
    services: ServicesDependency, model_id: Annotated[str, PathParameter()]
) -> dict[str, Any]:
    """Returns the served model if the name is its own, otherwise an error 404."""
    services.check_model_name(model_id)
    context = services.model.config.context
    return responses.model_object(services.config.name, services.created, context)


@post("/tokenize", status_code=200, exception_handlers=BODY_EXCEPTION_HANDLERS, tags=["tokens"])
async def tokenize(
    services: ServicesDependency, data: Annotated[TokenizeRequest, Body()]
) -> dict[str, Any]:
    """The token ids of a text, or of a conversation up to its reply."""
    services.check_model_name(data.model)
    inputs = [data.prompt, data.content, data.messages]
    if sum(each is not None for each in inputs) != 1:
        raise invalid_request("set exactly one of prompt, content and messages", "prompt")
    try:
        # Texts of any length, a few at a time: prompts need the other threads.
        async with services.tokenize_slots:
            ids = await asyncio.to_thread(_tokenize, services.model, data)
    except ValueError as error:
        param = "prompt" if data.messages is None else "messages"
        raise invalid_request(str(error), param) from None
    return {"tokens": ids, "count": len(ids), "max_model_len": services.model.config.context}


def _tokenize(model: Model, data: TokenizeRequest) -> list[int]:
    if data.messages is not None:
        return generate.encode_chat(model, prompts.parse_messages(data.messages))
    if data.prompt is not None and data.add_special_tokens:
        return generate.encode_text(model, data.prompt)
    text = data.content if data.prompt is None else data.prompt
    return model.tokenizer.encode(text or "")


@post("/detokenize", status_code=200, exception_handlers=BODY_EXCEPTION_HANDLERS, tags=["tokens"])
async def detokenize(
    services: ServicesDependency, data: Annotated[DetokenizeRequest, Body()]
) -> dict[str, str]:
    """The text of token ids, under vLLM's name and llama.cpp's."""
    services.check_model_name(data.model)
    try:
        text = await asyncio.to_thread(services.model.tokenizer.decode, data.tokens)
    except ValueError as error:
        raise invalid_request(str(error), "tokens") from None
    return {"prompt": text, "content": text}


@get("/tokenizer_info", tags=["tokens"])
async def tokenizer_info(services: ServicesDependency) -> dict[str, Any]:
    """The special tokens, in the format that lm-eval requests."""
    template = services.model.generation.template
    return {
        "bos_token": template.bos,
        "eos_token": template.end,
        "pad_token": template.bos,
        "chat_template": None,
    }
