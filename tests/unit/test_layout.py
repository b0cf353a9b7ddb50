"""Layout of the repository: package names and lock files."""

from pathlib import Path

import parallel

ROOT = Path(__file__).parents[2]


def test_no_root_package_shadows_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not (ROOT / "operator.py").exists()
    assert not (ROOT / "runner" / "__init__.py").exists()


def test_no_lock_file_records_a_download_address() -> None:
    for file in ROOT.glob("constraints*.txt"):
        assert "://" not in file.read_text(), file


def test_every_unit_of_the_parallel_workers_names_files_that_exist() -> None:
    files = [str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")]
    for beginning in (beginning for unit in parallel.UNITS for beginning in unit):
        assert any(file.startswith(beginning) for file in files), beginning


def test_all_tests_of_one_unit_go_to_one_worker() -> None:
    model = "tests/integration/test_detector_model.py::test_a"
    onnx = "tests/integration/test_export_onnx.py::test_b[x::y]"
    alone = "tests/unit/test_data_kitti.py::test_c[x::y]"
    assert parallel.unit_of(model) == parallel.unit_of(onnx)
    assert parallel.unit_of(alone) == (len(parallel.UNITS), "tests/unit/test_data_kitti.py")
