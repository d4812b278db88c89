"""What is replaced by `--overwrite`: what bivrec made of the same kind, and nothing of the user's."""

import os
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from bivrec.errors import BivrecError
from bivrec.files import FolderKind, check_new_file, new_file, new_folder
from bivrec.locks import locked

KIND = FolderKind(marks=("mark.json",), entries=("mark.json", "part-*"))


def write(path: Path, text: str = "old") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_folder_of_its_kind_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "d" / "mark.json")
    write(tmp_path / "d" / "part-1")
    write(tmp_path / "d" / ".lock")
    write(tmp_path / "d" / ".DS_Store")
    write(tmp_path / "d" / ".part-1.77.tmp")
    with new_folder(tmp_path / "d", overwrite=True, kind=KIND) as staging:
        write(staging / "mark.json", "new")
        assert (tmp_path / "d" / "part-1").exists()
    assert [path.read_text() for path in (tmp_path / "d").iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [tmp_path / "d"]


def test_one_of_both_folders_is_there_whatever_interrupts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "d" / "mark.json")
    rename = Path.rename

    def interrupted(path: Path, to: Path) -> Path:
        if to == tmp_path / "d" and not path.name.endswith(".old"):
            raise KeyboardInterrupt
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        new_folder(tmp_path / "d", overwrite=True, kind=KIND) as staging,
    ):
        write(staging / "mark.json", "new")
    assert list(tmp_path.iterdir()) == [tmp_path / "d"]
    assert (tmp_path / "d" / "mark.json").read_text() == "old"


def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with new_folder(tmp_path / "d", overwrite=True, kind=KIND) as staging:
        write(staging / "mark.json")
    assert (tmp_path / "d" / "mark.json").exists()


def test_of_a_link_only_the_link_is_replaced(tmp_path: Path) -> None:
    kept = write(tmp_path / "d" / "mark.json")
    (tmp_path / "link").symlink_to(tmp_path / "d")
    with new_folder(tmp_path / "link", overwrite=True, kind=KIND) as staging:
        write(staging / "mark.json", "new")
    assert kept.read_text() == "old"
    assert (tmp_path / "link" / "mark.json").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "link"]


@pytest.mark.parametrize(
    ("held", "overwrite", "kind", "complaint"),
    [
        ("d/photo.png", True, KIND, "holds photo.png, but no mark.json"),
        ("d/inner/mark.json", True, KIND, "holds inner, but no mark.json"),
        ("d/mark.json/x", True, KIND, "holds mark.json, but no mark.json"),
        ("d/mark.json", True, FolderKind(("mark.json", "other.json"), ("*",)), "but no other.json"),
        ("d/mark.json", False, KIND, "exists already; choose another folder or pass --overwrite"),
        ("d/mark.json", True, None, "exists already; choose another folder$"),
        ("d", True, KIND, "d: is a file"),
        ("d", False, KIND, "d: is a file"),
    ],
)
def test_nothing_else_is_replaced(
    tmp_path: Path, held: str, overwrite: bool, kind: FolderKind | None, complaint: str
) -> None:
    kept = write(tmp_path / held)
    with (
        pytest.raises(BivrecError, match=complaint) as fault,
        new_folder(tmp_path / "d", overwrite=overwrite, kind=kind),
    ):
        pytest.fail("the work began")
    assert "\n" not in str(fault.value)
    assert kept.read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "d"]


@pytest.mark.parametrize("own", ["notes.txt", "my runs/run.json", ".git/config"])
def test_what_the_user_put_beside_is_not_deleted(tmp_path: Path, own: str) -> None:
    write(tmp_path / "d" / "mark.json")
    kept = write(tmp_path / "d" / own)
    with pytest.raises(BivrecError) as fault, new_folder(tmp_path / "d", overwrite=True, kind=KIND):
        pytest.fail("the work began")
    assert str(fault.value) == (
        f"{tmp_path / 'd'}: holds {Path(own).parts[0]}, which bivrec did not make there and --overwrite would delete; "
        "move it elsewhere, or choose another folder"
    )
    assert kept.read_text() == "old"


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_another_made_meanwhile_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    """Two trainings that are told the same new folder: the second must not replace the first."""
    name = "theirs.txt" if overwrite else "mark.json"
    complaint = "holds theirs.txt, but no mark.json" if overwrite else "exists already; choose another folder or pass"
    context = new_folder(tmp_path / "d", overwrite, kind=KIND)
    write(context.__enter__() / "mark.json", "new")
    write(tmp_path / "d" / name)
    with pytest.raises(BivrecError, match=complaint) as fault:
        context.__exit__(None, None, None)
    assert "\n" not in str(fault.value)
    assert (tmp_path / "d" / name).read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "d"]


@pytest.mark.parametrize("name", ["d", "link"])
def test_what_another_works_in_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It would go on in the new one."""
    kept = write(tmp_path / "d" / "mark.json")
    (tmp_path / "link").symlink_to(tmp_path / "d")
    with monkeypatch.context() as patch, locked(tmp_path / "d"):
        patch.setattr("bivrec.files.REPLACING_SECONDS", 0.05)
        with (
            pytest.raises(BivrecError, match=r"d: process .* is at work in this folder"),
            new_folder(tmp_path / name, overwrite=True, kind=KIND) as staging,
        ):
            write(staging / "mark.json", "new")
    assert kept.read_text() == "old"
    with ExitStack() as work:
        work.enter_context(locked(tmp_path / "d"))
        threading.Timer(0.1, work.close).start()
        with new_folder(tmp_path / name, overwrite=True, kind=KIND) as staging:
            write(staging / "mark.json", "new")
    assert (tmp_path / name / "mark.json").read_text() == "new"
    assert not list(tmp_path.glob("*/.lock"))


def test_of_those_who_make_a_folder_at_once_one_succeeds(tmp_path: Path) -> None:
    contexts = [new_folder(tmp_path / "d", kind=KIND) for _ in range(8)]
    ready = threading.Barrier(len(contexts))
    made: list[str] = []
    refused: list[str] = []

    def end(number: int) -> None:
        ready.wait(60)
        try:
            contexts[number].__exit__(None, None, None)
            made.append(str(number))
        except BivrecError as fault:
            refused.append(str(fault))

    for number, context in enumerate(contexts):
        write(context.__enter__() / "mark.json", str(number))
    threads = [threading.Thread(target=end, args=(number,)) for number in range(len(contexts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [(tmp_path / "d" / "mark.json").read_text()] == made
    assert len(refused) == 7
    assert all("exists already" in fault for fault in refused)
    assert list(tmp_path.iterdir()) == [tmp_path / "d"]


@pytest.mark.parametrize("path", [".", "..", "../../d"])
def test_the_folder_where_one_is_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    (tmp_path / "d" / "part-1").mkdir(parents=True)
    for folder in (tmp_path / "d", tmp_path / "d" / "part-1"):
        write(folder / "mark.json")
    monkeypatch.chdir(tmp_path / "d" / "part-1")
    with pytest.raises(BivrecError) as fault, new_folder(Path(path), overwrite=True, kind=KIND):
        pytest.fail("the work began")
    assert str(fault.value) == f"{path}: is where you are, or above it, and is not replaced; start from elsewhere"
    assert sorted(entry.name for entry in (tmp_path / "d").iterdir()) == ["mark.json", "part-1"]


def test_the_root_is_not_replaced() -> None:
    with pytest.raises(BivrecError, match=r"^/: (exists already|no right to write)"), new_folder(Path("/")):
        pytest.fail("the work began")


def test_a_place_below_a_file(tmp_path: Path) -> None:
    write(tmp_path / "f")
    with pytest.raises(BivrecError, match="f is a file, not a folder"), new_folder(tmp_path / "f" / "a" / "b"):
        pytest.fail("the work began")
    with pytest.raises(BivrecError, match="f is a file, not a folder"):
        check_new_file(tmp_path / "f" / "a.csv")
    with pytest.raises(BivrecError, match="is a folder; choose another file"):
        check_new_file(tmp_path)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_a_file_that_a_library_makes_private_has_the_permissions_of_any_other(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with new_file(tmp_path / "made") as staging:
            write(tmp_path / "private").chmod(0o600)
            (tmp_path / "private").rename(staging)
        write(tmp_path / "other")
    finally:
        os.umask(before)
    assert (tmp_path / "made").read_text() == "old"
    assert (tmp_path / "made").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_folder_that_cannot_be_made_is_called_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250)
    with pytest.raises(BivrecError) as fault, new_folder(path):
        pass
    assert str(fault.value) == f"{path}: cannot be made (File name too long); choose another place"
