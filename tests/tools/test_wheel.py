"""The wheel alone, without the checkout: what is in it, and that it trains."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools")
ROOT = Path(__file__).parents[2]
SMALL = ["--model.variant", "pico", "--model.resolution", "64", "--model.num_queries", "10", "--data.format", "shapes",
         "--data.dataset_dir", "shapes", "--data.batch_size", "4", "--data.num_workers", "0", "--data.fraction", "0.02",
         "--data.multi_scale", "false", "--train.max_steps", "2", "--train.device", "cpu", "--log.plots", "false"]


@pytest.mark.slow
def test_it_trains_from_anywhere(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    source = tmp_path / "source"  # building leaves folders behind, which have no business in a checkout
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "engine", "hooks", "rfdetr", "setup.cfg", "setup.py",
                             "README.md", "LICENSE"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in listed:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*pip, "wheel", str(source), "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)], check=True)
    wheel, = tmp_path.glob("*.whl")
    packaged = {name for name in listed if "/" in name and not name.endswith(".md")}
    assert packaged <= set(zipfile.ZipFile(wheel).namelist()), "a file that is not Python belongs into package_data in setup.cfg"

    subprocess.run([*pip, "install", "--no-deps", "-q", "--target", str(tmp_path / "site"), str(wheel)], check=True)
    surroundings = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([str(tmp_path / "site" / "bin" / "rfdetr"), "fit", *SMALL], cwd=tmp_path, env=surroundings,
                          capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "output" / "checkpoint_best_total.pth").is_file()
    where = subprocess.run([sys.executable, "-c", "import rfdetr; print(rfdetr.__file__)"], cwd=tmp_path, env=surroundings,
                           capture_output=True, text=True, check=True).stdout
    assert where.startswith(str(tmp_path))
