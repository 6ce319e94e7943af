"""Registry of benchmarks. A new one needs a file and a line here."""

from __future__ import annotations

from rlsys.evaluation.benchmarks.beavertails_v import BEAVERTAILS_V
from rlsys.evaluation.benchmarks.benchmark import Benchmark
from rlsys.evaluation.benchmarks.figstep import FIGSTEP, FIGSTEP_TINY
from rlsys.evaluation.benchmarks.figstep_benign import FIGSTEP_BENIGN
from rlsys.evaluation.benchmarks.mm_safetybench import MM_SAFETYBENCH
from rlsys.evaluation.benchmarks.mossbench import MOSSBENCH
from rlsys.evaluation.benchmarks.siuo import SIUO
from rlsys.evaluation.benchmarks.spa_vl import SPA_VL
from rlsys.evaluation.benchmarks.vlguard import VLGUARD
from rlsys.registries import by_name

ALL: tuple[Benchmark, ...] = (
    SIUO,
    FIGSTEP,
    FIGSTEP_TINY,
    FIGSTEP_BENIGN,
    VLGUARD,
    MM_SAFETYBENCH,
    MOSSBENCH,
    SPA_VL,
    BEAVERTAILS_V,
)
BENCHMARKS = by_name("benchmark", ((each.name, each) for each in ALL))
