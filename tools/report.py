"""One page that says how good a run is and where it fails: ``python tools/report.py RUN [RUN ...] [--output FILE] [--serve]``.

It is the report.html that a run writes at its end, made again without the model; of several runs it shows what differs. With
``--serve`` it shows runs that are still training, to browsers of this machine alone.
"""

from rfdetr.training.main import run

if __name__ == "__main__":
    run("report")
