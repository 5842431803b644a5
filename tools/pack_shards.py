"""Pack a data set into tar shards: ``python tools/pack_shards.py --dataset_dir D --output DIR [--format auto] [--shard_mb 256]``.

Every split of the data set goes into shards in WebDataset's layout with an index (rfdetr/data/shards.py says what is in them).
Train on them with ``--data.dataset_dir DIR``, or copy the folder to a storage and give its address (``s3://bucket/DIR``).
"""

from rfdetr.training.main import run

if __name__ == "__main__":
    run("pack")
