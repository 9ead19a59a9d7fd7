"""Where the concerns meet: optimize, load and predict, plan, bench, report, survey, doctor."""

from alula.workflows.benching import BenchReport, BenchRow, bench
from alula.workflows.diagnosis import Diagnosis, diagnose
from alula.workflows.durations import parse_duration_s
from alula.workflows.ensembling import Ensemble, load, make_ensemble
from alula.workflows.lateness import PRIOR, DeadlineReport
from alula.workflows.optimization import optimize
from alula.workflows.planning import MeasuredStage, PlanReport, plan
from alula.workflows.prediction import PredictionReport, predict, run_over_files
from alula.workflows.reporting import write_report
from alula.workflows.running import Bundle, Prediction, load_bundle
from alula.workflows.surveying import SEEDS, SurveyReport, SurveyRow, survey
from alula.workflows.whole_files import optimize_whole_files

__all__ = [
    "PRIOR",
    "SEEDS",
    "BenchReport",
    "BenchRow",
    "Bundle",
    "DeadlineReport",
    "Diagnosis",
    "Ensemble",
    "MeasuredStage",
    "PlanReport",
    "Prediction",
    "PredictionReport",
    "SurveyReport",
    "SurveyRow",
    "bench",
    "diagnose",
    "load",
    "load_bundle",
    "make_ensemble",
    "optimize",
    "optimize_whole_files",
    "parse_duration_s",
    "plan",
    "predict",
    "run_over_files",
    "survey",
    "write_report",
]
