"""The check of a data set before anything is trained on it: `check_dataset`, its report, and a corrected copy."""

from rfdetr.datacheck.dataset_check import DatasetCheck, check_dataset
from rfdetr.datacheck.fix import write_fixed
from rfdetr.datacheck.kinds import all_kinds
from rfdetr.datacheck.report import has_errors, to_dict, to_text

__all__ = ["DatasetCheck", "all_kinds", "check_dataset", "has_errors", "to_dict", "to_text", "write_fixed"]
