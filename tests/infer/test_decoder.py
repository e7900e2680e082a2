"""infer/decoder.py: which engine is selected, and why."""

import msgspec
import pytest

from slm_fn.infer import decoder as decoders
from slm_fn.lift import quant
from slm_fn.lift.quant import QuantConfig


def test_why_a_model_has_no_native_step_is_reported(config, rough):
    dual = msgspec.structs.replace(config, ffn="dual")
    params = rough(dual)
    assert decoders.select(dual, params).engine == "eager"
    with pytest.raises(ValueError, match=r"dual.*use auto or eager"):
        decoders.select(dual, params, "native")
    wide = msgspec.structs.replace(config, dim=96)
    for group in (
        16,
        48,
    ):  # a vector would reach over the end of the first, and no shift finds the second
        small = quant.quantize(
            rough(wide), QuantConfig(4, group), lambda path: path == "blocks/attn/q"
        )
        assert "not powers of two from 32" in decoders.select(wide, small).reason
    with pytest.raises(ValueError, match="not one of"):
        decoders.select(config, rough(config), "compile")
