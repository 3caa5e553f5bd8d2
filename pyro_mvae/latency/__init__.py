"""How fast is it, here and perhaps on a phone?"""

from pyro_mvae.latency.benchmark import as_text, benchmark, checkpoints
from pyro_mvae.latency.regressions import check_comparable, only_in_one, read_benchmark, regressions

__all__ = ["as_text", "benchmark", "check_comparable", "checkpoints", "only_in_one", "read_benchmark", "regressions"]
