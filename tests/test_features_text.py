import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from features_domain import save_bert, save_dual, save_t5, texts

from bivrec.errors import BivrecError
from bivrec.features.text import HashingTextEncoder, TransformersTextEncoder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def encoders(bert, tmp_path_factory):
    """Folders by the kind of network."""
    folder = tmp_path_factory.mktemp("encoders")
    duals = {kind: save_dual(folder / kind, kind, bert) for kind in ("clip", "siglip")}
    return {"bert": bert, "t5": save_t5(folder / "t5", bert), **duals}


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [("bert", "mean"), ("bert", "cls"), ("bert", "last"), ("t5", "mean"), ("clip", None), ("siglip", None)],
)
def test_padding_and_batching_do_not_change_an_embedding(encoders, kind, pooling):
    encoder = TransformersTextEncoder(str(encoders[kind]), pooling=pooling)
    inputs = texts(9)
    alone = torch.cat([encoder([text]) for text in inputs])
    torch.testing.assert_close(encoder(inputs), alone, atol=1e-5, rtol=1e-4)


def test_poolings_are_those_of_the_hidden_states(bert):
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(bert)("red glass lamp", return_tensors="pt")
    states = AutoModel.from_pretrained(bert).eval()(**tokens).last_hidden_state[0]
    mean = states.mean(0)
    for pooling, expected in ((None, mean), ("mean", mean), ("cls", states[0]), ("last", states[-1])):
        row = TransformersTextEncoder(str(bert), pooling=pooling)(["red glass lamp"])[0]
        torch.testing.assert_close(row, expected.detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_tokenizer_may_fill_up_on_the_left(bert, pooling):
    """As those of language models do; this BERT, whose positions shift then, is not asked to."""
    encoder = TransformersTextEncoder(str(bert), pooling=pooling)
    states = torch.arange(24.0).view(2, 4, 3)
    encoder._model = lambda **batch: SimpleNamespace(last_hidden_state=states)
    expected = {"mean": states[0, 2:].mean(0), "cls": states[0, 2], "last": states[0, 3]}[pooling]
    pooled = encoder._pool({"attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])})
    assert torch.equal(pooled[0], expected)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_texts_of_a_dual_network_lie_where_its_images_do(encoders, kind):
    """Filled up to 64 tokens, as SigLIP was trained; CLIP leaves what is filled up out."""
    from transformers import AutoModel, AutoTokenizer

    encoder = TransformersTextEncoder(str(encoders[kind]))
    tokens = AutoTokenizer.from_pretrained(encoders[kind])("red glass lamp", padding="max_length", return_tensors="pt")
    model = AutoModel.from_pretrained(encoders[kind]).eval()
    output = model.get_text_features(**tokens)
    expected = (output if isinstance(output, torch.Tensor) else output.pooler_output).detach()
    assert encoder.pooling == "projection"
    assert tokens["input_ids"].shape[1] == 64
    torch.testing.assert_close(encoder(["red glass lamp"]), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(BivrecError, match=r"max_tokens 65: .* reads 3 to 64 tokens"):
        TransformersTextEncoder(str(encoders[kind]), max_tokens=65)


def test_a_pooling_that_a_network_has_not(encoders):
    with pytest.raises(BivrecError, match=r"'mean': .*clip has only the projection of CLIP and its like; leave"):
        TransformersTextEncoder(str(encoders["clip"]), pooling="mean")
    with pytest.raises(BivrecError, match=r"'projection': .*bert has no projection into a space with images; leave"):
        TransformersTextEncoder(str(encoders["bert"]), pooling="projection")


def test_texts_are_cut_at_max_tokens(bert):
    encoder = TransformersTextEncoder(str(bert), max_tokens=4)
    torch.testing.assert_close(encoder(["red green blue"]), encoder(["red green lamp chair"]))
    with pytest.raises(BivrecError, match="max_tokens 9999"):
        TransformersTextEncoder(str(bert), max_tokens=9999)


def test_networks_that_are_no_encoders_of_texts_are_refused(bert, tmp_path):
    """GPT-2 has no token to fill a batch with."""
    from transformers import AutoTokenizer, GPT2Config, GPT2Model

    GPT2Model(GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=2, n_positions=64)).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(bert)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BivrecError, match=r"cannot be used as an encoder .* such as BERT") as fault:
        TransformersTextEncoder(str(tmp_path), max_tokens=16)
    assert "\n" not in str(fault.value)


def test_what_a_checkpoint_has_beside_the_network_is_no_news(bert, tmp_path, caplog):
    """As the heads of most text encoders."""
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    BertForMaskedLM(BertConfig.from_pretrained(bert)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path)
    with caplog.at_level("INFO"):
        TransformersTextEncoder(str(tmp_path), pooling="cls")
    assert "UNEXPECTED" not in caplog.text


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


def test_a_checkpoint_of_another_shape_is_refused(bert, tmp_path):
    folder = save_bert(tmp_path / "bert")
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | {"intermediate_size": told["intermediate_size"] + 1}))
    with pytest.raises(BivrecError, match=r"cannot be loaded \(.*; are the weights those of its config\.json") as fault:
        TransformersTextEncoder(str(folder))
    assert "\n" not in str(fault.value)


def test_missing_folder_model_and_package(monkeypatch, tmp_path):
    with pytest.raises(BivrecError, match="no such folder"):
        TransformersTextEncoder(str(tmp_path / "nowhere"))
    with pytest.raises(BivrecError, match=r"cannot be loaded.*config\.json"):
        TransformersTextEncoder(str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("bivrec-test/no-such-model", "no-such-model@v2"):
        with pytest.raises(BivrecError, match=rf"^{name}: not in the local cache, .*`hashing` .* need no Hub"):
            TransformersTextEncoder(name)
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
