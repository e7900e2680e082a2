"""serve/grammars.py: what would kill or hold up the server is refused; what is right is made once."""

import asyncio

import pytest

from slm_fn.infer.constrain import Grammar
from slm_fn.serve.errors import ApiError
from slm_fn.serve.grammars import FEW, Grammars

GOOD = Grammar("json_schema", {"type": "boolean"})


def chain(length):
    """A schema that refers to one that refers to the next: each takes a frame of the library's stack."""
    links = {f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(length)}
    return Grammar("json_schema", {"$ref": "#/$defs/d0", "$defs": {**links, f"d{length}": {"type": "null"}}})


@pytest.fixture
def reading(parrot):
    """`reading(use, seconds)`: run a coroutine with the forms of a server."""

    def run(use, seconds=5.0):
        async def inside():
            made = Grammars(parrot.tokenizer, parrot.stop_ids, seconds)
            try:
                return await use(made)
            finally:
                made.close()

        return asyncio.run(inside())

    return run


async def refused(made, grammar):
    with pytest.raises(ApiError) as error:
        await made.ready(grammar, "ada")
    return error.value


def test_what_kills_its_reader_is_refused_and_the_next_is_read(reading):
    async def use(made):
        error = await refused(made, chain(4000))
        assert (error.status, error.param, error.code) == (400, "response_format", "unsupported_grammar")
        assert "too large" in error.message
        assert (await made.ready(GOOD, "ada")).start() is not None
        assert "no such" not in (await refused(made, Grammar("json_schema", {"not": {}}))).message

    reading(use)


def test_what_takes_minutes_is_refused_in_time(reading):
    async def use(made):
        slow = Grammar("json_schema", {"type": "integer", "multipleOf": 99999989})
        assert "longer to read than 0.3 seconds" in (await refused(made, slow)).message
        assert len(made.made) == 0, "another time it may do better"

    reading(use, 0.3)


def test_what_is_known_is_read_once_and_tried_with_its_first_token(reading):
    async def use(made):
        first, second = await asyncio.gather(made.ready(GOOD, "ada"), made.ready(GOOD, "bob"))
        assert first is second
        assert first.start().state is first.start().state
        huge = Grammar("regex", "(a{1000}){1000}")
        assert "too large: lexer error" in (await refused(made, huge)).message

    reading(use)


def test_one_client_has_a_few_read_at_a_time(reading):
    async def use(made):
        asked = [Grammar("choice", [str(i)]) for i in range(FEW + 1)]
        ways = await asyncio.gather(
            *(made.ready(one, "ada") for one in asked), made.ready(GOOD, "bob"), return_exceptions=True
        )
        assert [type(way).__name__ for way in ways] == ["Constraint"] * FEW + ["ApiError", "Constraint"]
        assert ways[FEW].status == 429

    reading(use)


def test_who_waits_when_the_server_closes_is_told(reading):
    async def use(made):
        slow = Grammar("json_schema", {"type": "integer", "multipleOf": 99999989})
        waiting = asyncio.create_task(made.ready(slow, "ada"))
        while made.process is None:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        made.close()
        with pytest.raises(ApiError) as error:
            await waiting
        assert error.value.status == 503

    reading(use)
