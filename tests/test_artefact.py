"""Published models as Python objects, and what is refused of files that nobody vouches for."""

import copy as copying
import json
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from stages import encode, in_subprocess, same, weights

import bivrec
from bivrec.artefact import BiVRec, Tower, load
from bivrec.artefact_config import read_config
from bivrec.artefact_files import empty_network
from bivrec.card_facts import card_facts
from bivrec.data.domain import Domain
from bivrec.errors import BivrecError
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.evaluation.ranking import evaluate
from bivrec.evaluation.scorer import ModelScorer
from bivrec.finetune import zero_shot_model
from bivrec.hub import model_of_run, publish, tower_of_run
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)

KS = (10, 20, 50)


@pytest.fixture(scope="module")
def joint(pretrained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published joint model of `pretrained`."""
    return Path(publish(pretrained, str(tmp_path_factory.mktemp("joint") / "joint"), "joint"))


@pytest.fixture(params=["tower", "joint"])
def copy(request: pytest.FixtureRequest, tower: Path, joint: Path, tmp_path: Path) -> Path:
    """A copy of the tower or the joint model that a test may spoil."""
    return Path(shutil.copytree({"tower": tower, "joint": joint}[request.param], tmp_path / "copy"))


def spoil(folder: Path, /, **change: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def change_header(model: Path, change: dict[str, Any], cut: int | None = None) -> None:
    """Change the header of the weights and keep the rest of the file."""
    path = model / "model.safetensors"
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = {**json.loads(content[8 : 8 + length]), **change}
    text = json.dumps({name: value for name, value in header.items() if value is not None}).encode()
    path.write_bytes(struct.pack("<Q", len(text) if cut is None else cut) + text + content[8 + length :])


def load_fault(source: object) -> str:
    """The one line that loading a model ends with."""
    with pytest.raises(BivrecError) as caught:
        load(str(source))
    message = str(caught.value)
    assert message.startswith(str(source))
    assert "\n" not in message
    assert len(message) < 1000
    return message


# There and back


@pytest.mark.parametrize("model", ["tower", "joint"])
def test_a_model_is_files_that_hold_no_code(tower: Path, joint: Path, model: str) -> None:
    expected = {"README.md", "config.json", "model.safetensors", "results.json", "training_curve.png"}
    folder = {"tower": tower, "joint": joint}[model]
    extra = {"items.json"} if model == "joint" else set()
    assert {path.name for path in folder.iterdir()} == expected | extra


def test_the_weights_are_those_of_the_best_step(tower: Path, joint: Path, pretrained: Run) -> None:
    assert same(load_file(tower / "model.safetensors"), weights(pretrained, "best", "towers.mm."))
    assert same(load_file(joint / "model.safetensors"), weights(pretrained, "best"))
    assert same(Tower.from_pretrained(joint).weights, Tower.from_pretrained(tower).weights)


def test_what_was_published_is_read_again(tower: Path, joint: Path, pretrained: Run, source: Domain) -> None:
    for read, direct in (
        (Tower.from_pretrained(tower), tower_of_run(pretrained)),
        (BiVRec.from_pretrained(joint, source), model_of_run(pretrained)),
    ):
        assert same(read.weights, direct.weights)
        assert (read.config, read.features) == (direct.config, direct.features)
        assert read.training == {**direct.training, **card_facts(pretrained, direct)}
        assert read.features == source.info.features
        assert read.training["results"] == pretrained.results()
        assert read.source["revision"] is None
        assert read.num_parameters == sum(value.numel() for value in direct.weights.values())


def test_a_model_that_was_read_is_saved_as_it_was(copy: Path, tmp_path: Path) -> None:
    model = load(str(copy))
    model.save_pretrained(tmp_path / "again")
    for path in (tmp_path / "again").iterdir():
        if path.name != "README.md":
            assert path.read_bytes() == (copy / path.name).read_bytes(), path.name
    with pytest.raises(BivrecError, match="exists already"):
        model.save_pretrained(tmp_path / "again")
    model.save_pretrained(tmp_path / "again", overwrite=True)


def test_a_published_tower_ranks_exactly_like_the_run(
    tower: Path, joint: Path, pretrained: Run, source: Domain
) -> None:
    users = EvaluationUsers.from_sequences(source.sequences("test"))
    for folder in (tower, joint):
        scorer = ModelScorer(zero_shot_model(source, Tower.from_pretrained(folder)), "mm")
        assert evaluate(scorer, users, KS).metrics == pretrained.results()["mm"]


def test_a_published_joint_model_ranks_exactly_like_the_run(joint: Path, pretrained: Run, source: Domain) -> None:
    users = EvaluationUsers.from_sequences(source.sequences("test"))
    model = BiVRec.from_pretrained(joint, source)
    assert set(pretrained.results()) == {"id", "mm", "both"}
    for view, metrics in pretrained.results().items():
        assert evaluate(model.scorer(view), users, KS).metrics == metrics


def test_the_training_is_recorded_without_paths_of_the_data(copy: Path, pretrained: Run) -> None:
    training = load(str(copy)).training
    assert training["domain"]["name"] == "source"
    assert "path" not in training["domain"]
    assert training["config"] == pretrained.config.to_dict()
    assert training["best_step"] == pretrained.progress().best_step


# The Python API


def test_the_package_offers_the_models() -> None:
    assert (bivrec.Tower, bivrec.BiVRec, bivrec.Domain) == (Tower, BiVRec, Domain)
    with pytest.raises(AttributeError, match="no attribute 'Towel'"):
        _ = bivrec.Towel


def test_items_and_histories_are_encoded_like_in_the_ranking(tower: Path, source: Domain) -> None:
    model = Tower.from_pretrained(tower)
    users = EvaluationUsers.from_sequences(source.sequences("test"))
    scorer = ModelScorer(zero_shot_model(source, model), "mm")
    histories = users.histories(0, len(users), scorer.max_history)
    vectors = model.encode_items(model.item_features(source))
    interests = model.encode_histories(vectors, histories)
    assert vectors.shape == (source.num_items + 1, model.config.hidden_size)
    assert interests.shape == (len(users), model.config.num_interests[-1], model.config.hidden_size)
    assert not vectors.requires_grad
    assert vectors[0].eq(0).all()
    expected = scorer.score(scorer.encode(histories), 1, source.num_items + 1)
    torch.testing.assert_close((interests @ vectors[1:].T).amax(1), expected)


def test_the_length_of_a_features_part_does_not_matter(tower: Path, source: Domain) -> None:
    model = Tower.from_pretrained(tower)
    features = model.item_features(source)
    text = model.features["text"].dimension
    scaled = torch.cat([features[:, :text] * 7, features[:, text:] / 3], dim=1)
    torch.testing.assert_close(model.encode_items(scaled), model.encode_items(features))


def test_longer_histories_are_read_from_their_end_and_padding_does_not_matter(tower: Path, source: Domain) -> None:
    model = Tower.from_pretrained(tower)
    vectors = model.encode_items(model.item_features(source))
    long = torch.arange(1, 2 * model.config.max_history + 1)[None]
    recent = long[:, -model.config.max_history :]
    assert torch.equal(model.encode_histories(vectors, long), model.encode_histories(vectors, recent))
    short, padded = torch.tensor([[3, 1, 2]]), torch.tensor([[0, 0, 3, 1, 2]])
    torch.testing.assert_close(model.encode_histories(vectors, short), model.encode_histories(vectors, padded))


@pytest.mark.parametrize(
    ("histories", "message"),
    [
        (torch.tensor([[1, 0]]), "row 0 is empty or not padded on the left"),
        (torch.tensor([[0, 1], [0, 0]]), "row 1 is empty"),
        (torch.zeros(2, 0, dtype=torch.int64), "row 0 is empty"),
        (torch.tensor([[0, 1000]]), "items 0 to 1000, expected 0 to"),
        (torch.tensor([[-1, 1]]), "items -1 to 1"),
        (torch.tensor([1, 2]), r"\[2\]: expected int64 \[users, items\]"),
        (torch.tensor([[1.0]]), "float32"),
    ],
)
def test_impossible_histories(tower: Path, source: Domain, histories: torch.Tensor, message: str) -> None:
    model = Tower.from_pretrained(tower)
    vectors = model.encode_items(model.item_features(source))
    with pytest.raises(BivrecError, match=message):
        model.encode_histories(vectors, histories)


def test_impossible_features(tower: Path) -> None:
    model = Tower.from_pretrained(tower)
    with pytest.raises(BivrecError, match=r"expected \[items, 496\], that is 256 \(text\) \+ 240 \(image\)"):
        model.encode_items(torch.zeros(3, 256))
    with pytest.raises(BivrecError, match="not finite"):
        model.encode_items(torch.full((1, 496), torch.nan))
    with pytest.raises(BivrecError, match="expected"):
        model.encode_histories(torch.zeros(3, 5), torch.tensor([[1]]))


def test_a_clone_has_weights_of_its_own(tower: Path, source: Domain) -> None:
    model = Tower.from_pretrained(tower)
    before = {name: value.clone() for name, value in model.weights.items()}
    network = model.clone().attach(source)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert same(model.weights, before)
    assert same(Tower.from_pretrained(tower).weights, before)


def read_by(model: Tower) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of items and interests of a history, from the public methods."""
    vectors = model.encode_items(torch.eye(496)[:9])
    return vectors, model.encode_histories(vectors, torch.tensor([[1, 2, 3]]))


def replace_weights(model: Tower) -> None:
    model.weights = {name: value + 0.5 for name, value in model.weights.items()}


def replace_a_weight(model: Tower) -> None:
    model.weights["items.projection.weight"] = model.weights["items.projection.weight"] + 0.5


def write_into_a_weight(model: Tower) -> None:
    model.weights["items.projection.weight"].add_(0.5)


@pytest.mark.parametrize("change", [replace_weights, replace_a_weight, write_into_a_weight])
def test_weights_that_were_changed_are_seen(tower: Path, change: Callable[[Tower], None]) -> None:
    model, fresh = Tower.from_pretrained(tower), Tower.from_pretrained(tower)
    before = read_by(model)
    change(model)
    change(fresh)
    for value, old, expected in zip(read_by(model), before, read_by(fresh), strict=True):
        assert torch.equal(value, expected)
        assert not torch.equal(value, old)


def test_what_an_attached_network_learns_is_seen(tower: Path, source: Domain) -> None:
    model = Tower.from_pretrained(tower)
    before = read_by(model)
    network = model.attach(source).train()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    assert not torch.equal(read_by(model)[0], before[0])
    assert torch.equal(read_by(model)[1], read_by(model.clone())[1])


@pytest.mark.parametrize("twin", [copying.copy, copying.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_towers_can_be_copied_after_their_use(tower: Path, twin: Callable[[Tower], Tower]) -> None:
    model = Tower.from_pretrained(tower)
    size = len(pickle.dumps(model))
    before = read_by(model)
    other = twin(model)
    assert all(torch.equal(*pair) for pair in zip(read_by(other), before, strict=True))
    assert len(pickle.dumps(model)) == size
    replace_weights(other)
    assert not torch.equal(read_by(other)[1], before[1])
    assert torch.equal(read_by(model)[1], before[1])


def test_threads_do_not_mix_items_up(tower: Path) -> None:
    model = Tower.from_pretrained(tower)
    features = [torch.eye(496)[row : row + 20] for row in range(200)]
    expected = [model.encode_items(rows) for rows in features]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(model.encode_items, features))
    assert all(map(torch.equal, found, expected))


def test_a_network_is_built_once(tower: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tower.from_pretrained(tower)
    built: list[object] = []
    empty = bivrec.artefact.empty_network
    monkeypatch.setattr("bivrec.artefact.empty_network", lambda config: built.append(config) or empty(config))
    vectors, interests = read_by(model.to("cpu"))
    for _ in range(3):
        read_by(model)
        model.score(interests, vectors)
    assert len(built) == 1


def test_a_joint_model_that_moves_takes_its_network_along(joint: Path, source: Domain) -> None:
    model = BiVRec.from_pretrained(joint, source)
    network = model.attach(source)
    model.to("meta")
    assert {value.device.type for value in network.state_dict().values()} == {"meta"}


def test_a_joint_model_without_its_domain_cannot_rank(pretrained: Run) -> None:
    with pytest.raises(BivrecError, match="no Domain yet"):
        model_of_run(pretrained).scorer()


def test_the_examples_of_the_readme_run(
    tower: Path, source: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    use, train, serve = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tower, tmp_path / "my-org" / "bivrec-ml-25m")
    shutil.copytree(source.path, tmp_path / "domains" / "shop")
    names: dict[str, Any] = {}
    exec(use, names)
    ids = source.item_ids()
    shown = [ids[index - 1] for index in names["best"][0]]
    assert len(set(shown)) == 10
    assert capsys.readouterr().out.strip() == str(shown)
    # So wide a model learns for minutes.
    exec(train.replace('"training.steps=300"', '"training.steps=2", "model.hidden_size=8"'), names)
    assert names["results"]["both"].metrics["recall@20"] == names["run"].results()["both"]["recall@20"]
    assert names["table"]["user_id"][0].as_py() == source.sequences("test").user_ids[0]
    shutil.copytree("runs/mine", "runs/shop")
    known, stock = ids[0], ids[5:9]
    served: dict[str, Any] = {"in_stock": stock}
    exec(serve.replace("sku-12", known), served)
    assert {item for item, _ in served["lists"][0]} == set(stock)
    assert served["lists"][1] == []
    assert served["popular"] == ids[:10]


# What does not fit together


def test_a_joint_model_does_not_rank_another_catalogue(joint: Path, target: Domain, source: Domain) -> None:
    with pytest.raises(BivrecError, match=r"trained on 0 of the .* items .*--zero-shot"):
        BiVRec.from_pretrained(joint, target)
    assert BiVRec.from_pretrained(joint, source).tower.attach(target).items.num_items == target.num_items


def test_a_tower_is_no_joint_model(tower: Path, source: Domain) -> None:
    with pytest.raises(BivrecError, match="a tower alone, not a joint model"):
        BiVRec.from_pretrained(tower, source)


def test_a_model_of_ids_alone(id_only: Run, source: Domain, tmp_path: Path) -> None:
    folder = publish(id_only, str(tmp_path / "ids"), "joint")
    users = EvaluationUsers.from_sequences(source.sequences("test"))
    model = BiVRec.from_pretrained(folder, source)
    assert {"id": evaluate(model.scorer("id"), users, KS).metrics} == id_only.results()
    for take in (lambda: Tower.from_pretrained(folder), lambda: model.tower):
        with pytest.raises(BivrecError, match="the ID view alone, which cannot transfer"):
            take()


def test_other_features_are_refused_and_both_sides_named(copy: Path, target: Domain, tmp_path: Path) -> None:
    shutil.copytree(target.path.parent, tmp_path / "world")
    raw = encode(Domain.open(tmp_path / "world" / "target"), whitening=None)
    with pytest.raises(BivrecError, match="features differ") as caught:
        Tower.from_pretrained(copy).attach(raw)
    for side in (copy, raw.path, "whitened", f"bivrec encode {raw.path}"):
        assert str(side) in str(caught.value)


def test_a_domain_without_features_is_refused(tower: Path, small_domain: Domain) -> None:
    with pytest.raises(BivrecError, match=r"is missing.*bivrec encode"):
        Tower.from_pretrained(tower).attach(small_domain)


# What cannot be read


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "results.json", "items.json"])
def test_missing_file(copy: Path, name: str) -> None:
    if (copy / name).exists():
        (copy / name).unlink()
        assert name in load_fault(copy)


@pytest.mark.parametrize("keep", [0, 7, 20, -1])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "results.json", "items.json"])
def test_truncated_file(copy: Path, name: str, keep: int) -> None:
    if (copy / name).exists():
        (copy / name).write_bytes((copy / name).read_bytes().rstrip()[:keep])
        assert name in load_fault(copy)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"model_type": "bert", "hidden_size": 768}', '{"architectures": ["ResNetModel"]}']
)
def test_foreign_config(copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content)
    assert "not a model of bivrec" in load_fault(copy)


@pytest.mark.parametrize("content", ["[" * 100_000, "9" * 100_000, "\ud800", "NaN"])
@pytest.mark.parametrize("name", ["config.json", "results.json", "items.json"])
def test_hostile_json(copy: Path, name: str, content: str) -> None:
    if (copy / name).exists():
        (copy / name).write_bytes(content.encode("utf-8", "surrogatepass"))
        assert load_fault(copy).startswith(f"{copy}/{name}: ")


SPEC = {"encoder": "hashing", "revision": "1", "dimension": 256, "pooling": "sum", "whitening": 30.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format version 2, this bivrec reads 1; upgrade bivrec"),
        ({"model": {"hidden_size": "wide"}}, "model.hidden_size: expected int, found 'wide'"),
        ({"model": {"hidden_size": 10**9}}, "model.hidden_size: 1000000000 is above the greatest allowed value"),
        ({"model": {"num_layers": 10**9}}, "model.num_layers"),
        ({"model": {"max_history": 10**12}}, "model.max_history"),
        ({"model": {"scales": list(range(2, 5000))}}, "model.scales: 4998 values, expected at most"),
        ({"model": {"num_interests": [4] * 100_000}}, "model.num_interests: 100000 values"),
        ({"model": {"num_headz": 2}}, "did you mean num_heads?"),
        ({"model": None}, "expected keys and values"),
        ({"features": {"text": {"dimension": 3}}}, "features.text: not a feature specification"),
        ({"features": {"text": SPEC | {"dimension": 10**9}}}, "features.text: dimension: expected 1 to"),
        ({"features": {"text": SPEC | {"dimension": True}}}, "features.text.dimension: unexpected True"),
        ({"features": {"text": SPEC | {"encoder": ["rm"]}}}, "features.text.encoder: unexpected ['rm']"),
        ({"features": {"sound": SPEC}}, "features: expected some of text, image"),
        ({"features": None}, "features: expected some of text, image"),
        ({"features": {}}, "features: expected for a model with the view mm"),
        ({"training": None}, "training: unexpected None"),
        ({"training": {"command": "bivrec pretrain"}}, "training.domain.name: unexpected None"),
        ({"training": {"command": ["rm"]}}, "training.command: unexpected ['rm']"),
        ({"catalogue": 3}, "catalogue: unexpected 3"),
        ({"views": ["audio"]}, "views: ['audio'] is not one of"),
        ({"num_items": 10**12}, "num_items: expected"),
        ({"num_items": 0.5}, "num_items: expected"),
        ({"pickle": "gASV"}, "keys missing or unknown: pickle"),
    ],
)
def test_spoilt_config(copy: Path, change: dict[str, Any], message: str) -> None:
    spoil(copy, **change)
    assert message in load_fault(copy)


@pytest.mark.parametrize("value", [{"mm": 3}, {"mm": {"recall@20": "high"}}, {"mm": {"recall@20": float("nan")}}, 1])
def test_spoilt_results(copy: Path, value: object) -> None:
    (copy / "results.json").write_text(json.dumps(value))
    assert "results.json" in load_fault(copy)


@pytest.mark.parametrize("value", [["a", "b"], [1] * 60, {"a": 1}])
def test_spoilt_items(joint: Path, tmp_path: Path, value: object) -> None:
    copy = Path(shutil.copytree(joint, tmp_path / "copy"))
    (copy / "items.json").write_text(json.dumps(value))
    assert "items.json" in load_fault(copy)


def test_weights_of_another_shape(copy: Path) -> None:
    spoil(copy, model={**json.loads((copy / "config.json").read_text())["model"], "hidden_size": 16})
    assert "model.safetensors: the weights are of another model: " in load_fault(copy)


@pytest.mark.parametrize("missing", [True, False])
def test_weights_are_neither_left_out_nor_ignored(copy: Path, missing: bool) -> None:
    stored = load_file(copy / "model.safetensors")
    if missing:
        stored.pop(min(stored))
    else:
        stored["further"] = torch.zeros(1)
    save_file(stored, copy / "model.safetensors")
    assert ("is missing" if missing else "'further' is unknown") in load_fault(copy)


@pytest.mark.parametrize("kind", [torch.float16, torch.float64, torch.int32])
def test_weights_of_another_type(copy: Path, kind: torch.dtype) -> None:
    stored = load_file(copy / "model.safetensors")
    first = min(stored)
    save_file({**stored, first: stored[first].to(kind)}, copy / "model.safetensors")
    assert f"{first} is " in load_fault(copy)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite(copy: Path, value: float) -> None:
    stored = load_file(copy / "model.safetensors")
    first = min(name for name in stored if "mm" in name or copy.joinpath("items.json").exists() is False)
    stored[first].view(-1)[-1] = value
    save_file(stored, copy / "model.safetensors")
    assert f"{first} holds NaN or infinity" in load_fault(copy)


def test_foreign_weights(copy: Path) -> None:
    for content in (b"PK\x03\x04" + bytes(100), b"\x80\x04\x95" + bytes(100), save({"a": torch.zeros(2)}), b"{}"):
        (copy / "model.safetensors").write_bytes(content)
        assert "model.safetensors" in load_fault(copy)


@pytest.mark.parametrize("cut", [0, 1 << 40, (1 << 64) - 1])
def test_a_header_of_another_length(copy: Path, cut: int) -> None:
    change_header(copy, {}, cut)
    assert "model.safetensors: damaged, or not safetensors" in load_fault(copy)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [10**6], "data_offsets": [0, 4 * 10**6]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]},
    ],
)
def test_a_header_that_does_not_describe_the_file(copy: Path, entry: dict[str, Any]) -> None:
    change_header(copy, {"further": entry})
    assert "model.safetensors: " in load_fault(copy)


def test_a_name_that_comes_twice(copy: Path) -> None:
    path = copy / "model.safetensors"
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = content[8 : 8 + length].decode().rstrip()
    name = min(json.loads(header).keys() - {"__metadata__"})
    twice = (header[:-1] + f',"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}').encode()
    path.write_bytes(struct.pack("<Q", len(twice)) + twice + content[8 + length :])
    assert "model.safetensors: " in load_fault(copy)


def test_a_file_far_larger_than_its_configuration(copy: Path) -> None:
    with (copy / "model.safetensors").open("r+b") as stream:
        stream.truncate(1 << 40)
    assert "expected at most" in load_fault(copy)


# Memory

MEASURE = """
import json, re, sys
from pathlib import Path
import torch
from bivrec import Tower

def load(folder):
    tower = Tower.from_pretrained(folder)
    items = tower.encode_items(torch.eye(496)[:9])
    tower.encode_histories(items, torch.tensor([[1, 2, 3]]))
    return tower

def resident(kind):
    # Not getrusage, whose peak begins with that of the process that started this one.
    return 1024 * int(re.search(kind + r":\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

load(sys.argv[1])
before = resident("VmRSS")
tower = load(sys.argv[2])
print(json.dumps({"weights": 4 * tower.num_parameters, "peak": resident("VmHWM") - before}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_loading_takes_little_more_memory_than_the_weights(tower: Path, tmp_path: Path) -> None:
    large = Path(shutil.copytree(tower, tmp_path / "large"))
    wide = {**json.loads((large / "config.json").read_text())["model"], "hidden_size": 1024, "num_layers": 2}
    spoil(large, model=wide)
    empty = empty_network(read_config(large / "config.json", "config.json")).tower("mm").state_dict()
    save_file({name: torch.rand(value.shape) for name, value in empty.items()}, large / "model.safetensors")
    done = in_subprocess("-c", MEASURE, tower, large)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["weights"] > 100e6
    assert measured["peak"] < 1.5 * measured["weights"], measured


def test_what_is_printed_in_a_notebook(source: Domain, pretrained: Run, tower: Path, joint: Path) -> None:
    users = sum(source.info.users.values())
    assert repr(source) == f"Domain('source', {users} users, {source.num_items} items, text 256-d, image 240-d)"
    assert repr(pretrained) == f"Run('{pretrained.path}', pretrain of id + mm on source)"
    read = Tower.from_pretrained(tower)
    weights = f"{read.num_parameters:,} parameters"
    assert repr(read) == f"Tower('{tower}', mm, width 8, text 256-d, image 240-d, {weights})"
    assert repr(BiVRec.from_pretrained(joint, source)).startswith(
        f"BiVRec('{joint}', id + mm, width 8, text 256-d, image 240-d, {source.num_items} items, "
    )
