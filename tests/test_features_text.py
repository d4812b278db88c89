import json
import os
import subprocess
import sys

import pytest
import torch
from features_domain import save_bert, texts

from bivrec.errors import BivrecError
from bivrec.features.text import HashingTextEncoder, TransformersTextEncoder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_and_batching_do_not_change_an_embedding(bert, pooling):
    encoder = TransformersTextEncoder(str(bert), pooling=pooling)
    inputs = texts(9)
    alone = torch.cat([encoder([text]) for text in inputs])
    torch.testing.assert_close(encoder(inputs), alone, atol=1e-5, rtol=1e-4)


def test_poolings_are_those_of_the_hidden_states(bert):
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(bert)("red glass lamp", return_tensors="pt")
    states = AutoModel.from_pretrained(bert).eval()(**tokens).last_hidden_state[0]
    for pooling, expected in (("mean", states.mean(0)), ("cls", states[0])):
        row = TransformersTextEncoder(str(bert), pooling=pooling)(["red glass lamp"])[0]
        torch.testing.assert_close(row, expected.detach(), atol=1e-5, rtol=1e-4)


def test_texts_are_cut_at_max_tokens(bert):
    encoder = TransformersTextEncoder(str(bert), max_tokens=4)
    torch.testing.assert_close(encoder(["red green blue"]), encoder(["red green lamp chair"]))
    with pytest.raises(BivrecError, match="max_tokens 9999"):
        TransformersTextEncoder(str(bert), max_tokens=9999)


def test_networks_that_are_no_encoders_of_texts_are_refused(bert, tmp_path):
    """GPT-2 has no token to fill a batch with, T5 asks for what is to follow."""
    from transformers import AutoTokenizer, GPT2Config, GPT2Model, T5Config, T5Model

    sizes = {"vocab_size": 40, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    networks = {
        "gpt2": GPT2Model(GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=2, n_positions=64)),
        "t5": T5Model(T5Config(**sizes)),
    }
    for name, network in networks.items():
        network.save_pretrained(tmp_path / name)
        tokenizer = AutoTokenizer.from_pretrained(bert)
        if name == "gpt2":
            tokenizer.pad_token = None
        tokenizer.save_pretrained(tmp_path / name)
        with pytest.raises(BivrecError, match=f"{name}: cannot be used as an encoder .* such as BERT") as fault:
            TransformersTextEncoder(str(tmp_path / name), max_tokens=16)
        assert "\n" not in str(fault.value)


def test_revision_of_a_folder_identifies_the_weights(bert, tmp_path):
    same, other = save_bert(tmp_path / "same"), save_bert(tmp_path / "other", seed=1)
    revisions = [TransformersTextEncoder(str(folder)).revision for folder in (bert, same, other)]
    assert revisions[0] == revisions[1] != revisions[2]
    assert revisions[0].startswith("sha256:")


def test_an_encoder_of_the_hub_has_the_weights_of_a_local_copy(hub, bert):
    hub.create("org/bert")
    commit = hub.commit("org/bert", {path.name: path.read_bytes() for path in bert.iterdir()})
    remote, local = TransformersTextEncoder("org/bert"), TransformersTextEncoder(str(bert))
    assert (remote.name, remote.revision) == ("org/bert", commit)
    assert remote.weights == local.revision
    assert torch.equal(remote(["red glass"]), local(["red glass"]))


def test_a_checkpoint_without_all_weights_is_refused(bert, tmp_path):
    from safetensors.torch import load_file, save_file

    damaged = save_bert(tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    del weights["encoder.layer.0.attention.self.query.weight"]
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BivrecError, match="1 weights are not in the checkpoint"):
        TransformersTextEncoder(str(damaged))


def test_missing_folder_model_and_package(monkeypatch, tmp_path):
    with pytest.raises(BivrecError, match="no such folder"):
        TransformersTextEncoder(str(tmp_path / "nowhere"))
    with pytest.raises(BivrecError, match=r"cannot be loaded.*config\.json"):
        TransformersTextEncoder(str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BivrecError, match=r"bivrec-test/no-such-model: the encoder cannot be loaded.*hf download"):
        TransformersTextEncoder("bivrec-test/no-such-model")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BivrecError, match=r'pip install "bivrec\[encoders\]"'):
        TransformersTextEncoder("bert-base-uncased")


def test_unknown_pooling_and_device(bert):
    with pytest.raises(BivrecError, match="device 'gpu': not usable"):
        TransformersTextEncoder(str(bert), device="gpu")
    with pytest.raises(BivrecError, match="pooling 'max'"):
        TransformersTextEncoder("bert-base-uncased", pooling="max")


def test_hashing_is_the_same_in_every_process():
    inputs = texts(5)
    program = (
        "import json, sys; from bivrec.features.text import HashingTextEncoder;"
        "print(json.dumps(HashingTextEncoder()(json.loads(sys.argv[1])).tolist()))"
    )
    rows = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", program, json.dumps(inputs)],
                env={**os.environ, "PYTHONHASHSEED": seed},
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for seed in ("1", "2")
    ]
    assert rows[0] == rows[1] == HashingTextEncoder()(inputs).tolist()


def test_hashing_puts_like_texts_together():
    rows = HashingTextEncoder()(["HP 78 printer cartridge", "HP 79 printer cartridges", "wooden chair", "灯", "?!"])
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))
    similarity = rows @ rows.T
    assert similarity[0, 1] > 0.6 > 0.3 > similarity[0, 2].abs()
