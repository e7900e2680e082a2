"""serve/scheduler/grammar_cache.py: grammars that would crash or block the server are rejected."""

import asyncio

import pytest

from slm_fn.infer.constraints import Grammar
from slm_fn.serve.protocol.errors import ApiError
from slm_fn.serve.scheduler.grammar_cache import MAX_PENDING_PER_CLIENT, GrammarCache

VALID = Grammar("json_schema", {"type": "boolean"})
SLOW = Grammar("json_schema", {"type": "integer", "multipleOf": 99999989})


def chained_schema(length):
    """A schema that refers to one that refers to the next: each takes a frame of the stack."""
    definitions = {}
    for i in range(length):
        items = {"$ref": f"#/$defs/d{i + 1}"}
        definitions[f"d{i}"] = {"type": "array", "items": items}
    definitions[f"d{length}"] = {"type": "null"}
    return Grammar("json_schema", {"$ref": "#/$defs/d0", "$defs": definitions})


@pytest.fixture
def with_cache(scripted_model):
    """`with_cache(use, seconds)`: run the coroutine `use(cache)`, and close the cache."""

    def run(use, timeout_seconds=600.0):
        async def inside():
            tokenizer = scripted_model.tokenizer
            cache = GrammarCache(tokenizer, scripted_model.stop_ids, timeout_seconds)
            try:
                return await use(cache)
            finally:
                cache.close()

        return asyncio.run(inside())

    return run


async def rejection(cache, grammar):
    with pytest.raises(ApiError) as error:
        await cache.get(grammar, "ada")
    return error.value


def test_a_grammar_that_crashes_the_sandbox_is_rejected_and_the_next_one_compiles(with_cache):
    async def use(cache):
        error = await rejection(cache, chained_schema(4000))
        assert error.status == 400
        assert error.param == "response_format"
        assert error.code == "unsupported_grammar"
        assert "too large" in error.message
        assert (await cache.get(VALID, "ada")).start() is not None
        invalid = await rejection(cache, Grammar("json_schema", {"not": {}}))
        assert "no such" not in invalid.message

    with_cache(use)


def test_a_grammar_that_takes_minutes_is_rejected_in_time(with_cache):
    async def use(cache):
        error = await rejection(cache, SLOW)
        assert "longer to compile than 0.3 seconds" in error.message
        assert len(cache.entries) == 0, "it may succeed at another time"

    with_cache(use, 0.3)


def test_a_grammar_is_compiled_once_including_its_first_mask(with_cache):
    async def use(cache):
        first, second = await asyncio.gather(cache.get(VALID, "ada"), cache.get(VALID, "bob"))
        assert first is second
        assert first.start().state is first.start().state
        huge = Grammar("regex", "(a{1000}){1000}")
        assert "too large: lexer error" in (await rejection(cache, huge)).message

    with_cache(use, 60.0)  # a busy machine takes longer than the default to find the error


def test_a_client_has_few_grammars_compiled_at_a_time(with_cache):
    async def use(cache):
        num_grammars = MAX_PENDING_PER_CLIENT + 1
        grammars = [Grammar("choice", [str(i)]) for i in range(num_grammars)]
        of_ada = [cache.get(grammar, "ada") for grammar in grammars]
        results = await asyncio.gather(*of_ada, cache.get(VALID, "bob"), return_exceptions=True)
        types = [type(result).__name__ for result in results]
        assert types == ["Constraint"] * MAX_PENDING_PER_CLIENT + ["ApiError", "Constraint"]
        assert results[MAX_PENDING_PER_CLIENT].status == 429

    with_cache(use)


def test_requests_that_wait_get_an_error_when_the_server_closes(with_cache):
    async def use(cache):
        waiting = asyncio.create_task(cache.get(SLOW, "ada"))
        while cache.sandbox.process is None:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        cache.close()
        with pytest.raises(ApiError) as error:
            await waiting
        assert error.value.status == 503

    with_cache(use)
