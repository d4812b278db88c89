import dataclasses

import pytest

from bivrec.data.info import FeatureSpec
from bivrec.errors import BivrecError
from bivrec.features.contract import check_contract
from bivrec.features.whitening import SHRINKAGE

BERT = FeatureSpec("bert-base-uncased", "86b5e09", 768, "mean", SHRINKAGE)
RESNET = FeatureSpec("microsoft/resnet-50", "34c2154", 2048, "pooler", None)


def check(expected, actual):
    check_contract(expected, actual, tower="tower 'ml-1m'", domain="shop")


def test_equal_specifications_agree_whatever_else_the_domain_has():
    check({"text": BERT}, {"text": BERT, "image": RESNET})


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": "other"},
        {"revision": "1"},
        {"dimension": 3},
        {"pooling": "cls"},
        {"whitening": None},
        {"whitening": 1.0},
        {"max_tokens": 32},
    ],
)
def test_any_difference_is_refused(change):
    with pytest.raises(BivrecError, match="features differ"):
        check({"text": BERT}, {"text": dataclasses.replace(BERT, **change)})


def test_message_names_both_sides_and_the_command():
    with pytest.raises(BivrecError) as fault:
        check({"text": BERT, "image": RESNET}, {"text": dataclasses.replace(BERT, pooling="cls")})
    assert str(fault.value) == (
        "features differ: "
        "text of tower 'ml-1m' is bert-base-uncased@86b5e09 (768-d, mean, whitened with shrinkage 30), "
        "of shop is bert-base-uncased@86b5e09 (768-d, cls, whitened with shrinkage 30); "
        "image of tower 'ml-1m' is microsoft/resnet-50@34c2154 (2048-d, pooler), of shop is missing; "
        "run `bivrec encode shop --text bert-base-uncased@86b5e09 --pooling mean --whiten --overwrite && "
        "bivrec encode shop --image microsoft/resnet-50@34c2154`"
    )


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (FeatureSpec("hashing", "1", 256, "sum", SHRINKAGE), "--text hashing --whiten"),
        (FeatureSpec("hashing", "1", 256, "sum", 2.0), "--text hashing --whiten --shrinkage 2"),
        (FeatureSpec("hashing", "1", 256, "sum", 0.123456789), "--text hashing --whiten --shrinkage 0.123456789"),
        (FeatureSpec("mini", "sha256:ab", 384, "cls", None), "--text FOLDER --text-name mini --pooling cls"),
        (FeatureSpec("bert", "86b5e09", 768, "mean", None, 32), "--text bert@86b5e09 --pooling mean --max-tokens 32"),
        (FeatureSpec("ours", None, 384, "file", None), "--text-features FILE --text ours"),
        (FeatureSpec("file", "sha256:ab", 384, "file", None), "--text-features FILE"),
    ],
)
def test_command_for_every_kind_of_encoder(spec, options):
    with pytest.raises(BivrecError) as fault:
        check({"text": spec}, {})
    assert str(fault.value).endswith(f"run `bivrec encode shop {options}`")


def test_a_local_folder_is_known_by_its_weights_not_its_name():
    folder = FeatureSpec("mini", "sha256:ab", 384, "mean", None)
    check({"text": folder}, {"text": dataclasses.replace(folder, encoder="renamed")})
    with pytest.raises(BivrecError):
        check({"text": folder}, {"text": dataclasses.replace(folder, encoder="renamed", revision="sha256:cd")})


def test_a_local_copy_of_an_encoder_of_the_hub_agrees_with_it():
    hub = dataclasses.replace(BERT, weights="sha256:ab")
    copy = dataclasses.replace(BERT, encoder="my-bert", revision="sha256:ab")
    check({"text": hub}, {"text": copy})
    check({"text": copy}, {"text": hub})
    check({"text": hub}, {"text": dataclasses.replace(hub, revision="another commit, the same weights")})
    check({"text": hub}, {"text": BERT})
    check({"text": BERT}, {"text": hub})
    for other in (
        dataclasses.replace(copy, revision="sha256:cd"),
        dataclasses.replace(copy, pooling="cls"),
        dataclasses.replace(hub, encoder="other", weights="sha256:cd"),
    ):
        with pytest.raises(BivrecError, match="features differ"):
            check({"text": hub}, {"text": other})
