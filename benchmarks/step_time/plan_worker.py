"""Covey's plan of a workload, made without looking at how long a step really takes."""

from __future__ import annotations

import json
import sys

from covey.plan import plan_json, plan_recipe
from step_time.covey_worker import recipe_of, task_of
from step_time.processes import emit
from step_time.workload import Workload


def main() -> None:
    job = json.loads(sys.argv[1])
    workload = Workload(**job["workload"])
    plan = plan_json(plan_recipe(recipe_of(workload, model=job["model"], num_steps=1), task=task_of(workload)))
    forecast = plan["at_most" if workload.is_forced else "expected"]
    emit(
        {
            "step_s": round(forecast["step_s"], 3),
            "phases": {name: round(seconds, 3) for name, seconds in forecast["phases"].items()},
            "gb": round(plan["memory"]["peak"] / 1e9, 3),
            "memory": plan["memory"]["parts"],
            "probe": plan["probe"],
        }
    )


if __name__ == "__main__":
    main()
