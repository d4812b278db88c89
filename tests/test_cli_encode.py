import shlex
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from features_domain import make_domain, save_bert, save_pictures, save_resnet, texts

from bivrec.cli import main
from bivrec.data.domain import Domain
from bivrec.errors import BivrecError
from bivrec.features.contract import check_contract


def run(*arguments):
    return CliRunner().invoke(main, ["encode", *map(str, arguments)])


@pytest.fixture
def domain(tmp_path):
    names = save_pictures(tmp_path / "pictures", 5)
    (tmp_path / "pictures" / names[4]).write_bytes(b"damaged")
    return make_domain(tmp_path / "d", texts(6), [*names, None], images=tmp_path / "pictures")


def test_built_in_encoders(domain):
    result = run(domain.path, "--text", "hashing", "--image", "descriptor", "--whiten", "--half")
    assert result.exit_code == 0, result.output
    assert "text: 6 of 6 items, 0 missing; hashing@1 (256-d, sum, whitened with shrinkage 30)" in result.output
    assert "image: 4 of 6 items, 2 missing" in result.output
    assert "1 images cannot be read and count as missing: 4.png (cannot identify image file" in result.output


@pytest.mark.parametrize(
    ("modality", "encoder", "right"), [("text", "descriptor", "hashing"), ("image", "hashing", "descriptor")]
)
def test_the_built_in_encoder_of_the_other_modality(domain, modality, encoder, right):
    result = run(domain.path, f"--{modality}", encoder)
    assert result.exit_code == 1
    assert f"--{modality} {encoder}: it encodes" in result.output
    assert f"take {right}, or an encoder of the Hub or a folder" in result.output


def test_shrinkage(domain):
    result = run(domain.path, "--text", "hashing", "--whiten", "--shrinkage", 1)
    assert "(256-d, sum, whitened with shrinkage 1)" in result.output
    assert Domain.open(domain.path).info.features["text"].whitening == 1
    for options, fault in (
        (("--shrinkage", 1), "--shrinkage 1 is for --whiten; give both or neither"),
        (("--whiten", "--shrinkage", -1), "-1"),
        (("--whiten", "--shrinkage", "nan"), "nan"),
    ):
        result = run(domain.path, "--text", "hashing", *options)
        assert result.exit_code != 0
        assert fault in result.output


def test_features_that_whitening_would_erase(tmp_path):
    """Every item would have a vector of zeros, and count as one that has a text."""
    for name, own in (("same", 6 * ["tea"]), ("one", ["tea", *5 * [None]])):
        path = make_domain(tmp_path / name, own, 6 * [None]).path
        result = run(path, "--text", "hashing", "--whiten")
        assert (result.exit_code, result.output.count("\n")) == (1, 1)
        assert "are alike, so that whitening leaves nothing of them; leave --whiten out" in result.output
        assert run(path, "--text", "hashing").exit_code == 0


def test_folders_of_transformers(domain, tmp_path):
    bert, resnet = save_bert(tmp_path / "bert"), save_resnet(tmp_path / "resnet")
    result = run(domain.path, "--text", bert, "--image", resnet, "--pooling", "cls", "--max-tokens", 8)
    assert result.exit_code == 0, result.output
    specs = Domain.open(domain.path).info.features
    assert {name: (spec.encoder, spec.pooling) for name, spec in specs.items()} == {
        "text": ("bert", "cls"),
        "image": ("resnet", "pooler"),
    }


def test_the_encoder_of_a_folder_has_a_name(domain, tmp_path):
    bert, resnet = save_bert(tmp_path / "text/model"), save_resnet(tmp_path / "image/model")
    names = ("--text-name", "sentence-transformers/mini", "--image-name", "resnet-18")
    assert run(domain.path, "--text", bert, "--image", resnet).exit_code == 0
    unnamed = Domain.open(domain.path).info.features
    assert {spec.encoder for spec in unnamed.values()} == {"model"}
    result = run(domain.path, "--text", bert, "--image", resnet, *names, "--overwrite")
    assert result.exit_code == 0, result.output
    assert "; sentence-transformers/mini@sha256:" in result.output
    named = Domain.open(domain.path).info.features
    assert {modality: spec.encoder for modality, spec in named.items()} == {
        "text": "sentence-transformers/mini",
        "image": "resnet-18",
    }
    # A tower knows the encoder by its weights.
    check_contract(named, unnamed, tower="t", domain="d")
    with pytest.raises(BivrecError) as fault:
        check_contract({"text": named["text"]}, {}, tower="t", domain="d")
    assert "`bivrec encode d --text FOLDER --text-name sentence-transformers/mini --pooling mean" in str(fault.value)


@pytest.mark.parametrize("name", ["", "a b", "a/b/c", "| x |"])
def test_impossible_names_of_encoders(domain, tmp_path, name):
    result = run(domain.path, "--text", save_bert(tmp_path / "bert"), "--text-name", name)
    assert result.exit_code == 2
    assert "expected letters, digits" in result.output


def test_only_the_named_modality_is_encoded(domain):
    told = run(domain.path, "--image", "descriptor").output
    assert set(Domain.open(domain.path).info.features) == {"image"}
    assert f"text: not encoded; `bivrec encode {domain.path} --text ENCODER` adds it" in told
    assert "not encoded" not in run(domain.path, "--text", "hashing").output


def test_without_options_the_encoders_of_the_paper_are_used(domain, monkeypatch):
    asked = []

    def load(source, *settings):
        asked.append(source)
        raise KeyboardInterrupt

    monkeypatch.setattr("bivrec.features.text.load_pretrained", load)
    run(domain.path)
    assert asked == ["bert-base-uncased"]


def test_feature_files(domain, tmp_path):
    np.save(tmp_path / "f.npy", np.ones((2, 3)))
    (tmp_path / "ids.txt").write_text("item000000\nelsewhere\n")
    result = run(domain.path, "--image-features", tmp_path / "f.npy", "--ids", tmp_path / "ids.txt", "--image", "mine")
    assert result.exit_code == 0, result.output
    assert "image: 1 of 6 items, 5 missing; mine (3-d, file)" in result.output
    assert "image: 1 items of the feature file are not in the Domain, such as 'elsewhere'" in result.output


def test_images_help_no_domain_whose_items_name_none(tmp_path):
    folder = tmp_path / "pictures"
    save_pictures(folder, 1)
    result = run(make_domain(tmp_path / "d", texts(2)).path, "--image", "descriptor", "--images", folder)
    assert result.exit_code == 1
    assert result.output.endswith(
        "names an image; prepare the Domain again with `bivrec prepare ... --images FOLDER`\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--image", "descriptor"), "not recorded; give it with --images"),
        (("--image-features", "none.npy"), "none.npy: no such file"),
    ],
)
def test_images_that_cannot_be_had_are_told_before_texts_are_encoded(tmp_path, monkeypatch, options, message):
    domain = make_domain(tmp_path / "d", ["a", "b"], ["a.jpg", None])
    monkeypatch.setattr("bivrec.features.encode.encode_texts", None)
    result = run(domain.path, "--text", "hashing", *options)
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert message in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--text hashing --pooling cls --max-tokens 3",
            "leave --pooling, --max-tokens out: of no use without a text encoder of the Hub or a ",
        ),
        (
            "--image descriptor --pooling cls",
            "leave --pooling out: of no use without a text encoder of the Hub or a folder",
        ),
        (
            "--text-features f.safetensors --text bert --max-tokens 32",
            "leave --max-tokens out: of no use without a text encoder of the Hub",
        ),
        (
            "--text hashing --image descriptor --device cpu",
            "leave --device out: of no use without an encoder of the Hub or a folder",
        ),
        ("--text hashing --images pictures", "leave --images out: of no use without an image encoder"),
        (
            "--image-features f.npy --ids ids.txt --images pictures",
            "leave --images out: of no use without an image encoder",
        ),
        ("--image-features f.npy --ids ids.txt --batch-size 8", "leave --batch-size out: of no use without an encoder"),
        ("--text hashing --ids ids.txt", "leave --ids out: of no use without a .npy feature file"),
        ("--text-features f.safetensors --ids ids.txt", "leave --ids out: of no use without a .npy feature file"),
        ("--text hashing --text-name mine", "leave --text-name out: of no use without --text FOLDER; other encoders"),
        ("--image microsoft/resnet-50 --image-name mine", "leave --image-name out: of no use without --image FOLDER"),
        ("--text hashing --image-name mine", "leave --image-name out: of no use without --image FOLDER"),
        ("--text=", "--text and --image: expected the name of an encoder, found nothing"),
    ],
)
def test_options_that_would_do_nothing_are_refused(domain, options, message):
    result = run(domain.path, *options.split())
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {message}")
    assert not Domain.open(domain.path).info.features


def test_faults_are_one_line(domain, tmp_path):
    for arguments, message in (
        ([tmp_path / "nowhere", "--text", "hashing"], "not a Domain"),
        ([domain.path, "--text", tmp_path / "nowhere"], "no such folder"),
        ([domain.path, "--image", "descriptor", "--images", tmp_path / "nowhere"], "no such folder or tar"),
        ([make_domain(tmp_path / "bare", [None]).path], "neither texts nor images"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1
        assert message in result.output
        assert len(result.output.strip().splitlines()) == 1


def test_features_are_replaced_only_if_asked(domain, tmp_path):
    assert run(domain.path, "--text", "hashing").exit_code == 0
    before = (domain.path / "features.safetensors").read_bytes()
    # Even features made in the same way, and before an encoder is looked for.
    for options in (("hashing",), ("hashing", "--whiten"), (tmp_path / "nowhere",)):
        result = run(domain.path, "--text", *options, "--image", "descriptor")
        assert result.exit_code == 1
        assert result.output == (
            f"Error: {domain.path} has text features already (hashing@1 (256-d, sum)); pass --overwrite\n"
        )
        assert (domain.path / "features.safetensors").read_bytes() == before
    assert run(domain.path, "--image", "descriptor").exit_code == 0
    result = run(domain.path)
    assert "has text features already (hashing@1 (256-d, sum)), and image features already (descriptor@1" in (
        result.output
    )
    assert run(domain.path, "--text", "hashing", "--whiten", "--overwrite").exit_code == 0
    features = Domain.open(domain.path).info.features
    assert {name: spec.whitening for name, spec in features.items()} == {"text": 30.0, "image": None}


def test_a_typo_in_the_second_encoder_costs_nothing(domain, tmp_path):
    result = run(domain.path, "--text", "hashing", "--image", tmp_path / "nowhere")
    assert "no such folder" in result.output
    assert not Domain.open(domain.path).info.features
    assert run(domain.path, "--text", "hashing", "--image", "descriptor").exit_code == 0


def test_the_advice_of_the_contract_works_when_typed(domain, tmp_path):
    bare, other = (shutil.copytree(domain.path, tmp_path / name) for name in ("a shop", "another"))
    assert run(domain.path, "--text", "hashing", "--image", "descriptor", "--whiten").exit_code == 0
    assert run(other, "--text", "hashing").exit_code == 0
    wanted = Domain.open(domain.path).info.features
    for path in (bare, other):
        with pytest.raises(BivrecError, match="features differ") as fault:
            check_contract(wanted, Domain.open(path).info.features, tower="t", domain=path)
        for command in str(fault.value).partition("`")[2].rstrip("`").split(" && "):
            result = run(*shlex.split(command)[2:])
            assert result.exit_code == 0, result.output
        check_contract(wanted, Domain.open(path).info.features, tower="t", domain=path)
