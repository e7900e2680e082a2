"""pipeline/pack.py: a pack carries its tokenizer, and every document begins with the template's start token."""

from slm_fn.data import pack as packs
from slm_fn.data import sources
from slm_fn.pipeline.pack import PackConfig, pack_documents
from slm_fn.text.chat import ChatTemplate
from slm_fn.text.tokenizer import Tokenizer


def test_documents_come_back_from_the_pack(road, tmp_path):
    tokenizer = Tokenizer.load(road.tokenizer)
    documents = list(sources.read([road.text]))
    info = pack_documents(PackConfig(seq_len=32, val_names=("play-0.md",)), tokenizer, documents, tmp_path / "pack")
    pack = packs.open_pack(tmp_path / "pack", verify=True)
    assert pack.info == info
    assert Tokenizer.load(tmp_path / "pack" / "tokenizer.json").fingerprint == info.fingerprint == tokenizer.fingerprint
    start = tokenizer.special(ChatTemplate().bos)
    ids = packs.take(pack, "train", 0, info.splits["train"].tokens).tolist()
    assert ids.count(start) == info.splits["train"].documents == 7
    assert ids[0] == start
    assert tokenizer.decode(ids) == "".join(d.text for d in documents[1:])
