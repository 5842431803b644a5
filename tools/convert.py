"""Write a data set in another format: ``python tools/convert.py --dataset_dir D --to coco|yolo --output DIR [--from auto]``.

It reads whatever can be trained on; what the format cannot keep is counted. The pictures are symbolic links unless ``--pictures
copy``. Nothing is ever written over. Of an installed package it is ``rfdetr convert``.
"""

from rfdetr.training.main import run

if __name__ == "__main__":
    run("convert")
