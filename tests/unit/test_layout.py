"""Layout of the repository: package names and lock files."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_no_root_package_shadows_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not (ROOT / "operator.py").exists()
    assert not (ROOT / "runner" / "__init__.py").exists()


def test_no_lock_file_records_a_download_address() -> None:
    for file in ROOT.glob("constraints*.txt"):
        assert "://" not in file.read_text(), file
