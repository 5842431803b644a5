"""Our configuration for the settings of the published package: ``python tools/migrate.py FILE > run.yaml``.

FILE is a checkpoint (.pth, .ckpt), a training_config.json, or a YAML file of its command line. What has another meaning or no
counterpart here is said in comments; MIGRATING.md has the whole table.
"""

from rfdetr.training.main import run

if __name__ == "__main__":
    run("migrate")
