"""config.py.

Three formats, one struct; typos name the nearest key; every value knows where it came from.
"""

import re

import msgspec
import pytest

from slm_fn import config as configs
from slm_fn.data.chat import filters
from slm_fn.data.clean import cleaning
from slm_fn.data.corpus.config import resolve

YAML = "pretrain:\n  optim: {learning_rate: 1e-4}\n"
TOML = "[pretrain.optim]\nlearning_rate = 1e-4\n"
JSON = '{"pretrain": {"optim": {"learning_rate": 1e-4}}}'


@pytest.mark.parametrize(("ending", "text"), [("yaml", YAML), ("toml", TOML), ("json", JSON)])
def test_three_formats_give_the_same_struct(tmp_path, ending, text):
    path = tmp_path / f"c.{ending}"
    path.write_text(text)
    assert configs.load(path) == configs.convert(
        {"pretrain": {"optim": {"learning_rate": 0.0001}}}, "", configs.Config
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1E5", 1e5), ("-2.5e+3", -2500.0), ("3", 3), ("1.", 1.0), (".5", 0.5)],
)
def test_yaml_numbers_are_numbers(text, value):
    found = configs.override({}, [f"a={text}"])["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"modle": {}}, ["'modle'", "did you mean 'model'"]),
        ({"model": {"num_layer": 3}}, ["'num_layer'", "[model]", "'num_layers'"]),
        ({"learning_rate": 1}, ["belongs under", "pretrain.optim"]),
        ({"pretrain": {"optim": {"warmup": 1}}}, ["[pretrain.optim]", "'warmup_steps'"]),
    ],
)
def test_an_unknown_key_names_the_nearest(data, words):
    with pytest.raises(ValueError, match="unknown key") as error:
        configs.convert(data, "c.yaml", configs.Config)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (["pretrain.optim.name=sgdd"], "name"),
        (["model.dim=wide"], "model.dim"),
        (["dim"], "path.to.key"),
    ],
)
def test_wrong_values_say_where(overrides, word):
    with pytest.raises(ValueError, match=word):
        configs.load("tiny", overrides)


def test_other_names_of_keys_are_read_and_change_no_hash(tmp_path):
    own = configs.load("tiny", ["pretrain.optim.floor=0.1", "pretrain.train.accumulate=2"])
    aliases = ["pretrain.optim.min_lr_ratio=0.1", "pretrain.train.gradient_accumulation_steps=2"]
    other = configs.load("tiny", aliases)
    assert configs.digest(own) == configs.digest(other)
    origins = {dotted: origin for dotted, _, origin in configs.origins("tiny", aliases)}
    assert origins["pretrain.optim.floor"] == "flag"
    (tmp_path / "c.yaml").write_text("model: {context_length: 64, tie_embeddings: false}\n")
    model = configs.load(tmp_path / "c.yaml").model
    assert (model.context, model.tied) == (64, False)
    (tmp_path / "both.yaml").write_text("model: {context_length: 64, context: 32}\n")
    with pytest.raises(ValueError, match=r"both.yaml: 'context' is given twice"):
        configs.load(tmp_path / "both.yaml")


def test_every_alias_stands_for_a_key_and_is_none_itself():
    for struct, aliases in configs.ALIASES.items():
        fields = {field.name for field in msgspec.structs.fields(struct)}
        assert set(aliases.values()) <= fields
        assert not fields & aliases.keys()


def test_a_missing_config_names_the_presets():
    with pytest.raises(FileNotFoundError, match="tiny"):
        configs.load("tinny")


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (
            "train.precision=bf16",
            ["pretrain.train.precision is one of auto, float32", "not 'bf16'"],
        ),
        (
            "optim.measures=[grad_norm]",
            ["pretrain.optim.measures is one of grad_norms", "not 'grad_norm'"],
        ),
        ("train.batch_size=0", [">= 1", "pretrain.train.batch_size"]),
        ("train.accumulate=0", [">= 1", "pretrain.train.accumulate"]),
        ("train.log_every=-1", [">= 0", "pretrain.train.log_every"]),
        ("optim.learning_rate=-1", [">= 0", "pretrain.optim.learning_rate"]),
        ("optim.ema_decay=1.5", ["< 1", "pretrain.optim.ema_decay"]),
        ("label_smoothing=2", ["< 1", "pretrain.label_smoothing"]),
        ("train.hooks.taps=[*/attn]", ["pretrain.train.hooks.taps", "quote a text"]),
    ],
)
def test_a_value_out_of_range_is_one_line_that_says_the_range(item, words):
    with pytest.raises(ValueError, match="pretrain") as error:
        configs.load("tiny", [f"pretrain.{item}"])
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


CORPUS = "sources: {web: {path: web/, max_documents: 10}, talk: {path: t.jsonl, kind: chat}}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "sources: {web: {path: a, clen: []}}",
            ["'clen'", "[sources.web]", "did you mean 'clean'"],
        ),
        (
            "sources: {web: {path: a, part_bytes: 9}}",
            ["'part_bytes'", "[sources.web]", "it belongs at the top level"],
        ),
        (
            "sources: {web: {path: a}}\nnear: {treshold: 0.7}",
            ["'treshold'", "[near]", "did you mean 'threshold'"],
        ),
        ("source: {web: {path: a}}", ["'source'", "at the top level", "did you mean 'sources'"]),
        ("sources: {web: {path: a, kind: texts}}", ["sources.web.kind is one of", "not 'texts'"]),
        (
            "sources: {web: {path: a}, web: {path: b}}",
            ["does not parse", "duplicate key 'web'", "line 1"],
        ),
        ("? [a]\n: b", ["does not parse", "a key is a list or mapping", "line 1"]),
        ("sources: {web: {path: '\udcff'}}", ["does not parse", "invalid start byte"]),
    ],
)
def test_a_corpus_is_checked_as_deep(tmp_path, text, words):
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"c\.yaml") as error:
        configs.load_as(configs.CorpusConfig, path)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_a_flag_reaches_into_one_source(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(CORPUS)
    told = configs.load_as(
        configs.CorpusConfig, path, ["sources.web.enabled=false", "sources.web.max_documents=7"]
    )
    assert (told.sources["web"].enabled, told.sources["web"].max_documents) == (False, 7)
    assert told.sources["talk"] == configs.load_as(configs.CorpusConfig, path).sources["talk"]
    rows = {
        dotted: (value, origin)
        for dotted, value, origin in configs.origins(path, ["sources.web.enabled=false"])
    }
    assert rows["sources.web.enabled"] == (False, "flag")
    assert rows["sources.web.max_documents"] == (10, "c.yaml")
    assert rows["sources.talk.max_documents"] == (None, "default")


def test_roads_and_corpora_are_told_apart(tmp_path):
    names = configs.presets()
    assert {"tiny", "corpus"} <= set(names)
    roads, corpora = configs.presets(configs.Config), configs.presets(configs.CorpusConfig)
    assert sorted(roads + corpora) == names
    assert "corpus" in corpora
    for name in roads:
        configs.load(name)
    for name in corpora:
        assert configs.load_as(configs.CorpusConfig, name).sources
    with pytest.raises(ValueError, match=r"slm data prepare.*to train take .*tiny"):
        configs.load("corpus")
    with pytest.raises(ValueError, match="unknown key 'tokenizer'"):
        configs.load_as(configs.CorpusConfig, "tiny")
    with pytest.raises(FileNotFoundError, match=r"presets: corpus$"):
        configs.load_as(configs.CorpusConfig, "corpsu")


def test_what_the_corpus_preset_has_in_comments_is_a_corpus_too(tmp_path):
    """Sources are commented out by a `# ` before each of their lines."""
    told = configs.find("corpus").read_text()
    (tmp_path / "c.yaml").write_text(re.sub(r"^  # (?=\w+:$|  \w+:)", "  ", told, flags=re.M))
    sources = configs.load_as(configs.CorpusConfig, tmp_path / "c.yaml").sources
    preset = configs.load_as(configs.CorpusConfig, "corpus").sources
    assert sources.keys() - preset.keys() == {"notes", "crawl", "support"}
    every = {
        name: msgspec.structs.replace(source, enabled=True) for name, source in sources.items()
    }
    for source in resolve(configs.CorpusConfig(sources=every)).values():
        cleaning.build_rules(source.clean)
        cleaning.build_rules(source.clean_url, cleaning.URL_RULES)
        filters.build(source.filters)


def test_a_file_that_does_not_parse_is_one_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: [1,\nb: }")
    with pytest.raises(ValueError, match="does not parse") as error:
        configs.load(path)
    assert "\n" not in str(error.value)


def test_every_value_knows_its_origin():
    rows = {
        dotted: (value, origin)
        for dotted, value, origin in configs.origins("tiny", ["model.dim=64"])
    }
    assert rows["model.dim"] == (64, "flag")
    assert rows["model.num_layers"][1] == "tiny.yaml"
    assert rows["pretrain.optim.b1"] == (0.9, "default")
    assert len(rows) == len(list(configs.walk(configs.Config())))


def test_written_yaml_loads_back_and_hashes_alike(tmp_path):
    config = configs.load("tiny", ["pretrain.optim.learning_rate=1.5e-05"])
    path = tmp_path / "config.yaml"
    path.write_text(configs.to_yaml(config))
    assert configs.load(path) == config
    assert configs.digest(configs.load(path)) == configs.digest(config)
    assert configs.digest(
        msgspec.structs.replace(config, model=configs.ModelConfig())
    ) != configs.digest(config)


def test_how_a_run_is_watched_and_spread_is_not_what_it_does():
    plain = configs.digest(configs.load("tiny"))
    aside = ["train.hooks.forward=[rms]", "train.tensorboard=true", "train.sharding=shard"]
    assert configs.digest(configs.load("tiny", [f"pretrain.{item}" for item in aside])) == plain
    for item in (
        "train.engine=compile",
        "train.seed=1",
        "optim.measures=[grad_norms]",
        "train.precision=float32",
    ):
        assert configs.digest(configs.load("tiny", [f"pretrain.{item}"])) != plain
