# One recipe per stage. `just` alone lists them; everything also works as plain `slm` commands (see README.md).
set windows-shell := ["powershell.exe", "-NoLogo", "-Command"]

bin := if os() == "windows" { ".venv\\Scripts" } else { ".venv/bin" }
python := if os() == "windows" { "python" } else { "python3" }
run := "demo"

# list the recipes
default:
    @just --list

# create the development environment
setup:
    {{python}} -m venv .venv
    {{bin}}/pip install -q -e ".[dev]"

# every stage on the embedded corpus
demo *args:
    {{bin}}/slm demo --out {{run}} {{args}}

# the fast tests
test *args:
    {{bin}}/pytest {{args}}

# the tests that take minutes, and thousands of cases for every property
test-slow $HYPOTHESIS_PROFILE="thorough":
    {{bin}}/pytest -m slow
    {{bin}}/pytest -q tests/laws/test_tokenizers.py tests/text tests/data

# tokenizer training, encoding and packing, beside Hugging Face tokenizers
bench-tokenizer *args:
    {{bin}}/slm bench tokenizer {{args}}

# training speed, beside the machine's matmul rate: just bench-train --peer transformers
bench-train *args:
    {{bin}}/slm bench train {{args}}

# seconds to a validation loss, beside a clone of nanoGPT
bench-shakespeare text nanogpt:
    {{bin}}/python tests/bench/shakespeare.py {{text}} {{nanogpt}}

# decoding speed, beside the machine's read bandwidth: just bench-decode --peer transformers
bench-decode *args:
    {{bin}}/slm bench decode {{args}}

# a server under load, with well-behaved and misbehaving clients
bench-serve model *args:
    {{bin}}/slm bench serve {{model}} {{args}}

# quantise a model to 8 or 4 bits
quantize model out bits="8" *args:
    {{bin}}/slm quantize {{model}} --bits {{bits}} --out {{out}} {{args}}

# lint, format and types
check:
    {{bin}}/ruff check .
    {{bin}}/ruff format --check .
    {{bin}}/mypy

# devices, precisions, memory and threads of this machine
device:
    {{bin}}/slm device

# check a device against the CPU
doctor *args:
    {{bin}}/slm doctor {{args}}

# memory, time and placement of a config
plan config="tiny" *args:
    {{bin}}/slm plan {{config}} {{args}}

# stage 0: sources to clean text
prepare config="corpus" *args:
    {{bin}}/slm data prepare {{config}} --out {{run}}/corpus {{args}}

# stage 1: text to a tokenizer
tokenizer *inputs:
    {{bin}}/slm tokenizer train {{inputs}} --out {{run}}/tokenizer.json

# stage 2: text to packed shards
pack *inputs:
    {{bin}}/slm data pack --tokenizer {{run}}/tokenizer.json --out {{run}}/packed --in {{inputs}}

# stage 3: packed shards to a model
pretrain config="tiny" *args:
    {{bin}}/slm pretrain {{config}} --data {{run}}/packed --out {{run}}/pretrain {{args}}

# stage 3 on several processes of this machine: just pretrain-many 2 tiny --set pretrain.train.sharding=shard
pretrain-many num config="tiny" *args:
    {{bin}}/torchrun --standalone --nproc-per-node {{num}} --max-restarts 3 -m slm_fn.cli.main pretrain {{config}} --data {{run}}/packed --out {{run}}/pretrain {{args}}

# the curves of runs as a page
plot *args:
    {{bin}}/slm runs plot {{run}} --out {{run}}/curves.html {{args}}

# stage 4: fine-tune on conversations
sft config="tiny" data="demo/data/chat.jsonl" *args:
    {{bin}}/slm sft {{config}} --init {{run}}/pretrain --data {{data}} --out {{run}}/sft {{args}}

# stage 5: train on preferences
dpo config="tiny" data="demo/data/pairs.jsonl" *args:
    {{bin}}/slm dpo {{config}} --init {{run}}/sft --data {{data}} --out {{run}}/dpo {{args}}

# continue a text
sample prompt="ROMEO" *args:
    {{bin}}/slm sample {{run}}/pretrain --prompt "{{prompt}}" {{args}}

# chat in the terminal
chat *args:
    {{bin}}/slm chat {{run}}/dpo {{args}}

# the chat page at http://127.0.0.1:8000
serve *args:
    {{bin}}/slm serve {{run}}/dpo {{args}}
