"""Two Gloo processes, however the images are spread over them, say what one says."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

from eval_cases import made_up_images

from rfdetr.evaluation import DetectionMetrics

SCRIPT = """
import pickle, sys
sys.path.insert(0, {folder!r})
import torch.distributed as dist
from engine.distributed import leave_process_group
from eval_cases import made_up_images
from rfdetr.evaluation import DetectionMetrics

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + {out!r} + "/meeting_point", rank=rank, world_size=2)
results, targets = made_up_images(5)
said = []
for mine in ((slice(None), slice(0)), (slice(0), slice(None)), (slice(0, None, 2), slice(1, None, 2)), (slice(0), slice(0))):
    metric = DetectionMetrics(["a", "b", "c"])
    metric.update(results[mine[rank]], targets[mine[rank]])
    values = metric.compute()
    said.append((values, metric.compute() == values, {{label: m.scores.tolist() for label, m in metric.coco.matches().items()}}))
    if rank == 1:
        try:
            metric.confusion()
        except RuntimeError as error:
            assert "rank 0" in str(error)
pickle.dump(said, open({out!r} + f"/rank{{rank}}.pkl", "wb"))
leave_process_group()
"""


def test_five_and_no_images_are_five_images(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=str(Path(__file__).parent), out=str(tmp_path)))
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    processes = [subprocess.Popen([sys.executable, str(script), str(rank)], env=environment) for rank in range(2)]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    ranks = [pickle.loads((tmp_path / f"rank{rank}.pkl").read_bytes()) for rank in range(2)]
    assert ranks[0] == ranks[1]

    one = DetectionMetrics(["a", "b", "c"])
    one.update(*made_up_images(5))
    expected = one.compute()
    assert expected["mAP_50_95"] > 0.1
    *sharded, nothing = ranks[0]
    for values, same_twice, scores in sharded:
        assert values == expected and same_twice
        assert scores == {label: found.scores.tolist() for label, found in one.coco.matches().items()}
    assert nothing[0]["mAP_50_95"] == -1 and nothing[0]["F1"] == 0
