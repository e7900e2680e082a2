"""serve/services.py: the server's settings reach its engine."""

from slm_fn.infer.engine import EngineConfig
from slm_fn.serve.config import ServeConfig
from slm_fn.serve.services import make_services


def test_the_settings_of_a_server_reach_its_engine(scripted_model):
    config = ServeConfig(max_batch=3, prefill_chunk=8, prefix_cache_tokens=16)
    engine = make_services(scripted_model, config).worker.make_engine()
    assert engine.config == EngineConfig(
        max_batch=3, context=256, prefill_chunk=8, prefix_cache_tokens=16
    )


def test_the_defaults_are_those_of_the_engine(scripted_model):
    engine = make_services(scripted_model, ServeConfig()).worker.make_engine()
    assert engine.config == EngineConfig(context=256)
